"""How much text a request has room for, by the LM."""

import pickle
import sys
from dataclasses import fields
from types import SimpleNamespace

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy import Interaction, PersonaAgent
from persona_dspy.agent.steering import Steering
from persona_dspy.lm import lm_name, resolve_lm
from persona_dspy.lm.sizes import Sizes, is_small
from persona_dspy.testing.fake_lm import FakeLM

WINDOWS = st.integers(1_000, 2_000_000)
BOUNDS = [f.name for f in fields(Sizes) if f.name != "answer"]


@given(WINDOWS)
def test_all_bounds_are_positive_and_what_is_read_at_once_fits_the_window(window):
    sizes = Sizes.within(window)
    assert all(getattr(sizes, name) > 0 for name in BOUNDS)
    assert sizes.read <= window // 3
    assert sizes.k * sizes.turn <= max(window // 4, sizes.k * 96), "recalled turns leave room for all else"
    assert sizes.answer is None, "an LM that thinks before it answers spends tokens on that"


@given(WINDOWS, WINDOWS)
def test_more_context_never_makes_texts_shorter(one, other):
    less, more = (Sizes.within(window) for window in sorted((one, other)))
    for name in (n for n in BOUNDS if n != "turn"):  # there are more turns, each of which may be shorter
        assert getattr(less, name) <= getattr(more, name), name
    assert less.k * less.turn <= more.k * more.turn


def test_a_large_window_is_not_filled_because_it_is_there():
    assert Sizes.within(200_000).read == Sizes.within(2_000_000).read == 24_000
    assert Sizes.within(2_000_000).k == 12


def test_small_models_are_sent_little():
    small, capable = Sizes.small(), Sizes.within(128_000)
    assert all(getattr(small, name) < getattr(capable, name) for name in BOUNDS)
    assert small.answer and small.read + small.answer < 2_048, "smaller models have a context of 2k"


def test_sizes_follow_the_lm():
    assert Sizes.of(FakeLM()) == Sizes.small()
    assert Sizes.of(FakeLM(small=False)) == Sizes.within(32_768), "no list knows its window"
    assert Sizes.of(None) == Sizes.of(dspy.LM("nobody/knows-it")) == Sizes.within(32_768)


@pytest.mark.parametrize(("model", "window"), [("openai/gpt-4", 8_192), ("gpt-4", 8_192), ("openai/gpt-4o", 128_000)])
def test_a_window_that_litellm_knows_is_used_without_its_import(model, window, monkeypatch):
    """Its import takes seconds, and the first answer would wait for it."""
    monkeypatch.delitem(sys.modules, "litellm", raising=False)
    assert Sizes.of(dspy.LM(model)) == Sizes.within(window) != Sizes.within(32_768)
    assert "litellm" not in sys.modules


def test_a_model_that_the_user_told_litellm_of_is_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm", SimpleNamespace(model_cost={"mine": {"max_tokens": 9_000}}))
    assert Sizes.of(dspy.LM("openai/mine")) == Sizes.within(9_000)


def test_what_is_small_says_its_engine():
    assert is_small(FakeLM()) and not is_small(FakeLM(small=False))
    assert not is_small(None) and not is_small(dspy.LM("openai/gpt-4o"))


def shown(lm, **options):
    """How many past turns, and the longest of them, a request of an agent with a long past holds."""
    past = [
        Interaction(user_id="u", query=f"film {n} " + "word " * 900, response="drama", id=str(n)) for n in range(40)
    ]
    with dspy.context(lm=lm):
        PersonaAgent("film -> tag", history=past, **options)(film="film word")
    turns = lm.engine.calls[-1].turns
    return len(turns), max((len(query) for query, _ in turns), default=0)


def answering(**options):
    return FakeLM(lambda prompt: {"tag": "drama"}, **options)


def test_an_agent_shows_as_much_as_suits_its_lm_unless_it_is_told():
    few, short = shown(answering())
    many, long = shown(answering(small=False))
    assert (few, many) == (Sizes.small().k, Sizes.within(32_768).k)
    assert short < long
    told = Sizes.within(128_000)
    assert shown(answering(), sizes=told)[0] == told.k
    assert shown(answering(), sizes=told)[1] > short
    assert shown(answering(small=False), recall_k=3)[0] == 3
    assert shown(answering(small=False), recall_k=0)[0] == 0


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("hosted_vllm/Qwen/Qwen2.5-0.5B-Instruct", True),
        ("ollama_chat/llama3.2:1b", True),
        ("ollama_chat/smollm2:135m", True),
        ("openai/gemma-3-270m-it", True),
        ("openai/qwen2.5-coder-1.5b-q4_k_m.gguf", True),
        ("ollama_chat/llama3.2:3b", False),
        ("openai/Qwen3-30B-A3B", False),
        ("openai/qwen2.5-7b-instruct-1m", False),
        ("gemini/some-model-1m", False),
        ("openai/gpt-4.1-nano", False),
        ("openai/gpt-4o-mini", False),
        ("groq/mixtral-8x7b-32768", False),
        ("openai/our-model", False),
    ],
)
def test_a_served_model_is_small_where_its_name_says_so(name, small):
    assert is_small(dspy.LM(name)) is small
    assert Sizes.of(dspy.LM(name)) == Sizes.of(name), "a name says the same as the LM of that name"
    assert (Sizes.of(name) == Sizes.small()) is small


def test_what_was_said_of_a_model_rules_over_its_name_and_goes_with_it():
    named = resolve_lm("small:openai/our-model")
    assert named.model == "openai/our-model", "what is sent to the provider"
    assert is_small(named) and is_small(named.copy(temperature=0.5)) and is_small(pickle.loads(pickle.dumps(named)))  # noqa: S301
    assert lm_name(named) == "small:openai/our-model" and is_small(resolve_lm(lm_name(named)))
    large = dspy.LM("openai/our-1b")
    large.small = False
    assert not is_small(large) and lm_name(large) == "openai/our-1b"
    assert Steering.of(named) == Steering() and Steering.of(large) == Steering.off()


def test_a_persona_names_a_small_served_model_so_that_it_is_asked_in_the_same_way_again():
    agent = PersonaAgent("query -> response")
    with dspy.context(lm=resolve_lm("small:openai/our-model")):
        assert agent.lm_name() == "small:openai/our-model"
