"""A writer is killed with SIGKILL at random moments: the store opens, is whole, and holds all it acknowledged."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dspy
import pytest

from optimizers import PersonaAlignment
from persona_dspy import PersonaAgent, compile_users
from persona_dspy.cli.sources import StoredHistory
from persona_dspy.core.disk import persona_file_name
from persona_dspy.core.document import PersonaDocument, load_document
from persona_dspy.core.interactions import Interaction
from persona_dspy.fleet.folder import FleetFolder
from persona_dspy.store.store import Store
from persona_dspy.testing.synthetic import SyntheticUser, TagFilm, rule_following_lm
from tests.postgres_server import new_database, running_server

USERS = ("u1", "u2", "u3")
NUMBERS = count()


def persona(user: str, version: int, parent: int | None) -> dict:
    """A large document that carries its own checksum: half of one cannot pass for a whole one."""
    text = f"Bullet {version} of {user}. " * 400
    check = hashlib.sha256(text.encode()).hexdigest()
    return {"user_id": user, "version": version, "parent": parent, "text": text, "check": check}


def write_until_killed(url: str, seed: int, acknowledged: Connection) -> None:
    """Ingest, put and roll back in a loop; each finished call is told before the next begins."""
    rng = random.Random(seed)
    with Store.open(url, timeout=60) as store:
        known = set(store.users())
        highest = {user: max((v.version for v in store.versions(user)), default=0) for user in known}
        for number in count():
            user = rng.choice(USERS)
            what = rng.choice(("ingest", "put", "rollback"))
            if what == "ingest":
                ids = [f"{seed}-{number}-{n}" for n in range(rng.choice((1, 1, 50)))]
                batch = [Interaction(user_id=user, query=f"q {i} " * 20, response="r", id=i) for i in ids]
                acknowledged.send(("begin", user, "ingest", ids))
                store.add_episodes(user, batch)
                acknowledged.send(("done", user, "ingest", ids))
            elif what == "put":
                version = highest[user] = highest.get(user, 0) + 1
                acknowledged.send(("begin", user, "put", version))
                store.put_persona(user, persona(user, version, version - 1 or None), {"seed": seed})
                acknowledged.send(("done", user, "put", version))
            elif highest.get(user):
                version = rng.randint(1, highest[user])
                acknowledged.send(("begin", user, "rollback", version))
                store.rollback(user, version)
                acknowledged.send(("done", user, "rollback", version))


@dataclass
class Ledger:
    """What the writers said: acknowledged ids and versions, where pointers may be, and what was under way."""

    ids: dict[str, set[str]] = field(default_factory=lambda: {user: set() for user in USERS})
    versions: dict[str, set[int]] = field(default_factory=lambda: {user: set() for user in USERS})
    pointer: dict[str, set[int | None]] = field(default_factory=lambda: {user: {None} for user in USERS})
    batches: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    acknowledged: int = 0

    def hear(self, state: str, user: str, what: str, value: list[str] | int) -> None:
        if state == "begin":
            if isinstance(value, list):
                self.batches.append((user, frozenset(value)))
            else:
                self.pointer[user] |= {value}
            return
        self.acknowledged += 1
        if isinstance(value, list):
            self.ids[user] |= {*value}
        else:
            self.pointer[user] = {value}
            if what == "put":
                self.versions[user].add(value)

    def check(self, url: str) -> None:
        with Store.open(url, timeout=60) as store:
            there = set(store.users())
            for user in USERS:
                if user not in there:
                    assert not self.ids[user] and not self.versions[user]
                    continue
                found = {i.id for i in store.episodes(user)}
                assert self.ids[user] <= found, "an acknowledged episode is missing"
                for owner, batch in self.batches:
                    assert owner != user or not batch & found or batch <= found, "half an ingest"
                versions = {v.version: v for v in store.versions(user)}
                assert self.versions[user] <= set(versions), "an acknowledged version is missing"
                for version in versions.values():
                    assert hashlib.sha256(version.document["text"].encode()).hexdigest() == version.document["check"]
                    assert json.loads(version.text) == persona(user, version.version, version.version - 1 or None)
                current = store.current(user)
                now = None if current is None else current.version
                assert now in self.pointer[user] and (now is None or now in versions)
                self.pointer[user] = {now}
                self.ids[user], self.versions[user] = found, set(versions)
        self.batches.clear()


def killed(target: Callable[..., None], arguments: tuple[Any, ...], *, words: int, seconds: float) -> list[Any]:
    """What a process told until it was killed, ``seconds`` after it had told so much, however busy the machine."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["persona_dspy.store", "psycopg", "optimizers", "persona_dspy.fleet"])
    hear, tell = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, tell))
    process.start()
    tell.close()
    told = [hear.recv() for _ in range(words)]
    time.sleep(seconds)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the process failed by itself"
    try:
        while True:
            told.append(hear.recv())
    except EOFError:
        hear.close()
    process.close()
    return told


def kill_again_and_again(url: str, kills: int) -> Ledger:
    """Start a writer, kill it at a random moment (opening and migrating included), look; ``kills`` times."""
    rng = random.Random(5)
    ledger = Ledger()
    for round_ in range(kills):
        # most die while they write, anywhere within a write, some while they open
        words, seconds = (rng.randrange(40), rng.random() * 0.01) if round_ % 5 else (0, rng.random() * 0.1)
        for said in killed(write_until_killed, (url, round_), words=words, seconds=seconds):
            ledger.hear(*said)
        ledger.check(url)
    return ledger


