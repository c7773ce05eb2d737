"""``persona-dspy ask`` and ``show``: using and reading a persona, from a file or from the store."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_dspy.cli.estimates import HistoryColumns, Retrieval, history_columns
from persona_dspy.cli.output import JsonOption, echo, print_json, terminal, within_line
from persona_dspy.cli.settings import ProgramOption
from persona_dspy.cli.store import StoreOption, document_of, is_file, open_store
from persona_dspy.core import plural, printable

if TYPE_CHECKING:
    from persona_dspy.core import PersonaDocument

__all__ = ["register"]


Knowledge = Annotated[
    str | None,
    typer.Option(help="What search_knowledge searches: documents (folder, JSONL), or wikipedia:you@example.org."),
]


Asked = Annotated[
    list[str],
    typer.Argument(
        metavar="[USER|FILE] QUERY",
        help="A user id in the store or a persona JSON, and what to ask; - reads it from standard input.",
    ),
]
PastFile = Annotated[Path | None, typer.Option(help="The user's interactions, to recall from (any INPUT format).")]
Model = Annotated[
    str | None,
    typer.Option(help="local, local:/path/model.gguf, or any name dspy.LM takes. Default: the persona's own."),
]
WithoutPersona = Annotated[
    bool, typer.Option("--without-persona", help="Answer with an empty persona, to see what it changes.")
]
Actions = Annotated[
    str, typer.Option(help="fixed: recall by the query; plan or react: the LM chooses tools; none: no memory.")
]
InPaper = Annotated[bool, typer.Option("--as-in-paper", help="The paper's agent: tools, sentence vectors.")]
TraceUri = Annotated[
    str | None, typer.Option(help="Send the trace to MLflow, such as sqlite:///mlflow.db. Default: it is not sent.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ask")(ask)
    app.command("show")(show)


def ask(  # noqa: PLR0913 - a command's options
    words: Asked,
    persona: Annotated[Path | None, typer.Option(help="A persona JSON, as FILE.")] = None,
    user: Annotated[str | None, typer.Option(help="A user in the store, as USER.")] = None,
    store: StoreOption = None,
    history: PastFile = None,
    columns: HistoryColumns = None,
    task: Annotated[str | None, typer.Option(help="By default the persona's own.")] = None,
    lm: Model = None,
    program: ProgramOption = None,
    without_persona: WithoutPersona = False,
    actions: Actions = "fixed",
    knowledge: Knowledge = None,
    retrieval: Retrieval = None,
    in_paper: InPaper = False,
    trace: Annotated[bool, typer.Option("--trace", help="Show how the answer came about, step by step.")] = False,
    trace_json: Annotated[Path | None, typer.Option(help="Write the trace to this file.")] = None,
    json_output: JsonOption = False,
    tracking_uri: TraceUri = None,
) -> None:
    """Answer one query as the persona's user would, with the persona's own model and task unless told otherwise.

    Example: persona-dspy ask personas/ana-24d4b96f.json "A crew drifts through space."

    Example: persona-dspy ask ana --store personas.db "A crew drifts through space."
    """
    import dspy

    from persona_dspy.cli.programs import forgettable
    from persona_dspy.core import Persona
    from persona_dspy.errors import InputError
    from persona_dspy.lm import lm_errors, steady_lm

    if knowledge and actions not in ("plan", "react") and not in_paper:
        raise InputError(f"--knowledge with --actions {actions}: expected --actions plan or react, which use tools")
    persona, user, query = _whom_and_what(words, persona, user)
    document, past = _asked(persona, user, store, history, task, history_columns(columns, history))
    model_name = _model(lm, document)
    agent, named = _agent(document, past, task, program, (actions, knowledge, retrieval, in_paper))
    agent = agent.with_persona(Persona(user_id=document.user_id)) if without_persona else agent
    forgettable()
    model = steady_lm(model_name, seed=0)
    version = "without a persona" if without_persona else f"version {document.version}"
    echo(f"{document.user_id}, {version}; model {model_name}; {named}", err=True)
    with dspy.context(lm=model), _sent(tracking_uri), lm_errors(model):  # one call: no probe before it
        answer = agent(**{agent.query_field: query})
    several = len(agent.response_fields) > 1
    response = agent.kind.shown(answer.trace.response) if several else answer[agent.response_field]
    if trace_json is not None:
        from persona_dspy.core import write_text

        write_text(trace_json, answer.trace.to_json() + "\n")
    if json_output:
        fields = {"user_id": document.user_id, "version": document.version, "query": query}
        fields |= {"response": response, "model": model_name, "with_persona": not without_persona}
        print_json(fields | ({"trace": answer.trace.to_dict()} if trace else {}))
    elif trace:
        _show_trace(answer, agent)
    else:
        typer.echo(printable(answer.trace.response if several else str(response)))


def _whom_and_what(words: list[str], persona: Path | None, user: str | None) -> tuple[Path | None, str | None, str]:
    """The persona's file or the user in the store, and the query."""
    from persona_dspy.errors import InputError

    *whom, query = words
    if len(whom) > 1 or (whom and (persona or user)):
        raise InputError(f"ask {' '.join(words)!r}: expected one query, in quotes, after one USER or FILE")
    if whom:
        return (Path(whom[0]), None, _query(query)) if _is_persona_file(whom[0]) else (None, whom[0], _query(query))
    if persona is None and user is None and _is_persona_file(query):
        raise InputError(f'ask {query!r}: expected a query after the file, such as ask {query} "A crew drifts."')
    return persona, user, _query(query)


