"""``persona-dspy forget``: everything kept of a user, removed and accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_dspy.cli.estimates import HistoryColumns, history_columns
from persona_dspy.cli.output import JsonOption, echo, print_json
from persona_dspy.cli.store import StoreOption, open_store, queue_folder, sqlite_file
from persona_dspy.core import plural

if TYPE_CHECKING:
    from persona_dspy.fleet import Erasure

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("forget")(forget)


def forget(  # noqa: PLR0913 - a place an option
    user: Annotated[str, typer.Argument(metavar="USER", help="A user id, as it was ingested.")],
    store: StoreOption = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of a compile, an export or an evaluation. Default: personas/ if there is one."),
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow URI, or 'off'. Default: sqlite:///mlflow.db if there is one.")
    ] = None,
    pages: Annotated[
        list[Path] | None, typer.Option(help="Folders of a PageCache, with what was looked up for users.")
    ] = None,
    queue: Annotated[
        list[Path] | None,
        typer.Option(help="Folders where a service's interactions wait. Default: that of serve, if there is one."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    history: Annotated[
        Path | None,
        typer.Option(help="A file with the user's interactions: what still holds their words is named. Only read."),
    ] = None,
    columns: HistoryColumns = None,
    json_output: JsonOption = False,
) -> int:
    """Remove everything kept of a user, for good: interactions, vectors, all versions, exports, MLflow runs, cached
    LM answers. Prints what was removed, and what still speaks of the user. It cannot be undone. Whoever reads a SQLite
    file meanwhile is waited for 5 seconds.

    Example: persona-dspy forget ana --store personas.db --out personas/ --yes
    """
    from persona_dspy.cli.programs import forgettable
    from persona_dspy.errors import ForgettingIncomplete
    from persona_dspy.fleet import dspy_cache_entries, forget_user

    named_columns = history_columns(columns, history)
    places, missing = _places(store, out, tracking_uri)
    caches = _caches(store, pages, queue, of_store=places["store"])
    named = [*places["names"], *caches]
    if not yes and not typer.confirm(f"Remove everything kept of user {user!r} in {', '.join(named)}?", err=True):
        echo("nothing was removed", err=True)
        return 1
    forgettable()
    texts = _texts(history, user, named_columns)
    opened = open_store(store) if places["store"] else None
    failure = ""
    try:
        done = forget_user(
            user, store=opened, folders=places["folders"], tracker=places["tracker"], caches=caches, texts=texts
        )
    except ForgettingIncomplete as incomplete:
        done, failure = incomplete.erasures, str(incomplete)
    finally:
        if opened is not None:
            opened.close()
    folder, entries = dspy_cache_entries()
    if entries:
        missing.append(
            f"DSPy's own cache {folder} holds {plural(entries, 'LM answer')} of programs that used it, and knows no "
            "users: if one of them served this user, remove the folder"
        )
    _print(user, done, missing, as_json=json_output)
    if failure:
        echo(f"persona-dspy: {failure}", err=True)
    return 1 if failure else 0


def _caches(store: str | None, pages: list[Path] | None, queue: list[Path] | None, *, of_store: bool) -> dict[str, Any]:
    """Page caches and queues, by the name they go by in the account. ``of_store``: of queues, what waits for it alone.

    Raises:
        InputError: a queue that was named is not there.
    """
    from persona_dspy.agent import PageCache
    from persona_dspy.errors import InputError
    from persona_dspy.service import ObservationQueue

    for folder in queue or ():
        if not folder.is_dir():
            raise InputError(
                f"--queue {str(folder)!r}: no such folder; expected the queue of a service on this machine"
            )
    caches: dict[str, Any] = {str(folder): PageCache(folder) for folder in pages or ()}
    waiting = queue if queue is not None else [one for one in [queue_folder(store)] if one.is_dir()]
    if waiting and of_store:
        with open_store(store) as opened:
            identity = opened.id
    else:
        identity = ""
    for folder in waiting:
        caches[f"queue {folder}"] = ObservationQueue(folder, store=identity)
    return caches


def _texts(history: Path | None, user: str, columns: dict[str, str] | None) -> list[str]:
    """What the user wrote, as a file of interactions has it."""
    if history is None:
        return []
    from persona_dspy.data import read_users

    own = read_users(history, users=[user], columns=columns, skip_bad_rows=True, group=True)
    return [text for one in own for i in one.interactions for text in (i.query, i.response)]


def _places(store: str | None, out: list[Path] | None, uri: str | None) -> tuple[dict[str, Any], list[str]]:
    """Where there is something to look at, and notes on where there is not.

    Raises:
        InputError: a place that was named is not there.
    """
    from persona_dspy.errors import InputError
    from persona_dspy.lm import home_dir
    from persona_dspy.tracking import is_off, tracker_for

    notes: list[str] = []
    has_store = store is not None or (home_dir() / "personas.db").exists()
    if store is not None:
        open_store(store).close()  # a wrong name must not pass for "nothing kept"
    folders = out if out is not None else [p for p in [Path("personas")] if _is_output(p)]
    for folder in folders:
        if not _is_output(folder):
            raise InputError(f"--out {str(folder)!r}: no such folder; expected the --out of a compile or an export")
    file = sqlite_file(uri or "sqlite:///mlflow.db")
    has_runs = not is_off(uri) and (file is None or file.exists())
    if uri is not None and not is_off(uri) and not has_runs:
        raise InputError(f"--tracking-uri {uri!r}: no such file; expected the URI that compile was given, or 'off'")
    for there, what in ((has_store, "no store (--store)"), (has_runs, "no MLflow runs (--tracking-uri)")):
        if not there:
            notes.append(f"{what} was looked at: there is none by default")
    if not folders:
        notes.append("no folder (--out) was looked at: there is none by default")
    names = [*(["the store"] if has_store else []), *map(str, folders), *(["MLflow"] if has_runs else [])]
    tracker = tracker_for(uri) if has_runs else None
    return {"store": has_store, "folders": folders, "tracker": tracker, "names": names}, notes


def _is_output(folder: Path) -> bool:
    from persona_dspy.fleet import has_fleet

    return folder.is_dir() or has_fleet(folder)


def _print(user: str, done: list[Erasure], notes: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"user_id": user, "places": [one.to_dict() for one in done], "notes": notes})
        return
    for one in done:
        counted = ", ".join(f"{name} {count:,}" for name, count in one.removed.items())
        counted = counted or ("nothing was found" if one.note else "nothing was there")
        echo(f"{one.place}: {counted}" + (f"; NOTE: {one.note}" if one.note else ""))
    for note in notes:
        echo(f"note: {note}", err=True)
