"""Every pattern of the package takes time in proportion to the text: n against 2n on strings made to hurt."""

import ast
import importlib
import itertools
import re
import time
from pathlib import Path

import pytest

import optimizers
import persona_dspy
from persona_dspy.core import count_characters, marks, metrics, normalized, words_of
from persona_dspy.core.spelling import bare
from persona_dspy.core.text import data_text, defused, one_line
from persona_dspy.data import get_task, task_names
from persona_dspy.memory import content_words

ROOTS = [Path(persona_dspy.__file__).parent, Path(optimizers.__file__).parent]
STAND_INS = "persona_dspy/testing"  # read what tests send, never what users do
QUICK = 0.02  # seconds: below that, times of 2n say nothing
N = 6_000


def sources():
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            if STAND_INS not in path.as_posix():
                yield path, path.relative_to(root.parent).with_suffix("").as_posix().replace("/", ".")


def patterns():
    """Pattern, way it is used: every compiled pattern of a module, and every literal given to a function of ``re``."""
    found = {}
    for path, module in sources():
        tree = ast.parse(path.read_text())
        named = vars(importlib.import_module(module.removesuffix(".__init__")))
        compiled = {n: v for n, v in named.items() if isinstance(v, re.Pattern)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner, way = node.func.value, node.func.attr
            if not isinstance(owner, ast.Name):
                continue
            if owner.id == "re" and way != "compile" and node.args and isinstance(node.args[0], ast.Constant):
                flags = re.DOTALL | re.MULTILINE if len(node.args) > 2 and way == "findall" else 0
                found[f"{module}:{node.lineno}"] = (re.compile(node.args[0].value, flags), way)
            elif owner.id in compiled:
                found[f"{module}.{owner.id}.{way}"] = (compiled[owner.id], way)
        for name, value in compiled.items():
            if not any(key.startswith(f"{module}.{name}.") for key in found):
                found[f"{module}.{name}"] = (value, "finditer")
    for name in task_names():
        found[f"input of {name}"] = (re.compile(get_task(name).input_pattern), "search")
    found["tags"] = (marks._tags(frozenset({"answer", "data"})), "finditer")
    return found


def hurting(pattern):
    """Repeated pieces of what a pattern looks for, without the end that would let it match."""
    signs = dict.fromkeys(re.findall(r"[^\w\s\\()*+?^$]", pattern.pattern))
    words = re.findall(r"[A-Za-z]{3,}", pattern.pattern)[:2]
    units = [" ", "\n", "a", "7", "[", "[[", "<", "<|", "##", '"', *list(signs)[:8], *words]
    pairs = [x + y for x, y in itertools.product(units[:6], repeat=2)]
    for unit in dict.fromkeys([*units, *pairs, *(f"{u} " for u in units), *(f"{u}a" for u in units)]):
        yield lambda n, unit=unit: unit * (n // len(unit)) + "!"
        yield lambda n, unit=unit: "a <" + unit * (n // len(unit)) + "b"
    for sign in units[4:]:
        yield lambda n, sign=sign: sign + " " * n + "!"


def seconds(pattern, way, text):
    start = time.thread_time()
    if way in ("sub", "split", "findall", "finditer"):
        for _ in pattern.finditer(text):
            pass
    else:
        getattr(pattern, way)(text)
    return time.thread_time() - start


PATTERNS = patterns()


@pytest.mark.parametrize("where", sorted(PATTERNS))
def test_a_pattern_takes_time_in_proportion_to_the_text(where):
    pattern, way = PATTERNS[where]
    for text in hurting(pattern):
        if seconds(pattern, way, text(2 * N)) < QUICK:
            continue
        once = min(seconds(pattern, way, text(N)) for _ in range(3))
        twice = min(seconds(pattern, way, text(2 * N)) for _ in range(3))
        assert twice < 3 * max(once, QUICK / 4), f"{pattern.pattern!r} ({way}) on {text(20)!r}"


def test_a_quadratic_pattern_would_be_seen():
    bad = re.compile(r"<\s*/?\s*data\b")
    text = next(t for t in hurting(bad) if t(4).startswith("a <   "))
    assert seconds(bad, "finditer", text(2 * N)) > QUICK


@pytest.mark.parametrize("marks_of_a_run", ["\u0315\u0316", "\u0345\u0315\u0316\u031b", "\uff9e\u0316", "\u0f73"])
@pytest.mark.parametrize(
    "read", [bare, content_words, count_characters, words_of, lambda text: metrics.chrf([text], [text + "b"])]
)
def test_a_run_of_combining_marks_is_read_in_time_proportional_to_it(read, marks_of_a_run):
    def took(n):
        text = "\u03b1" + marks_of_a_run * (n // len(marks_of_a_run))
        start = time.thread_time()
        read(text)
        return time.thread_time() - start

    read("\u03b1\u0315 b")  # lists and tables are read once
    if took(2 * N) > QUICK:
        assert min(took(2 * N) for _ in range(3)) < 3 * max(min(took(N) for _ in range(3)), QUICK / 4)


def test_only_one_function_puts_users_text_into_a_normal_form():
    at = {path.name for path, _ in sources() if "unicodedata.normalize(" in path.read_text()}
    assert at == {"words.py", "marks.py"}  # marks.py: of single characters
    assert normalized("e\u0301 " + "a" + "\u0315" * 30, "NFC") == "\u00e9 " + "a" + "\u0315" * 30


@pytest.mark.slow
@pytest.mark.parametrize("clean", [data_text, defused, one_line])
@pytest.mark.parametrize(
    "text", ["a <" + " " * 5_000 + "b", "[[ ## ", "\u27e6\u266f\u200d", "<|x", "</data ", "e\u0301\ufe0f"]
)
def test_a_row_of_ten_megabytes_is_cleaned_in_time_proportional_to_it(clean, text):
    row = text * (10_000_000 // len(text.encode()))
    start = time.thread_time()
    clean(row)
    assert time.thread_time() - start < 30


def test_a_line_that_is_kept_short_costs_what_is_kept():
    start = time.thread_time()
    assert one_line("[[ ## word " * 1_000_000, 50).endswith(" ...")
    assert time.thread_time() - start < 0.5
    assert one_line(" " * 10_000 + "word " * 3, 2) == one_line("word word word", 2)
