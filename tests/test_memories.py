"""Memories of other products as given lines of a persona."""

import json

import pytest
from test_cli_store import home, run  # noqa: F401

from persona_dspy.cli.store import document_of
from persona_dspy.core import BULLET_TOKENS
from persona_dspy.data import read_memories
from persona_dspy.errors import DataError
from persona_dspy.store import Store

TWO = ("Is vegetarian", "Prefers short answers")
MEM0 = [{"id": str(n), "memory": text, "user_id": "ana"} for n, text in enumerate(TWO)]
LANGMEM = [
    {"namespace": ["memories", "ana"], "key": str(n), "value": {"kind": "Memory", "content": {"content": text}}}
    for n, text in enumerate(TWO)
]
FORMS = {
    "mem0": json.dumps({"results": MEM0}),
    "mem0's rows": json.dumps(MEM0),
    "mem0's rows as lines": "\n".join(map(json.dumps, MEM0)),
    "LangMem's store": json.dumps(LANGMEM),
    "LangMem's manager": json.dumps([{"id": "1", "content": {"content": text}} for text in TWO]),
    "ChatGPT": json.dumps([{"content": text, "enabled": True, "created_at": "2026-01-01"} for text in TWO]),
    "ChatGPT under a key": json.dumps({"memories": [{"content": text} for text in TWO]}),
    "texts": json.dumps(TWO),
    "plain": "\ufeff" + "\n\n".join(f"- {text}" for text in TWO) + "\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_lines(form, tmp_path):
    file = tmp_path / "memories"
    file.write_text(FORMS[form], encoding="utf-8")
    assert read_memories(file, "ana").lines == TWO


def test_a_profile_is_a_line_a_field(tmp_path):
    file = tmp_path / "profile.json"
    profile = {"kind": "Profile", "content": {"name": "Ana", "home_town": None, "languages": ["de", "it"], "age": 40}}
    file.write_text(json.dumps([{"namespace": ["ana"], "value": profile}]), encoding="utf-8")
    assert read_memories(file, "ana").lines == ("name: Ana", "languages: de, it", "age: 40")


def test_nobody_elses_memories_are_taken(tmp_path):
    file = tmp_path / "all.json"
    rows = [*MEM0, {"memory": "Lives in Rome", "user_id": "bo"}, {"namespace": ["bo"], "value": {"content": "x"}}]
    file.write_text(json.dumps([*rows, {"content": "Old", "enabled": False}]), encoding="utf-8")
    read = read_memories(file, "ana")
    assert (read.lines, read.others, read.disabled) == (TWO, 2, 1)
    with pytest.raises(DataError, match=r"expected memories of 'Ana'.*--user 'ana'"):
        read_memories(file, "Ana")


def test_a_memory_that_names_nobody_is_not_taken_where_others_name_a_user(tmp_path):
    file = tmp_path / "all.json"
    file.write_text(json.dumps([*MEM0, {"memory": "Anybody's"}]), encoding="utf-8")
    read = read_memories(file, "ana")
    assert (read.lines, read.unnamed) == (TWO, 1)


def test_a_word_that_all_namespaces_share_is_no_user(tmp_path):
    file = tmp_path / "all.json"
    rows = [*LANGMEM, {"namespace": ["memories", "bo"], "value": {"content": "Is broke"}}]
    file.write_text(json.dumps(rows), encoding="utf-8")
    assert read_memories(file, "ana").lines == TWO
    with pytest.raises(DataError, match=r"field 'namespace'.*Type --user 'ana'"):
        read_memories(file, "memories")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected memories of one user"),
        ("[]", "expected memories of one user"),
        ('[{"memory": "  "}]', "expected memories of one user"),
        ('[{"memory": 7}]', "a row with memory"),
        ("[3]", "expected memories"),
        ('[{"title": "t", "mapping": {}}]', "persona-dspy ingest FILE"),
        ('{"schema": "persona-dspy/persona/2", "sections": []}', "without --memories"),
        ('[{"memory": "a"}', "expected JSON"),
        ('{"memory": "a"}\n{"memory": ', "line 2"),
        ("PK\x03\x04", "Unpack it"),
        ('[{"content": "Old", "enabled": false}]', "1 switched off"),
        ("[" * 100_000, "expected JSON"),
    ],
)
def test_what_is_no_memory_is_named(text, said, tmp_path):
    file = tmp_path / "memories.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_memories(file, "ana")


def test_bytes_that_are_no_text_and_no_file(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Mag Käse".encode("latin-1"))
    for name, said in (("latin.txt", "UTF-8"), ("none.json", "a file that can be read"), (".", "a directory")):
        with pytest.raises(DataError, match=said):
            read_memories(tmp_path / name, "ana")


def test_they_are_added_to_the_users_persona_once(home, capsys):  # noqa: F811
    (home / "mem0.json").write_text(FORMS["mem0"], encoding="utf-8")
    command = ("import", "--memories", "mem0.json", "--user", "ana", "--store", "s.db")
    assert run(capsys, *command)[:2] == (0, "'ana': 2 lines added, version 0 is current\n")
    code, out, err = run(capsys, *command)
    assert (code, out) == (0, "'ana': 0 lines added, version 0 is current\n") and "in the persona already: 2" in err
    (home / "more.txt").write_text(f"Style\nIs vegetarian\n{'very ' * 300}long\n", encoding="utf-8")
    code, out, err = run(capsys, "import", "--memories", "more.txt", "--user", "ana", "--store", "s.db", "--json")
    assert json.loads(out) == {"user_id": "ana", "version": 1, "added": 2}
    assert f"memories cut to {BULLET_TOKENS} tokens: 1" in err
    with Store.open("s.db") as store:
        persona = document_of(store, "ana").persona()
    texts = [bullet.text[:13] for bullet in persona.bullets]
    assert texts == ["Is vegetarian", "Prefers short", "Style", "very very ver"]
    assert {(b.section, b.source, b.locked) for b in persona.bullets} == {("preferences", "given", False)}


def test_too_many_change_nothing(home, capsys):  # noqa: F811
    (home / "many.txt").write_text("\n".join(f"Memory {n} of many things" for n in range(300)), encoding="utf-8")
    code, _, err = run(capsys, "import", "--memories", "many.txt", "--user", "ana", "--store", "s.db")
    assert code == 2 and "300 memories" in err and "expected at most 800" in err
    assert run(capsys, "show", "ana", "--store", "s.db")[0] == 2


@pytest.mark.parametrize("words", [["--memories", "m.txt"], ["--user", "ana"], ["x", "--memories", "m", "--user", "a"]])
def test_user_and_memories_go_together(words, home, capsys):  # noqa: F811
    code, _, err = run(capsys, "import", *words, "--store", "s.db")
    assert code == 2 and "expected both" in err and not (home / "s.db").exists()
