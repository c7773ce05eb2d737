"""The paper's experiments as one plan: which cells are computed, each once, and the rows of all its tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import dspy

from persona_dspy.core import write_text
from persona_dspy.errors import DataError, InputError
from persona_dspy.judge.estimating import estimate_evaluation
from persona_dspy.judge.experiment import Evaluation, Experiment
from persona_dspy.judge.options import EvaluationOptions
from persona_dspy.judge.paper import PAPER_TASKS
from persona_dspy.judge.results import Judged, Results
from persona_dspy.judge.significance import Comparison
from persona_dspy.judge.table import Standing, compare_parts, standings
from persona_dspy.judge.variant import Variant
from persona_dspy.lm import Budget, Estimate, Ledger
from persona_dspy.tracking import Tracker

__all__ = [
    "BASELINES",
    "COLD",
    "CURVES",
    "DROPPED",
    "SECTIONS",
    "Cells",
    "Reproduction",
    "find_sources",
    "rows_of",
]

BASELINES = ("direct", "icl", "rag", "pag", "react", "membank")
CURVES: Mapping[str, tuple[int, ...]] = {"recent": (1, 3, 5), "epochs": (1, 3, 5), "k": (1, 4, 8)}
COLD = (0, 1, 3, 10)
DROPPED = ("no-alignment", "no-persona", "no-memory", "no-action")
PLAIN = "plain"
"""The name of a file whose users' tasks are inferred from their own histories."""
SECTIONS = ("table", "ablations", "curves", "cold")


def rows_of(section: str, of: Sequence[str]) -> list[str]:
    """The rows of a section by name."""
    if section == "table":
        return [*BASELINES, *of, "majority", "nearest"]
    if section == "ablations":
        return [name for system in of for name in (system, *(f"{system}@{change}" for change in DROPPED))]
    if section == "curves":
        return [f"{system}@{key}={value}" for system in of for key, values in CURVES.items() for value in values]
    if section == "cold":
        return [f"{system}@history={n}" for system in (*BASELINES, *of) for n in COLD]
    raise InputError(f"section {section!r}: expected one of {', '.join(SECTIONS)}")


def find_sources(path: str | Path, tasks: Sequence[str] = PAPER_TASKS) -> dict[str, Path]:
    """Task -> data file, for each of the tasks found: ``path`` itself, or in a folder or the folders in it.

    A ``users.json`` (several questions a user) goes before a ``questions.json``; what task a file is of, the
    ``outputs.json`` beside it says. A file that names no task is of the only one asked for, else of plain interactions.

    Raises:
        DataError: none is there.
    """
    from persona_dspy.data import detect_task, get_task

    root, wanted = Path(path), [get_task(name).name for name in tasks]
    if root.is_file():
        try:
            detected = detect_task(root)
        except InputError:  # a task that is none of LaMP's: it is what was asked for, if that is one
            if len(wanted) != 1:
                raise
            detected = None
        if detected is None:
            return {wanted[0] if len(wanted) == 1 else PLAIN: root}
    files = (
        [root] if root.is_file() else [*sorted(root.glob("**/users.json")), *sorted(root.glob("**/*questions.json"))]
    )
    found: dict[str, Path] = {}
    for file in files:
        try:
            task = detect_task(file)
        except InputError:  # a task that is none of LaMP's
            continue
        if task is not None and task.name in wanted:
            found.setdefault(task.name, file)
    if not found:
        expected = f"a users.json or questions.json with outputs.json beside it, of one of {', '.join(wanted)}"
        raise DataError(str(root), expected=expected, value="none")
    return {name: found[name] for name in wanted if name in found}


@dataclass(frozen=True, kw_only=True)
class Cells:
    """All answers of one task and model, over all seeds.

    ``users``: how many were asked. ``standings``: by the row's name. ``parts``: by an ablation's name, how much better
    the whole system is.
    """

    task: str
    model: str
    metrics: tuple[str, ...]
    users: int
    standings: Mapping[str, Standing]
    parts: Mapping[str, Comparison]
    folders: tuple[Path, ...]

    def row(self, name: str) -> Standing | None:
        """The standing that a row shows; None where nothing of it is answered yet."""
        return self.standings.get(name)


