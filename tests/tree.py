"""The README's file tree, from the modules' docstrings; ``python tests/tree.py --write`` updates the README."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- tree: written by `make tree`, checked by tests/test_architecture.py -->"
END = "<!-- end of tree -->"


def sources():
    """Every source file of both packages."""
    files = [p for folder in ("persona_dspy", "optimizers") for p in sorted((ROOT / folder).rglob("*.py"))]
    return [p for p in files if p.name != "__init__.py" or p.parent.name in ("persona_dspy", "optimizers", "cli")]


def first_sentence(path):
    """The first sentence of a module's docstring: what it is and owns."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    text = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s+(?=Owns|Not here|It |Here|A |The |In |Each )", text)[0].rstrip(".:")


def tree():
    """The README's lines between the marks."""
    return "\n".join(f"- `{p.relative_to(ROOT).as_posix()}` {first_sentence(p)}" for p in sources())


def expected_readme():
    """The README as it should be."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{tree()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__" and "--write" in sys.argv:
    (ROOT / "README.md").write_text(expected_readme(), encoding="utf-8")
