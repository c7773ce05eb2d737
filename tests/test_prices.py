import dspy
import pytest

from optimizers import PersonaAlignment
from persona_dspy import Budget, PersonaAgent, compile_users
from persona_dspy.core import Usage
from persona_dspy.errors import InputError
from persona_dspy.lm import Estimate, Ledger, check_price, known_price
from persona_dspy.lm.calls import OpenCall, listening
from persona_dspy.testing import FakeLM


def test_prices_are_those_dspy_has_and_an_unknown_one_is_none():
    mini = dspy.LM("openai/gpt-4o-mini")
    assert known_price(mini, 1000, 100) == pytest.approx(0.15e-3 + 0.06e-3)
    assert known_price(mini, 0, 0) == 0
    assert known_price(dspy.LM("hosted_vllm/my-model", api_base="http://127.0.0.1:9"), 10, 10) is None
    assert known_price(FakeLM(), 10, 10) is None


def test_an_estimate_adds_up():
    parts = [("act", Usage(calls=2, input_tokens=1000, output_tokens=10)), ("respond", Usage(calls=4, input_tokens=1))]
    found = Estimate.of(parts, dspy.LM("openai/gpt-4o-mini"))
    assert (found.calls, found.input_tokens, found.output_tokens) == (6, 1001, 10)
    assert found.usd == pytest.approx(1001 * 0.15e-6 + 10 * 0.6e-6)
    assert Estimate.of(parts, None).usd is None


def test_a_budget_in_dollars_is_refused_where_no_price_is_known():
    """Before any call: of the program, of a fleet and of an evaluation."""
    model = FakeLM()
    agent = PersonaAgent("film -> tag", user_id="u")
    with Ledger(budget=Budget(usd=1.0)).recording(), dspy.context(lm=model):
        with pytest.raises(InputError, match=r"price of lm .* is not known.*--budget-tokens"):
            agent(film="x")
        with pytest.raises(InputError, match="is not known"):
            list(compile_users(agent, [], PersonaAlignment()))
    assert not model.engine.calls
    with Ledger(budget=Budget(usd=1.0)).recording() as ledger:
        check_price(dspy.LM("openai/gpt-4o-mini"), ledger.usd_bound)


def test_dollars_are_counted_with_histories_off():
    heard = []
    listener = type("Listener", (), {"call_ended": lambda self, call: heard.append(call)})()
    with listening(listener):
        call = OpenCall(dspy.LM("openai/gpt-4o-mini"))
        call.entries.append({"prompt_tokens": 1_000_000, "completion_tokens": 0})
        call.end()
    assert heard[0].usage.usd == pytest.approx(0.15)
