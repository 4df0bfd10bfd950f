"""A channel between workers and the process that launched them, over a small actor."""

import pickle
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class WorkerChannel:
    """Carries messages from the workers to the driver, and its stop request back.

    It is passed to the workers with their other settings. The actor does not unpickle what it
    carries, so that it imports nothing and starts at once.
    """

    def __init__(self) -> None:
        """Starts the actor beside the driver: on another machine it could be lost with that."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: ActorHandle = ray.remote(num_cpus=0, scheduling_strategy=here)(
            _ChannelActor
        ).remote()

    def publish(self, message: object) -> None:
        """Sends a message; returns when it is stored."""
        # Waits: a worker that is lost right afterwards must not take an epoch with it.
        ray.get(self._actor.publish.remote(pickle.dumps(message), replaceable=False))

    def publish_latest(self, message: object) -> None:
        """Sends a message that the next one of its kind replaces, without waiting."""
        self._actor.publish.remote(pickle.dumps(message), replaceable=True)

    def drain(self) -> list[Any]:
        """Returns all messages since the last call, in order."""
        return [pickle.loads(message) for message in ray.get(self._actor.drain.remote())]

    def request_stop(self) -> None:
        """Asks the workers to stop."""
        ray.get(self._actor.request_stop.remote())

    def stop_requested(self) -> ray.ObjectRef:
        """Returns a future that tells whether the driver has asked the workers to stop."""
        return self._actor.stop_requested.remote()


class _ChannelActor:
    """Stores messages until the driver drains them."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._last_is_replaceable = False
        self._stop = False

    def publish(self, message: bytes, replaceable: bool) -> None:
        # Otherwise progress would pile up while the driver waits for the tracking server.
        if replaceable and self._messages and self._last_is_replaceable:
            self._messages.pop()
        self._last_is_replaceable = replaceable
        self._messages.append(message)

    def drain(self) -> list[bytes]:
        messages, self._messages = self._messages, []
        return messages

    def request_stop(self) -> None:
        self._stop = True

    def stop_requested(self) -> bool:
        return self._stop
