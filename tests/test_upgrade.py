"""Lines written as persona/1, read as those of today."""

import json
from zlib import crc32

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy import Bullet, Persona
from persona_dspy.core import PersonaParameter
from persona_dspy.core.document import load_document, load_persona, parse_document
from persona_dspy.core.persona import SCHEMA, SECTIONS, Counts
from persona_dspy.core.upgrade import OLD_SCHEMA, OLD_SECTIONS, upgraded, upgraded_document
from persona_dspy.errors import PersonaFormatError

OPENING = "You answer for one particular user. Answer as this user would."
OLD_ORDER = {
    "who": "Who this user is",
    "preferences": "What this user prefers",
    "decision rules": "How this user decides",
    "style": "How this user writes",
    "search hints": "What to look up for this user",
}


def old_line(section, text="", *, when="", then="", **values):
    """A line as persona/1 wrote it: all of its fields, and no other."""
    line = {
        "section": section, "text": text, "when": when, "then": then, "evidence": ["i1"], "hits": 3, "locked": False,
        "source": "learned", "created": "2026-01-01T00:00:00+00:00", "id": "",
    }  # fmt: skip
    return line | {"id": f"{crc32(repr((section, text, when, then)).encode()):08x}"} | values


def old_sentence(line):
    return f'If {line["when"]}, answer "{line["then"]}".' if line["when"] else line["text"]


def old_prompt(lines):
    parts = [OPENING] if lines else []
    for section, title in OLD_ORDER.items():
        if own := [line for line in lines if line["section"] == section]:
            parts.append(f"{title}:\n" + "\n".join(f"- {old_sentence(line)}" for line in own))
    return "\n\n".join(parts)


def old_document(*lines, **changes):
    """A file as persona/1 exported it."""
    sections = [
        {"name": name, "bullets": own} for name in OLD_ORDER if (own := [b for b in lines if b["section"] == name])
    ]
    fields = {
        "schema": OLD_SCHEMA, "user_id": "u", "version": 4, "parent": 3, "created_at": "2026-01-01T00:00:00+00:00",
        "sections": sections, "system_prompt": old_prompt(lines), "task": "lamp-2m", "model": "local/x",
        "alignment": None,
    }  # fmt: skip
    return json.loads(json.dumps(fields)) | changes


COUNTED = old_line("who", 'Answered 9 times so far: "sci-fi" 6 times, "drama" 1 time.', source="fact")
SHIFTED = old_line("preferences", "Rates 1.5 lower than you would think.")
RULED = old_line("decision rules", when='it mentions "Ghost" or "demon"', then="comedy")
FREE = old_line("decision rules", when="the query is long", then="drama", locked=True, source="given")
STARTING = old_line("style", 'Starts with "well then".')
ENDING = old_line("style", 'Ends with "bye".')
HINT = old_line("search hints", "Looks things up in an encyclopedia.", source="given")
PLAIN = old_line("who", "Likes tea.", source="summary")
ALL = (COUNTED, PLAIN, SHIFTED, RULED, FREE, STARTING, ENDING, HINT)


def typed(persona):
    """The typed parts of each line, by its text."""
    return {
        b.text: {n: v for n in ("words", "counts", "shift", "opening", "ending") if (v := getattr(b, n))}
        for b in persona.bullets
    }


EXPECTED = {
    COUNTED["text"]: {"counts": Counts(total=9, each=(("sci-fi", 6), ("drama", 1)))},
    PLAIN["text"]: {},
    'If it mentions "Ghost" or "demon", answer "comedy".': {"words": ("ghost", "demon")},
    'If the query is long, answer "drama".': {},
    SHIFTED["text"]: {"shift": -1.5},
    STARTING["text"]: {"opening": "well then"},
    ENDING["text"]: {"ending": "bye"},
    HINT["text"]: {},
}


def test_a_file_of_persona_1_loads_with_what_its_sentences_say_typed(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old_document(*ALL)), encoding="utf-8")
    persona, document = load_persona(path), load_document(path)
    assert typed(persona) == EXPECTED
    assert {b.section for b in persona.bullets} == set(SECTIONS)
    assert (persona.user_id, persona.version, persona.parent) == ("u", 4, 3)
    assert (document.schema_, document.task, document.model) == (SCHEMA, "lamp-2m", "local/x")


