"""images/rooms.svg: the rooms by layer, from pyproject.toml and the imports. ``python docs/rooms.py`` writes it.

A box is a room with what its ``__init__`` says of it; rooms import only from layers below their own. The number in a
box says how many other rooms import it.
"""

import ast
import html
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIGURE = ROOT / "docs" / "images" / "rooms.svg"
WIDTH, ROW, PAD = 900, 62, 8


def layers():
    """Layers from the top, each a list of rooms, as import-linter holds them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    rows = next(c["layers"] for c in contracts if c["name"] == "Rooms")
    return [[room.strip() for room in row.split("|")] for row in rows]


def files_of(room):
    place = ROOT / room.replace(".", "/")
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def room_of(module, rooms):
    return next((room for room in rooms if module == room or module.startswith(f"{room}.")), None)


def importers(rooms):
    """Room -> the rooms that import it, lazy and type-only imports included."""
    found = {room: set() for room in rooms}
    for room in rooms:
        for file in files_of(room):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for target in filter(None, (room_of(name, rooms) for name in names)):
                    found[target] |= {room} - {target}
    return found


def sentence(room):
    """What a room, or a file, says of itself: its first sentence, and the clause that this begins with."""
    place = ROOT / room.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return [re.split(end, text + " ")[0] for end in (r"\. ", r"[.:;] ")]


def figure():
    """The figure as SVG text; the same for the same sources."""
    rows = layers()
    counts = importers([room for row in rows for room in row])
    height = ROW * len(rows) + PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img">',
        "<title>Rooms by layer: each imports only from layers below its own</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for level, row in enumerate(rows):
        width = (WIDTH - PAD * (len(row) + 1)) / len(row)
        for place, room in enumerate(row):
            x, y = PAD + place * (width + PAD), PAD + level * ROW
            name = room.removeprefix("persona_dspy.")
            whole, clause = sentence(room)
            about = whole if len(whole) <= width / 6.2 else clause
            parts += [
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{ROW - PAD}" rx="6" fill="#eef2f7"'
                ' stroke="#90a4b8"/>',
                f'<text x="{x + 12:.0f}" y="{y + 22}" font-size="15" font-weight="bold" fill="#1b2a3a">{name}</text>',
                f'<text x="{x + width - 12:.0f}" y="{y + 22}" font-size="12" text-anchor="end" fill="#5a6b7d">'
                f"{len(counts[room])}</text>",
                f'<text x="{x + 12:.0f}" y="{y + 42}" font-size="12" fill="#33475b">{html.escape(about)}</text>',
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    FIGURE.write_text(figure(), encoding="utf-8")
