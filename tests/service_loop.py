"""A service of several processes on one store, while processes are killed, users rolled back and forgotten at random.

The short form is tests/test_service_faults.py; the long form, for the log:

    python -m tests.service_loop --processes 4 --users 200 --answers 20000 --kills 100 --rollbacks 100 --forgets 100
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import dspy

from persona_dspy import PersonaAgent, Personas
from persona_dspy.core import Alignment, Bullet, Edit
from persona_dspy.errors import InputError, UnknownUser
from persona_dspy.service import Pace, ServiceOptions
from persona_dspy.store import Store
from persona_dspy.testing import FakeLM

_MARK = re.compile(r"mark-\d+-\d+-of-user-\d+-")
EVERY = 3
PACE = Pace(poll=0.1, lease=1.0, retry=0.2)


class Copies:
    """An optimizer that quotes the newest interaction, takes a while, and notes each alignment it is paid for."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def compile(self, student: Any, *, trainset: Any) -> Any:
        with self.log.open("a") as file:
            file.write(f"{student.user_id} {os.getpid()}\n")
        time.sleep(0.02)
        aligned = student.deepcopy()
        newest = trainset[-1].film if trainset else "nothing"
        edit = Edit(op="add", bullet=Bullet(section="style", text=f"Learned from {newest}."))
        aligned.persona.value = student.persona.value.apply([edit])
        aligned.alignment = Alignment(user_id=student.user_id)
        return aligned


def work(url: str, folder: str, users: int, seed: int, reports: Any) -> None:
    """Answer, check the version that the answer was given under, observe, report; until killed or told to stop."""
    rng = random.Random(seed)
    stop: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    lm = FakeLM(lambda prompt: dict.fromkeys(prompt.outputs, "drama"))
    options = ServiceOptions(open_users=users // 2, queue=Path(folder, "queue"), pace=PACE)
    dspy.configure(lm=lm)
    with Store.open(url, timeout=60) as store:
        personas = Personas(
            store, PersonaAgent("film -> tag"), Copies(Path(folder, "paid")), every=EVERY, options=options
        )
        for number in count():
            if stop:
                break
            user = f"user-{rng.randrange(users)}"
            before = store.state(user)
            trace = personas.for_user(user)(film="x").trace
            after = store.state(user)
            if (before.life, before.version) == (after.life, after.version):
                expected = before.version or 0
                stale = trace.persona_version != expected or (before.version is None and trace.persona != "")
                if stale:
                    reports.send(("stale", user, trace.persona_version, expected))
            mark = f"mark-{seed}-{number}-of-{user}-"
            reports.send(("begin", user, mark, time.monotonic()))
            personas.observe(user, mark, "drama", id=f"{seed}-{number}")
            reports.send(("done", user, mark, time.monotonic()))
        personas.close(timeout=20)
    reports.send(("stopped", "", "", time.monotonic()))


@dataclass
class Observed:
    """What the processes said, and what the operator did."""

    begun: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))  # user -> mark -> when
    done: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    forgotten: dict[str, tuple[float, float]] = field(default_factory=dict)  # the latest: began, ended
    every_forgetting: list[tuple[str, float]] = field(default_factory=list)  # user, began
    stale: list[tuple[Any, ...]] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)

    @property
    def answers(self) -> int:
        return sum(map(len, self.done.values()))

    def hear(self, report: tuple[Any, ...]) -> None:
        kind, user, mark, when = report
        if kind == "stale":
            self.stale.append(report)
        elif kind in ("begin", "done"):
            (self.begun if kind == "begin" else self.done)[user][mark] = when


@dataclass(frozen=True, kw_only=True)
class Plan:
    processes: int = 3
    users: int = 12
    answers: int = 600
    kills: int = 6
    rollbacks: int = 10
    forgets: int = 10
    seed: int = 0


