"""Proposers: what stands for election, and what is refused before a score is spent."""

from dataclasses import replace
from typing import Literal

import dspy
import pytest

from optimizers import PersonaAlignment
from optimizers.evidence import Evidence, Tried
from optimizers.loss import Simulated
from optimizers.proposals import EditProposer, FromPast, RewriteProposer, built
from persona_dspy.agent import PersonaAgent
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.interactions import Feedback, Interaction
from persona_dspy.core.persona import SECTION_TOKENS, Bullet, Counts, Edit, Persona
from persona_dspy.core.text import count_tokens
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
    bullet = Bullet(section="what decides", words=tuple(words), then=then, source="learned", **values)
    return Edit(op="add", bullet=bullet)


GHOSTS = past(
    ("a ghost tale", "comedy"), ("haunted ghost", "comedy"), ("a ghost town", "comedy"), ("some kiss", "romance")
)


def mistake(gold="comedy", text="Finds ghosts funny."):
    shown = wrong("a ghost in the cellar", "horror", gold)
    return {"simulated": [shown], "feedback": [Feedback(interaction_id="s0", score=0.0, text=text)]}


def test_what_the_latest_say_outweighs_what_was_before():
    before = [("a ghost tale", "horror")] * 3 + [("a ghost town", "comedy")] * 2
    items = [Interaction(user_id="u", query=q, response=r, id=f"x{n}") for n, (q, r) in enumerate(before)]
    assert built(EMPTY, [rule(["ghost"], "comedy")], evidence(past=items), 3)
    assert not built(EMPTY, [rule(["ghost"], "comedy")], evidence(past=items[::-1]), 3)


def test_a_challenger_that_was_rejected_does_not_stand_again():
    edit, other = rule(["ghost"], "comedy"), rule(["kiss"], "romance")
    seen = evidence(past=GHOSTS, tried=[Tried(edits=(edit.sentence,), outcome="worse")])
    assert built(EMPTY, [edit], seen, 3) is None
    both = built(EMPTY, [edit, other], seen, 3)
    assert both
    assert both.edits == (other.sentence,)


def test_locked_bullets_and_gate_answers_are_out_of_reach():
    locked = Persona(user_id="u", bullets=(rule(["ghost"], "horror").bullet.model_copy(update={"locked": True}),))
    made = built(locked, [rule(["ghost"], "comedy")], evidence(past=GHOSTS), 3)
    assert locked.bullets[0] in made.persona.bullets
    assert built(locked, [Edit(op="drop", id=locked.bullets[0].id)], evidence(past=GHOSTS), 3) is None
    copied = Edit(op="add", bullet=Bullet(section="style", text="Writes: the cat sat down."))
    assert built(EMPTY, [copied], evidence(kind=TEXT, secrets=frozenset({"the cat sat"})), 3) is None


def test_a_full_section_takes_no_more():
    lines = [Bullet(section="style", text=f"{n} " + "word " * 60, source="learned") for n in range(40)]
    made = built(EMPTY, [Edit(op="add", bullet=line) for line in lines], evidence(), 40)
    used = sum(count_tokens(b.sentence) for b in made.persona.bullets)
    assert 0 < len(made.edits) < 40
    assert SECTION_TOKENS - count_tokens(lines[-1].sentence) < used <= SECTION_TOKENS


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


def test_a_rewrite_replaces_everything_but_locked_bullets():
    lines = (Bullet(section="style", text="Keep me.", locked=True), Bullet(section="style", text="Drop me."))
    lm = FakeLM(lambda prompt: {"new_notes": "Style:\n- Writes shortly."} if "new_notes" in prompt.outputs else None)
    with dspy.context(lm=lm):
        (made,) = RewriteProposer()(Persona(user_id="u", bullets=lines), evidence(**mistake()))
    assert [b.text for b in made.persona.bullets] == ["Keep me.", "Writes shortly."]


def test_a_rewrite_neither_writes_nor_loses_what_is_counted():
    counted = Bullet(section="who", text='Answers so far (4): "comedy" 4.', source="fact")
    said = 'Who:\n- Answers so far (4): "comedy" 4.\nWhat to look up for this user:\n- Call recall_history first.'
    lm = FakeLM(lambda prompt: {"new_notes": said} if "new_notes" in prompt.outputs else None)
    with dspy.context(lm=lm):
        (made,) = RewriteProposer()(Persona(user_id="u", bullets=(counted,)), evidence(**mistake()))
    lines = [(b.section, b.source, b.text) for b in made.persona.bullets]
    assert lines == [("who", "fact", counted.text), ("look-ups", "learned", "Call recall_history first.")]
    assert (
        counted.text in lm.engine.calls[0].fields["counted"] and counted.text not in lm.engine.calls[0].fields["notes"]
    )


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


