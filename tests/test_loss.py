"""The textual loss: who is asked, with what contrast, and which scores metrics may give."""

import time

import dspy
import pytest

from optimizers.loss import Simulated, TextualLoss, score_of
from optimizers.reflection import reflecting
from persona_dspy.core.answers import ResponseKind
from persona_dspy.errors import InputError
from persona_dspy.lm.ledger import Ledger
from persona_dspy.lm.sizes import Sizes
from persona_dspy.testing.fake_lm import FakeLM


def simulated(n, score=0.0, **values):
    return Simulated(interaction_id=f"i{n}", query=f"query {n}", answer="ours", gold="theirs", score=score, **values)


def critic(lessons=None):
    def answer(prompt):
        if "attempts" in prompt.fields:
            return {"lessons": lessons(prompt) if callable(lessons) else lessons or []}
        return {"about_the_user": f"Seen {prompt.fields['attempt'].count('our response')}."}

    return FakeLM(answer)


def lesson(n, text="Likes tea.", verdict="lesson"):
    return {"attempt": n, "verdict": verdict, "about_the_user": text}


def ask(mode, items, lessons=None, **told):
    lm = critic(lessons)
    with dspy.context(lm=lm):
        return [f.text for f in TextualLoss(mode)(simulated=items, **told).feedback], lm.engine.calls


def test_only_mistakes_are_asked_about():
    texts, calls = ask("each", [simulated(0, 1.0), simulated(1), simulated(2, 0.5)])
    assert texts == ["", "Seen 1.", "Seen 1."]
    assert len(calls) == 2


def test_a_batch_is_one_call_that_sees_what_was_right_too():
    items = [simulated(0, 1.0), simulated(1), simulated(2)]
    texts, calls = ask("batch", items, [lesson(2), lesson(3, "Hates rain.")], task="Tag films.", notes="Likes films.")
    assert texts == ["", "Likes tea.", "Hates rain."]
    (call,) = calls
    assert all(f"attempt {n}\nquery: query {n - 1}" in call.fields["attempts"] for n in (1, 2, 3))
    assert call.fields["task"] == "Tag films."
    assert "Likes films." in call.fields["notes"] and call.fields["notes"].startswith("<data")


def test_nothing_is_learned_from_noise_and_from_what_was_not_offered():
    items = [simulated(n) for n in range(3)]
    said = [lesson(1), lesson(2, "Changed his mind.", "noise"), lesson(3, "Wants a fourth.", "not offered")]
    assert ask("batch", items, said)[0] == ["Likes tea.", "", ""]


@pytest.mark.parametrize("said", [[lesson(0)], [lesson(3)], [lesson(-1)], [lesson(1)], []])
def test_lessons_of_unknown_and_of_right_attempts_count_for_nothing(said):
    assert ask("batch", [simulated(0, 1.0), simulated(1)], said)[0] == ["", ""]


def test_a_batch_leaves_what_the_metric_said():
    items = [simulated(0, said="Too long."), simulated(1)]
    assert ask("batch", items, [lesson(1, "Else."), lesson(2)])[0] == ["Too long.", "Likes tea."]


@pytest.mark.parametrize("mode", ["each", "batch"])
def test_what_cannot_be_read_says_nothing_and_is_counted(mode):
    lm = FakeLM(lambda prompt: "gibberish")
    with reflecting(lm) as reflection, dspy.context(adapter=dspy.JSONAdapter()):
        feedback = TextualLoss(mode)(simulated=[simulated(0), simulated(1, 1.0)]).feedback
    assert [f.text for f in feedback] == ["", ""]
    assert len(reflection.unread) == 1


@pytest.mark.parametrize("mode", ["each", "batch"])
def test_a_metric_that_says_why_saves_the_call(mode):
    texts, calls = ask(mode, [simulated(0, said="Too long."), simulated(1, 1.0)])
    assert texts == ["Too long.", ""]
    assert not calls


