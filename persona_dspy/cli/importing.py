"""The work behind ``persona-dspy import``: each file is read once, all are checked, and what was checked is put."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from persona_dspy.errors import InputError, PersonaFormatError, UnknownUser
from persona_dspy.store import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["import_personas"]


def import_personas(
    paths: Iterable[Path], key: Ed25519PublicKey | None, open_store: Callable[[], Store]
) -> list[dict[str, Any]]:
    """Make each persona its user's current version; user and version of each. Until they are put, the texts wait in a
    temporary file without a name, so that no memory grows with the users, and nobody changes them meanwhile.

    Args:
        paths: persona JSONs, or folders of them.
        key: only what it signed, and no version below those that the store has; None = anything.
        open_store: called once every file has been read.

    Raises:
        PersonaFormatError: no file, or one that is no persona JSON.
        InputError: a signature is not the key's, or a version that may not be put; nothing is put then.
    """
    from persona_dspy.core import load_document, verified_document

    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else (path,))]
    if not files:
        raise PersonaFormatError(f"{list(map(str, paths))!r}: expected at least one persona JSON")
    read = load_document if key is None else partial(verified_document, key=key)
    with tempfile.TemporaryFile("w+", encoding="ascii") as kept:
        for file in files:
            document = read(file)
            document.persona()
            kept.write(json.dumps(document.to_json()) + "\n")
        with open_store() as store:
            _check(store, kept, signed=key is not None)
            return [
                {"user_id": put.user_id, "version": put.version}
                for text, values in _documents(kept)
                for put in [store.put_persona(values["user_id"], text, values["alignment"])]
            ]


def _documents(kept: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    kept.seek(0)
    for line in kept:
        text = json.loads(line)
        yield text, json.loads(text)


def _check(store: Store, kept: IO[str], *, signed: bool) -> None:
    """Raises ``InputError`` where one of them cannot be put, or where they contradict each other."""
    versions: dict[str, dict[int, int]] = {}
    for text, values in _documents(kept):
        user, version = values["user_id"], values["version"]
        store.check_persona(user, text)
        others = versions.setdefault(user, {})
        if others.get(version, hash(text)) != hash(text):
            raise InputError(f"user {user!r}: version {version} twice with different content; expected it once")
        if signed:
            if others:
                raise InputError(f"user {user!r}: versions {next(iter(others))} and {version} at once; expected one")
            _refuse_replay(store, user, version)
        others[version] = hash(text)


def _refuse_replay(store: Store, user: str, version: int) -> None:
    """What was signed once stays signed: a version below one that the store has is refused, whoever sends it."""
    try:
        latest = max((v.version for v in store.versions(user)), default=-1)
    except UnknownUser:
        return
    if version < latest:
        raise InputError(
            f"version {version} of {user!r}: the store has version {latest}; expected that or a later one; to go back "
            f"type: persona-dspy rollback {user!r} --to {version}"
        )
