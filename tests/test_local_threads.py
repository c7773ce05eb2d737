"""Threads of a local model follow the cores that are free."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from persona_dspy.lm.local.threads import free_cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine of 8 cores whose other processes use ``busy`` cores for one second of sampling."""

    def of(busy: float, own: float = 0.0, usable: int = 8) -> None:
        seconds = iter([100.0, 100.0 + own])
        process = SimpleNamespace(
            cpu_affinity=lambda: list(range(usable)),
            cpu_times=lambda: SimpleNamespace(user=next(seconds), system=1.0),
        )
        monkeypatch.setattr(psutil, "Process", lambda: process)
        monkeypatch.setattr(psutil, "cpu_count", lambda: 8)
        monkeypatch.setattr(psutil, "cpu_percent", lambda sample: (busy + own) / 8 * 100)

    return of


@pytest.mark.parametrize(("busy", "own", "free"), [(0, 0, 8), (0, 3, 8), (2.4, 0, 6), (2.6, 1, 5), (9, 0, 1)])
def test_other_processes_take_cores_and_our_own_work_does_not(machine, busy: float, own: float, free: int):
    machine(busy, own)
    assert free_cores(1.0) == free


@pytest.mark.parametrize(("usable", "free"), [(1, 1), (3, 3), (7, 5)])
def test_a_process_gets_no_more_than_it_may_use(machine, usable: int, free: int):
    machine(3.0, usable=usable)
    assert free_cores(1.0) == free


@pytest.mark.parametrize("error", [PermissionError("/proc/stat"), psutil.AccessDenied()])
def test_where_the_system_does_not_tell_all_cores_count(machine, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def refuse(sample: float) -> float:
        raise error

    machine(0.0, usable=3)
    monkeypatch.setattr(psutil, "cpu_percent", refuse)
    assert free_cores() == 3


def test_a_really_busy_machine_leaves_one_core():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert free_cores(0.5) <= max(1, (os.cpu_count() or 1) // 2)
    finally:
        for process in busy:
            process.kill()
            process.wait()
