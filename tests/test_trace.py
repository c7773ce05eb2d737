"""The record of one answer: complete, JSON-safe, and as spans."""

import asyncio
import json

import dspy
import pytest
from requests_seen import seen_lm

from persona_dspy.agent.actions import Act
from persona_dspy.agent.agent import PersonaAgent, personalize
from persona_dspy.agent.context import recording
from persona_dspy.agent.trace import Call, Recalled, Step, Trace
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona
from persona_dspy.errors import InputError
from persona_dspy.lm.ledger import Ledger

PAST = [
    Interaction(user_id="ana", query=f"film number {n}", response="drama", time=f"2026-01-{n:02d}", id=f"i{n}")
    for n in range(1, 7)
]
PERSONA = Persona.from_text("Likes brevity.", user_id="ana")


def asks_a_model(question: str) -> str:
    """A tool that is a program itself."""
    return dspy.Predict("question -> opinion")(question=question).opinion


def lm(prompt):
    if "actions" in prompt.outputs:
        return {"actions": [{"action": "asks_a_model", "words": "who?"}, {"action": "recall_history", "words": "film"}]}
    return dict.fromkeys(prompt.outputs, "drama")


def traced():
    model = seen_lm(lm)
    with dspy.context(lm=model):
        agent = PersonaAgent(
            "film -> tag", history=PAST, persona=PERSONA, actions=Act(policy="plan", tools=[asks_a_model])
        )
        return agent(film="film number 3").trace, model


def test_a_trace_tells_all_of_it():
    trace, model = traced()
    assert (trace.user_id, trace.query, trace.response) == ("ana", "film number 3", "drama")
    assert trace.persona == PERSONA.render() and trace.persona_version == 0
    assert [s.action for s in trace.steps] == ["asks_a_model", "recall_history", "recall_history"]
    assert trace.steps[0].observation == "drama" and trace.steps[0].query == "who?"
    by_id = {i.id: n for n, i in enumerate(PAST)}
    assert all(r.position == by_id[r.id] for r in trace.recalled)
    assert trace.recalled[0].score >= trace.recalled[1].score
    assert [c.role for c in trace.calls] == ["act", "act", "respond"]
    assert trace.usage.calls == 3 == len(model.engine.requests)
    assert trace.usage.input_tokens == sum(
        len(p.system) + len(p.user) + sum(len(a) + len(b) for a, b in p.turns) for p in model.engine.calls
    )
    assert trace.usage.output_tokens == 21
    times = [(i.at, i.at + i.seconds) for i in (*trace.steps, *trace.calls)]
    assert all(0 <= began <= ended <= trace.seconds + 1e-5 for began, ended in times)


def test_json_goes_there_and_back():
    trace, _ = traced()
    assert Trace.from_json(trace.to_json()) == trace
    assert json.loads(trace.to_json())["steps"][1]["recalled"][0]["id"].startswith("i")
    with pytest.raises(ValueError):
        Trace.from_json('{"user_id": 3}')


def test_spans_nest_in_time():
    trace, _ = traced()
    spans = trace.spans()
    assert [(s.kind, s.parent) for s in spans] == [
        ("AGENT", None), ("LLM", 0), ("TOOL", 0), ("LLM", 2), ("RETRIEVER", 0), ("RETRIEVER", 0), ("LLM", 0),
    ]  # fmt: skip
    for span in spans:
        assert span.start_ns <= span.end_ns
        if span.parent is not None:
            assert spans[span.parent].start_ns <= span.start_ns and span.end_ns <= spans[span.parent].end_ns + 20_000
    json.dumps([(s.inputs, s.outputs, s.attributes) for s in spans])
    assert spans[0].attributes["calls"] == 3 and spans[4].outputs["recalled"][0]["score"] > 0


def test_spans_of_a_given_trace():
    trace = Trace(
        user_id="u", query="q", persona_version=2, persona="p", response="r", started=10.0, seconds=1.0,
        steps=(Step(action="recall_history", query="w", recalled=(Recalled(id="i", score=1.0),),
                    at=0.25, seconds=0.25),),
        calls=(Call(role="respond", model="m", at=0.5, seconds=0.5, failed=True),),
    )  # fmt: skip
    agent, recall, call = trace.spans()
    assert (agent.start_ns, agent.end_ns) == (10_000_000_000, 11_000_000_000)
    assert (recall.start_ns, recall.end_ns, recall.kind) == (10_250_000_000, 10_500_000_000, "RETRIEVER")
    assert call.failed and call.parent == 0 and call.attributes["model"] == "m"


def test_an_earlier_tracker_and_the_ledger_still_count():
    ledger = Ledger()
    agent = PersonaAgent("film -> tag", history=PAST, persona=PERSONA)
    with dspy.context(lm=seen_lm(lm), track_usage=True), ledger.recording():
        agent(film="x")
    assert ledger.usage.calls == 1 and ledger.usage.output_tokens == 7
    with dspy.context(lm=seen_lm(lm), track_usage=True):
        usage = agent(film="x").get_lm_usage()
    assert usage["fake/seen"]["completion_tokens"] == 7
    with dspy.context(lm=seen_lm(lm)), dspy.track_usage() as tracker:
        agent(film="x")
    assert tracker.get_total_tokens()["fake/seen"]["completion_tokens"] == 7


def test_failures_and_fallbacks_are_calls_too():
    said = iter(["rubbish"])
    model = seen_lm(lambda p: next(said, {"tag": "drama"}), keeps_schema=False)
    agent = PersonaAgent("film -> tag", history=PAST, persona=PERSONA, adapter=dspy.ChatAdapter())
    with dspy.context(lm=model):
        trace = agent(film="x").trace
    assert len(trace.calls) == 2 and trace.usage.calls == 2 and trace.usage.failures == 0
    with dspy.context(lm=seen_lm(lambda p: None)), recording() as recorder, pytest.raises(dspy.LMError):
        agent(film="x")
    assert recorder.calls == []  # the answer has its own recorder


def test_cached_answers_cost_nothing(tmp_path):
    agent = PersonaAgent("film -> tag", history=PAST, persona=PERSONA)
    model = seen_lm(lm)
    model = dspy.LM("fake/cached", engine=model.engine, cache=True, num_retries=0)
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    try:
        with dspy.context(lm=model):
            first, second = agent(film="x").trace, agent(film="x").trace
    finally:
        dspy.cache = before
    assert not first.calls[0].cached and second.calls[0].cached
    assert second.usage.calls == 0 and second.usage.cache_hits == 1


def test_tools_of_a_users_own_react_are_traced_and_asyncio_is_the_same():
    def react_lm(prompt):
        if "next_tool_name" in prompt.outputs:
            name = "finish" if "observation_0" in prompt.user else "asks_a_model"
            args = {} if name == "finish" else {"question": "who?"}
            return {"next_thought": "t", "next_tool_name": name, "next_tool_args": args}
        return dict.fromkeys(prompt.outputs, "yes")

    mine = personalize(dspy.ReAct("question -> answer", tools=[asks_a_model]), persona=PERSONA)
    with dspy.context(lm=seen_lm(react_lm)):
        sooner, later = mine(question="q").trace, asyncio.run(mine.acall(question="q")).trace
    for trace in (sooner, later):
        assert [(s.action, s.query, s.observation) for s in trace.steps if s.action != "finish"] == [
            ("asks_a_model", "who?", "yes")
        ]
        assert len(trace.calls) == 4


def test_only_agents_have_a_trace():
    from persona_dspy.agent.agent import PersonaPrediction

    with pytest.raises(InputError, match="PersonaAgent"):
        _ = PersonaPrediction(answer="x").trace