def test_everything_else_of_a_line_stays():
    persona = parse_document(old_document(*ALL)).persona()
    before = {line["id"]: line for line in ALL}
    assert len(persona.bullets) == len(before)
    for bullet in persona.bullets:
        line = before[bullet.id]
        assert (list(bullet.evidence), bullet.hits, bullet.locked, bullet.source, bullet.created, bullet.when) == (
            tuple(line[n] for n in ("evidence", "hits", "locked", "source", "created", "when"))
        )


def test_a_checkpoint_of_persona_1_loads_as_its_file_does():
    lines = [dict(line) for line in ALL]
    persona = {"user_id": "u", "bullets": lines, "version": 4, "parent": 3, "created_at": "2026-01-01T00:00:00+00:00"}
    parameter = PersonaParameter(Persona.from_text("Before.", user_id="u"))
    parameter.load_state(json.loads(json.dumps({"value": persona, "initial": {**persona, "bullets": lines[:2]}})))
    assert typed(parameter.value) == EXPECTED
    assert len(parameter.initial.bullets) == 2
    filed = parse_document(old_document(*ALL)).persona()
    assert parameter.value.render() == filed.render()
    assert sorted(parameter.value.bullets, key=lambda b: b.id) == sorted(filed.bullets, key=lambda b: b.id)


def test_a_saved_program_of_then_loads_into_one_of_today(tmp_path):
    class Program(dspy.Module):
        def __init__(self):
            super().__init__()
            self.persona = PersonaParameter(Persona.from_text("Before.", user_id="u"))
            self.answer = dspy.Predict("question -> answer")

    file = tmp_path / "program.json"
    Program().save(file)
    state = json.loads(file.read_text())
    state["persona"] = {n: {"user_id": "u", "bullets": [RULED, COUNTED]} for n in ("value", "initial")}
    file.write_text(json.dumps(state))
    loaded = Program()
    loaded.load(file)
    assert loaded.persona.value.bullets[0].words == ("ghost", "demon")
    assert loaded.persona.value.bullets[1].counts == Counts(total=9, each=(("sci-fi", 6), ("drama", 1)))


def test_the_prompt_says_the_same_in_the_order_of_today():
    old = old_document(*ALL)
    document = parse_document(old)
    assert sorted(document.system_prompt.split("\n\n")) == sorted(old["system_prompt"].split("\n\n"))
    assert document.system_prompt == document.persona().render() != old["system_prompt"]
    ordered = ("Who", "How this user decides", "What this user prefers", "How this user writes", "What to look up")
    places = [document.system_prompt.index(title) for title in ordered]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "edit",
    [
        lambda prompt: prompt.replace("encyclopedia", "newspaper"),
        lambda prompt: prompt + "\n- And one line more.",
        lambda prompt: prompt.replace("- Likes tea.\n", ""),
        lambda prompt: prompt.replace("Likes tea.", "Likes tea. "),
        lambda prompt: "",
    ],
    ids=["another word", "a line more", "a line less", "a space", "empty"],
)
def test_a_prompt_that_was_edited_by_hand_is_refused(edit):
    changed = old_document(*ALL)
    changed["system_prompt"] = edit(changed["system_prompt"])
    with pytest.raises(PersonaFormatError, match="say different things"):
        parse_document(changed).persona()


def test_a_line_that_was_edited_by_hand_is_refused():
    changed = old_document(*ALL)
    changed["sections"][0]["bullets"][1]["text"] = "Likes coffee."
    with pytest.raises(PersonaFormatError, match="say different things"):
        parse_document(changed).persona()


