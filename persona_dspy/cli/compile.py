"""``persona-dspy compile``: from a file of interactions to a persona JSON per user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compile")(compile_command)


def compile_command(  # noqa: PLR0913 - a command's options
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="JSONL, LaMP questions.json or OPPU-style users.json.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the persona JSONs.")] = Path("personas"),
    task: Annotated[str | None, typer.Option(help="lamp-1 ... lamp-7, or fields such as 'film -> tag'.")] = None,
    lm: Annotated[str, typer.Option(help="local, local:/path/model.gguf, or any name dspy.LM takes.")] = "local",
    users: Annotated[str | None, typer.Option(help="How many users at most, or ids separated by commas.")] = None,
    recent: Annotated[int, typer.Option(min=1, help="Interactions simulated a step (the paper's n).")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Steps at most.")] = 3,
    budget_calls: Annotated[int | None, typer.Option(min=0, help="LM calls at most, all users together.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling in the LM.")] = 0,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow URI, or 'off'. Default: sqlite:///mlflow.db")] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip rows that cannot be used, and count them.")] = False,
    in_paper: Annotated[bool, typer.Option("--as-in-paper", help="No gate, whole rewrites: for reproduction.")] = False,
) -> int:
    """Learn a persona for each user from the user's recent interactions.

    Example: persona-dspy compile examples/movie_tags.jsonl --lm local --out personas/
    """
    from persona_dspy.histories import BadRow, detect_task, read_users

    bad: list[BadRow] = []
    limit, wanted = _which(users)
    known = detect_task(source, task)
    # Read once to the end before any LM call: bad input must not surface after minutes of work.
    found = list(read_users(source, task=task, limit=limit, users=wanted, skip_bad_rows=skip_bad_rows, bad_rows=bad))
    for row in bad:
        typer.echo(f"skipped: {row}", err=True)
    if not found:
        from persona_dspy.errors import DataError

        raise DataError(str(source), expected="at least one user with interactions", value="no users")
    options = {"recent": recent, "epochs": epochs, "seed": seed, "budget_calls": budget_calls, "as_in_paper": in_paper}
    failures = _compile(found, known, task, lm, out, tracking_uri, options)
    if bad:
        typer.echo(f"{len(bad)} bad rows were skipped", err=True)
    return 1 if failures else 0


def _which(users: str | None) -> tuple[int | None, list[str] | None]:
    if users is None:
        return None, None
    return (int(users), None) if users.isdigit() else (None, [u.strip() for u in users.split(",") if u.strip()])


def _compile(
    histories: list[Any], known: Any, task: str | None, lm: str, out: Path, uri: str | None, options: dict[str, Any]
) -> int:
    import dspy

    from optimizers import PersonaAlignment
    from persona_dspy.cli.programs import agent_for, task_text, users_task
    from persona_dspy.export import persona_file_name, write_text
    from persona_dspy.fleet import compile_users
    from persona_dspy.ledger import Budget
    from persona_dspy.settings import check_lm, resolve_lm
    from persona_dspy.tracking import tracker_for

    model = resolve_lm(lm, seed=options["seed"]) if lm.startswith("local") else resolve_lm(lm)
    check_lm(model)
    tracker = tracker_for(uri)
    tracker.begin({"lm": model.model, "task": task_text(known) if known else task, "users": len(histories), **options})
    kind = PersonaAlignment.as_in_paper if options["as_in_paper"] else PersonaAlignment
    view = _View(len(histories))
    optimizer = kind(recent=options["recent"], epochs=options["epochs"], concurrency=2, observers=[view.event])
    tasks: dict[str, str] = {}

    def program(history: Any) -> Any:
        mine = users_task(known, task, history.interactions)
        tasks[history.user_id] = task_text(mine)
        return agent_for(mine, history=history.interactions, user_id=history.user_id)

    results = []
    with dspy.context(lm=model), view:
        for result in compile_users(
            program, histories, optimizer, budget=Budget(calls=options["budget_calls"]), tracker=tracker
        ):
            if result.document is not None:
                document = result.document.model_copy(update={"task": tasks[result.user_id]})
                write_text(out / persona_file_name(result.user_id), document.to_json())
            results.append(result)
            view.finished(result)
    failed = [r for r in results if r.document is None]
    tracker.end({"users": len(results), "failed": len(failed), **_totals(results)})
    view.close(results, out, tracker.where)
    return len(failed)


def _totals(results: list[Any]) -> dict[str, float]:
    records = [r.alignment for r in results if r.alignment]
    return {
        "calls": sum(a.total.calls for a in records),
        "tokens": sum(a.total.input_tokens + a.total.output_tokens for a in records),
        "accepted": sum(a.accepted for a in records),
    }


class _View:
    """What the terminal shows: a bar while it runs, a table at the end."""

    def __init__(self, users: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("users"),
            TimeElapsedColumn(),
            console=self.console,
        )
        self.bar = self.progress.add_task("compiling", total=users)

    def __enter__(self) -> _View:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def event(self, event: dict[str, Any]) -> None:
        self.progress.update(self.bar, description=f"{event['user_id'][:24]}: {event['event']}, {event['calls']} calls")

    def finished(self, result: Any) -> None:
        self.progress.advance(self.bar)
        if result.document is None:
            self.progress.console.print(
                f"[red]failed[/] {result.user_id!r}: {result.error}", markup=True, highlight=False
            )

    def close(self, results: list[Any], out: Path, where: str) -> None:
        from rich.markup import escape
        from rich.table import Table

        table = Table(title="Held-out score, in [0, 1], higher is better")
        for name in ("user", "without persona", "with persona", "accepted edits", "LM calls", "tokens", "seconds"):
            table.add_column(name, justify="left" if name == "user" else "right", no_wrap=name == "user", max_width=32)
        for result in results:
            if (a := result.alignment) is None:
                continue
            score = [f"{s:.2f}" if s is not None else "-" for s in (a.scores.without_persona, a.scores.final)]
            tokens = a.total.input_tokens + a.total.output_tokens
            table.add_row(
                escape(result.user_id),
                *score,
                str(a.accepted),
                str(a.total.calls),
                f"{tokens:,}",
                f"{result.seconds:.1f}",
            )
        self.console.print(table)
        done = [r for r in results if r.document]
        better = sum((r.alignment.scores.final or 0) > (r.alignment.scores.without_persona or 0) for r in done)
        self.console.print(f"{better} of {len(done)} users better than without a persona; personas are in {out}/")
        for result in results:
            if result.document is None:
                self.console.print(f"failed: {result.user_id!r}: {result.error}", markup=False, highlight=False)
        if where:
            self.console.print(f"see the runs: {where}", markup=False, highlight=False, soft_wrap=True)
