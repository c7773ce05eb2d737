"""The fake LM: content decides, the unseen fails loudly."""

from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest

from persona_dspy.testing.fake_lm import FakeLM, UnseenPrompt

ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]


def echo(prompt):
    return {"answer": f"re: {prompt.fields['question']}"} if "answer" in prompt.outputs else None


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: type(a).__name__)
def test_it_reads_and_answers_in_every_form(adapter):
    lm = FakeLM(echo)
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict("question -> answer")(question="a\nb").answer == "re: a\nb"
    assert lm.engine.calls[0].outputs == ("answer",)


def test_answers_do_not_shift_under_threads():
    lm = FakeLM(echo)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        program = dspy.Predict("question -> answer")
        with ThreadPoolExecutor(8) as pool:
            import contextvars

            runs = [pool.submit(contextvars.copy_context().run, program, question=str(n)) for n in range(40)]
            assert [r.result().answer for r in runs] == [f"re: {n}" for n in range(40)]
    assert len(lm.engine.calls) == 40


def test_the_unseen_fails_loudly_and_is_kept():
    lm = FakeLM(lambda prompt: None)
    with (
        dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)),
        pytest.raises(Exception) as error,
    ):
        dspy.Predict("question -> answer")(question="what?")
    assert "what?" in str(error.value)
    assert lm.engine.misses[0].fields["question"] == "what?"
    assert issubclass(UnseenPrompt, Exception)


def test_the_first_handler_that_answers_wins_and_tokens_are_counted():
    lm = FakeLM(lambda prompt: None, lambda prompt: {"answer": "one"}, lambda prompt: {"answer": "two"})
    with dspy.context(lm=lm), dspy.track_usage() as used:
        assert dspy.Predict("question -> answer")(question="x").answer == "one"
    (usage,) = used.get_total_tokens().values()
    assert usage["prompt_tokens"] > usage["completion_tokens"] > 0


def test_choices_come_from_the_signature():
    seen = []
    lm = FakeLM(lambda prompt: seen.append(prompt.choices("tag")) or {"tag": "b"})
    for adapter in ADAPTERS[:2]:
        with dspy.context(lm=lm, adapter=adapter):
            dspy.Predict(dspy.Signature("q -> tag: Literal['a', 'b']"))(q="x")
    assert seen == [("a", "b"), ("a", "b")]
