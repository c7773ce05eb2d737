"""The meter: each LM call is told once to every listener, whoever sees it begin and end."""

import asyncio
from dataclasses import fields

import dspy
import pytest
from requests_seen import seen_lm

from persona_dspy.agent.agent import personalize
from persona_dspy.agent.context import recording
from persona_dspy.agent.trace import Call
from persona_dspy.core import Persona, Usage
from persona_dspy.judge.results import Judged
from persona_dspy.lm.calls import Meter, call_listeners, listening, parse_usage, role
from persona_dspy.lm.kept_answers import UserCalls, recorded, recording_calls
from persona_dspy.lm.ledger import Budget, Ledger

PERSONA = Persona.from_text("Likes brevity.", user_id="ana")


class Heard:
    def __init__(self):
        self.calls = []

    def call_ended(self, call):
        self.calls.append(call)

    @property
    def outcomes(self):
        return [call.outcome for call in self.calls]


class Details:
    cached_tokens = 3


def answers(prompt):
    if "fail" in prompt.user:
        return None
    return dict.fromkeys(prompt.outputs, "yes") if prompt.outputs else "yes"


class Direct(dspy.Module):
    """Calls the LM past all adapters, once with success, once without, and then a predictor."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question):
        dspy.settings.lm(f"think about {question}")
        with pytest.raises(dspy.LMError):
            dspy.settings.lm("fail")
        return self.answer(question=question)

    async def aforward(self, question):
        await dspy.settings.lm.acall(f"think about {question}")
        with pytest.raises(dspy.LMError):
            await dspy.settings.lm.acall("fail")
        return await self.answer.acall(question=question)


def run(program, how, **inputs):
    return program(**inputs) if how == "sync" else asyncio.run(program.acall(**inputs))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], Usage()),
        ([{}], Usage(calls=1)),
        ([{"prompt_tokens": None, "completion_tokens": 2}], Usage(calls=1, output_tokens=2)),
        ([{"prompt_tokens": 5, "prompt_tokens_details": Details()}], Usage(calls=1, input_tokens=5, cached_tokens=3)),
        ([{"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}}], Usage(calls=1, input_tokens=5)),
        ([{"prompt_tokens": 5}, {"prompt_tokens": 6}], Usage(calls=2, input_tokens=11)),
    ],
)
def test_usage_is_read_in_one_place(entries, expected):
    assert parse_usage(entries) == expected


def test_the_columns_of_a_cost_are_the_same_everywhere():
    columns = [field.name for field in fields(Usage)]
    for other in (Judged, Call):
        counts = [f.name for f in fields(other) if f.name in columns and f.name not in ("seconds", "usd")]
        assert counts == [name for name in columns if name in counts] and "cached_tokens" in counts


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("fleet", [False, True])
def test_i2_calls_past_all_adapters_are_counted_too(how, fleet):
    model, ledger, heard = seen_lm(answers), Ledger(), Heard()
    mine = personalize(Direct(), persona=PERSONA)
    lm, kept = (recorded(model), recording_calls(UserCalls("ana"))) if fleet else (model, dspy.context())
    with dspy.context(lm=lm), kept, ledger.recording(), listening(heard, *call_listeners()):
        trace = run(mine, how, question="q").trace
    assert heard.outcomes == ["answered", "failed", "answered"]
    assert len(model.engine.requests) == ledger.usage.calls == trace.usage.calls == 3
    assert ledger.usage.failures == trace.usage.failures == 1 and ledger.usage.cache_hits == 0
    assert ledger.usage.tokens == trace.usage.tokens == sum(call.usage.tokens for call in heard.calls) > 0
    assert all(call.seconds > 0 for call in trace.calls)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_trace_without_a_ledger_counts_the_same(how):
    model = seen_lm(answers)
    with dspy.context(lm=model):
        trace = run(personalize(Direct(), persona=PERSONA), how, question="q").trace
    assert len(model.engine.requests) == trace.usage.calls == 3 and trace.usage.failures == 1
    assert all(call.model == "fake/seen" and call.seconds > 0 for call in trace.calls)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("fleet", [False, True])
def test_a_kept_answer_is_told_once(how, fleet):
    """By a fleet's kept answers, or by DSPy's cache."""
    model, before = seen_lm(answers).copy(cache=True), dspy.cache
    program, calls = dspy.Predict("question -> answer"), UserCalls("ana")
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    try:
        for n in range(2):
            ledger, heard, above = Ledger(), Heard(), Ledger()
            ledger.parent = above
            kept = recording_calls(calls) if fleet else dspy.context()
            lm = recorded(model) if fleet else model
            mine = personalize(program, persona=PERSONA)
            with dspy.context(lm=lm), kept, ledger.recording(), listening(heard, *call_listeners()):
                trace = run(mine, how, question="q").trace
            assert len(heard.calls) == len(trace.calls) == 1
            assert heard.outcomes == (["cached"] if n else ["answered"])
            assert trace.calls[0].cached == bool(n)
            assert (ledger.usage.calls, ledger.usage.cache_hits) == (above.usage.calls, above.usage.cache_hits)
            assert (ledger.usage.calls, ledger.usage.cache_hits) == ((0, 1) if n else (1, 0))
    finally:
        dspy.cache = before
    assert len(model.engine.requests) == 1


@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize("fleet", [False, True])
def test_a_program_may_track_its_own_usage(fleet, ledger):
    class Tracks(dspy.Module):
        def __init__(self):
            super().__init__()
            self.answer = dspy.Predict("question -> answer")

        def forward(self, question):
            with dspy.track_usage() as self.used:
                return self.answer(question=question)

    model, account = seen_lm(answers), Ledger()
    lm, kept = (recorded(model), recording_calls(UserCalls("ana"))) if fleet else (model, dspy.context())
    mine = personalize(Tracks(), persona=PERSONA)
    with dspy.context(lm=lm), kept, account.recording() if ledger else dspy.context():
        trace = mine(question="q").trace
    assert trace.usage.calls == 1 and trace.usage.output_tokens == 7
    assert account.usage.calls == int(ledger) and account.usage.cache_hits == 0


def test_a_direct_call_under_a_tracker_of_the_programs_own_is_a_call():
    ledger, lm = Ledger(), seen_lm(answers)
    with ledger.recording(), dspy.track_usage() as used:
        lm("hello")
    assert ledger.usage.calls == 1 and ledger.usage.output_tokens == 7 and ledger.usage.cache_hits == 0
    assert used.get_total_tokens()["fake/seen"]["completion_tokens"] == 7


def test_a_trackers_totals_reach_the_one_outside():
    with dspy.context(lm=seen_lm(answers)), dspy.track_usage() as outer, recording(), dspy.track_usage() as inner:
        dspy.settings.lm("hello")
    assert outer.get_total_tokens() == inner.get_total_tokens() != {}


def test_a_refused_call_is_no_call():
    model, ledger = seen_lm(answers), Ledger(budget=Budget(tokens=10))
    mine = personalize(dspy.Predict("question -> answer"), persona=PERSONA)
    with dspy.context(lm=recorded(model)), recording_calls(UserCalls("ana")), ledger.recording(), recording() as seen:
        with pytest.raises(Exception, match="tokens"):
            dspy.settings.lm("word " * 1000)
        with pytest.raises(Exception, match="tokens"):
            mine(question="word " * 1000)
    assert model.engine.requests == [] and ledger.usage == Usage() and seen.calls == []


def test_an_lm_that_is_no_dspy_lm_is_metered_by_its_adapter_in_a_fleet():
    class Own(dspy.BaseLM):
        def __call__(self, prompt=None, *, messages=None, **options):
            if "fail" in str(messages):
                raise RuntimeError("down")
            dspy.settings.usage_tracker.add_usage(self.model, {"prompt_tokens": 2, "completion_tokens": 1})
            return ["[[ ## answer ## ]]\nyes"]

    heard = Heard()
    mine = personalize(dspy.Predict("question -> answer"), persona=PERSONA, adapter=dspy.ChatAdapter())
    with dspy.context(lm=Own("own")), recording_calls(UserCalls("ana")), listening(heard):
        mine(question="q")
        with pytest.raises(RuntimeError):
            mine(question="fail")
    assert heard.outcomes == ["answered", "failed"]
    assert [call.usage.tokens for call in heard.calls] == [3, 0]


def test_roles_and_listeners_end_with_their_blocks():
    heard, lm = Heard(), seen_lm(answers)
    with listening(heard, callbacks=True):
        lm("one")
        with role("loss"):
            lm("two")
        with listening(callbacks=False):
            lm("three")
            assert not any(isinstance(c, Meter) for c in dspy.settings.callbacks)
    lm("four")
    assert [call.role for call in heard.calls] == ["respond", "loss"] and call_listeners() == ()
