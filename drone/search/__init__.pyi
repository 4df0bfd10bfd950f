from .domain import Choice as Choice
from .domain import Range as Range
from .domain import Space as Space
from .sampler import Sampler as Sampler
from .space import DEFAULT as DEFAULT
from .space import resolve_space as resolve_space
from .study import Study as Study
from .study import StudySpec as StudySpec
from .study import TrialRecord as TrialRecord

__all__ = [
    "DEFAULT",
    "Choice",
    "Range",
    "Sampler",
    "Space",
    "Study",
    "StudySpec",
    "TrialRecord",
    "resolve_space",
]
