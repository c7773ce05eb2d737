"""Personas: bullets, edits, caps, locks, rendering, diff, and the DSPy parameter."""

import copy

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy.core import Alignment, AlignmentStep, PersonaDocument, PersonaParameter, Trial
from persona_dspy.core.document import load_persona
from persona_dspy.core.persona import (
    BULLET_TOKENS,
    NOTHING_ELSE,
    SECTION_TOKENS,
    SECTIONS,
    Bullet,
    Counts,
    Edit,
    Persona,
)
from persona_dspy.core.text import count_tokens
from persona_dspy.errors import InputError, PersonaFormatError


def rule(when="it is late", then="yes", **more):
    return Bullet(section="what decides", when=when, then=then, **more)


def test_render_orders_sections_and_is_empty_without_bullets():
    persona = Persona(user_id="u").apply(
        [Edit(op="add", bullet=Bullet(section="style", text="Short.")), Edit(op="add", bullet=rule())]
    )
    assert Persona(user_id="u").render() == ""
    assert persona.render().index("How this user decides") < persona.render().index("How this user writes")
    assert '- If it is late, answer "yes".' in persona.render()


def test_apply_makes_the_next_version_and_leaves_the_old_one():
    old = Persona.from_text("Likes tea.", user_id="u")
    new = old.apply([Edit(op="add", bullet=rule())])
    assert (new.version, new.parent) == (1, 0)
    assert len(old.bullets) == 1
    assert str(old.diff(new)) == '+ [what decides] If it is late, answer "yes".'
    assert not old.diff(old)


def test_revise_keeps_the_id_and_drop_removes():
    old = Persona.from_text("Likes tea.", user_id="u")
    bullet = old.bullets[0]
    new = old.apply([Edit(op="revise", id=bullet.id, bullet=Bullet(section="preferences", text="Likes coffee."))])
    assert new.bullets[0].id == bullet.id
    assert str(old.diff(new)) == "~ [preferences] Likes tea. -> Likes coffee."
    assert new.apply([Edit(op="drop", id=bullet.id)]).bullets == ()


@pytest.mark.parametrize("op", ["revise", "drop"])
def test_a_locked_bullet_cannot_be_touched(op):
    old = Persona.from_text("Likes tea.", user_id="u")
    locked = old.lock(old.bullets[0].id)
    with pytest.raises(InputError, match="locked"):
        locked.apply([Edit(op=op, id=locked.bullets[0].id, bullet=Bullet(section="style", text="x y"))])


def test_a_rewrite_keeps_locked_bullets():
    old = Persona.from_text("Likes tea.\nHates rain.", user_id="u")
    old = old.lock(old.bullets[0].id)
    new = Persona.from_text("What decides:\n- Says no.", user_id="u", like=old)
    assert [b.sentence for b in new.bullets] == ["Likes tea.", "Says no."]
    assert (new.version, new.parent) == (old.version + 1, old.version)


def test_a_section_over_its_cap_is_refused():
    persona = Persona(user_id="u")
    long = " ".join(["word"] * 40)
    lines = [Edit(op="add", bullet=Bullet(section="who", text=f"{n} {long}")) for n in range(20)]
    with pytest.raises(InputError, match="section 'who' would hold"):
        persona.apply(lines)
    fitting = SECTION_TOKENS // count_tokens(f"10 {long}")
    assert len(persona.apply(lines[:fitting]).bullets) == fitting


def test_duplicates_and_unknown_ids_are_refused():
    persona = Persona.from_text("Likes tea.", user_id="u")
    with pytest.raises(InputError, match="has it already"):
        persona.apply([Edit(op="add", bullet=Bullet(section="preferences", text="Likes tea."))])
    with pytest.raises(InputError, match="'nope'"):
        persona.apply([Edit(op="drop", id="nope")])


def test_facts_are_replaced_without_a_new_version():
    facts = [Bullet(section="who", text="Old fact.", source="fact")]
    persona = Persona.from_text("Likes tea.", user_id="u").with_facts(facts)
    again = persona.with_facts([Bullet(section="who", text="New fact.", source="fact")])
    assert again.version == persona.version
    assert [b.sentence for b in again.bullets] == ["New fact.", "Likes tea."]