class Service:
    """The processes, killed and started again."""

    def __init__(self, url: str, folder: Path, plan: Plan, observed: Observed) -> None:
        self.url, self.folder, self.plan, self.observed = url, folder, plan, observed
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["tests.service_loop", "optimizers.persona_alignment", "persona_dspy.fleet"]
        )
        self._seeds = count(plan.seed * 10_000)
        self.running: list[tuple[Any, Any]] = []

    def start(self) -> None:
        while len(self.running) < self.plan.processes:
            ours, theirs = self._context.Pipe(duplex=False)
            arguments = (self.url, str(self.folder), self.plan.users, next(self._seeds), theirs)
            process = self._context.Process(target=work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.running.append((process, ours))

    def listen(self) -> None:
        for process, pipe in list(self.running):
            try:
                while pipe.poll():
                    self.observed.hear(pipe.recv())
            except (EOFError, OSError):
                raise AssertionError(f"a process ended by itself: {process.exitcode}") from None

    def kill(self, rng: random.Random) -> None:
        process, pipe = self.running.pop(rng.randrange(len(self.running)))
        process.kill()
        process.join()
        self._rest(pipe)
        self.start()

    def stop(self) -> None:
        for process, _ in self.running:
            process.terminate()
        for process, pipe in self.running:
            while process.is_alive():
                if pipe.poll(0.1):
                    self._rest(pipe, one=True)
            self._rest(pipe)
            assert process.exitcode == 0, process.exitcode

    def _rest(self, pipe: Any, *, one: bool = False) -> None:
        try:
            while pipe.poll():
                self.observed.hear(pipe.recv())
                if one:
                    return
        except (EOFError, OSError):
            return


def loop(url: str, folder: Path, plan: Plan) -> Observed:
    """Serve until ``plan.answers`` observations were acknowledged and all that was planned has happened."""
    rng, observed = random.Random(plan.seed), Observed()
    service = Service(url, folder, plan, observed)
    events = ["kill"] * plan.kills + ["rollback"] * plan.rollbacks + ["forget"] * plan.forgets
    rng.shuffle(events)
    at = sorted(rng.uniform(0.05, 0.95) * plan.answers for _ in events)
    with Store.open(url, timeout=60) as store:
        service.start()
        while observed.answers < plan.answers:
            service.listen()
            if at and observed.answers >= at[0]:
                at.pop(0)
                what, user = events.pop(), f"user-{rng.randrange(plan.users)}"
                observed.events[what] += 1
                if what == "kill":
                    service.kill(rng)
                elif what == "forget":
                    began = time.monotonic()
                    store.forget(user)
                    observed.every_forgetting.append((user, began))
                    observed.forgotten[user] = (began, time.monotonic())
                else:
                    try:
                        numbers = [version.version for version in store.versions(user)]
                        if numbers:
                            store.rollback(user, rng.choice(numbers))
                    except (UnknownUser, InputError):  # forgotten
                        pass
            time.sleep(0.005)
        service.stop()
    return observed


def settle(url: str, folder: Path) -> None:
    """One process alone finishes what is due and brings the queue into the store."""
    lm = FakeLM(lambda prompt: dict.fromkeys(prompt.outputs, "drama"))
    options = ServiceOptions(queue=folder / "queue", pace=PACE)
    with dspy.context(lm=lm), Store.open(url, timeout=60) as store:
        optimizer = Copies(folder / "paid")
        with Personas(store, PersonaAgent("film -> tag"), optimizer, every=EVERY, options=options) as personas:
            personas.for_user("user-0")
            until = time.monotonic() + 60
            while store.due_users(EVERY) or personas.status()["queued"] or not personas.wait(1):
                assert time.monotonic() < until, (store.due_users(EVERY), personas.status(), personas.last("user-0"))
                time.sleep(0.05)


def check(url: str, folder: Path, plan: Plan, observed: Observed) -> dict[str, Any]:
    """Every promise, by what was said and what is there.

    Raises:
        AssertionError: one is broken.
    """
    assert not observed.stale, observed.stale[:5]
    lost, texts = [], []
    with Store.open(url) as store:
        for user, marks in observed.done.items():
            try:
                kept = {interaction.query for interaction in store.episodes(user)}
                texts += [version.text for version in store.versions(user)]
            except UnknownUser:
                kept = set()
            ended = observed.forgotten.get(user, (0.0, 0.0))[1]
            lost += [mark for mark in marks if observed.begun[user][mark] > ended and mark not in kept]
            texts += kept
    assert not lost, lost[:5]
    forgotten = {
        mark for user, began in observed.every_forgetting for mark, when in observed.done[user].items() if when < began
    }
    there = set(_MARK.findall(" ".join(texts)))
    if url.startswith("sqlite"):  # what PostgreSQL keeps until VACUUM is its own
        files = [file for file in folder.rglob("*") if file.is_file() and file.name != "paid"]
        for file in files:
            there.update(_MARK.findall(file.read_bytes().decode("latin-1")))
    assert not there & forgotten, sorted(there & forgotten)[:5]
    assert there, "marks are found where they are"
    paid = len((folder / "paid").read_text().splitlines())
    begun = sum(map(len, observed.begun.values()))
    most = begun // EVERY + observed.events["kill"] * 2  # one that had begun in it, one that waited
    assert paid <= most, f"{paid} alignments were paid for {begun} observations and {observed.events['kill']} kills"
    assert paid >= 0.2 * begun / EVERY, "alignments were made at all"
    return {"answers": observed.answers, **observed.events, "alignments": paid, "forgotten marks": len(forgotten)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--url", help="of a new store; by default SQLite")
    words = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as made:
        folder, url = Path(made), words.pop("url") or f"sqlite:///{made}/s.db"
        plan, began = Plan(**words), time.monotonic()
        observed = loop(url, folder, plan)
        settle(url, folder)
        print(json.dumps({**check(url, folder, plan, observed), "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
