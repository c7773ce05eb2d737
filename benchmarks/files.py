"""Peak memory of reading, ingesting and compiling users out of one large file, JSON lines and Parquet.

Each step runs in a process of its own. ``private`` is memory that is the process's own (RssAnon of /proc, sampled every
20 ms), without what is mapped from files, which the kernel takes back where it is short; ``whole`` is the kernel's own
peak (VmHWM), mapped pages included. ``start`` is what the process had before the file was opened. Seed fixed.

    python -m benchmarks.files                       # a file of 1 GB in each form: some minutes, 5 GB of disk
    python -m benchmarks.files --megabytes 20        # a minute
    python -m benchmarks.files --only ingest --form parquet
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SEED, USERS_A_GIGABYTE, TEXT = 20261127, 2_000, 2_000
STEPS, FORMS = ("read", "ingest", "compile"), ("jsonl", "parquet")
COMPILED = 20  # users of the file that are compiled: the file is read whole for them all the same


def rows(count: int) -> Iterator[dict[str, str]]:
    """Interactions of some 4 kB, those of all users mixed, as a log has them."""
    rng = random.Random(SEED)
    words = [f"word{n}" for n in range(5_000)]
    texts = [" ".join(rng.choices(words, k=TEXT // 9)) for _ in range(500)]
    users = max(4, USERS_A_GIGABYTE * count // 250_000)
    for n in range(count):
        shift = rng.randrange(1_000)
        yield {
            "user_id": f"user-{n % users}",
            "query": f"{n} {texts[rng.randrange(500)][shift:]}{texts[rng.randrange(500)][:shift]}",
            "response": f"{texts[rng.randrange(500)][shift:]}{texts[rng.randrange(500)][:shift]} {n}",
            "time": f"2026-01-{n * 27 // count + 1:02d}T{n % 24:02d}:{n % 60:02d}:00",
        }


def write(folder: Path, form: str, count: int) -> Path:
    path = folder / f"past.{form}"
    if form == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))
        return path
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema(dict.fromkeys(("user_id", "query", "response", "time"), pa.string()))
    batch: list[dict[str, str]] = []
    with ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        for row in rows(count):
            batch.append(row)
            if len(batch) == 10_000:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema))
    return path


def status(name: str) -> float:
    """Of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


class Watch:
    """Samples the process's own memory from a thread until it is stopped."""

    def __init__(self) -> None:
        self.start = self.peak = status("RssAnon")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, status("RssAnon"))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def child(step: str, path: Path, folder: Path) -> None:
    """One step over one file, in this process; prints what it took, as JSON."""
    import datasets  # noqa: F401 - what a step imports anyway is no memory of its file
    import dspy

    from optimizers import PersonaAlignment
    from persona_dspy import PersonaAgent, compile_users
    from persona_dspy.cli.ingesting import Ingest
    from persona_dspy.data import read_users
    from persona_dspy.store import Store
    from persona_dspy.testing import FakeLM

    watch, began, interactions, users = Watch(), time.monotonic(), 0, 0
    if step == "read":
        for history in read_users(path):
            users, interactions = users + 1, interactions + len(history.interactions)
    elif step == "ingest":
        with Store.open(folder / "personas.db") as store:
            bad = list(Ingest(store, path).run())
            assert not bad, bad[:3]
            watch.stop()
            for user in store.users():
                users, interactions = users + 1, interactions + len(store.episodes(user))
    else:
        lm = FakeLM(lambda prompt: dict.fromkeys(prompt.outputs, "word1 word2"))
        with dspy.context(lm=lm):
            make = lambda past: PersonaAgent("query -> response", history=past.interactions, user_id=past.user_id)  # noqa: E731
            optimizer = PersonaAlignment(epochs=1, metric=lambda example, prediction: 0.0)
            for result in compile_users(make, read_users(path, limit=COMPILED), optimizer, workers=2):
                assert result.document is not None, result
                users += 1
    seconds = time.monotonic() - began
    watch.stop()
    took = {"start": watch.start, "private": watch.peak - watch.start, "whole": status("VmHWM"), "seconds": seconds}
    print(json.dumps({**took, "users": users, "interactions": interactions}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--only", choices=STEPS, action="append")
    parser.add_argument("--form", choices=FORMS, action="append")
    parser.add_argument("--child", nargs=3, metavar=("STEP", "FILE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], *map(Path, options.child[1:]))
        return
    count = options.megabytes * 250
    print(
        "| file | step | MB of the file | users | interactions | MB at start | private MB more | whole MB | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for form in options.form or FORMS:
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), form, count)
            for step in options.only or STEPS:
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.files", "--child", step, path, own]
                    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr[-2000:])
                took = json.loads(done.stdout.strip().splitlines()[-1])
                assert step == "compile" or took["interactions"] == count, took
                size = path.stat().st_size / 1e6
                figures = (size, took["users"], took["interactions"], took["start"], took["private"], took["whole"])
                print(
                    f"| {form} | {step} | {' | '.join(f'{f:,.0f}' for f in figures)} | {took['seconds']:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
