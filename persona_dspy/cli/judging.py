"""The work behind ``persona-dspy evaluate``: files and names to a run, a run to tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_dspy.cli.output import print_json

if TYPE_CHECKING:
    from persona_dspy.data import Task
    from persona_dspy.judge import Case, Judged, Results, Standing, Variant
    from persona_dspy.tracking import Ended

__all__ = ["Order", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked for: all that decides answers. The same order gives the same answers."""

    source: Path
    task: str | None
    users: str | None
    queries: int | None
    lm: str
    out: Path
    k: int
    turn_tokens: int
    recent: int
    epochs: int
    gate: int | None
    seed: int
    actions: str
    knowledge: str | None
    skip_bad_rows: bool


def judge(
    order: Order,
    chosen: Sequence[Variant],
    *,
    workers: int | None,
    seconds: float | None,
    tracking_uri: str | None,
    as_json: bool = False,
) -> int:
    """Run, or go on with, an evaluation and write its tables; 0 when all is answered, else 1."""
    import dspy

    from persona_dspy.judge import Results, Setting, commit, data_hash, evaluate
    from persona_dspy.lm import TerseJSON, check_lm, steady_lm
    from persona_dspy.tracking import tracker_for

    setting = Setting(align=_maker(order), k=order.k, turn_tokens=order.turn_tokens, **_tools(order))
    task, people, names = _people(order)
    model: Any = None
    if any(v.system in names for v in chosen):
        model = steady_lm(order.lm, seed=order.seed)
        check_lm(model)
    workers = workers or _workers(model)
    same = ("k", "turn_tokens", "recent", "epochs", "gate", "seed", "queries", "actions", "knowledge")
    protocol = {
        "task": task.name,
        "data": data_hash(order.source),
        "model": getattr(model, "model", None) or order.lm,
        "temperature": getattr(model, "kwargs", {}).get("temperature"),
        **{name: getattr(order, name) for name in same},
    }
    run = {"commit": commit(), "systems": [v.name for v in chosen], "users": order.users, "workers": workers}
    results = Results(order.out, protocol, run)
    terse = bool(getattr(model, "supports_response_schema", False))
    _own_cache(order.out)
    tracker = tracker_for(tracking_uri)
    tracker.begin({**protocol, "users": len(people), "systems": run["systems"], "commit": run["commit"]})
    view = _View(people, chosen, results, as_json=as_json)
    ended: Ended = "KILLED"
    try:
        with dspy.context(lm=model, adapter=TerseJSON() if terse else dspy.ChatAdapter()), view:
            whole = evaluate(people, chosen, setting, results, workers=workers, seconds=seconds, on_row=view.row)
        ended = "FINISHED"
    except Exception:
        ended = "FAILED"
        raise
    finally:
        table = _written(order, task, people, chosen, results)
        tracker.end(_metrics(table, task), ended)
    view.close(table, task, order.out, whole, tracker.where)
    return 0 if whole else 1


def _workers(lm: Any) -> int:
    """Calls in flight: beside another one, an answer of a model in this process can flip where two are nearly equal."""
    from persona_dspy.lm import LlamaEngine

    return 1 if isinstance(getattr(lm, "engine", None), LlamaEngine) else 4


def _people(order: Order) -> tuple[Task, list[Case], tuple[str, ...]]:
    import typer

    from persona_dspy.cli.programs import which_users
    from persona_dspy.data import BadRow, detect_task, read_users
    from persona_dspy.errors import DataError
    from persona_dspy.judge import SYSTEMS, cases, scored_as

    bad: list[BadRow] = []
    limit, wanted = which_users(order.users)
    known_task = detect_task(order.source, order.task)
    histories = read_users(
        order.source, task=known_task, limit=limit, users=wanted, skip_bad_rows=order.skip_bad_rows, bad_rows=bad
    )
    people = cases(histories, known_task, queries=order.queries)
    for row in bad:
        typer.echo(f"skipped: {row.reason}", err=True)
    if bad:
        typer.echo(f"{len(bad)} bad rows were skipped", err=True)
    if not people:
        raise DataError(str(order.source), expected="users with held-out queries or 2 interactions", value="none")
    return scored_as(people), people, SYSTEMS


