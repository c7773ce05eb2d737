"""What every command's ``--json`` is.

Messages, progress and errors go to standard error, so that standard output holds nothing else.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from persona_dspy.core import printable, scrubbed

__all__ = ["JsonOption", "echo", "print_json", "terminal", "within_line"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]


def echo(message: object, *, err: bool = False, nl: bool = True) -> None:
    """One message, without secrets; what a terminal would act on in it is shown, not sent."""
    typer.echo(printable(scrubbed(str(message))), err=err, nl=nl)


def terminal(*, stderr: bool = False, highlight: bool = False) -> Any:
    """A Rich console for texts of anybody: brackets are no markup, colons no emoji, control characters are shown and
    secrets are not."""
    from rich.console import Console

    class Terminal(Console):
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(printable(scrubbed(text)), **options)

    return Terminal(stderr=stderr, highlight=highlight, markup=False, emoji=False)


def within_line(text: str) -> str:
    """``text`` of anybody within a line of ours: a line break in it is shown, not made.

    Example:
        >>> print(within_line("ana\\n1 user forgotten"))
        ana\\n1 user forgotten
    """
    breaks = {"\n": "\\n", "\t": "\\t", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return printable(text).translate(str.maketrans(breaks))


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output, text as it is (not escaped to ASCII), without secrets.

    Example:
        >>> print_json({"user_id": "zoë", "versions": 2})
        {"user_id": "zoë", "versions": 2}
    """
    typer.echo(printable(json.dumps(_scrubbed(value), ensure_ascii=False)))


def _scrubbed(value: Any) -> Any:
    """Each text in ``value`` without secrets; by text, as a mask in the JSON of all could take its quotes along."""
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, dict):
        return {key: _scrubbed(one) for key, one in value.items()}
    return [_scrubbed(one) for one in value] if isinstance(value, list | tuple) else value
