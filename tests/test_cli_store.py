"""The store from the command line: what is kept, what is printed, what odd ids do."""

import ast
import json
import re
import shutil
import sqlite3
import warnings

import pytest

from persona_dspy import lm as lm_room
from persona_dspy.cli import main
from persona_dspy.cli.store import sqlite_file
from persona_dspy.core.document import load_document, save_persona
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.store.store import Store
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm
from persona_dspy.tracking.prompts import register_prompt
from persona_dspy.tracking.tracker import MlflowTracker, prompt_name

ODD_IDS = [
    "../../x",
    "a/b",
    "'; drop table persona_users; --",
    "x" * 300,
    "🦊👩‍👩‍👧",
    "Ana",
    "ana",
    "ANA",
    "%s {0}",
    "-x",
    "a,b",
    "42",
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No command of a test may ask an LM, or write outside of the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONA_DSPY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda *_, **__: pytest.fail("an LM was asked for"))
    return tmp_path


def run(capsys, *argv):
    """(exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in argv])
    out = capsys.readouterr()
    return end.value.code, out.out, out.err


def made(folder):
    folder.mkdir(exist_ok=True)
    return folder


def lines(user_id, n=6, start=0):
    user = SyntheticUser(seed=1, user_id=user_id)
    return [
        {"user_id": user_id, "id": i.id, "query": i.query, "response": i.response, "time": i.time.date().isoformat()}
        for i in user.interactions(n, start=start)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def two_versions(path, user_id="ana"):
    first = Persona.from_text("Likes horror.\nStyle:\nWrites short.", user_id=user_id)
    edits = [Edit(op="drop", id=first.bullets[0].id), Edit(op="add", bullet=Bullet(section="who", text="A nurse."))]
    path.mkdir(exist_ok=True)
    return [save_persona(p, path / f"{p.version}.json") for p in (first, first.apply(edits))]


def test_ingest_is_idempotent_streams_and_reports(home, capsys):
    file = write(home / "d.jsonl", [row for n in range(30) for row in (lines("ana", 30)[n], lines("bo", 30)[n])])
    code, out, _ = run(capsys, "ingest", file, "--store", "s.db", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"users": 2, "interactions": 60, "new": 60, "known": 0, "bad_rows": 0},
    )
    _, out, _ = run(capsys, "ingest", file, "--store", "sqlite:///s.db")
    assert out.strip() == "2 users, 60 interactions: 0 new, 60 known already"
    more = write(home / "more.jsonl", lines("ana", 3, start=29))
    assert json.loads(run(capsys, "ingest", more, "--store", "s.db", "--json")[1])["new"] == 2
    with Store.open("s.db") as store:
        assert len(store.episodes("ana")) == 32
        assert store.episodes("bo")[0].query == lines("bo")[0]["query"]


def test_the_default_store_is_in_the_home_folder(home, capsys):
    code, _, err = run(capsys, "history", "ana")
    assert (code, (home / "home").exists()) == (2, False)
    assert "persona-dspy ingest" in err
    run(capsys, "ingest", write(home / "d.jsonl", lines("ana")))
    assert (home / "home" / "personas.db").exists()
    assert run(capsys, "history", "ana")[1].strip().endswith("no persona yet")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time": "soon"}, ["line 3", "'time'", "'soon'"]),
        ({"response": " "}, ["line 3", "'response'"]),
        ({"user_id": "é" * 700}, ["line 3", "'user_id'", "1200 bytes"]),
        ({"id": "i" * 2000}, ["line 3", "'id'", "1200 bytes"]),
        ({"id": "i0", "query": "another"}, ["line 3", "'id'", "'i0'", "given once"]),
    ],
)
def test_a_bad_row_is_named(change, says, home, capsys):
    rows = lines("ana")
    rows[2] |= change
    if "given once" in says:  # the id is in the store, with other content
        run(capsys, "ingest", write(home / "first.jsonl", lines("ana", 1)), "--store", "s.db")
        rows, says = rows[1:], ["line 2", "'id'", "'i0'", "store has"]
    file = write(home / "bad.jsonl", rows)
    code, _, err = run(capsys, "ingest", file, "--store", "s.db")
    assert code == 2
    assert all(s in err for s in [*says, "bad.jsonl"]), err
    code, out, err = run(capsys, "ingest", file, "--store", "s.db", "--skip-bad-rows", "--json")
    told = json.loads(out)
    assert (code, told["new"] + told["known"], told["bad_rows"]) == (0, len(rows) - 1, 1)
    assert says[0] in err


def test_a_cut_ingest_goes_on(home, capsys, monkeypatch):
    file = write(home / "d.jsonl", [r for u in "abcd" for r in lines(u)])
    whole, seen = Store.add_episodes, []

    def dies(self, user_id, interactions):
        if user_id == "c" and not seen:
            seen.append(user_id)
            raise KeyboardInterrupt
        return whole(self, user_id, interactions)

    monkeypatch.setattr(Store, "add_episodes", dies)
    assert run(capsys, "ingest", file, "--store", "s.db")[0] == 130
    told = json.loads(run(capsys, "ingest", file, "--store", "s.db", "--json")[1])
    assert (told["new"], told["known"]) == (12, 12)


def test_versions_diff_and_rollback(home, capsys):
    old, new = two_versions(home / "in")
    code, out, _ = run(capsys, "import", home / "in", "--store", "s.db", "--json")
    assert (code, json.loads(out)["imported"]) == (0, [{"user_id": "ana", "version": v} for v in (0, 1)])
    rows = json.loads(run(capsys, "history", "ana", "--store", "s.db", "--json")[1])["versions"]
    assert [(r["version"], r["parent"], r["current"]) for r in rows] == [(0, None, False), (1, 0, True)]
    assert "1 *" in run(capsys, "history", "ana", "--store", "s.db")[1]
    _, out, _ = run(capsys, "diff", "ana", "--store", "s.db")
    assert out.splitlines() == ["version 0 -> 1", "- [preferences] Likes horror.", "+ [who] A nurse."]
    back = json.loads(run(capsys, "diff", "ana", "1", "0", "--store", "s.db", "--json")[1])
    assert (back["from"], back["to"], back["dropped"][0]["text"]) == (1, 0, "A nurse.")
    assert json.loads(run(capsys, "rollback", "ana", "--store", "s.db", "--json")[1]) == {
        "user_id": "ana",
        "from": 1,
        "to": 0,
    }
    assert "Likes horror." in run(capsys, "show", "ana", "--store", "s.db")[1]
    code, out, err = run(capsys, "rollback", "ana", "--store", "s.db")
    assert (code, out) == (2, "")
    assert "[0, 1]" in err
    run(capsys, "rollback", "ana", "--to", "1", "--store", "s.db")
    shown = json.loads(run(capsys, "show", "ana", "--store", "s.db", "--json")[1])
    assert shown == json.loads(new.read_text())
    assert json.loads(run(capsys, "show", "ana", "--version", "0", "--store", "s.db", "--json")[1]) == json.loads(
        old.read_text()
    )


def test_rollback_moves_the_alias_of_a_registered_prompt(home, capsys, empty_mlflow):
    shutil.copy(empty_mlflow, home / "mlflow.db")
    uri = f"sqlite:///{home}/mlflow.db"  # NOTE MLflow keeps a connection by URI: a relative one leads to a test before
    run(capsys, "import", *two_versions(home / "in"), *two_versions(home / "bo", "bo"), "--store", "s.db")
    tracker = MlflowTracker(uri, runs="none", register=True)
    for file in two_versions(home / "in"):
        register_prompt(tracker._connect(), "", load_document(file))
    options = ("--store", "s.db", "--tracking-uri", uri)
    code, out, err = run(capsys, "rollback", "ana", *options)
    assert (code, out.splitlines()[1]) == (0, f"{uri}: the prompt's alias 'current' is at version 0"), err
    alias = tracker._connect().get_prompt_version_by_alias(prompt_name("ana"), "current")
    assert alias.tags["persona_version"] == "0"
    told = json.loads(run(capsys, "rollback", "ana", "--to", "1", *options, "--json")[1])
    assert told == {"user_id": "ana", "from": 0, "to": 1, "prompt_moved": True}
    code, out, _ = run(capsys, "rollback", "bo", *options)
    assert (code, "no prompt of version 0 is registered" in out) == (0, True)
    (home / "broken.db").write_bytes(b"no database")
    code, _, err = run(capsys, "rollback", "bo", "--to", "1", *options[:3], "sqlite:///broken.db")
    assert (code, "version 1 is current in the store, its prompt is not" in err) == (1, True)
    code, _, err = run(capsys, "rollback", "bo", *options[:3], "sqlite:///none.db")
    assert (code, "none.db" in err, (home / "none.db").exists()) == (2, True, False)
    with Store.open("s.db") as store:
        assert (store.current("ana").version, store.current("bo").version) == (1, 1)


def test_an_unknown_user_is_told_how_to_find_the_known_ones(home, capsys):
    run(capsys, "ingest", write(home / "d.jsonl", lines("ana")), "--store", "s.db")
    code, _, err = run(capsys, "show", "Ana", "--store", "s.db")
    advice = re.search(r"Store\.open\((.+?)\)\.users\(\)", err)
    assert code == 2
    with Store.open(ast.literal_eval(advice[1])) as store:
        assert list(store.users()) == ["ana"]
    assert "persona-dspy status" not in err


def test_nothing_is_imported_where_one_file_is_bad(home, capsys):
    two_versions(home / "in")
    (home / "in" / "z.json").write_text("{}")
    code, _, err = run(capsys, "import", home / "in", "--store", "s.db")
    assert code == 2
    assert "z.json" in err
    assert not (home / "s.db").exists()
    assert run(capsys, "import", home / "in" / "none.json", "--store", "s.db")[0] == 2


def test_nothing_is_imported_where_one_version_is_taken(home, capsys):
    save_persona(Persona.from_text("Old.", user_id="zed"), made(home / "before"))
    assert run(capsys, "import", home / "before", "--store", "s.db")[0] == 0
    for user, text in (("ana", "First."), ("zed", "New.")):
        save_persona(Persona.from_text(text, user_id=user), made(home / "in"))
    code, _, err = run(capsys, "import", home / "in", "--store", "s.db")
    assert (code, "stored with other content" in err) == (2, True)
    twice = [made(home / name) for name in ("a", "b")]
    for folder in twice:
        save_persona(Persona.from_text(f"From {folder.name}.", user_id="bo"), folder)
    code, _, err = run(capsys, "import", *twice, "--store", "s.db")
    assert (code, "version 0 twice" in err) == (2, True)
    with Store.open("s.db") as store:
        assert list(store.users()) == ["zed"]


def test_export_of_one_of_all_and_of_nobody(home, capsys):
    two_versions(home / "in")
    two_versions(home / "bo", "bo")
    run(capsys, "import", home / "in", home / "bo", "--store", "s.db")
    run(capsys, "ingest", write(home / "d.jsonl", lines("cy")), "--store", "s.db")
    code, out, _ = run(capsys, "export", "ana", "--out", "one", "--store", "s.db")
    assert code == 0
    assert load_document(out.strip()).version == 1
    told = json.loads(run(capsys, "export", "--all", "--out", "every", "--store", "s.db", "--json")[1])
    assert told["personas"] == len(list((home / "every").iterdir())) == 2
    for argv, says in (
        (["cy"], "no persona yet"),
        (["nobody"], "'nobody'"),
        ([], "--all"),
        (["ana", "--all"], "--all"),
    ):
        code, _, err = run(capsys, "export", *argv, "--store", "s.db")
        assert code == 2
        assert says in err


@pytest.mark.slow
def test_odd_ids_stay_apart_and_inside(home, capsys):
    file = write(home / "odd.jsonl", [row for user_id in ODD_IDS for row in lines(user_id, 3)])
    told = json.loads(run(capsys, "ingest", file, "--store", "s.db", "--json")[1])
    assert (told["users"], told["new"]) == (len(ODD_IDS), 3 * len(ODD_IDS))
    (home / "in").mkdir()
    for user_id in ODD_IDS:
        persona = Persona.from_text(f"Is called {len(user_id)}{user_id[:9]}.", user_id=user_id)
        run(capsys, "import", save_persona(persona, home / "in"), "--store", "s.db")
    before = {p for p in home.rglob("*") if p.is_file()}
    told = json.loads(run(capsys, "export", "--all", "--out", "out", "--store", "s.db", "--json")[1])
    made = {p for p in home.rglob("*") if p.is_file()} - before
    assert told["personas"] == len(made) == len({p.name.lower() for p in made}) == len(ODD_IDS)
    assert {p.parent for p in made} == {home / "out"}
    assert {load_document(p).user_id for p in made} == set(ODD_IDS)
    for user_id in ODD_IDS:
        argv = ["--store", "s.db", "--json", "--", user_id]
        assert json.loads(run(capsys, "show", *argv)[1])["user_id"] == user_id
        found = json.loads(run(capsys, "history", *argv)[1])
        assert (found["interactions"], len(found["versions"])) == (3, 1)
    with sqlite3.connect("s.db") as db:
        assert db.execute("select count(*) from persona_users").fetchone() == (len(ODD_IDS),)
    db.close()


@pytest.fixture
def lm(home, monkeypatch):
    """Commands may ask this LM."""
    fake = rule_following_lm()
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda *_, **__: fake)
    monkeypatch.setattr(lm_room, "check_lm", lambda lm: None)
    return fake


@pytest.mark.slow
def test_odd_ids_from_ingest_to_forget(home, lm, capsys):
    file = write(home / "odd.jsonl", [row for user_id in ODD_IDS for row in lines(user_id, 16)])
    run(capsys, "ingest", file, "--store", "s.db")
    options = ["--store", "s.db", "--tracking-uri", "off", "--epochs", "1"]
    code, out, err = run(capsys, "compile", *options, "--out", "p")
    assert code == 0, out + err
    assert {load_document(p).user_id for p in (home / "p").iterdir()} == set(ODD_IDS)
    for number, user_id in enumerate(ODD_IDS):
        assert json.loads(run(capsys, "show", "--store", "s.db", "--json", "--", user_id)[1])["user_id"] == user_id
        code, out, _ = run(capsys, "export", "--out", "e", "--store", "s.db", "--", user_id)
        assert (code, load_document(out.strip()).user_id) == (0, user_id)
        assert len(list((home / "e").iterdir())) == number + 1
        said = run(capsys, "ask", f"--user={user_id}", "--store", "s.db", "--json", "--trace", "a rocket")
        assert said[0] == 0, said[1] + said[2]
        answer = json.loads(said[1])
        assert answer["user_id"] == answer["trace"]["user_id"] == user_id
        moved = load_document(out.strip()).model_copy(update={"version": 7, "parent": 1})
        (home / "moved.json").write_text(moved.to_json(), encoding="utf-8")
        code, _, err = run(capsys, "import", home / "moved.json", "--store", "s.db")
        assert code == 0, err
        assert run(capsys, "diff", "--store", "s.db", "--json", "--", user_id)[0] == 0
        code, out, err = run(capsys, "rollback", "--to", "1", "--store", "s.db", "--json", "--", user_id)
        assert code == 0, err
        with Store.open("s.db") as store:
            assert [(v.version, v.current) for v in store.versions(user_id)] == [(1, True), (7, False)]
    for number, user_id in enumerate(ODD_IDS, 1):
        argv = ["--store", "s.db", "--out", "p", "--out", "e", "--tracking-uri", "off", "--yes", "--json"]
        places = json.loads(run(capsys, "forget", *argv, "--", user_id)[1])["places"]
        told = {place["place"]: place["removed"] for place in places}
        assert told["store"] == {"current": 1, "versions": 2, "episodes": 16, "users": 1}
        assert told["p"] == {"persona files": 1, "journal rows": 1}
        assert told["e"] == {"persona files": 1}
        with Store.open("s.db") as store:
            assert set(store.users()) == set(ODD_IDS[number:])
        assert {load_document(p).user_id for p in (home / "e").iterdir()} == set(ODD_IDS[number:])


def test_users_are_named_whatever_their_ids(home, lm, capsys):
    """A comma goes into quotes, digits alone get a comma after them, else they are how many."""
    rows = [row for user_id in ("a,b", "42", "c") for row in lines(user_id, 8)]
    options = ["--tracking-uri", "off", "--epochs", "1"]
    for at, (named, expected) in enumerate((('"a,b"', {"a,b"}), ("42,", {"42"}), ('c, "a,b"', {"a,b", "c"}))):
        argv = [write(home / "d.jsonl", rows), "--users", named, "--out", f"p{at}", *options]
        assert run(capsys, "compile", *argv)[0] == 0
        assert {load_document(p).user_id for p in (home / f"p{at}").iterdir()} == expected
    code, _, err = run(capsys, "compile", home / "d.jsonl", "--users", "c\n42", "--out", "q", *options)
    assert (code, "commas" in err) == (2, True), "ids a line, as from a file"


def test_compile_goes_on_from_the_store(home, lm, capsys):
    options = ["--store", "s.db", "--tracking-uri", "off", "--out"]
    persona = Persona.from_text("Is a nurse.", user_id="ana")
    persona = persona.lock(persona.bullets[0].id)
    run(capsys, "import", save_persona(persona, home / "x.json"), "--store", "s.db")
    assert run(capsys, "compile", write(home / "d.jsonl", lines("ana", 20)), *options, "p")[0] == 0
    with Store.open("s.db") as store:
        assert len(store.episodes("ana")) == 20
        assert (store.current("ana").version, store.current("ana").parent) == (2, 1)
        assert "Is a nurse." in store.current("ana").document["system_prompt"]
    run(capsys, "ingest", write(home / "more.jsonl", lines("ana", 4, start=20)), "--store", "s.db")
    run(capsys, "ingest", write(home / "bo.jsonl", lines("bo", 8)), "--store", "s.db")
    assert run(capsys, "compile", *options, "q", "--users", "ana")[0] == 0
    assert [load_document(p).version for p in (home / "q").iterdir()] == [3]
    rows = json.loads(run(capsys, "history", "ana", "--store", "s.db", "--json")[1])
    assert (rows["interactions"], [r["parent"] for r in rows["versions"]]) == (24, [0, 1, 2])
    lm.engine.calls.clear()
    assert run(capsys, "ask", "a rocket", "--user", "ana", "--store", "s.db")[0] == 0
    assert "Is a nurse." in lm.engine.calls[-1].system
    assert len(lm.engine.calls[-1].turns) == 4
    for argv, says in ((["compile"], "--store"), (["compile", *options, "q", "--users", "nobody"], "'nobody'")):
        code, _, err = run(capsys, *argv)
        assert (code, says in err) == (2, True)


def test_which_file_a_url_means():
    assert sqlite_file("sqlite:////tmp/x.db?timeout=3").as_posix() == "/tmp/x.db"
    assert sqlite_file("sqlite+pysqlite:///x.db").as_posix() == "x.db"
    assert sqlite_file("http://localhost:5000") is None


def test_a_table_is_ingested_by_the_columns_that_are_typed(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("author,text,tag,created\na,Alien,horror,1767398400\n")
    typed = "user_id=author,query=text,response=tag,time=created"
    given = ["ingest", "--dataset", str(tmp_path / "t.csv"), "--store", str(tmp_path / "s.db")]
    for extra, told in ((["--columns", typed], ""), ([], "column 'author' is taken as user_id")):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as ended:
                main([*given, *extra])
        assert not ended.value.code
        assert told in capsys.readouterr().err
