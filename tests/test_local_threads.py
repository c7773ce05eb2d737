"""Threads of a local model follow the cores that are free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from persona_dspy.lm.local import threads as local_threads
from persona_dspy.lm.local.threads import free_cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine of 8 cores whose other processes use ``busy`` cores for one second of sampling."""

    def of(busy: float, own: float = 0.0) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        clock = iter([0.0, 1.0])
        seconds = iter([100.0, 100.0 + own])

        def stat(name: str) -> str:
            used = int((busy + own) * tick) if clocked else 0
            clocked.append(1)
            return f"cpu  {1000 + used} 0 0 {500 * len(clocked)} 7 0 0 0 0 0\n"

        clocked: list[int] = []
        fake = type("Stat", (), {"read_text": staticmethod(stat)})
        monkeypatch.setattr(local_threads, "_STAT", fake)
        monkeypatch.setattr(local_threads, "_own_seconds", lambda: next(seconds))
        monkeypatch.setattr(local_threads.time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(local_threads.time, "sleep", lambda _: None)
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    return of


@pytest.mark.parametrize(("busy", "own", "free"), [(0, 0, 8), (0, 3, 8), (2.4, 0, 6), (2.6, 1, 5), (9, 0, 1)])
def test_other_processes_take_cores_and_our_own_work_does_not(machine, busy: float, own: float, free: int):
    machine(busy, own)
    assert free_cores() == free


def test_where_the_system_does_not_tell_all_cores_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    for content in (None, "", "cpu x y"):
        path = tmp_path / "stat"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(local_threads, "_STAT", path)
        assert free_cores(0) == 3


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_a_really_busy_machine_leaves_one_core():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert free_cores(0.5) <= max(1, (os.cpu_count() or 1) // 2)
    finally:
        for process in busy:
            process.kill()
            process.wait()
