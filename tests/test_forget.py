"""Forgetting a user: nothing of that user is left in any byte of any file, and everything of the others is."""

import json
import os
import sqlite3
import warnings
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import dspy
import numpy as np
import pytest

from persona_dspy import lm as lm_room
from persona_dspy.agent import personalize
from persona_dspy.agent.knowledge import Document, PageCache
from persona_dspy.cli import main
from persona_dspy.core.disk import lock_file, persona_file_name
from persona_dspy.core.document import load_document
from persona_dspy.core.persona import Persona
from persona_dspy.errors import ForgettingIncomplete, InputError, StoreError
from persona_dspy.fleet.folder import FleetFolder
from persona_dspy.fleet.forget import dspy_cache_entries, forget_in_folder, forget_user
from persona_dspy.judge.experiment import Experiment
from persona_dspy.lm.answer_folder import CallFolder
from persona_dspy.store.store import Store
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm
from persona_dspy.tracking import tables
from persona_dspy.tracking.forgetting import USER_TAG


def without_user(content, suffix, user_id):
    pruned = tables.without_user(content, suffix, user_id)
    return pruned.content, pruned.removed, pruned.trouble


VICTIM, OTHER = "victim/../'qzxcanary-é🦊", "other/../'keepme-é🦊"
MARKS = {VICTIM: "qzxcanary", OTHER: "keepme"}
PLACES = ("s.db", "p", "e", "ev", "pages", "mlflow.db", "mlartifacts", ".p.fleet", ".dspy_cache")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with everything in it, the data file outside; DSPy's disk cache on, as a fresh process has it."""
    lm = rule_following_lm(cache=True)
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("PERSONA_DSPY_HOME", str(place))
    monkeypatch.setenv("DSPY_CACHEDIR", str(place / ".dspy_cache"))
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda spec="local", **_: lm)
    monkeypatch.setattr(lm_room, "check_lm", lambda lm: None)
    before = dspy.cache
    yield place
    dspy.cache = before


def run(capsys, *argv):
    """(exit code, stdout, stderr), started with DSPy's disk cache on, as every process is."""
    dspy.configure_cache(disk_cache_dir=".dspy_cache")
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in argv])
    out = capsys.readouterr()
    return end.value.code, out.out, out.err


def rows(user_id, n=16):
    mark = MARKS[user_id]
    for number, i in enumerate(SyntheticUser(seed=1).interactions(n)):
        yield {
            "user_id": user_id,
            "id": f"{mark}-id-{i.id}",
            "query": f"{i.query} {mark}query",
            "response": f"{mark}label" if number % 3 == 0 else i.response,
            "time": i.time.date().isoformat(),
            "metadata": {"note": f"{mark}meta"},
        }


def found(place, mark):
    """Files below, by first folder, that hold the mark in any byte, name included."""
    hits = [p for p in place.rglob("*") if mark in p.name or (p.is_file() and mark.encode() in p.read_bytes())]
    return {p.relative_to(place).parts[0] for p in hits}


def plant(place):
    """What the commands do not leave behind by themselves: a killed compile, a renamed export, MLflow's other kinds."""
    import mlflow
    from mlflow import MlflowClient, flush_trace_async_logging

    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")  # NOTE a client's spans go there, not to the client's own
    mlflow.tracing.reset()
    experiment = client.get_experiment_by_name("persona-dspy").experiment_id
    parent = next(r for r in client.search_runs([experiment]) if USER_TAG not in r.data.tags)
    client.log_table(parent.info.run_id, {"user_id": [VICTIM, OTHER], "score": [0.1, 0.2]}, "users.json")
    with Store.open("s.db") as store:
        for user, mark in MARKS.items():
            first = store.episodes(user)[0].id
            store.put_profile(user, {"user_id": user, "lines": [f"{mark}profile"]})
            store.put_vectors(user, "encoder", {first: np.frombuffer(mark[:4].encode() * 8, "<f4")})
            CallFolder(place / ".p.fleet" / "calls").add(user, {"key": "k", "outputs": [f"{mark}answer"]})
            (place / "p" / f"{mark[0]}-copy.json").write_text((place / "p" / persona_file_name(user)).read_text())
            (place / "e" / f".{mark[0]}.part").write_text(f'{{"user_id": {json.dumps(user)}, "half": "{mark}')
            PageCache(place / "pages").put(user, "key", [Document(title=f"{mark}page", text="x")])
            name = f"persona-{mark[0]}"
            client.register_prompt(name, template=f"{mark}prompt", tags={USER_TAG: user})
            client.set_prompt_tag(name, USER_TAG, user)
            with warnings.catch_warnings(action="ignore"):
                span = client.start_trace(
                    "ask", inputs={"query": f"{mark}trace"}, experiment_id=experiment, tags={USER_TAG: user}
                )
                client.end_trace(span.trace_id, outputs={"answer": f"{mark}traced"})
    flush_trace_async_logging()
    mlflow.set_tracking_uri(before)
    mlflow.tracing.reset()
    return client, experiment