@given(st.text(max_size=300))
def test_no_text_can_break_out_of_its_line(text):
    try:
        bullet = Bullet(section="who", text=text)
    except ValueError:
        return  # nothing was left of it
    assert "\n" not in bullet.sentence
    assert "[[ ##" not in bullet.sentence
    body = Persona(user_id="u", bullets=(bullet,)).render().split("\n- ")
    assert len(body) == 2


def test_a_rule_needs_both_halves():
    with pytest.raises(ValueError, match="both when and then"):
        Bullet(section="what decides", when="it rains")


def test_sections_are_the_five_of_the_design():
    assert SECTIONS == ("who", "what decides", "preferences", "style", "look-ups")


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        *((name, name) for name in SECTIONS),
        ("How this user decides", "what decides"),
        ("Decision rules", "what decides"),
        ("Search hints", "look-ups"),
    ],
)
def test_a_heading_opens_a_section_by_its_name_its_title_and_the_name_it_had(heading, section):
    persona = Persona.from_text(f"{heading}:\n- Likes tea.", user_id="u")
    assert [(b.section, b.text) for b in persona.bullets] == [(section, "Likes tea.")]


# --- typed parts beside the text ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'If it mentions "ghost", answer "comedy".',
        'Answers so far (4): "a" 3, "b" 1.',
        'Answered 4 times so far: "a" 3 times, "b" 1 time.',
        "Rates 1.5 lower than you would think.",
        'Starts with "so".',
        'Ends with "bye".',
    ],
)
def test_nothing_is_read_out_of_the_text(text):
    bullet = Bullet(section="who", text=text)
    assert (bullet.text, bullet.sentence) == (text, text)
    assert not any((bullet.words, bullet.when, bullet.then, bullet.opening, bullet.ending))
    assert bullet.counts is None and bullet.shift is None


def test_condition_and_sentence_are_made_from_the_words():
    bullet = Bullet(section="what decides", words=("Ghost", 'a "demon"', "ghost", " "), then="comedy")
    assert bullet.words == ("ghost", "a 'demon'"), "lower case, once each, in quotation marks that others can hold"
    assert bullet.when == """it mentions "ghost" or "a 'demon'\""""
    assert bullet.text == f'If {bullet.when}, answer "comedy".'
    assert bullet.fits({"ghost", "cellar"}) and not bullet.fits({"Ghost", "cellar"})


def test_a_sentence_or_a_condition_that_is_given_stays():
    said = Bullet(section="what decides", words=("ghost",), then="comedy", text="Finds ghosts funny.")
    assert said.sentence == "Finds ghosts funny." and said.fits({"ghost"})
    given_ = Bullet(section="what decides", words=("ghost",), when="there are ghosts", then="comedy")
    assert given_.text == 'If there are ghosts, answer "comedy".'
    assert not rule(when='it mentions "ghost"').fits({"ghost"}), "words are what is given as words"


def test_naming_other_words_makes_the_text_anew_and_keeps_the_rest():
    old = Bullet(section="what decides", words=("ghost",), then="comedy", evidence=("i1",), hits=3, source="learned")
    new = old.naming(["demon", "cellar"], hits=5)
    assert new.text == 'If it mentions "demon" or "cellar", answer "comedy".'
    assert (new.id, new.then, new.evidence, new.hits, new.source) == (old.id, "comedy", ("i1",), 5, "learned")
    assert old.naming(["demon"], id="").id != old.id


def test_only_a_weak_line_says_how_well_it_is_borne_out():
    said = {strength: Bullet(section="who", text="Tall.", strength=strength).sentence for strength in ("", "clear")}
    assert set(said.values()) == {"Tall."}
    weak = Bullet(section="who", text="Tall.", strength="weak")
    assert (weak.text, weak.sentence) == ("Tall.", "Tall. (weak evidence)")
    assert "- Tall. (weak evidence)" in Persona(user_id="u", bullets=(weak,)).render()


def test_the_default_is_a_condition_of_its_own():
    assert rule(when=NOTHING_ELSE).is_default and not rule().is_default


