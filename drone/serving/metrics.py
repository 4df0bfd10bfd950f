"""Metrics of a server in Prometheus' text format: aggregates only.

Labels are of a bounded number: routes, status codes, class names and reasons. No path, address,
key or image content is in them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from drone.errors import ImageError
from drone.labels import NONE
from drone.serving.drift import EDGES, Reference, Window
from drone.serving.predictor import ModelInfo, Prediction

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the buckets of durations."""

# Otherwise each series has a second one with the time of its creation.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Counts what a server does; threads may share it."""

    def __init__(
        self, info: ModelInfo | None = None, identity: Mapping[str, str] | None = None
    ) -> None:
        """Creates the metrics, all at zero.

        Args:
            info: The model, whose answers are counted by class and compared with its reference.
            identity: Labels that tell which model it is, such as its version.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter(
            "requests", "Requests by route and status code.", "route", "status"
        )
        self._seconds = Histogram(
            "drone_request_seconds",
            "Time from the headers of a request to the end of its response, by route.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._wait = self._histogram(
            "drone_queue_wait_seconds", "Time that a request waited for a thread.", _SECONDS
        )
        self._images = self._counter(
            "images", "Images by result: decoded, or why they were refused.", "result"
        )
        self._answers = self._counter("answers", "Answers by class.", "class")
        self._unsure = self._counter("unsure_answers", "Answers that were unsure.")
        self._alarms = self._counter("alarms", "Answers that raised an alarm.")
        self._confidence = self._histogram(
            "drone_confidence", "Probability of the predicted class.", EDGES
        )
        self._known = self._histogram(
            "drone_known_score", "How much images are like those of training, 0 to 1.", EDGES
        )
        self._window: Window | None = None
        for result in ("decoded", *ImageError.REASONS):
            self._images.labels(result)
        if info is not None:
            self._describe(info, identity or {})

    def _describe(self, info: ModelInfo, identity: Mapping[str, str]) -> None:
        Info("drone_model", "The model; always 1.", registry=self.registry).info(dict(identity))
        # From the start: a rate needs a first value of 0.
        for label in (*info.classes, NONE):
            self._answers.labels(label)
        if info.reference is not None:
            self._window = Window(info.reference)
            self.registry.register(_DriftCollector(self._window, info.reference))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"drone_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read whenever the metrics are."""
        Gauge(f"drone_{name}", text, registry=self.registry).set_function(read)

    def observe_request(self, route: str, status: int, took_s: float | None = None) -> None:
        """Counts a request.

        Args:
            route: One of few names.
            status: Status code of the response.
            took_s: Seconds until the end of its response; None if it was refused unread.
        """
        self._requests.labels(route, str(status)).inc()
        if took_s is not None:
            self._seconds.labels(route).observe(took_s)

    def observe_wait(self, waited_s: float) -> None:
        """Counts the time that an image waited for a thread."""
        self._wait.observe(waited_s)

    def observe_answer(self, answer: Prediction | ImageError) -> None:
        """Counts the answer to an image, or why there is none."""
        if isinstance(answer, ImageError):
            self._images.labels(answer.reason).inc()
            return
        self._images.labels("decoded").inc()
        self._answers.labels(answer.label).inc()
        self._confidence.observe(answer.confidence)
        self._known.observe(answer.known)
        if answer.unsure:
            self._unsure.inc()
        if answer.alarm:
            self._alarms.inc()
        if self._window is not None:
            self._window.add(answer)

    def text(self) -> bytes:
        """Returns all metrics, of the type `CONTENT_TYPE`."""
        return generate_latest(self.registry)


class _DriftCollector(Collector):
    """Computes the drift when the metrics are read, not at each answer."""

    def __init__(self, window: Window, reference: Reference) -> None:
        self._window, self._reference = window, reference

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the gauges; those of an index only once there are enough answers."""
        index = GaugeMetricFamily(
            "drone_drift_psi",
            "Population stability index of the latest answers against the model's reference.",
            labels=["of"],
        )
        by_chance = GaugeMetricFamily(
            "drone_drift_psi_by_chance",
            "Index that 1 % of comparisons of so many answers exceed without any drift.",
            labels=["of"],
        )
        for name, drift in self._window.drift().items():
            index.add_metric([name], drift.index)
            by_chance.add_metric([name], drift.by_chance)
        yield index
        yield by_chance
        yield GaugeMetricFamily(
            "drone_drift_answers",
            "Latest answers that drift is computed of.",
            value=self._window.num_answers,
        )
        yield GaugeMetricFamily(
            "drone_drift_reference_images",
            "Images of the reference in the model's file.",
            value=self._reference.num_answers,
        )