class Reproduction:
    """The experiments of the paper on data files, for one or more models and seeds; everything is read and checked.

    Args:
        sources: task -> data file; see ``find_sources``.
        lms: names or LM objects.
        seeds: of LM and bootstrap: each seed is a run of its own, in a folder of its own, and they are joined.
        sections: some of ``SECTIONS``.
        of: whose ablations and curves: ``as-in-paper``, ``persona``.
        users, queries, options: as for ``evaluate``; by default the 100 users with the longest histories.
        unanswered: ask questions whose answers the files withhold too, for ``write_predictions``.
        out: the folder; runs are in ``out/runs/TASK/MODEL/seed-N``.

    Raises:
        InputError, DataError: the data or an option; nothing is paid.
    """

    def __init__(
        self,
        sources: Mapping[str, Path],
        *,
        lms: Sequence[str | dspy.LM],
        out: str | Path = "reproduction",
        seeds: Sequence[int] = (0,),
        sections: Sequence[str] = SECTIONS,
        of: Sequence[str] = ("as-in-paper", "persona"),
        users: int | str | Sequence[str] | None = "longest:100",
        unanswered: bool = False,
        **options: Unpack[EvaluationOptions],
    ) -> None:
        if not lms or not seeds or not of:
            raise InputError("reproduce: expected at least one LM, one seed and one system")
        self.out, self.sections, self.of = Path(out), tuple(sections), tuple(of)
        names = dict.fromkeys(row for section in sections for row in rows_of(section, of))
        self.rows = [name for name in names if name not in ("majority", "nearest")]
        references = "majority" in names
        self.experiments: dict[tuple[str, str, int], Experiment] = {}
        for task, source in sources.items():
            known = None if task == PLAIN else task
            for lm in lms:
                for seed in seeds:
                    model = lm if isinstance(lm, str) else lm.model
                    folder = self.out / "runs" / task / re.sub(r"[^\w.-]+", "-", model) / f"seed-{seed}"
                    given: Any = {**options, "seed": seed, "references": references}
                    self.experiments[task, model, seed] = Experiment(
                        source,
                        task=known,
                        systems=self.rows,
                        lm=lm,
                        users=users,
                        out=folder,
                        unanswered=unanswered,
                        **given,
                    )
                    self.experiments[task, model, seed].command = "reproduce"
                    if unanswered:
                        self.experiments[task, model, seed].check_predictable()

    def estimate(self) -> Estimate:
        """Calls, tokens and dollars of what is not answered yet; a part for each task and model. Nothing is sent."""
        parts: dict[str, Any] = {}
        dollars: list[float | None] = []
        for (task, model, _), experiment in self.experiments.items():
            found = estimate_evaluation(experiment)
            dollars.append(found.usd)
            name = f"{task}, {model}"
            for _, usage in found.parts:
                parts[name] = usage if name not in parts else parts[name] + usage
        total = Estimate.of(list(parts.items()), None)
        known = [usd for usd in dollars if usd is not None]
        return replace(total, usd=sum(known) if len(known) == len(dollars) else None)

    def run(
        self,
        *,
        workers: int | None = None,
        budget: Budget | None = None,
        tracker: Callable[[], Tracker] | None = None,
        on_start: Callable[[Experiment, Results], None] | None = None,
        on_row: Callable[[Judged], None] | None = None,
    ) -> list[Evaluation]:
        """Ask what is not answered yet, within one budget for all; the same call goes on where it ended.

        Args:
            tracker: makes a tracker for each task, model and seed, each a run of its own.
        """
        ledger = Ledger(budget=budget)
        done: list[Evaluation] = []
        for experiment in self.experiments.values():

            def started(results: Results, experiment: Experiment = experiment) -> None:
                if on_start:
                    on_start(experiment, results)

            runs = tracker() if tracker else None
            done.append(experiment.run(workers=workers, ledger=ledger, tracker=runs, on_start=started, on_row=on_row))
        return done

    def write_predictions(self, evaluations: Sequence[Evaluation]) -> list[Path]:
        """Each system's answers in the benchmark's own form, as ``out/predictions/TASK/MODEL/seed-N/SYSTEM.json``.

        Raises:
            InputError: two users have a query of the same id, so that the form cannot hold both.
        """
        files: list[Path] = []
        for experiment, evaluation in zip(self.experiments.values(), evaluations, strict=True):
            folder = self.out / "predictions" / experiment.out.relative_to(self.out / "runs")
            for name in evaluation.asked_systems([v.name for v in experiment.chosen]):
                files.append(folder / f"{name}.json")
                write_text(files[-1], json.dumps(evaluation.predictions(name), ensure_ascii=False) + "\n")
        return files

    def cells(self, evaluations: Sequence[Evaluation]) -> list[Cells]:
        """The standings of each task and model, seeds joined: a user's answers under all seeds count as that user's."""
        joined: dict[tuple[str, str], list[tuple[Experiment, Evaluation]]] = {}
        for ((task, model, _), experiment), evaluation in zip(self.experiments.items(), evaluations, strict=True):
            joined.setdefault((task, model), []).append((experiment, evaluation))
        return [self._joined(task, model, runs) for (task, model), runs in joined.items()]

    def _joined(self, task: str, model: str, runs: Sequence[tuple[Experiment, Evaluation]]) -> Cells:
        rows: list[Judged] = []
        for number, (_, evaluation) in enumerate(runs):
            rows += [replace(r, query_id=f"{r.query_id}\0{number}" if r.query_id else "") for r in evaluation.answers]
        first = runs[0][0]
        expected = sum(q.gold is not None for experiment, _ in runs for p in experiment.people for q in p.queries)
        found = standings(rows, first.task, [v.name for v in first.chosen], expected=expected)
        by_name = {s.system: s for s in found}
        asked = {row for section in self.sections for row in rows_of(section, self.of)}
        named = {row: Variant.parse(row).without(first.protocol_options).name for row in asked}
        shown = {row: by_name[name] for row, name in named.items() if name in by_name}
        dropped = [(of, f"{of}@{change}") for of in self.of for change in DROPPED if f"{of}@{change}" in named]
        parts = compare_parts(rows, first.task, {row: (named[of], named[row]) for of, row in dropped})
        folders = tuple(e.folder for _, e in runs)
        return Cells(
            task=task,
            model=model,
            metrics=first.task.metrics,
            users=len(first.people),
            standings=shown,
            parts=parts,
            folders=folders,
        )
