"""Proposers: what stands for election, and what is refused before a score is spent."""

from dataclasses import replace
from typing import Literal

import dspy
import pytest

from optimizers.evidence import Evidence
from optimizers.loss import Simulated
from optimizers.proposals import EditProposer, FromPast, RewriteProposer, built
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.interactions import Feedback, Interaction
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.errors import InputError
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm

KIND = ResponseKind.of(Literal["horror", "comedy", "romance"])
TEXT = ResponseKind.of(str)
EMPTY = Persona(user_id="u")


def past(*pairs):
    return [Interaction(user_id="u", query=q, response=r, id=f"p{n}") for n, (q, r) in enumerate(pairs)]


def evidence(**values):
    return Evidence(**{"kind": KIND, "simulated": (), "feedback": (), "past": past(), **values})


def wrong(query, answer, gold, number=0):
    return Simulated(interaction_id=f"s{number}", query=query, answer=answer, gold=gold, score=0.0)


def rule(words, then, **values):
    when = "it mentions " + " or ".join(f'"{w}"' for w in words)
    return Edit(op="add", bullet=Bullet(section="what decides", when=when, then=then, source="learned", **values))


def saying(edits):
    return FakeLM(lambda prompt: {"edits": edits} if "edits" in prompt.outputs else None)


GHOSTS = past(
    ("a ghost tale", "comedy"), ("haunted ghost", "comedy"), ("a ghost town", "comedy"), ("some kiss", "romance")
)


def mistake(gold="comedy", text="Finds ghosts funny."):
    shown = wrong("a ghost in the cellar", "horror", gold)
    return {"simulated": [shown], "feedback": [Feedback(interaction_id="s0", score=0.0, text=text)]}


def test_rules_the_lm_writes_are_typed_and_carry_their_evidence():
    with dspy.context(lm=saying([{"when_the_query": 'mentions "ghost"', "answer": "comedy"}])):
        made = EditProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake()))
    (bullet,) = made[0].persona.bullets
    assert (bullet.then, bullet.words, bullet.source) == ("comedy", ("ghost",), "learned")
    assert (bullet.evidence, bullet.hits) == (("p0", "p1", "p2", "s0"), 4), "not the kiss, nor all that was shown"
    assert made[0].persona.version == 1
    assert made[0].persona.parent == 0


@pytest.mark.parametrize("said", ["no list", [{"when_the_query": 'mentions "ghost"', "answer": "opera"}], [{"x": 1}]])
def test_an_answer_that_is_no_list_of_rules_proposes_nothing(said):
    with dspy.context(lm=saying(said), adapter=dspy.JSONAdapter()):
        assert EditProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake())) == []


@pytest.mark.parametrize(
    "when",
    [
        "a ghost in the cellar",
        "says: a ghost in the cellar!",
        "what it shows: Finds ghosts",
        "the user's own response was",
    ],
)
def test_a_condition_that_repeats_what_was_shown_is_no_rule(when):
    with dspy.context(lm=saying([{"when_the_query": when, "answer": "comedy"}])):
        assert EditProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake())) == []


@pytest.mark.parametrize(
    "when", ["is about a ghost", 'mentions "ghost" or "cellar"', "tells of ghosts that live in a cellar"]
)
def test_a_condition_in_words_of_its_own_is(when):
    with dspy.context(lm=saying([{"when_the_query": when, "answer": "comedy"}])):
        (made,) = EditProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake()))
    assert when in made.persona.bullets[0].when


def test_rules_answer_only_what_this_user_has_answered():
    lm = saying([])
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        EditProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake()))
        EditProposer(mine=False)(EMPTY, evidence(**mistake(gold="horror")))
    assert ["horror" in str(call.schema) for call in lm.engine.calls] == [False, True]
    assert all("comedy" in str(call.schema) for call in lm.engine.calls[:1])


def test_without_feedback_the_lm_is_not_asked():
    lm = saying([])
    with dspy.context(lm=lm):
        EditProposer()(EMPTY, evidence(past=GHOSTS, **mistake(text="")))
    assert not lm.engine.calls