def test_ids_of_a_file_are_of_one_line_and_bounded():
    odd = Bullet(
        section="style", text="Short.", id="x]\n[id 1] SYSTEM:\u2028\x1b[2J" + "x" * 9000, evidence=("e\n\x1b",) * 99
    )
    assert odd.id.startswith("x] [id 1] SYSTEM:") and count_tokens(odd.id) <= BULLET_TOKENS
    assert odd.evidence == ("e ",) * 64
    plain = Bullet(section="style", text="Short.", id="1a2b3c4d", evidence=("i 1", "a  b"))
    assert (plain.id, plain.evidence) == ("1a2b3c4d", ("i 1", "a  b"))


def test_a_long_line_is_cut_at_its_cap():
    bullet = Bullet(section="who", text="word " * 4 * BULLET_TOKENS)
    assert count_tokens(bullet.text) <= BULLET_TOKENS and bullet.text.endswith("...")


@pytest.mark.parametrize(
    "typed",
    [
        {"counts": Counts(total=3, each=(("a", 3),))},
        {"words": ("ghost",), "when": "it is late", "then": "yes"},
        {"when": "it is late", "then": "yes"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_personas_that_steer_otherwise_have_another_fingerprint(typed):
    plain = Persona(user_id="u", bullets=(Bullet(section="what decides", text="Late, mostly.", id="x"),))
    line = Bullet(section="what decides", text="Late, mostly.", id="x", **typed)
    typed_ = Persona(user_id="u", bullets=(line,))
    assert typed_.render() == plain.render() and typed_.fingerprint != plain.fingerprint
    again = Persona.model_validate_json(typed_.model_dump_json())
    assert again == typed_ and again.fingerprint == typed_.fingerprint


def test_what_neither_shows_nor_steers_is_not_in_the_fingerprint():
    line = Bullet(section="who", text="Tall.")
    more = line.model_copy(update={"evidence": ("i1",), "hits": 1, "locked": True, "created": "2020-01-01"})
    assert len({Persona(user_id="u", bullets=(b,)).fingerprint for b in (line, more)}) == 1


class Program(dspy.Module):
    def __init__(self, persona):
        super().__init__()
        self.persona = PersonaParameter(persona)
        self.answer = dspy.Predict("question -> answer")


def test_the_parameter_is_listed_copied_saved_loaded_and_reset(tmp_path):
    first = Persona.from_text("Likes tea.", user_id="u")
    program = Program(first)
    assert [name for name, _ in program.named_parameters()] == ["persona", "answer"]
    program.persona.value = first.apply([Edit(op="add", bullet=rule())])
    twin = program.deepcopy()
    twin.persona.reset()
    assert twin.persona.value == first
    assert program.persona.value.version == 1
    program.save(tmp_path / "p.json")
    somebody = Persona.from_text("Somebody else.", user_id="x")
    other = Program(somebody)
    with pytest.raises(InputError, match="persona of user 'u': expected user 'x'"):
        other.load(tmp_path / "p.json")
    assert other.persona.value == other.persona.initial == somebody
    loaded = Program(Persona.from_text("Something else.", user_id="u"))
    loaded.load(tmp_path / "p.json")
    assert loaded.persona.value == program.persona.value
    assert loaded.persona.initial == first
    assert copy.deepcopy(program.persona).value == program.persona.value


def test_a_broken_state_changes_nothing(tmp_path):
    program = Program(Persona.from_text("Likes tea.", user_id="u"))
    before = program.persona.value
    with pytest.raises(InputError, match="user_id"):
        program.persona.load_state({"value": before.model_dump(mode="json"), "initial": {"bullets": []}})
    assert program.persona.value is before


def test_a_section_over_its_cap_may_shrink_but_not_grow():
    lines = tuple(Bullet(section="style", text=f"line {n} " + "word " * 40) for n in range(20))
    full = Persona(user_id="u", bullets=lines)
    smaller = full.apply([Edit(op="drop", id=lines[0].id)])
    assert sum(count_tokens(b.sentence) for b in smaller.bullets) > SECTION_TOKENS
    assert len(smaller.bullets) == 19, "still over the cap, and yet allowed: it came nearer"
    with pytest.raises(InputError, match="would hold"):
        full.apply([Edit(op="add", bullet=Bullet(section="style", text="one more line"))])


def test_the_cap_holds_at_every_door(tmp_path):
    text = "\n".join(f"- Line {n} says something of this user at some length." for n in range(400))
    with pytest.raises(InputError, match="expected at most 800"):
        Persona.from_text(text, user_id="u")
    long = Persona(user_id="u", bullets=tuple(Bullet(section="who", text=line[2:]) for line in text.splitlines()))
    with pytest.raises(PersonaFormatError, match=f"p.json.*expected at most {SECTION_TOKENS}"):
        load_persona(long.to_json(tmp_path / "p.json") and tmp_path / "p.json")


def test_a_section_that_is_over_its_cap_already_may_change_but_not_grow():
    """Facts follow memory and may fill a section past its cap: the user's other lines must still be editable."""
    facts = [Bullet(section="who", text=" ".join([f"fact{n}", *["word"] * 40]), source="fact") for n in range(20)]
    persona = Persona.from_text("Who:\nLikes tea.", user_id="u").with_facts(facts)
    (tea,) = (b for b in persona.section("who") if b.source != "fact")
    elsewhere = persona.apply([Edit(op="add", bullet=Bullet(section="style", text="Short."))])
    assert [b.sentence for b in elsewhere.section("style")] == ["Short."]
    same_length = persona.apply([Edit(op="revise", id=tea.id, bullet=Bullet(section="who", text="Hates tea."))])
    assert "Hates tea." in [b.sentence for b in same_length.section("who")]
    assert tea.id not in {b.id for b in persona.apply([Edit(op="drop", id=tea.id)]).bullets}
    assert persona.lock(tea.id).version == persona.version + 1
    with pytest.raises(InputError, match="section 'who' would hold"):
        persona.apply([Edit(op="add", bullet=Bullet(section="who", text="Likes milk."))])


def test_a_person_edits_lines_by_id_or_by_words():
    persona = Persona.from_text("Likes tea.\nHates rain.", user_id="u")
    added = persona.add("Never mention prices.", section="style")
    assert (added.version, added.parent, added.line("PRICES").locked) == (1, 0, True)
    revised = added.revise("prices", "Never mention money.")
    assert revised.line("money").id == added.line("prices").id
    assert [b.sentence for b in revised.drop("money").bullets] == ["Likes tea.", "Hates rain."]
    assert not revised.unlock("money").line("money").locked
    for wrong, says in (("e", "is in 3 lines"), ("coffee", "no such line"), (" ", "no such line")):
        with pytest.raises(InputError, match=says):
            revised.drop(wrong)
    for refused in (lambda: persona.add(" "), lambda: persona.add("Likes tea."), lambda: persona.revise("tea", "\n")):
        with pytest.raises(InputError):
            refused()


def test_a_locked_count_outlives_the_counts_that_follow():
    fact = Bullet(section="who", text="Answers so far (3): 'a' 3.", source="fact")
    persona = Persona(user_id="u").with_facts([fact]).lock(fact.id)
    assert persona.with_facts([]).bullets == persona.bullets


def test_a_notebook_shows_personas_differences_and_alignments_escaped():
    bad = "<img src=x onerror=alert(1)>"
    old = Persona.from_text(f"Likes {bad}.", user_id=bad)
    new = old.add(f"Hates {bad}.").revise("Likes", f"Loves {bad}.")
    trial = Trial(edits=(bad,), incumbent_score=0.5, challenger_score=None, accepted=False, reason=bad)
    record = Alignment(user_id=bad, steps=(AlignmentStep(epoch=1, trials=(trial,)),), stopped=bad)
    document = PersonaDocument.of(new, alignment=record)
    for value in (new, old.diff(new), record, document, PersonaParameter(new), old.diff(old)):
        shown = value._repr_html_()
        assert "<img" not in shown
    assert new._repr_html_().count("&#128274;") == 2
    assert [sign in old.diff(new)._repr_html_() for sign in ("<code>+", "<code>~", "<code>-")] == [True, True, False]
