"""Whether the store can be reached: where it cannot, answers go on without asking it again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from persona_dspy.core import scrubbed
from persona_dspy.errors import StoreError, UserForgotten

__all__ = ["StoreReach"]

_log = logging.getLogger(__name__)


class StoreReach:
    """Remembers that the store failed, for ``pause`` seconds: whoever asks meanwhile is refused at once.

    Attributes:
        trouble: why it failed last; empty while all is well.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._lock = threading.Lock()
        self._again = 0.0  # by the monotonic clock
        self.trouble = ""

    @contextmanager
    def asking(self) -> Generator[None]:
        """Around each use of the store.

        Raises:
            StoreError: the store failed inside, or less than ``pause`` seconds ago.
        """
        if self.trouble and time.monotonic() < self._again:
            raise StoreError(self.trouble)
        try:
            yield
        except UserForgotten:
            raise
        except StoreError as failure:
            with self._lock:
                first, self.trouble = not self.trouble, scrubbed(str(failure))
                self._again = time.monotonic() + self._pause
            if first:
                _log.error("the store failed; answers go on under the personas known here: %s", self.trouble)
            raise
        if self.trouble:
            with self._lock:
                self.trouble = ""
            _log.warning("the store answers again")
