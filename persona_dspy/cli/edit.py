"""``persona-dspy edit``: a person adds, revises, drops, locks and unlocks lines. Calls no LM."""

from __future__ import annotations

import codecs
import getpass
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_dspy.cli.output import JsonOption, echo, print_json, within_line
from persona_dspy.cli.store import StoreOption, document_of, is_file, open_store
from persona_dspy.core import persona_file_name, write_bytes
from persona_dspy.errors import PersonaError

if TYPE_CHECKING:
    from persona_dspy.core import Persona, PersonaDocument

__all__ = ["edited_text", "lines_of", "register"]

_LINE = re.compile(r"^([0-9a-f]{8})(!?)(?:\s+(.*))?$")
_HELP = """\
# The lines of {user}, version {version}. Save and close; what differs becomes the next version.
# "!" after an id locks the line: no optimizer touches it. A line that you add or change is locked too.
# Sections: {sections}
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("edit")(edit)


def edit(  # noqa: PLR0913 - a command's options
    persona: Annotated[str, typer.Argument(metavar="USER|FILE", help="A user id in the store, or a persona JSON.")],
    add: Annotated[
        list[str] | None, typer.Option(help="A new line, locked; in a section: --add 'style: Writes in lower case.'")
    ] = None,
    revise: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE=TEXT", help="Other words for a line (its id), locked from then on."),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="LINE", help="Remove a line: its id, or words of it.")
    ] = None,
    lock: Annotated[list[str] | None, typer.Option(metavar="LINE", help="No optimizer touches it any more.")] = None,
    unlock: Annotated[list[str] | None, typer.Option(metavar="LINE", help="Optimizers may touch it again.")] = None,
    by: Annotated[str | None, typer.Option(help="Who edits; by default the name you are logged in by.")] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Change lines by hand: a new version each time, that says who made it and when. Without --add, --revise, --drop,
    --lock and --unlock the lines open in $EDITOR. Ids of lines: persona-dspy show.

    Example: persona-dspy edit ana --add "style: Never uses emoji." --store personas.db
    """
    asked = {"add": add or [], "revise": revise or [], "drop": drop or [], "lock": lock or [], "unlock": unlock or []}

    typed: list[bytes] = []

    def change(before: Persona) -> Persona:
        return _by_options(before, asked) if any(asked.values()) else _by_editor(before, typed)

    who = by or getpass.getuser()
    in_file = store is None and (persona.endswith(".json") or is_file(persona))
    try:
        old, new = _in_file(Path(persona), change, who) if in_file else _in_store(persona, store, change, who)
    except (PersonaError, OSError):
        if typed:  # an edit that cannot be read, or another version that came meanwhile
            kept = Path(f"{persona_file_name(Path(persona).stem if in_file else persona)}.edit.txt")
            write_bytes(kept, typed[-1], mode=0o600)
            echo(f"what you wrote is in {kept}", err=True)
        raise
    difference = old.persona().diff(new.persona())
    if json_output:
        print_json(
            {"user_id": old.user_id, "from": old.version, "to": new.version, "by": who}
            | difference.model_dump(mode="json")
        )
    elif new.version == old.version:
        echo(f"nothing changed; version {old.version} of {old.user_id!r} stays")
    else:
        echo(f"version {old.version} -> {new.version}, by {who}")
        echo(difference)


def _in_file(path: Path, change: Callable[[Persona], Persona], who: str) -> tuple[PersonaDocument, PersonaDocument]:
    from persona_dspy.core import alone_with, load_document, read_document, write_text

    load_document(path)  # what is no persona is refused before anything lies beside it
    with alone_with(path, lambda: echo(f"{path}: waits until another edit of it ends", err=True)):
        old = load_document(path)
        new = _document(old, change(old.persona()), who, old.version + 1)
        if new is not old:
            text = new.to_json()
            read_document(text.encode(), str(path))  # what is written can be read again
            write_text(path, text)
    return old, new


def _in_store(
    user: str, url: str | None, change: Callable[[Persona], Persona], who: str
) -> tuple[PersonaDocument, PersonaDocument]:
    with open_store(url) as store:
        since = store.state(user)  # an editor stays open for minutes: another version made meanwhile is not hidden
        old = document_of(store, user)
        after = change(old.persona())
        if not old.persona().diff(after):
            return old, old
        store.append_persona(since, lambda number, _: _document(old, after, who, number).to_json())
        return old, document_of(store, user)