def test_a_rule_that_the_past_contradicts_is_refused():
    said = [{"when_the_query": 'mentions "ghost"', "answer": "romance"}]
    with dspy.context(lm=saying(said)):
        assert EditProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake(gold="romance"))) == []


def test_what_the_latest_say_outweighs_what_was_before():
    before = [("a ghost tale", "horror")] * 3 + [("a ghost town", "comedy")] * 2
    items = [Interaction(user_id="u", query=q, response=r, id=f"x{n}") for n, (q, r) in enumerate(before)]
    assert built(EMPTY, [rule(["ghost"], "comedy")], evidence(past=items), 3)
    assert not built(EMPTY, [rule(["ghost"], "comedy")], evidence(past=items[::-1]), 3)


def test_a_rule_that_only_the_last_response_bears_out_stands_apart_and_last():
    """An odd response, or the first after a change: what is held out comes later and tells."""
    items = [*GHOSTS[:3], Interaction(user_id="u", query="a ghost again", response="horror", id="turn")]
    said = [{"when_the_query": f'mentions "{w}"', "answer": t} for w, t in (("ghost", "horror"), ("kiss", "comedy"))]
    with dspy.context(lm=saying(said)):
        made = EditProposer(mine=False)(EMPTY, evidence(past=items, **mistake(gold="horror")))
    assert [[b.words for b in c.persona.bullets] for c in made] == [[("kiss",)], [("ghost",), ("kiss",)]]
    assert made[1].persona.bullets[0].evidence == ("turn", "s0")


def test_a_challenger_that_was_rejected_does_not_stand_again():
    edit, other = rule(["ghost"], "comedy"), rule(["kiss"], "romance")
    seen = evidence(past=GHOSTS, rejected=frozenset({frozenset({edit.sentence})}))
    assert built(EMPTY, [edit], seen, 3) is None
    both = built(EMPTY, [edit, other], seen, 3)
    assert both
    assert both.edits == (other.sentence,)


def test_the_lm_is_shown_what_failed_and_what_keeps_coming_up():
    lm = saying([])
    seen = evidence(
        past=GHOSTS,
        rejected=frozenset({frozenset({"add a thing"})}),
        recurring=[("Finds ghosts funny.", 3)],
        **mistake(),
    )
    with dspy.context(lm=lm):
        EditProposer(mine=False)(EMPTY, seen)
    fields = lm.engine.calls[0].fields
    assert "add a thing" in fields["failed_before"]
    assert "came up in 3 steps: Finds ghosts funny." in fields["mistakes"]


def test_locked_bullets_and_gate_answers_are_out_of_reach():
    locked = Persona(user_id="u", bullets=(rule(["ghost"], "horror").bullet.model_copy(update={"locked": True}),))
    made = built(locked, [rule(["ghost"], "comedy")], evidence(past=GHOSTS), 3)
    assert locked.bullets[0] in made.persona.bullets
    assert built(locked, [Edit(op="drop", id=locked.bullets[0].id)], evidence(past=GHOSTS), 3) is None
    copied = Edit(op="add", bullet=Bullet(section="style", text="Writes: the cat sat down."))
    assert built(EMPTY, [copied], evidence(kind=TEXT, secrets=frozenset({"the cat sat"})), 3) is None


def test_a_full_section_takes_no_more():
    edits = [
        rule([f"{'long' * 10}{n:02d}".translate({48 + d: 97 + d for d in range(10)})], "comedy") for n in range(40)
    ]
    made = built(EMPTY, edits, evidence(), 40)
    assert 0 < len(made.edits) < 40


def test_riders_stand_beside_the_next_and_then_it_stands_alone():
    rider = rule(["kiss"], "romance")
    said = [{"when_the_query": 'mentions "ghost"', "answer": "comedy"}]
    refused = frozenset({frozenset({rider.sentence})})
    with dspy.context(lm=saying(said)):
        made = EditProposer(mine=False)(EMPTY, evidence(past=GHOSTS, riders=(rider,), rejected=refused, **mistake()))
    assert [len(c.edits) for c in made] == [2, 1]


