"""A writer is killed with SIGKILL at random moments: the store opens, is whole, and holds all it acknowledged."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection

import pytest

from persona_dspy.records import Interaction
from persona_dspy.store import Store
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


def kill_again_and_again(url: str, kills: int) -> Ledger:
    """Start a writer, kill it at a random moment (opening and migrating included), look; ``kills`` times."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["persona_dspy.store", "psycopg"])
    rng = random.Random(5)
    ledger = Ledger()
    for round_ in range(kills):
        hear, tell = context.Pipe(duplex=False)
        writer = context.Process(target=write_until_killed, args=(url, round_, tell))
        writer.start()
        tell.close()
        if round_ % 5:  # most die while they write, some while they open
            for _ in range(rng.randrange(40)):  # so many, however busy the machine
                ledger.hear(*hear.recv())
            time.sleep(rng.random() * 0.01)  # anywhere within a write
        else:
            time.sleep(rng.random() * 0.1)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert writer.exitcode == -signal.SIGKILL, "the writer failed by itself"
        try:
            while True:
                ledger.hear(*hear.recv())
        except EOFError:
            hear.close()
        writer.close()
        ledger.check(url)
    return ledger


@pytest.fixture(scope="module")
def server():
    with running_server() as url:
        yield url


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
