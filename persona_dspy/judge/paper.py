"""What the paper reports, to stand beside figures of one's own; never mixed with them.

arXiv 2506.06254; Findings of ACL 2026, 2026.findings-acl.1315. LaMP, the 100 users with the longest histories of each
task, Claude-3.5 Sonnet for every method.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["COLD_START", "LATENCY", "PAPER_TASKS", "REPORTED"]

PAPER_TASKS = ("lamp-1", "lamp-2m", "lamp-2n", "lamp-3")

REPORTED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "lamp-1": {
        "membank": (0.862, 0.861),
        "as-in-paper": (0.919, 0.918),
        "as-in-paper@no-alignment": (0.894, 0.893),
        "as-in-paper@no-persona": (0.846, 0.855),
        "as-in-paper@no-memory": (0.821, 0.841),
        "as-in-paper@no-action": (0.764, 0.789),
    },
    "lamp-2m": {
        "membank": (0.470, 0.391),
        "as-in-paper": (0.513, 0.424),
        "as-in-paper@no-alignment": (0.487, 0.403),
        "as-in-paper@no-persona": (0.463, 0.361),
        "as-in-paper@no-memory": (0.460, 0.365),
        "as-in-paper@no-action": (0.403, 0.329),
    },
    "lamp-2n": {
        "pag": (0.768, 0.509),
        "as-in-paper": (0.796, 0.532),
        "as-in-paper@no-alignment": (0.775, 0.502),
        "as-in-paper@no-persona": (0.769, 0.483),
        "as-in-paper@no-memory": (0.646, 0.388),
        "as-in-paper@no-action": (0.626, 0.375),
    },
    "lamp-3": {
        "icl": (0.277, 0.543),
        "as-in-paper": (0.241, 0.509),
        "as-in-paper@no-alignment": (0.259, 0.560),
        "as-in-paper@no-persona": (0.277, 0.542),
        "as-in-paper@no-memory": (0.348, 0.661),
        "as-in-paper@no-action": (0.375, 0.756),
    },
}
"""Task -> row -> (accuracy, F1), for lamp-3 (MAE, RMSE). Of the baselines, the best of each task."""

LATENCY: Mapping[str, float] = {"as-in-paper": 1.79, "pag": 1.24, "react": 2.61, "membank": 2.92}
"""Seconds a query when serving, alignment excluded."""

COLD_START: Mapping[str, float] = {"lamp-1": 0.845, "lamp-3": 0.301}
"""The headline metric with at most 10 past interactions."""
