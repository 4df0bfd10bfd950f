"""Writes how many machines of a cluster live, each time that changes; runs on its head.

Asking `ray status` instead would start a Python each time, which keeps a processor busy.
"""

import contextlib
import sys
import time

from ray.exceptions import RayError
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

count = None
while True:
    with contextlib.suppress(RayError, RayStateApiException, OSError):
        # Asked for the living ones alone, it has counted a dead one too.
        living = sum(node.state == "ALIVE" for node in list_nodes("http://127.0.0.1:8265"))
        if living != count:
            count = living
            sys.stdout.write(f"{living}\n")
            sys.stdout.flush()
    time.sleep(0.5)
