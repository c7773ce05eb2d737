"""``persona-dspy reproduce``: the paper's tables, ablations, curves and figures from LaMP's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_dspy.cli.ending import at_the_latest
from persona_dspy.cli.estimates import CallsPerSecond, EstimateOption, Knowledge, Retrieval
from persona_dspy.cli.output import JsonOption, print_json, terminal
from persona_dspy.core import plural, printable

if TYPE_CHECKING:
    from persona_dspy.judge import Evaluation, Experiment, Judged, Results
    from persona_dspy.tracking import Tracker

__all__ = ["register"]

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="A folder of LaMP's or OPPU's files, a folder a task; or one file.")
]
Tasks = Annotated[str, typer.Option("--task", help="Separated by commas.")]
Lms = Annotated[list[str] | None, typer.Option("--lm", help="A model; repeat it for several. Default: local")]
Sections = Annotated[str, typer.Option(help="Some of table, ablations, curves, cold, separated by commas.")]
Of = Annotated[str, typer.Option(help="Whose ablations and curves: as-in-paper, persona or both, with a comma.")]
Users = Annotated[str, typer.Option(help="How many users at most, longest:100 as in the paper, or ids with commas.")]
Queries = Annotated[int | None, typer.Option(min=1, help="Held-out queries a user at most.")]
Seeds = Annotated[str, typer.Option(help="Separated by commas; each is a run of its own.")]
Out = Annotated[Path, typer.Option(help="Folder for runs, tables and figures; a rerun goes on there.")]
Number = Annotated[int | None, typer.Option(min=0, help="LM calls of this run at most; the same command goes on.")]
Tokens = Annotated[int | None, typer.Option(min=0, help="Tokens of this run at most.")]
Usd = Annotated[float | None, typer.Option(min=0, help="US dollars of this run at most, where prices are known.")]
Seconds = Annotated[float | None, typer.Option(help="End after so long; the same command goes on.")]
Predict = Annotated[
    bool,
    typer.Option(
        "--predict", help="Ask questions without a known answer too; write all answers in LaMP's form, a file a system."
    ),
]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow URI, or 'off'. Default: sqlite:///mlflow.db")]
Workers = Annotated[int | None, typer.Option(min=1, help="Calls in flight; by default 1 for a local model, else 4.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reproduce")(reproduce_command)


def reproduce_command(  # noqa: PLR0913 - a command's options
    data: Data,
    task: Tasks = "lamp-1,lamp-2m,lamp-2n,lamp-3",
    lm: Lms = None,
    sections: Sections = "table,ablations,curves,cold",
    of: Of = "as-in-paper,persona",
    users: Users = "longest:100",
    queries: Queries = None,
    seeds: Seeds = "0",
    out: Out = Path("reproduction"),
    retrieval: Retrieval = None,
    knowledge: Knowledge = None,
    k: Annotated[int, typer.Option(min=0, help="Episodes shown.")] = 4,
    turn_tokens: Annotated[int, typer.Option(min=8, help="Estimated tokens of an episode's query, at most.")] = 96,
    workers: Workers = None,
    seconds: Seconds = None,
    budget_calls: Number = None,
    budget_tokens: Tokens = None,
    budget_usd: Usd = None,
    predict: Predict = False,
    estimate: EstimateOption = False,
    calls_per_second: CallsPerSecond = 1.0,
    tracking_uri: TrackingUri = None,
    json_output: JsonOption = False,
) -> int:
    """Repeat the paper's experiments: its table, ablations, curves, cold start, latency, persona map and similarity.

    Every cell is computed once and kept: the same command goes on where it ended, and more sections, seeds or models
    add to what is there. The paper's own figures stand beside, marked as theirs.

    Example: persona-dspy reproduce examples/movie_tags.jsonl --lm local --users 2 --estimate
    """
    from persona_dspy.cli.estimates import print_estimate
    from persona_dspy.cli.judging import chosen_users
    from persona_dspy.judge import Reproduction, find_sources, write_booklet
    from persona_dspy.lm import Budget
    from persona_dspy.report import check_printing
    from persona_dspy.tracking import tracker_for

    check_printing()
    options: dict[str, Any] = {"k": k, "turn_tokens": turn_tokens, "retrieval": retrieval, "queries": queries}
    options |= {"knowledge": knowledge, "unanswered": predict}
    options |= {"seeds": _numbers(seeds), "sections": _names(sections), "of": _names(of), "out": out}
    reproduction = Reproduction(
        find_sources(data, _names(task)), lms=lm or ["local"], users=chosen_users(users), **options
    )
    if estimate:
        print_estimate(reproduction.estimate(), calls_per_second, as_json=json_output)
        return 0
    budget = Budget(calls=budget_calls, tokens=budget_tokens, usd=budget_usd, seconds=seconds)
    trackers: list[Tracker] = []

    def tracker() -> Tracker:
        trackers.append(tracker_for(tracking_uri))
        return trackers[-1]

    with _Bar(as_json=json_output) as bar, at_the_latest(lambda: trackers[-1].abandon() if trackers else None):
        evaluations = reproduction.run(
            workers=workers, budget=budget, tracker=tracker, on_start=bar.start, on_row=bar.row
        )
    files = write_booklet(reproduction.cells(evaluations), _names(of), _names(sections), out)
    if predict:
        files += reproduction.write_predictions(evaluations)
    where = trackers[-1].where if trackers else ""
    return _told(evaluations, files, where, bar.console, as_json=json_output)


def _told(evaluations: Sequence[Evaluation], files: Sequence[Path], where: str, console: Any, *, as_json: bool) -> int:
    """Say what was written; 0 when all is answered, else 1."""
    whole = all(e.complete for e in evaluations)
    stopped = next((e.stopped for e in evaluations if e.stopped), "")
    if as_json:
        print_json({"complete": whole, "stopped": stopped, "runs": where, "files": [str(f) for f in files]})
        return 0 if whole else 1
    console.print(f"{plural(len(files), 'file')}; begin with {files[0]}", highlight=False, soft_wrap=True)
    if where:
        console.print(f"see the runs: {where}", highlight=False, soft_wrap=True)
    if not whole:
        console.print(f"not all is answered, {stopped}; the same command goes on")
    return 0 if whole else 1


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))


def _numbers(text: str) -> list[int]:
    from persona_dspy.errors import InputError

    if not all(part.isdecimal() for part in _names(text)):
        raise InputError(f"--seeds {text!r}: expected whole numbers separated by commas, such as 0,1,2")
    return [int(part) for part in _names(text)]


class _Bar:
    """A progress bar for each task, model and seed in turn."""

    def __init__(self, *, as_json: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = terminal(stderr=as_json)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=self.console)
        self.bar: Any = None

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, experiment: Experiment, results: Results) -> None:
        total = sum(len(p.queries) for p in experiment.people) * len(experiment.chosen)
        name = printable("/".join(experiment.out.parts[-3:]))
        self.bar = self.progress.add_task(name, total=total, completed=total - experiment.left(results))

    def row(self, row: Judged) -> None:
        self.progress.update(self.bar, advance=row.kind == "answer")
