"""The fleet on a real local Ray with two CPUs: same results, one budget, workers that are killed or cannot start."""

import importlib
import os
import signal
import threading
import time
from pathlib import Path

import dspy
import pytest
from test_compile import content, history
from test_fleet_faults import lm_at

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.core.interactions import Usage
from persona_dspy.errors import InputError, RunError
from persona_dspy.fleet.compile import compile_users
from persona_dspy.fleet.folder import FleetFolder
from persona_dspy.lm.ledger import Budget, Ledger
from persona_dspy.store.store import Store
from persona_dspy.testing.server import FakeServer
from persona_dspy.testing.synthetic import RuleFollower, TagFilm
from tests.postgres_server import new_database, running_server

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    ray = pytest.importorskip("ray", reason="pip install 'persona-dspy[ray]'")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    variables = {
        "PYTHONPATH": os.pathsep.join([root, os.path.join(root, "tests")]),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
        object_store_memory=80 * 2**20,
    )
    yield ray
    ray.shutdown()


def our_workers():
    """Process ids of this test's own Ray workers."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            status = (folder / "status").read_text()
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid] = int(status.partition("PPid:")[2].split()[0])
        if title.startswith(b"ray::FleetActor"):
            found.append(pid)

    def ours(pid):
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in found if ours(pid)]


def compiled(server, path, seeds=range(4), optimizer=None, **options):
    # An adapter of the caller's own: workers must ask in the same words.
    context = dspy.context(lm=lm_at(server), adapter=dspy.XMLAdapter())
    with context, FleetFolder(path) as folder:
        users = (history(s, 8) for s in seeds)
        how = {"workers": 2, "resume": True, "engine": "ray", **options}
        optimizer = optimizer or PersonaAlignment(epochs=1)
        yield from compile_users(PersonaAgent(TagFilm), users, optimizer, folder=folder, **how)


def fleet(*what, **options):
    return {r.user_id: r for r in compiled(*what, **options)}


@pytest.mark.filterwarnings("ignore")
def test_ray_gives_what_threads_give_and_one_budget_holds(ray, tmp_path):
    with FakeServer(RuleFollower()) as server:
        fleet(server, tmp_path / "threads", engine="local")
        whole = dict(server.answered)
    with FakeServer(RuleFollower()) as server:
        account = Ledger(budget=Budget(calls=20))
        first = fleet(server, tmp_path / "ray", ledger=account)
        assert server.answered.total() == account.usage.calls == 20
        assert any(r.stopped for r in first.values())
        fleet(server, tmp_path / "ray")
        assert dict(server.answered) == whole
    assert content(tmp_path / "ray") == content(tmp_path / "threads")


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_replaced_and_what_it_had_is_not_paid_again(ray, tmp_path):
    with FakeServer(RuleFollower()) as server:
        fleet(server, tmp_path / "threads", range(3), engine="local")
        whole = dict(server.answered)
    with FakeServer(RuleFollower(), latency=0.1) as server:
        killed = []

        def kill():
            while server.answered.total() < 6:
                time.sleep(0.02)
            victim = our_workers()[0]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

        thread = threading.Thread(target=kill)
        thread.start()
        account = Ledger(budget=Budget(calls=sum(whole.values())))  # none to spare for what the dead one had reserved
        found = fleet(server, tmp_path / "ray", range(3), ledger=account)
        thread.join()
        answered, asked = set(server.answered), server.answered.total()
    assert killed
    assert all(r.document and not r.stopped for r in found.values())
    assert answered == set(whole)
    assert asked - len(whole) <= 1  # what was on the wire
    assert content(tmp_path / "ray") == content(tmp_path / "threads")


@pytest.mark.filterwarnings("ignore")
def test_more_workers_than_the_cluster_has_room_for(ray, tmp_path):
    with FakeServer(RuleFollower()) as server:
        found = fleet(server, tmp_path / "ray", range(5), workers=4, processes=4)
        assert server.peak <= 2
    assert len(found) == 5 and all(r.document for r in found.values())


@pytest.mark.filterwarnings("ignore")
def test_what_was_spent_before_counts_for_the_fleet_and_for_the_account_above(ray, tmp_path):
    outer = Ledger(budget=Budget(calls=20))
    outer.add("respond", Usage(calls=5))
    with FakeServer(RuleFollower()) as server:
        fleet(server, tmp_path / "outer", ledger=Ledger(parent=outer))
        assert server.answered.total() == 15
        assert outer.usage.calls == 20
    same = Ledger(budget=Budget(calls=12))
    same.add("respond", Usage(calls=5))
    with FakeServer(RuleFollower()) as server:
        fleet(server, tmp_path / "same", ledger=same)
        assert server.answered.total() == 7
        assert same.exceeded


@pytest.mark.filterwarnings("ignore")
def test_workers_that_cannot_start_end_the_fleet_and_what_cannot_travel_is_said(ray, tmp_path):
    class Missing:
        def __reduce__(self):
            return importlib.import_module, ("no_module_of_this_name",)

    with FakeServer(RuleFollower()) as server:
        how = PersonaAlignment(epochs=1)
        how.trap = Missing()
        with pytest.raises(RunError, match=r"could not start.*no_module_of_this_name.*engine='local'"):
            fleet(server, tmp_path / "p", optimizer=how)
        how.trap = threading.Lock()
        with pytest.raises(InputError, match="engine='local'"):
            fleet(server, tmp_path / "p", optimizer=how)
        assert not server.asked


@pytest.mark.filterwarnings("ignore")
def test_threads_of_an_actor_share_its_cpu_and_events_come_back(ray, tmp_path):
    seen = []
    with FakeServer(RuleFollower(), latency=0.1) as server:
        how = PersonaAlignment(epochs=1, observers=[seen.append])
        found = fleet(server, tmp_path / "ray", range(8), workers=8, optimizer=how)
        assert server.peak > 2  # two CPUs
    assert {e["user_id"] for e in seen if e["event"] == "end"} == set(found)


@pytest.mark.filterwarnings("ignore")
def test_who_kills_workers_costs_no_neighbour(ray, tmp_path):
    bad = history(0, 8).user_id

    def program(one):
        if one.user_id == bad:
            os._exit(9)
        return PersonaAgent(TagFilm).for_user(one.user_id, one.interactions)

    with FakeServer(RuleFollower()) as server, dspy.context(lm=lm_at(server)), FleetFolder(tmp_path / "p") as folder:
        users, how = (history(s, 8) for s in range(4)), {"folder": folder, "workers": 4, "engine": "ray"}
        found = {r.user_id: r for r in compile_users(program, users, PersonaAlignment(epochs=1), **how)}
    assert {user: r.kind for user, r in found.items() if r.document is None} == {bad: "WorkerDied"}
    assert len(found) == 4
    assert "3 workers died under this user" in found[bad].error


@pytest.mark.filterwarnings("ignore")
def test_a_fleet_that_is_stopped_begins_nobody_and_one_that_is_closed_ends_its_calls(ray, tmp_path):
    account = Ledger()
    with FakeServer(RuleFollower(), latency=0.15) as server:
        stopped = []
        for result in compiled(server, tmp_path / "stopped", range(20), ledger=account):
            stopped.append(result)
            account.stop("enough")
        assert len(stopped) <= 5
        found = compiled(server, tmp_path / "closed", range(20, 23))
        next(found)
        found.close()
        gone_by = time.monotonic() + 5
        while our_workers() and time.monotonic() < gone_by:
            time.sleep(0.05)
        assert not our_workers()
        asked = set(server.asked)
        fleet(server, tmp_path / "closed", range(20, 23))
        assert all(server.asked[key] == 1 for key in asked)


@pytest.mark.postgres
@pytest.mark.filterwarnings("ignore")
def test_ray_with_the_store_in_postgresql(ray, tmp_path):
    with (
        running_server() as postgres,
        FakeServer(RuleFollower()) as server,
        Store.open(new_database(postgres, "fleet")) as store,
    ):
        found = fleet(server, tmp_path / "p", range(2), store=store)
        assert len(found) == 2
        for user, result in found.items():
            kept = store.current(user)
            assert kept.document["system_prompt"] == result.document.system_prompt
            assert kept.alignment["options"]["made_from"]
