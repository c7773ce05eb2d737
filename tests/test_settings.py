"""``persona-dspy.toml``, ``config``, and the user's own program and metric under ``compile`` and ``ask``."""

import json
import re
import sys
from pathlib import Path

import pytest
from test_cli import data, lm, rows, run, write  # noqa: F401 - fixtures

from persona_dspy.core import load_document
from persona_dspy.testing.synthetic import SyntheticUser

APP = """
import dspy

class Tagger(dspy.Module):
    def __init__(self):
        super().__init__()
        kinds = "'sci-fi', 'romance', 'thriller', 'horror', 'comedy', 'history'"
        self.tag = dspy.Predict(f"plot -> genre: Literal[{kinds}]")

    def forward(self, plot):
        return self.tag(plot=plot)

program = Tagger()
make = Tagger
asked = []

def score(example, prediction):
    asked.append(prediction.genre)
    return float(example.genre == prediction.genre)
"""


@pytest.fixture
def app(lm, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "own_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_app", None)


def toml(**values):
    Path("persona-dspy.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))


def test_config_shows_where_each_value_comes_from(lm, capsys, monkeypatch):  # noqa: F811
    toml(model="openai/gpt-4o-mini", store="mine.db")
    monkeypatch.setenv("PERSONA_DSPY_HOME", "elsewhere")
    shown = json.loads(run(capsys, "config", "--json")[1])
    assert shown["model"] == {"value": "openai/gpt-4o-mini", "from": "persona-dspy.toml"}
    assert shown["metric"]["from"] == "default"
    assert shown["PERSONA_DSPY_HOME"] == {"value": "elsewhere", "from": "environment"}
    assert "[default: openai/gpt-4o-mini]" in " ".join(run(capsys, "compile", "--help")[1].split())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lm = 'x'", "'lm'"),
        ("model = 3", "model = 3"),
        ("model", "persona-dspy.toml"),
        ("model = ' '", "text in quotes"),
    ],
)
def test_a_file_that_says_nonsense_is_named(text, says, lm, capsys):  # noqa: F811
    Path("persona-dspy.toml").write_text(text)
    code, _, err = run(capsys, "users")
    assert code == 2 and says in err


@pytest.mark.slow
def test_the_files_store_and_model_are_used(lm, data, capsys):  # noqa: F811
    toml(store="mine.db", tracking="off", model="local")
    assert run(capsys, "compile", data, "--out", "p", "--users", "2")[0] == 0
    code, out, _ = run(capsys, "users")
    assert code == 0 and "synthetic-1" in out and "synthetic-2" in out
    assert json.loads(run(capsys, "users", "--limit", "1", "--json")[1])["more"] is True
    difference = run(capsys, "diff", "synthetic-1", "synthetic-2")[1]
    assert difference.startswith("synthetic-1, version 1 -> synthetic-2, version 1")
    a, b = sorted(Path("p").iterdir())
    assert run(capsys, "diff", a, b)[1] == difference
    assert "synthetic-1" in run(capsys, "show", a)[1], "a file is a file, whatever store there is"


@pytest.mark.parametrize("name", ["program", "make"])
def test_compile_and_ask_run_the_users_own_program_and_metric(name, app, data, lm, capsys, monkeypatch):  # noqa: F811
    toml(program=f"own_app:{name}", metric="own_app:score", tracking="off")
    assert run(capsys, "compile", data, "--out", "p", "--users", "1", "--epochs", "1")[0] == 0
    document = load_document(next(Path("p").iterdir()))
    assert document.task == "plot -> genre" and document.alignment.options["metric"] == "score"
    assert sys.modules["own_app"].asked
    lm.engine.calls.clear()
    monkeypatch.setattr("sys.stdin.read", lambda: "a rocket\n", raising=False)
    code, out, err = run(capsys, "ask", "-", "--persona", next(Path("p").iterdir()))
    assert code == 0 and "program own_app:" in err and out.strip()
    (asked,) = lm.engine.calls
    assert "plot" in asked.fields and document.system_prompt in asked.system
    code, _, err = run(capsys, "ask", "x", "--persona", next(Path("p").iterdir()), "--without-persona")
    assert code == 0 and document.system_prompt not in lm.engine.calls[-1].system


@pytest.mark.parametrize(
    ("option", "spec", "says"),
    [
        ("--program", "own_app", "module:object"),
        ("--program", "own_app:nothing", "no 'nothing'"),
        ("--program", "nowhere:program", "no module 'nowhere'"),
        ("--program", "own_app:asked", "expected a dspy.Module"),
        ("--metric", "own_app:asked", "expected a function"),
    ],
)
def test_what_cannot_be_run_is_named_before_anything_is_paid(option, spec, says, app, data, lm, capsys):  # noqa: F811
    code, _, err = run(capsys, "compile", data, "--out", "p", "--tracking-uri", "off", option, spec)
    assert code == 2 and says in err and not lm.engine.calls


def test_nothing_left_says_so_and_the_last_line_says_how_it_went(lm, tmp_path, capsys):  # noqa: F811
    file = write(tmp_path / "d.jsonl", rows(SyntheticUser(seed=1)))
    argv = ("compile", file, "--out", "p", "--tracking-uri", "off")
    out = run(capsys, *argv)[1]
    assert "1 user better, 0 same, 0 worse" in out.splitlines()[-1]
    assert "nothing was left to do" in run(capsys, *argv, "--resume")[1]


def test_the_judge_runs_the_users_own_program_and_metric(app, data, lm, capsys):  # noqa: F811
    toml(program="own_app:program", metric="own_app:score", tracking="off")
    code, out, err = run(capsys, "evaluate", data, "--systems", "persona,direct,rag", "--users", "2", "--epochs", "1")
    assert code == 0, err
    assert re.fullmatch(r"persona: \d users? better, \d same, \d worse than with \w+", out.splitlines()[-1])
    assert "| score ↑ [95%] |" in Path("evaluation/table.md").read_text()
    rows_ = [json.loads(line) for line in Path("evaluation/answers.jsonl").read_text().splitlines()]
    scored = {r["system"]: r["score"] for r in rows_ if r["kind"] == "answer"}
    assert set(scored) >= {"persona", "direct", "rag"} and None not in [scored[s] for s in ("persona", "direct", "rag")]
    protocol = json.loads(Path("evaluation/protocol.json").read_text())
    assert (protocol["program"], protocol["metric"]) == ("own_app:program", "own_app:score")
    assert all("plot" in call.fields for call in lm.engine.calls if call.outputs == ("genre",))
