"""Fleets against a server that fails the way providers do, and processes that are killed: nothing answered is paid
twice (I7), and what comes out in the end is what an undisturbed run gives."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import dspy
import pytest
from test_compile import content, history

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.fleet.compile import compile_users
from persona_dspy.fleet.folder import FleetFolder
from persona_dspy.lm.answer_folder import CallFolder
from persona_dspy.lm.pace import pace_of
from persona_dspy.testing.server import FakeServer, request_key
from persona_dspy.testing.synthetic import RuleFollower, SyntheticUser, TagFilm

pytestmark = pytest.mark.loopback


def lm_at(server, **options):
    options = {"num_retries": 5, "timeout": 2.0, **options}
    return dspy.LM("openai/fake", api_base=server.url, api_key="none", engine="lm15", temperature=0.0, **options)


def fleet(server, path, seeds=range(4), workers=4, **options):
    with dspy.context(lm=lm_at(server, **options)), FleetFolder(path) as folder:
        users = (history(s, 8) for s in seeds)
        agent, optimizer = PersonaAgent(TagFilm), PersonaAlignment(epochs=1)
        found = compile_users(agent, users, optimizer, folder=folder, workers=workers, resume=True)
        return {r.user_id: r for r in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("fleet") / "whole"
    with FakeServer(RuleFollower()) as server:
        fleet(server, path)
        return content(path), dict(server.answered)


@pytest.fixture
def quick(monkeypatch):
    """Pauses between attempts, shortened. Each test has a pace of its own."""
    pace_of.cache_clear()
    monkeypatch.setattr("persona_dspy.lm.pace._PAUSE", 0.02)
    monkeypatch.setattr("persona_dspy.lm.tries._NAP", 0.001)


@pytest.mark.parametrize("fault", ["429", "500", "disconnect", "cut-json"])
def test_passing_faults_change_nothing(fault, undisturbed, tmp_path, quick):
    seen = set()

    def at_first(body, nth):
        """Every third request fails when it comes for the first time."""
        new = request_key(body) not in seen
        seen.add(request_key(body))
        return fault if new and hash_of(body) % 3 == 0 else None

    with FakeServer(RuleFollower(), fault=at_first, retry_after=0.02) as server:
        found = fleet(server, tmp_path / "p")
        assert all(r.document for r in found.values())
        assert dict(server.answered) == undisturbed[1]  # each once
        assert server.asked.total() > server.answered.total()
    assert content(tmp_path / "p") == undisturbed[0]


def test_time_outs_are_tried_again(undisturbed, tmp_path, quick):
    stalls = Counter()

    def once(body, nth):
        stalls["n"] += 1
        return "timeout" if stalls["n"] in (2, 9) else None

    with FakeServer(RuleFollower(), fault=once, stall=1.5) as server:
        found = fleet(server, tmp_path / "p", timeout=0.5)
        assert all(r.document for r in found.values())
    assert content(tmp_path / "p") == undisturbed[0]


@pytest.mark.parametrize("fault", ["truncated", "unparsable"])
def test_answers_that_cannot_be_read_are_paid_once_and_end_nothing(fault, tmp_path):
    def sometimes(body, nth):
        return fault if hash_of(body) % 4 == 0 else None

    paid = Counter()
    for _ in range(2):
        with FakeServer(RuleFollower(), fault=sometimes) as server:
            found = fleet(server, tmp_path / "p")
            assert all(r.document for r in found.values())
            paid.update(server.answered)
    assert paid
    assert max(paid.values()) == 1


def hash_of(body):
    return sum(json.dumps(body, sort_keys=True).encode())


def test_a_server_that_is_gone_fails_users_and_resume_goes_on(undisturbed, tmp_path, quick):
    with FakeServer(RuleFollower()) as server:
        pass
    found = fleet(server, tmp_path / "p", num_retries=1)
    assert all(r.kind == "LMTransportError" for r in found.values()), found
    with FakeServer(RuleFollower()) as server:
        fleet(server, tmp_path / "p")
    assert content(tmp_path / "p") == undisturbed[0]


def write_input(path, seeds):
    rows = []
    for seed in seeds:
        for i in SyntheticUser(seed=seed).interactions(20):
            time_ = i.time.date().isoformat()
            rows.append({"user_id": i.user_id, "id": i.id, "query": i.query, "response": i.response, "time": time_})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(server, source, out, *more):
    code = (
        "import sys, dspy; from persona_dspy import lm; from persona_dspy.lm import names\n"
        "from persona_dspy.cli import main\n"
        f"names.resolve_lm = lambda *_, **o: dspy.LM('openai/fake', api_base={server.url!r}, api_key='none', "
        "engine='lm15', temperature=0.0)\n"
        "lm.check_lm = names.check_lm = lambda lm: None\nmain(sys.argv[1:])"
    )
    options = ["--out", str(out), "--workers", "4", "--epochs", "1", "--tracking-uri", "off", "--progress", "quiet"]
    return [sys.executable, "-W", "ignore", "-c", code, "compile", str(source), *options, *more]


def kept_keys(calls):
    """What was answered and is in the files, by user file and key."""
    return {(f.name, json.loads(line)["key"]) for f in calls.glob("*.jsonl") for line in f.read_text().splitlines()}


@pytest.mark.slow
def test_killed_at_random_moments_a_fleet_ends_the_same_and_pays_nothing_twice(tmp_path):
    seeds = range(8)
    source = write_input(tmp_path / "in.jsonl", seeds)
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with FakeServer(RuleFollower()) as server:
        done = subprocess.run(
            command(server, source, tmp_path / "whole"), env=environment, capture_output=True, check=True
        )
        assert b"better, " in done.stdout
        whole = dict(server.answered)
    rng, kills = random.Random(1), 0
    with FakeServer(RuleFollower(), latency=0.05) as server:
        while True:
            before = server.answered.total()
            process = subprocess.Popen(
                command(server, source, tmp_path / "p", "--resume"), env=environment, stdout=subprocess.DEVNULL
            )
            while process.poll() is None and server.answered.total() == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.5))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            if kills == 4:
                process = subprocess.Popen(command(server, source, tmp_path / "p", "--resume"), env=environment)
                assert process.wait(120) == 0
                break
        answered, extra = dict(server.answered), server.answered.total() - len(server.answered)
    assert kills >= 3
    assert set(answered) == set(whole)
    # Nothing that reached the file is asked again; only what was on the wire when the process died may be: one call a
    # worker and kill at most.
    assert extra <= 4 * kills
    assert content(tmp_path / "p") == content(tmp_path / "whole")
    assert list((tmp_path / ".p.fleet" / "calls").iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_fleet_had_kept_is_never_asked_again(tmp_path):
    source = write_input(tmp_path / "in.jsonl", range(6))
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with FakeServer(RuleFollower(), latency=0.1) as server:
        process = subprocess.Popen(command(server, source, tmp_path / "p"), env=environment, stdout=subprocess.DEVNULL)
        while server.answered.total() < 20:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        time.sleep(0.3)  # what was on the wire is counted
        kept = CallFolder(tmp_path / ".p.fleet" / "calls")
        records = kept_keys(kept.folder)
        seen = set(server.answered)
        server.asked.clear()
        done = subprocess.run(command(server, source, tmp_path / "p", "--resume"), env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        asked_again = seen & set(server.asked)
    assert len(records) >= 4
    assert len(asked_again) <= 4  # those on the wire: one a worker
