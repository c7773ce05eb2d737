"""Every command in a shell block of README, CONTRIBUTING and docs: its words are right, and ours run."""

import csv
import itertools
import json
import re
import shlex
import shutil
import sysconfig
import tomllib
import warnings
from collections import defaultdict
from pathlib import Path

import datasets
import dspy
import pytest
import typer
from test_cli import run
from tree import ROOT

from persona_dspy import lm as lm_room
from persona_dspy import tracking
from persona_dspy.cli import app
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import RuleFollower

OTHERS = {"source", "ollama", "vllm", "createdb", "curl"}  # programs of other makers; curl runs in test_serve.py


def commands(page):
    """The words of each command of a page's shell blocks, assignments before it left out."""
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace(";", " ; "), comments=True)
            for _, same in itertools.groupby(words, key={"&&", ";"}.__contains__):
                one = list(itertools.dropwhile(re.compile(r"[A-Z_]+=|&&$|;$|do$").match, same))
                if one and one[0] not in ("for", "done", "set"):
                    yield one


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = {page.relative_to(ROOT).as_posix(): list(commands(page)) for page in PAGES}
COMMANDS = {page: found for page, found in COMMANDS.items() if found}


def ours(words):
    """Parsed by the command line itself, without running it."""
    command = typer.main.get_command(app)
    if words[1].endswith("-completion"):  # parsing alone would write to the shell's own files
        assert any(words[1] in parameter.opts for parameter in command.params)
        return
    context = command.make_context(words[0], words[1:], resilient_parsing=False)
    rest = [*context._protected_args, *context.args]
    while getattr(command, "commands", None) and rest:
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
        rest = [*getattr(context, "_protected_args", ()), *context.args]


def mlflows(words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.cli import cli

    _, command, rest = cli.resolve_command(cli.make_context("mlflow", words[1:]), words[1:])
    command.make_context(words[1], rest)


def makes(words):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert words[1] in targets


def pips(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = re.fullmatch(r"(?:persona-dspy|\.)\[([a-z,]+)\]", words[-1])
    assert words[1] == "install" and asked and set(asked[1].split(",")) <= set(extras)


def tools(words):
    """A program of the development environment, and the files it is given."""
    assert (Path(sysconfig.get_path("scripts")) / Path(words[0]).name).exists()
    assert all((ROOT / w).exists() for w in words if re.match(r"(tests|benchmarks|docs)/", w))


def uvicorns(words):
    """Its own words, parsed without running it, and an application that is in the repository."""
    from uvicorn.main import main as uvicorn

    given = uvicorn.make_context("uvicorn", words[1:]).params
    module, _, name = given["app"].partition(":")
    assert f"{name} = FastAPI(" in (ROOT / given["app_dir"] / f"{module}.py").read_text(encoding="utf-8")


def exports(words):
    assert all(re.fullmatch(r"[A-Z_]+=\S+", w) for w in words[1:])


KINDS = {
    "persona-dspy": ours,
    "mlflow": mlflows,
    "make": makes,
    "pip": pips,
    "export": exports,
    "python": tools,
    "uvicorn": uvicorns,
}


@pytest.mark.parametrize("page", COMMANDS)
def test_every_command_is_one(page):
    for words in COMMANDS[page]:
        if words[0] not in OTHERS:
            (tools if words[0].startswith(".venv/bin/") else KINDS[words[0]])(words)


def prepared(folder):
    """A folder in which the pages' commands find what they name: the sample, also with a user u1, and a store with
    versions made from the first half of it."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    rows = (folder / "examples" / "movie_tags.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    by_user = defaultdict(list)
    for row in rows:
        by_user[json.loads(row)["user_id"]].append(row)
    ana, bram = "".join(by_user["ana"]), "".join(by_user["bram"])
    mine = ana + bram + ana.replace("ana", "u1")
    (folder / "interactions.jsonl").write_text(mine, encoding="utf-8")
    half = "".join(row for user in ("ana", "bram") for row in by_user[user][: len(by_user[user]) // 2])
    (folder / "half.jsonl").write_text(half, encoding="utf-8")
    tickets = list(csv.DictReader((folder / "examples" / "tickets.csv").read_text(encoding="utf-8").splitlines()))
    datasets.DatasetDict(train=datasets.Dataset.from_list(tickets)).save_to_disk(str(folder / "tickets"))


# The real ones are tested elsewhere.
STANDS_FOR = {"postgresql+psycopg://user@host/personas": "server.db", "ray": "local", "sqlite:///mlflow.db": "off"}
STANDS_FOR |= {"--budget-usd": "--budget-tokens", "5": "5000000"}  # nobody knows what a fake LM costs
OF_OTHER_DATA = ("docs/guides/answers.md", "docs/guides/reproduce.md")  # films of one's own; LaMP by the network


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p, found in COMMANDS.items() if any(w[0] == "persona-dspy" for w in found)])
def test_our_commands_run_one_after_the_other(page, tmp_path, monkeypatch, capsys):
    if "$" in str(COMMANDS[page]) or page in OF_OTHER_DATA:
        pytest.skip("its commands name data that is not in the repository")
    fake = FakeLM(RuleFollower(heeds_turns=True))
    prepared(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONA_DSPY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda spec="local", **_: fake)
    monkeypatch.setattr(lm_room, "check_lm", lambda lm: None)
    monkeypatch.setattr(lm_room, "fetch_model", lambda name: tmp_path / f"{name}.gguf")  # hundreds of MB
    monkeypatch.setattr(tracking, "tracker_for", lambda *_, **__: tracking.NullTracker())  # seconds; tested elsewhere
    # of a server; test_trace_feedback.py has a real one
    monkeypatch.setattr(tracking, "learn_from_traces", lambda *_, **__: tracking.TracesRead())
    cache = dspy.cache
    try:
        first = "compile half.jsonl --store personas.db --out personas/ --progress quiet"
        assert run(capsys, *first.split())[0] == 0
        for words in COMMANDS[page]:
            if words[0] == "persona-dspy" and not words[1].endswith("-completion"):
                alternative = words[1] == "compile" and "--resume" not in words and "--estimate" not in words
                again = ["--fresh"] if alternative and "--fresh" not in words else []  # pages show one beside the other
                code, _, err = run(capsys, *(STANDS_FOR.get(w, w) for w in words[1:]), *again)
                assert code == 0, (words, err)
    finally:
        dspy.cache = cache
