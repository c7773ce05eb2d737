"""The tree is the architecture, and this says so."""

import ast
import importlib
import importlib.util
import operator
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tree import FILES, ROOT, page, sources

MODULES = sources()
NAMES = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in MODULES]

# Allowed broad excepts: around one user's work in a fleet or a service, the CLI's outer frame, and a call of a tool,
# which may be anybody's code. This list only shrinks.
BROAD = {
    "persona_dspy/agent/on_loop.py",  # raised again inside the function that waited
    "persona_dspy/agent/tools.py",
    "persona_dspy/cli/__init__.py",
    "persona_dspy/fleet/user.py",
    "persona_dspy/service/align_user.py",
}


def name(path):
    return path.relative_to(ROOT).as_posix()


def test_the_figure_shows_the_rooms_as_they_are():
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    assert rooms.FIGURE.read_text(encoding="utf-8") == rooms.figure(), "type: make tree"


def test_a_newcomer_reads_few_files():
    """The page lists the files to read for an answer and for a compile, with names that are in them."""
    page_ = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.+)\n((?:.|\n)+?)(?=^## |\Z)", page_, re.MULTILINE))
    for heading, most in (("How an answer comes about", 6), ("How a persona is aligned", 5)):
        steps = re.split(r"^\d\. ", parts[heading], flags=re.MULTILINE)[1:]
        assert 1 < len(steps) <= most
        for step in steps:
            path, *names = re.findall(r"`([^`]+)`", step.split(":")[0])
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            assert names and all(operator.attrgetter(one)(module) for one in names), path


def of_every_file(check):
    """One test that checks all files and names each that fails; a test a file would be 800."""

    def test():
        failures = {}
        for path in MODULES:
            try:
                check(path)
            except AssertionError as failure:
                failures[name(path)] = str(failure)[:300]
        assert not failures

    test.__name__, test.__doc__ = check.__name__, check.__doc__
    return test


def test_a_page_lists_every_source_file():
    assert FILES.read_text(encoding="utf-8") == page(), "type: make tree"


@of_every_file
def test_every_module_is_small_and_has_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    module = ast.parse(text)
    assert len(text.splitlines()) <= 450
    assert ast.get_docstring(module)
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = len((ast.get_docstring(node) or "").splitlines())
            assert node.end_lineno - node.lineno + 1 - doc <= 60, f"{node.name} is too long"


@of_every_file
def test_public_names_are_listed_and_real(path):
    module = importlib.import_module(NAMES[MODULES.index(path)])
    names = getattr(module, "__all__", None)
    assert names is not None, "expected __all__"
    assert len(set(names)) == len(names)
    assert all(hasattr(module, n) for n in names)


PUBLIC = {
    "persona_dspy": (
        "Act Alignment Budget Bullet Edit EpisodicMemory Interaction Ledger LocalCorpus Persona "
        "PersonaAgent PersonaAlignment PersonaError PersonaPrediction Personas Signal Usage Wikipedia compile_users "
        "load_persona personalize save_persona"
    ),
    "optimizers": (
        "AlwaysAccept AnchorGate Cohort EditProposer HeldOutGate KFoldGate KeywordProposer PersonaAlignment "
        "PersonaGEPAAdapter Portrait RewriteProposer SignTestGate TextualLoss"
    ),
}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_these_and_each_shows_an_example(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__) == PUBLIC[package].split()
    for public in module.__all__:
        value = getattr(module, public)
        assert callable(value), f"{public}: a module of that name hides it"
        assert ">>> " in (value.__doc__ or ""), f"{public}: expected an example that runs"


@of_every_file
def test_no_unsafe_loading_and_no_broad_excepts(path):
    text = path.read_text(encoding="utf-8")
    unsafe = re.search(r"\b(pickle|cloudpickle|shelve|marshal)\b\.|\beval\(|\bexec\(", text)
    own = ("persona_dspy/fleet/pipe.py", "persona_dspy/agent/pickling.py")  # a process and its own; __reduce__
    assert not unsafe or name(path) in own
    broad = re.search(r"except (BaseException|Exception)\b(?!.*\n(?:.*\n){0,6}?\s+raise\b)|except:", text)
    assert not broad or name(path) in BROAD


def test_mlflow_is_imported_in_one_place():
    users = [name(p) for p in MODULES if re.search(r"^\s*(import|from) mlflow\b", p.read_text(), re.MULTILINE)]
    assert users == [
        f"persona_dspy/tracking/{file}.py" for file in ("assessed", "database_file", "failures", "systems", "tracker")
    ]


def test_layers():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def imports_of(path):
    """(module, name) of every import in a file, wherever it stands: lazy and type-only ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


# Files of one room that another imports past its API. This list only shrinks.
PAST_THE_ROOM: set[tuple[str, str]] = set()


@of_every_file
def test_rooms_are_entered_by_their_api_alone(path):
    mine = path.relative_to(ROOT).parts[:2]
    for module, imported in imports_of(path):
        parts = module.split(".")
        private = parts[0] == "persona_dspy" and len(parts) > 2 and tuple(parts[:2]) != mine
        private |= parts[0] == "optimizers" and len(parts) > 1 and mine[0] != "optimizers"
        assert not private or (name(path), module) in PAST_THE_ROOM, f"{module}: import {imported} from the room"


def test_documents_name_the_rooms_and_never_the_files_inside():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb"), *MODULES]
    for page_ in pages:
        text = page_.read_text(encoding="utf-8")
        if page_.suffix == ".py":  # what is shown there: examples
            text = "\n".join(re.findall(r">>> .*", text))
        inside = re.search(r"from (persona_dspy\.(?!cli)\w+\.\w+|optimizers\.\w+) import", text)
        assert not inside, f"{name(page_)}: {inside.group()}: documented names come from the room"
    for line in re.findall(r"^::: (.+)$", (ROOT / "docs/reference.md").read_text(encoding="utf-8"), re.MULTILINE):
        module, _, last = line.rpartition(".")
        assert line == "persona_dspy.errors" or last in importlib.import_module(module).__all__, line


def test_every_room_stands_in_the_layers():
    rooms = {p.name for p in (ROOT / "persona_dspy").iterdir() if (p / "__init__.py").exists()}
    layers = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split('name = "Rooms"')[1].split("]")[0]
    assert set(re.findall(r"persona_dspy\.(\w+)", layers)) == {*rooms, "errors"}
    entries = [p for p in (ROOT / "persona_dspy").iterdir() if not p.name.startswith("_") and p.name != "py.typed"]
    assert len(entries) <= 14
    contracts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'containers = ["persona_dspy.{room}"]' in contracts for room in rooms)


# Tests of what no single file does. This list only shrinks.
CROSSCUTTING = {
    "any_program",
    "architecture",
    "benchmarks",
    "crash_safety",
    "docs",
    "docs_commands",
    "dspy_behaviours",
    "examples",
    "flat_memory",
    "fleet_faults",
    "injection",
    "invariants",
    "isolation",
    "leakage",
    "notebooks",
    "report_browser",
    "service_faults",
    "service_isolation",
    "same_requests",
    "wheel",
}


def test_every_test_file_names_a_source_file():
    """``test_<file>.py``, ``test_<folder>_<file>.py`` where two folders have a file of that name, or a whole folder."""
    inside = [p.relative_to(ROOT).with_suffix("") for p in MODULES]
    files = [p for p in inside if p.name != "__init__"]
    named = {p.name for p in files} | {f"{p.parent.name}_{p.name}" for p in files}
    named |= {p.parent.name for p in inside if len(p.parts) > 2}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests").glob("test_*.py")}
    assert tests - named - CROSSCUTTING == set(), "name the file or the folder that is tested"
    assert tests - named >= CROSSCUTTING, "no longer needed in the list"


def test_importing_the_packages_is_cheap():
    heavy = "('dspy', 'mlflow', 'datasets', 'numpy', 'sklearn', 'litellm')"
    code = f"import sys, persona_dspy, optimizers, persona_dspy.cli; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_serving_a_persona_json_imports_neither_dspy_nor_mlflow():
    """docs/guides/cost.md says so."""
    heavy = "('dspy', 'mlflow', 'datasets', 'numpy', 'sklearn', 'litellm', 'sqlalchemy')"
    code = "import sys; from persona_dspy import load_persona; load_persona('examples/agent-03.json').render(); "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(*[m for m in {heavy} if m in sys.modules])"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.split() == []


def test_nothing_of_one_machine_is_committed():
    files = subprocess.run(["git", "ls-files"], check=False, capture_output=True, text=True, cwd=ROOT).stdout.split()
    hosts = "|".join(("py" + "pi" + r"\.org", "files" + r"\.python" + "hosted"))
    for file in files:
        path = ROOT / file
        if path.suffix in {".py", ".md", ".toml", ".lock", ".yml", ".sh", ".ipynb", ""} and path.is_file():
            assert not re.search(hosts, path.read_text(encoding="utf-8", errors="replace")), file


def test_private_names_of_dspy_stand_in_one_file_a_room():
    """Each with a test that says what breaks without it: tests/test_dspy_private.py, tests/test_terse.py."""
    private = r"super\(\)\._(?!_)\w+\(|\"_compiled\"|delattr\(|from dspy\.\S*\b_\w+ import|import dspy\._"
    users = [name(p) for p in MODULES if re.search(private, p.read_text(encoding="utf-8"))]
    assert users == ["persona_dspy/agent/dspy_private.py", "persona_dspy/fleet/worker.py", "persona_dspy/lm/terse.py"]
