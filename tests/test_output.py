"""What is printed of anybody's text: brackets are no markup, and no terminal acts on it."""

import json

import pytest

from persona_dspy.cli.output import echo, print_json, terminal

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