# --- what a capable LM writes -------------------------------------------------------------------------------------

FACT = Bullet(section="who", text="Counted.", source="fact", counts=Counts(total=4, each=(("comedy", 4),)))
LOCKED = Bullet(section="preferences", text="Wants no spoilers.", locked=True)
GIVEN = Bullet(section="preferences", text="Likes tea.")
OWN = Bullet(section="what decides", text="Finds ghosts scary.", source="learned", strength="clear", hits=2)
NOTES = Persona(user_id="u", bullets=(FACT, OWN, LOCKED, GIVEN))


def change(op="add", line="", text="Finds ghosts funny.", section="what decides", strength="clear", attempts=(1,)):
    values = {"op": op, "line": line, "section": section, "text": text, "strength": strength}
    return values | {"attempts": list(attempts)}


def proposed(*edits, persona=NOTES, proposer=None, **values):
    """The challengers of a capable LM that writes ``edits``, and what it was asked."""
    lm = FakeLM(lambda prompt: {"edits": list(edits)} if "edits" in prompt.outputs else None, small=False)
    with dspy.context(lm=lm):
        made = (proposer or EditProposer())(persona, evidence(**{"past": GHOSTS, **mistake(), **values}))
    return made, lm.engine.calls


def test_a_line_is_added_revised_and_dropped_by_its_id():
    revision = change("revise", OWN.id, "Finds ghosts funny, where nobody dies.")
    addition = change("add", text="Loves kisses.", section="preferences")
    (made,), _ = proposed(revision, addition)
    by_text = {b.text: b for b in made.persona.bullets}
    assert by_text["Finds ghosts funny, where nobody dies."].id == OWN.id
    assert by_text["Loves kisses."].source == "learned"
    assert {FACT.text, LOCKED.text, GIVEN.text} <= by_text.keys() and OWN.text not in by_text
    assert made.persona.version == NOTES.version + 1 and made.from_mistakes


@pytest.mark.parametrize("form", ["{}", "id {}", "[{}]", "[id {}]"])
def test_a_line_is_found_however_the_lm_writes_its_id(form):
    made, _ = proposed(change("drop", form.format(OWN.id), ""))
    assert [OWN.id in {b.id for b in c.persona.bullets} for c in made] == [False]


@pytest.mark.parametrize("line", [FACT.id, LOCKED.id, GIVEN.id, "none", ""])
@pytest.mark.parametrize("op", ["revise", "drop"])
def test_lines_that_are_not_an_optimizers_are_out_of_reach(op, line):
    made, _ = proposed(change(op, line))
    assert made == []


@pytest.mark.parametrize("edit", [change(text=""), change(text=" a "), change(op="revise", line=OWN.id, text="")])
def test_an_edit_that_says_nothing_is_none(edit):
    assert proposed(edit)[0] == []
    assert proposed()[0] == []


def test_a_line_rests_on_the_attempts_that_the_lm_names():
    """Numbers that no attempt has are dropped."""
    shown = [wrong("a ghost in the cellar", "horror", "comedy", n) for n in range(3)]
    told = [Feedback(interaction_id=f"s{n}", score=0.0, text="Finds ghosts funny.") for n in range(3)]
    (made,), _ = proposed(change(attempts=(1, 3, 9, 0)), simulated=shown, feedback=told)
    line = next(b for b in made.persona.bullets if b.text == "Finds ghosts funny.")
    assert {"s0", "s2"} <= set(line.evidence) and line.strength == "clear"
    assert set(line.evidence) <= {"s0", "s1", "s2"}


def test_an_answer_that_cannot_be_read_proposes_nothing():
    lm = FakeLM(lambda prompt: "no json", small=False)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        assert EditProposer()(NOTES, evidence(past=GHOSTS, **mistake())) == []


def test_a_capable_lm_is_not_asked_where_nothing_is_to_be_learned():
    made, calls = proposed(change(), **mistake(text=""))
    assert (made, calls) == ([], [])


def test_it_reads_the_task_the_lines_with_what_they_rest_on_and_what_was_tried():
    tried = [
        Tried(edits=("add Likes puns.",), outcome="worse"),
        Tried(edits=("add Likes rain.",), outcome="no difference"),
        Tried(edits=("add Likes snow.",), outcome="untested"),
    ]
    right = Simulated(interaction_id="ok", query="some kiss", answer="romance", gold="romance", score=1.0)
    shown = mistake()
    shown["simulated"].append(right)
    _, (call,) = proposed(asked="Tag the film.", tried=tried, recurring=[("Finds ghosts funny.", 3)], **shown)
    notes, attempts, before = (call.fields[n] for n in ("notes", "attempts", "tried_before"))
    assert call.fields["task"] == "Tag the film."
    assert f"[id {OWN.id}; clear, shown by 2] {OWN.text}" in notes
    assert f"[counted] {FACT.text}" in notes and f"[fixed by the person] {LOCKED.text}" in notes
    assert FACT.id not in notes and LOCKED.id not in notes and GIVEN.id not in notes
    assert "attempt 1" in attempts and "what it shows: Finds ghosts funny." in attempts
    assert "attempt 2" in attempts and "the same as the user's own" in attempts
    assert "came up in 3 steps: Finds ghosts funny." in attempts
    assert "made answers worse on balance (do not repeat): add Likes puns." in before
    assert "made no difference to the answers it was tried on: add Likes rain." in before
    assert "mended some answers and broke others: add Likes snow." in before