def _document(old: PersonaDocument, persona: Persona, who: str, version: int) -> PersonaDocument:
    """The next version, with the record of who made it; ``old`` itself where nothing differs."""
    from persona_dspy.core import Alignment, PersonaDocument

    difference = old.persona().diff(persona)
    if not difference:
        return old
    persona = persona.model_copy(update={"version": version, "parent": old.version})
    lines = str(difference).splitlines()
    record = Alignment(
        user_id=old.user_id,
        stopped=f"edited by {who}",
        options={"edited_by": who, "edited_at": persona.created_at},
        notes=tuple(lines),
    )
    return PersonaDocument.of(persona, alignment=record, task=old.task, model=old.model)


def _by_options(persona: Persona, asked: dict[str, list[str]]) -> Persona:
    from persona_dspy.errors import InputError

    for text in asked["add"]:
        section, text = _section(text)
        persona = persona.add(text, section=section)
    for line_and_text in asked["revise"]:
        line, equals, text = line_and_text.partition("=")
        if not equals:
            raise InputError(
                f"--revise {line_and_text!r}: expected LINE=TEXT, such as 1a2b3c4d='Writes in lower case.'"
            )
        persona = persona.revise(line.strip(), text)
    for line in asked["drop"]:
        persona = persona.drop(line)
    for locked in (True, False):
        for line in asked["lock" if locked else "unlock"]:
            persona = persona.lock(line, locked=locked)
    return persona


def _section(text: str) -> tuple[Any, str]:
    """The section before a colon, where it is one."""
    from persona_dspy.core import SECTIONS

    name, colon, rest = text.partition(":")
    return (name.strip().lower(), rest) if colon and name.strip().lower() in SECTIONS else ("preferences", text)


def _by_editor(persona: Persona, typed: list[bytes]) -> Persona:
    """What a person types in $EDITOR; it is added to ``typed`` as the editor saved it."""
    import click

    from persona_dspy.core import temporary_folder
    from persona_dspy.errors import InputError, RunError

    with temporary_folder() as folder:  # removed at the next start where this process is killed meanwhile
        file = folder / "persona.txt"
        file.write_bytes(shown := lines_of(persona).encode())
        try:
            click.edit(filename=str(file))
            content = file.read_bytes()
        except click.ClickException as failure:
            wanted = "expected an editor that ends well, type: export EDITOR=nano, or use --add, --revise, --drop"
            raise RunError(f"{failure.format_message()}; {wanted}") from failure
        except FileNotFoundError:
            raise InputError(f"the editor left no file {file.name!r}: expected it to save what it was given") from None
    if content == shown:
        return persona
    typed.append(content)
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as failure:
        raise InputError(f"what the editor saved cannot be read ({failure}): expected UTF-8") from None
    return edited_text(persona, text)


def lines_of(persona: Persona) -> str:
    """What the editor shows: sections, and a line each with its id, ``!`` behind it where it is locked.

    Example:
        >>> from persona_dspy import Persona
        >>> lines_of(Persona(user_id="u1").add("Hates rain.")).splitlines()[-2:]
        ['preferences:', '8edb5452! Hates rain.']
    """
    from persona_dspy.core import SECTIONS

    parts = [_HELP.format(user=within_line(persona.user_id), version=persona.version, sections=", ".join(SECTIONS))]
    for section in SECTIONS:
        if bullets := persona.section(section):
            parts.append(f"{section}:\n" + "".join(f"{b.id}{'!' if b.locked else ' '} {b.text}\n" for b in bullets))
    return "\n".join(parts)


def edited_text(persona: Persona, text: str) -> Persona:
    """The persona as the text has it: lines that are gone are dropped, those with other words revised.

    Raises:
        InputError: an id that is no line's.
    """
    from persona_dspy.core import SECTIONS

    before, left = {b.id: b for b in persona.bullets}, dict.fromkeys(b.id for b in persona.bullets)
    new, section = persona, "preferences"
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.rstrip(":").lower() in SECTIONS:
            section = line.rstrip(":").lower()
            continue
        match = _LINE.match(line)
        if match is None:
            new = new.add(line.removeprefix("!").strip(), section=section)  # type: ignore[arg-type]
            continue
        name, mark, words = match.groups()
        old = before.get(name) or persona.line(name)
        left.pop(name, None)
        if (words or "") != old.text:
            new = new.revise(name, words or "")
        elif bool(mark) != old.locked:
            new = new.lock(name, locked=bool(mark))
    for name in left:
        new = new.drop(name)
    return new