@pytest.mark.slow
def test_no_byte_of_a_forgotten_user_is_left(home, tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for u in (VICTIM, OTHER) for r in rows(u)), encoding="utf-8")
    # NOTE absolute: MLflow keeps a connection by URI, and a relative one leads to a test before
    tracking = ["--tracking-uri", f"sqlite:///{home}/mlflow.db"]
    assert run(capsys, "ingest", data, "--store", "s.db")[0] == 0
    assert run(capsys, "compile", data, "--out", "p", "--store", "s.db", "--runs", "all", *tracking)[0] == 0
    assert run(capsys, "ask", "--user", VICTIM, "--store", "s.db", *tracking, "a rocket qzxcanaryasked")[0] == 0
    assert run(capsys, "export", "--all", "--out", "e", "--store", "s.db")[0] == 0
    evaluated = ["--users", f"{VICTIM},{OTHER}", "--systems", "rag", "--queries", "2", "--tracking-uri", "off"]
    code, out, err = run(capsys, "evaluate", data, "--out", "ev", *evaluated)
    assert code == 0, out + err
    client, experiment = plant(home)
    everywhere = set(PLACES) - {".dspy_cache"}
    for mark in MARKS.values():
        assert found(home, mark) >= everywhere
    assert dspy_cache_entries()[1] == 0, "LM answers are in a cache that knows no users"
    options = ["--store", "s.db", "--out", "p", "--out", "e", "--out", "ev", "--pages", "pages", *tracking]
    code, out, err = run(capsys, "forget", VICTIM, *options, "--yes", "--json")
    assert code == 0, err
    told = {place["place"]: place for place in json.loads(out)["places"]}
    assert found(home, "qzxcanary") == set()
    assert all(place["removed"] and not place["note"] for place in told.values()), told
    removed = dict(told["MLflow"]["removed"])
    assert removed.pop("artifacts") == 2 + (find_spec("plotly") is not None)  # the third is the learning curve
    assert removed == {"runs": 1, "table rows": 2, "prompts": 1, "traces": 2}
    assert (told["store"]["removed"]["episodes"], told["store"]["removed"]["profiles"]) == (16, 1)
    assert told["p"]["removed"]["kept LM answers"] == 1
    # the other user
    assert found(home, "keepme") >= everywhere
    with Store.open("s.db") as store:
        assert list(store.users()) == [OTHER]
        assert [i.id for i in store.episodes(OTHER)] == [r["id"] for r in rows(OTHER)]
        assert store.current(OTHER).document == json.loads((home / "p" / persona_file_name(OTHER)).read_text())
        assert len(store.vectors(OTHER, "encoder")) == 1
    assert [load_document(p).user_id for p in (home / "e").glob("*.json")] == [OTHER]
    answers = (home / "ev" / "answers.jsonl").read_text().splitlines()
    assert {json.loads(line)["user_id"] for line in answers} == {OTHER}
    assert [r.data.tags[USER_TAG] for r in client.search_runs([experiment]) if USER_TAG in r.data.tags] == [OTHER]
    assert [p.name for p in client.search_prompts()] == ["persona-k"]
    assert len(client.search_traces(locations=[experiment])) == 1
    with closing(sqlite3.connect("mlflow.db")) as db:
        for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
            assert not [row for row in db.execute(f'select * from "{table}"') if "qzxcanary" in repr(row)], table
    # again: nothing is left to remove, and a user nobody knows is no error
    for user in (VICTIM, "nobody"):
        code, out, _ = run(capsys, "forget", user, *options, "--yes")
        assert (code, out.count("nothing was there")) == (0, len(told))


