"""The complete work of each job; the scripts in ray_jobs/ only parse arguments and print.

Every workflow takes a request and returns a result, both plain dataclasses, so that it can be
called from Python as well. A Display shows progress; without one a workflow is silent.

collection     URLs, searches -> raw folder
preparation    raw folders -> data set
review         data set -> a page with its suspect labels
training       data set -> run with a model
search         data set -> study, and the best model
evaluation     model -> scores and a report
promotion      run -> champion, if it passes the gate
export         model -> files that can be served
prediction     model, images -> tables and a contact sheet
serving        model -> HTTP server, on this machine or on replicas
demo           every stage on synthetic images
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
