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
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": _ACTOR_NAME, "namespace": namespace, "num_cpus": 0, "max_concurrency": 8}
    _actors[namespace] = ray.remote(HeadFiles).options(scheduling_strategy=here, **options).remote()


def _namespace() -> str:
    """The same in all processes of a job, and different in every other job."""
    return f"drone-{ray.get_runtime_context().get_job_id()}"


def _call_actor(method: str, *arguments: Any) -> Any:
    """A `drone.storage.head_files.Transport` through the actor."""
    try:
        actor = ray.get_actor(_ACTOR_NAME, _namespace())
        return ray.get(getattr(actor, method).remote(*arguments))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, OSError) else error from None
    except (RayActorError, ValueError) as error:
        raise OSError(f"the machine that the job runs on cannot be reached: {error}") from error


# Whoever imports a module of drone.cluster that touches storage imports this one.
register_transport(_call_actor)
