"""How many CPU threads a local model gets: the cores that are free.

llama.cpp's threads wait for one another many times a token by spinning; one of them without a core of its own stalls
all. Measured on 2 cores with one of them busy: 2 threads 8 generated tokens a second, 1 thread 60; both free: 100.
"""

from __future__ import annotations

from typing import Any

__all__ = ["free_cores"]


def free_cores(sample: float = 0.25) -> int:
    """Cores this process may use that no other process keeps busy now, at least 1; measures for ``sample`` seconds,
    above 0.

    Where the system does not report load: all cores this process may use.

    Example:
        >>> free_cores() >= 1
        True
    """
    import psutil as untyped  # with the extra "local", as what it is for

    psutil: Any = untyped
    process, cores = psutil.Process(), psutil.cpu_count() or 1
    usable = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else cores
    if usable == 1:
        return 1
    try:
        own = _seconds(process)
        busy = psutil.cpu_percent(sample) / 100 * cores  # waits for ``sample`` seconds
        others = max(0.0, busy - (_seconds(process) - own) / sample)
    except (OSError, psutil.Error):
        return usable
    return max(1, min(usable, cores - int(others + 0.5)))


def _seconds(process: Any) -> float:
    """CPU seconds that a process has used since it started."""
    times = process.cpu_times()
    return times.user + times.system
