"""What every command promises: help with an example that runs, ``--json`` that is JSON and nothing else."""

import json
import re
import shlex
import shutil
from pathlib import Path

import dspy
import pytest
import typer
from test_cli import run
from tree import ROOT

from persona_dspy import data as data_room
from persona_dspy import lm as lm_room
from persona_dspy import tracking
from persona_dspy.cli import app
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import RuleFollower


def commands(group=None, words=()):
    """(words, click command) of every command, groups opened."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands())
EXAMPLES = {words: re.findall(r"Example: (persona-dspy .*)", command.help) for words, command in COMMANDS.items()}

# In the order in which one can be run after the other: (command, keys its JSON has).
STORY = [
    ("config", {"model", "store", "program"}),
    ("models pull", {"name", "file"}),
    ("models list", {"folder", "models"}),
    ("data tasks", None),
    ("data pull", {"task", "file"}),
    ("compile", {"event", "user_id", "with_persona", "calls"}),
    ("status", {"run", "users", "calls"}),
    ("show", {"user_id", "system_prompt"}),
    ("ask", {"user_id", "response"}),
    ("ask", {"user_id", "response"}),
    ("report", {"out", "users", "bytes"}),
    ("evaluate", {"complete", "systems", "out"}),
    ("reproduce", {"calls", "usd", "seconds", "parts"}),
    ("ingest", {"users", "new"}),
    ("compile", {"event", "user_id", "with_persona", "calls"}),
    ("users", {"users", "more"}),
    ("history", {"versions"}),
    ("diff", {"from", "to", "added"}),
    ("diff", {"other_user_id", "from", "to", "added"}),
    ("edit", {"from", "to", "by", "added"}),
    ("rollback", {"from", "to"}),
    ("export", {"personas"}),
    ("import", {"imported"}),
    ("report", {"out", "users", "bytes"}),
    ("forget", {"user_id", "places"}),
    ("serve", {"url", "upstream", "store", "queue"}),
]


def test_no_command_is_left_out():
    assert {" ".join(words) for words in COMMANDS} == {name for name, _ in STORY}
    assert all(EXAMPLES.values()), {" ".join(w) for w, found in EXAMPLES.items() if not found}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_has_help_and_json(words, capsys):
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0
    assert "Example: persona-dspy " + " ".join(words) in re.sub(r"\s+", " ", out)
    assert any("--json" in parameter.opts for parameter in COMMANDS[words].params)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_names_and_defaults_are_whole_in_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, *words, "--help")
    assert max(map(len, out.splitlines())) <= 80 and "\nOther:" not in out
    for parameter in COMMANDS[words].params:
        named = parameter.opts[0]
        assert parameter.param_type_name == "argument" or re.search(rf"^  (-h, )?{named}[ ,\n]", out, re.MULTILINE)
        if isinstance(parameter.default, int | str | Path) and not isinstance(parameter.default, bool):
            assert f"default: {parameter.default}" in re.sub(r"\s+", " ", out)


@pytest.mark.slow
def test_every_example_runs_and_answers_in_json(tmp_path, monkeypatch, capsys):
    fake = FakeLM(RuleFollower(heeds_turns=True))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONA_DSPY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda spec="local", **_: fake)
    monkeypatch.setattr(lm_room, "check_lm", lambda lm: None)
    monkeypatch.setattr(lm_room, "fetch_model", lambda name: tmp_path / f"{name}.gguf")  # 98 MB
    monkeypatch.setattr(data_room, "pull", lambda task, out, **_: out / task)  # another machine
    monkeypatch.setattr(tracking, "tracker_for", lambda *_, **__: tracking.NullTracker())  # seconds; tested elsewhere
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)  # for ever; tested elsewhere
    monkeypatch.setenv("PERSONA_DSPY_TOKEN", "0123456789abcdef")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake")
    shutil.copytree(ROOT / "examples", "examples")
    rows = Path("examples/movie_tags.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    by_user = {user: [row for row in rows if f'"user_id": "{user}"' in row] for user in ("ana", "bram")}
    Path("half.jsonl").write_text("".join(row for own in by_user.values() for row in own[: len(own) // 2]))
    cache = dspy.cache
    try:
        prepared = "compile half.jsonl --store personas.db --out half --tracking-uri off --progress quiet"
        assert run(capsys, *prepared.split())[0] == 0  # so that compile --store makes a second version
        left = {" ".join(words): list(found) for words, found in EXAMPLES.items()}
        for name, keys in STORY:
            example = left[name].pop(0)
            code, out, err = run(capsys, *shlex.split(example)[1:], "--json")
            assert code == 0, (example, err)
            for value in map(json.loads, out.splitlines() if name == "compile" else [out]):
                assert keys is None or value.get("event") == "end" or keys <= set(value), example
        assert not any(left.values())
    finally:
        dspy.cache = cache
