"""Recorded LMs: what was answered is never asked again; one user's answers are the user's alone."""

import asyncio
import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy.core import user_key
from persona_dspy.errors import BudgetExceeded, StoreError
from persona_dspy.lm.answer_folder import CallFolder
from persona_dspy.lm.kept_answers import UserCalls, call_key, recorded, recording_calls
from persona_dspy.lm.ledger import Budget, Ledger
from persona_dspy.testing.fake_lm import FakeLM


def echo(prompt):
    return {"answer": prompt.fields.get("question", prompt.user).upper()}


def lm_of(**options):
    return FakeLM(echo, **options)


def ask(lm, question, **options):
    with dspy.context(lm=lm):
        return dspy.Predict("question -> answer")(question=question, **options).answer


def test_an_answer_survives_its_run_and_is_counted_as_the_call_it_was(tmp_path):
    lm, log = lm_of(cache=True), CallFolder(tmp_path)
    twin, first, second = recorded(lm), Ledger(user_id="u"), Ledger()
    with recording_calls(UserCalls("u", log)), first.recording():
        assert [ask(twin, q) for q in ("a", "b", "a")] == ["A", "B", "A"]
    assert (len(lm.engine.calls), first.usage.calls, first.usage.cache_hits) == (2, 2, 1)
    user = Ledger(user_id="u", parent=second)
    with recording_calls(UserCalls("u", log)), user.recording():  # the next run, after a crash
        assert [ask(twin, q) for q in ("a", "b", "a", "c")] == ["A", "B", "A", "C"]
    assert len(lm.engine.calls) == 3
    assert (user.usage.calls, user.usage.cache_hits) == (3, 1)
    assert user.usage.tokens > first.usage.tokens > 0
    assert (second.usage.calls, second.usage.cache_hits) == (1, 3)  # the fleet paid one call only
    assert lm.history == [] and twin.history == []


def test_without_cache_each_call_is_a_sample_and_replays_in_order(tmp_path):
    numbers = iter(range(100))
    lm, log = FakeLM(lambda p: {"answer": f"sample {next(numbers)}"}, cache=False), CallFolder(tmp_path)
    for _ in range(2):
        with recording_calls(UserCalls("u", log)):
            assert [ask(recorded(lm), "q") for _ in range(3)] == ["sample 0", "sample 1", "sample 2"]
    assert len(lm.engine.calls) == 3


def test_rollouts_and_options_have_keys_of_their_own():
    keys = {call_key("m", "p", None, o) for o in ({}, {"rollout_id": 1}, {"rollout_id": 2}, {"temperature": 1.0})}
    assert len(keys) == 4
    assert call_key("m", "p", None, {"timeout": 1, "api_key": "k", "x": None}) == call_key("m", "p", None, {})
    assert call_key("m", "p", None, {}) != call_key("n", "p", None, {})


def test_users_share_nothing_and_can_be_forgotten(tmp_path):
    lm, log = lm_of(cache=True), CallFolder(tmp_path)
    for user in ("ann", "bob"):
        with recording_calls(UserCalls(user, log)):
            ask(recorded(lm), "the same question")
    assert len(lm.engine.calls) == 2
    assert log.forget("ann") == 1
    assert [f.name for f in tmp_path.iterdir()] == [f"{user_key('bob')}.jsonl"]
    assert log.forget("ann") == 0


def test_nothing_reaches_dspys_own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(dspy, "cache", None)  # any use of it would raise
    with recording_calls(UserCalls("u", CallFolder(tmp_path))):
        assert ask(recorded(lm_of(cache=True)), "q") == "Q"


def test_equal_calls_at_once_are_made_once(tmp_path):
    started = threading.Barrier(8)

    def slow(prompt):
        time.sleep(0.05)
        return echo(prompt)

    lm = FakeLM(slow, cache=True)
    twin = recorded(lm)

    def work():
        started.wait()
        return ask(twin, "q")

    with recording_calls(UserCalls("u", CallFolder(tmp_path))), ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(contextvars.copy_context().run, work) for _ in range(8)]
        assert {r.result() for r in runs} == {"Q"}
    assert len(lm.engine.calls) == 1


