"""Speed and size of a fleet: throughput against the ideal and against dspy.Parallel, CPU per LM call and whose it is,
memory as users grow, the time a resume takes, what MLflow costs, and batching with a model in this process.

LM calls go to an OpenAI-compatible server of fixed latency that this starts on 127.0.0.1, in a process of its own; the
figures of one section come from one run, so that a busy machine slows all alike.

    python -m benchmarks.fleet --users 200               # two minutes
    python -m benchmarks.fleet --users 1000              # the figures of the claims
    python -m benchmarks.fleet --only memory --users 100000
    python -m benchmarks.fleet --only streamed --users 100000
    python -m benchmarks.fleet --only local --model smol
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
import httpx
import psutil

from benchmarks.latency_server import Server
from optimizers import PersonaAlignment
from persona_dspy.agent import PersonaAgent, current_answer
from persona_dspy.data import UserHistory
from persona_dspy.fleet import FleetFolder, compile_users, fleet_status
from persona_dspy.lm import CallFolder, Ledger, UserCalls, recorded, recording_calls
from persona_dspy.store import Store
from persona_dspy.testing import SyntheticUser, TagFilm
from persona_dspy.tracking import MlflowTracker

INTERACTIONS = 12


def answer(body: dict[str, Any]) -> str:
    """Something of the right form, decided by the request's content; cheap, since the server shares the machine."""
    system = str(body["messages"][0]["content"])
    if "about_the_user" in system:
        name, said = "about_the_user", "Likes other tags."
    elif "`tag`" in system:
        digest = hashlib.blake2b(str(body["messages"][-1]["content"]).encode(), digest_size=2).digest()
        labels = system[system.index("Literal[") + 8 :].partition("]")[0].replace("'", "").split(", ")
        name, said = "tag", labels[digest[0] % len(labels)]
    else:
        name, said = "edits", "[]"
    if "[[ ## completed ## ]]" in system:
        return f"[[ ## {name} ## ]]\n{said}\n\n[[ ## completed ## ]]"
    return json.dumps({name: [] if name == "edits" else said})


class Instant:
    """An engine that answers at once and remembers nothing."""

    supports_response_schema = supports_function_calling = False
    supported_params = frozenset({"temperature", "max_tokens"})

    def complete(self, request: Any) -> Any:
        from dspy.lm15 import Message, Response, TextPart, Usage

        system = request.system if isinstance(request.system, str) else "".join(p.text for p in request.system or ())
        messages = [{"content": system}, {"content": request.messages[-1].text}]
        message = Message.assistant([TextPart(answer({"messages": messages}))])
        usage = Usage(input_tokens=300, output_tokens=10)
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)


def histories(count: int, first: int = 0) -> Iterator[UserHistory]:
    for seed in range(first, first + count):
        user = SyntheticUser(seed=seed)
        yield UserHistory(user_id=user.user_id, interactions=tuple(user.interactions(INTERACTIONS)))


def optimizer() -> PersonaAlignment:
    return PersonaAlignment(epochs=1)


def cpu() -> float:
    """CPU seconds of this process and of its workers that have ended; the server is not among them yet."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(section: str, *more: str) -> str:
    """A section's output from a fresh process, whose peak memory is its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.fleet", "--child", section, *more]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return done.stdout.strip()


# --- sections -----------------------------------------------------------------------------------------------------


