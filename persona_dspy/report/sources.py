"""What a report is made from: folders, stores, evaluations, traces."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_dspy.agent import Trace
from persona_dspy.core import Interaction, PersonaDocument, load_document, parse_document, parse_number, plural
from persona_dspy.errors import DataError, InputError, PersonaFormatError

if TYPE_CHECKING:
    from persona_dspy.store import Store

__all__ = [
    "Subject",
    "SystemScore",
    "read_evaluation",
    "read_folder",
    "read_store",
    "read_traces",
    "with_episodes",
    "with_store",
]

Skipped = Callable[[str], None]
"""Told of each file or version that cannot be read; where there is none, the first one ends the reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One user of a report.

    Args:
        versions: all known versions, lowest number first; at least one.
        current: the number of the version in force.
        episodes: the user's interactions by id, as far as they are at hand: evidence is shown from them.
        traces: how queries of this user were answered.
    """

    user_id: str
    versions: tuple[PersonaDocument, ...]
    current: int
    episodes: Mapping[str, Interaction] = field(default_factory=dict[str, Interaction])
    traces: tuple[Trace, ...] = ()

    @property
    def document(self) -> PersonaDocument:
        """The version in force."""
        return next(d for d in self.versions if d.version == self.current)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemScore:
    """One row of an evaluation: mean ``score`` by ``metric`` with its interval, and all columns as they were;
    ``defaults``: what options had that its name does not give."""

    system: str
    metric: str
    score: float
    low: float
    high: float
    columns: Mapping[str, str]
    defaults: Mapping[str, int] = field(default_factory=dict)


def read_folder(
    folder: Path | str, *, users: Collection[str] | None = None, skipped: Skipped | None = None
) -> list[Subject]:
    """Users from the persona JSONs of a folder, by user id. Several files of one user are versions of one persona, the
    highest of which is in force.

    Args:
        users: only these.

    Raises:
        InputError: no such folder, no persona in it, or two files disagree on one version.
        PersonaFormatError: a file cannot be read, unless ``skipped`` is given.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{str(folder)!r}: no such folder; expected one with persona JSONs, such as personas/")
    by_user: dict[str, dict[int, tuple[Path, PersonaDocument]]] = {}
    for file in sorted(p for p in path.glob("*.json") if not p.name.startswith(".")):
        document = _read(lambda file=file: load_document(file), skipped)
        if document is None or (users is not None and document.user_id not in users):
            continue
        versions = by_user.setdefault(document.user_id, {})
        other = versions.get(document.version)
        if other is not None and other[1] != document:
            raise InputError(
                f"{str(file)!r} and {str(other[0])!r} both hold version {document.version} of user "
                f"{document.user_id!r}, with other content: expected one of them in the folder"
            )
        versions[document.version] = (file, document)
    if not by_user:
        raise InputError(f"{str(folder)!r}: expected persona JSONs{_of(users)}; type: persona-dspy compile ... --out")
    return [
        Subject(user_id=user, versions=tuple(versions[v][1] for v in sorted(versions)), current=max(versions))
        for user, versions in sorted(by_user.items())
    ]


def read_store(
    store: Store, *, users: Collection[str] | None = None, skipped: Skipped | None = None
) -> tuple[list[Subject], int]:
    """Users from a store, by user id, and how many there are without any persona yet.

    Raises:
        PersonaFormatError: a stored version cannot be read, unless ``skipped`` is given.
        InputError: no user has a persona.
    """
    subjects: list[Subject] = []
    without = 0
    for user in sorted(u for u in store.users() if users is None or u in users):
        subject = _from_store(store, user, skipped)
        if subject is None:
            without += 1
        else:
            subjects.append(subject)
    if not subjects:
        raise InputError(
            f"store {store!r}: expected personas{_of(users)}; it has none, and {plural(without, 'user')} without"
        )
    return subjects, without


def with_store(subjects: Iterable[Subject], store: Store, *, skipped: Skipped | None = None) -> list[Subject]:
    """Subjects from a folder, with the versions and episodes that a store has of the same users and no others. Where
    both hold a version, the folder's is shown."""
    from persona_dspy.errors import UnknownUser

    joined: list[Subject] = []
    for subject in subjects:
        try:
            stored = _from_store(store, subject.user_id, skipped)
            episodes = store.episodes(subject.user_id)
        except UnknownUser:
            joined.append(subject)
            continue
        versions = {d.version: d for d in (*(stored.versions if stored else ()), *subject.versions)}
        ordered = tuple(versions[v] for v in sorted(versions))
        joined.append(replace(subject, versions=ordered, episodes=_cited(episodes, ordered)))
    return joined


