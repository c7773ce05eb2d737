"""What a persona costs on top of a bare ``dspy.Predict`` call: recall, persona and trace, with an LM that answers at
once.

Times are CPU time of the calling thread: an LM that answers at once leaves nothing to wait for, so on an idle machine
this is time by the clock, and on a busy one it is not the others' time. Both programs take turns in one run, in
blocks, so that a busy machine slows both alike; medians of the blocks are compared. Type:
``python benchmarks/overhead.py`` (``--write docs/results/overhead.md`` keeps the table).
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage

from persona_dspy.agent import PersonaAgent
from persona_dspy.core import Bullet, Interaction

LABELS = ("comedy", "drama", "thriller", "horror", "sci-fi", "romance")
BOUND_MS = 1.5


class Instant:
    """An engine that says the same at once."""

    supports_response_schema = False
    supports_function_calling = False
    supported_params = frozenset({"temperature", "max_tokens"})

    def complete(self, request: Request) -> Response:
        message = Message.assistant([TextPart("[[ ## tag ## ]]\ndrama\n\n[[ ## completed ## ]]")])
        usage = Usage(input_tokens=100, output_tokens=10)
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def close(self) -> None:
        pass


def instant() -> dspy.LM:
    return dspy.LM("fake/instant", engine=Instant(), cache=False, num_retries=0)


def history(episodes: int, words: int = 60) -> list[Interaction]:
    """Episodes as long as LaMP-2M's descriptions, from a vocabulary of 5,000 words."""
    rng = random.Random(7)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(5000)]
    weights = [1 / (rank + 5) for rank in range(len(vocabulary))]
    return [
        Interaction(
            user_id="u1",
            query=" ".join(rng.choices(vocabulary, weights, k=words)),
            response=rng.choice(LABELS),
            time=f"20{10 + i * 15 // episodes:02d}-01-{1 + i % 28:02d}",
            id=str(i),
        )
        for i in range(episodes)
    ]


def programs(episodes: int) -> tuple[dict[str, Callable[[str], object]], list[str]]:
    """The calls to compare, and queries of the same kind as the episodes."""
    past = history(episodes + 200)
    past, queries = past[:episodes], [i.query for i in past[episodes:]]
    signature = dspy.Signature("description -> tag", "Tag the film.")
    bare = dspy.Predict(signature)
    agent = PersonaAgent(signature, history=past)
    rules = [
        Bullet(section="what decides", words=(q.split()[0],), then=LABELS[n % 6], source="learned")
        for n, q in enumerate(queries[:8])
    ]
    persona = agent.persona.value.model_copy(update={"bullets": (*agent.persona.value.bullets, *rules)})
    agent = agent.with_persona(persona)
    return {
        "bare dspy.Predict": lambda query: bare(description=query),
        "PersonaAgent": lambda query: agent(description=query),
    }, queries


def measure(episodes: int, blocks: int, size: int) -> dict[str, float]:
    """Milliseconds of this thread's CPU time a call: the median over blocks of the block's mean. With an LM that
    answers at once there is nothing to wait for, so on an idle machine this is the time by the clock; on a busy one the
    clock would measure the others."""
    calls, queries = programs(episodes)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with dspy.context(lm=instant(), adapter=dspy.ChatAdapter(), disable_history=True):
        for call in calls.values():
            for query in queries[:20]:
                call(query)
        for block in range(blocks):
            for name, call in calls.items():
                began = time.thread_time()
                for n in range(size):
                    call(queries[(block * size + n) % len(queries)])
                times[name].append((time.thread_time() - began) / size * 1000)
    return {name: statistics.median(found) for name, found in times.items()}


def profile(episodes: int, calls: int = 300) -> None:
    """Where the time of PersonaAgent goes."""
    found, queries = programs(episodes)
    with dspy.context(lm=instant(), adapter=dspy.ChatAdapter(), disable_history=True):
        found["PersonaAgent"](queries[0])
        profiler = cProfile.Profile()
        with profiler:
            for n in range(calls):
                found["PersonaAgent"](queries[n % len(queries)])
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--size", type=int, default=25)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        profile(1000)
        return 0
    lines = ["| episodes | bare dspy.Predict, ms | PersonaAgent, ms | more, ms | times |", "|---|---|---|---|---|"]
    within = True
    for episodes in (10, 1000, 10_000):
        found = measure(episodes, options.blocks, options.size)
        bare, ours = found["bare dspy.Predict"], found["PersonaAgent"]
        lines.append(f"| {episodes:,} | {bare:.3f} | {ours:.3f} | {ours - bare:.3f} | {ours / bare:.2f} |")
        within = within and (episodes != 1000 or ours - bare <= BOUND_MS)
    text = "\n".join(lines)
    print(text)
    if options.write:
        head = f"# Overhead of recall, persona and trace\n\n{__doc__.strip()}\n\n"
        tail = f"\n\nBound: {BOUND_MS} ms more a query with 1,000 episodes; {'kept' if within else 'NOT kept'}."
        tail += (
            " Four episodes are shown as turns and the persona has eight rules; the LM is a fake that answers at once."
        )
        options.write.write_text(f"{head}{text}{tail}\n", encoding="utf-8")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
