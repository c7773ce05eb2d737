"""The command line.

Exit codes: 0 done, 1 the run failed (for one user or all), 2 the input was wrong, 130 interrupted. Each command's file
imports what it needs when it runs, so that ``--help`` stays fast.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from persona_dspy.cli import compile as _compile
from persona_dspy.cli import edit as _edit
from persona_dspy.cli import forget as _forget
from persona_dspy.cli import judge as _judge
from persona_dspy.cli import models as _models
from persona_dspy.cli import personas as _personas
from persona_dspy.cli import report as _report
from persona_dspy.cli import reproduce as _reproduce
from persona_dspy.cli import serve as _serve
from persona_dspy.cli import settings as _settings
from persona_dspy.cli import status as _status
from persona_dspy.cli import store as _store
from persona_dspy.cli import versions as _versions
from persona_dspy.cli.ending import ending_on_signals
from persona_dspy.cli.help import grouped
from persona_dspy.cli.output import echo
from persona_dspy.cli.settings import defaults, read_settings
from persona_dspy.core import advised, remove_left_folders
from persona_dspy.errors import PersonaError

__all__ = ["app", "main"]

app = typer.Typer(
    name="persona-dspy",
    help="A persona per user for any DSPy program: compile, ask, ship as JSON.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        echo(f"persona-dspy {version('persona-dspy')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    commands = getattr(context.command, "commands", {})
    context.default_map = defaults(commands, read_settings()) if context.invoked_subcommand != "config" else None


_compile.register(app)
_personas.register(app)
_models.register(app)
_status.register(app)
_edit.register(app)
_store.register(app)
_versions.register(app)
_forget.register(app)
_judge.register(app)
_report.register(app)
_reproduce.register(app)
_serve.register(app)
_settings.register(app)
grouped(app)


# Typer carries a click of its own, whose errors the click package's classes do not catch.
_REFUSED: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``persona-dspy``; never prints a traceback unless ``PERSONA_DSPY_DEBUG`` is set."""
    if not os.environ.get("PERSONA_DSPY_DEBUG"):
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # its migrations tell of every new file
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each of hundreds of files
        logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)  # a clipped critique is no news
    try:
        with ending_on_signals(), warnings.catch_warnings():
            warnings.showwarning = _saying()
            remove_left_folders()
            code = app(args=list(argv) if argv is not None else None, prog_name="persona-dspy", standalone_mode=False)
    except PersonaError as error:
        _fail(str(error), error.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except _REFUSED as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept", 130)
    except OSError as error:
        _fail(advised(error), 1)
    except Exception as error:  # noqa: BLE001 - the outermost frame: one line instead of a traceback
        _fail(f"{type(error).__name__}: {error}", 1)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _saying() -> Callable[..., None]:
    """What says a warning as a line for people, without the place in our source; each once a command, though a file is
    read twice."""
    said: set[str] = set()

    def say(message: Warning | str, category: type[Warning], *place: Any) -> None:
        line = f"note: {message}" if category is UserWarning else f"{category.__name__}: {message}"
        if line not in said:
            said.add(line)
            echo(line, err=True)

    return say


def _fail(message: str, code: int) -> None:
    if os.environ.get("PERSONA_DSPY_DEBUG"):
        raise
    echo(f"persona-dspy: {message}", err=True)
    sys.exit(code)
