"""The activation cache: outputs of frozen blocks, computed once and shared by epochs and trials.

Below the cut the network is fixed, so its output for a view of an image is a constant. It is
computed when it is first needed; later epochs, trials and runs that need the same view read it.

store     parts of views on a local disk, within a budget
keys      what decides an activation, and so names it
source    the loop's activations: computed in each step, or read from the store
policy    whether caching pays for a run or for the trials of a search
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
