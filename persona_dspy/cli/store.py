"""``persona-dspy ingest``, ``rollback``, ``export``, ``import``: the store, typed.

None of these commands calls an LM.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_dspy.cli.estimates import ColumnsOption, DatasetOption, one_input
from persona_dspy.cli.output import JsonOption, echo, print_json, terminal
from persona_dspy.cli.settings import read_settings
from persona_dspy.core import plural

if TYPE_CHECKING:
    from persona_dspy.core import PersonaDocument
    from persona_dspy.store import Store, StoredPersona
    from persona_dspy.tracking import MlflowTracker, TracesRead

__all__ = [
    "StoreOption",
    "UserArgument",
    "document_of",
    "is_file",
    "open_store",
    "parsed",
    "queue_folder",
    "register",
    "sqlite_file",
]

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="A file or a postgresql URL. Default: personas.db in $PERSONA_DSPY_HOME."),
]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="A user id, as it was ingested.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ingest, rollback, export):
        app.command(command.__name__)(command)
    app.command("import")(import_command)


def open_store(url: str | None, *, new: bool = False) -> Store:
    """The store of ``--store``, else of ``persona-dspy.toml``, else ``personas.db`` in the home folder; only ``new``
    makes one.

    Raises:
        InputError: there is no such file, or the URL cannot be read.
        StoreError: it cannot be opened.
    """
    from persona_dspy.errors import InputError
    from persona_dspy.lm import home_dir
    from persona_dspy.store import Store

    where = url or read_settings().get("store") or str(home_dir() / "personas.db")
    file = sqlite_file(where)
    if not new and file is not None and not file.exists():
        raise InputError(f"store {where!r}: no such file; expected a store, type: persona-dspy ingest FILE --store ...")
    return Store.open(where)


def sqlite_file(url: str) -> Path | None:
    """The file of a store or MLflow URL, or None where it is on a server.

    Example:
        >>> sqlite_file("sqlite:///personas.db"), sqlite_file("postgresql+psycopg://host/name")
        (PosixPath('personas.db'), None)
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url)
    return Path(rest.removeprefix("/").partition("?")[0]) if scheme.startswith("sqlite") else None


def queue_folder(store: str | None) -> Path:
    """Where interactions wait for a store, unless another folder is named: beside its file, or in the home folder.

    Example:
        >>> queue_folder("sqlite:///personas.db")
        PosixPath('personas.db.queue')
    """
    from persona_dspy.lm import home_dir

    file = sqlite_file(str(home_dir() / "personas.db") if store is None else store)
    return Path(f"{file}.queue") if file is not None else home_dir() / "queue"


def is_file(name: str) -> bool:
    """Whether it is the name of a file; False for a user id that no file can have as name."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def document_of(store: Store, user_id: str, version: int | None = None) -> PersonaDocument:
    """A version of the user's persona, by default the current one.

    Raises:
        UnknownUser: nothing is kept of that user.
        InputError: interactions only, no persona yet, or no such version.
    """
    from persona_dspy.errors import InputError

    version_row = store.current(user_id) if version is None else store.version(user_id, version)
    if version_row is None:
        raise InputError(
            f"user {user_id!r}: has interactions but no persona yet; type: persona-dspy compile --store ..."
        )
    return parsed(version_row)


def ingest(  # noqa: PLR0913 - a command's options
    source: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="JSONL, CSV, Parquet, LaMP questions.json or OPPU users.json.")
    ] = None,
    dataset: DatasetOption = None,
    columns: ColumnsOption = None,
    store: StoreOption = None,
    task: Annotated[str | None, typer.Option(help="lamp-1 ... lamp-7; JSONL needs none.")] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip rows that cannot be used, and count them.")] = False,
    group: Annotated[bool, typer.Option("--group", help="Join the rows of a user that a file holds apart.")] = False,
    from_mlflow: Annotated[
        str | None,
        typer.Option("--from-mlflow", metavar="URI", help="Read what people said on traces there, in place of a file."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="The MLflow experiment that holds the traces. Default: persona-dspy.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only traces from then on, such as 2026-01-31.")] = None,
    fields: Annotated[
        str | None, typer.Option(help="Query and response of autologged traces, such as question,answer.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Keep a file's interactions, or feedback on MLflow's traces, in the store. Calls no LM; the same again changes
    nothing.

    Example: persona-dspy ingest examples/movie_tags.jsonl --store personas.db
    """
    from persona_dspy.cli.ingesting import Ingest, ingest_traces
    from persona_dspy.data import columns_from_text
    from persona_dspy.errors import InputError

    source = one_input(source, dataset)
    named = {"--experiment": experiment, "--since": since, "--fields": fields}
    if from_mlflow is not None:
        if source is not None:
            raise InputError(f"{str(source)!r} and --from-mlflow {from_mlflow!r}: expected one of them")
        with open_store(store, new=True) as opened:
            read = ingest_traces(opened, from_mlflow, experiment=experiment, since=since, fields=fields)
        _say_read(read, json_output)
        return
    given = [name for name, value in named.items() if value is not None]
    if source is None or given:
        needs = f"{' and '.join(given)} without --from-mlflow" if given else "ingest without FILE"
        raise InputError(f"{needs}: expected a file, or --from-mlflow URI")
    rules: dict[str, Any] = {"skip_bad_rows": skip_bad_rows, "group": group}
    with open_store(store, new=True) as opened, terminal(stderr=True).status("reading") as status:
        work = Ingest(opened, source, task=task, columns=columns_from_text(columns), **rules)
        for row in work.run(
            lambda users, rows: status.update(f"{plural(users, 'user')}, {plural(rows, 'interaction')}")
        ):
            echo(f"skipped: {row.reason}", err=True)
    if json_output:
        print_json(work.counts)
        return
    bad = f", {plural(work.bad, 'bad row')} skipped" if work.bad else ""
    read = f"{plural(work.users, 'user')}, {plural(work.rows, 'interaction')}"
    echo(f"{read}: {work.new:,} new, {work.known:,} known already{bad}")


