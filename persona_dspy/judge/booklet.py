"""What a reproduction leaves to be read: tables as Markdown, LaTeX and CSV, figures, report pages, one page for all."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_dspy.core import HIGHER_IS_BETTER, Interval, plural, write_text
from persona_dspy.errors import InputError
from persona_dspy.judge.paper import COLD_START, LATENCY, REPORTED
from persona_dspy.judge.reproduction import BASELINES, COLD, CURVES, DROPPED, Cells, rows_of
from persona_dspy.judge.table import Standing, html_table, latex_table

__all__ = ["Grid", "grids_of", "write_booklet"]

THEIRS = "paper's figures"
PARTLY = "*"
_AXES = {"recent": "latest interactions a step (n)", "epochs": "iterations (E)", "k": "episodes retrieved (K)"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of texts, as a notebook shows it: ``name`` is that of its files."""

    name: str
    title: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        lines = ["| " + " | ".join(self.titles) + " |", "|" + "---|" * len(self.titles)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def _repr_html_(self) -> str:
        return html_table(self.titles, self.rows, notes=self.notes)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` of the texts."""
        import pandas

        return pandas.DataFrame(list(self.rows), columns=list(self.titles))

    def to_latex(self) -> str:
        return latex_table(self.titles, self.rows, notes=[self.title, *self.notes])

    def to_csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([self.titles, *self.rows])
        return out.getvalue()


def write_booklet(cells: Sequence[Cells], of: Sequence[str], sections: Sequence[str], out: Path) -> list[Path]:
    """Write all of it into ``out``, from whatever is answered; returns the files, ``index.md`` first."""
    files: list[Path] = []
    page = ["# The paper's experiments, repeated", *_how(cells)]
    if any(s.queries < s.expected for c in cells for s in c.standings.values()):
        page.append(f"Scores marked {PARTLY} are of the part that is answered so far: the same command goes on.")
    models = list(dict.fromkeys(c.model for c in cells))
    if len(models) > 1 and "table" in sections:
        page += _written(_models([*BASELINES, *of], cells), out / "models", files)
    for model in models:
        own = [c for c in cells if c.model == model]
        page.append(f"# Model {model}")
        for grid in grids_of(own, of, sections):
            page += _written(grid, out / f"{grid.name}-{_plain(model)}", files)
        for one in own:
            drawn, pages = _figures(one, of, out), _pages(one, of, out)
            page.append(f"## Figures, {one.task}")
            page += [f"![{f.stem}]({f.relative_to(out)})" for f in drawn if f.suffix == ".svg"]
            page += [f"[The personas of {name}]({f.relative_to(out)})" for name, f in pages.items()]
            files += [*drawn, *pages.values()]
    write_text(out / "index.md", "\n\n".join(page) + "\n")
    return [out / "index.md", *files]


def _written(grid: Grid, path: Path, files: list[Path]) -> list[str]:
    """Write a table in all its forms, adding to ``files``; returns its part of the page."""
    for ending, text in (("md", grid.to_markdown()), ("tex", grid.to_latex()), ("csv", grid.to_csv())):
        files.append(path.with_name(f"{path.name}.{ending}"))
        write_text(files[-1], text)
    return [f"## {grid.title}", grid.to_markdown()]


def grids_of(cells: Sequence[Cells], of: Sequence[str], sections: Sequence[str]) -> list[Grid]:
    """The tables of one model's cells, a task after the other in the columns."""
    grids: list[Grid] = []
    systems = [*BASELINES, *of]
    if "table" in sections:
        rows = [*systems, "majority", "nearest"]
        grids += [_scores("table", "Systems", rows, cells), _tests(of, cells), _costs([*systems], cells)]
    if "ablations" in sections:
        grids += [_scores("ablations", "Ablations", rows_of("ablations", of), cells), _parts(of, cells)]
    if "cold" in sections:
        grids.append(_cold(systems, cells))
    if "curves" in sections:
        grids.append(_curves(of, cells))
    return grids


def _scores(name: str, title: str, rows: Sequence[str], cells: Sequence[Cells]) -> Grid:
    titles = [f"{c.task} {metric} {_arrow(metric)}" for c in cells for metric in c.metrics[:2]]
    lines: list[tuple[str, ...]] = []
    for row in rows:
        lines.append((row, *(text for c in cells for text in _pair(c.row(row)))))
        reported = [REPORTED.get(c.task, {}).get(row) for c in cells]
        if any(reported):
            texts = (f"{v:.3f}" if v else "-" for pair in reported for v in (pair or (0, 0)))
            lines.append((f"{row} ({THEIRS})", *texts))
    notes = (
        "Intervals are 95% bootstrap intervals over users.",
        f"Rows marked ({THEIRS}) are as printed there: other users of LaMP, Claude-3.5 Sonnet.",
    )
    return Grid(name=name, title=title, titles=("system", *titles), rows=tuple(lines), notes=notes)


def _pair(standing: Standing | None) -> tuple[str, str]:
    if standing is None:
        return "-", "-"
    other = next(iter(standing.others.values()), None)
    return _score(standing), "-" if other is None else f"{other:.3f}"


def _tests(of: Sequence[str], cells: Sequence[Cells]) -> Grid:
    titles = ("system", "task", "better than best baseline by", "p", "p (Holm)", "effect", "users", "won/lost")
    rows: list[tuple[str, ...]] = []
    for system in of:
        for c in cells:
            standing = c.row(system)
            if standing is None or standing.against is None:
                continue
            found = standing.against
            effect = "-" if found.effect is None else f"{found.effect:+.2f}"
            rows.append(
                (
                    system, c.task, f"{_interval(found.difference, '+')} ({found.b})", f"{found.p:.4f}",
                    f"{found.p_adjusted:.4f}", effect, str(found.users), f"{found.paired.won}/{found.paired.lost}",
                )
            )  # fmt: skip
    note = "Paired permutation tests over users; Holm's method over all systems of one task."
    return Grid(name="tests", title="Against the best baseline", titles=titles, rows=tuple(rows), notes=(note,))


def _parts(of: Sequence[str], cells: Sequence[Cells]) -> Grid:
    titles = ("system", "without", "task", "better with it by", THEIRS, "p", "p (Holm)", "users", "won/lost")
    rows: list[tuple[str, ...]] = []
    for system in of:
        for change in DROPPED:
            for c in cells:
                found = c.parts.get(f"{system}@{change}")
                if found is None:
                    continue
                paired = found.paired
                rows.append(
                    (
                        system, change.removeprefix("no-"), c.task, _interval(found.difference, "+"),
                        _their_gain(c, system, change), f"{found.p:.4f}", f"{found.p_adjusted:.4f}",
                        str(found.users), f"{paired.won}/{paired.lost}",
                    )
                )  # fmt: skip
    note = (
        "The whole system against itself without a part, paired; above 0 = the part helps, in the task's first metric."
    )
    return Grid(name="parts", title="What each part gives", titles=titles, rows=tuple(rows), notes=(note,))


def _their_gain(c: Cells, system: str, change: str) -> str:
    reported = REPORTED.get(c.task, {})
    if system not in reported or f"{system}@{change}" not in reported:
        return "-"
    gain = reported[system][0] - reported[f"{system}@{change}"][0]
    return f"{gain if HIGHER_IS_BETTER[c.metrics[0]] else -gain:+.3f}"


def _models(systems: Sequence[str], cells: Sequence[Cells]) -> Grid:
    tasks = dict.fromkeys((c.task, c.metrics[0]) for c in cells)
    by_place = {(c.model, c.task): c for c in cells}
    rows: list[tuple[str, ...]] = []
    for model in dict.fromkeys(c.model for c in cells):
        for system in systems:
            found = [by_place[model, task].row(system) for task, _ in tasks]
            rows.append((model, system, *(_score(s) for s in found)))
    titles = ("model", "system", *(f"{task} {metric} {_arrow(metric)}" for task, metric in tasks))
    return Grid(name="models", title="Models side by side", titles=titles, rows=tuple(rows))


def _costs(systems: Sequence[str], cells: Sequence[Cells]) -> Grid:
    titles = ("system", "task", "s/query", THEIRS, "calls/user", "tokens/user", "usd/user")
    titles += ("preparation: calls/user", "tokens/user ", "s/user", "usd/user ")
    rows: list[tuple[str, ...]] = []
    for system in systems:
        for c in cells:
            s = c.row(system)
            if s is None:
                continue
            theirs = LATENCY.get(system)
            rows.append(
                (
                    system, c.task, f"{s.seconds:.2f}", "-" if theirs is None else f"{theirs:.2f}", f"{s.calls:.1f}",
                    f"{s.tokens:,.0f}", _dollars(s.usd), f"{s.prepare_calls:.1f}", f"{s.prepare_tokens:,.0f}",
                    f"{s.prepare_seconds:.1f}", _dollars(s.prepare_usd),
                )
            )  # fmt: skip
    note = "Serving and, apart from it, preparation (alignment, profile). Seconds are wall time beside other calls."
    return Grid(name="latency", title="Latency and cost", titles=titles, rows=tuple(rows), notes=(note,))


def _cold(systems: Sequence[str], cells: Sequence[Cells]) -> Grid:
    titles = ("task", "system", *(f"n = {n}" for n in COLD))
    rows: list[tuple[str, ...]] = []
    for c in cells:
        task = f"{c.task}, {c.metrics[0]} {_arrow(c.metrics[0])}"
        for system in systems:
            found = [c.row(f"{system}@history={n}") for n in COLD]
            rows.append((task, system, *(_score(s) for s in found)))
        if c.task in COLD_START:
            most = f"at most {COLD[-1]}: {COLD_START[c.task]:.3f}"
            rows.append((task, f"as-in-paper ({THEIRS})", *("-" for _ in COLD[:-1]), most))
    return Grid(name="cold", title="Cold start: n past interactions", titles=titles, rows=tuple(rows))


def _curves(of: Sequence[str], cells: Sequence[Cells]) -> Grid:
    titles = ("system", "option", "value", "task", "metric", "score", "low", "high")
    rows = [
        (system, option, str(value), c.task, c.metrics[0], f"{s.value:.4f}", f"{s.low:.4f}", f"{s.high:.4f}")
        for c in cells
        for option, by_system in _points(c, of).items()
        for system, points in by_system.items()
        for value, s in points
    ]
    return Grid(name="curves", title="Curves", titles=titles, rows=tuple(rows))


def _points(cells: Cells, of: Sequence[str]) -> dict[str, dict[str, list[tuple[float, Interval]]]]:
    return {
        option: {
            system: [(value, s.score) for value in values if (s := cells.row(f"{system}@{option}={value}")) is not None]
            for system in of
        }
        for option, values in CURVES.items()
    }


def _figures(cells: Cells, of: Sequence[str], out: Path) -> list[Path]:
    from persona_dspy.report import (
        jaccard,
        map_personas,
        persona_terms,
        print_curves,
        print_map,
        print_matrix,
        print_scores,
        read_folder,
    )

    stem, metric = f"{cells.task}-{_plain(cells.model)}", f"{cells.metrics[0]} {_arrow(cells.metrics[0])}"
    folder = out / "figures"
    rows = [(name, s.score) for name in (*BASELINES, *of) if (s := cells.row(name)) is not None]
    files = print_scores(rows, metric, folder / f"scores-{stem}") if rows else []
    curves = {_AXES[option]: found for option, found in _points(cells, of).items() if any(found.values())}
    if curves:
        files += print_curves(curves, metric, folder / f"curves-{stem}")
    cold = {
        name: [(float(n), s.score) for n in COLD if (s := cells.row(f"{name}@history={n}")) is not None]
        for name in (*BASELINES, *of)
    }
    if any(cold.values()):
        files += print_curves({"past interactions": cold}, metric, folder / f"cold-{stem}")
    for system in of:
        with suppress(InputError):  # no persona of it yet
            personas = [s.document.persona() for s in read_folder(cells.folders[0] / "personas" / system)]
            personas = [p for p in personas if p.bullets]
            if len(personas) > 1:
                files += print_map(map_personas(personas), folder / f"map-{system}-{stem}")
                matrix = jaccard([persona_terms(p) for p in personas])
                files += print_matrix(matrix, folder / f"jaccard-{system}-{stem}")
    return files


def _pages(cells: Cells, of: Sequence[str], out: Path) -> dict[str, Path]:
    """System -> its report page."""
    from persona_dspy.report import read_evaluation, read_folder, report_page

    pages: dict[str, Path] = {}
    for system in of:
        with suppress(InputError):  # no persona of it yet
            subjects = read_folder(cells.folders[0] / "personas" / system)
            path = out / f"personas-{system}-{cells.task}-{_plain(cells.model)}.html"
            title = f"{system}, {cells.task}, {cells.model}"
            write_text(path, report_page(subjects, title=title, systems=read_evaluation(cells.folders[0])))
            pages[system] = path
    return pages


def _how(cells: Sequence[Cells]) -> list[str]:
    """Data, models, seeds and commits, as the runs' protocols have them."""
    lines: list[str] = []
    for c in cells:
        kept: list[Mapping[str, Any]] = [json.loads((f / "protocol.json").read_text("utf-8")) for f in c.folders]
        first = kept[0]
        options = ", ".join(f"{k}={v}" for k, v in first.items() if k not in ("task", "data", "model", "runs", "seed"))
        seeds = ", ".join(str(k["seed"]) for k in kept)
        made = "; ".join(sorted({str(run["commit"]) for k in kept for run in k["runs"]}))
        lines.append(
            f"- {c.task}, {c.model}: {plural(c.users, 'user')}, data {first['data']}, seeds {seeds}, {options}; "
            f"made with {made}"
        )
    return ["\n".join(lines)]


def _arrow(metric: str) -> str:
    return "↑" if HIGHER_IS_BETTER[metric] else "↓"


def _interval(found: Interval, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _score(standing: Standing | None) -> str:
    if standing is None:
        return "-"
    return _interval(standing.score) + (PARTLY if standing.queries < standing.expected else "")


def _dollars(usd: float | None) -> str:
    return "-" if usd is None else f"{usd:.4f}"


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
