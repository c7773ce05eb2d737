"""What a service costs: ``Personas.for_user`` and an answer over the program alone, memory over many users served, and
the proxy over a direct call.

Answers: CPU time of the thread that answers, with an LM that answers at once; the programs take turns in blocks of 20
answers; lower quartile of the blocks, which a busy machine disturbs less, and median. Drafts are written into the store
in the background, which has a row of its own. Proxy: seconds by the clock with 64 requests in flight, direct and through the
proxy in turns, in one run; the provider, the proxy and the asking process share the machine's cores. Type:
``python -m benchmarks.service`` (``--postgres URL`` measures answers there too; ``--only answers``).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import httpx
import psutil

from benchmarks.latency_server import Server
from benchmarks.overhead import instant
from persona_dspy import Interaction, PersonaAgent, PersonaAlignment, Personas
from persona_dspy.agent import Trace
from persona_dspy.agent.drafts import draft_of
from persona_dspy.core import Persona, PersonaDocument
from persona_dspy.store import Store

TOKEN = "a-token-for-the-benchmark"
LATENCY = 0.2  # seconds that the provider takes


def fill(store: Store, users: int) -> None:
    """Users with three interactions and a persona each."""
    for n in range(users):
        user = f"user-{n}"
        past = [Interaction(user_id=user, query=f"film {n} of {user}", response="drama", id=str(n)) for n in range(3)]
        store.add_episodes(user, past)
        persona = Persona.from_text("Likes short answers.\nPrefers drama to comedy.", user_id=user)
        store.put_persona(user, PersonaDocument.of(persona).to_json())


def cpu_ms(call: Any, times: int) -> float:
    began = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - began) * 1000 / times


def answers(url: str, users: int, blocks: int, each: int = 20) -> dict[str, list[float]]:
    """CPU milliseconds an answer, by program: lower quartile and median over the blocks."""
    rng = random.Random(1)
    bare, agent = dspy.Predict("film -> tag"), PersonaAgent("film -> tag", recall_k=3)
    with Store.open(url) as store, dspy.context(lm=instant(), disable_history=True):
        if sum(1 for _ in store.users()) < users:
            fill(store, users)
        with Personas(store, agent, PersonaAlignment()) as personas:
            few = [f"user-{n}" for n in range(50)]
            alone = personas.for_user("user-0").with_persona(personas.for_user("user-0").persona.value)
            states = {user: store.state(user) for user in few}

            def keep_draft() -> None:
                user = rng.choice(few)
                trace = Trace(user_id=user, query="a heist", persona_version=1, persona="", response="drama")
                store.put_drafts(user, [draft_of(trace)], since=states[user])

            calls = {
                "bare dspy.Predict": lambda: bare(film="a heist"),
                "PersonaAgent alone": lambda: alone(film="a heist"),
                "for_user, 50 users in turn": lambda: personas.for_user(rng.choice(few))(film="a heist"),
                "for_user, any user": lambda: personas.for_user(f"user-{rng.randrange(users)}")(film="a heist"),
                "a draft, in the background": keep_draft,
            }
            for call in calls.values():
                cpu_ms(call, 5 * each)
            rows = [{name: cpu_ms(call, each) for name, call in calls.items()} for _ in range(blocks)]
    return {name: statistics.quantiles([row[name] for row in rows], n=4)[:2] for name in calls}


def resident_mb(url: str, users: int, served: int) -> list[tuple[int, float]]:
    """Resident MB after so many users were served, most of them new to the store."""
    process, seen = psutil.Process(), []
    with (
        Store.open(url) as store,
        dspy.context(lm=instant()),
        Personas(store, PersonaAgent("film -> tag", recall_k=3), PersonaAlignment()) as personas,
    ):
        for n in range(served):
            personas.for_user(f"user-{n}")(film="a heist")
            if (n + 1) % (served // 10) == 0:
                seen.append((n + 1, process.memory_info().rss / 2**20))
    return seen


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def asked(url: str, headers: dict[str, str], requests: int, flying: int, users: int) -> list[float]:
    """Seconds of each request, ``flying`` at a time; each has a client of its own, so that they wait for no pool. The
    clients begin spread over a provider's latency, and the first request of each, which opens its connection, is not
    counted: 64 that come at the same instant measure a queue of 64, which an app's users do not make."""
    rng, seconds = random.Random(2), []
    gc.collect()
    gc.freeze()  # as the proxy does: a collection in the asking process would count as the proxy's
    certificates = httpx.create_ssl_context()

    async def ask(times: int) -> None:
        async with httpx.AsyncClient(verify=certificates, timeout=60) as client:
            await asyncio.sleep(rng.random() * LATENCY)
            for number in range(times + 1):
                body = {"model": "m", "messages": [{"role": "user", "content": "a heist"}]}
                body["user"] = f"user-{rng.randrange(users)}"
                began = time.perf_counter()
                try:
                    answer = await client.post(f"{url}/chat/completions", json=body, headers=headers)
                except httpx.ReadError:  # an idle connection that the server has closed meanwhile: no answer to time
                    continue
                if number:
                    seconds.append(time.perf_counter() - began)
                assert answer.status_code == 200, answer.text

    await asyncio.gather(*[ask(requests // flying) for _ in range(flying)])
    return seconds


def proxied(folder: Path, users: int, blocks: int, flying: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of requests direct and through the proxy; CPU milliseconds of the proxy a request."""
    port, provider = free_port(), Server(latency=LATENCY)
    code = "import sys; from persona_dspy.cli import main; main(sys.argv[1:])"
    words = [
        "serve",
        "--store",
        str(folder / "s.db"),
        "--upstream",
        provider.url,
        "--port",
        str(port),
    ]
    environment = {**os.environ, "PERSONA_DSPY_TOKEN": TOKEN}
    proxy = subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stderr=subprocess.DEVNULL)
    try:
        while proxy.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        headers = {"X-Persona-Token": TOKEN}
        urls = {"direct": provider.url, "proxy": f"http://127.0.0.1:{port}/v1"}
        seconds: dict[str, list[float]] = {name: [] for name in urls}
        process, used = psutil.Process(proxy.pid), 0.0
        for block in range(blocks + 1):  # the first warms up
            for name, url in urls.items():
                before = process.cpu_times()
                found = asyncio.run(asked(url, headers, flying * 12, flying, users))
                after = process.cpu_times()
                if block:
                    seconds[name] += found
                    used += after.user - before.user + after.system - before.system
        return seconds, used * 1000 / len(seconds["proxy"])
    finally:
        proxy.terminate()
        proxy.wait(60)
        provider.__exit__()


def report(words: argparse.Namespace) -> Iterator[str]:
    yield "# What a service costs\n\n" + (__doc__ or "")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        urls = {"SQLite": f"sqlite:///{folder}/s.db", **({"PostgreSQL": words.postgres} if words.postgres else {})}
        if words.only in (None, "answers"):
            yield f"## Answers, {words.users:,} users in the store, CPU ms an answer (load {os.getloadavg()[0]:.0f})\n"
            yield "| store | program | lower quartile | over bare | median | over bare |\n|---|---|---|---|---|---|"
            for store, url in urls.items():
                found = answers(url, words.users, words.blocks)
                bare = found["bare dspy.Predict"]
                for name, cuts in found.items():
                    cells = " | ".join(f"{ms:.2f} | {ms - plain:+.2f}" for ms, plain in zip(cuts, bare, strict=True))
                    yield f"| {store} | {name} | {cells} |"
        if words.only in (None, "proxy"):
            yield from proxy_table(words, folder)
        if words.only in (None, "memory"):
            yield "\n## Memory\n\n| users served | resident MB |\n|---|---|"
            for served, mb in resident_mb(urls["SQLite"], words.users, words.served):
                yield f"| {served:,} | {mb:.0f} |"


def proxy_table(words: argparse.Namespace, folder: Path) -> Iterator[str]:
    load = os.getloadavg()[0]
    yield f"\n## Proxy, {words.flying} requests in flight, a provider of {LATENCY * 1000:.0f} ms (load {load:.0f} before)\n"
    with Store.open(folder / "s.db") as store:
        if next(store.users(), None) is None:
            fill(store, words.users)
    yield "| way | requests | median ms | p99 ms |\n|---|---|---|---|"
    seconds, cpu = proxied(folder, words.users, words.proxy_blocks, words.flying)
    for name, found in seconds.items():
        cuts = statistics.quantiles(found, n=100)
        yield f"| {name} | {len(found):,} | {cuts[49] * 1000:.1f} | {cuts[98] * 1000:.1f} |"
    yield f"\nCPU of the proxy's process a request: {cpu:.2f} ms."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--served", type=int, default=100_000)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--proxy-blocks", type=int, default=8)
    parser.add_argument("--only", choices=["answers", "proxy", "memory"])
    parser.add_argument("--flying", type=int, default=64)
    parser.add_argument("--postgres", help="URL of an empty database")
    parser.add_argument("--write", type=Path)
    words = parser.parse_args()
    parts: list[str] = []
    for part in report(words):
        print(part, flush=True)
        parts.append(part)
    if words.write:
        words.write.write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
