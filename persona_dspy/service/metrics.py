"""What the proxy counts, in Prometheus' form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_dspy.service.alignments import Outcome

__all__ = ["Metrics"]

_STATES = {
    "queued": "Interactions that wait for the store, in the queue on disk that the workers share.",
    "aligning": "Users who are being aligned.",
    "waiting": "Users whom a worker has taken up and not begun to align; users left for later are not in it.",
    "open_users": "Users whose programs are kept ready, counted in each worker.",
    "store_down": "Workers that cannot reach the store.",
    "tracker_down": "Workers that cannot reach MLflow.",
}
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Requests by route and status, seconds to the upstream's first byte, and the state of the service. No label
    holds an id. Where ``PROMETHEUS_MULTIPROC_DIR`` is set, of all workers together: counts also of workers that ended,
    states only of those that live."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # of the extra "serve"

        registry = self._registry = CollectorRegistry()
        self.requests = Counter("persona_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.first_byte = Histogram(
            "persona_upstream_seconds", "Seconds until the upstream answered.", buckets=_SECONDS, registry=registry
        )
        self.personalized = Counter("persona_personalized", "Chat requests that got a persona.", registry=registry)
        ended = "Alignments that ended; unread: nothing that the LM wrote could be read."
        self.alignments = Counter("persona_alignments", ended, ["result"], registry=registry)
        self._states = {
            name: Gauge(
                f"persona_{name}",
                meaning,
                multiprocess_mode="livemax" if name == "queued" else "livesum",
                registry=registry,
            )
            for name, meaning in _STATES.items()
        }

    def count_alignment(self, outcome: Outcome) -> None:
        """One that ended."""
        result = "failed" if outcome.error else "changed" if outcome.changed else "unchanged"
        self.alignments.labels("unread" if outcome.unread else result).inc()

    def set_state(self, status: Mapping[str, Any]) -> None:
        """How this worker is: the ``Personas.status`` of now."""
        down = {f"{name}_down": bool(status[name]) for name in ("store", "tracker")}
        for name, gauge in self._states.items():
            gauge.set({**status, **down}[name])

    def text(self, status: Mapping[str, Any]) -> bytes:
        """All of it; ``status`` as in ``set_state``."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        self.set_state(status)
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        _drop_states_of_the_dead(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)


def _drop_states_of_the_dead(folder: Path) -> None:
    """A worker that was killed says no more that it is gone; what it counted stays."""
    for file in folder.glob("gauge_live*.db"):
        try:
            os.kill(int(file.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