def test_async_calls_are_recorded_too(tmp_path):
    lm, log = lm_of(cache=True), CallFolder(tmp_path)
    twin = recorded(lm)

    async def work():
        with dspy.context(lm=twin):
            both = [dspy.Predict("question -> answer").acall(question="q") for _ in range(4)]
            return [p.answer for p in await asyncio.gather(*both)]

    for _ in range(2):
        with recording_calls(UserCalls("u", log)):
            assert asyncio.run(work()) == ["Q"] * 4
    assert len(lm.engine.calls) == 1


def test_a_failed_call_is_not_kept_and_may_be_tried_again(tmp_path):
    broken = [True]

    def sometimes(prompt):
        if broken.pop() if broken else False:
            raise RuntimeError("down")
        return echo(prompt)

    log = CallFolder(tmp_path)
    twin = recorded(FakeLM(sometimes, cache=True))
    with recording_calls(UserCalls("u", log)):
        with pytest.raises(Exception, match="down"):
            twin("q")
        assert list(log.load("u")) == []
        assert ask(twin, "q") == "Q"


def test_a_full_disk_stops_the_next_call_but_loses_no_answer(tmp_path, monkeypatch):
    log, lm, fleet = CallFolder(tmp_path), lm_of(cache=True), Ledger()
    calls, twin = UserCalls("u", log), recorded(lm)
    monkeypatch.setattr("os.write", lambda handle, data: 3)
    with recording_calls(calls), fleet.recording():
        assert ask(twin, "a") == "A"
        with pytest.raises(BudgetExceeded, match="cannot be kept"):
            ask(twin, "b")
    assert isinstance(calls.failed, StoreError)
    assert "--resume" in str(calls.failed)
    assert len(lm.engine.calls) == 1


def test_a_huge_prompt_is_refused_before_it_is_paid(tmp_path):
    lm, ledger = lm_of(cache=True), Ledger(user_id="u", budget=Budget(tokens=10_000))
    with recording_calls(UserCalls("u")), ledger.recording():
        with pytest.raises(BudgetExceeded, match="tokens"):
            ask(recorded(lm), "word " * 100_000)
        assert ask(recorded(lm), "short") == "SHORT"
    assert len(lm.engine.calls) == 1


@given(st.lists(st.text(max_size=20), max_size=6), st.binary(max_size=60))
def test_half_a_record_is_dropped_and_whole_ones_are_kept(tmp_path_factory, texts, tail):
    log = CallFolder(tmp_path_factory.mktemp("calls"))
    for n, text in enumerate(texts):
        log.add("u", {"key": str(n), "outputs": [text]})
    with open(log.folder / f"{user_key('u')}.jsonl", "ab") as file:
        file.write(tail.replace(b"\n", b""))
    assert [r["outputs"][0] for r in log.load("u")] == texts
    log.add("u", {"key": "next", "outputs": ["next"]})
    assert [r["outputs"][0] for r in log.load("u")] == [*texts, "next"]


def test_whoever_stops_waiting_for_a_call_does_not_break_it(tmp_path):
    lm, log = lm_of(cache=True), CallFolder(tmp_path)
    started, answer = threading.Event(), threading.Event()

    def slow(prompt):
        started.set()
        answer.wait(5)

    lm.engine.handlers.insert(0, slow)
    twin = recorded(lm)

    async def wait_and_give_up():
        with dspy.context(lm=twin):
            waiting = asyncio.create_task(dspy.Predict("question -> answer").acall(question="q"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait([waiting])

    with recording_calls(UserCalls("u", log)), dspy.context(lm=twin), ThreadPoolExecutor(1) as pool:
        paying = pool.submit(contextvars.copy_context().run, ask, twin, "q")
        started.wait(5)
        asyncio.run(wait_and_give_up())
        answer.set()
        assert paying.result() == "Q"


def test_other_lms_come_back_as_they_are():
    lm = recorded(lm_of())
    assert recorded(lm) is lm
    assert recorded("no lm") == "no lm"
    assert lm("hello there")[0]  # outside of a fleet: a plain LM
