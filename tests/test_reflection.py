"""Requests to the LM that reflects: bounds, retries, an account of what could not be read."""

import dspy
import pytest

from optimizers.reflection import ask, current_sizes, reflecting
from persona_dspy.agent.prompt import as_persona
from persona_dspy.lm.sizes import Sizes
from persona_dspy.testing.fake_lm import FakeLM

PREDICT = dspy.Predict("question -> score: int")


class Limits:
    """An LM that answers ``answers`` in turn, and the bounds of its requests."""

    def __init__(self, *answers, small=True):
        self.answers, self.bounds = list(answers), []
        self.lm = FakeLM(lambda prompt: self.answers.pop(0), small=small, max_tokens=7)
        complete = self.lm.engine.complete

        def noted(request):
            self.bounds.append(request.config.max_tokens)
            return complete(request)

        self.lm.engine.complete = noted

    def asked(self, **options):
        with reflecting(self.lm, **options) as account, dspy.context(adapter=dspy.JSONAdapter()):
            found = ask(PREDICT, bound=100, question="How many?")
        return found.score if found else None, account.unread


GOOD, BAD = {"score": 3}, "what score?"


def test_a_small_lm_is_bounded_and_another_has_its_own_bound():
    small, capable = Limits(GOOD), Limits(GOOD, small=False)
    assert small.asked() == capable.asked() == (3, [])
    assert (small.bounds, capable.bounds) == ([100], [7])


def test_what_cannot_be_read_is_asked_once_more_with_more_room():
    limits = Limits(*[BAD] * (first := first_try_requests()), GOOD)
    assert limits.asked() == (3, [])
    assert limits.bounds == [100] * first + [400]


def first_try_requests():
    """How many requests DSPy's adapter makes of one try that cannot be read (it falls back to another format)."""
    limits = Limits(*[BAD] * 9)
    limits.asked()
    return limits.bounds.count(100)


@pytest.mark.parametrize("small", [True, False])
def test_what_cannot_be_read_twice_is_accounted_for_and_no_error(small):
    limits = Limits(*[BAD] * 9, small=small)
    found, (unread,) = limits.asked()
    assert found is None
    assert "score" in unread and len(unread) <= 200 and "\n" not in unread


def test_a_request_over_the_context_is_not_sent_again():
    def full(prompt):
        raise dspy.ContextWindowExceededError(model="fake/lm", message="too long")

    lm = FakeLM(full)
    with reflecting(lm) as account:
        assert ask(PREDICT, bound=100, question="How many?") is None
    assert len(lm.engine.calls) == 1 and "over the context" in account.unread[0]


def test_other_failures_are_raised():
    def gone(prompt):
        raise RuntimeError("the model is gone")

    with reflecting(FakeLM(gone)) as account, pytest.raises(dspy.LMError, match="gone"):
        ask(PREDICT, bound=100, question="How many?")
    assert account.unread == []


def test_outside_of_any_account_nothing_is_kept_and_nothing_raised():
    with dspy.context(lm=FakeLM(lambda prompt: BAD), adapter=dspy.JSONAdapter()):
        assert ask(PREDICT, bound=100, question="How many?") is None


def test_sizes_are_those_of_the_lm_that_reflects():
    told = Sizes.within(4_000)
    with dspy.context(lm=FakeLM()):
        assert current_sizes() == Sizes.small()
        with reflecting(FakeLM(small=False)):
            assert current_sizes() == Sizes.within(32_768)
            with reflecting(FakeLM(), sizes=told):
                assert current_sizes() == told
            assert current_sizes() == Sizes.within(32_768)
        assert current_sizes() == Sizes.small()


def test_who_reflects_speaks_for_nobody():
    lm = FakeLM(lambda prompt: {"score": 3})
    with as_persona("You answer as Ana."), reflecting(lm):
        ask(PREDICT, bound=100, question="How many?")
    assert "Ana" not in lm.engine.calls[0].system


def test_of_an_endless_list_the_first_entries_are_read_and_the_others_counted():
    lm = FakeLM(lambda prompt: {"lines": [f"line {n}" for n in range(5_000)]})
    with reflecting(lm) as account, dspy.context(adapter=dspy.JSONAdapter()):
        answer = ask(dspy.Predict("question -> lines: list[str]"), bound=100, question="Which?")
    assert answer.lines == [f"line {n}" for n in range(200)] and account.unlisted == 4_800
