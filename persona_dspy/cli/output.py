"""What every command's ``--json`` is.

Messages, progress and errors go to standard error, so that standard output holds nothing else.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["JsonOption", "print_json"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output, text as it is (not escaped to ASCII).

    Example:
        >>> print_json({"user_id": "zoë", "versions": 2})
        {"user_id": "zoë", "versions": 2}
    """
    typer.echo(json.dumps(value, ensure_ascii=False))
