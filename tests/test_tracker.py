"""What MLflow gets of a fleet, that a slow or dead MLflow stops nothing, and that users can be forgotten there."""

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest

from persona_dspy.core.alignment import Alignment, AlignmentStep, Scores, Trial
from persona_dspy.core.document import PersonaDocument
from persona_dspy.core.interactions import Usage
from persona_dspy.core.persona import Persona
from persona_dspy.errors import InputError, RunError
from persona_dspy.tracking import tracker as tracking
from persona_dspy.tracking.prompts import register_prompt
from persona_dspy.tracking.tracker import MlflowTracker, NullTracker, prompt_name, tracker_for
from tests.postgres_server import new_database, running_server

SECRET = "loves-unusual-puppets"


def document(user_id, version=0, text=SECRET):
    persona = Persona.from_text(text, user_id=user_id)
    trial = Trial(edits=("x",), incumbent_score=0.25, challenger_score=0.75, accepted=True, reason="strict gain")
    record = Alignment(
        user_id=user_id,
        scores=Scores(without_persona=0.25, initial=0.25, final=0.75),
        gate_size=4,
        accepted=1,
        steps=(AlignmentStep(epoch=1, scores=(0.0, 1.0), trials=(trial,), usage=Usage(calls=5)),),
        usage={"total": Usage(calls=9, input_tokens=90, output_tokens=10), "loss": Usage(calls=2)},
        options={"recent": 3},
    )
    return PersonaDocument.of(persona, alignment=record, task="q -> a", model="m").model_copy(
        update={"version": version, "parent": version - 1 if version else None}
    )


def track(tracker, users):
    tracker.begin({"lm": "m", "nothing": None})
    for user in users:
        tracker.user(user, None if user.startswith("bad") else document(user), f"{SECRET} broke it")
    tracker.end({"done": 3.0})
    return tracker


@pytest.fixture
def uri(empty_mlflow, tmp_path):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def tracked(empty_mlflow, tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_mlflow, path / "mlflow.db")
    tracker = MlflowTracker(f"sqlite:///{path}/mlflow.db", runs="all", register=True)
    return track(tracker, ["ann", "bob", "bad-user", "c/../d'e"]), path


