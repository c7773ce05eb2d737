"""The work behind ``persona-dspy evaluate``: an experiment is run and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_dspy.cli.ending import at_the_latest
from persona_dspy.cli.output import echo, print_json, terminal
from persona_dspy.core import plural, printable

if TYPE_CHECKING:
    from persona_dspy.judge import Evaluation, Experiment, Judged, Results, Standing
    from persona_dspy.lm import Budget

__all__ = ["chosen_users", "data_options", "judge", "told_of_bad_rows"]


def judge(
    experiment: Experiment,
    *,
    workers: int | None,
    budget: Budget,
    tracking_uri: str | None,
    predict: Path | None = None,
    official: bool = False,
    as_json: bool = False,
) -> int:
    """Run, or go on with, an evaluation and show its table; 0 when all is answered, else 1.

    ``official``: show the figures of the benchmark's own script too.
    ``predict``: the file for the answers of the first system in LaMP's form, beside it those of the others.
    """
    from persona_dspy.tracking import tracker_for

    told_of_bad_rows(experiment)
    if predict is not None:
        experiment.check_predictable()
    tracker = tracker_for(tracking_uri)
    with _View(experiment, as_json=as_json) as view, at_the_latest(tracker.abandon):
        evaluation = experiment.run(
            workers=workers, budget=budget, tracker=tracker, on_start=view.start, on_row=view.row
        )
    written = _predicted(experiment, evaluation, predict) if predict is not None else []
    view.close(evaluation, tracker.where, written, evaluation.official() if official else {})
    return 0 if evaluation.complete else 1


def _predicted(experiment: Experiment, evaluation: Evaluation, path: Path) -> list[Path]:
    """Write each asked system's predictions, references left out unless nothing else was asked."""
    from persona_dspy.core import write_text

    names = evaluation.asked_systems([v.name for v in experiment.chosen])
    files = [path, *(path.with_name(f"{path.stem}-{name}{path.suffix}") for name in names[1:])]
    for name, file in zip(names, files, strict=False):
        write_text(file, json.dumps(evaluation.predictions(name), ensure_ascii=False) + "\n")
    return files[: len(names)]


def told_of_bad_rows(experiment: Experiment) -> None:
    """Name on standard error what was passed over."""
    for row in experiment.bad_rows:
        echo(f"skipped: {row.reason}", err=True)
    if experiment.bad_rows:
        echo(f"{plural(len(experiment.bad_rows), 'bad row')} skipped", err=True)


def data_options(source: Path | None, dataset: str | None, columns: str | None) -> dict[str, Any]:
    """What is read, and how, as ``Experiment`` takes it.

    Raises:
        InputError: INPUT and ``--dataset``, or neither.
    """
    from persona_dspy.cli.estimates import one_input
    from persona_dspy.data import columns_from_text
    from persona_dspy.errors import InputError

    path = one_input(source, dataset)
    if path is None:
        raise InputError("evaluate: expected a file of interactions, such as interactions.jsonl, or --dataset PATH")
    return {"source": path, "columns": columns_from_text(columns)}


def chosen_users(users: str | None) -> int | str | list[str] | None:
    """``--users`` as ``evaluate`` takes it."""
    from persona_dspy.cli.programs import which_users

    if users is not None and users.startswith("longest:"):
        return users
    limit, wanted = which_users(users)
    return limit if wanted is None else wanted


class _View:
    """One progress bar over all answers; the table at the end."""

    def __init__(self, experiment: Experiment, *, as_json: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.as_json, self.console = as_json, terminal(stderr=as_json)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=self.console)
        self.experiment, self.bar = experiment, None

    def start(self, results: Results) -> None:
        """Show the bar, with what earlier runs answered."""
        pairs = [(p, v) for p in self.experiment.people for v in self.experiment.chosen]
        done = sum(len({q.id for q in p.queries} & results.answered(v.name, p.user_id)) for p, v in pairs)
        self.bar = self.progress.add_task("answers", total=sum(len(p.queries) for p, _ in pairs), completed=done)
        self.progress.start()

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def row(self, row: Judged) -> None:
        if self.bar is not None:
            name = printable(f"{row.system}, {row.user_id[:20]}")
            self.progress.update(self.bar, advance=row.kind == "answer", description=name)

    def close(
        self,
        evaluation: Evaluation,
        where: str,
        predicted: Sequence[Path] = (),
        official: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        from persona_dspy.judge import REFERENCES, Variant, cells, columns

        found, task, out = evaluation.table, evaluation.task, evaluation.folder
        if self.as_json:
            systems = [columns(s, task) for s in found]
            ended = {"complete": evaluation.complete, "stopped": evaluation.stopped}
            files: dict[str, Any] = {"predictions": [str(file) for file in predicted]} if predicted else {}
            files |= {"official": official} if official else {}
            print_json({"task": task.name, **ended, "out": str(out), "runs": where, "systems": systems, **files})
            return
        rows = [cells(s, task) for s in found]
        titles = list(dict.fromkeys(title for row in rows for title in row))
        for name, shown in _parts(f"{task.title}: held-out queries, intervals over users", titles, rows).items():
            self.console.print(_rich_table(name, shown, rows))
        for system, figures in (official or {}).items():
            told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.console.print(f"{system}, by the benchmark's own script: {told}", highlight=False)
        for note in found.notes:
            self.console.print(note, highlight=False)
        if not evaluation.complete:
            self.console.print(f"not all is answered, {evaluation.stopped}; the same command goes on")
        if not rows:
            self.console.print("nothing to score: no answers, or the right ones are withheld")
        for file in predicted:
            self.console.print(f"predictions: {file}", highlight=False, soft_wrap=True)
        self.console.print(f"answers and tables are in {out}/", highlight=False, soft_wrap=True)
        if where:
            self.console.print(f"see the runs: {where}", highlight=False, soft_wrap=True)
        for standing in found:
            variant = Variant.parse(standing.system)
            if standing.against is not None and not variant.is_baseline and variant.system not in REFERENCES:
                self.console.print(_compared(standing), highlight=False, soft_wrap=True)


_FIRST_OF_PART = {
    "better than best baseline by": "Against the best baseline",
    "unparsed": "What it took",
    "preparation: calls, tokens, s/user": "What preparation took",
}
"""Titles of columns with which another table begins, and its name: one of all columns is too wide for a terminal."""


def _parts(name: str, titles: Sequence[str], rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The tables by name: the titles of each, ``system`` first; those that say nothing of any system are left out."""
    parts: dict[str, list[str]] = {}
    for title in titles:
        name = _FIRST_OF_PART.get(title, name)
        parts.setdefault(name, ["system"]).extend([] if title == "system" else [title])
    says = {title for row in rows for title, cell in row.items() if title != "system" and cell != "-"}
    return {name: shown for name, shown in parts.items() if says & {*shown}}


def _rich_table(name: str, titles: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Any:
    """A table whose numbers are never broken: long titles take several lines, long names of systems too."""
    from textwrap import fill

    from rich.table import Table

    table = Table(title=name)
    for title in titles:
        if title == "system":
            table.add_column(title, overflow="fold")
            continue
        widest = max(map(len, (*title.split(), *(row.get(title, "-") for row in rows))))
        table.add_column(fill(title, widest, break_long_words=False), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row.get(title, "-") for title in titles))
    return table


def _compared(standing: Standing) -> str:
    against = standing.against
    assert against is not None
    paired = against.paired
    counts = f"{plural(paired.won, 'user')} better, {paired.tied} same, {paired.lost} worse"
    return f"{standing.system}: {counts} than with {against.b}"