def throughput(users: int, workers: int, latency: float) -> None:
    """Calls a second over the whole run, and while there were users left to begin."""
    ideal, cores = workers / latency, os.cpu_count() or 1
    print(
        f"\n## Throughput: {users} users, {workers} in flight, {latency * 1000:.0f} ms a call, ideal {ideal:.0f} calls/s"
    )
    ray = f"compile_users, Ray, {cores} actors", lambda server: ours(server, users, workers, cores, engine="ray")
    runs: list[tuple[str, Callable[[Server], tuple[float, float]]]] = [
        (f"compile_users, {cores} processes", lambda server: ours(server, users, workers, cores)),
        ("compile_users, 1 process", lambda server: ours(server, users, workers, 1)),
        *([ray] if find_spec("ray") else []),
        ("dspy.Parallel", lambda server: parallel(server, users, workers)),
        ("PersonaAlignment.acompile, tasks", lambda server: as_tasks(server, users, workers)),
        ("bare dspy.Predict, threads", lambda server: bare_calls(server, users * 16, workers)),
        ("bare dspy.Predict, asyncio", lambda server: bare_tasks(server, users * 16, workers)),
    ]
    first = 0.0
    for name, run in runs:
        with Server(latency) as server:
            began, used = time.perf_counter(), cpu()
            start, steady = run(server)
            wall, used = time.perf_counter() - began, cpu() - used
            calls, peak = server.count()
        whole = calls / wall
        first = first or whole
        print(
            f"{name:33s} {calls} calls in {wall:.1f} s: {whole:.0f} a second = {whole / ideal:.1%} of ideal; while users "
            f"were left {steady / ideal:.1%}; first call after {start:.1f} s; {peak} in flight at most; "
            f"{used / calls * 1000:.2f} ms CPU a call; ratio {first / whole:.2f}"
        )


def limited(users: int, workers: int, latency: float, limit: int) -> None:
    """Calls a second under a provider's limit."""
    print(f"\n## A limit of {limit} calls in any second, 429 with Retry-After: 1; {users} users, {workers} in flight")
    runs: list[tuple[str, Callable[[Server], int]]] = [
        ("compile_users, 2 processes", lambda server: limited_fleet(server, users, workers, 2)),
        ("compile_users, 1 process", lambda server: limited_fleet(server, users, workers, 1)),
        ("dspy.Parallel, DSPy's own tries", lambda server: limited_parallel(server, users, workers)),
    ]
    for name, run in runs:
        with Server(latency, limit) as server:
            began = time.perf_counter()
            failed = run(server)
            wall = time.perf_counter() - began
            (calls, _), refused = server.count(), server.refused()
        print(
            f"{name:32s} {calls} calls in {wall:.1f} s: {calls / wall / limit:.1%} of the limit; {refused} refused; "
            f"{failed} users failed",
            flush=True,
        )


def limited_fleet(server: Server, users: int, workers: int, processes: int) -> int:
    with dspy.context(lm=server.lm()):
        how = {"workers": workers, "processes": processes}
        results = compile_users(PersonaAgent(TagFilm), histories(users), optimizer(), **how)
        failed = sum(r.document is None for r in results)
    assert not failed, "a user failed for a rate limit"
    return failed


def limited_parallel(server: Server, users: int, workers: int) -> int:
    agent, how = PersonaAgent(TagFilm), optimizer()

    class Compile(dspy.Module):
        def forward(self, history: UserHistory) -> dspy.Prediction:
            student = agent.for_user(history.user_id, history.interactions)
            return dspy.Prediction(persona=how.compile(student, trainset=student.examples()).persona.value)

    logging.getLogger("dspy").setLevel(logging.CRITICAL)
    with dspy.context(lm=server.lm(), disable_history=True):
        module = Compile()
        pairs = [(module, dspy.Example(history=h).with_inputs("history")) for h in histories(users)]
        options = {"num_threads": workers, "timeout": 0, "disable_progress_bar": True, "max_errors": 10**6}
        return sum(result is None for result in dspy.Parallel(**options)(pairs))


class Marks:
    """Server's count over time, from a thread: when the first call was answered, and the rate between two moments."""

    def __init__(self, server: Server) -> None:
        self.server, self.began, self.ended = server, time.perf_counter(), threading.Event()
        self.seen: list[tuple[float, int]] = []
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.ended.wait(0.25):
            self.seen.append((time.perf_counter() - self.began, self.server.count()[0]))

    def rate(self, begun: list[float]) -> tuple[float, float]:
        """(seconds to the first answer, calls a second from 2 s after it until the last user was begun)."""
        self.ended.set()
        self.thread.join()
        first = next((at for at, count in self.seen if count), 0.0)
        steady = [(at, n) for at, n in self.seen if first + 2.0 <= at <= begun[-1] - self.began]
        if len(steady) < 2:
            return first, 0.0
        (a, m), (b, n) = steady[0], steady[-1]
        return first, (n - m) / (b - a)


