"""Everything written is executed: docstrings, README, command-line examples."""

import doctest
import importlib
import importlib.util
import io
import re
import shlex
import shutil

import dspy
import pytest
from test_architecture import NAMES
from test_cli import run
from tree import ROOT

from persona_dspy import lm as lm_room
from persona_dspy.core import load_persona
from persona_dspy.lm import AsyncTextEngine
from persona_dspy.testing.fake_lm import FakeEngine

spec = importlib.util.spec_from_file_location("opening", ROOT / "docs" / "opening.py")
opening = importlib.util.module_from_spec(spec)
spec.loader.exec_module(opening)

README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS_A_MODEL = {"persona_dspy.lm.local.engine"}
MODULES = [pytest.param(n, marks=pytest.mark.model) if n in NEEDS_A_MODEL else n for n in NAMES]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, request):
    if name in NEEDS_A_MODEL:
        request.getfixturevalue("smol_lm")  # skips where there is none
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def faked(handler):
    """A class to stand for ``dspy.LM``: whatever is named, a fake answers."""

    class Faked(dspy.LM):
        def __init__(self, model, **_):
            engine = FakeEngine([handler])
            super().__init__(model, engine=engine, async_engine=AsyncTextEngine(engine), cache=False, num_retries=0)

    return Faked


def movies(prompt):
    """Whatever is asked, in the right form."""
    texts = {"about_the_user": "Likes horror.", "edits": [], "genre": "horror", "answer": "yes", "reasoning": "so"}
    return {name: texts[name] for name in prompt.outputs}


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dspy, "LM", faked(movies))
    monkeypatch.setattr(lm_room, "resolve_lm", faked(movies))
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
    assert "horror" in capsys.readouterr().out
    assert (tmp_path / "personas" / "u1.json").exists()


def test_the_readme_opens_on_what_commands_made():
    """The persona is what examples/agent-03.json holds, the table what docs/RESULTS.md says."""
    assert opening.filled(README, {"history": opening.history(), "persona": opening.persona()}) == README
    assert opening.filled(README, {"results": opening.results()}) == README, "type: python docs/opening.py"
    assert README.count("\n") <= 130
    persona = load_persona(opening.PERSONA)
    assert persona.user_id == "agent-03" and "order 5121" in README


def test_the_readmes_mail_can_be_asked(monkeypatch, capsys):
    """The command that README names gives the answers that it shows, by recorded answers of a capable model."""
    monkeypatch.chdir(ROOT)
    assert f"`{' '.join(opening.asked())} < examples/mail.txt`" in " ".join(README.split())
    answers = []
    for more in (("--without-persona",), ()):
        monkeypatch.setattr("sys.stdin", io.StringIO(opening.MAIL.read_text(encoding="utf-8")))
        code, out, err = run(capsys, *opening.asked(*more)[1:])
        assert code == 0, err
        answers.append(out)
    assert opening.filled(README, {"answers": opening.both(*answers)}) == README


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


PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "```python" in p.read_text(encoding="utf-8"))


_LONG = ("feedback",)  # waits for a server's writes


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in _LONG else []) for p in PAGES]
)
def test_the_documentations_python_runs(page, tmp_path, monkeypatch, request):
    """All blocks of a page, in order, in one namespace; LMs are a fake that knows the fields asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dspy, "LM", faked(anything))
    monkeypatch.setattr(lm_room, "resolve_lm", faked(anything))
    names, text = {"__name__": page.stem}, page.read_text(encoding="utf-8")
    if "mlflow.db" in text:
        shutil.copy(request.getfixturevalue("empty_mlflow"), tmp_path / "mlflow.db")
    try:
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, str(page), "exec"), names)
    finally:
        dspy.configure(lm=None, adapter=None)


def anything(prompt):
    """An answer of the right type for every field."""
    return {
        name: next(iter(prompt.choices(name)), [] if name in ("edits", "lines") else "few") for name in prompt.outputs
    }
