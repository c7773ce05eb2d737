"""The textual loss: who is asked, with what contrast, and which scores metrics may give."""

import dspy
import pytest

from optimizers.loss import Simulated, TextualLoss, score_of
from persona_dspy.core.answers import ResponseKind
from persona_dspy.errors import InputError
from persona_dspy.lm.ledger import Ledger
from persona_dspy.testing.fake_lm import FakeLM


def simulated(n, score=0.0, **values):
    return Simulated(interaction_id=f"i{n}", query=f"query {n}", answer="ours", gold="theirs", score=score, **values)


def critic():
    return FakeLM(lambda prompt: {"about_the_user": f"Seen {prompt.fields['attempt'].count('our response')}."})


def ask(mode, items):
    lm = critic()
    with dspy.context(lm=lm):
        return [f.text for f in TextualLoss(mode)(simulated=items).feedback], lm.engine.calls


def test_only_mistakes_are_asked_about():
    texts, calls = ask("each", [simulated(0, 1.0), simulated(1), simulated(2, 0.5)])
    assert texts == ["", "Seen 1.", "Seen 1."]
    assert len(calls) == 2


def test_a_batch_is_one_call():
    texts, calls = ask("batch", [simulated(0, 1.0), simulated(1), simulated(2)])
    assert texts == ["", "Seen 2.", "Seen 2."]
    assert len(calls) == 1


@pytest.mark.parametrize("mode", ["each", "batch"])
def test_a_metric_that_says_why_saves_the_call(mode):
    texts, calls = ask(mode, [simulated(0, said="Too long."), simulated(1, 1.0)])
    assert texts == ["Too long.", ""]
    assert not calls


def test_the_contrast_shows_both_responses_actions_and_episodes_as_data():
    shown = simulated(0, actions=("recall_history(x)",), recalled=("old query -> old response",))
    _, calls = ask("each", [shown])
    text = calls[0].fields["attempt"]
    for part in (
        "query 0",
        "our response: ours",
        "own response: theirs",
        "recall_history(x)",
        "old query -> old response",
    ):
        assert part in text
    assert text.startswith("<data")


def test_long_texts_are_clipped():
    assert len(Simulated(interaction_id="i", query="w " * 5000, answer="a", gold="b", score=0).contrast()) < 600


def test_calls_count_as_loss():
    ledger = Ledger()
    with dspy.context(lm=critic()), ledger.recording():
        TextualLoss()(simulated=[simulated(0)])
    assert ledger.by_role["loss"].calls == 1


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="'all'"):
        TextualLoss("all")


LABEL = ResponseKind(name="label", labels=("a", "b"))
GOLD, PRED = dspy.Example(tag="a"), dspy.Prediction(tag="b")


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (None, (0.0, "")),
        (lambda gold, pred, trace=None: True, (1.0, "")),
        (lambda gold, pred, trace: 0.25, (0.25, "")),
        (lambda gold, pred, trace, pred_name, pred_trace: {"score": 0.5, "feedback": "so so"}, (0.5, "so so")),
        (lambda gold, pred, trace=None: dspy.Prediction(score=0, feedback=None), (0.0, "")),
    ],
)
def test_metrics_of_every_form(metric, expected):
    assert score_of(metric, LABEL, GOLD, PRED, "tag") == expected


@pytest.mark.parametrize("score", [-0.1, 1.5, 80, float("nan")])
def test_scores_out_of_range_are_refused(score):
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        score_of(lambda gold, pred, trace=None: score, LABEL, GOLD, PRED, "tag")
