import dspy
import pytest

from persona_dspy.core import Usage
from persona_dspy.lm import Estimate, known_price
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