PEOPLE = [SyntheticUser(seed=n) for n in range(3)]


def compile_until_killed(url: str, out: Path, acknowledged: Connection) -> None:
    """Ingest a new interaction of each user and compile all of them, again and again, as the command does."""
    with Store.open(url, timeout=60) as store, dspy.context(lm=rule_following_lm()), FleetFolder(out) as folder:
        acknowledged.send(("open", "", 0))
        kept = [len(store.episodes(p.user_id)) if p.user_id in set(store.users()) else 0 for p in PEOPLE]
        for length in count(max(8, *kept) + 1):  # else a compile that goes on finds nothing to do
            for person in PEOPLE:
                store.add_episodes(person.user_id, person.interactions(length))
                acknowledged.send(("episodes", person.user_id, length))
            histories = [StoredHistory.of(store, person.user_id) for person in PEOPLE]
            optimizer = PersonaAlignment(epochs=1)
            for result in compile_users(
                PersonaAgent(TagFilm), histories, optimizer, store=store, folder=folder, resume=True, workers=2
            ):
                assert result.document is not None, result.error
                acknowledged.send(("version", result.user_id, result.document.version))


def kill_compiles(url: str, out: Path, kills: int) -> int:
    """Kill a compile so many times; each time every user has a whole current persona, the last acknowledged or a later
    one, in the store and as a file, and all acknowledged episodes. Returns how many versions were acknowledged."""
    rng, seen = random.Random(7), 0
    least = {person.user_id: {"episodes": 0, "version": -1} for person in PEOPLE}
    for round_ in range(kills):
        words, seconds = (rng.randrange(12), rng.random() * 0.2) if round_ % 5 else (0, rng.random() * 0.2)
        for what, user, number in killed(compile_until_killed, (url, out), words=words, seconds=seconds):
            if user:
                least[user][what] = max(least[user][what], number)
                seen += what == "version"
        for file in out.glob("*.json"):
            assert load_document(file).persona().render()
        with Store.open(url, timeout=60) as store:
            there = set(store.users())
            for user, known in least.items():
                assert user in there or known == {"episodes": 0, "version": -1}
                if user not in there:
                    continue
                assert len(store.episodes(user)) >= known["episodes"], "an acknowledged episode is missing"
                versions, now = store.versions(user), store.current(user)
                assert all(PersonaDocument.model_validate(v.document).persona() for v in versions)
                numbers = {v.version for v in versions}
                assert all(v.parent is None or v.parent in numbers for v in versions)
                assert (now is None) == (known["version"] < 0 and not versions)
                if now is not None:
                    assert now.version >= known["version"], "an acknowledged version is not in force"
                    written = load_document(out / persona_file_name(user)).version if known["version"] >= 0 else None
                    assert written is None or written >= known["version"]
    return seen


@pytest.fixture(scope="module")
def server():
    with running_server() as url:
        yield url


@pytest.mark.slow
def test_kills_on_sqlite(tmp_path):
    assert kill_again_and_again(f"sqlite:///{tmp_path}/p.db", 8).acknowledged > 20


@pytest.mark.postgres
def test_kills_on_postgres(server):
    assert kill_again_and_again(new_database(server, "crash"), 8).acknowledged > 20


@pytest.mark.slow
def test_two_hundred_kills_on_sqlite(tmp_path):
    assert kill_again_and_again(f"sqlite:///{tmp_path}/p.db", 200).acknowledged > 1000


@pytest.mark.slow
@pytest.mark.postgres
def test_two_hundred_kills_on_postgres(server):
    assert kill_again_and_again(new_database(server, "crash200"), 200).acknowledged > 1000


@pytest.mark.slow
def test_kills_of_compile_on_sqlite(tmp_path):
    assert kill_compiles(f"sqlite:///{tmp_path}/p.db", tmp_path / "out", 4) > 0


@pytest.mark.slow
def test_two_hundred_kills_of_compile_on_sqlite(tmp_path):
    assert kill_compiles(f"sqlite:///{tmp_path}/p.db", tmp_path / "out", 200) > 100


@pytest.mark.slow
@pytest.mark.postgres
def test_kills_of_compile_on_postgres(server, tmp_path):
    assert kill_compiles(new_database(server, "crashed"), tmp_path / "out", 40) > 20


def test_the_check_can_fail(tmp_path):
    """A missing acknowledgement, half an ingest or a torn version is noticed."""
    url = f"sqlite:///{tmp_path}/p.db"
    with Store.open(url) as store:
        store.add_episodes("u1", [Interaction(user_id="u1", query="q", response="r", id="a")])
        store.put_persona("u1", persona("u1", 1, None))
    lost, half, torn, astray = Ledger(), Ledger(), Ledger(), Ledger()
    lost.hear("done", "u1", "ingest", ["a", "never-stored"])
    half.hear("begin", "u1", "ingest", ["a", "b"])
    torn.hear("done", "u1", "put", 2)
    astray.hear("done", "u1", "rollback", 7)
    for ledger in (lost, half, torn, astray):
        with pytest.raises(AssertionError):
            ledger.check(url)
