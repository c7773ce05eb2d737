"""``persona-dspy status``: how far a fleet is, also while it runs in another process or after it was killed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_dspy.cli.output import JsonOption, print_json, terminal

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    out: Annotated[Path, typer.Argument(help="The --out of a compile.")] = Path("personas"),
    json_output: JsonOption = False,
) -> None:
    """Show how many users of a compile are finished, stopped or failed, and what it cost.

    Example: persona-dspy status personas/
    """
    from rich.table import Table

    from persona_dspy.fleet import fleet_status

    progress = fleet_status(out)
    if json_output:
        print_json(progress)
        return
    table = Table(title=f"Fleet in {out}/", show_header=False)
    for name, value in _lines(progress):
        table.add_row(name, value)
    terminal().print(table)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    run, users = found["run"], found["users"]
    lines: list[tuple[str, str]] = []
    total = None
    if run is not None:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run["began"]))
        advice = "; go on with --resume" if run["state"] not in ("running", "done") else ""
        lines.append(("last run", f"{run['state']}, began {began}{advice}"))
        total = run["params"].get("users")
    of = f" of {total}" if total else ""
    lines += [(state, f"{count:,}{of if state == 'done' else ''}") for state, count in users.items()]
    lines += [(f"failed with {kind}", f"{count:,}") for kind, count in found["errors"].items()]
    lines += [("LM calls", f"{found['calls']:,}"), ("tokens", f"{found['tokens']:,}")]
    if found["usd"] is not None:
        lines.append(("US dollars", f"{found['usd']:.2f}"))
    if found["finished_a_minute"]:
        lines.append(("users a minute", str(found["finished_a_minute"])))
    return lines
