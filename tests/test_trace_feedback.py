"""Feedback on MLflow's traces: written by feedback(), read by learn_from_traces() and the command, each once."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import dspy
import httpx
import pytest

from persona_dspy import Interaction, PersonaAgent, Personas, Signal
from persona_dspy.cli import main
from persona_dspy.errors import InputError
from persona_dspy.service import ServiceOptions
from persona_dspy.store import Store
from persona_dspy.testing import FakeLM
from persona_dspy.tracking import MlflowTracker, learn_from_traces
from persona_dspy.tracking.assessed import assessed_traces, spans_of
from persona_dspy.tracking.assessments import OWN_MARK, assessments_of, drafted_in, heard


def assessment(name, value=None, *, at=1, rationale=None, source="HUMAN", expected=None, **other):
    feedback = None if expected is not None else SimpleNamespace(value=value, error=None)
    expectation = None if expected is None else SimpleNamespace(value=expected)
    values = {"metadata": None, "valid": True, "assessment_id": f"a-{name}-{at}", **other}
    return SimpleNamespace(
        name=name,
        feedback=feedback,
        expectation=expectation,
        rationale=rationale,
        source=SimpleNamespace(source_type=source),
        last_update_time_ms=at,
        **values,
    )


def said(*assessments, seen=(), known=False, field=None):
    fields = () if field is None else field if isinstance(field, tuple) else (field,)
    return heard(assessments, fields=fields, scale=(1, 5), seen=seen, known=known)


@pytest.mark.parametrize(
    ("one", "signal"),
    [
        (assessment("helpful", False, rationale="too long"), Signal(thumbs="down", comment="too long")),
        (assessment("Thumbs", "👍"), Signal(thumbs="up")),
        (assessment("thumbs_down", True), Signal(thumbs="down")),
        (assessment("rating", 2), Signal(rating=2)),
        (assessment("score", 80, metadata={"scale": "[0, 100]"}), Signal(rating=80, scale=(0, 100))),
        (assessment("comment", "too long"), Signal(comment="too long")),
        (assessment("tone", "too formal"), Signal(comment="tone: too formal")),
        (assessment("too long", True), Signal(comment="too long: yes")),
        (assessment("hallucination", 5, rationale="no such film"), Signal(comment="hallucination: 5\nno such film")),
        (assessment("helpful", False, source="LLM_JUDGE"), Signal()),
        (assessment("helpful", False, valid=False), Signal()),
        (assessment("rating", 9), Signal()),
    ],
)
def test_what_an_assessment_says(one, signal):
    heard_now = said(one)
    assert heard_now.signal == signal
    assert bool(heard_now.passed_over) == (one.name == "rating" and one.feedback.value == 9)


DEEP = "x"
for _ in range(500):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "odd",
    [
        *(assessment("rating", 3, metadata={"scale": scale}) for scale in ("1-5", "[1]", '["a", "b"]', "[" * 100_000)),
        assessment("rating", 10**400),
        assessment("rating", float("nan")),
        assessment("comment", DEEP),
        assessment("response", expected=DEEP),
    ],
)
def test_an_odd_assessment_is_passed_over_and_keeps_nobody_else_from_being_heard(odd):
    heard_now = said(odd, assessment("helpful", True, at=2))
    assert heard_now.signal == Signal(thumbs="up") and len(heard_now.ids) == 1
    assert len(heard_now.passed_over) == 1 and odd.name in heard_now.passed_over[0]


def test_the_latest_word_counts_and_each_is_heard_once():
    up, down = assessment("thumbs", True, at=1), assessment("thumbs", False, at=2)
    both = said(down, up)
    assert both.signal.thumbs == "down" and len(both.ids) == 2
    assert said(up, down, seen=both.ids).ids == ()
    own = assessment("thumbs", True, metadata={OWN_MARK: "1"})
    assert said(own, known=True).ids == () and said(own).signal.thumbs == "up"
    assert said(assessment("x", expected={"tag": "crime", "why": "so"}), field="tag").response == "crime"
    both = assessment("label", expected="return"), assessment("x", expected={"reply": "Hi.", "why": "so"}, at=2)
    assert said(*both, field=("reply", "label")).response == '{"reply": "Hi.", "label": "return"}'
    assert said(assessment("x", expected="Hi."), field=("reply", "label")).response == "Hi.", "the first one's"
    inner = SimpleNamespace(name="triage", inputs={"message": "Lost?"}, outputs={"label": "order"})
    outer = SimpleNamespace(name="Desk", inputs={"message": "Lost?", "tone": "kind"}, outputs={"reply": "Here."})
    found = drafted_in([outer, inner], ("message", "reply", "label"))
    assert (found.query, found.draft) == ("Lost?", '{"reply": "Here.", "label": "order"}')
    assert found.inputs == {"tone": "kind"}
    assert said(assessment("x", expected={"a": 1, "b": 2})).passed_over


def span(inputs, outputs):
    return SimpleNamespace(name="x", inputs=inputs, outputs=outputs)


def test_the_answer_in_a_trace():
    own = span({"query": "q", "persona": "p", "inputs": {"year": 1}}, {"response": "a"})
    assert drafted_in([own]).inputs == {"year": 1}
    autologged = [
        span({"args": ["q"]}, {"tag": "a"}),
        span({"film": "q", "year": 2}, {"why": "so", "tag": "a"}),
        span({"prompt": "...", "messages": []}, ["a"]),
    ]
    found = drafted_in(autologged)
    assert (found.query, found.draft, found.inputs) == ("q", "a", {"year": 2})
    assert drafted_in(autologged, ("year", "why")).draft == "so"
    assert drafted_in(autologged, ("x", "y")) is None
    assert drafted_in([span({"messages": [1]}, {"content": "a"}), span("q", "a")]) is None


def test_what_feedback_tells_mlflow_is_what_is_heard_from_it():
    given = Signal(draft="d", rating=2, scale=(1, 7), comment="too long")
    told = assessments_of(Interaction(user_id="u", query="q", response="mine", signal=given))
    again = said(
        *(
            assessment(
                one["name"],
                one["value"],
                rationale=one["rationale"],
                metadata=one["metadata"],
                expected=one["value"] if one["kind"] == "expectation" else None,
            )
            for one in told
        )
    )
    assert (again.response, Signal(draft="d").updated(again.signal)) == ("mine", given)


@pytest.fixture
def mlflow_server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path)]
    with open(tmp_path / "log", "wb") as log:
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True, env=environment
        )
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


class Genre(dspy.Module):
    def __init__(self):
        super().__init__()
        self.tell = dspy.ChainOfThought("film, year: int -> tag")

    def forward(self, user, film, year=1990):
        import mlflow

        if user:
            mlflow.update_current_trace(metadata={"mlflow.trace.user": user})
        return self.tell(film=film, year=year)


@pytest.mark.loopback
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_round_trip_with_a_real_server(mlflow_server, tmp_path, capsys, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    person = mlflow.entities.AssessmentSource("HUMAN", "reviewer")
    tracker = MlflowTracker(mlflow_server)
    lm = FakeLM(lambda prompt: dict.fromkeys(prompt.outputs, "drama"))
    with Store.open(tmp_path / "personas.db") as store, dspy.context(lm=lm), tracker.tracing() as traces:
        options = ServiceOptions(traces=traces)
        with Personas(store, PersonaAgent("film -> tag"), None, every=99, options=options) as personas:
            first, second = personas.for_user("ana")(film="Heat"), personas.for_user("ana")(film="Ronin")
            personas.feedback("ana", first.trace.id, thumbs="down", comment="too vague")
            personas.feedback("ana", first.trace.id, edited="crime")
        traces.close()
        assert (traces.lost, traces.trouble) == (0, "")
        mlflow.set_tracking_uri(mlflow_server)
        trace = mlflow.get_trace(first.trace.id)
        written = {a.name: a for a in trace.info.assessments}
        assert written["thumbs"].value is False and written["thumbs"].rationale == "too vague"
        assert written["response"].value == "crime" and written["thumbs"].source.source_id == "ana"

        mlflow.log_feedback(trace_id=second.trace.id, name="helpful", value=False, rationale="no date", source=person)
        read = learn_from_traces(store, mlflow_server)
        assert (read.traces, read.new, read.changed, read.passed_over) == (2, 1, 0, [])
        again = learn_from_traces(store, mlflow_server)
        assert (again.traces, again.new, again.changed) == (2, 0, 0)
        mlflow.log_expectation(trace_id=second.trace.id, name="response", value="thriller", source=person)
        assert learn_from_traces(store, mlflow_server).changed == 1
        memory = store.memory("ana")
        assert [(i.query, i.response) for i in memory.interactions] == [("Heat", "crime"), ("Ronin", "thriller")]
        assert memory.signals[1].signal.comment == "no date" and memory.signals[1].signal.version == 0

    mlflow.set_experiment("films")
    mlflow.dspy.autolog()
    try:
        with dspy.context(lm=lm):
            for user, film in (("bob", "Alien"), ("bob", "Aliens"), ("", "Jaws")):
                Genre()(user=user, film=film, year=1979)
        mlflow.flush_trace_async_logging()
        where = mlflow.get_experiment_by_name("films").experiment_id
        for trace in mlflow.search_traces(locations=[where], return_type="list"):
            mlflow.log_feedback(
                trace_id=trace.info.trace_id, name="rating", value=1, rationale="not drama", source=person
            )
    finally:
        mlflow.dspy.autolog(disable=True)
    command = ["ingest", "--from-mlflow", mlflow_server, "--experiment", "films", "--fields", "film,tag"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--store", str(tmp_path / "personas.db")])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "3 assessed traces, 1 user: 2 new interactions, 0 with more said of them" in shown
    assert "1 trace without a user" in shown
    with Store.open(tmp_path / "personas.db") as store:
        bob = store.memory("bob")
        assert (len(bob), [i.query for i in bob.signals]) == (0, ["Alien", "Aliens"])
        assert bob.signals[0].signal.draft == "drama" and bob.signals[0].signal.disliked
        assert bob.signals[0].metadata["year"] == 1979
        store.forget("bob")
        gone = learn_from_traces(store, mlflow_server, experiment="films", fields=("film", "tag"))
        assert (gone.forgotten, gone.new) == (2, 0) and store.state("bob").uid is None
    for wrong, message in (
        (["--experiment", "no"], "expected one of"),
        (["--fields", "a"], "names of query and response"),
        (["--since", "soon"], "expected an ISO date"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["ingest", "--from-mlflow", mlflow_server, "--store", str(tmp_path / "p.db"), *wrong])
        assert ended.value.code != 0 and message in capsys.readouterr().err


def test_ingest_takes_a_file_or_mlflow(tmp_path, capsys):
    for wrong in ([], ["x.jsonl", "--from-mlflow", "sqlite:///x.db"], ["x.jsonl", "--since", "2026"]):
        with pytest.raises(SystemExit) as ended:
            main(["ingest", *wrong, "--store", str(tmp_path / "p.db")])
        assert ended.value.code == 2 and "expected" in capsys.readouterr().err


def test_a_trace_whose_spans_are_gone_is_refused_and_a_server_that_fails_is_not_taken_for_one():
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, NOT_FOUND

    def client(failure):
        def get_trace(trace_id):
            raise failure

        return SimpleNamespace(get_trace=get_trace)

    for gone in (MlflowException("missing span data", NOT_FOUND), AttributeError("ctx")):
        with pytest.raises(InputError, match="whole trace"):
            spans_of(client(gone), "tr-1")
    with pytest.raises(MlflowException):
        spans_of(client(MlflowException("down", INTERNAL_ERROR)), "tr-1")


def test_a_server_that_names_one_page_for_ever_is_asked_twice():
    pages = []

    class Page(list):
        token = "again"

    def search_traces(**options):
        pages.append(options)
        return Page()

    assert list(assessed_traces(SimpleNamespace(search_traces=search_traces), "1")) == [] and len(pages) == 2
