"""A fleet over several processes of this machine: same results, one budget, workers that are killed, a parent that is
killed: nothing answered is paid twice (I7)."""

import functools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dspy
import pytest
from test_compile import content, history
from test_fleet_faults import command, lm_at, write_input

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.core.interactions import Usage
from persona_dspy.errors import InputError, RunError, StoreError
from persona_dspy.fleet import processes as fleet_processes
from persona_dspy.fleet import scheduler as fleet_scheduler
from persona_dspy.fleet.compile import compile_users
from persona_dspy.fleet.folder import FleetFolder
from persona_dspy.fleet.worker import Questions, WorkerLedger
from persona_dspy.lm.ledger import Budget, Ledger
from persona_dspy.testing.server import FakeServer
from persona_dspy.testing.synthetic import RuleFollower, TagFilm

pytestmark = pytest.mark.loopback


def fleet(server, path, seeds=range(6), processes=2, observers=(), **options):
    with dspy.context(lm=lm_at(server)), FleetFolder(path) as folder:
        users = (history(s, 8) for s in seeds)
        how = PersonaAlignment(epochs=1, observers=observers)
        same = {"folder": folder, "workers": 4, "resume": True, "processes": processes, **options}
        return {r.user_id: r for r in compile_users(PersonaAgent(TagFilm), users, how, **same)}


