"""How many CPU threads a local model gets. Owns: counting the cores that are free. Not here: the engine (local_lm).

llama.cpp's threads wait for one another many times a token by spinning; one of them without a core of its own stalls
all. Measured on 2 cores with one of them busy: 2 threads 8 generated tokens a second, 1 thread 60; both free: 100.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["free_cores"]

_STAT = Path("/proc/stat")


def free_cores(sample: float = 0.25) -> int:
    """Cores this process may use that no other process keeps busy now, at least 1; looks for ``sample`` seconds.

    Where the system does not tell (no ``/proc/stat``): all cores this process may use.

    Example:
        >>> free_cores() >= 1
        True
    """
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before, own, began = _busy_seconds(), _own_seconds(), time.monotonic()
    if before is None or mine == 1:
        return mine
    time.sleep(sample)
    after, elapsed = _busy_seconds(), time.monotonic() - began
    others = max(0.0, (after or before) - before - (_own_seconds() - own)) / elapsed
    return max(1, min(mine, (os.cpu_count() or mine) - int(others + 0.5)))


def _busy_seconds() -> float | None:
    """CPU seconds all processes of this machine have used since it started; None where unknown."""
    try:
        fields = [int(word) for word in _STAT.read_text("ascii").splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None
    return (sum(fields[:8]) - sum(fields[3:5])) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting for a disk


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system
