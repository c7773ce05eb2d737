"""Answers as MLflow traces: in a real tracking file, with the spans, parents, times and tokens of the trace itself."""

import asyncio
import json
import shutil
import threading
import time
import warnings

import dspy
import pytest
from requests_seen import seen_lm

from optimizers import PersonaAlignment
from persona_dspy import lm as lm_room
from persona_dspy.agent.actions import Act
from persona_dspy.agent.agent import PersonaAgent, personalize
from persona_dspy.agent.trace import Trace
from persona_dspy.cli import main
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona
from persona_dspy.errors import RunError
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm
from persona_dspy.tracking.traces import TraceSender
from persona_dspy.tracking.tracker import MlflowTracker

ODD = "../../x'; drop 🦊"
PAST = [Interaction(user_id=ODD, query=f"film number {n}", response="drama", id=f"i{n}") for n in range(6)]


@pytest.fixture(scope="module")
def tracker(empty_mlflow, tmp_path_factory):
    file = shutil.copy(empty_mlflow, tmp_path_factory.mktemp("traces") / "mlflow.db")
    return MlflowTracker(f"sqlite:///{file}")


def asks_a_model(question: str) -> str:
    """A tool that is a program itself."""
    return dspy.Predict("question -> opinion")(question=question).opinion


def says(prompt):
    if "actions" in prompt.outputs:
        return {"actions": [{"action": "asks_a_model", "words": "who?"}]}
    return dict.fromkeys(prompt.outputs, "drama")


def agent_of(user=ODD, past=PAST, **options):
    return PersonaAgent("film -> tag", history=past, persona=Persona.from_text("Brief.", user_id=user), **options)


def kept(tracker, user):
    """The user's traces, oldest first, spans and all."""
    client = tracker._connect()
    found = client.search_traces(locations=[tracker._experiment_id], max_results=500)
    mine = [t for t in found if t.info.tags["persona_dspy.user_id"] == user]
    return sorted(mine, key=lambda t: t.info.request_time)


@pytest.mark.slow
def test_spans_have_the_traces_parents_times_and_tokens(tracker):
    with dspy.context(lm=seen_lm(says)), tracker.tracing() as sender:
        agent = agent_of(actions=Act(policy="plan", tools=[asks_a_model]))
        trace = agent(film="film number 3").trace
    assert (sender.lost, sender.trouble) == (0, "")
    (found,) = kept(tracker, ODD)
    spans, expected = found.data.spans, trace.spans()
    assert [(s.name, s.span_type) for s in spans] == [(s.name, s.kind) for s in expected]
    assert [(s.start_time_ns, s.end_time_ns) for s in spans] == [(s.start_ns, s.end_ns) for s in expected]
    places = {s.span_id: n for n, s in enumerate(spans)}
    assert [places.get(s.parent_id) for s in spans] == [s.parent for s in expected]
    names = [s.name for s in spans]
    assert names == [f"PersonaAgent {ODD}", "act", "asks_a_model", "act", "recall_history", "respond"]
    assert [places.get(s.parent_id) for s in spans] == [None, 0, 0, 2, 0, 0]
    assert [s.inputs for s in spans] == [s.inputs for s in expected]
    assert [s.outputs for s in spans] == [s.outputs for s in expected]
    assert spans[0].inputs["persona"] == trace.persona and spans[0].outputs == {"response": "drama"}
    assert [r["id"] for r in spans[4].outputs["recalled"]] == [r.id for r in trace.recalled]
    for span, call in zip([spans[1], spans[3], spans[5]], trace.calls, strict=True):
        used = span.attributes["mlflow.chat.tokenUsage"]
        assert (used["input_tokens"], used["output_tokens"]) == (call.input_tokens, call.output_tokens) > (0, 0)
    total = trace.usage.input_tokens + trace.usage.output_tokens
    assert json.loads(found.info.trace_metadata["mlflow.trace.tokenUsage"])["total_tokens"] == total
    assert (found.info.request_preview, found.info.response_preview) == ("film number 3", "drama")
    assert found.info.state.value == "OK" and found.info.tags["persona_dspy.persona_version"] == "0"


def test_personalized_programs_threads_and_asyncio_too(tracker):
    users = [f"user-{n}" for n in range(4)]
    agents = {u: agent_of(u, [Interaction(user_id=u, query="film", response="drama")]) for u in users}

    async def ask():
        await asyncio.gather(*(agent.acall(film=f"film of {user}") for user, agent in agents.items()))

    with dspy.context(lm=seen_lm(says)), tracker.tracing():
        asyncio.run(ask())
        run = dspy.Parallel(num_threads=4, timeout=0, disable_progress_bar=True)
        run([(agent, {"film": f"film of {user}"}) for user, agent in agents.items()])
        program = personalize(dspy.ChainOfThought("film -> tag"), persona=Persona.from_text("Brief.", user_id="cot"))
        program(film="film of cot")
    for user in users:
        assert [t.info.request_preview for t in kept(tracker, user)] == [f"film of {user}"] * 2
    assert [s.span_type for s in kept(tracker, "cot")[0].data.spans] == ["AGENT", "LLM"]


