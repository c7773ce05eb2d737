"""The users' memories that are open in this process: one per user and configuration."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any
from weakref import WeakValueDictionary

from persona_dspy.memory.episodic import EpisodicMemory

__all__ = ["Handles", "StoredMemory"]

_SWEEP = 1024


class StoredMemory(EpisodicMemory):
    """An ``EpisodicMemory`` that knows how much of the store it has read.

    ``uid`` is the user's number there, None = not yet read; ``next_seq`` the first episode not read; ``syncing`` is
    held while reading.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.uid: int | None = None
        self.next_seq = 0
        self.syncing = threading.Lock()


class Handles:
    """Memories by user and configuration; thread-safe.

    The ``keep`` most recently used stay in memory with their index. Any other lives as long as an agent holds it. So
    two agents of one user share one memory, and an append reaches both.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._live: dict[str, WeakValueDictionary[Hashable, StoredMemory]] = {}
        self._recent: OrderedDict[tuple[str, Hashable], StoredMemory] = OrderedDict()
        self._until_sweep = _SWEEP

    def get(self, user_id: str, config: Hashable) -> StoredMemory | None:
        with self._lock:
            memory = self._live.get(user_id, {}).get(config)
            if memory is not None:
                self._touch(user_id, config, memory)
            return memory

    def put(self, user_id: str, config: Hashable, memory: StoredMemory) -> StoredMemory:
        """The memory to use: the given one, or the one another thread put first."""
        with self._lock:
            self._until_sweep -= 1
            if not self._until_sweep:
                self._live = {user: handles for user, handles in self._live.items() if len(handles)}
                self._until_sweep = max(_SWEEP, len(self._live))
            memory = self._live.setdefault(user_id, WeakValueDictionary()).setdefault(config, memory)
            self._touch(user_id, config, memory)
            return memory

    def of(self, user_id: str) -> list[StoredMemory]:
        """Every live memory of one user."""
        with self._lock:
            return list(self._live.get(user_id, {}).values())

    def _touch(self, user_id: str, config: Hashable, memory: StoredMemory) -> None:
        self._recent[user_id, config] = memory
        self._recent.move_to_end((user_id, config))
        while len(self._recent) > self._keep:
            self._recent.popitem(last=False)