def ours(server: Server, users: int, workers: int, processes: int, engine: str = "local") -> tuple[float, float]:
    marks, begun = Marks(server), [0.0]

    def source() -> Iterator[UserHistory]:
        for history in histories(users):
            begun[0] = time.perf_counter()
            yield history

    with tempfile.TemporaryDirectory() as path, FleetFolder(Path(path) / "p") as folder, dspy.context(lm=server.lm()):
        same: dict[str, Any] = {"folder": folder, "workers": workers, "processes": processes, "engine": engine}
        found = compile_users(PersonaAgent(TagFilm), source(), optimizer(), **same)
        assert sum(r.document is not None for r in found) == users
    return marks.rate(begun)


def parallel(server: Server, users: int, workers: int) -> tuple[float, float]:
    """Plain DSPy over the same compile; no results kept, no budget, no resume."""
    agent, how, marks, begun = PersonaAgent(TagFilm), optimizer(), Marks(server), [0.0]

    class Compile(dspy.Module):
        def forward(self, history: UserHistory) -> dspy.Prediction:
            begun[0] = time.perf_counter()
            student = agent.for_user(history.user_id, history.interactions)
            return dspy.Prediction(persona=how.compile(student, trainset=student.examples()).persona.value)

    with dspy.context(lm=server.lm(), disable_history=True):
        module = Compile()
        pairs = [(module, dspy.Example(history=h).with_inputs("history")) for h in histories(users)]
        runner = dspy.Parallel(num_threads=workers, timeout=0, disable_progress_bar=True)
        assert all(r is not None for r in runner(pairs))
    return marks.rate(begun)


def as_tasks(server: Server, users: int, workers: int) -> tuple[float, float]:
    """The same compile as tasks of one asyncio loop; no results kept, no budget, no resume."""
    agent, how, marks, begun = PersonaAgent(TagFilm), optimizer(), Marks(server), [0.0]

    async def work(waiting: Iterator[UserHistory]) -> None:
        for history in waiting:
            begun[0] = time.perf_counter()
            student = agent.for_user(history.user_id, history.interactions)
            await how.acompile(student, trainset=student.examples())

    async def run() -> None:
        lm, waiting = server.lm(), histories(users)
        with dspy.context(lm=lm, disable_history=True):
            await asyncio.gather(*(work(waiting) for _ in range(workers)))
        await lm.aclose()

    asyncio.run(run())
    return marks.rate(begun)


def bare_tasks(server: Server, calls: int, workers: int) -> tuple[float, float]:
    """DSPy alone under asyncio, as ``bare_calls``."""
    marks, begun, predict = Marks(server), [0.0], dspy.Predict(TagFilm)

    async def work(waiting: Iterator[int]) -> None:
        for number in waiting:
            begun[0] = time.perf_counter()
            await predict.acall(description=f"a film {number}")

    async def run() -> None:
        lm, waiting = server.lm(), iter(range(calls))
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter(), disable_history=True):
            await asyncio.gather(*(work(waiting) for _ in range(workers)))
        await lm.aclose()

    asyncio.run(run())
    return marks.rate(begun)


def bare_calls(server: Server, calls: int, workers: int) -> tuple[float, float]:
    """DSPy alone in one process: as many answers to one signature, nothing recalled, kept or learned."""
    marks, begun = Marks(server), [0.0]

    class Answer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict(TagFilm)

        def forward(self, description: str) -> dspy.Prediction:
            begun[0] = time.perf_counter()
            return self.predict(description=description)

    with dspy.context(lm=server.lm(), adapter=dspy.JSONAdapter(), disable_history=True):
        module = Answer()
        asked = [(module, dspy.Example(description=f"a film {n}").with_inputs("description")) for n in range(calls)]
        runner = dspy.Parallel(num_threads=workers, timeout=0, disable_progress_bar=True)
        assert all(r is not None for r in runner(asked))
    return marks.rate(begun)


