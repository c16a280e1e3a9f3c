"""The server's counters for Prometheus; each server has a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From a small picture on a GPU to a large one on a laptop.
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class ServerMetrics:
    """Counters of requests, pictures, batches and seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tessella_requests_total",
            "Answers, by address and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.queue = Gauge("tessella_queue_pictures", "Pictures that wait.", registry=self.registry)
        self.pictures = Counter(
            "tessella_pictures_total", "Pictures painted.", ["model"], registry=self.registry
        )
        self.batch_size = Histogram(
            "tessella_batch_size",
            "Pictures painted together.",
            buckets=(1, 2, 4, 8, 12, 16),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "tessella_seconds",
            "Seconds by phase: read (a body and its pictures), wait (in the queue), paint (a "
            "batch), encode (a picture's file), request (the whole).",
            ["phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def render(self) -> bytes:
        """Writes all of them in Prometheus' text format."""
        return generate_latest(self.registry)
