"""Drafts on their way into the store: answers do not wait for it, and feedback finds them at once."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

from persona_dspy.core import Interaction
from persona_dspy.errors import InputError, StoreError, UserForgotten
from persona_dspy.service.reach import StoreReach
from persona_dspy.store import Store, UserState

__all__ = ["DraftKeeper"]

_log = logging.getLogger(__name__)
_WAITING = 10_000  # drafts of a process that the store has not taken yet
_GATHER = 0.1  # seconds: drafts go into the store a handful at a time, not one thread's turn for each answer


class DraftKeeper:
    """Writes the drafts that a process gives into the store, from a thread of its own.

    Args:
        most: drafts kept of each user; 0 = none.
        pause: seconds from a failed write to the next, and that a draft of another process is waited for.

    Attributes:
        lost: how many could not be kept: the store was gone for long.
    """

    def __init__(self, store: Store, reach: StoreReach, *, most: int, pause: float) -> None:
        self._store, self._reach, self._most, self._pause = store, reach, most, pause
        self._waiting: OrderedDict[str, tuple[Interaction, UserState | None]] = OrderedDict()  # by trace id
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self.lost = 0

    def add(self, draft: Interaction, state: UserState | None) -> None:
        """Takes a draft that was just given; ``state``: what the store said of the user before the answer began."""
        if not self._most:
            return
        with self._changed:
            self._waiting[draft.id] = (draft, state)
            if len(self._waiting) > _WAITING:
                self._waiting.popitem(last=False)
                self.lost += 1
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._work, daemon=True, name="draft-keeper")
                self._thread.start()
            if len(self._waiting) == 1:
                self._changed.notify()

    def find(self, user_id: str, trace_id: str) -> Interaction | None:
        """A draft that was given to the user, in any process; with what was said of it so far. One that is not there is
        waited for: the process that has just given it may not have written it yet.

        Raises:
            StoreError: the store cannot be read, and this process has not given the draft just now.
        """
        with self._changed:
            waiting = self._waiting.get(trace_id)
        if waiting is not None and waiting[0].user_id == user_id:
            return waiting[0]
        until = time.monotonic() + self._pause
        while True:
            with self._reach.asking():
                given = self._store.draft(user_id, trace_id) or self._store.episode(user_id, trace_id)
            if given is not None or time.monotonic() > until:
                return given
            time.sleep(_GATHER / 2)

    def forget(self, user_id: str) -> None:
        """Drops what waits of a user."""
        with self._changed:
            for trace_id in [key for key, (draft, _) in self._waiting.items() if draft.user_id == user_id]:
                del self._waiting[trace_id]

    def close(self, timeout: float | None = 5.0) -> None:
        """Writes what still waits, ``timeout`` seconds at most."""
        with self._changed:
            self._closed.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed.is_set():
                    self._changed.wait()
            closed = self._closed.wait(_GATHER)
            with self._changed:
                batch = list(self._waiting.values())
            if not self._written(batch):
                if closed:
                    self.lost += len(batch)
                    return
                self._closed.wait(self._pause)
                continue
            if closed and not self._waiting:
                return

    def _written(self, batch: list[tuple[Interaction, UserState | None]]) -> bool:
        """Whether the store could be written; what it took, or refused for good, waits no more."""
        by_user: dict[tuple[str, UserState | None], list[Interaction]] = {}
        for draft, state in batch:
            by_user.setdefault((draft.user_id, state), []).append(draft)
        for (user_id, state), drafts in by_user.items():
            try:
                with self._reach.asking():
                    self._store.put_drafts(user_id, drafts, since=state, most=self._most)
            except UserForgotten:
                pass
            except StoreError:
                return False
            except InputError as refusal:
                self.lost += len(drafts)
                _log.warning("drafts are not kept: %s", refusal)
            with self._changed:
                for draft in drafts:
                    self._waiting.pop(draft.id, None)
        return True
