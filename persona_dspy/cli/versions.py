"""``persona-dspy users``, ``history`` and ``diff``: who is in a store, and what changed. None of them calls an LM."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_dspy.cli.output import JsonOption, echo, print_json, terminal
from persona_dspy.cli.store import StoreOption, UserArgument, document_of, is_file, open_store, parsed
from persona_dspy.core import plural

if TYPE_CHECKING:
    from persona_dspy.core import PersonaDocument
    from persona_dspy.store import Store, StoredPersona

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (users, history, diff):
        app.command(command.__name__)(command)


def users(
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """List who is in a store: interactions, versions, and how the current one did.

    Example: persona-dspy users --store personas.db
    """
    from rich.table import Table

    with open_store(store) as opened:
        ids = list(islice(opened.users(), limit + 1))
        rows = [_user_row(opened, user) for user in ids[:limit]]
    if json_output:
        print_json({"users": rows, "more": len(ids) > limit})
        return
    table = Table()
    for name in ("user", "interactions", "versions", "current", "without persona", "with persona"):
        table.add_column(name, justify="left" if name == "user" else "right", overflow="fold")
    for row in rows:
        scores = [f"{row[name]:.2f}" if row[name] is not None else "-" for name in ("without_persona", "score")]
        current = "-" if row["current"] is None else str(row["current"])
        table.add_row(row["user_id"], f"{row['interactions']:,}", str(row["versions"]), current, *scores)
    terminal().print(table)
    if len(ids) > limit:
        echo(f"the first {limit}; for more, --limit")


def _user_row(store: Store, user_id: str) -> dict[str, Any]:
    versions = store.versions(user_id)
    current = next((_row(version) for version in versions if version.current), None)
    return {
        "user_id": user_id,
        "interactions": len(store.episodes(user_id)),
        "versions": len(versions),
        "current": current["version"] if current else None,
        "without_persona": current["without_persona"] if current else None,
        "score": current["score"] if current else None,
    }


def history(user: UserArgument, store: StoreOption = None, json_output: JsonOption = False) -> None:
    """List the versions of a user's persona, and which one is current.

    Example: persona-dspy history ana --store personas.db
    """
    from rich.table import Table

    with open_store(store) as opened:
        rows = [_row(version) for version in opened.versions(user)]
        count = len(opened.episodes(user))
    if json_output:
        print_json({"user_id": user, "interactions": count, "versions": rows})
        return
    table = Table(title=f"{plural(len(rows), 'version')}, {plural(count, 'interaction')}")
    for name in ("version", "parent", "made", "held-out score", "without persona", "edits", "LM calls", "lines"):
        table.add_column(name, justify="left" if name == "made" else "right", no_wrap=name == "made")
    for row in rows:
        mark = " *" if row["current"] else ""
        scores = [f"{row[name]:.2f}" if row[name] is not None else "-" for name in ("score", "without_persona")]
        parent = "-" if row["parent"] is None else str(row["parent"])
        fields = (str(row["accepted"]), str(row["calls"]), str(row["bullets"]))
        table.add_row(f"{row['version']}{mark}", parent, row["created"][:10], *scores, *fields)
    terminal().print(table)
    echo("* = current" if rows else "no persona yet")


def diff(
    user: Annotated[str, typer.Argument(metavar="USER|FILE", help="A user id in the store, or a persona JSON.")],
    a: Annotated[
        str | None,
        typer.Argument(metavar="[A]", help="From this version; another user; or another persona JSON."),
    ] = None,
    b: Annotated[int | None, typer.Argument(metavar="[B]", help="To this version; by default the current one.")] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show what changed between two versions of a user's persona, and what differs between two users or files: + added,
    - dropped, ~ revised. Without A: from the current version's parent.

    Example: persona-dspy diff ana 0 1 --store personas.db

    Example: persona-dspy diff ana bram --store personas.db
    """
    from persona_dspy.core import load_document

    if a is not None and b is None and (_names_file(user) or _names_file(a)):
        old, new = load_document(user), load_document(a)
    else:
        with open_store(store) as opened:
            old, new = _two(opened, user, a, b)
    changed = old.persona().diff(new.persona())
    if json_output:
        whose = {"user_id": old.user_id, "other_user_id": new.user_id, "from": old.version, "to": new.version}
        print_json({**whose, **changed.model_dump(mode="json")})
        return
    same = old.user_id == new.user_id
    echo(f"version {old.version} -> {new.version}" if same else f"{_named(old)} -> {_named(new)}")
    echo(str(changed) or ("no change" if same else "no difference"))


def _named(document: PersonaDocument) -> str:
    return f"{document.user_id}, version {document.version}"


def _names_file(name: str) -> bool:
    return name.endswith(".json") and is_file(name)


def _two(store: Store, user: str, a: str | None, b: int | None) -> tuple[PersonaDocument, PersonaDocument]:
    from persona_dspy.errors import InputError

    if a is not None and not a.isdecimal():
        if b is not None:
            raise InputError(f"diff {user!r} {a!r} {b}: expected two versions of a user, two users, or two files")
        return document_of(store, user), document_of(store, a)
    new = document_of(store, user, b)
    from_ = new.parent if a is None else int(a)
    if from_ is None:
        raise InputError(f"version {new.version} of {user!r} has no parent; expected: diff USER A B")
    return document_of(store, user, from_), new


def _row(stored: StoredPersona) -> dict[str, Any]:
    document = parsed(stored)
    alignment = document.alignment
    return {
        "version": stored.version,
        "parent": stored.parent,
        "created": stored.created,
        "current": stored.current,
        "score": alignment.scores.final if alignment else None,
        "without_persona": alignment.scores.without_persona if alignment else None,
        "accepted": alignment.accepted if alignment else 0,
        "calls": alignment.total.calls if alignment else 0,
        "bullets": sum(len(section.bullets) for section in document.sections),
    }
