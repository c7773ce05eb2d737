"""``persona-dspy evaluate`` and ``data pull``: systems against each other, and the benchmark's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_dspy.cli.estimates import (
    CallsPerSecond,
    ColumnsOption,
    DatasetOption,
    EstimateOption,
    Knowledge,
    Retrieval,
)
from persona_dspy.cli.output import JsonOption, echo, print_json, terminal
from persona_dspy.cli.settings import MetricOption, ProgramOption
from persona_dspy.core import plural

if TYPE_CHECKING:
    from persona_dspy.data import Task

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("evaluate")(evaluate_command)
    data = typer.Typer(help="The benchmark's data files.", no_args_is_help=True)
    data.command("pull")(pull_command)
    data.command("tasks")(tasks_command)
    app.add_typer(data, name="data")


Source = Annotated[
    Path | None,
    typer.Argument(metavar="INPUT", help="JSONL, CSV, Parquet, LaMP questions.json or OPPU users.json."),
]
TaskName = Annotated[str | None, typer.Option(help="lamp-1 ... lamp-7; by default the file's own, or inferred.")]
Systems = Annotated[str, typer.Option(help="Separated by commas; variants as in rag@k=8, persona@block,any-label.")]
Users = Annotated[
    str | None,
    typer.Option(help="How many users at most, longest:100 for those with the longest histories, or ids with commas."),
]
Queries = Annotated[int | None, typer.Option(min=1, help="Held-out queries a user at most.")]
Lm = Annotated[str, typer.Option(help="local, local:1.5b, local:/path/model.gguf, or any name dspy.LM takes.")]
Out = Annotated[Path, typer.Option(help="Folder for answers and tables; a rerun goes on there.")]
Ablations = Annotated[str, typer.Option(help="Of the persona system: all, or names separated by commas.")]
OptimizerCalls = Annotated[int | None, typer.Option(min=1, help="LM calls that any optimizer may spend on a user.")]
Predict = Annotated[
    Path | None,
    typer.Option(help="Write the answers in LaMP's own form; queries whose answers are withheld are asked too."),
]
BudgetCalls = Annotated[int | None, typer.Option(min=0, help="LM calls of this run at most; the same command goes on.")]
BudgetTokens = Annotated[int | None, typer.Option(min=0, help="Tokens of this run at most.")]
BudgetUsd = Annotated[float | None, typer.Option(min=0, help="US dollars of this run at most, where prices are known.")]
Scale = Annotated[list[str] | None, typer.Option(help="A curve of the persona system: recent=1,3 / epochs=1,3 / k=1,4")]
Cold = Annotated[str, typer.Option(help="Cut every history to these lengths too, such as 0,1,3,10.")]
References = Annotated[bool, typer.Option(help="Rows without an LM: majority and nearest-neighbour vote.")]
Actions = Annotated[str, typer.Option(help="How the persona system looks things up: fixed, plan or react.")]
Shown = Annotated[int | None, typer.Option(min=0, help="Episodes shown. Default: 4 for local models, 12 for others.")]
TurnTokens = Annotated[int | None, typer.Option(min=8, help="Estimated tokens of an episode's query, at most.")]
Recent = Annotated[int, typer.Option(min=1, help="Interactions simulated in a step of alignment.")]
Epochs = Annotated[int, typer.Option(min=1, help="Steps of alignment at most.")]
GateSize = Annotated[int | None, typer.Option(min=1, help="Interactions held out by alignment's gate.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Calls in flight; 1 for a model in this process, where two gain nothing, else 4."),
]
Seconds = Annotated[float | None, typer.Option(help="End after so long; the same command goes on.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling in the LM and of the bootstrap.")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow URI, or 'off'. Default: sqlite:///mlflow.db")]
SkipBadRows = Annotated[bool, typer.Option(help="Skip rows that cannot be used, and count them.")]


Official = Annotated[bool, typer.Option("--official", help="Show the benchmark's own script's figures too.")]


def evaluate_command(  # noqa: PLR0913 - a command's options
    source: Source = None,
    dataset: DatasetOption = None,
    columns: ColumnsOption = None,
    task: TaskName = None,
    systems: Systems = "persona,direct,icl,rag,pag,react,membank",
    users: Users = None,
    queries: Queries = None,
    lm: Lm = "local",
    program: ProgramOption = None,
    metric: MetricOption = None,
    out: Out = Path("evaluation"),
    ablations: Ablations = "",
    scale: Scale = None,
    cold: Cold = "",
    references: References = True,
    actions: Actions = "fixed",
    knowledge: Knowledge = None,
    k: Shown = None,
    turn_tokens: TurnTokens = None,
    recent: Recent = 3,
    epochs: Epochs = 3,
    gate: GateSize = None,
    optimizer_calls: OptimizerCalls = None,
    retrieval: Retrieval = None,
    workers: Workers = None,
    seconds: Seconds = None,
    budget_calls: BudgetCalls = None,
    budget_tokens: BudgetTokens = None,
    budget_usd: BudgetUsd = None,
    seed: Seed = 0,
    predict: Predict = None,
    official: Official = False,
    estimate: EstimateOption = False,
    calls_per_second: CallsPerSecond = 1.0,
    tracking_uri: TrackingUri = None,
    skip_bad_rows: SkipBadRows = False,
    json_output: JsonOption = False,
) -> int:
    """Compare systems on users' held-out queries: scores with intervals over users, and what they cost.

    Example: persona-dspy evaluate examples/movie_tags.jsonl --systems persona,direct,rag --users 4 --lm local
    """
    from persona_dspy.cli.judging import chosen_users, data_options, judge
    from persona_dspy.cli.programs import OwnMetric, OwnProgram
    from persona_dspy.judge import Experiment
    from persona_dspy.lm import Budget

    options: dict[str, Any] = {"k": k, "turn_tokens": turn_tokens, "recent": recent, "epochs": epochs, "gate": gate}
    options |= {"actions": actions, "knowledge": knowledge, "retrieval": retrieval, "seed": seed}
    options |= {"optimizer_calls": optimizer_calls, "references": references, "scale": scale or ()}
    options |= {"ablations": _ablations(ablations, knowledge), "cold": [_whole(n) for n in _split(cold)]}
    options |= {"skip_bad_rows": skip_bad_rows, "queries": queries}
    options |= {"task": task, "systems": _split(systems), "lm": lm, "users": chosen_users(users), "out": out}
    options |= {"program": program and OwnProgram(program), "metric": metric and OwnMetric(metric)}
    options |= data_options(source, dataset, columns)
    experiment = Experiment(unanswered=predict is not None, **options)
    if estimate:
        return _estimated(experiment, calls_per_second, json_output)
    budget = Budget(calls=budget_calls, tokens=budget_tokens, usd=budget_usd, seconds=seconds)
    same: dict[str, Any] = {"workers": workers, "tracking_uri": tracking_uri, "as_json": json_output}
    return judge(experiment, budget=budget, predict=predict, official=official, **same)


def pull_command(
    task: Annotated[str, typer.Argument(help="lamp-1, lamp-2m, lamp-2n, lamp-3, lamp-4, lamp-5 or lamp-7.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("lamp"),
    split: Annotated[str, typer.Option(help="train or dev.")] = "dev",
    by: Annotated[str, typer.Option(help="time (as in the paper) or user.")] = "time",
    base_url: Annotated[str | None, typer.Option(help="Another address of the same files.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Download a LaMP task's official files; a cut download goes on where it was.

    Example: persona-dspy data pull lamp-2m
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from persona_dspy.data import BASE_URL, pull

    bars: dict[str, Any] = {}
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=terminal(stderr=True)) as progress:

        def report(name: str, done: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done, total=total)

        options: dict[str, Any] = {"split": split, "by": by, "base_url": base_url or BASE_URL}
        path = pull(task, out, on_progress=report, **options)
    if json_output:
        print_json({"task": task, "split": split, "by": by, "file": str(path)})
    else:
        echo(str(path))


def tasks_command(json_output: JsonOption = False) -> None:
    """List the tasks: what is asked, and how it is scored.

    Example: persona-dspy data tasks
    """
    from rich.table import Table

    from persona_dspy.data import get_task, task_names

    if json_output:
        print_json([_described(get_task(name)) for name in task_names()])
        return
    table = Table(title="LaMP tasks")
    for column in ("name", "what", "signature", "responses", "metrics"):
        table.add_column(column)
    for name in task_names():
        task = get_task(name)
        choices = plural(len(task.choices), "choice") if task.choices else "text"
        fields = f"{task.query_field} -> {task.response_field}"
        table.add_row(name, task.title, fields, choices, ", ".join(task.metrics))
    terminal().print(table)


def _described(task: Task) -> dict[str, Any]:
    fields = {"query": task.query_field, "response": task.response_field}
    return {"name": task.name, "title": task.title, **fields, "choices": task.choices, "metrics": task.metrics}


def _split(text: str) -> list[str]:
    """Names separated by commas; a variant's own options come after ``@`` and may hold commas too."""
    from persona_dspy.judge import ABLATIONS, CONTROL

    names: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        option = "=" in part or part in (*ABLATIONS, CONTROL)
        if option and "@" not in part and names and "@" in names[-1]:
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


def _estimated(experiment: Any, calls_per_second: float, as_json: bool) -> int:
    from persona_dspy.cli.estimates import print_estimate
    from persona_dspy.cli.judging import told_of_bad_rows
    from persona_dspy.judge import estimate_evaluation

    told_of_bad_rows(experiment)
    print_estimate(estimate_evaluation(experiment), calls_per_second, as_json=as_json)
    return 0


def _ablations(text: str, knowledge: str | None) -> list[str]:
    """Without a knowledge tool there is nothing to take away: the row would be the persona's own once more."""
    from persona_dspy.judge import ABLATIONS

    every = [name for name in ABLATIONS if knowledge or name != "no-knowledge"]
    return every if text == "all" else _split(text)


def _whole(text: str) -> int:
    from persona_dspy.errors import InputError

    if not text.isdigit():
        raise InputError(f"--cold {text!r}: expected whole numbers separated by commas, such as 0,1,3,10")
    return int(text)
