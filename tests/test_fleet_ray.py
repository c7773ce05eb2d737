"""The fleet on a real local Ray with two workers: same results, one budget, and a worker that is killed."""

import os
import signal
import threading
import time
from pathlib import Path

import dspy
import pytest
from test_fleet import content, history
from test_fleet_faults import lm_at

from optimizers import PersonaAlignment
from persona_dspy.agent import PersonaAgent
from persona_dspy.fake_server import FakeServer
from persona_dspy.fleet import compile_users
from persona_dspy.fleet_folder import FleetFolder
from persona_dspy.ledger import Budget, Ledger
from persona_dspy.store import Store
from persona_dspy.synthetic import RuleFollower, TagFilm
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
    """Process ids of this test's own Ray workers that are at a user."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            status = (folder / "status").read_text()
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid] = int(status.partition("PPid:")[2].split()[0])
        if title.startswith(b"ray::_Worker.run"):
            found.append(pid)

    def ours(pid):
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in found if ours(pid)]


def fleet(server, path, seeds=range(4), engine="ray", **options):
    # An adapter of the caller's own: workers must ask in the same words.
    context = dspy.context(lm=lm_at(server), adapter=dspy.XMLAdapter())
    with context, FleetFolder(path) as folder:
        users = (history(s, 8) for s in seeds)
        agent, optimizer = PersonaAgent(TagFilm), PersonaAlignment(epochs=1)
        found = compile_users(agent, users, optimizer, folder=folder, workers=2, resume=True, engine=engine, **options)
        return {r.user_id: r for r in found}


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
        found = fleet(server, tmp_path / "ray", range(3))
        thread.join()
        answered, asked = set(server.answered), server.answered.total()
    assert killed
    assert all(r.document for r in found.values())
    assert answered == set(whole)
    assert asked - len(whole) <= 1  # what was on the wire
    assert content(tmp_path / "ray") == content(tmp_path / "threads")


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
