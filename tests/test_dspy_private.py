"""Where DSPy renames or drops what we need of its insides, one of these says which promise of ours that ends."""

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from persona_dspy.agent.dspy_private import AdapterHooks, adapter_class, answers_on_a_loop, with_parts_listed
from persona_dspy.testing.fake_lm import FakeLM

SIGNATURE = dspy.Signature("question -> answer")


class Hooks(AdapterHooks):
    heard: tuple = ()

    def after_reply(self):
        self.heard = (*self.heard, "reply")

    def instead_of(self, fallback):
        self.heard = (*self.heard, type(fallback).__name__)
        return fallback


def call(adapter, reply):
    return adapter(FakeLM(lambda prompt: reply), {}, SIGNATURE, [], {"question": "q"})


@pytest.mark.parametrize("base", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_a_reply_is_noted_before_it_is_parsed(base):
    """Else the trace counts the time of parsing as the LM's."""
    adapter = adapter_class(base, Hooks)()
    call(adapter, {"answer": "a"})
    assert adapter.heard == ("reply",)


def test_the_json_fallback_of_the_chat_adapter_is_ours_to_replace():
    """Else the second request after an answer that cannot be parsed lacks the persona."""
    adapter = adapter_class(dspy.ChatAdapter, Hooks)()
    with pytest.raises(dspy.utils.exceptions.AdapterParseError):
        call(adapter, "no answer")
    assert "JSONAdapter" in adapter.heard


def test_callbacks_hear_of_each_call_once_and_stream_listeners_know_the_name():
    class Heard(BaseCallback):
        formats = 0

        def on_adapter_format_start(self, call_id, instance, inputs):
            self.formats += 1

    heard, subclass = Heard(), adapter_class(dspy.ChatAdapter, Hooks)
    with dspy.context(callbacks=[heard]):
        call(subclass(), {"answer": "a"})
    assert (heard.formats, subclass.__name__) == (1, "ChatAdapter")


def test_compiled_parts_are_listed():
    """Else the file that ``save`` writes lacks what another optimizer compiled."""
    part = dspy.ChainOfThought("question -> answer")
    part._compiled = True

    class Whole(dspy.Module):
        def __init__(self):
            super().__init__()
            self.part = part

    whole = Whole()
    assert not [n for n, _ in whole.named_parameters()], "DSPy lists compiled parts now: with_parts_listed can go"
    assert [n for n, _ in with_parts_listed(whole).named_parameters()] == ["part.predict"]
    assert part._compiled, "the program that was given is not changed"


def test_an_engine_of_ones_own_is_awaited_only_where_it_came_with_an_async_one():
    """Else ``acompile`` fails, or holds the loop up while an LM answers."""
    lm = FakeLM()
    assert answers_on_a_loop(lm) and answers_on_a_loop(dspy.LM("openai/gpt-4o-mini", api_key="none"))
    assert not answers_on_a_loop(lm.copy(engine=lm.engine))