def with_episodes(subject: Subject, interactions: Iterable[Interaction]) -> Subject:
    """The subject with those of its own interactions that it cites, beside the episodes it has.

    Raises:
        InputError: an interaction of another user.
    """
    episodes = list(interactions)
    for other in (i for i in episodes if i.user_id != subject.user_id):
        raise InputError(f"interaction {other.id!r} of user {other.user_id!r}: expected user {subject.user_id!r}'s")
    return replace(subject, episodes={**_cited(episodes, subject.versions), **subject.episodes})


def _from_store(store: Store, user: str, skipped: Skipped | None) -> Subject | None:
    versions: list[PersonaDocument] = []
    current = None
    for kept in store.versions(user):
        document = _read(lambda kept=kept: _stored(kept), skipped)
        if document is not None:
            versions.append(document)
            current = kept.version if kept.current else current
    if not versions:
        return None
    episodes = _cited(store.episodes(user), versions)
    last = versions[-1].version if current is None else current
    return Subject(user_id=user, versions=tuple(versions), current=last, episodes=episodes)


def _cited(episodes: Iterable[Interaction], versions: Iterable[PersonaDocument]) -> dict[str, Interaction]:
    """Those that a bullet or a step of alignment names: a report of many users holds no other text."""
    named: set[str] = set()
    for document in versions:
        named |= {i for section in document.sections for bullet in section.bullets for i in bullet.evidence}
        named |= {i for step in (document.alignment.steps if document.alignment else ()) for i in step.simulated}
    return {i.id: i for i in episodes if i.id in named}


def _stored(kept: Any) -> PersonaDocument:
    name = f"store, user {kept.user_id!r}, version {kept.version}"
    data = kept.document
    if data.get("alignment") is None and kept.alignment is not None:
        data = {**data, "alignment": kept.alignment}
    return parse_document(data, name)


def _read(read: Callable[[], PersonaDocument], skipped: Skipped | None) -> PersonaDocument | None:
    try:
        return read()
    except PersonaFormatError as error:
        if skipped is None:
            raise
        skipped(str(error))
        return None


def _of(users: Collection[str] | None) -> str:
    return "" if users is None else f" of {sorted(users)!r}"


def read_evaluation(path: Path | str) -> list[SystemScore]:
    """The systems of an evaluation, in its order: a folder with ``table.csv``, or a CSV with the columns
    ``system``, one metric, ``low`` and ``high`` (the metric right before ``low``).

    Raises:
        DataError: not such a file; names the row and the field.
    """
    file = Path(path) / "table.csv" if Path(path).is_dir() else Path(path)
    expected = "the table.csv of persona-dspy evaluate: columns system, a metric, low, high"
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            names = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as failure:
        raise DataError(str(file), value=str(failure), expected=expected) from None
    if "system" not in names:
        raise DataError(str(file), line=1, value=",".join(names), expected=expected)
    if "low" in names and "high" in names and names.index("low") > 1:
        metric = names[names.index("low") - 1]
    else:
        metric = next((n for n in names if n not in ("system", "users", "queries", "expected")), "")
    defaults = _defaults(file.with_name("protocol.json"))
    scores: list[SystemScore] = []
    for line, row in enumerate(rows, 2):
        score = _number(file, line, metric, row)
        low = _number(file, line, "low", row) if row.get("low") else score
        high = _number(file, line, "high", row) if row.get("high") else score
        columns = {k: v or "" for k, v in row.items() if isinstance(k, str)}
        system = row["system"]
        scores.append(
            SystemScore(
                system=system, metric=metric, score=score, low=low, high=high, columns=columns, defaults=defaults
            )
        )
    return scores


def _defaults(protocol: Path) -> dict[str, int]:
    """What an evaluation's protocol says of the options that curves are drawn of; empty where there is none."""
    try:
        said = json.loads(protocol.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    values = said if isinstance(said, dict) else {}
    return {n: values[n] for n in ("recent", "epochs", "k") if isinstance(values.get(n), int)}


def _number(file: Path, line: int, name: str, row: Mapping[str, str | None]) -> float:
    value = parse_number(row.get(name) or "")
    if value is None or not isfinite(value):
        raise DataError(str(file), line=line, field=name, value=row.get(name), expected="a number")
    return value


def read_traces(path: Path | str) -> Iterator[Trace]:
    """Traces (``Trace.to_json``) from a JSON file, a JSON-lines file, or all such files of a folder.

    Raises:
        DataError: a file or line that holds no trace.
    """
    root = Path(path)
    files: Sequence[Path] = sorted(p for p in root.glob("*.json*") if p.is_file()) if root.is_dir() else [root]
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise DataError(
                str(file), value=str(failure), expected="traces, as PersonaPrediction.trace.to_json()"
            ) from None
        lines = text.split("\n") if file.suffix == ".jsonl" else [text]
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                for one in data if isinstance(data, list) else [data]:
                    yield Trace.from_json(json.dumps(one))
            except ValueError:
                where = number if file.suffix == ".jsonl" else None
                raise DataError(
                    str(file), line=where, value=line, expected="a trace, as Trace.to_json() writes"
                ) from None