def workers():
    """Process ids of this process's fleet workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "status").read_text().partition("PPid:")[2].split()[0])
            if parent == os.getpid() and b"persona_dspy.fleet.worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def on_threads(tmp_path_factory):
    path = tmp_path_factory.mktemp("fleet") / "threads"
    with FakeServer(RuleFollower()) as server:
        fleet(server, path, processes=1)
        return content(path), dict(server.answered)


def test_same_results_one_account_and_events(on_threads, tmp_path):
    seen, pids, account = [], set(), Ledger()

    def watch(event):
        seen.append(event)
        pids.update(workers())

    with FakeServer(RuleFollower()) as server:
        found = fleet(server, tmp_path / "p", ledger=account, observers=[watch])
        assert dict(server.answered) == on_threads[1]
    assert content(tmp_path / "p") == on_threads[0]
    assert account.usage.calls == sum(on_threads[1].values())
    assert {e["user_id"] for e in seen if e["event"] == "end"} == set(found)
    assert len(pids) == 2
    assert not workers()


def test_one_budget_over_all_processes_then_resume(on_threads, tmp_path):
    with FakeServer(RuleFollower()) as server:
        account = Ledger(budget=Budget(calls=20))
        first = fleet(server, tmp_path / "p", ledger=account)
        assert server.answered.total() == account.usage.calls == 20
        assert any(r.stopped for r in first.values())
        fleet(server, tmp_path / "p")
        assert dict(server.answered) == on_threads[1]  # each once
    assert content(tmp_path / "p") == on_threads[0]


def test_a_killed_worker_is_replaced(on_threads, tmp_path, monkeypatch):
    made, killed = [], []

    class Known(fleet_processes.ProcessWorker):
        def __init__(self, *how, **more):
            super().__init__(*how, **more)
            made.append(self)

    monkeypatch.setattr(fleet_processes, "ProcessWorker", Known)
    with FakeServer(RuleFollower(), latency=0.1) as server:

        def kill():
            while server.answered.total() < 8:
                time.sleep(0.01)
            killed.append(next(worker.process.pid for worker in made if worker.ready))
            os.kill(killed[0], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        found = fleet(server, tmp_path / "p")
        thread.join()
        answered, asked = set(server.answered), server.answered.total()
    assert killed
    assert all(r.document for r in found.values())
    assert answered == set(on_threads[1])
    assert asked - len(answered) <= 2  # what its two threads had on the wire
    assert content(tmp_path / "p") == on_threads[0]


def test_who_kills_workers_costs_no_neighbour(tmp_path):
    bad = history(0, 8).user_id

    def program(one):
        if one.user_id == bad:
            os._exit(9)
        return PersonaAgent(TagFilm).for_user(one.user_id, one.interactions)

    with FakeServer(RuleFollower(), latency=0.05) as server, dspy.context(lm=lm_at(server)):
        users = (history(s, 8) for s in range(4))
        with FleetFolder(tmp_path / "p") as folder:
            how = {"folder": folder, "workers": 4, "processes": 2}
            found = {r.user_id: r for r in compile_users(program, users, PersonaAlignment(epochs=1), **how)}
    assert {user: r.kind for user, r in found.items() if r.document is None} == {bad: "WorkerDied"}
    assert len(found) == 4
    assert "3 workers died under this user, the last one: exit code 9" in found[bad].error
    assert not workers()


def test_a_killed_parent_takes_its_workers_along_and_resume_pays_nothing_twice(tmp_path):
    source = write_input(tmp_path / "in.jsonl", range(6))
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with FakeServer(RuleFollower(), latency=0.1) as server:
        line = command(server, source, tmp_path / "p", "--resume", "--processes", "2")
        process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL)
        while server.answered.total() < 20:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        done = subprocess.run(line, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answered, asked = dict(server.answered), server.answered.total()
    with FakeServer(RuleFollower()) as server:
        whole = command(server, source, tmp_path / "whole", "--processes", "1")
        subprocess.run(whole, env=environment, check=True, stdout=subprocess.DEVNULL)
        assert set(answered) == set(server.answered)
    assert asked - len(answered) <= 4  # on the wire: one a worker
    assert content(tmp_path / "p") == content(tmp_path / "whole")


def test_answers_that_cannot_be_kept_end_the_fleet(tmp_path):
    with FakeServer(RuleFollower()) as server:
        (tmp_path / ".p.fleet").mkdir()
        (tmp_path / ".p.fleet" / "calls").symlink_to("/dev/full.d")
        with pytest.raises(StoreError, match="call folder"):
            fleet(server, tmp_path / "p")
    assert not workers()


def test_results_no_longer_wanted_end_the_workers():
    with FakeServer(RuleFollower(), latency=0.05) as server, dspy.context(lm=lm_at(server)):
        users = (history(s, 8) for s in range(50))
        found = compile_users(PersonaAgent(TagFilm), users, PersonaAlignment(epochs=1), workers=4, processes=2)
        next(found)
        found.close()
        assert not workers()
        assert server.answered.total() < 300


def test_what_cannot_travel_is_said(tmp_path):
    how = PersonaAlignment(epochs=1)
    how.lock = threading.Lock()
    with pytest.raises(InputError, match="processes=1"):
        list(compile_users(PersonaAgent(TagFilm), [history(1)], how, workers=2, processes=2))


class Ends:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (7,)


def test_workers_that_cannot_start_end_the_fleet():
    how = PersonaAlignment(epochs=1)
    how.trap = Ends()
    users = (history(s, 8) for s in range(4))
    with pytest.raises(RunError, match=r"could not start: exit code 7.*processes=1"):
        list(compile_users(PersonaAgent(TagFilm), users, how, workers=2, processes=2))
    assert not workers()


@pytest.fixture
def worker_that(tmp_path, monkeypatch):
    """Makes workers run these lines instead of ours; ``pipe`` is the file descriptor of theirs."""

    def instead(lines):
        script = tmp_path / "worker"
        script.write_text(f"#!{sys.executable}\nimport os, sys, time\npipe = int(sys.argv[-2])\n{lines}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return instead


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_says_what_cannot_be_read_is_killed_and_gone(worker_that):
    worker_that(r"os.write(pipe, b'\0\0\0\3abc'); time.sleep(60)")
    inbox = queue.Queue()
    worker = fleet_processes.ProcessWorker(b"", (), 1, inbox, Ledger())
    assert inbox.get(timeout=20) == (worker, "gone", [])
    assert worker.process.wait(5) == -signal.SIGKILL
    assert "UnpicklingError" in worker.end_reason
    worker.end(0.0)


def test_workers_that_hang_have_one_deadline_together(worker_that, monkeypatch):
    worker_that("time.sleep(60)")
    monkeypatch.setattr(fleet_scheduler, "_GRACE", 1.0)
    start_worker = functools.partial(fleet_processes.ProcessWorker, b"", ())
    scheduler = fleet_scheduler.Scheduler(start_worker, (), Ledger())
    for _ in range(5):
        scheduler._start(1)
    began = time.monotonic()
    scheduler.shut_down()
    assert time.monotonic() - began < 4
    assert all(worker.process.returncode == -signal.SIGKILL for worker in scheduler.workers)


def test_a_worker_hears_its_parent_while_it_tells_it_something():
    """Else parent and worker, each with more to say than a pipe holds, wait for each other for good."""
    asked, told, go = threading.Event(), threading.Event(), threading.Event()

    class FullPipe:
        def send(self, kind, *values):
            if kind == "check":
                asked.set()
            else:
                told.set()
                go.wait(10)

    questions = Questions(FullPipe())
    account = WorkerLedger(FullPipe(), questions, bounded=True)
    asking, telling, hearing = (
        threading.Thread(target=work, daemon=True)
        for work in (account.check, account.report_usage, lambda: questions.answered(1, ""))
    )
    asking.start()
    assert asked.wait(5)
    account.add("respond", Usage(calls=1))
    telling.start()
    assert told.wait(5)
    hearing.start()
    hearing.join(5)
    assert not hearing.is_alive() and telling.is_alive()
    go.set()
    asking.join(5)
    assert not asking.is_alive()
