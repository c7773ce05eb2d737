"""docs/files.md from the modules' docstrings; ``python tests/tree.py --write`` writes it."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ROOT / "docs" / "files.md"
HEAD = "# Files\n\nEvery source file, by room. `make tree` writes this page from the docstrings.\n"


def sources():
    """Every source file of both packages."""
    files = [p for folder in ("persona_dspy", "optimizers") for p in sorted((ROOT / folder).rglob("*.py"))]
    return files


def first_sentence(path):
    """The first sentence of a module's docstring: what it is and owns."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    text = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s+(?=Owns|Not here|It |Here|A |The |In |Each )", text)[0].rstrip(".:")


def page():
    """docs/files.md as it should be: a heading a folder, with what it owns, a line a file."""
    text = HEAD
    for path in sorted(sources(), key=lambda p: (p.parent.as_posix(), p.name != "__init__.py", p.name)):
        if path.name == "__init__.py":
            text += f"\n## {path.parent.relative_to(ROOT).as_posix()}\n\n{first_sentence(path)}.\n\n"
        else:
            text += f"- `{path.name}` {first_sentence(path)}\n"
    return text


if __name__ == "__main__" and "--write" in sys.argv:
    FILES.write_text(page(), encoding="utf-8")