def test_nothing_is_sent_outside_and_alignment_only_where_asked(tracker):
    user = SyntheticUser(seed=1)
    agent = PersonaAgent(user.signature, history=user.interactions(12))
    with dspy.context(lm=rule_following_lm()):
        agent(**{agent.query_field: "a film"})
        for simulated in (False, True):
            with tracker.tracing(simulated=simulated) as sender:
                aligned = PersonaAlignment(epochs=1).compile(agent, trainset=agent.examples())
                if not simulated:
                    assert kept(tracker, user.user_id) == []
            assert not sender.lost
    assert aligned.alignment.total.calls >= len(kept(tracker, user.user_id)) > 0


def test_the_command_sends_and_forget_removes(tracker, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda spec="local", **_: seen_lm(says))
    monkeypatch.setattr(lm_room, "check_lm", lambda lm: None)
    for user, mark in (("vic/../tim", "qzxcanary"), ("other", "keepme")):
        Persona.from_text(f"{mark} persona", user_id=user).to_json(f"{mark}.json")
        options = ["--persona", f"{mark}.json", "--task", "film -> tag", "--trace", "--tracking-uri", tracker.uri]
        with pytest.raises(SystemExit) as end:
            main(["ask", f"a film with {mark}", *options])
        told = capsys.readouterr()
        assert end.value.code == 0, told.err
        assert "mlflow ui --backend-store-uri" in told.err and "drama" in told.out
        assert [t.info.request_preview for t in kept(tracker, user)] == [f"a film with {mark}"]
    folder = tracker.uri.removeprefix("sqlite:///").removesuffix("/mlflow.db")
    with pytest.raises(SystemExit) as end:
        main(["forget", "vic/../tim", "--out", ".", "--tracking-uri", tracker.uri, "--yes", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert {"traces": 1} in [place["removed"] for place in told["places"]]
    assert kept(tracker, "vic/../tim") == [] and len(kept(tracker, "other")) == 1
    held = [p.read_bytes() for p in [*tmp_path.rglob("*"), *tmp_path.__class__(folder).rglob("*")] if p.is_file()]
    assert not any(b"qzxcanary" in one or b"vic/../tim" in one for one in held)
    assert any(b"keepme" in one for one in held)


def test_trouble_ends_no_answer_and_is_counted(tracker, monkeypatch):
    with pytest.raises(RunError, match="cannot be used"), MlflowTracker("sqlite:////proc/none/mlflow.db").tracing():
        pass

    def fails(*_):
        raise RunError("the server is gone")

    monkeypatch.setattr(tracker, "trace", fails)
    with dspy.context(lm=seen_lm(says)), tracker.tracing() as sender:
        assert agent_of("troubled", [])(film="x").tag == "drama"
    assert (sender.lost, sender.trouble) == (1, "the server is gone")


def test_a_slow_server_holds_nobody_up(monkeypatch):
    go, sent = threading.Event(), []

    def slow(trace):
        assert go.wait(10)
        sent.append(trace)

    monkeypatch.setattr("persona_dspy.tracking.traces._QUEUE", 2)
    trace = Trace(user_id="u", query="q", persona_version=0, persona="")
    sender = TraceSender(slow)
    for _ in range(9):
        sender(trace)
    assert sender.lost >= 6 and sender.trouble
    go.set()
    sender.close()
    assert len(sent) + sender.lost == 9


def test_of_a_user_who_is_forgotten_nothing_is_written_that_waits_or_is_under_way():
    writing, go, sent = threading.Event(), threading.Event(), []

    def slow(trace):
        writing.set()
        assert go.wait(10)
        sent.append(trace)

    def trace(user, query):
        return Trace(user_id=user, query=query, persona_version=0, persona="", started=time.time())

    under_way = trace("ana", "under way")
    with TraceSender(slow, send_said=sent.append) as sender:
        for one in (trace("bob", "first"), trace("ana", "waits"), trace("bob", "waits")):
            sender(one)
        sender.assess(Interaction(user_id="ana", query="q", response="", signal={"draft": "d", "comment": "no"}))
        assert writing.wait(10)
        assert sender.forget("ana").counts == {"waiting traces": 2} and sent == []
        sender(under_way)
        sender(trace("ana", "new"))
        go.set()
    assert [(t.user_id, t.query) for t in sent] == [("bob", "first"), ("bob", "waits"), ("ana", "new")]
    assert sender.lost == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sender_that_broke_says_what_is_missing():
    def breaks(trace):
        raise ValueError("nobody expected this")

    trace = Trace(user_id="u", query="q", persona_version=0, persona="")
    with TraceSender(breaks) as sender:
        for _ in range(3):
            sender(trace)
    assert (sender.lost, sender.trouble) == (3, "the sender failed")


def test_what_failed_on_the_way_is_a_failed_span(tracker):
    with warnings.catch_warnings(action="ignore"):
        lm = seen_lm(lambda prompt: {"actions": "nonsense"} if "actions" in prompt.outputs else says(prompt))
        with dspy.context(lm=lm), tracker.tracing():
            agent_of("unread", [], actions="plan")(film="x")
    (found,) = kept(tracker, "unread")
    states = {s.name: s.status.status_code.value for s in found.data.spans}
    assert states["plan"] == "ERROR" and states["respond"] == "OK" and found.info.state.value == "OK"
