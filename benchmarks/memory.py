"""Speed and size of memory: recall against its floor and its peers, growth, and the store under many users.

Everything is measured in one run on one machine, with a fixed seed; ratios compare medians of interleaved rounds, so
that a busy machine slows all alike. Encoders are out: vectors are given. A peer that is not installed says so.

    python benchmarks/memory.py                      # recall, growth, a store of 1,000 users
    python benchmarks/memory.py --users 100000       # the store of the claims: about five minutes, or in two steps:
    python benchmarks/memory.py --only store --users 100000 --folder stores --fill-only   # then without --fill-only
    python benchmarks/memory.py --quick              # a minute; figures of small sizes
Peers: pip install 'persona-dspy[bench]'.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import platform
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from persona_dspy.core import Interaction, words_of
from persona_dspy.memory import BM25, Dense, EpisodicMemory, Hybrid
from persona_dspy.store import Store

SEED, DIMENSIONS, K = 20260103, 384, 10
Matrix = NDArray[np.float32]
Search = Callable[[int], list[int]]


class Corpus:
    """Episodes of one user with words drawn by Zipf's law, and unit vectors around 50 topics; and queries alike."""

    def __init__(self, size: int, queries: int) -> None:
        rng = np.random.default_rng(SEED)
        words = np.array([f"word{n}" for n in range(20_000)])
        chance = 1 / np.arange(1, len(words) + 1)
        drawn = rng.choice(words, size * 40 + queries * 12, p=chance / chance.sum())
        texts = [" ".join(drawn[n * 40 : n * 40 + 40]) for n in range(size)]
        self.queries = [" ".join(drawn[size * 40 + n * 12 : size * 40 + n * 12 + 12]) for n in range(queries)]
        topics = rng.standard_normal((50, DIMENSIONS))
        vectors = topics[rng.integers(50, size=size + queries)] + rng.standard_normal((size + queries, DIMENSIONS))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        self.matrix, self.query_vectors = vectors[:size], vectors[size:]
        self.interactions = [Interaction(user_id="u", query=t, response="yes", id=str(n)) for n, t in enumerate(texts)]
        self._lookup = dict(zip(self.queries, self.query_vectors, strict=True))

    def encode(self, texts: Sequence[str]) -> Matrix:
        return np.stack([self._lookup[t] for t in texts])

    def memory(self, kind: str) -> EpisodicMemory:
        dense = Dense(encoder=self.encode, name="given")
        retriever = {"bm25": BM25(), "dense": dense, "hybrid": Hybrid(parts=(BM25(), dense))}[kind]
        given = {i.id: row for i, row in zip(self.interactions, self.matrix, strict=True)} if kind != "bm25" else {}
        return EpisodicMemory(self.interactions, retriever=retriever, vectors=given)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.3g}' if isinstance(cell, float) else str(cell) for cell in row)} |")
    print(flush=True)


