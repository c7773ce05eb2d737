"""Rules of keywords for small models: what stands for election, and what is refused before a score is spent."""

from dataclasses import replace
from typing import Literal

import dspy
import pytest

from optimizers.evidence import Evidence, Tried
from optimizers.keywords import KeywordProposer
from optimizers.loss import Simulated
from optimizers.proposals import FromPast, RewriteProposer
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.interactions import Feedback, Interaction
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.errors import InputError
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm

KIND = ResponseKind.of(Literal["horror", "comedy", "romance"])
EMPTY = Persona(user_id="u")


def past(*pairs):
    return [Interaction(user_id="u", query=q, response=r, id=f"p{n}") for n, (q, r) in enumerate(pairs)]


def evidence(**values):
    return Evidence(**{"kind": KIND, "simulated": (), "feedback": (), "past": past(), **values})


def wrong(query, answer, gold, number=0):
    return Simulated(interaction_id=f"s{number}", query=query, answer=answer, gold=gold, score=0.0)


def rule(words, then, **values):
    bullet = Bullet(section="what decides", words=tuple(words), then=then, source="learned", **values)
    return Edit(op="add", bullet=bullet)


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
        made = KeywordProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake()))
    (bullet,) = made[0].persona.bullets
    assert (bullet.then, bullet.words, bullet.source) == ("comedy", ("ghost",), "learned")
    assert (bullet.evidence, bullet.hits) == (("p0", "p1", "p2", "s0"), 4), "not the kiss, nor all that was shown"
    assert made[0].persona.version == 1
    assert made[0].persona.parent == 0


@pytest.mark.parametrize("said", ["no list", [{"when_the_query": 'mentions "ghost"', "answer": "opera"}], [{"x": 1}]])
def test_an_answer_that_is_no_list_of_rules_proposes_nothing(said):
    with dspy.context(lm=saying(said), adapter=dspy.JSONAdapter()):
        assert KeywordProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake())) == []


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
        assert KeywordProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake())) == []


@pytest.mark.parametrize(
    "when", ["is about a ghost", 'mentions "ghost" or "cellar"', "tells of ghosts that live in a cellar"]
)
def test_a_condition_in_words_of_its_own_is(when):
    with dspy.context(lm=saying([{"when_the_query": when, "answer": "comedy"}])):
        (made,) = KeywordProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake()))
    assert when in made.persona.bullets[0].when


def test_rules_answer_only_what_this_user_has_answered():
    lm = saying([])
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        KeywordProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake()))
        KeywordProposer(mine=False)(EMPTY, evidence(**mistake(gold="horror")))
    assert ["horror" in str(call.schema) for call in lm.engine.calls] == [False, True]
    assert all("comedy" in str(call.schema) for call in lm.engine.calls[:1])


def test_without_feedback_the_lm_is_not_asked():
    lm = saying([])
    with dspy.context(lm=lm):
        KeywordProposer()(EMPTY, evidence(past=GHOSTS, **mistake(text="")))
    assert not lm.engine.calls


def test_a_rule_that_the_past_contradicts_is_refused():
    said = [{"when_the_query": 'mentions "ghost"', "answer": "romance"}]
    with dspy.context(lm=saying(said)):
        assert KeywordProposer(mine=False)(EMPTY, evidence(past=GHOSTS, **mistake(gold="romance"))) == []


def test_a_rule_that_only_the_last_response_bears_out_stands_apart_and_last():
    """An odd response, or the first after a change: what is held out comes later and tells."""
    items = [*GHOSTS[:3], Interaction(user_id="u", query="a ghost again", response="horror", id="turn")]
    said = [{"when_the_query": f'mentions "{w}"', "answer": t} for w, t in (("ghost", "horror"), ("kiss", "comedy"))]
    with dspy.context(lm=saying(said)):
        made = KeywordProposer(mine=False)(EMPTY, evidence(past=items, **mistake(gold="horror")))
    assert [[b.words for b in c.persona.bullets] for c in made] == [[("kiss",)], [("ghost",), ("kiss",)]]
    assert made[1].persona.bullets[0].evidence == ("turn", "s0")


def test_the_lm_is_shown_what_failed_and_what_keeps_coming_up():
    lm = saying([])
    seen = evidence(
        past=GHOSTS,
        tried=[Tried(edits=("add a thing",), outcome="worse")],
        recurring=[("Finds ghosts funny.", 3)],
        **mistake(),
    )
    with dspy.context(lm=lm):
        KeywordProposer(mine=False)(EMPTY, seen)
    fields = lm.engine.calls[0].fields
    assert "add a thing" in fields["failed_before"]
    assert "came up in 3 steps: Finds ghosts funny." in fields["mistakes"]


def test_riders_stand_beside_the_next_and_then_it_stands_alone():
    rider = rule(["kiss"], "romance")
    said = [{"when_the_query": 'mentions "ghost"', "answer": "comedy"}]
    refused = [Tried(edits=(rider.sentence,), outcome="no difference")]
    with dspy.context(lm=saying(said)):
        made = KeywordProposer(mine=False)(EMPTY, evidence(past=GHOSTS, riders=(rider,), tried=refused, **mistake()))
    assert [len(c.edits) for c in made] == [2, 1]


def test_single_edits_stand_too_where_more_challengers_are_asked_for():
    said = [{"when_the_query": f'mentions "{w}"', "answer": t} for w, t in (("ghost", "comedy"), ("kiss", "romance"))]
    with dspy.context(lm=saying(said)):
        made = KeywordProposer(mine=False, challengers=3)(EMPTY, evidence(past=GHOSTS, **mistake()))
    assert [len(c.edits) for c in made] == [2, 1, 1]


def test_from_the_past_one_call_covers_what_was_never_simulated():
    user, lm = SyntheticUser(seed=2), rule_following_lm()
    items = user.interactions(30)
    kind = ResponseKind.of(user.signature.output_fields["tag"].annotation)
    with dspy.context(lm=lm):
        made = KeywordProposer().from_past(EMPTY, evidence(kind=kind, past=items))
    assert len(lm.engine.calls) == 1
    rules = made[0].persona.section("what decides")
    assert all(user.preference[topic] in {r.then for r in rules} for topic in user.preference)
    assert isinstance(KeywordProposer(), FromPast)
    assert not isinstance(RewriteProposer(), FromPast)


def test_mining_alone_asks_nobody():
    balanced = past(*[(f"a ghost {w}", "comedy") for w in "abc"], *[(f"a kiss {w}", "romance") for w in "abcd"])
    balanced += past(*[(f"a town {w}", "horror") for w in "ab"])
    lm = FakeLM()
    with dspy.context(lm=lm):
        made = KeywordProposer(write=False).from_past(EMPTY, evidence(past=balanced))
    assert not lm.engine.calls
    assert 'add If it mentions "kiss", answer "romance".' in made[0].edits


def test_a_rating_is_written_as_the_user_writes_it():
    ratings = ResponseKind.of(int, ["1", "5"])
    assert not ratings.labels
    with dspy.context(lm=saying([{"when_the_query": 'mentions "ghost"', "answer": 5}])):
        items = [replace(i, response="5") for i in GHOSTS]
        made = KeywordProposer(mine=False)(EMPTY, evidence(kind=ratings, past=items, **mistake(gold="5")))
    assert made[0].persona.bullets[0].then == "5"


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="challengers=0"):
        KeywordProposer(challengers=0)