def _say_read(read: TracesRead, json_output: bool) -> None:
    for reason in read.passed_over:
        echo(f"skipped: {reason}", err=True)
    if json_output:
        print_json(read.to_dict())
        return
    echo(
        f"{plural(read.traces, 'assessed trace')}, {plural(len(read.users), 'user')}: "
        f"{plural(read.new, 'new interaction')}, {read.changed:,} with more said of them"
    )
    if read.unnamed:
        echo(
            f"{plural(read.unnamed, 'trace')} without a user: "
            "mlflow.update_current_trace(metadata={'mlflow.trace.user': ...})"
        )
    if read.forgotten:
        echo(f"{plural(read.forgotten, 'trace')} of users who were forgotten: --since DATE takes those from after that")


def rollback(
    user: UserArgument,
    to: Annotated[int | None, typer.Option("--to", metavar="N", help="By default the current one's parent.")] = None,
    store: StoreOption = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow URI: the alias 'current' of the user's prompt moves there too. Default: off."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Make an earlier version current again. No version is lost: rollback --to N goes forward too.

    Example: persona-dspy rollback ana --to 0 --store personas.db
    """
    tracker = _registry(tracking_uri)
    with open_store(store) as opened:
        before = opened.current(user)
        now = opened.rollback(user, to).version
    was = before.version if before else None
    moved = None if tracker is None else _prompt_moved(tracker, user, now)
    if json_output:
        fields = {"user_id": user, "from": was, "to": now}
        print_json(fields if moved is None else {**fields, "prompt_moved": moved})
        return
    echo(f"version {now} is current, it was {was}")
    if moved is not None:
        none = f"no prompt of version {now} is registered there: its alias 'current' was not moved"
        echo(f"{tracking_uri}: " + (f"the prompt's alias 'current' is at version {now}" if moved else none))


def export(
    user: Annotated[str | None, typer.Argument(metavar="[USER]", help="A user id, as it was ingested.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every user who has a persona.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the persona JSONs.")] = Path("personas"),
    sign: Annotated[
        Path | None, typer.Option(metavar="KEYFILE", help="Write a signature beside each: an ed25519 private key.")
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write current personas as JSON files, one a user; with --sign a signature beside each, for import --verify.

    Example: persona-dspy export --all --out personas/ --store personas.db
    """
    from persona_dspy.core import persona_file_name, private_key, sign_document, write_text
    from persona_dspy.errors import InputError

    key = private_key(sign) if sign is not None else None
    if (user is None) == (not every):
        raise InputError(f"export {user!r}, --all {every}: expected either a user id, as in export ana, or --all")
    count, path = 0, ""
    with open_store(store) as opened:
        for one in opened.users() if user is None else (user,):
            version_row = opened.current(one)
            if version_row is None and user is None:
                continue
            target = out / persona_file_name(one)
            write_text(target, document_of(opened, one).to_json())
            if key is not None:
                sign_document(target, key)
            count, path = count + 1, str(target)
    if json_output:
        print_json({"out": str(out), "personas": count, **({"file": path} if user is not None else {})})
    else:
        echo(path if user is not None else f"{plural(count, 'persona')} written to {out}/")


def import_command(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE...]", help="Persona JSONs, or folders of them.")
    ] = None,
    memories: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What mem0, LangMem or ChatGPT remember of --user; or a line of text each."),
    ] = None,
    user: Annotated[str | None, typer.Option(metavar="ID", help="Whose memories they are.")] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYFILE",
            help="Take only what this ed25519 public key signed, and no version below those that the store has.",
        ),
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Put persona JSONs into the store and make each its user's current version. All are read and checked before any is
    put. With --memories: add what another product remembers of a user to the user's persona, as given lines.

    Example: persona-dspy import personas/ --store personas.db
    """
    from persona_dspy.cli.importing import import_personas
    from persona_dspy.core import public_key
    from persona_dspy.errors import InputError

    if memories is not None or user is not None:
        if memories is None or user is None or files or verify is not None:
            raise InputError(
                f"import --memories {str(memories) if memories else None!r} --user {user!r}: expected both, and no "
                "FILE or --verify beside them, as in: persona-dspy import --memories mem0.json --user ana"
            )
        _import_memories(memories, user, store, json_output)
        return
    key = public_key(verify) if verify is not None else None
    put = import_personas(files or (), key, partial(open_store, store, new=True))
    if json_output:
        print_json({"imported": put})
        return
    for one in put:
        echo(f"{one['user_id']!r}: version {one['version']} is current")


def _import_memories(source: Path, user: str, url: str | None, json_output: bool) -> None:
    """Adds each memory to the user's current persona as a line of source ``given``, which alignment may revise.

    Raises:
        DataError: see ``read_memories``.
        InputError: the persona has no room for all of them.
    """
    from persona_dspy.core import BULLET_TOKENS, Alignment, Bullet, Edit, Persona, PersonaDocument, count_tokens
    from persona_dspy.data import read_memories
    from persona_dspy.errors import InputError, UnknownUser

    read = read_memories(source, user)
    with open_store(url, new=True) as opened:
        since = opened.state(user)
        try:
            current = opened.current(user)
        except UnknownUser:
            current = None
        old = parsed(current) if current is not None else None
        before = old.persona() if old else Persona(user_id=user)
        given = {b.id: b for b in (Bullet(section="preferences", text=line) for line in read.lines)}
        new = [bullet for bullet in given.values() if bullet.id not in {b.id for b in before.bullets}]
        try:
            after = before.apply([Edit(op="add", bullet=bullet) for bullet in new])
        except InputError as error:
            raise InputError(
                f"{str(source)!r} holds {plural(len(read.lines), 'memory', 'memories')}: {error}"
            ) from None
        record = Alignment(user_id=user, stopped="memories imported", notes=tuple(f"+ {b.sentence}" for b in new))

        def document(version: int, parent: int | None) -> str:
            persona = after.model_copy(update={"version": version, "parent": parent})
            task, model = (old.task, old.model) if old else (None, None)
            return PersonaDocument.of(persona, alignment=record, task=task, model=model).to_json()

        if new:
            opened.append_persona(since, document)
        version = document_of(opened, user).version
    cut = sum(count_tokens(line) > BULLET_TOKENS for line in read.lines)
    for count, why in (
        (read.others, "passed over, of other users"),
        (read.disabled, "passed over, switched off by the user"),
        (read.unnamed, "passed over, of nobody by name while others name a user"),
        (len(read.lines) - len(new), "in the persona already"),
        (cut, f"cut to {BULLET_TOKENS} tokens"),
    ):
        if count:
            echo(f"memories {why}: {count:,}", err=True)
    if json_output:
        print_json({"user_id": user, "version": version, "added": len(new)})
        return
    echo(f"{user!r}: {plural(len(new), 'line')} added, version {version} is current")


def _registry(uri: str | None) -> MlflowTracker | None:
    """Where prompts are registered; None = nowhere.

    Raises:
        InputError: there is no such file.
    """
    from persona_dspy.errors import InputError
    from persona_dspy.tracking import MlflowTracker, is_off

    if uri is None or is_off(uri):
        return None

    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise InputError(f"--tracking-uri {uri!r}: no such file; expected the URI that compile was given, or 'off'")
    return MlflowTracker(uri)


def _prompt_moved(tracker: MlflowTracker, user: str, version: int) -> bool:
    """Whether that version is registered; the prompt's alias is at it then.

    Raises:
        RunError: MLflow fails; the store is at that version all the same.
    """
    from persona_dspy.errors import InputError, RunError

    try:
        tracker.roll_back_prompt(user, version)
    except InputError:
        return False
    except RunError as failure:
        raise RunError(
            f"version {version} is current in the store, its prompt is not: {failure}; once MLflow answers, type the "
            f"same with --to {version}"
        ) from failure
    return True


def parsed(stored: StoredPersona) -> PersonaDocument:
    """The document of a stored version."""
    from persona_dspy.core import parse_document

    return parse_document(stored.document, f"version {stored.version} of {stored.user_id!r}")
