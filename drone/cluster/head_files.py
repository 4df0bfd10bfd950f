"""The transport of `head://`: an actor beside the job serves its machine's files to the others.

It works wherever Ray is connected, and ends with the job.
"""

from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drone.storage.head_files import HeadFiles, register_transport

_ACTOR_NAME = "drone-head-files"

_actors: dict[str, ActorHandle] = {}
"""By job: a named actor ends when the handle that created it is garbage-collected."""


def start_actor() -> None:
    """Starts the actor on this machine, unless it is running."""
    namespace = _namespace()
    if namespace in _actors:
        return
    # Pinned: on any other machine it would serve the files of that one.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Several threads: a machine that copies a data set must not hold up another's checkpoint.
    options = {"name": _ACTOR_NAME, "namespace": namespace, "num_cpus": 0, "max_concurrency": 8}
    _actors[namespace] = ray.remote(HeadFiles).options(scheduling_strategy=here, **options).remote()


def _namespace() -> str:
    """Returns a namespace that all processes of a job share, and no other job has."""
    return f"drone-{ray.get_runtime_context().get_job_id()}"


def _call_actor(method: str, *arguments: Any) -> Any:
    """Calls a method of the actor: a `drone.storage.head_files.Transport`."""
    try:
        actor = ray.get_actor(_ACTOR_NAME, _namespace())
        return ray.get(getattr(actor, method).remote(*arguments))
    except RayTaskError as error:
        # As if the file were local: file systems and callers know OSError, not Ray.
        raise error.cause if isinstance(error.cause, OSError) else error from None
    # ValueError: no actor of this name, since the job has ended or has not started one.
    except (RayActorError, ValueError) as error:
        raise ConnectionError(
            f"the machine that the job runs on cannot be reached: {error}"
        ) from error


# Whoever imports a module of drone.cluster that touches storage imports this one.
register_transport(_call_actor)