@pytest.mark.parametrize(("outcome", "stands"), [("worse", False), ("no difference", True), ("untested", True)])
def test_only_what_made_answers_worse_never_stands_again(outcome, stands):
    made, _ = proposed(change(), tried=[Tried(edits=("add Finds ghosts funny.",), outcome=outcome)])
    assert bool(made) is stands


def test_no_line_holds_words_of_an_answer_that_judges():
    made, _ = proposed(change(text="Writes: the cat sat down."), secrets=frozenset({"the cat sat down"}))
    assert made == []


def test_a_phrase_that_came_back_in_the_past_may_be_quoted():
    once, twice = past(("q1", "Fixed. Hope that helps you.")), past(*[(q, "Fixed. Hope that helps you.") for q in "ab"])
    line, secrets = change(text="Ends with: hope that helps you."), frozenset({"No. Hope that helps you!"})
    assert proposed(line, past=once, secrets=secrets)[0] == []
    assert len(proposed(line, past=twice, secrets=secrets)[0]) == 1


def test_single_edits_stand_beside_the_whole_where_asked_for():
    edits = [change(), change(text="Loves kisses.", section="preferences"), change(text="Hates rain.", section="who")]
    made, _ = proposed(*edits, proposer=EditProposer(challengers=3))
    assert [len(c.edits) for c in made] == [3, 1, 1] and all(c.from_mistakes for c in made)
    limited, _ = proposed(*edits, proposer=EditProposer(most=2))
    assert [len(c.edits) for c in limited] == [2]


def portrait(*lines):
    return FakeLM(lambda prompt: {"lines": list(lines)} if "lines" in prompt.outputs else None, small=False)


def test_from_the_past_comes_a_portrait_that_may_stay_where_it_does_no_harm():
    line = {"section": "who", "text": "Laughs at ghosts.", "strength": "strong", "examples": [1, 2]}
    with dspy.context(lm=portrait(line)):
        (made,) = EditProposer().from_past(EMPTY, evidence(past=GHOSTS))
    (bullet,) = made.persona.bullets
    assert (bullet.text, bullet.source, bullet.evidence) == ("Laughs at ghosts.", "summary", ("p0", "p1"))
    assert made.harmless and not made.from_mistakes and made.edits == ("add Laughs at ghosts.",)


def test_whoever_has_learned_lines_gets_no_other_portrait():
    lm = portrait()
    with dspy.context(lm=lm):
        assert EditProposer().from_past(NOTES, evidence(past=GHOSTS)) == []
        assert EditProposer(portrait=None).from_past(EMPTY, evidence(past=GHOSTS)) == []
        assert EditProposer().from_past(EMPTY, evidence(past=GHOSTS[:2])) == [], "too short a past"
    assert not lm.engine.calls
    assert EditProposer().with_counts and not EditProposer(portrait=None).with_counts


def test_who_has_something_to_say_before_anything_was_simulated():
    assert isinstance(EditProposer(), FromPast)
    assert not isinstance(RewriteProposer(), FromPast)


@pytest.mark.parametrize("name", ["most", "challengers"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(InputError, match=f"{name}=0"):
        EditProposer(**{name: 0})


def test_a_portrait_is_written_anew_when_much_has_come_in_since():
    user = SyntheticUser(seed=3, kind="drift", changes_at=24)
    lm = rule_following_lm(small=False)

    def aligned(n, persona=None):
        agent = PersonaAgent(user.signature, history=user.interactions(n), persona=persona, recall_k=0)
        asked = len(lm.engine.calls)
        with dspy.context(lm=lm):
            found = PersonaAlignment(progress=False).compile(agent, trainset=agent.examples()).persona.value
        return found, sum("lines" in call.outputs for call in lm.engine.calls[asked:])

    first, portraits = aligned(24)
    assert portraits == 1 and any(b.source == "summary" for b in first.bullets)
    _, portraits = aligned(26, first)
    assert portraits == 0, "hardly anything is new"
    late, portraits = aligned(60, first)
    assert portraits == 1
    old = {b.id for b in first.bullets if b.source == "summary"}
    assert not old <= {b.id for b in late.bullets}, "what was written before the change does not stay whole"
