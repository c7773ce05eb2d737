"""What the proxy counts, in Prometheus' form."""

from __future__ import annotations

import os
from typing import Any

from persona_dspy.service.alignments import Outcome

__all__ = ["Metrics"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Requests by route and status, seconds to the upstream's first byte, and the state of the service. No label
    holds an id. Where ``PROMETHEUS_MULTIPROC_DIR`` is set, of all workers together."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # of the extra "serve"

        registry = self._registry = CollectorRegistry()
        self.requests = Counter("persona_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.first_byte = Histogram(
            "persona_upstream_seconds", "Seconds until the upstream answered.", buckets=_SECONDS, registry=registry
        )
        self.personalized = Counter("persona_personalized", "Chat requests that got a persona.", registry=registry)
        self.alignments = Counter("persona_alignments", "Alignments that ended.", ["result"], registry=registry)
        states = ("queued", "aligning", "waiting", "open_users", "store_down", "tracker_down")
        self._states = {
            name: Gauge(f"persona_{name}", "State of the workers.", multiprocess_mode="livesum", registry=registry)
            for name in states
        }

    def count_alignment(self, outcome: Outcome) -> None:
        """One that ended."""
        result = "failed" if outcome.error else "changed" if outcome.changed else "unchanged"
        self.alignments.labels(result).inc()

    def text(self, status: dict[str, Any]) -> bytes:
        """All of it; ``status`` is that of ``Personas.status``."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        down = {f"{name}_down": bool(status[name]) for name in ("store", "tracker")}
        for name, gauge in self._states.items():
            gauge.set({**status, **down}[name])
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
