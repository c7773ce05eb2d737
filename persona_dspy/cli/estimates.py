"""Options that several commands share: which input, and ``--estimate``, what a command would take before any of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from persona_dspy.cli.output import print_json, terminal
from persona_dspy.core import plural

if TYPE_CHECKING:
    from persona_dspy.lm import Estimate

__all__ = [
    "CallsPerSecond",
    "ColumnsOption",
    "DatasetOption",
    "EstimateOption",
    "HistoryColumns",
    "Knowledge",
    "Retrieval",
    "estimate_compile",
    "history_columns",
    "one_input",
    "print_estimate",
]

EstimateOption = Annotated[bool, typer.Option("--estimate", help="Say calls, tokens and money; spend nothing.")]
Retrieval = Annotated[
    Literal["bm25", "dense", "hybrid"] | None,
    typer.Option(
        help="How episodes are found: by words (the default), by sentence vectors (models pull minilm; the default of "
        "the paper's agent), or both."
    ),
]
Knowledge = Annotated[
    str | None,
    typer.Option(help="Texts to search: a folder, JSONL with 'text', or wikipedia:you@example.org."),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(metavar="PATH[:SPLIT]", help="In place of INPUT: what save_to_disk wrote, a table, or a split."),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(metavar="FIELD=COLUMN,...", help="Names of columns: user_id=author,query=text,time=created."),
]
HistoryColumns = Annotated[
    str | None,
    typer.Option(metavar="FIELD=COLUMN,...", help="Of --history, names of columns: user_id=author,query=text."),
]
CallsPerSecond = Annotated[float, typer.Option(min=0.001, help="For --estimate: LM calls a second, workers together.")]


def one_input(source: Path | None, dataset: str | None) -> Path | None:
    """INPUT or ``--dataset``.

    Raises:
        InputError: both.
    """
    from persona_dspy.errors import InputError

    if source is not None and dataset is not None:
        raise InputError(f"{str(source)!r} and --dataset {dataset!r}: expected one of them")
    return source if dataset is None else Path(dataset)


def estimate_compile(program: Any, optimizer: Any, histories: Sequence[Any], total: int, lm: Any) -> Estimate:
    """What aligning ``total`` users takes, by what ``histories``, some of them, take with an LM that mostly errs."""
    import dspy

    from persona_dspy.core import Usage
    from persona_dspy.lm import Estimate, Ledger, rehearsal_lm

    ledger = Ledger()
    with dspy.context(lm=rehearsal_lm()), ledger.recording():
        for history in histories:
            student = program(history)
            if (examples := student.examples()) or student.memory.signals:
                optimizer.compile(student, trainset=examples)

    def scaled(usage: Usage) -> Usage:
        times = total / max(1, len(histories))
        names = ("calls", "input_tokens", "output_tokens")
        return Usage(**{name: round(times * getattr(usage, name)) for name in names})

    return Estimate.of([(role, scaled(usage)) for role, usage in ledger.by_role.items()], lm)


def _minutes(seconds: float) -> str:
    """
    Example:
        >>> _minutes(60), _minutes(90)
        ('1 minute', '1.5 minutes')
    """
    minutes = f"{seconds / 60:,.1f}".removesuffix(".0")
    return f"{minutes} minute" + ("" if minutes == "1" else "s")


def print_estimate(estimate: Estimate, calls_per_second: float, *, as_json: bool) -> None:
    """As a table by part, and a line for all."""
    seconds = estimate.seconds(calls_per_second)
    if as_json:
        parts = {
            name: {"calls": u.calls, "input_tokens": u.input_tokens, "output_tokens": u.output_tokens}
            for name, u in estimate.parts
        }
        whole = {"calls": estimate.calls, "input_tokens": estimate.input_tokens, "usd": estimate.usd}
        whole |= {"output_tokens": estimate.output_tokens, "seconds": round(seconds), "parts": parts}
        print_json(whole)
        return
    from rich.table import Table

    console = terminal(highlight=False)
    table = Table(title="About what it takes; nothing was spent")
    for title in ("part", "LM calls", "input tokens", "output tokens"):
        table.add_column(title, justify="left" if title == "part" else "right")
    for name, usage in estimate.parts:
        table.add_row(name, f"{usage.calls:,}", f"{usage.input_tokens:,}", f"{usage.output_tokens:,}")
    total = (f"{estimate.calls:,}", f"{estimate.input_tokens:,}", f"{estimate.output_tokens:,}")
    table.add_row("all", *total, style="bold")
    console.print(table)
    money = "price not known" if estimate.usd is None else f"{estimate.usd:.2f} US dollars"
    money = "less than 0.01 US dollars" if estimate.usd and estimate.usd < 0.005 else money
    each = "1 call a second" if calls_per_second == 1 else f"{calls_per_second:g} calls a second"
    rate = f"{_minutes(seconds)} at {each} (--calls-per-second)"
    console.print(f"about {plural(round(estimate.calls), 'LM call')}, {money}, {rate}", soft_wrap=True)
    console.print(
        "a rehearsal of some users with an LM that mostly errs, so rather too much than too little; a reasoning "
        "model's thoughts are not counted",
        soft_wrap=True,
    )


def history_columns(columns: str | None, history: Path | None) -> dict[str, str] | None:
    """``--columns`` of a command that reads a file only where ``--history`` names one.

    Raises:
        InputError: columns of no file, or not in their form.
    """
    from persona_dspy.data import columns_from_text
    from persona_dspy.errors import InputError

    if columns is not None and history is None:
        raise InputError(f"--columns {columns!r}: expected --history FILE too, the file whose columns they are")
    return columns_from_text(columns)