def overhead(calls: int) -> None:
    """CPU of this process for each call, one after the other, layer by layer."""
    print(f"\n## CPU per LM call, one at a time ({calls} calls a layer, three rounds, the fastest)")
    user = SyntheticUser(seed=1)
    agent = PersonaAgent(TagFilm, history=user.interactions(INTERACTIONS))
    query = user.interactions(1, start=50)[0].query
    with Server(0.0) as server, tempfile.TemporaryDirectory() as path, dspy.context(disable_history=True, trace=None):
        lm, log = server.lm(), CallFolder(path)
        plain, kept, ledger = dspy.Predict(TagFilm), recorded(lm), Ledger()
        messages = [
            {"role": "system", "content": "`tag` (Literal['horror', 'comedy']) " + "x" * 1500},
            {"role": "user", "content": query},
        ]
        client = httpx.Client()

        def bare(n: int) -> None:
            body = {"model": "fake", "messages": messages, "seed": n}
            client.post(f"{server.url}/chat/completions", json=body).raise_for_status()

        layers: list[tuple[str, Callable[[int], Any]]] = [
            ("bare HTTP request (httpx)", bare),
            ("+ dspy.LM", lambda n: lm(messages=[*messages[:1], {"role": "user", "content": f"{query} {n}"}])),
            ("+ dspy.Predict and JSONAdapter", lambda n: plain(description=f"{query} {n}", lm=lm)),
            ("+ PersonaAgent: recall, persona, turns", lambda n: agent(description=f"{query} {n}")),
            ("+ ledger, answers kept on disk", lambda n: agent(description=f"{query} {n}")),
        ]
        best = [1e9] * len(layers)
        for _ in range(3):
            for at, (_, work) in enumerate(layers):
                with ExitStack() as stack:
                    stack.enter_context(dspy.context(lm=lm))
                    if at == 2:  # what the agent's own adapter is a kind of, for an LM that keeps to a schema
                        stack.enter_context(dspy.context(adapter=dspy.JSONAdapter()))
                    if at == len(layers) - 1:
                        stack.enter_context(dspy.context(lm=kept))
                        stack.enter_context(recording_calls(UserCalls(f"u{time.monotonic()}", log)))
                        stack.enter_context(ledger.recording())
                    work(-1)
                    began = time.thread_time()
                    for n in range(calls):
                        work(n)
                    best[at] = min(best[at], (time.thread_time() - began) / calls * 1000)
        client.close()
    for (name, _), ms, before in zip(layers, best, [0.0, *best[:-1]], strict=True):
        print(f"{name:42s} {ms:.2f} ms (+{ms - before:.2f})")
    dspys, mine = best[2] - best[0], best[4] - best[2]
    print(f"over the bare request: {best[4] - best[0]:.2f} ms, of it DSPy {dspys:.2f}, ours {mine:.2f}")