def _is_persona_file(name: str) -> bool:
    return name.endswith(".json") or is_file(name)


def _query(text: str) -> str:
    from persona_dspy.errors import InputError

    query = sys.stdin.read() if text == "-" else text
    if not query.strip():
        raise InputError(f'query {query!r}: expected a question, such as "A crew drifts through space."')
    return query.strip()


def _model(typed: str | None, document: PersonaDocument) -> str:
    """What was typed, else the persona's own model, else the project's."""
    from persona_dspy.cli.settings import read_settings
    from persona_dspy.lm import lm_spec

    return typed or (lm_spec(document.model) if document.model else read_settings().get("model", "local"))


def _agent(
    document: PersonaDocument,
    past: Any,
    task: str | None,
    program: str | None,
    how: tuple[str, str | None, str | None, bool],
) -> tuple[Any, str]:
    """The user's program, and what it is in words."""
    from persona_dspy.agent import Act
    from persona_dspy.cli.programs import OwnProgram, agent_for, knowledge_source, paper_agent_for
    from persona_dspy.data import task_from_text
    from persona_dspy.memory import EpisodicMemory, named_retriever

    actions, knowledge, retrieval, in_paper = how
    retriever = named_retriever(retrieval or ("dense" if in_paper else "bm25"))
    memory = EpisodicMemory(past, user_id=document.user_id, retriever=retriever)
    if program is not None and task is None:
        own = OwnProgram(program)
        return own(memory, document.user_id, document.persona()), f"program {program}"
    text = task or document.task or "query -> response"
    chosen = task_from_text(text, past, grows=task is None)
    source, same = knowledge_source(knowledge), {"history": memory, "user_id": document.user_id}
    if in_paper:
        return paper_agent_for(chosen, persona=document.persona(), knowledge=source, **same), f"task {text}"
    act = Act(policy=actions, knowledge=source)  # type: ignore[arg-type]  # checked there
    agent = agent_for(chosen, persona=document.persona(), actions=act, **same)
    return agent, f"task {text}"


def _show_trace(answer: Any, agent: Any) -> None:
    from persona_dspy.cli.trace_view import print_trace

    bullets = agent.persona.value.bullets
    print_trace(answer.trace, agent.memory.interactions, bullets, terminal(highlight=False))