def test_it_asks_first_and_wants_real_places(home, capsys, monkeypatch):
    with Store.open("s.db") as store:
        store.put_persona("u", Persona.from_text("Likes tea.", user_id="u").to_json())
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert run(capsys, "forget", "u", "--store", "s.db", "--tracking-uri", "off")[0] == 1
    for option in (["--store", "no.db"], ["--out", "nowhere"], ["--tracking-uri", "sqlite:///no.db"]):
        code, _, err = run(capsys, "forget", "u", *option, "--yes")
        assert (code, option[1].removeprefix("sqlite:///") in err) == (2, True)
    assert not {"no.db", "nowhere", "mlflow.db"} & {p.name for p in home.iterdir()}
    with Store.open("s.db") as store:
        assert store.current("u").version == 0
    code, _, err = run(capsys, "forget", "nobody", "--store", "s.db", "--tracking-uri", "OFF", "--yes")
    assert (code, "no MLflow runs" in err) == (0, True)
    code, out, err = run(capsys, "forget", "u", "--store", "s.db", "--yes")
    assert (code, out.strip()) == (0, "store: current 1, versions 1, users 1")
    assert "no MLflow runs" in err


def test_a_running_compile_is_not_forgotten_under(tmp_path):
    with FleetFolder(tmp_path / "p"), Store.open(tmp_path / "s.db") as store:
        store.put_persona("u", Persona.from_text("Likes tea.", user_id="u").to_json())
        with pytest.raises(InputError, match="another process"):
            forget_user("u", store=store, folders=[tmp_path / "p"])
        assert store.current("u") is not None
    with pytest.raises(InputError, match="blank"):
        forget_user(" ")


def test_files_are_known_by_what_is_in_them(tmp_path):
    for user in ("u", "U", "v", "u "):
        Persona.from_text(f"Says u, {user!r}.", user_id=user).to_json(tmp_path / f"{ord(user[0])}{len(user)}.json")
    (tmp_path / "list.json").write_text('["u"]')
    (tmp_path / "notes.txt").write_text('"user_id": "u"')
    (tmp_path / "x.csv").write_text('user_id,score\nu,1\n"v",2\n')
    assert forget_in_folder(tmp_path, "u").removed == {"persona files": 1, "table rows": 1}
    left = {load_document(p).user_id for p in tmp_path.glob("*2.json")} | {
        load_document(p).user_id for p in tmp_path.glob("*1.json")
    }
    assert left == {"U", "v", "u "}
    assert (tmp_path / "x.csv").read_text() == 'user_id,score\n"v",2\n'
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("user", ["u", 'q"u,\n', "é🦊", "'; drop"])
def test_rows_of_tables(user):
    table = json.dumps({"columns": ["user_id", "said"], "data": [[user, "u"], ["v", user], ["U", "x"], []]})
    kept, gone, trouble = without_user(table.encode(), ".json", user)
    assert (json.loads(kept)["data"], gone, trouble) == ([["v", user], ["U", "x"], []], 1, "")
    lines = [(json.dumps({"user_id": u, "said": user}) + "\n").encode() for u in (user, "v")]
    assert without_user(b"".join(lines), ".jsonl", user) == (lines[1], 1, "")
    for content, suffix in ((b"[1]", ".json"), (b"", ".csv"), (b"not json\n", ".jsonl")):
        assert without_user(content, suffix, user) == (content, 0, "")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_rows_with_odd_line_breaks_go_whole(mark):
    lines = [(json.dumps({"user_id": u, "t": f"one{mark}two"}, ensure_ascii=False) + "\n").encode() for u in "uv"]
    assert without_user(b"".join(lines), ".jsonl", "u") == (lines[1], 1, "")
    table = f"user_id,said\nu,one{mark}two\nv,x{mark}y\n"
    assert without_user(table.encode(), ".csv", "u") == (f"user_id,said\nv,x{mark}y\n".encode(), 1, "")


def test_a_name_that_others_wrote_takes_nothing_of_theirs(tmp_path):
    kept = {
        "mail.json": '{"smtp": {"user": "admin", "host": "h"}}',
        "settings.json": '{"user": "admin", "theme": "dark"}',
        "log.jsonl": '{"user_id": "ana", "query": "q", "response": "r", "user": "admin"}\n',
        "rows.jsonl": '{"user_id": "ana", "query": "q", "metadata": {"user_id": "admin", "order": "7745"}}\n',
        "table.csv": "user_id,user\nana,admin\n",
        "list.json": '[{"user_id": "ana", "seen": [{"user": "admin"}]}]',
    }
    for name, text in {**kept, "own.jsonl": '{"user": "admin"}\n', "own.json": '[{"userId": "admin"}]'}.items():
        (tmp_path / name).write_text(text)
    erasure = forget_in_folder(tmp_path, "admin")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {**kept, "own.jsonl": "", "own.json": "[]"}
    assert erasure.removed == {"table rows": 2}
    for name in ("mail.json", "settings.json", "rows.jsonl", "list.json"):
        assert name in erasure.note, "what holds the name is said"


