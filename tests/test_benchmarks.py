"""Benchmarks in a short form: their results have to be right; times are not looked at."""

import os
import re
import subprocess
import sys

import pytest
from tree import ROOT

from benchmarks import replies
from persona_dspy.testing import FakeLM

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


SIGNS = {replies.SupportAgent(seed=seed).habits["sign"].splitlines()[-1] for seed in range(2)}


CASES = re.compile(r"^case (\d+)$.*?^the person wrote: (.*?)^draft A: (.*?)^draft B: (.*?)(?=^case |\Z)", re.M | re.S)


def verdict(case, wrote, a, b):
    """The nearer draft is signed as the person signs."""
    (sign,) = [sign for sign in SIGNS if f"    {sign}\n" in f"{wrote}\n"]
    signed = [f"    {sign}\n" in f"{draft}\n" for draft in (a, b)]
    return {"case": int(case), "nearer": "same" if signed[0] == signed[1] else "AB"[signed[1]]}


def correspondent(prompt):
    """Signs as the past turns do, else as the notes say; notes how edited drafts are signed, and judges by that."""
    if "reply" in prompt.outputs:
        noted = [sign for sign in SIGNS if f"Signs {sign}." in prompt.system]
        shown = [turn[1].rpartition("\n")[2] for turn in prompt.turns[-1:]]
        return {"reply": "\n".join(["We swap it.", *(shown or noted)])}
    if "lines" in prompt.outputs:
        (sign,) = [sign for sign in SIGNS if f"\n    {sign}\n" in prompt.user]
        return {"lines": [{"section": "style", "text": f"Signs {sign}.", "strength": "clear", "examples": [1, 2]}]}
    if "nearer" in prompt.outputs:
        sent, a, b = (prompt.fields[name].splitlines()[-1] for name in ("sent", "draft_a", "draft_b"))
        return {"nearer": "same" if (a == sent) == (b == sent) else "A" if a == sent else "B"}
    if "verdicts" in prompt.outputs:
        return {"verdicts": [verdict(case, *told) for case, *told in CASES.findall(prompt.fields["cases"])]}
    return {"lessons": []} if "lessons" in prompt.outputs else {"edits": []} if "edits" in prompt.outputs else None


@pytest.fixture
def measured(monkeypatch, tmp_path, capsys):
    lm = FakeLM(correspondent, small=False)
    monkeypatch.setattr(replies, "lm_of", lambda *_: lm)

    def ran(*options):
        """Cells of the table's only row, by title."""
        out = str(tmp_path / "-".join(options))
        for command in ("learn", "ask", "judge", "table"):
            monkeypatch.setattr(sys, "argv", ["replies", command, "--users", "2", "--out", out, *options])
            capsys.readouterr()
            replies.main()
        titles, _, row = capsys.readouterr().out.splitlines()
        return dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (titles, row)), strict=True))

    return ran


def test_edits_are_seen_to_be_learned_where_nothing_is_recalled(measured):
    shown, alone = measured("--given", "edits"), measured("--given", "edits", "--recall", "0")
    assert shown["the same"] == "6" and alone["aligned preferred"] == "6", "six mails each"
    assert (shown["given"], alone["given"]) == ("edits, 2 agents", "edits-recall-0, 2 agents")
    assert shown["chrF, difference"].startswith("+0.000") and float(alone["chrF, difference"].split()[0]) > 0
