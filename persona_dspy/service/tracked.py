"""Alignments of a service as runs of a tracker that may be down."""

from __future__ import annotations

import logging
import threading
import time

from persona_dspy.core import PersonaDocument, scrubbed
from persona_dspy.errors import RunError
from persona_dspy.tracking import Tracker

__all__ = ["TrackedAlignments"]

_log = logging.getLogger(__name__)
_PAUSE = 60.0  # seconds before a tracker that could not be begun is tried again


class TrackedAlignments:
    """One batch of a tracker's, begun with the first alignment; without a tracker, nothing.

    Attributes:
        trouble: why runs are missing; empty where none is.
        lost: how many alignments have no run.
    """

    def __init__(self, tracker: Tracker | None, every: int) -> None:
        self._tracker, self._every = tracker, every
        self._lock = threading.Lock()
        self._begun, self._again = False, 0.0
        self.trouble, self.lost = "", 0

    def add(self, user_id: str, document: PersonaDocument | None, error: str = "") -> None:
        """A finished alignment, or the error that ended one."""
        if self._tracker is not None:
            with self._lock:
                if self._begins(self._tracker):
                    self._tracker.user(user_id, document, error)
                else:
                    self.lost += 1

    def close(self) -> None:
        with self._lock:
            if self._tracker is not None and self._begun:
                self._tracker.end({})
                self._begun = False

    def _begins(self, tracker: Tracker) -> bool:
        if self._begun:
            return True
        if time.monotonic() < self._again:
            return False
        try:
            tracker.begin({"service": True, "every": self._every})
        except RunError as failure:
            self._again, self.trouble = time.monotonic() + _PAUSE, scrubbed(str(failure))
            _log.warning("alignments go on without runs: %s", self.trouble)
            return False
        self._begun, self.trouble = True, ""
        return True
