"""The benchmarks of fleets in a short form: their results have to be right; times are not looked at."""

import os
import subprocess
import sys

import pytest
from tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.loopback]

SHORT = {
    "throughput": ["--users", "10", "--workers", "4", "--latency", "0.02"],
    "limited": ["--users", "6", "--workers", "4", "--latency", "0.02", "--limit", "20"],
    "overhead": ["--users", "2"],
    "memory": ["--users", "20"],
    "resume": ["--users", "4"],
    "streamed": ["--users", "30"],
    "tracking": ["--users", "6", "--workers", "4", "--latency", "0.02"],
}


def run(module, *options):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("section", SHORT)
def test_a_section_of_the_fleets_benchmark(section):
    printed = run("benchmarks.fleet", "--only", section, *SHORT[section])
    assert "## " in printed
    if section == "streamed":
        assert "30 users finished" in printed
    if section == "resume":
        assert "found and compiled True" in printed


def test_the_cpu_of_a_call():
    assert "unknown model: " in run("benchmarks.cpu", "--users", "2", "--rounds", "1")


def test_the_memory_that_a_file_takes():
    lines = run("benchmarks.files", "--megabytes", "10").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [cell[:2] for cell in cells] == [[f, s] for f in ("jsonl", "parquet") for s in ("read", "ingest", "compile")]
    assert {tuple(cell[3:5]) for cell in cells if cell[1] != "compile"} == {("20", "2,500")}
    assert {cell[3] for cell in cells if cell[1] == "compile"} == {"20"}
    private = {(cell[0], cell[1]): int(cell[6]) for cell in cells}
    assert private["jsonl", "read"] < 30 and private["parquet", "read"] < 100, "MB: no file is held in memory"