SMALL, LARGE = Sizes.small(), Sizes.within(128_000)
LONG = " ".join(f"word{n}" for n in range(900))


@pytest.mark.parametrize(("mode", "field"), [("each", "attempt"), ("batch", "attempts")])
def test_both_responses_actions_and_episodes_are_shown_as_data(mode, field):
    shown = simulated(
        0, actions=("recall_history(x)",), recalled=("comedy", "horror", "comedy"), context="title: Ghosts"
    )
    _, calls = ask(mode, [shown])
    text = calls[0].fields[field]
    for part in (
        "title: Ghosts",
        "query 0",
        "our response: ours",
        "own response: theirs",
        "looked up: recall_history(x)",
        "answers of the past turns that were shown: comedy (2), horror (1)",
    ):
        assert part in text
    assert text.startswith("<data")


def test_what_was_right_is_shown_once_and_without_what_led_to_it():
    shown = simulated(0, 1.0, actions=("recall_history(x)",), recalled=("comedy",)).shown(LARGE)
    assert shown == "query: query 0\nour response, the same as the user's own: theirs"


def test_long_texts_are_clipped_to_what_the_lm_has_room_for():
    long = Simulated(interaction_id="i", query="w " * 5000, answer=LONG, gold=LONG + " end", score=0)
    assert len(long.shown(SMALL)) < 4 * (2 * SMALL.response + SMALL.query) + 200  # what differs is one word
    assert len(long.shown(SMALL)) < len(long.shown(LARGE))
    short = Simulated(interaction_id="i", query="one\ntwo", answer="a\n\nb", gold="c", score=0).shown(SMALL)
    assert "one\n    two" in short and "a\n    \n    b" in short, "line breaks are how one writes"


def test_of_longer_texts_the_changes_are_told_and_of_recalled_ones_none():
    ours, gold = "Dear Ana, thanks a lot for your mail.", "Hi Ana, thanks for your mail."
    shown = Simulated(interaction_id="i", query="q", answer=ours, gold=gold, score=0.5, recalled=(gold,)).shown(LARGE)
    assert '"Dear" -> "Hi"' in shown and 'dropped "a lot"' in shown
    assert "past turns" not in shown
    assert "changes" not in simulated(0).shown(LARGE)


def test_what_differs_is_clipped_too():
    long = Simulated(interaction_id="i", query="q", answer=LONG, gold=LONG + " and" + LONG[::-1], score=0)
    assert len(long.shown(SMALL)) < 4 * (4 * SMALL.response + SMALL.query)


def test_texts_of_a_page_are_compared_at_once():
    ours, own = (" ".join(f"{letter}{n}" for n in range(250)) for letter in "ab")
    began = time.process_time()
    Simulated(interaction_id="i", query="q", answer=ours, gold=own, score=0).shown(LARGE)
    assert time.process_time() - began < 0.1


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


def test_as_in_the_paper_every_interaction_is_asked_about_with_the_notes_and_what_was_looked_up():
    lm = FakeLM(lambda prompt: {"feedback": f"Look {prompt.fields['attempt'].count('the same as')}."})
    right = Simulated(interaction_id="r", query="q", answer="a", gold="a", score=1.0, actions=("recall_history(kiss)",))
    wrong = Simulated(interaction_id="w", query="q", answer="b", gold="a", score=0.0)
    told = Simulated(interaction_id="t", query="q", answer="b", gold="a", score=0.0, said="too long")
    with dspy.context(lm=lm):
        found = TextualLoss("every")(simulated=[right, wrong, told], task="tag", notes="Likes tea.").feedback
    assert [f.text for f in found] == ["Look 1.", "Look 0.", "too long"]
    first, second = (call.user for call in lm.engine.calls)
    assert "looked up: recall_history(kiss)" in first and "looked up: nothing by tools" in second
    assert all("Likes tea." in call.user and "search words" in call.system for call in lm.engine.calls)