def test_single_edits_stand_too_where_more_challengers_are_asked_for():
    said = [{"when_the_query": f'mentions "{w}"', "answer": t} for w, t in (("ghost", "comedy"), ("kiss", "romance"))]
    with dspy.context(lm=saying(said)):
        made = EditProposer(mine=False, challengers=3)(EMPTY, evidence(past=GHOSTS, **mistake()))
    assert [len(c.edits) for c in made] == [2, 1, 1]


def test_from_the_past_one_call_covers_what_was_never_simulated():
    user, lm = SyntheticUser(seed=2), rule_following_lm()
    items = user.interactions(30)
    kind = ResponseKind.of(user.signature.output_fields["tag"].annotation)
    with dspy.context(lm=lm):
        made = EditProposer().from_past(EMPTY, evidence(kind=kind, past=items))
    assert len(lm.engine.calls) == 1
    rules = made[0].persona.section("what decides")
    assert all(user.preference[topic] in {r.then for r in rules} for topic in user.preference)
    assert isinstance(EditProposer(), FromPast)
    assert not isinstance(RewriteProposer(), FromPast)


def test_mining_alone_asks_nobody():
    balanced = past(*[(f"a ghost {w}", "comedy") for w in "abc"], *[(f"a kiss {w}", "romance") for w in "abcd"])
    balanced += past(*[(f"a town {w}", "horror") for w in "ab"])
    lm = FakeLM()
    with dspy.context(lm=lm):
        made = EditProposer(write=False).from_past(EMPTY, evidence(past=balanced))
    assert not lm.engine.calls
    assert 'add If it mentions "kiss", answer "romance".' in made[0].edits


def test_words_that_join_or_leave_a_rule_take_their_evidence_along():
    kisses = [Interaction(user_id="u", query=f"a kiss {n}", response="comedy", id=f"k{n}") for n in range(2)]
    seen = evidence(past=[*GHOSTS[:3], *kisses])
    persona = built(EMPTY, [rule(["ghost"], "comedy")], seen, 3).persona
    assert persona.bullets[0].evidence == ("p0", "p1", "p2")
    joined = built(persona, [rule(["kiss"], "comedy")], seen, 3).persona
    assert (joined.bullets[0].evidence, joined.bullets[0].hits) == (("p0", "p1", "p2", "k0", "k1"), 5)
    moved = [*kisses, *(replace(i, response="horror") for i in GHOSTS[:3])]
    left = built(joined, [rule(["ghost"], "horror")], evidence(past=moved), 3).persona
    assert [(b.then, b.evidence) for b in left.bullets] == [("comedy", ("k0", "k1")), ("horror", ("p0", "p1", "p2"))]


def test_a_rating_is_written_as_the_user_writes_it():
    ratings = ResponseKind.of(int, ["1", "5"])
    assert not ratings.labels
    with dspy.context(lm=saying([{"when_the_query": 'mentions "ghost"', "answer": 5}])):
        items = [replace(i, response="5") for i in GHOSTS]
        made = EditProposer(mine=False)(EMPTY, evidence(kind=ratings, past=items, **mistake(gold="5")))
    assert made[0].persona.bullets[0].then == "5"


def test_a_rewrite_replaces_everything_but_locked_bullets():
    lines = (Bullet(section="style", text="Keep me.", locked=True), Bullet(section="style", text="Drop me."))
    lm = FakeLM(lambda prompt: {"new_notes": "Style:\n- Writes shortly."} if "new_notes" in prompt.outputs else None)
    with dspy.context(lm=lm):
        (made,) = RewriteProposer()(Persona(user_id="u", bullets=lines), evidence(**mistake()))
    assert [b.text for b in made.persona.bullets] == ["Keep me.", "Writes shortly."]


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_rewrite_is_refused(text):
    lm = FakeLM(lambda prompt: {"new_notes": text} if "new_notes" in prompt.outputs else None)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        assert RewriteProposer()(EMPTY, evidence(**mistake())) == []


def test_the_control_rewrites_without_having_seen_the_feedback():
    lm = FakeLM(lambda prompt: {"new_notes": "Be good."} if "new_notes" in prompt.outputs else None)
    with dspy.context(lm=lm):
        assert RewriteProposer(blind=True)(EMPTY, evidence(**mistake(text="secret feedback")))
    assert "secret feedback" not in lm.engine.calls[0].user


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="challengers=0"):
        EditProposer(challengers=0)
