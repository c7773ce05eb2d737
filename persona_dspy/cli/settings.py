"""``persona-dspy.toml`` in the working folder: defaults of options; and ``config``, which shows where each is from."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_dspy.cli.output import JsonOption, print_json, terminal
from persona_dspy.errors import InputError

__all__ = ["FILE", "SETTINGS", "MetricOption", "ProgramOption", "defaults", "read_settings", "register"]

ProgramOption = Annotated[
    str | None, typer.Option(help="Your own DSPy program, module:object, instead of PersonaAgent on the task.")
]
MetricOption = Annotated[
    str | None,
    typer.Option(help="Your own metric, module:function, called with (example, prediction); higher is better."),
]

FILE = "persona-dspy.toml"
SETTINGS: dict[str, tuple[str, str]] = {
    "model": ("lm", "the LM that answers: local, local:half, or any name dspy.LM takes"),
    "reflection_model": ("reflection_lm", "a stronger LM that writes portraits and edits"),
    "store": ("store", "a file or a postgresql URL"),
    "tracking": ("tracking_uri", "MLflow URI, or off"),
    "program": ("program", "your own DSPy program, module:object"),
    "metric": ("metric", "your own metric, module:function"),
}
"""Keys of the file: the parameter of commands that each is the default of, and what it says."""
_ELSE = {
    "model": "local",
    "reflection_model": "the model",
    "store": "personas.db in the home folder",
    "tracking": "sqlite:///mlflow.db",
    "program": "PersonaAgent on the task's fields",
    "metric": "the task's own",
}
_OTHER_MEANING = {
    ("reproduce", "lm"),  # several
    ("ask", "lm"),  # the persona's own comes first
    ("ask", "tracking_uri"),  # whether the trace is sent
    ("show", "store"),  # typed, it says that the name is a user's; otherwise a file comes first
    ("edit", "store"),
    ("rollback", "tracking_uri"),  # whether a prompt's alias moves too
}


def read_settings(folder: Path | None = None) -> dict[str, str]:
    """What the file says; empty where there is none.

    Raises:
        InputError: it cannot be read, or has a key or a value that no command knows.
    """
    path = (folder or Path()) / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as failure:
        raise InputError(f'{path}: cannot be read ({failure}); expected TOML such as model = "local"') from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise InputError(f'{path}: {failure}; expected TOML such as model = "local"') from None
    for name, value in values.items():
        if name not in SETTINGS:
            raise InputError(f"{path}: {name!r}: expected one of {', '.join(SETTINGS)}")
        if not isinstance(value, str) or not value.strip():
            raise InputError(f'{path}: {name} = {value!r}: expected text in quotes, such as {name} = "..."')
    return values


def defaults(commands: dict[str, Any], settings: dict[str, str]) -> dict[str, dict[str, str]]:
    """Defaults of each command's options, by the names of their parameters, as click's ``default_map`` takes them."""
    by_parameter = {SETTINGS[name][0]: value for name, value in settings.items()}
    return {
        command: {
            str(p.name): by_parameter[str(p.name)]
            for p in found.params
            if p.name in by_parameter and (command, p.name) not in _OTHER_MEANING
        }
        for command, found in commands.items()
    }


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("config")(config)


def config(json_output: JsonOption = False) -> None:
    """Show what commands take where an option is not typed, and where each value comes from.

    Put defaults into persona-dspy.toml in the folder you work in: model, reflection_model, store, tracking, program
    and metric. With program and metric, compile, ask and evaluate run your own code of this folder.

    Example: persona-dspy config
    """
    from rich.table import Table

    from persona_dspy.lm import home_dir, models_dir

    settings = read_settings()
    rows = [
        (name, settings.get(name, _ELSE[name]), FILE if name in settings else "default", about)
        for name, (_, about) in SETTINGS.items()
    ]
    for name, value, about in (
        ("PERSONA_DSPY_HOME", home_dir(), "home folder: the store"),
        ("PERSONA_DSPY_MODELS", models_dir(), "files of local models"),
    ):
        rows.append((name, str(value), "environment" if os.environ.get(name) else "default", about))
    if json_output:
        print_json({name: {"value": value, "from": source} for name, value, source, _ in rows})
        return
    table = Table(title=f"{Path(FILE).resolve()}" + ("" if Path(FILE).exists() else " (not there)"))
    for title in ("name", "value", "from", "what"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    terminal().print(table)