def test_cut_off_rows_go_and_other_shapes_stay():
    whole = b'{"user": ["u"], "user_id": {"a": 1}}\n{"user_id": "v", "said": "sec'
    assert without_user(whole, ".jsonl", "u") == (whole, 0, "")
    assert without_user(whole, ".jsonl", "v") == (whole.partition(b"\n")[0], 1, "")
    half = '{"user_id": "v", "said": "é'.encode()[:-1]
    assert without_user(b'{"user_id": "u"}\n' + half, ".jsonl", "v") == (b'{"user_id": "u"}', 1, "")


UNREADABLE = [
    (".csv", b"user_id,said\nu," + b"x" * 140_000, 0, "field larger"),
    (".csv", b"user_id,said\nu,1\nv,caf\xe9\n", 1, "not UTF-8"),
    (".json", b'{"user_id": "caf\xe9"}', 0, "not UTF-8"),
    (".json", b"{]", 0, "not JSON"),
    (".json", b"[" * 100_000, 0, "not JSON"),
    (".json", b'{"columns": 1, "data": [["u"]]}', 0, "no table"),
    (".json", b'{"columns": ["user_id"], "data": {"user_id": "u"}}', 0, "no table"),
    (".json", b'{"columns": ["user_id"], "data": [["u"], 1]}', 0, "no table"),
]


@pytest.mark.parametrize(("suffix", "content", "rows_gone", "why"), UNREADABLE)
def test_tables_that_cannot_be_searched_say_why(suffix, content, rows_gone, why):
    kept, gone, trouble = without_user(content, suffix, "u")
    assert (gone, why in trouble) == (rows_gone, True)
    assert kept == content.replace(b"u,1\n", b"")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_other_rows_of_a_csv_keep_every_byte(tmp_path, mark):
    others = [b'"user_id",said\r\n', b'v,"one\r\ntwo ""x"""\r\n', b"'w',  \n", b'"x",\xe2\x80\xa8\r', b'last,"1"']
    file = tmp_path / "x.csv"
    file.write_bytes(mark + b"".join([*others[:2], b'u,"a\r\nb"\r\n', *others[2:]]))
    assert forget_in_folder(tmp_path, "u").removed == {"table rows": 1}
    assert file.read_bytes() == mark + b"".join(others)
    assert forget_in_folder(tmp_path, "user_id").removed == {}, "the header is nobody's"