def memory(users: int) -> None:
    print("\n## Peak memory, LM that answers at once")
    for count in sorted({max(100, users // 10), users}):
        print(in_own_process("memory", "--users", str(count)))


def memory_child(users: int) -> None:
    with tempfile.TemporaryDirectory() as path, FleetFolder(Path(path) / "p") as folder:
        lm = dspy.LM("fake/instant", engine=Instant(), cache=False, temperature=0.0)
        with dspy.context(lm=lm):
            began, start = time.perf_counter(), 0.0
            found = compile_users(PersonaAgent(TagFilm), histories(users), optimizer(), folder=folder, workers=8)
            for n, _ in enumerate(found):
                if n == 50:
                    start = peak_mb()
            seconds = time.perf_counter() - began
    print(f"{users:>7,} users: peak {peak_mb():.0f} MB ({start:.0f} MB after 50), {users / seconds:.0f} users/s")


def resume(users: int) -> None:
    print(f"\n## Resume: {users:,} finished users, the first unfinished one after them")
    lm = dspy.LM("fake/instant", engine=Instant(), cache=False, temperature=0.0)
    with tempfile.TemporaryDirectory() as path:
        made = Path(path) / "p"
        # Finished as the fleet leaves them, without the work: the mark, and a file in place
        from persona_dspy.fleet import UserWork

        work = UserWork(program=PersonaAgent(TagFilm), optimizer=optimizer(), lm=lm)
        known = list(histories(users))
        with FleetFolder(made) as folder:
            made.mkdir(exist_ok=True)
            for history in known:
                folder.file(history.user_id).touch()
                folder.note(history.user_id, work.made_from(history), "done")
        fresh = next(histories(1, first=users))
        began = time.perf_counter()
        with FleetFolder(made) as folder, dspy.context(lm=lm):
            source = iter([*known, fresh])
            found = [
                r.user_id for r in compile_users(PersonaAgent(TagFilm), source, optimizer(), folder=folder, resume=True)
            ]
        print(f"found and compiled {found == [fresh.user_id]}: {time.perf_counter() - began:.2f} s")


def streamed(users: int, url: str) -> None:
    """A fleet that is killed twice and resumed: what it finds again, how fast, and how large its process is."""
    database = url.partition(":")[0] if url else "SQLite"
    print(f"\n## {users:,} users in one run, killed after a third and after two thirds, resumed; {database} store")
    with tempfile.TemporaryDirectory() as path:
        url = url or f"{path}/s.db"
        done, first = 0, 0.0
        looks = {100, 1000, *range(10_000, users, 10_000)}
        for stop_at in (users // 3, 2 * users // 3, users):
            began, before = time.perf_counter(), done
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.fleet", "--child", "streamed"]
            command += ["--users", str(users), "--run", path, "--store", url]
            sizes: dict[int, float] = {}
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                process = psutil.Process(child.pid)
                for n, _ in enumerate(child.stdout):
                    first = first if n else time.perf_counter() - began
                    done += 1
                    if done - before in looks or done == stop_at < users:
                        sizes[done - before] = process.memory_info().rss / 2**20
                    if done == stop_at < users:
                        child.kill()
                        break
            finished = fleet_status(Path(path) / "p")["users"]["done"]
            seconds = time.perf_counter() - began
            resident = ", ".join(f"{mb:.0f} MB after {n:,}" for n, mb in sizes.items())
            print(
                f"{finished:,} users finished after {seconds:.1f} s; the first result of this run after {first:.1f} s; "
                f"resident {resident}",
                flush=True,
            )
        assert finished == users == len(list((Path(path) / "p").glob("*.json"))), "a user is missing"
        with Store.open(url) as store:
            kept = [len(store.versions(user)) for user in store.users()]
        assert len(kept) == users, "a user is missing in the store"
        store_mb = sum(file.stat().st_size for file in Path(path).glob("s.db*")) / 2**20  # 0 where it is a server's
        journal = sum(f.stat().st_size for f in (Path(path) / ".p.fleet").rglob("*") if f.is_file()) / 2**20
        persona = sum(f.stat().st_size for f in (Path(path) / "p").glob("*.json")) / 2**20
        print(f"on disk: personas {persona:.1f} MB, journal {journal:.1f} MB, store {store_mb:.1f} MB")
        print(f"in the store: {len(kept):,} users, {sum(n > 1 for n in kept):,} with more than one version")


def streamed_child(users: int, path: str, url: str) -> None:
    """One result a line."""
    lm = dspy.LM("fake/instant", engine=Instant(), cache=False, temperature=0.0)
    with FleetFolder(Path(path) / "p") as folder, Store.open(url) as store, dspy.context(lm=lm):
        short = (dataclasses.replace(h, interactions=h.interactions[:4]) for h in histories(users))
        how: dict[str, Any] = {"folder": folder, "store": store, "resume": True, "workers": 8}
        for result in compile_users(PersonaAgent(TagFilm), short, optimizer(), **how):
            assert result.document is not None, result.error
            print(result.user_id, flush=True)


def tracking(users: int, workers: int, latency: float) -> None:
    print(f"\n## MLflow (SQLite file): {users} users, {workers} in flight, {latency * 1000:.0f} ms a call")
    walls: dict[str, float] = {}
    for name in ("off", "none", "sampled", "all", "off again"):
        with Server(latency) as server, tempfile.TemporaryDirectory() as path, dspy.context(lm=server.lm()):
            uri = f"sqlite:///{path}/mlflow.db"
            tracker: Any = None if name.startswith("off") else MlflowTracker(uri, runs=name)  # type: ignore[arg-type]
            if tracker is not None:
                tracker.begin({"users": users})
            began = time.perf_counter()
            for _ in compile_users(
                PersonaAgent(TagFilm), histories(users), optimizer(), workers=workers, tracker=tracker
            ):
                pass
            fleet = time.perf_counter() - began
            if tracker is not None:
                tracker.end({})
            walls[name] = time.perf_counter() - began
            lost = f", {tracker.lost} runs lost" if tracker is not None else ""
        print(f"{name:10s} fleet {fleet:.1f} s, with the end of tracking {walls[name]:.1f} s{lost}")
    base = (walls["off"] + walls["off again"]) / 2
    for name in ("none", "sampled", "all"):
        print(f"{name}: {walls[name] / base - 1:+.1%} of wall time")


class PersonaFirst:
    """An engine over another one: the persona stands before structure and task, not after them."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def complete(self, request: Any) -> Any:
        persona, system = current_answer().prompt, request.system
        if persona and isinstance(system, str) and system.endswith(persona):
            task = system.removesuffix(persona).rstrip()
            request = dataclasses.replace(request, system=f"{persona}\n\n{task}")
        return self.engine.complete(request)


def local(users: int, model: str) -> None:
    print(f"\n## In-process model {model!r}, {users} users; each run in a process of its own")
    for name in LOCAL:
        told = in_own_process("local", "--users", str(users), "--model", model, "--run", name)
        print(told, flush=True)


LOCAL = {"1 in flight": (1, False), "2 in flight": (2, False), "1 in flight, persona before the task": (1, True)}


def local_child(users: int, model: str, name: str) -> None:
    from persona_dspy.lm import local_lm

    workers, turned = LOCAL[name]
    lm, ledger = local_lm(model, cache=False), Ledger()
    lm("warm up")
    if turned:
        lm = lm.copy(engine=PersonaFirst(lm.engine))
    with dspy.context(lm=lm):
        began = time.perf_counter()
        found = compile_users(PersonaAgent(TagFilm), histories(users, 100), optimizer(), workers=workers, ledger=ledger)
        assert all(r.document is not None for r in found)
        wall = time.perf_counter() - began
    usage = ledger.usage
    cached = usage.cached_tokens / max(1, usage.input_tokens)
    print(
        f"{name:36s} {usage.calls} calls in {wall:.0f} s: {wall / usage.calls:.2f} s a call, "
        f"{usage.input_tokens / usage.calls:.0f} prompt tokens a call, {cached:.0%} from cache"
    )


SECTIONS = ["throughput", "limited", "overhead", "memory", "resume", "streamed", "tracking", "local"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--limit", type=int, default=50, help="calls a second, in the section limited")
    parser.add_argument("--model", default="smol")
    parser.add_argument("--store", default="", help="an empty database's URL, in the section streamed; else SQLite")
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child == "memory":
        return memory_child(given.users)
    if given.child == "streamed":
        return streamed_child(given.users, given.run, given.store)
    if given.child == "local":
        return local_child(given.users, given.model, given.run)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, dspy {dspy.__version__}")
    sections: dict[str, Callable[[], None]] = {
        "throughput": lambda: throughput(given.users, given.workers, given.latency),
        "limited": lambda: limited(given.users, given.workers, given.latency, given.limit),
        "overhead": lambda: overhead(min(300, 10 * given.users)),
        "memory": lambda: memory(given.users),
        "resume": lambda: resume(min(10_000, 50 * given.users)),
        "streamed": lambda: streamed(given.users, given.store),
        "tracking": lambda: tracking(given.users, given.workers, given.latency),
        "local": lambda: local(min(given.users, 4), given.model),
    }
    for name, section in sections.items():
        if given.only in (None, name) and (name != "local" or given.only):
            section()
    return None


if __name__ == "__main__":
    main()