def _tools(order: Order) -> dict[str, Any]:
    from persona_dspy.agent import LocalCorpus, Wikipedia
    from persona_dspy.errors import InputError

    if order.actions not in ("fixed", "plan", "react"):
        raise InputError(f"--actions {order.actions!r}: expected fixed, plan or react")
    if order.knowledge is None:
        return {"actions": order.actions}
    if order.actions == "fixed":
        raise InputError(f"--knowledge {order.knowledge!r}: expected --actions plan or react, which can call the tool")
    kind, _, contact = order.knowledge.partition(":")
    source = Wikipedia(contact) if kind == "wikipedia" else LocalCorpus.from_path(order.knowledge)
    return {"actions": order.actions, "knowledge": source}


def _maker(order: Order) -> Any:
    from optimizers import HeldOutGate, PersonaAlignment

    def make(*, recent: int | None, epochs: int | None) -> Any:
        return PersonaAlignment(
            recent=order.recent if recent is None else recent,
            epochs=order.epochs if epochs is None else epochs,
            gate=None if order.gate is None else HeldOutGate(order.gate),
        )

    return make


def _own_cache(out: Path) -> None:
    """LM answers are cached in the evaluation's own folder, so that an interrupted alignment is not paid twice and
    that removing the folder removes every user's text."""
    import dspy

    dspy.configure_cache(disk_cache_dir=str(out / "lm-cache"), enable_memory_cache=False)


def _written(
    order: Order, task: Task, people: Sequence[Case], chosen: Sequence[Variant], results: Results
) -> list[Standing]:
    from persona_dspy.core import write_text
    from persona_dspy.judge import as_csv, as_markdown, standings

    ids = {(p.user_id, q.id) for p in people for q in p.queries}
    rows = [r for r in results.rows if r.kind != "answer" or (r.user_id, r.query_id) in ids]
    table = standings(rows, task, [v.name for v in chosen], expected=len(ids), seed=order.seed)
    write_text(order.out / "table.csv", as_csv(table, task))
    write_text(order.out / "table.md", as_markdown(table, task))
    return table


def _metrics(found: Sequence[Standing], task: Task) -> dict[str, float]:
    from persona_dspy.judge import columns

    return {
        f"{s.system.replace('@', '.').replace(',', '.').replace('=', '-')}.{name}": float(value)
        for s in found
        for name, value in columns(s, task).items()
        if isinstance(value, int | float)
    }


class _View:
    """One progress bar over all answers; the table at the end."""

    def __init__(self, people: Sequence[Case], chosen: Sequence[Variant], results: Results, *, as_json: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.as_json, self.console = as_json, Console(stderr=as_json)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console)
        total = len(chosen) * sum(len(p.queries) for p in people)
        done = sum(len({q.id for q in p.queries} & results.answered(v.name, p.user_id)) for p in people for v in chosen)
        self.bar = self.progress.add_task("answers", total=total, completed=done)

    def __enter__(self) -> _View:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def row(self, row: Judged) -> None:
        self.progress.update(self.bar, advance=row.kind == "answer", description=f"{row.system}, {row.user_id[:20]}")

    def close(self, found: Sequence[Standing], task: Task, out: Path, whole: bool, where: str) -> None:
        from rich.markup import escape
        from rich.table import Table

        from persona_dspy.judge import cells, columns

        if self.as_json:
            systems = [columns(s, task) for s in found]
            print_json({"task": task.name, "complete": whole, "out": str(out), "runs": where, "systems": systems})
            return
        rows = [cells(s, task) for s in found]
        titles = list(dict.fromkeys(title for row in rows for title in row))
        costs = titles.index("unparsed") if titles else 0  # a terminal is too narrow for all columns in one table
        named = f"{task.title}: held-out queries, intervals over users"
        for name, shown in ((named, titles[:costs]), ("What it took", ["system", *titles[costs:]])):
            table = Table(title=name)
            for title in shown:
                table.add_column(title, justify="left" if title == "system" else "right", no_wrap=title == "system")
            for row in rows:
                table.add_row(*(escape(row.get(title, "-")) for title in shown))
            self.console.print(table)
        if not whole:
            self.console.print("not all is answered; the same command goes on")
        self.console.print(f"answers and tables are in {out}/", markup=False, highlight=False, soft_wrap=True)
        if where:
            self.console.print(f"see the runs: {where}", markup=False, highlight=False, soft_wrap=True)