PROTOCOLS = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b'{"runs": 3}',
    b'{"runs": [3]}',
    b'{"runs": [{"users": {"u": 3}}]}',
    b'{"runs": [{"systems": []}]}',
    b'{"runs": "\xe9"}',
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files_that_cannot_be_read_are_named_and_stop_nothing(tmp_path, protocol):
    (tmp_path / "a.csv").write_bytes(b"user_id,said\nv," + b"x" * 140_000)
    (tmp_path / "b.json").write_bytes(b'{"user_id": "u", "cut')
    (tmp_path / "c.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "protocol.json").write_bytes(protocol)
    (tmp_path / "lm-cache").mkdir()
    (tmp_path / "z").mkdir()
    Persona.from_text("Likes tea.", user_id="u").to_json(tmp_path / "z" / "copy.json")
    told = forget_in_folder(tmp_path, "u")
    assert told.removed == {"persona files": 1, "whole LM caches": 1}
    assert all(f"{tmp_path / name} (" in told.note for name in ("a.csv", "b.json", "c.json", "protocol.json"))
    assert told.note.startswith("look yourself")
    assert "copy.json" not in told.note


@pytest.mark.parametrize(
    ("users", "left"),
    [(("v", "u"), ["v"]), ("u", []), (["v"], ["v"]), (2, 2), ("longest:2", "longest:2"), (None, None)],
)
def test_a_name_goes_from_the_protocol_of_an_evaluation(tmp_path, users, left):
    people = [replace(i, user_id=user) for user in "uv" for i in SyntheticUser(seed=1).interactions(8)]
    Experiment(people, systems=["majority"], users=users, out=tmp_path).results()
    told = forget_in_folder(tmp_path, "u")
    assert (told.note, len(told.removed)) == ("", users in (("v", "u"), "u"))
    assert json.loads((tmp_path / "protocol.json").read_bytes())["runs"][0]["users"] == left


def test_a_file_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    for name in ("a.json", "b.json"):
        Persona.from_text("Likes tea.", user_id="u").to_json(tmp_path / name)

    def kept(path, **_):
        if path.name == "a.json":
            raise PermissionError(13, "Permission denied", str(path))
        os.unlink(path)

    monkeypatch.setattr(Path, "unlink", kept)
    told = forget_in_folder(tmp_path, "u")
    assert told.removed == {"persona files": 1}
    assert f"{tmp_path / 'a.json'} (Permission denied)" in told.note


def test_a_broken_journal_of_a_compile_stops_nothing(tmp_path):
    with FleetFolder(tmp_path / "p") as folder:
        folder.calls.add("u", {"key": "k", "outputs": ["x"]})
    (tmp_path / ".p.fleet" / "journal.db").write_bytes(b"no database" * 100)
    Persona.from_text("Likes tea.", user_id="u").to_json(tmp_path / "p" / "copy.json")
    told = forget_in_folder(tmp_path / "p", "u")
    assert told.removed == {"persona files": 1, "kept LM answers": 1}
    assert "journal.db (" in told.note


def test_the_command_names_what_it_could_not_search(home, capsys):
    (home / "p").mkdir()
    (home / "p" / "a.csv").write_bytes(b"user_id,said\nv,caf\xe9\n")
    code, out, _ = run(capsys, "forget", "u", "--out", "p", "--tracking-uri", "off", "--yes")
    assert (code, "p: nothing was found; NOTE: look" in out, "p/a.csv (not UTF-8)" in out) == (0, True, True)


def test_answers_in_dspys_own_cache_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path / "none"))
    assert dspy_cache_entries() == (tmp_path / "none", 0)
    from dspy.clients.cache import Cache

    cache = Cache(True, False, str(tmp_path / "some"), 10**8)
    cache.put({"model": "m", "prompt": "p"}, "an answer")
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path / "some"))
    assert dspy_cache_entries() == (tmp_path / "some", 1)
    cache.disk_cache.close()


def other_spellings(user):
    """A document of one user, a list of two users' and rows, as other programs and encodings write them."""
    documents = [{"user_id": user, "text": "x"}, {"user_id": "v", "text": "y"}]
    odd = '{"user\\u005fid" : "' + "".join(f"\\u{ord(c):04x}" for c in user) + '", "text": "x"}'
    return {
        "escaped.json": odd.encode(),
        "bom.json": b"\xef\xbb\xbf" + json.dumps(documents[0]).encode(),
        "utf16.json": json.dumps(documents[0]).encode("utf-16"),
        "utf16be.json": json.dumps(documents[0]).encode("utf-16-be"),
        "utf32.json": json.dumps(documents[0]).encode("utf-32"),
        "camel.json": json.dumps({"userId": user, "text": "x"}).encode(),
        "deep.json": json.dumps({"data": {"persona": documents[0]}}).encode(),
        "list.json": json.dumps(documents, indent=1).encode(),
        "mapping.json": json.dumps({"a": documents[0], "b": documents[1]}).encode(),
        "rows.txt": "".join(json.dumps(d) + "\n" for d in documents).encode(),
        "rows16.jsonl": "".join(json.dumps(d) + "\n" for d in documents).encode("utf-16"),
        "semicolons.csv": f"user_id;text\n{user};x\nv;y\n".encode(),
    }


def test_documents_in_any_spelling_and_encoding_go(tmp_path):
    user = "qzx-ünï7"
    for name, content in other_spellings(user).items():
        (tmp_path / name).write_bytes(content)
    told = forget_in_folder(tmp_path, user)
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(left) == ["list.json", "mapping.json", "rows.txt", "rows16.jsonl", "semicolons.csv"]
    assert told.note == ""
    assert json.loads(left["list.json"]) == [{"user_id": "v", "text": "y"}]
    assert json.loads(left["mapping.json"]) == {"b": {"user_id": "v", "text": "y"}}
    assert left["rows16.jsonl"].decode("utf-16") == json.dumps({"user_id": "v", "text": "y"}) + "\n"
    assert left["semicolons.csv"] == b"user_id;text\nv;y\n"


