"""``persona-dspy compile``: from a file of interactions to a persona JSON per user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from persona_dspy.cli.ending import at_the_latest
from persona_dspy.cli.estimates import (
    CallsPerSecond,
    ColumnsOption,
    DatasetOption,
    EstimateOption,
    Knowledge,
    Retrieval,
    one_input,
)
from persona_dspy.cli.output import JsonOption, echo
from persona_dspy.cli.settings import MetricOption, ProgramOption

if TYPE_CHECKING:
    from persona_dspy.cli.progress import View
    from persona_dspy.cli.sources import Source

__all__ = ["register"]


KeptIn = Annotated[
    str | None,
    typer.Option(
        "--store", help="Keep interactions and versions in this store (a file or postgresql URL) and start from them."
    ),
]


Model = Annotated[str, typer.Option(help="local, local:/path/model.gguf, or any name dspy.LM takes.")]
Input = Annotated[
    Path | None,
    typer.Argument(metavar="[INPUT]", help="JSONL, CSV, Parquet, LaMP questions.json or OPPU users.json; or --store."),
]
Which = Annotated[str | None, typer.Option(help="How many users at most, or ids separated by commas.")]
Reflector = Annotated[str | None, typer.Option(help="A stronger LM that writes portraits and edits; by default --lm.")]
Amount = Annotated[Literal["light", "medium", "heavy"], typer.Option(help="Calls a user: some 20, 40 or 100.")]

Runs = Annotated[
    Literal["all", "sampled", "none"], typer.Option(help="Users with an MLflow run of their own; a table has all.")
]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="This machine, or workers on a Ray cluster.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compile")(compile_command)


def compile_command(  # noqa: PLR0913 - a command's options
    source: Input = None,
    dataset: DatasetOption = None,
    columns: ColumnsOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the persona JSONs.")] = Path("personas"),
    task: Annotated[str | None, typer.Option(help="lamp-1 ... lamp-7, or fields such as 'film -> tag'.")] = None,
    lm: Model = "local",
    program: ProgramOption = None,
    metric: MetricOption = None,
    users: Which = None,
    reflection_lm: Reflector = None,
    auto: Amount = "medium",
    recent: Annotated[int | None, typer.Option(min=1, help="Interactions simulated a step (the paper's n).")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Steps at most.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Users at once; each has one LM call in flight.")] = 2,
    processes: Annotated[int | None, typer.Option(min=1, help="Share remote LMs' workers out to so many.")] = None,
    engine: Engine = "local",
    resume: Annotated[bool, typer.Option(help="Go on where an earlier compile into --out ended.")] = False,
    store: KeptIn = None,
    budget_calls: Annotated[int | None, typer.Option(min=0, help="LM calls at most, all users together.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens at most, all users together.")] = None,
    budget_usd: Annotated[float | None, typer.Option(min=0, help="US dollars at most, where prices are known.")] = None,
    user_budget_calls: Annotated[int | None, typer.Option(min=0, help="LM calls at most for one user.")] = None,
    user_budget_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens at most for one user.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling in the LM.")] = 0,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow URI, or 'off'. Default: sqlite:///mlflow.db")] = None,
    runs: Runs = "sampled",
    register_prompts: Annotated[bool, typer.Option(help="Put personas into MLflow's Prompt Registry.")] = False,
    progress: Annotated[Literal["bar", "lines", "quiet"], typer.Option(help="lines = JSON lines for logs.")] = "bar",
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip rows that cannot be used, and count them.")] = False,
    group: Annotated[bool, typer.Option("--group", help="Join the rows of a user that a file holds apart.")] = False,
    in_paper: Annotated[bool, typer.Option("--as-in-paper", help="The paper's agent and alignment.")] = False,
    estimate: EstimateOption = False,
    calls_per_second: CallsPerSecond = 1.0,
    retrieval: Retrieval = None,
    knowledge: Knowledge = None,
    fresh: Annotated[bool, typer.Option(help="Compile all users anew into a folder that is finished.")] = False,
    json_output: JsonOption = False,
) -> int:
    """Learn a persona for each user from the user's recent interactions.

    Stopped at any time, by Ctrl-C, a spent budget or a crash, it goes on with --resume and pays no LM call twice.
    Without INPUT: the users of the store.

    Example: persona-dspy compile examples/movie_tags.jsonl --lm local --out personas/

    Example: persona-dspy compile --store personas.db --out stored/ --resume
    """
    from persona_dspy.lm import Budget
    from persona_dspy.tracking import tracker_for

    source_ = _source(one_input(source, dataset), store, task, users, (skip_bad_rows, group, columns))
    total = source_.check()
    program_ = _program(source_, program, retrieval, knowledge, in_paper=in_paper)
    budget = Budget(calls=budget_calls, tokens=budget_tokens, usd=budget_usd)
    own = Budget(calls=user_budget_calls, tokens=user_budget_tokens)
    options: dict[str, Any] = {"auto": auto, "recent": recent, "epochs": epochs, "reflection_lm": reflection_lm}
    options |= {"seed": seed, "as_in_paper": in_paper, "program": program, "metric": metric, "total": total}
    options |= {"workers": workers, "processes": processes, "engine": engine, "resume": resume}
    options |= {"progress": progress, "json": json_output}
    if estimate:
        _estimate(source_, program_, lm, options, own, calls_per_second)
        return 0
    _not_twice(out, resume, fresh)
    tracker = tracker_for(tracking_uri, runs=runs, register=register_prompts)
    return _counting_bad(source_, _compile(source_, program_, lm, out, store, (budget, own), tracker, options))


def _counting_bad(source: Source, code: int) -> int:
    from persona_dspy.core import plural

    if source.bad:
        echo(f"{plural(source.bad, 'bad row')} skipped", err=True)
    return code


def _source(path: Path | None, store: str | None, task: str | None, users: str | None, rules: Any) -> Source:
    from persona_dspy.cli.sources import FileSource, StoreSource
    from persona_dspy.errors import InputError

    if path is not None:
        return FileSource(path, task, users, *rules)
    if store is None:
        raise InputError("compile: expected a file of interactions, or --store URL to compile the users who are there")
    return StoreSource(store, task, users)


def _program(
    source: Source, program: str | None, retrieval: str | None, knowledge: str | None, *, in_paper: bool
) -> _Program | _OwnProgram:
    """What makes each user's program.

    Raises:
        InputError: knowledge for an agent that has no tool for it.
    """
    from persona_dspy.errors import InputError

    if knowledge and (program or not in_paper):
        raise InputError(f"--knowledge {knowledge!r}: expected beside --as-in-paper, whose agent has a tool for it")
    if program:
        return _OwnProgram(program, retrieval or "bm25")
    return _Program(source, retrieval or ("dense" if in_paper else "bm25"), in_paper=in_paper, knowledge=knowledge)


class _Program:
    """Makes each user's program from the user's history; crosses processes."""

    def __init__(self, source: Source, retrieval: str, *, in_paper: bool = False, knowledge: str | None = None) -> None:
        from persona_dspy.cli.programs import knowledge_source

        self.known, self.text, self.answers, self.retrieval = source.known, source.task, source.answers, retrieval
        self.in_paper, self.knowledge = in_paper, knowledge
        knowledge_source(knowledge)
        self.retriever()  # what is missing on this machine shows before any work

    def retriever(self) -> Any:
        from persona_dspy.memory import named_retriever

        return named_retriever(self.retrieval)

    def __call__(self, history: Any) -> Any:
        from persona_dspy.cli.programs import agent_for, knowledge_source, paper_agent_for
        from persona_dspy.memory import EpisodicMemory

        persona = getattr(history, "persona", None)  # of a user in the store: the next version starts from it
        memory = EpisodicMemory(history.interactions, user_id=history.user_id, retriever=self.retriever())
        same = {"history": memory, "user_id": history.user_id, "persona": persona}
        if self.in_paper:
            return paper_agent_for(self._task(history), knowledge=knowledge_source(self.knowledge), **same)
        return agent_for(self._task(history), **same)

    def task(self, history: Any) -> str:
        from persona_dspy.data import task_text

        return task_text(self._task(history))

    def _task(self, history: Any) -> Any:
        from persona_dspy.data import task_from_text, users_task

        recorded = getattr(history, "task", None)  # with the persona, as an earlier compile had it
        if self.known is None and self.text is None and recorded:
            return task_from_text(recorded, history.interactions, answers=self.answers, grows=True)
        return users_task(self.known, self.text, history.interactions, self.answers)


class _OwnProgram:
    """The user's own program, with each user's history and persona; crosses processes by its name."""

    def __init__(self, spec: str, retrieval: str) -> None:
        from persona_dspy.cli.programs import OwnProgram

        self.own, self.retrieval = OwnProgram(spec), retrieval

    def __call__(self, history: Any) -> Any:
        from persona_dspy.memory import EpisodicMemory, named_retriever

        retriever = named_retriever(self.retrieval)
        memory = EpisodicMemory(history.interactions, user_id=history.user_id, retriever=retriever)
        return self.own(memory, history.user_id, getattr(history, "persona", None))

    def task(self, history: Any) -> str:
        return self.own.fields


def _estimate(
    source: Source, program: _Program | _OwnProgram, lm: str, options: dict[str, Any], own: Any, calls_per_second: float
) -> None:
    """Print what it takes, by a rehearsal of the first users; nothing is spent."""
    from itertools import islice

    from persona_dspy.cli.estimates import estimate_compile, print_estimate
    from persona_dspy.lm import steady_lm

    optimizer = _optimizer(options, own, None, None)
    histories = list(islice(source.read([]), 3))
    model = None if lm.startswith("local") or lm.endswith(".gguf") else steady_lm(lm, seed=options["seed"])
    estimate = estimate_compile(program, optimizer, histories, options["total"], model)
    print_estimate(estimate, calls_per_second, as_json=options["json"])


def _not_twice(out: Path, resume: bool, fresh: bool) -> None:
    """Refuse a folder with finished users, unless it is said what is to become of them.

    Raises:
        InputError: neither or both of ``--resume`` and ``--fresh``.
    """
    from persona_dspy.core import plural
    from persona_dspy.errors import InputError
    from persona_dspy.fleet import fleet_status, has_fleet

    if resume and fresh:
        raise InputError("--resume and --fresh: expected one of them; --resume passes over users who are finished")
    done = fleet_status(out)["users"].get("done", 0) if has_fleet(out) and not (resume or fresh) else 0
    if done:
        raise InputError(
            f"--out {str(out)!r}: holds {plural(done, 'finished user')} of an earlier compile; expected --resume to "
            "pass over those whose inputs are the same, --fresh to pay for all of them anew, or another folder"
        )


def _optimizer(options: dict[str, Any], own: Any, view: Any, reflector: Any) -> Any:
    from optimizers import PersonaAlignment
    from persona_dspy.cli.programs import OwnMetric

    kind = PersonaAlignment.as_in_paper if options["as_in_paper"] else PersonaAlignment
    concurrency = 2 if options["workers"] == 1 else 1
    amount = {name: options[name] for name in ("auto", "recent", "epochs") if options[name] is not None}
    watching = [view.event] if view else []
    metric = OwnMetric(options["metric"]) if options["metric"] else None
    return kind(
        metric,
        **amount,
        concurrency=concurrency,
        observers=watching,
        budget=own,
        reflection_lm=reflector,
        progress=False,
    )


def _compile(
    source: Source,
    program: _Program | _OwnProgram,
    lm: str,
    out: Path,
    store: str | None,
    budgets: Any,
    tracker: Any,
    options: dict[str, Any],
) -> int:
    from contextlib import ExitStack, closing

    import dspy

    from persona_dspy.cli.progress import View
    from persona_dspy.cli.sources import ingested
    from persona_dspy.data import task_text
    from persona_dspy.fleet import FleetFolder, compile_users
    from persona_dspy.lm import Ledger, check_lm, check_price, steady_lm, unpriced
    from persona_dspy.store import Store

    asked = [steady_lm(name, seed=options["seed"]) for name in (lm, options["reflection_lm"]) if name]
    model, reflector = asked[0], asked[1] if options["reflection_lm"] else None
    budget, own = budgets
    for used in asked:
        check_price(used, budget.usd)
        check_lm(used)
    _say_if_replayed(lm)
    ledger = Ledger(budget=budget)
    named = options["program"] or (task_text(source.known) if source.known else source.task)
    params = {"lm": model.model, "task": named, **source.described, **_params(budget, options)}
    with ExitStack() as stack:
        folder = stack.enter_context(FleetFolder(out))
        opened = stack.enter_context(Store.open(store)) if store else None
        source.ingest(opened)
        tracker.begin(params)
        folder.begin(params)
        view = View(options["total"], ledger, options["progress"], as_json=options["json"], unpriced=unpriced(asked))
        optimizer = _optimizer(options, own, view, reflector)
        view.expected = source.calls(optimizer)
        state, ended = "interrupted", "KILLED"
        stack.enter_context(at_the_latest(tracker.abandon, lambda: folder.end(state)))
        same: dict[str, Any] = {name: options[name] for name in ("resume", "engine", "workers", "processes")}
        same |= {"store": opened, "folder": folder, "ledger": ledger, "tracker": tracker}
        try:
            with dspy.context(lm=model), view:
                users = ingested(opened, source.read([]))
                results = compile_users(program, users, optimizer, task=program.task, on_skip=view.skip, **same)
                with closing(results):
                    for result in results:
                        view.finished(result)
            state, ended = "stopped" if ledger.exceeded else "done", "FINISHED"
        except Exception:
            ended = "FAILED"
            raise
        finally:
            folder.end(state)
            tracker.end(_counts(view), ended)
        view.close(out, tracker.where)
    return 1 if view.failed or view.unheard or ledger.exceeded else 0


def _say_if_replayed(lm: str) -> None:
    if lm.startswith("replayed:"):
        echo(
            f"no model runs: answers of a capable one are replayed from {lm.removeprefix('replayed:')}; "
            "for a model that runs, name it, such as --lm local or --lm openai/gpt-4o-mini",
            err=True,
        )


def _params(budget: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What a run is told apart by."""
    names = ("auto", "recent", "epochs", "reflection_lm", "seed", "as_in_paper", "workers", "engine", "metric")
    spent = {"budget_calls": budget.calls, "budget_tokens": budget.tokens, "budget_usd": budget.usd}
    return {"users": options["total"], **{name: options[name] for name in names}, **spent}


def _counts(view: View) -> dict[str, float]:
    counts = {"users": view.made, "failed": view.failed, "accepted": view.accepted}
    return {**counts, "calls": view.calls, "tokens": view.tokens}