def test_what_is_upgraded_is_exported_as_today_and_comes_back_the_same():
    persona = parse_document(old_document(*ALL)).persona()
    written = json.loads(persona.to_json())
    assert written["schema"] == SCHEMA
    again = parse_document(written).persona()
    assert again == persona and again.fingerprint == persona.fingerprint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("user_id"), "user_id"),
        (lambda d: d.update(sections="none"), "sections"),
        (lambda d: d["sections"][0].update(name="hobbies"), "name"),
        (lambda d: d["sections"][0].update(name=["who"]), "name"),
        (lambda d: d["sections"][0].update(bullets=3), "bullets"),
        (lambda d: d["sections"][0]["bullets"].append("a line"), "bullets"),
        (lambda d: d["sections"][0]["bullets"][0].update(extra=1), "extra"),
        (lambda d: d["sections"][0]["bullets"][0].update(hits=-1), "hits"),
        (lambda d: d["sections"][0]["bullets"][0].update(section=["who"]), "section"),
    ],
)
def test_what_is_wrong_in_an_old_file_is_named(change, says):
    changed = old_document(*ALL)
    change(changed)
    with pytest.raises(PersonaFormatError, match=says):
        parse_document(changed, "old.json")


@pytest.mark.parametrize("text", ["Rates .. higher than you would think.", "Rates 1.2.3 lower than you would think"])
def test_a_sentence_that_only_looks_like_a_count_or_a_shift_is_text(text):
    (bullet,) = parse_document(old_document(old_line("who", text))).persona().bullets
    assert bullet.text == text and bullet.shift is None


# --- a line at a time ---------------------------------------------------------------------------------------------

LABELS = st.text("abcdefghijklmnopqrstuvwxyz -[]0123456789", min_size=1, max_size=12).filter(lambda s: s == s.strip())


@given(st.lists(st.tuples(LABELS, st.integers(1, 99)), min_size=1, max_size=4), st.integers(0, 50))
def test_counts_are_read_as_they_were_written(each, others):
    total = sum(times for _, times in each) + others
    said = ", ".join(f'"{label}" {n} time{"s" * (n != 1)}' for label, n in each)
    line = upgraded(old_line("who", f"Answered {total} times so far: {said}."))
    assert Bullet(**line).counts == Counts(total=total, each=tuple(each))


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyzäé", min_size=1, max_size=12), min_size=1, max_size=4, unique=True))
def test_words_are_read_out_of_the_condition(words):
    *most, last = [f'"{word}"' for word in words]
    when = f"it mentions {', '.join(most)} or {last}" if most else f"it mentions {last}"
    bullet = Bullet(**old_line("decision rules", when=when, then="a"))
    assert (bullet.section, bullet.words, bullet.when) == ("what decides", tuple(words), when)
    assert all(bullet.fits({word}) for word in words)


@given(st.integers(1, 40), st.sampled_from(["higher", "lower"]))
def test_a_shift_has_its_sign(tenths, way):
    bullet = Bullet(**old_line("preferences", f"Rates {tenths / 10:g} {way} than you would think."))
    assert bullet.shift == pytest.approx(tenths / 10 * (1 if way == "higher" else -1))


@given(st.sampled_from([*OLD_SECTIONS.items(), *((name, name) for name in SECTIONS)]), st.text(max_size=60))
def test_any_old_line_keeps_its_text_and_is_upgraded_only_once(names, text):
    old, new = names
    once = upgraded(old_line(old, text))
    assert (once["section"], once["text"]) == (new, text)
    assert upgraded(dict(once)) == once


@given(st.text("abc \"'.<>|#[]ABC", min_size=1, max_size=40), st.sampled_from(list(OLD_ORDER)))
def test_any_file_as_it_was_exported_is_accepted(text, section):
    plain = Persona(user_id="u", bullets=(Bullet(section="who", text=f"x {text} y"),)).bullets[0].text
    persona = parse_document(old_document(old_line(section, plain), PLAIN, HINT)).persona()
    assert plain in persona.render()


def test_lines_of_today_are_left_alone():
    today = Bullet(section="who", text="Rates 1.5 lower than you would think.").model_dump()
    assert upgraded(today) is today
    few = {"section": "style", "text": 'Starts with "so".'}
    assert upgraded(few) is few, "of a caller, who gives what is meant"
    assert upgraded("no line") == "no line" and upgraded(None) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["sections", "name", "bullets", "section", "text", "when"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ).filter(lambda found: isinstance(found, dict))
)
def test_no_file_however_odd_raises_anything_but_a_format_error(data):
    before = json.dumps(data, sort_keys=True)
    upgraded_document(data)
    assert json.dumps(data, sort_keys=True) == before, "the file's own data are not changed"
    with pytest.raises(PersonaFormatError):
        parse_document({**data, "schema": OLD_SCHEMA})
