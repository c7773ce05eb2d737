"""``persona-dspy report``: one page about a fleet's personas, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona_dspy.cli.estimates import HistoryColumns, history_columns
from persona_dspy.cli.output import JsonOption, echo, print_json
from persona_dspy.core import plural

if TYPE_CHECKING:
    from persona_dspy.report import Skipped, Subject

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(  # noqa: PLR0913 - a command's options
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Persona JSONs, as compile writes.")] = None,
    store: Annotated[
        str | None, typer.Option(help="A file or a postgresql URL: versions, and the episodes behind each bullet.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="The users' interactions (any INPUT format), where there is no store.")
    ] = None,
    columns: HistoryColumns = None,
    evaluation: Annotated[Path | None, typer.Option(help="The --out of evaluate, or its table.csv.")] = None,
    traces: Annotated[Path | None, typer.Option(help="Traces as JSON or JSONL, a file or a folder.")] = None,
    users: Annotated[str | None, typer.Option(help="Only these, ids separated by commas.")] = None,
    title: Annotated[str, typer.Option(help="What stands above it.")] = "Personas",
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip what cannot be read, and name it.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Write one self-contained page: fleet, map, each user's persona, versions, curve and evidence.

    The page holds the users' own texts. It opens anywhere and asks no server for anything.

    Example: persona-dspy report personas/ --history examples/movie_tags.jsonl --out report.html

    Example: persona-dspy report --store personas.db --evaluation evaluation/ --out report.html
    """
    from persona_dspy.cli.programs import named_users
    from persona_dspy.core import write_text
    from persona_dspy.report import read_evaluation, report_page

    named = history_columns(columns, history)
    bad: list[str] = []
    skipped = bad.append if skip_bad_rows else None
    wanted = None if users is None else set(named_users(users))
    subjects, notes = _subjects(folder, store, wanted, skipped)
    if history is not None:
        subjects = _with_history(subjects, history, named, skipped)
    if traces is not None:
        subjects = _with_traces(subjects, traces)
    systems = read_evaluation(evaluation) if evaluation is not None else ()
    for reason in bad:
        echo(f"skipped: {reason}", err=True)
    notes += [f"Skipped: {b}" for b in bad]
    page = report_page(subjects, title=title, systems=systems, notes=notes)
    write_text(out, page)
    if json_output:
        print_json({"out": str(out), "users": len(subjects), "bytes": len(page.encode()), "notes": notes})
        return
    echo(f"{plural(len(subjects), 'user')}, {len(page) / 1e6:.1f} MB: {out}")


def _subjects(
    folder: Path | None, url: str | None, wanted: set[str] | None, skipped: Skipped | None
) -> tuple[list[Subject], list[str]]:
    from persona_dspy.cli.store import open_store
    from persona_dspy.errors import InputError
    from persona_dspy.report import read_folder, read_store, with_store

    if folder is None and url is None:
        raise InputError("report of nothing: expected a folder of persona JSONs or --store, such as report personas/")
    if url is None:
        assert folder is not None
        return read_folder(folder, users=wanted, skipped=skipped), []
    with open_store(url) as store:
        if folder is not None:
            return with_store(read_folder(folder, users=wanted, skipped=skipped), store, skipped=skipped), []
        subjects, without = read_store(store, users=wanted, skipped=skipped)
    return subjects, [f"{plural(without, 'user')} of the store without a persona yet."] if without else []


def _with_history(
    subjects: list[Subject], path: Path, columns: dict[str, str] | None, skipped: Skipped | None
) -> list[Subject]:
    from persona_dspy.data import BadRow, read_users
    from persona_dspy.report import with_episodes

    bad: list[BadRow] = []
    names = [s.user_id for s in subjects]
    histories = read_users(path, users=names, columns=columns, skip_bad_rows=skipped is not None, bad_rows=bad)
    episodes = {user.user_id: user.interactions for user in histories}
    for row in bad:
        if skipped is not None:
            skipped(str(row))
    return [with_episodes(s, episodes.get(s.user_id, ())) for s in subjects]


def _with_traces(subjects: list[Subject], path: Path) -> list[Subject]:
    from dataclasses import replace

    from persona_dspy.agent import Trace
    from persona_dspy.report import read_traces

    by_user: dict[str, list[Trace]] = {}
    for trace in read_traces(path):
        by_user.setdefault(trace.user_id, []).append(trace)
    return [replace(s, traces=tuple(by_user.get(s.user_id, ()))) for s in subjects]