def medians(searches: dict[str, Search], queries: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one call: the median of rounds' medians, the searches taking turns."""
    found: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            times = []
            for number in range(queries):
                start = time.perf_counter()
                search(number)
                times.append(time.perf_counter() - start)
            found[name].append(float(np.median(times)) * 1000)
    return {name: float(np.median(times)) for name, times in found.items()}


def recaller(memory: EpisodicMemory, corpus: Corpus, before: int | None = None) -> Search:
    return lambda n: [e.position for e in memory.recall(corpus.queries[n], K, before=before)]


def recall(corpus: Corpus, rounds: int) -> None:
    """Top 10 of one user's episodes: against the floor (bare numpy, bare bm25s) and against peers."""
    size, queries = len(corpus.interactions), len(corpus.queries)
    ours = corpus.memory("dense")

    def floor(number: int) -> list[int]:
        scores = corpus.matrix @ corpus.query_vectors[number]
        best = np.argpartition(scores, -K)[-K:]
        return best[np.argsort(-scores[best])].tolist()

    searches: dict[str, Search] = {
        "numpy argpartition (floor)": floor,
        "persona-dspy Dense": recaller(ours, corpus),
    }
    with tempfile.TemporaryDirectory() as folder:
        missing = add_peers(searches, corpus, folder)
        exact = {n: set(floor(n)) for n in range(queries)}
        agree = {
            name: sum(len(exact[n] & set(search(n))) for n in exact) / (K * queries)
            for name, search in searches.items()
        }
        times = medians(searches, queries, rounds)
    base, own = times["numpy argpartition (floor)"], times["persona-dspy Dense"]
    rows = [[name, ms, ms / base, ms / own, agree[name]] for name, ms in times.items()]
    rows += [[name, "not installed", "", "", ""] for name in missing]
    table(
        f"Dense, top {K} of {size:,} episodes of {DIMENSIONS} dimensions",
        ["system", "ms a query", "x floor", "x ours", "same as exact"],
        rows,
    )
    words(corpus, rounds)


def add_peers(searches: dict[str, Search], corpus: Corpus, folder: str) -> list[str]:
    """Peers over the same vectors, each as its documentation shows it; returns those not installed."""
    missing: list[str] = []
    import dspy

    texts = [str(n) for n in range(len(corpus.interactions))]
    both = {**corpus._lookup, **dict(zip(texts, corpus.matrix, strict=True))}
    retriever = dspy.retrievers.Embeddings(
        corpus=texts, embedder=lambda batch: np.stack([both[t] for t in batch]), k=K, brute_force_threshold=10**9
    )
    searches[f"dspy.retrievers.Embeddings {version('dspy')}"] = lambda n: retriever(corpus.queries[n]).indices
    try:
        import lancedb

        rows = [{"id": n, "vector": row} for n, row in enumerate(corpus.matrix)]
        lance = lancedb.connect(folder).create_table("episodes", rows)

        def search_lance(n: int) -> list[int]:
            found = (
                lance.search(corpus.query_vectors[n])
                .distance_type("cosine")
                .limit(K)
                .select(["id", "_distance"])
                .to_list()
            )
            return [row["id"] for row in found]

        searches[f"LanceDB {version('lancedb')} (exact)"] = search_lance
    except ImportError:
        missing.append("LanceDB")
    try:
        import chromadb

        client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
        chroma = client.create_collection("episodes", configuration={"hnsw": {"space": "cosine"}})
        for start in range(0, len(texts), 5000):
            stop = start + 5000
            chroma.add(ids=texts[start:stop], embeddings=corpus.matrix[start:stop])

        def search_chroma(n: int) -> list[int]:
            found = chroma.query(query_embeddings=corpus.query_vectors[n : n + 1], n_results=K, include=["distances"])
            return [int(key) for key in found["ids"][0]]

        searches[f"Chroma {version('chromadb')} (HNSW)"] = search_chroma
    except ImportError:
        missing.append("Chroma")
    return missing


def words(corpus: Corpus, rounds: int) -> None:
    """BM25 against the bm25s library over the same words."""
    import bm25s

    ours = corpus.memory("bm25")
    peer = bm25s.BM25(method="lucene")
    peer.index([words_of(i.query + " " + i.response) for i in corpus.interactions], show_progress=False)

    def bare(number: int) -> list[int]:
        found = peer.retrieve([words_of(corpus.queries[number])], k=K, show_progress=False)
        return found.documents[0].tolist()

    searches: dict[str, Search] = {
        "bm25s (floor)": bare,
        "persona-dspy BM25": recaller(ours, corpus),
        "persona-dspy BM25, as of 90% of the time": recaller(ours, corpus, before=len(ours) * 9 // 10),
    }
    times = medians(searches, len(corpus.queries), rounds)
    first = next(iter(times.values()))
    table(
        f"BM25, top {K} of {len(corpus.interactions):,} episodes of 40 words, queries of 12",
        ["system", "ms a query", "x floor"],
        [[name, ms, ms / first] for name, ms in times.items()],
    )


def growth(sizes: Sequence[int], rounds: int) -> None:
    """Time to build, recall and append, and memory, by number of episodes."""
    rows = []
    for size in sizes:
        corpus = Corpus(size, 30)
        row: list[object] = [f"{size:,}"]
        for kind in ("bm25", "dense", "hybrid"):
            gc.collect()
            tracemalloc.start()
            start = time.perf_counter()
            memory = corpus.memory(kind)
            memory.recall(corpus.queries[0], 1)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            fresh = corpus.memory(kind)  # timed without the tracer
            start = time.perf_counter()
            fresh.recall(corpus.queries[0], 1)
            built = (time.perf_counter() - start) * 1000
            ms = medians({kind: recaller(fresh, corpus)}, 30, rounds)
            row += [built, ms[kind], f"{used / size:,.0f}"]
        rows.append(row)
    kinds = [f"{kind} {what}" for kind in ("BM25", "dense", "hybrid") for what in ("index ms", "recall ms", "bytes")]
    table("Growth; index ms = first recall; bytes = of the memory per episode, interactions not counted",
          ["episodes", *kinds], rows)  # fmt: skip


def evict(folder: Path) -> None:
    """Ask the operating system to forget the files' pages, so that the next read comes from the disk."""
    for file in folder.iterdir():
        with file.open("rb") as handle, suppress(AttributeError):
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def episodes_of(user: str, number: int, start: int = 0) -> list[Interaction]:
    text = "somewhat like what people write about the films they watched at home on a rainy evening " * 3
    return [
        Interaction(user_id=user, query=f"{n} {text}", response="yes", time="2026-01-03", id=f"e{n}")
        for n in range(start, start + number)
    ]


def median_ms(work: Callable[[str], object], users: Sequence[str], before: Callable[[], None] = lambda: None) -> str:
    """Over users: median milliseconds by the clock (worst) / of this thread's CPU time / reads of the system, where it
    counts them. On a busy machine the clock measures the others; the last two hardly. ``before`` each, not timed."""
    walls, cpus, reads = [], [], []
    for user in users:
        before()
        read, start, busy = system_reads(), time.perf_counter(), time.thread_time()
        work(user)
        walls.append((time.perf_counter() - start) * 1000)
        cpus.append((time.thread_time() - busy) * 1000)
        reads.append(system_reads() - read)
    return f"{np.median(walls):.2f} ({max(walls):.1f}) / {np.median(cpus):.2f} / {np.median(reads):.0f}"


def system_reads() -> int:
    """Reads that this process asked of the system so far; 0 where it does not say."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split("syscr: ")[1].split()[0]) if counts.exists() else 0


def fill(store: Store, numbers: range, others: int, long: int, probes: int) -> tuple[list[str], list[str]]:
    """Users with ``others`` episodes each; among them ``probes`` with ``long`` written in one go, and four with as many
    written one by one between all the others, so that they lie all over the file."""
    bulk = [f"bulk-{numbers.stop}-{n}" for n in range(probes)]
    drip = [f"drip-{numbers.stop}-{n}" for n in range(4)]
    written = 0
    for done, number in enumerate(numbers, start=1):
        store.add_episodes(f"user-{number}", episodes_of(f"user-{number}", others))
        if done * probes // len(numbers) > (done - 1) * probes // len(numbers):
            name = bulk[done * probes // len(numbers) - 1]
            store.add_episodes(name, episodes_of(name, long))
        due = done * long // len(numbers)
        for name in drip:
            store.add_episodes(name, episodes_of(name, due - written, written))
        written = due
    return bulk, drip


def cold_loads(
    folder: Path, group: Sequence[str], *, evicted: bool
) -> tuple[Callable[[str], object], Sequence[str], Callable[[], None]]:
    """For ``median_ms``: a load by a store just opened; ``evicted``: none of the file is in the machine's memory."""
    opened: list[Store] = []

    def before() -> None:
        for store in opened:
            store.close()
        if evicted:
            evict(folder)
        opened[:] = [Store.open(folder / "personas.db")]

    return lambda user: opened[0].memory(user), group, before


def under_many_users(
    counts: Sequence[int], others: int, long: int, probes: int, folder: Path, *, fill_only: bool
) -> None:
    """Cold load, append and forget of users with ``long`` episodes in stores of so many users, each a folder of its own;
    one that is there already is measured as it is."""
    rows, fresh_id = [], itertools.count(time.time_ns())
    for users in counts:
        home = folder / f"{users}-users"
        file, filled = home / "personas.db", home / "filled"
        bulk = [f"bulk-{users}-{n}" for n in range(probes)]
        drip = [f"drip-{users}-{n}" for n in range(4)]
        with Store.open(file) as store:
            if not filled.exists():
                fill(store, range(users), others, long, probes)
                filled.touch()  # written last: its existence means the rest is complete
        if fill_only:
            continue
        row: list[object] = [f"{users:,}", f"{file.stat().st_size / 2**20:,.0f}"]
        with Store.open(file) as store:
            store.memory("user-0")  # the first load of a process takes longer, whatever it loads
            for group, cold in ((bulk, True), (drip * 3, True), (bulk, False)):
                row.append(median_ms(*cold_loads(home, group, evicted=cold)))
            some = [f"user-{n}" for n in np.random.default_rng(SEED).integers(users, size=500)]
            row.append(median_ms(lambda user: store.add_episodes(user, episodes_of(user, 1, next(fresh_id))), some))
            gone = [f"gone-{next(fresh_id)}" for _ in range(6)]
            for user in gone:
                store.add_episodes(user, episodes_of(user, long))
            row.append(median_ms(store.forget, gone))
        rows.append(row)
    load = f"load {long:,}"
    loads = [f"{load} written in one go, from disk", f"{load} written one by one, from disk", f"{load}, file cached"]
    columns = ["users", "MiB", *loads, "append", f"forget {long:,}"]
    if rows:
        table(f"SQLite store, other users {others} episodes each: median ms (worst) / CPU ms / reads", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute")
    parser.add_argument("--episodes", type=int, default=10_000, help="of the user that is searched (default 10,000)")
    parser.add_argument("--users", type=int, default=1_000, help="of the largest store (default 1,000)")
    parser.add_argument("--from-users", type=int, default=1_000, help="of the smallest store (default 1,000)")
    parser.add_argument(
        "--folder", type=Path, help="keep stores here: filled once (minutes), measured again in seconds"
    )
    parser.add_argument("--fill-only", action="store_true", help="fill the stores in --folder, measure nothing of them")
    parser.add_argument("--only", choices=["recall", "growth", "store"], help="one part")
    options = parser.parse_args()
    rounds, queries = (3, 30) if options.quick else (9, 100)
    episodes = min(options.episodes, 2_000) if options.quick else options.episodes
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "bm25s", "SQLAlchemy"))
    print(f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if options.only in (None, "recall"):
        recall(Corpus(episodes, queries), rounds)
    if options.only in (None, "growth"):
        growth((100, 1_000) if options.quick else (100, 1_000, 10_000, 100_000), 3)
    if options.only in (None, "store"):
        counts = [n for n in (1_000, 10_000, 100_000) if options.from_users <= n <= options.users] or [options.users]
        long, probes = (100, 6) if options.quick else (1_000, 10)
        others = 3 if options.quick else 10
        with tempfile.TemporaryDirectory() as folder:
            home = options.folder or Path(folder)
            under_many_users(counts, others, long, probes, home, fill_only=options.fill_only)


if __name__ == "__main__":
    main()
