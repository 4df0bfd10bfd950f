"""News from workers to the process that launched them, over a small actor between them."""

import pickle
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Relay:
    """Carries news from the workers to the driver, and the wish to stop back.

    It goes from process to process with the workers' other settings. What it carries it does not
    unpack, so that its actor imports nothing and is there at once.
    """

    def __init__(self) -> None:
        """Starts the actor beside the driver: on another machine it would be lost with that."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: ActorHandle = ray.remote(num_cpus=0, scheduling_strategy=here)(
            _Carrier
        ).remote()

    def publish(self, news: object) -> None:
        """Hands news over; returns when they are safe."""
        ray.get(self._actor.publish.remote(pickle.dumps(news), passing=False))

    def publish_passing(self, news: object) -> None:
        """Hands over what the next such news make worthless, without waiting."""
        self._actor.publish.remote(pickle.dumps(news), passing=True)

    def drain(self) -> list[Any]:
        """All news since the last call, in their order."""
        return [pickle.loads(news) for news in ray.get(self._actor.drain.remote())]

    def ask_to_stop(self) -> None:
        """The driver wants the workers to stop."""
        ray.get(self._actor.ask_to_stop.remote())

    def stop_asked(self) -> ray.ObjectRef:
        """Whether it does, as something to wait for."""
        return self._actor.stop_asked.remote()


class _Carrier:
    """The actor."""

    def __init__(self) -> None:
        self._news: list[bytes] = []
        self._passing = False
        self._stop = False

    def publish(self, news: bytes, passing: bool) -> None:
        if passing and self._news and self._passing:
            self._news.pop()
        self._passing = passing
        self._news.append(news)

    def drain(self) -> list[bytes]:
        news, self._news = self._news, []
        return news

    def ask_to_stop(self) -> None:
        self._stop = True

    def stop_asked(self) -> bool:
        return self._stop