@contextmanager
def _sent(uri: str | None) -> Generator[None]:
    """Answers inside become MLflow traces; says where to see them, or why they are missing."""
    from persona_dspy.tracking import MlflowTracker, is_off

    if uri is None or is_off(uri):
        yield
        return
    tracker = MlflowTracker(uri)
    with tracker.tracing() as sender:
        yield
    echo(f"trace not sent: {sender.trouble}" if sender.lost else f"trace: {tracker.where}", err=True)


def _asked(
    persona: Path | None,
    user: str | None,
    store: str | None,
    history: Path | None,
    task: str | None,
    columns: dict[str, str] | None,
) -> tuple[PersonaDocument, Any]:
    """The persona to answer with, and the interactions to recall from."""
    from persona_dspy.core import load_document
    from persona_dspy.data import read_users
    from persona_dspy.errors import InputError

    if (persona is None) == (user is None):
        raise InputError("ask: expected a persona JSON or a user of the store before the query, such as ask FILE QUERY")
    if user is not None:
        with open_store(store) as opened:
            return document_of(opened, user), opened.episodes(user)
    assert persona is not None
    document = load_document(persona)
    histories = list(read_users(history, task=task, users=[document.user_id], columns=columns)) if history else []
    return document, histories[0].interactions if histories else ()


def show(
    persona: Annotated[str, typer.Argument(metavar="USER|FILE", help="A persona JSON, or a user id in the store.")],
    version: Annotated[int | None, typer.Option(help="Of a user in the store; by default the current one.")] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Print a persona: its lines with their ids and evidence, what it was made with, and how it did.

    Example: persona-dspy show personas/ana-24d4b96f.json
    """
    document = _shown(persona, store, version)
    if json_output:
        typer.echo(printable(document.to_json()), nl=False)
        return
    console = terminal(highlight=False)
    value = document.persona()
    console.print(within_line(f"{value.user_id}, version {value.version}, made {value.created_at}"))
    console.print(within_line(f"model {document.model or 'not recorded'}; task {document.task or 'not recorded'}"))
    for section in document.sections:
        console.print(f"\n{section.name}", style="bold")
        for bullet in section.bullets:
            marks = [
                bullet.source,
                plural(bullet.hits, "time") if bullet.hits else "",
                "locked" if bullet.locked else "",
            ]
            evidence = f"; {', '.join(bullet.evidence)}" if bullet.evidence else ""
            console.print(f"- {bullet.sentence}")
            console.print(within_line(f"  {bullet.id}: {', '.join(m for m in marks if m)}{evidence}"), style="dim")
    if a := document.alignment:
        pairs = [
            f"{name.replace('_', ' ')} {value:.2f}"
            for name, value in a.scores.model_dump().items()
            if value is not None
        ]
        console.print(f"\nheld-out scores over {plural(a.gate_size, 'interaction')}: {', '.join(pairs) or 'none'}")
        stopped = within_line(a.stopped)
        counts = f"{plural(a.accepted, 'edit')} accepted in {plural(len(a.steps), 'step')}"
        console.print(f"{counts}, {plural(a.total.calls, 'LM call')}; {stopped}")
        console.print(_outcome(a.scores.gain))


def _outcome(gain: float | None) -> str:
    if gain is None:
        return "no held-out score: not known whether it helps"
    word = "better" if gain > 0 else "worse" if gain < 0 else "the same"
    return f"{word} than without a persona" + (f" by {abs(gain):.2f}" if gain else "")


def _shown(persona: str, store: str | None, version: int | None) -> PersonaDocument:
    """A file where there is one of that name and no store was named; a name that ends in .json is one too."""
    from persona_dspy.core import load_document

    if store is None and version is None and _is_persona_file(persona):
        return load_document(persona)
    with open_store(store) as opened:
        return document_of(opened, persona, version)
