"""The wheel: what is in it, and that it works in an environment that holds nothing else."""

import email
import os
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from tree import ROOT

from persona_dspy import Persona

pytestmark = pytest.mark.slow
UV = Path(sysconfig.get_path("scripts")) / "uv"


def said(*command, **options):
    """What a command prints; its own PATH and environment, without this checkout."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command], check=False, capture_output=True, text=True, env=clean, timeout=900, **options
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    said(UV, "build", "--wheel", "--quiet", "--out-dir", folder, ROOT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """The folder of programs of a new environment that holds the wheel and what it asks for, no extra."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    said(UV, "venv", "--quiet", "--python", sys.executable, place)
    said(UV, "pip", "install", "--quiet", "--python", place / "bin" / "python", wheel)
    return place / "bin"


def test_it_holds_both_packages_and_only_what_they_need(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [archive.read(n).decode() for n in names if n.endswith(".dist-info/METADATA")]
    sources = {
        p.relative_to(ROOT).as_posix()
        for package in ("persona_dspy", "optimizers")
        for p in (ROOT / package).rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }
    assert {n for n in names if ".dist-info/" not in n} == sources
    assert {"persona_dspy/py.typed", "persona_dspy/core/schemas/persona-2.schema.json"} <= names
    assert {Path(n).suffix for n in sources} <= {".py", ".json", ".html", ".css", ".js", ".typed", ".pyi"}
    assert wheel.stat().st_size < 1_000_000
    asked = email.message_from_string(metadata).get_all("Requires-Dist")
    given = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert len([a for a in asked if "extra ==" not in a]) == len(given)


def test_help_comes_within_a_second_and_a_half(bare):
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert "compile" in said(bare / "persona-dspy", "--help")
        took.append(time.perf_counter() - began)
    assert min(took) < 1.5, took


def test_every_module_imports_without_an_extra(bare, tmp_path):
    code = """if True:
        import importlib, pkgutil, persona_dspy, optimizers
        for package in (persona_dspy, optimizers):
            for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                print(importlib.import_module(found.name).__file__)
    """
    files = said(bare / "python", "-c", code, cwd=tmp_path).split()
    assert len(files) > 80 and all(str(bare.parent) in f for f in files), "not this checkout's"


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("compile sample.jsonl --lm local", "local"),
        ("ingest sample.jsonl --store postgresql+psycopg://user@host/none", "postgres"),
        ("report personas", "report"),
    ],
)
def test_a_missing_extra_is_told_with_what_to_type(command, extra, bare, tmp_path):
    Persona.from_text("Likes brevity.", user_id="ana").to_json(tmp_path / "personas" / "ana.json")
    (tmp_path / "sample.jsonl").write_bytes((ROOT / "examples" / "movie_tags.jsonl").read_bytes())
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [bare / "persona-dspy", *command.split()],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean,
        timeout=300,
    )
    assert done.returncode in (1, 2)
    assert f"pip install 'persona-dspy[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
