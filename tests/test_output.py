"""What is printed of anybody's text: brackets are no markup, and no terminal acts on it."""

import json

import pytest

from persona_dspy.cli import main
from persona_dspy.cli.output import echo, print_json, terminal, within_line

NAMES = ["[/x]", "[bold]a", ":smile: \\[", "a\x1b[2Jb", "a\x9b31mb", "a\u202eb", "a\ud800b", "a\rb\x07"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name, capsys):
    from rich.table import Table

    table = Table()
    table.add_column("user")
    table.add_row(name)
    console = terminal()
    console.print(f"user {name}")
    console.print(table)
    echo(name)
    print_json({"user": name})
    out = capsys.readouterr().out
    assert not any(c in out for c in "\x1b\x9b\u202e\ud800\r\x07")
    *_, line = out.splitlines()
    assert json.loads(line)["user"] == name
    if name.isascii() and name.isprintable():
        assert out.count(name.replace("\\", "\\")) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_the_bar_of_an_evaluation_shows_names_as_they_are(name):
    import io
    from types import SimpleNamespace

    from rich.console import Console

    from persona_dspy.cli.judging import _View

    view = _View(SimpleNamespace(), as_json=False)
    view.bar = view.progress.add_task("answers", total=2)
    view.row(SimpleNamespace(system="rag", user_id=name, kind="answer"))
    shown = Console(width=80, file=io.StringIO())
    shown.print(view.progress.get_renderable())
    text = shown.file.getvalue()
    assert not any(c in text for c in "\x1b\x9b\u202e\ud800\r\x07")
    if name.isascii() and name.isprintable():
        assert f"rag, {name}" in text


def test_json_is_printed_without_secrets(capsys):
    print_json({"upstream": "https://ana:hunter2@up/v1", "rows": [{"why": 'refused: "sk-hunter2secret12"'}]})
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"upstream": "https://ana:***@up/v1", "rows": [{"why": 'refused: "***"'}]}


def test_the_bar_of_a_fleet_is_whole_in_80_columns(monkeypatch):
    import io

    from rich.console import Console

    from persona_dspy.cli.progress import View
    from persona_dspy.lm import Ledger

    monkeypatch.setenv("COLUMNS", "80")
    view = View(6, Ledger(), unpriced=("openai/ours",))
    monkeypatch.setattr(view, "numbers", lambda: {"calls_per_second": 0.36, "usd": 1.2, "eta_seconds": 713})
    view.event({"user_id": "somebody-with-a-long-name", "event": "simulated"})
    shown = Console(width=80, file=io.StringIO())
    shown.print(view._bar.get_renderable())
    text = shown.file.getvalue()
    assert "0.4 calls/s, $1.20+, about 12 min left" in text and "…" not in text


def test_a_fleet_says_what_was_spent_and_whose_price_is_not_known(capsys):
    from pathlib import Path

    from persona_dspy.cli.progress import View
    from persona_dspy.core import Usage
    from persona_dspy.lm import Ledger

    ledger = Ledger()
    ledger.add("respond", Usage(calls=1200, input_tokens=9000, usd=1.2))
    ledger.add("act", Usage(calls=34))
    View(1, ledger, "quiet", unpriced=("openai/ours",)).close(Path("out"), "")
    told = capsys.readouterr().out
    assert "spent in 1,234 calls, 9,000 tokens: 1.20 US dollars, and more: the price of 'openai/ours' is not" in told
    assert View(1, ledger, unpriced=("openai/ours",)).numbers()["unpriced"] == ["openai/ours"]
    free = Ledger()
    free.add("respond", Usage(calls=1))
    View(1, free, "quiet").close(Path("out"), "")
    assert "spent" not in capsys.readouterr().out


def test_one_is_not_said_as_many(capsys):
    from pathlib import Path

    from persona_dspy.cli.progress import View
    from persona_dspy.lm import Ledger

    view = View(4, Ledger(), "quiet")
    view.made = view.judged = view.better = view.skipped = view.stopped = view.unread = view.left_out = 1
    view.close(Path("out"), "")
    told = " ".join(capsys.readouterr().out.split())
    for said in ("1 user better, 0 same, 0 worse", "1 user finished before", "1 user stopped", "1 answer of the refl"):
        assert said in told
    assert "since the LM is too small: 1 draft that users only commented on" in told


def test_a_text_within_a_line_makes_no_line():
    assert within_line("ana\n1 user\u2028forgotten\u2029\x85") == r"ana\n1 user\u2028forgotten\u2029\u0085"


def test_tables_hold_no_passwords(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "persona-dspy.toml").write_text('store = "postgresql+psycopg://u:hunter2secret@h/db"\n')
    with pytest.raises(SystemExit):
        main(["config"])
    out = capsys.readouterr().out
    assert "hunter2" not in out and "@h/db" in out.replace("\n", "")
