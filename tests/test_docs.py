"""Everything written is executed: docstrings, README, command-line examples."""

import doctest
import importlib
import re
import shlex

import dspy
import pytest
from test_architecture import NAMES
from tree import ROOT

from persona_dspy.testing import FakeLM

README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS_A_MODEL = {"persona_dspy.local_lm", "persona_dspy.settings", "persona_dspy.memory.encoders"}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDS_A_MODEL])
def test_docstring_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def movies(prompt):
    """Whatever is asked, in the right form."""
    texts = {"about_the_user": "Likes horror.", "edits": [], "genre": "horror", "answer": "yes", "reasoning": "so"}
    return {name: texts[name] for name in prompt.outputs}


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fake = FakeLM(movies, model="openai/gpt-4o-mini")
    monkeypatch.setattr(dspy, "LM", lambda name: fake)
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
    assert "horror" in capsys.readouterr().out
    assert (tmp_path / "personas" / "u1.json").exists()


def test_the_readmes_commands_exist(monkeypatch):
    from typer.testing import CliRunner

    from persona_dspy.cli import app

    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["persona-dspy"]:
                shown = CliRunner().invoke(app, [words[1], "--help"])
                assert shown.exit_code == 0
                missing = [w for w in words if w.startswith("--") and w not in re.sub(r"\s+", " ", shown.output)]
                assert not missing


def test_the_changelog_is_dated_and_current():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (Unreleased|\d+\.\d+\.\d+ - \d{4}-\d{2}-\d{2})", text, re.MULTILINE)
