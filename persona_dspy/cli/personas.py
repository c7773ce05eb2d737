"""``persona-dspy ask`` and ``show``: using and reading persona files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ask")(ask)
    app.command("show")(show)


def ask(  # noqa: PLR0913 - a command's options
    query: Annotated[str, typer.Argument(help="What to ask.")],
    persona: Annotated[Path, typer.Option(help="A persona JSON.")],
    history: Annotated[
        Path | None, typer.Option(help="The user's interactions, to recall from (any INPUT format).")
    ] = None,
    task: Annotated[str | None, typer.Option(help="By default the persona's own.")] = None,
    lm: Annotated[str, typer.Option(help="local, local:/path/model.gguf, or any name dspy.LM takes.")] = "local",
) -> None:
    """Answer one query as the persona's user would.

    Example: persona-dspy ask --persona personas/ana-1b2c3d4e.json "A crew drifts through space."
    """
    import dspy

    from persona_dspy.cli.programs import agent_for, task_from_text
    from persona_dspy.errors import InputError
    from persona_dspy.export import load_document
    from persona_dspy.histories import read_users
    from persona_dspy.settings import check_lm, resolve_lm

    if not query.strip():
        raise InputError(f'query {query!r}: expected a question, such as "A crew drifts through space."')
    document = load_document(persona)
    found = list(read_users(history, task=task, users=[document.user_id])) if history else []
    past = found[0].interactions if found else ()
    chosen = task_from_text(task or document.task or "query -> response", past)
    agent = agent_for(chosen, history=past, persona=document.persona(), user_id=document.user_id)
    model = resolve_lm(lm)
    check_lm(model)
    with dspy.context(lm=model):
        answer = agent(**{agent.query_field: query})
    typer.echo(str(answer[agent.response_field]))


def show(
    persona: Annotated[Path, typer.Argument(help="A persona JSON.")],
    json_output: Annotated[bool, typer.Option("--json", help="The whole file as JSON.")] = False,
) -> None:
    """Print a persona: its sentences with their evidence, and how it did.

    Example: persona-dspy show personas/ana-1b2c3d4e.json
    """
    from rich.console import Console
    from rich.markup import escape

    from persona_dspy.export import load_document

    document = load_document(persona)
    if json_output:
        typer.echo(document.to_json(), nl=False)
        return
    console = Console(highlight=False)
    value = document.persona()
    console.print(f"[bold]{escape(value.user_id)}[/], version {value.version}, made {value.created_at}")
    for section in document.sections:
        console.print(f"\n[bold]{section.name}[/]")
        for bullet in section.bullets:
            marks = [bullet.source, f"{bullet.hits} times" if bullet.hits else "", "locked" if bullet.locked else ""]
            evidence = " " + ", ".join(bullet.evidence) if bullet.evidence else ""
            console.print(f"- {escape(bullet.sentence)} [dim]({', '.join(m for m in marks if m)}{escape(evidence)})[/]")
    if a := document.alignment:
        pairs = [
            f"{name.replace('_', ' ')} {value:.2f}"
            for name, value in a.scores.model_dump().items()
            if value is not None
        ]
        console.print(f"\nheld-out scores over {a.gate_size} interactions: {', '.join(pairs) or 'none'}")
        console.print(
            f"{a.accepted} edits accepted in {len(a.steps)} steps, {a.total.calls} LM calls; {escape(a.stopped)}"
        )
