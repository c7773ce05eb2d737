"""The command line from end to end with a fake LM: what it writes, what it says, how it exits."""

import json
import shutil
import sqlite3
from pathlib import Path

import dspy
import pytest
from dspy.lm15 import AuthError

from persona_dspy import lm as lm_room
from persona_dspy.cli import main
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm

LABELS = ["sci-fi", "romance", "thriller", "horror", "comedy", "history"]


def rows(user, n=24):
    return [
        {"user_id": i.user_id, "id": i.id, "query": i.query, "response": i.response, "time": i.time.date().isoformat()}
        for i in user.interactions(n)
    ]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def lm(monkeypatch, tmp_path):
    fake = rule_following_lm()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda spec="local", **_: fake)
    monkeypatch.setattr(lm_room, "check_lm", lambda lm: None)
    return fake


def run(capsys, *argv):
    """(exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in argv])
    out = capsys.readouterr()
    return end.value.code, out.out, out.err


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "d.jsonl", [r for s in (1, 2, 3) for r in rows(SyntheticUser(seed=s))])


def test_compile_writes_a_json_per_user_and_the_runs(lm, data, tmp_path, capsys, empty_mlflow):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    code, out, _ = run(capsys, "compile", data, "--out", tmp_path / "p")
    assert code == 0
    files = sorted((tmp_path / "p").iterdir())
    documents = [json.loads(f.read_text()) for f in files]
    assert [d["user_id"] for d in documents] == ["synthetic-1", "synthetic-2", "synthetic-3"]
    assert all(d["system_prompt"] and d["alignment"]["gate_size"] == 6 for d in documents)
    assert sum(d["alignment"]["usage"]["total"]["calls"] for d in documents) == len(lm.engine.calls)
    assert "synthetic-2" in out
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in out
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        parents = db.execute("select count(*) from tags where key='mlflow.parentRunId'").fetchone()[0]
        finals = db.execute("select count(*) from metrics where key='score_final'").fetchone()[0]
    db.close()
    assert (parents, finals) == (3, 3)


def test_users_and_budget(lm, data, tmp_path, capsys):
    code, _, _ = run(
        capsys, "compile", data, "--out", "p", "--users", "2", "--budget-calls", "15", "--tracking-uri", "off"
    )
    assert len(lm.engine.calls) <= 15
    assert len(list((tmp_path / "p").iterdir())) >= 1
    assert code in (0, 1)
    assert not (tmp_path / "mlflow.db").exists()
    code, _, err = run(capsys, "compile", data, "--out", "q", "--users", "nobody", "--tracking-uri", "off")
    assert (code, (tmp_path / "q").exists()) == (2, False)
    assert "nobody" in err


class Refusing:
    """An engine without a key."""

    supports_response_schema, supports_function_calling = True, False
    supported_params = frozenset({"response_format", "temperature"})

    def __deepcopy__(self, memo):
        return self

    def complete(self, request):
        raise AuthError("no key")


def test_columns_are_named_wherever_a_history_is_read(lm, data, tmp_path, capsys):
    run(capsys, "compile", data, "--out", "p", "--users", "synthetic-1", "--tracking-uri", "off")
    (file,) = (tmp_path / "p").iterdir()
    past = [json.loads(line) for line in data.read_text().splitlines()]
    named = [",".join([r["user_id"], r["id"], f'"{r["query"]}"', r["response"], r["time"]]) for r in past]
    Path("past.csv").write_text("\n".join(["who,id,what,said,then", *named]))
    queries = [r["query"] for r in past if r["user_id"] == "synthetic-1"]
    columns = ("--columns", "user_id=who,query=what,response=said,time=then")
    lm.engine.calls.clear()
    code, out, _ = run(capsys, "ask", "--persona", file, "--history", "past.csv", *columns, "a rocket")
    assert code == 0 and len(lm.engine.calls[0].turns) == 4
    code, out, err = run(capsys, "report", "p", "--history", "past.csv", *columns, "--out", "r.html")
    assert code == 0 and any(query in Path("r.html").read_text() for query in queries)
    Path("p/notes.txt").write_text(f"someone said: {queries[0]}")
    forget = ("forget", "synthetic-1", "--yes", "--out", "p", "--tracking-uri", "off", "--history", "past.csv")
    code, out, _ = run(capsys, *forget, *columns)
    assert code == 0 and "notes.txt holds" in out and not file.exists()
    for command in (("ask", "--persona", "x.json", "q"), ("report", "p"), ("forget", "ana", "--yes")):
        code, _, err = run(capsys, *command, "--columns", "user_id=who")
        assert code == 2 and "expected --history FILE too" in err
    code, _, err = run(capsys, *forget, "--columns", "user_id=nobody")
    assert code == 2 and "who, id, what, said, then" in err


def test_ask_and_show(lm, data, tmp_path, capsys, monkeypatch):
    run(capsys, "compile", data, "--out", "p", "--users", "synthetic-1", "--tracking-uri", "off")
    file = next((tmp_path / "p").iterdir())
    lm.engine.calls.clear()
    code, out, _ = run(capsys, "ask", "--persona", file, "--history", data, "a rocket leaves the planet")
    assert code == 0
    assert out.strip().splitlines()[-1] in LABELS
    (asked,) = lm.engine.calls  # one call, no probe before it
    assert json.loads(file.read_text())["system_prompt"] in asked.system
    assert len(asked.turns) == 4
    assert run(capsys, "ask", file, "--history", data, "a rocket leaves the planet")[1] == out
    for words, says in (
        ((file,), "expected a query after the file, such as ask"),
        ((file, "a", "rocket"), "expected one query, in quotes"),
        ((file, "a rocket", "--persona", file), "after one USER or FILE"),
        (("a rocket",), "expected a persona JSON or a user of the store before the query"),
    ):
        code, _, err = run(capsys, "ask", *words)
        assert code == 2 and says in err

    def broken(spec="local", **_):
        return dspy.LM("openai/m", engine=Refusing())

    with monkeypatch.context() as patched:
        patched.setattr("persona_dspy.lm.names.resolve_lm", broken)
        code, _, err = run(capsys, "ask", "--persona", file, "--history", data, "a rocket leaves the planet")
    assert code == 1 and "export OPENAI_API_KEY" in err
    code, out, _ = run(capsys, "show", file)
    assert code == 0
    assert "synthetic-1" in out
    assert "held-out scores over 6 interactions" in out
    code, out, _ = run(capsys, "show", file, "--json")
    assert json.loads(out) == json.loads(file.read_text())


BAD = {
    "missing field": ({"response": None}, ["line 3", "'response'"]),
    "bad date": ({"time": "soon"}, ["line 3", "'time'", "'soon'", "ISO date"]),
    "empty query": ({"query": " "}, ["line 3", "'query'"]),
    "duplicate id": ({"id": "i0"}, ["line 3", "'id'", "'i0'"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_and_nothing_is_written(case, lm, tmp_path, capsys):
    change, says = BAD[case]
    lines = rows(SyntheticUser(seed=1))
    lines[2] = {k: v for k, v in {**lines[2], **change}.items() if v is not None}
    file = write(tmp_path / "bad.jsonl", lines)
    code, _, err = run(capsys, "compile", file, "--out", "p", "--tracking-uri", "off")
    assert code == 2
    assert all(s in err for s in says), err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "p").exists()
    assert not lm.engine.calls
    code, _, err = run(capsys, "compile", file, "--out", "p", "--tracking-uri", "off", "--skip-bad-rows")
    assert code == 0
    assert "1 bad row" in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"user_id": "u", \n', "line 1"),
        (b"", "bad.jsonl"),
        (b"\xff\xfe\x00", "bad.jsonl"),
        (b'[{"id": "1", "input": "x", "profile": []}]', "--task"),
    ],
)
def test_a_broken_file_is_named(content, says, lm, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_bytes(content)
    code, _, err = run(capsys, "compile", "bad.jsonl", "--tracking-uri", "off")
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_missing_files_and_unknown_tasks(lm, data, tmp_path, capsys):
    assert run(capsys, "compile", "none.jsonl")[0] == 2
    code, _, err = run(capsys, "compile", data, "--task", "lamp-99")
    assert code == 2
    assert "lamp-2m" in err
    code, _, err = run(capsys, "compile", data, "--task", "lamp-2m")
    assert code == 2
    assert "romance" not in err.split("got")[0]
    assert "'response'" in err
    (tmp_path / "questions.json").write_text('[{"id": "1", "input": "x", "profile": []}]')
    code, _, err = run(capsys, "compile", "questions.json", "--task", "lamp-2m")
    assert code == 2
    assert "outputs.json" in err


def test_one_users_failure_leaves_the_others(lm, data, tmp_path, capsys):
    def refuse(prompt):
        if "synthetic-2" in prompt.system or any("boom" in str(v) for v in prompt.fields.values()):
            raise RuntimeError("the model is gone")

    lines = [r for s in (1, 2) for r in rows(SyntheticUser(seed=s))]
    lines += [{**r, "user_id": "broken", "query": r["query"] + " boom"} for r in rows(SyntheticUser(seed=3))]
    file = write(tmp_path / "three.jsonl", lines)
    lm.engine.handlers.insert(0, refuse)
    code, out, _ = run(capsys, "compile", file, "--out", "p", "--tracking-uri", "off")
    assert code == 1
    assert len(list((tmp_path / "p").iterdir())) == 2
    assert "broken" in out
    assert "the model is gone" in out


def test_wrong_persona_files(lm, tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    code, _, err = run(capsys, "ask", "--persona", "x.json", "query")
    assert code == 2
    assert "persona-dspy/persona/2" in err
    code, _, err = run(capsys, "show", "none.json")
    assert code == 2
    assert "no such file" in err


def test_a_model_file_that_is_not_one(tmp_path, monkeypatch, capsys, data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"not a model")
    code, _, err = run(capsys, "compile", data, "--lm", "local:m.gguf", "--out", "p", "--tracking-uri", "off")
    assert code == 2
    assert "m.gguf" in err
    assert "GGUF" in err
    assert not (tmp_path / "p").exists()


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("compile", "ask", "show", "models"))
