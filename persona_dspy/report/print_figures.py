"""Figures for a paper, as SVG and PDF files: the same data, the same bytes. Needs the extra ``report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_dspy.core import Interval
from persona_dspy.errors import RunError, to_install
from persona_dspy.report.persona_map import PersonaMap

__all__ = ["check_printing", "print_curves", "print_map", "print_matrix", "print_scores"]

_BLUE, _GREY = "#4f7cdb", "#8a94a6"
_GROUPS = ("#4f7cdb", "#d65f5f", "#16a085", "#b8860b", "#7d5fb8", "#5f6b7a", "#c2589b", "#2aa7c9")


def check_printing() -> None:
    """Raise a ``RunError`` that says what to type where figures cannot be drawn; before work is done for them."""
    _pyplot()


def print_scores(rows: Sequence[tuple[str, Interval]], metric: str, path: Path) -> list[Path]:
    """Scores of systems from top to bottom, dots with intervals; returns the files, ``path`` with .svg and .pdf."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(5, 0.6 + 0.26 * max(1, len(rows))))
    for place, (name, score) in enumerate(rows):
        spread = [[score.value - score.low], [score.high - score.value]]
        colour = _BLUE if _is_ours(name) else _GREY
        axes.errorbar([score.value], [place], xerr=spread, fmt="o", capsize=2, color=colour)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(metric)
    return _saved(plt, figure, path)


def print_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, Interval]]]], metric: str, path: Path
) -> list[Path]:
    """A panel for each option: option -> system -> (value of the option, score), lines with bands of their intervals.

    Of more than three systems no bands are drawn: nothing would be seen below them.
    """
    plt = _pyplot()
    width = 3.1 * max(1, len(curves)) + (0.9 if len(curves) < 2 else 0)
    figure, panels = plt.subplots(
        1, max(1, len(curves)), figsize=(width, 2.8), squeeze=False, sharey=True, layout="constrained"
    )
    lines: dict[str, Any] = {}
    for axes, (option, systems) in zip(panels[0], curves.items(), strict=False):
        for number, (name, points) in enumerate(systems.items()):
            ordered = sorted(points, key=lambda point: point[0])
            x, y = [at for at, _ in ordered], [score.value for _, score in ordered]
            colour = _GROUPS[number % len(_GROUPS)]
            dashes = "-" if _is_ours(name) else "--"
            (lines[name],) = axes.plot(x, y, dashes, marker="o", markersize=3, color=colour)
            if len(systems) <= 3:
                low, high = [s.low for _, s in ordered], [s.high for _, s in ordered]
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xticks(sorted({at for points in systems.values() for at, _ in points}))
        axes.set_xlabel(option)
    panels[0][0].set_ylabel(metric)
    if len(lines) > 1:
        figure.legend(lines.values(), lines, loc="outside right center", frameon=False, fontsize=7)
    return _saved(plt, figure, path)


def print_map(persona_map: PersonaMap, path: Path) -> list[Path]:
    """Personas as dots, near = alike, a colour a group. Users' names are not shown."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(4, 3.4))
    for group, name in enumerate(persona_map.names):
        places = [xy for xy, g in zip(persona_map.xy, persona_map.groups, strict=True) if g == group]
        label = name.replace("$", r"\$")  # or matplotlib reads a user's words as mathematics
        axes.scatter(*zip(*places, strict=True), s=14, color=_GROUPS[group % len(_GROUPS)], label=label)
    axes.set_xticks([])
    axes.set_yticks([])
    if len(persona_map.names) > 1:
        axes.legend(frameon=False, fontsize=7)
    return _saved(plt, figure, path)


def print_matrix(matrix: Any, path: Path) -> list[Path]:
    """Similarity of each pair in [0, 1], darker = more alike, with the mean off the diagonal as title."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(3.8, 3.2))
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.85)
    users = len(matrix)
    if users > 1:
        mean = (float(matrix.sum()) - float(matrix.trace())) / (users * (users - 1))
        axes.set_title(f"mean of pairs {mean:.2f}", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return _saved(plt, figure, path)


def _is_ours(system: str) -> bool:
    return system.startswith(("persona", "as-in-paper"))


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as missing:
        raise RunError(f"package {missing.name!r}: expected to be installed; {to_install('report')}") from None
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def _saved(plt: Any, figure: Any, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.svg"), path.with_name(f"{path.name}.pdf")]
    with plt.rc_context({"svg.hashsalt": "persona-dspy", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(files[0], bbox_inches="tight", metadata={"Date": None})
        figure.savefig(files[1], bbox_inches="tight", metadata={"CreationDate": None})
    plt.close(figure)
    return files
