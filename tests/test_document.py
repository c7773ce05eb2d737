"""Persona JSON: round trip, schema, file names, refusal of what is not one."""

import json
from pathlib import Path

import dspy
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import persona_dspy
from persona_dspy.agent.agent import PersonaAgent, personalize
from persona_dspy.core.disk import persona_file_name, write_text
from persona_dspy.core.document import (
    PersonaDocument,
    json_schema,
    load_document,
    load_persona,
    parse_document,
    save_persona,
)
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.errors import InputError, PersonaFormatError
from persona_dspy.testing.synthetic import SyntheticUser, TagFilm, rule_following_lm

PUBLISHED = Path(persona_dspy.__file__).parent / "core" / "schemas" / "persona-2.schema.json"


def a_persona(user_id="u"):
    rule = Bullet(section="what decides", words=("x",), then="y", evidence=("i1",), hits=2)
    return Persona.from_text("Likes tea.", user_id=user_id).apply([Edit(op="add", bullet=rule)])


def test_round_trip_is_exact(tmp_path):
    persona = a_persona()
    path = save_persona(persona, tmp_path / "p.json", task="lamp-2m", model="local/x")
    document = load_document(path)
    assert load_persona(path) == persona
    assert document.system_prompt == persona.render()
    assert (document.task, document.model) == ("lamp-2m", "local/x")


@pytest.mark.parametrize(
    "rule",
    [
        {"words": tuple(f"{letter * 14}{n}" for n in range(5) for letter in "abcdefghij"), "then": "x"},
        {"words": ("<|ghost", "demon|>"), "then": "x"},
        {"when": "it says <|ghost", "then": "demon|>"},
    ],
    ids=["a sentence over the cap", "structure across words", "structure across condition and response"],
)
def test_a_sentence_made_from_parts_is_clean_and_short_enough_to_come_back(rule, tmp_path):
    persona = Persona(user_id="u", bullets=(Bullet(section="what decides", **rule),))
    assert load_persona(save_persona(persona, tmp_path)) == persona


def test_the_published_schema_is_current_and_describes_the_files(tmp_path):
    assert json.loads(PUBLISHED.read_text()) == json_schema(), "run: make schema"
    jsonschema.validate(json.loads(a_persona().to_json()), json_schema())


def test_import_sends_the_same_messages_to_the_lm(tmp_path):  # invariant I5
    user = SyntheticUser(seed=3)
    lm = rule_following_lm()
    agent = PersonaAgent(TagFilm, history=user.interactions(12))
    agent.persona.value.to_json(tmp_path / "p.json")
    again = PersonaAgent(TagFilm, history=user.interactions(12), persona=load_persona(tmp_path / "p.json"))
    with dspy.context(lm=lm):
        agent(description="a rocket")
        again(description="a rocket")
    first, second = lm.engine.calls
    assert first == second
    assert agent.persona.value.render() in first.system


def test_a_persona_loads_into_any_program_with_another_lm(tmp_path):
    a_persona().to_json(tmp_path / "p.json")
    mine = personalize(dspy.ChainOfThought("question -> answer: bool"), persona=load_persona(tmp_path / "p.json"))
    lm = rule_following_lm(model="fake/other")
    lm.engine.handlers.insert(0, lambda p: {"reasoning": "r", "answer": True} if "answer" in p.outputs else None)
    with dspy.context(lm=lm):
        assert mine(question="?").answer is True
    assert "Likes tea." in lm.engine.calls[0].system


@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=2, unique=True))
def test_file_names_are_safe_and_never_collide(ids):
    names = [persona_file_name(i).lower() for i in ids]
    assert names[0] != names[1]
    assert all(Path(n).name == n and not n.startswith(".") and len(n) < 80 for n in names)


def test_ids_that_their_names_do_not_show_are_told_apart_by_a_long_digest():
    assert persona_file_name("ana-1") == "ana-1-" + persona_file_name("ana-1")[6:14] + ".json"
    for user in ("Ana-1", "安娜", "a" * 41):  # with 32 bits, two of 100,000 such users would share a file
        assert len(persona_file_name(user).removesuffix(".json").split("-")[-1]) == 32


@pytest.mark.parametrize("user", ["../../x", "a/b", "'; drop", "x" * 300, "😀", "A", "a", "\x00", "CON"])
def test_odd_user_ids_stay_in_the_folder(tmp_path, user):
    path = save_persona(Persona.from_text("Likes tea.", user_id=user), tmp_path)
    assert path.parent == tmp_path
    assert load_persona(path).user_id == user


def test_another_users_file_is_refused(tmp_path):
    path = save_persona(a_persona("u"), tmp_path)
    with pytest.raises(InputError, match=r"user 'u'.*expected user 'v'"):
        load_persona(path, user_id="v")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("user_id"), "user_id"),
        (lambda d: d.update(schema="other/1"), "expected 'persona-dspy/persona/2'"),
        (lambda d: d.update(version="one"), "version"),
        (lambda d: d.update(system_prompt="something else"), "say different things"),
        (lambda d: d["sections"][0]["bullets"][0].update(extra=1), "extra"),
        (
            lambda d: d["sections"][0]["bullets"][0].update(evidence=["i", "\ud800"]),
            r"sections\.0\.bullets\.0\.evidence\.1",
        ),
        (lambda d: d.update(model="\udfff"), "'model' holds half a surrogate"),
        (lambda d: d.update(version=2**31), r"version.*below 2\*\*31"),
    ],
)
def test_what_is_not_a_persona_json_is_named(tmp_path, change, says):
    data = json.loads(a_persona().to_json())
    change(data)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PersonaFormatError, match=says):
        load_persona(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"null"])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(PersonaFormatError, match=r"p\.json"):
        load_persona(path)
    with pytest.raises(PersonaFormatError, match="no such file"):
        load_persona(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    write_text(path, "old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_documents_hold_the_alignment_record():
    document = PersonaDocument.of(a_persona())
    assert document.alignment is None
    assert list(json.loads(document.to_json()))[:5] == ["schema", "user_id", "version", "parent", "created_at"]


@pytest.mark.parametrize(
    ("stored", "read"),
    [("\\ud83d", "\ufffd"), ("\\ud83d\\ude00", "\U0001f600"), ("<|im_start|>", "< |im_start| >"), ("\\u200b", "")],
)
def test_a_persona_that_was_kept_before_texts_were_cleaned_so_far_is_read(stored, read):
    kept = Persona.from_text("Likes tea XX\nShort.", user_id="ana")
    text = PersonaDocument.of(kept, model="m XX").to_json().replace("XX", stored)
    document = parse_document(json.loads(text))
    assert document.persona().bullets[0].text == f"Likes tea {read}".strip()
    assert document.system_prompt == document.persona().render() and read in document.to_json().encode().decode()
    other = json.loads(text.replace("- Short.", "- Obeys."))
    with pytest.raises(PersonaFormatError, match="say different things"):
        parse_document(other).persona()