def test_checkpoints_profiles_pages_and_what_a_killed_writer_left_go(tmp_path):
    program = personalize(dspy.Predict("question -> answer"), persona=Persona.from_text("Likes tea.", user_id="ana"))
    program.save(tmp_path / "program.json")
    program.save(tmp_path / "whole", save_program=True)
    other = personalize(dspy.Predict("question -> answer"), persona=Persona.from_text("Likes tea.", user_id="bob"))
    other.save(tmp_path / "other.json")
    profile = persona_file_name("ana").replace(".json", ".txt")
    (tmp_path / "personas" / "pag").mkdir(parents=True)
    (tmp_path / "personas" / "pag" / profile).write_text("Reads about bees.")
    mark = '<meta name="generator" content="persona-dspy">'
    (tmp_path / "report.html").write_text(f'<html><head>{mark}</head><script>[{{"user_id": "ana"}}]</script>')
    (tmp_path / "others.html").write_text(f'<html><head>{mark}</head><script>[{{"user_id": "bob"}}]</script>')
    (tmp_path / ".abc12345.part").write_text("Reads about bees, and was cut")
    with lock_file(tmp_path / ".live1234.part") as live:
        live.write("somebody's text, being written")
        live.flush()
        told = forget_in_folder(tmp_path, "ana")
    assert told.removed == {"profiles": 1, "checkpoints": 2, "report pages": 1, "unfinished files": 1}
    assert ".live1234.part (is being written)" in told.note
    assert {f.name for f in tmp_path.rglob("*") if f.is_file()} == {
        ".live1234.part",
        "metadata.json",
        "other.json",
        "others.html",
    }


def test_what_is_not_marked_is_named(tmp_path):
    wrote = "My sister keeps bees behind the old mill in Ghent."
    (tmp_path / "notes.md").write_text("She said: my sister keeps bees behind the old mill.")
    (tmp_path / "demos.json").write_text(json.dumps({"demos": [{"question": wrote}]}))
    (tmp_path / "packed.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "other.json").write_text(json.dumps({"user_id": "bob", "text": wrote}))  # bob's own
    (tmp_path / "nothing.txt").write_text("Bees are insects.")
    (told,) = forget_user("ana", folders=[tmp_path], texts=[wrote])
    assert not told.removed
    for name in ("notes.md", "demos.json"):
        assert f"{tmp_path / name} holds words of the user's" in told.note
    assert "packed.jsonl.gz (packed)" in told.note
    assert "nothing.txt" not in told.note and "other.json" not in told.note


class Broken:
    def forget(self, user_id, texts=()):
        raise StoreError("the server is down")


def test_an_account_is_given_where_a_place_fails(tmp_path, home, capsys, monkeypatch):
    Persona.from_text("Likes tea.", user_id="u").to_json(tmp_path / "a.json")
    with pytest.raises(ForgettingIncomplete, match="the server is down") as incomplete:
        forget_user("u", folders=[tmp_path], store=Broken(), tracker=Broken())
    told = {one.place: (dict(one.removed), one.note) for one in incomplete.value.erasures}
    assert told[str(tmp_path)] == ({"persona files": 1}, "")
    assert told["store"] == told["MLflow"] == ({}, "FAILED: the server is down")
    (home / "p").mkdir()
    Persona.from_text("Likes tea.", user_id="u").to_json(home / "p" / "a.json")
    (home / "mlflow.db").write_bytes(b"")
    monkeypatch.setattr("persona_dspy.tracking.MlflowTracker.forget", Broken().forget)
    code, out, err = run(capsys, "forget", "u", "--out", "p", "--tracking-uri", "sqlite:///mlflow.db", "--yes")
    assert (code, "p: persona files 1" in out, "MLflow: nothing was found; NOTE: FAILED" in out) == (1, True, True)
    assert "mend it and forget again" in err


def test_an_evaluation_at_work_is_not_forgotten_under(tmp_path):
    Persona.from_text("Likes tea.", user_id="u").to_json(tmp_path / "cells" / "one" / "a.json")
    with lock_file(tmp_path / "cells" / "one" / ".evaluation.lock"), pytest.raises(InputError, match="evaluates"):
        forget_user("u", folders=[tmp_path])
    assert forget_user("u", folders=[tmp_path])[0].removed == {"persona files": 1}