def test_the_mean_gain_is_of_users_whose_two_scores_are_known(empty_mlflow, tmp_path):
    """A budget that ends before the score without a persona is known is no gain of .75."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", runs="none")
    tracker.begin({})
    for user, scores in (("ann", Scores(without_persona=0.5, final=0.75)), ("bob", Scores(final=0.75))):
        made = document(user)
        record = made.alignment.model_copy(update={"scores": scores})
        tracker.user(user, made.model_copy(update={"alignment": record}), "")
    tracker.end({})
    metrics = tracker._connect().get_run(tracker.run_id).data.metrics
    assert (metrics["mean_gain"], metrics["users"]) == (pytest.approx(0.25), 2.0)


def children(tracker):
    query = f"tags.`mlflow.parentRunId` = '{tracker.run_id}'"
    runs = tracker._connect().search_runs([tracker._experiment_id], query)
    return {r.data.tags["persona_dspy.user_id"]: r for r in runs}


def test_a_parent_with_curves_and_a_table_and_a_run_a_user(tracked):
    tracker, path = tracked
    client = tracker._connect()
    parent = client.get_run(tracker.run_id)
    assert (parent.info.status, parent.data.params) == ("FINISHED", {"lm": "m"})
    assert {
        "users": 3.0,
        "failed": 1.0,
        "calls": 27.0,
        "tokens": 300.0,
        "done": 3.0,
    }.items() <= parent.data.metrics.items()
    assert parent.data.metrics["mean_gain"] == pytest.approx(0.5)
    text = Path(client.download_artifacts(tracker.run_id, "users.csv")).read_text()
    table = list(csv.DictReader(text.splitlines()))
    assert [row["state"] for row in table] == ["done", "done", "failed", "done"]
    assert table[0]["score_final"] == "0.75"
    assert not {"ann", SECRET} & {cell for row in table for cell in row.values()}
    curve = [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "users")]
    assert sorted(curve) == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 3.0)], "one point a user, running values"
    runs = children(tracker)
    assert set(runs) == {"ann", "bob", "bad-user", "c/../d'e"}
    assert runs["bad-user"].info.status == "FAILED"
    assert SECRET in runs["bad-user"].data.tags["persona_dspy.error"]
    assert {"held_out_score": 0.75, "simulated_score": 0.5, "loss_calls": 2.0}.items() <= runs[
        "ann"
    ].data.metrics.items()
    assert runs["ann"].data.params["recent"] == "3"
    file = client.download_artifacts(runs["c/../d'e"].info.run_id, "persona.json")
    assert json.loads(Path(file).read_text())["user_id"] == "c/../d'e"
    drawn = client.download_artifacts(runs["ann"].info.run_id, "learning_curve.json")
    assert json.loads(Path(drawn).read_text())["data"][1]["y"] == [0.25, 0.75]
    page = Path(client.download_artifacts(tracker.run_id, "figures/figures.html")).read_text()
    assert "3 users" in page
    assert not any(name in page for name in ("c/../d", SECRET))
    assert f"mlflow ui --backend-store-uri sqlite:///{path}/mlflow.db" in tracker.where
    assert tracker.where.endswith(f", then http://127.0.0.1:5000/#/experiments/{tracker._experiment_id}/runs")


def test_prompts_have_hashed_names_and_an_alias_that_rolls_back(tracked):
    tracker, _ = tracked
    client, name = tracker._connect(), prompt_name("bob")
    assert "bob" not in name
    register_prompt(client, tracker.run_id, document("bob", version=1, text="Prefers { braces } and {{ more }}."))
    now = client.get_prompt_version_by_alias(name, "current")
    assert "{{ more }}" in now.template and now.tags["run_id"] == tracker.run_id
    tracker.roll_back_prompt("bob", 0)
    assert SECRET in client.get_prompt_version_by_alias(name, "current").template
    with pytest.raises(InputError, match="'0', '1'"):
        tracker.roll_back_prompt("bob", 7)
    assert [p.name for p in client.search_prompts("tags.user = 'bob'")] == [name], "the registry's page finds a user"
    assert "bob" not in name


def test_forgetting_leaves_nothing_of_the_user(uri, tmp_path):
    other = MlflowTracker(uri, runs="all", register=True)
    track(other, ["zoe-unique", "bob"])
    gone = {"runs": 1, "artifacts": 3, "table_rows": 1, "prompts": 1, "traces": 0}
    assert other.forget("zoe-unique").to_dict() == gone
    assert other.forget("zoe-unique").to_dict() == dict.fromkeys(gone, 0)
    assert set(children(other)) == {"bob"}
    other._client._tracking_client.store.engine.dispose()
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert files and not any(
        b"zoe-unique" in f.read_bytes() or prompt_name("zoe-unique").encode() in f.read_bytes() for f in files
    )


def test_none_and_sampled_runs(monkeypatch, uri):
    monkeypatch.setattr(tracking, "_FIRST", 2)
    monkeypatch.setattr(tracking, "_EACH", 3)
    users = [f"u{n}" for n in range(7)]
    sampled = track(MlflowTracker(uri), users)
    assert set(children(sampled)) == {"u0", "u1", "u3", "u6"}
    none = track(MlflowTracker(uri, runs="none"), users)
    assert children(none) == {}
    assert none._connect().get_run(none.run_id).data.metrics["users"] == 7.0
    with pytest.raises(InputError, match="sampled"):
        MlflowTracker(uri, runs="some")


class Slow:
    """An MLflow client that hangs, then fails."""

    def __init__(self, error):
        self.error = error

    def create_run(self, *_, **__):
        time.sleep(0.05)
        raise self.error


def test_an_mlflow_that_dies_does_not_stop_the_fleet(uri):
    from mlflow.exceptions import MlflowException

    tracker = MlflowTracker(uri, runs="all")
    tracker.begin({})
    real = tracker._client
    tracker._client = Slow(MlflowException("the database is gone"))
    began = time.monotonic()
    for n in range(5):
        tracker.user(f"u{n}", document(f"u{n}"))
    assert time.monotonic() - began < 0.1
    while tracker._queue.qsize():
        time.sleep(0.01)
    time.sleep(0.2)
    tracker._client = real
    tracker.end({})
    assert "5 users' runs are missing" in tracker.where
    assert "the database is gone" in real.get_run(tracker.run_id).data.tags["persona_dspy.trouble"]


class Late:
    """An MLflow client that takes its time over each user."""

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        return getattr(self.client, name)

    def create_run(self, *given, **named):
        time.sleep(0.05)
        return self.client.create_run(*given, **named)


@pytest.mark.slow
def test_the_end_waits_for_an_mlflow_that_is_slow_but_alive(uri, monkeypatch):
    tracker = MlflowTracker(uri, runs="all")
    tracker.begin({})
    tracker._client = Late(tracker._client)
    for n in range(8):
        tracker.user(f"u{n}", document(f"u{n}"))
    join = threading.Thread.join
    with monkeypatch.context() as patch:  # minutes pass as tenths of a second
        patch.setattr(threading.Thread, "join", lambda thread, timeout=None: join(thread, timeout and timeout / 1000))
        tracker.end({})
    parent = tracker._connect().get_run(tracker.run_id)
    assert (tracker.trouble, parent.info.status, len(children(tracker))) == ("", "FINISHED", 8)
    assert "users.csv" in [a.path for a in tracker._connect().list_artifacts(tracker.run_id)]


@pytest.mark.slow
def test_the_end_gives_up_on_an_mlflow_that_hangs(uri, monkeypatch):
    monkeypatch.setattr(tracking, "_PATIENCE", 0.1)
    tracker, free = MlflowTracker(uri, runs="all"), threading.Event()
    tracker.begin({})
    monkeypatch.setattr(tracker, "_child", lambda *_: free.wait(30))
    tracker.user("u", document("u"))
    tracker.end({})
    free.set()
    assert tracker.trouble == "MLflow did not answer for minutes"
    tracker._thread.join()
    tracker.end({})
    assert tracker._connect().get_run(tracker.run_id).info.status == "FINISHED"


class Full(io.StringIO):
    """A file on a disk without room."""

    def write(self, text):
        raise OSError(28, "No space left on device")


def test_a_full_disk_ends_no_fleet(uri, monkeypatch):
    tracker = MlflowTracker(uri, runs="none")
    tracker.begin({})
    whole = tracker._table._file
    tracker._table._rows = csv.writer(Full())
    tracker.user("u", document("u"))
    monkeypatch.setattr(whole, "close", lambda: Full().write(""), raising=False)
    tracker.end({}, "KILLED")
    monkeypatch.undo()
    whole.close()
    run = tracker._connect().get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["users"]) == ("KILLED", 1.0)
    assert "users.csv are missing: No space left" in run.data.tags["persona_dspy.trouble"]


def test_tables_of_other_runs_that_cannot_be_read_are_named(uri, tmp_path):
    tracker = MlflowTracker(uri)
    client = tracker._connect()
    runs = [client.create_run(tracker._experiment_id).info.run_id for _ in range(2)]
    (tmp_path / "a.csv").write_bytes(b"user_id,said\nann,caf\xe9\nbob,caf\xe9\r\n")
    (tmp_path / "b.json").write_bytes(b"caf\xe9")
    (tmp_path / "c.json").write_text('{"columns": 1, "data": 2}')
    (tmp_path / "d.csv").write_bytes(b"user_id\n" + b"x" * 140_000)
    (tmp_path / "e.csv").write_bytes(b'user_id,said\r\nann,1\r\nbob,"2\r\n3"\r\n')
    for name in "abcde":
        client.log_artifact(runs[0], str(next(tmp_path.glob(f"{name}.*"))), "t")
    listed = client.list_artifacts

    def away(run_id, path=None):
        if run_id == runs[1]:
            raise ModuleNotFoundError("No module named 'boto3'")
        return listed(run_id, path)

    client.list_artifacts = away
    told = tracker.forget("ann")
    assert told.table_rows == 2
    assert [one.split(" of run ")[0] for one in sorted(told.unread) if runs[0] in one] == [
        f"t/{name}" for name in ("a.csv", "b.json", "c.json", "d.csv")
    ]
    assert "boto3" in told.note and "may hold this user" in told.note
    left = {name: Path(client.download_artifacts(runs[0], f"t/{name}")).read_bytes() for name in ("a.csv", "e.csv")}
    assert left == {
        "a.csv": b"user_id,said\nbob,caf\xe9\r\n",
        "e.csv": b'user_id,said\r\nbob,"2\r\n3"\r\n',
    }


def test_a_tracker_that_cannot_begin_says_what_to_type(tmp_path, uri, monkeypatch):
    (tmp_path / "broken.db").write_bytes(b"no database")
    with pytest.raises(RunError, match="--tracking-uri off"):
        MlflowTracker(f"sqlite:///{tmp_path}/broken.db").begin({})
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_, **__: Full().write(""))
    tracker = MlflowTracker(uri)
    with pytest.raises(RunError, match=r"No space left.*--tracking-uri off"):
        tracker.begin({})
    assert tracker._connect().search_runs([tracker._experiment_id]) == []
    assert isinstance(tracker_for("off"), NullTracker)
    assert tracker_for("off").where == ""


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory):
    """A real MLflow server over a real PostgreSQL: its address."""
    with running_server() as postgres, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        folder = tmp_path_factory.mktemp("server")
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", new_database(postgres, "mlflow"), "--artifacts-destination", str(folder)]
        with open(folder / "log", "wb") as log:
            # NOTE without it a server that reaches no network hangs for good: LiteLLM's import asks for prices, its
            # retrying thread and MLflow's import hook wait for each other
            environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, start_new_session=True, env=environment
            )
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(800):  # it imports MLflow twice, which a busy machine makes minutes of
                try:
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.mark.postgres
@pytest.mark.loopback
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_server_over_postgresql_gets_the_same(mlflow_server):
    tracker = track(MlflowTracker(mlflow_server, runs="all", register=True), ["ann", "bob", "bad-user"])
    assert tracker.trouble == ""
    assert tracker.where.startswith(f"{mlflow_server}/#/experiments/")
    client = tracker._connect()
    parent = client.get_run(tracker.run_id)
    assert {"users": 2.0, "failed": 1.0, "calls": 18.0}.items() <= parent.data.metrics.items()
    assert "users.csv" in [a.path for a in client.list_artifacts(tracker.run_id)]
    runs = children(tracker)
    assert set(runs) == {"ann", "bob", "bad-user"}
    kept = {a.path for a in client.list_artifacts(runs["ann"].info.run_id)}
    assert kept == {"persona.json", "alignment.json", "learning_curve.json"}
    assert SECRET in client.get_prompt_version_by_alias(prompt_name("ann"), "current").template
    gone = tracker.forget("ann")
    assert gone.to_dict() == {"runs": 1, "artifacts": 3, "table_rows": 1, "prompts": 1, "traces": 0}
    assert f"mlflow gc --run-ids {runs['ann'].info.run_id}" in gone.note
    assert set(children(tracker)) == {"bob", "bad-user"}


@pytest.mark.loopback
def test_a_server_that_is_not_there_is_said_at_once():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(RunError, match="--tracking-uri off"):
        MlflowTracker(url).begin({})


def test_an_evaluation_is_a_run_of_that_name_with_a_child_a_system_and_its_data(uri):
    tracker = MlflowTracker(uri)
    params = {"command": "evaluate", "users": 2, "model": "m", "source": "data/users.json", "data": "0a1b"}
    tracker.begin(params)
    tracker.systems([{"system": "rag", "accuracy": 0.5, "p": None}, {"system": "persona", "accuracy": 0.75, "p": 0.1}])
    tracker.end({"rag.accuracy": 0.5})
    assert not tracker.trouble
    client = tracker._connect()
    run = client.get_run(tracker.run_id)
    assert run.info.run_name.startswith("evaluate users 20")
    assert run.data.tags["mlflow.note.content"] == "evaluate: 2 users of data/users.json, m"
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("users.json", "0a1b")
    query = f"tags.`mlflow.parentRunId` = '{tracker.run_id}'"
    systems = {r.info.run_name: r.data.metrics for r in client.search_runs([tracker._experiment_id], query)}
    assert systems == {"rag": {"accuracy": 0.5}, "persona": {"accuracy": 0.75, "p": 0.1}}
    table = json.loads(Path(client.download_artifacts(tracker.run_id, "systems.json")).read_text())
    assert table["columns"] == ["system", "accuracy", "p"] and len(table["data"]) == 2
    assert {a.path for a in client.list_artifacts(tracker.run_id)} == {"systems.json"}
