"""``persona-dspy models``: the small local models that can be fetched."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from persona_dspy.cli.output import JsonOption, echo, print_json, terminal

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    models = typer.Typer(help="Small local models: list and fetch.", no_args_is_help=True)
    models.command("list")(list_command)
    models.command("pull")(pull)
    app.add_typer(models, name="models")


def list_command(json_output: JsonOption = False) -> None:
    """List the models that --lm local:NAME knows, and whether they are here.

    Example: persona-dspy models list
    """
    from rich.table import Table

    from persona_dspy.lm import DEFAULT_MODEL, ENCODER, encoder_folder, list_models, models_dir

    if json_output:
        rows: list[dict[str, Any]] = [
            {"name": r.name, "file": r.file, "bytes": r.size, "here": r.present} for r in list_models()
        ]
        encoder = {"name": ENCODER, "file": encoder_folder().name, "here": (encoder_folder() / "model.onnx").is_file()}
        print_json({"folder": str(models_dir()), "models": rows, "encoders": [encoder]})
        return
    table = Table(title=f"Models in {models_dir()}")
    for column in ("name", "typed", "MB", "here", "what"):
        table.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
    for row in list_models():
        typed = "--lm local" if row.name == DEFAULT_MODEL else f"--lm local:{row.name}"
        table.add_row(row.name, typed, f"{row.size / 1e6:,.0f}", "yes" if row.present else "no", row.about)
    here = (encoder_folder() / "model.onnx").is_file()
    table.add_row(ENCODER, "--retrieval dense", "23", "yes" if here else "no", "sentence encoder, English")
    terminal().print(table)


def pull(
    name: Annotated[
        str, typer.Argument(help="smol, half or 1.5b; minilm: a sentence encoder for --retrieval dense.")
    ] = "smol",  # as DEFAULT_MODEL, which is slow to import
    json_output: JsonOption = False,
) -> None:
    """Fetch a model, checked by sha256; does nothing where it is here already.

    Example: persona-dspy models pull smol
    """
    from persona_dspy.lm import ENCODER, fetch_encoder, fetch_model

    file = str(fetch_encoder() if name == ENCODER else fetch_model(name))
    if json_output:
        print_json({"name": name, "file": file})
    else:
        echo(file)
