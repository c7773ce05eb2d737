"""An evaluation: read and checked, run, and what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import dspy

from persona_dspy.agent import PersonalProgram, personalize
from persona_dspy.core import lock_file, write_text
from persona_dspy.data import BadRow, Task
from persona_dspy.errors import InputError
from persona_dspy.judge.asking import ask_all
from persona_dspy.judge.options import EvaluationOptions, checked_setting, with_retrievers
from persona_dspy.judge.people import Source, named_users, read_people
from persona_dspy.judge.results import Judged, Results, commit
from persona_dspy.judge.table import Table, columns, standings
from persona_dspy.judge.variant import REFERENCES, SYSTEMS, variants
from persona_dspy.lm import Budget, Ledger

if TYPE_CHECKING:
    from persona_dspy.tracking import Tracker

__all__ = ["Evaluation", "Experiment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came out of an evaluation.

    Args:
        task: by which all answers are scored.
        table: systems with their scores, intervals, tests and costs; ``table.to_pandas()``, ``.to_latex()``, ...
        answers: every answer and what each preparation cost, as written to ``folder/answers.jsonl``.
        protocol: what decided the answers: data hash, model, settings.
        folder: where answers, personas and tables are.
        complete: every system answered every query; else ``stopped`` says why not, and the same call goes on.
    """

    task: Task
    table: Table
    answers: tuple[Judged, ...]
    protocol: Mapping[str, Any]
    folder: Path
    complete: bool
    stopped: str = ""

    def to_pandas(self) -> Any:
        """The answers as a ``pandas.DataFrame``, a row an answer or preparation."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.answers])

    def to_dataset(self) -> Any:
        """The answers as a Hugging Face ``Dataset``, a row an answer or preparation."""
        from datasets import Dataset

        return Dataset.from_pandas(self.to_pandas(), preserve_index=False)

    def plot(self) -> Any:
        """Scores with their intervals as a ``plotly`` Figure; needs the extra ``persona-dspy[report]``."""
        from persona_dspy.report import systems_figure

        rows = [(s.system, s.score.value, s.score.low, s.score.high) for s in self.table]
        return systems_figure(rows, self.task.metrics[0])

    def asked_systems(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` that have answers; references without an LM only where no other has any."""
        answered = {r.system for r in self.answers if r.kind == "answer"}
        found = [name for name in names if name in answered]
        return [name for name in found if name.partition("@")[0] not in REFERENCES] or found

    def predictions(self, system: str) -> dict[str, Any]:
        """One system's answers in the benchmark's own form: ``{"task": ..., "golds": [{"id", "output"}]}``.

        Raises:
            InputError: the system has no answers, or two users have a query of the same id.
        """
        rows = [r for r in self.answers if r.kind == "answer" and r.system == system]
        if not rows:
            those = sorted({r.system for r in self.answers})
            raise InputError(f"system {system!r}: no answers; expected one of {those}")
        _check_unique([r.query_id for r in rows])
        name = self.task.name.replace("longlamp-", "LongLaMP_").replace("lamp-", "LaMP_")
        name = name.removesuffix("m").removesuffix("n")  # both halves of LaMP_2
        return {"task": name, "golds": [{"id": r.query_id, "output": r.answer} for r in rows]}

    def official(self) -> dict[str, dict[str, float]]:
        """System -> the metrics as the benchmark's own script has them (``Task.official``), over the scored answers.

        Raises:
            InputError: a metric of one's own, or a figure that cannot be had here.
        """
        rows = [r for r in self.answers if r.kind == "answer" and r.gold]
        names = dict.fromkeys(r.system for r in rows)
        return {
            name: self.task.official(*zip(*((r.gold, r.answer) for r in rows if r.system == name), strict=True))
            for name in names
        }

    def __str__(self) -> str:
        return self.table.to_markdown()

    def _repr_html_(self) -> str:
        return self.table.to_html() + ("" if self.complete else f"<p>not complete: {self.stopped}</p>")


class Experiment:
    """An evaluation before it is run: everything is read and checked, nothing is paid. See ``evaluate``.

    Attributes:
        people: the users with their held-out queries.
        task: by which all answers are scored.
        chosen: the systems, in the order of the table.
        bad_rows: what was passed over in the data, where that was allowed.
        protocol_options: the options as the protocol has them.
        command: what the run is of, for a tracker.
    """

    command = "evaluate"

    def __init__(  # noqa: PLR0913 - keyword-only, each with a default
        self,
        source: Source,
        *,
        task: Task | str | None = None,
        systems: Sequence[str] = SYSTEMS,
        lm: str | dspy.LM | None = None,
        users: int | str | Sequence[str] | None = None,
        queries: int | None = None,
        out: str | Path = "evaluation",
        skip_bad_rows: bool = False,
        unanswered: bool = False,
        columns: Mapping[str, str] | None = None,
        **options: Unpack[EvaluationOptions],
    ) -> None:
        chosen = variants(
            systems,
            references=options.get("references", True),
            ablations=options.get("ablations", ()),
            scale=options.get("scale", ()),
            cold=options.get("cold", ()),
        )
        self.setting, recorded = checked_setting(options, lm or dspy.settings.get("lm"), chosen)
        self.protocol_options: Mapping[str, Any] = recorded
        self.chosen = list(dict.fromkeys(v.without(recorded) for v in chosen))
        self.setting = with_retrievers(self.setting, self.chosen)
        self.bad_rows: list[BadRow] = []
        passed_over = self.bad_rows if skip_bad_rows else None
        text = task or getattr(self.setting.program, "fields", None) or _fields(self.setting.program)
        if isinstance(text, str) and "," in text.partition("->")[2].partition(":")[0]:
            raise InputError(
                f"program {text!r}: an evaluation compares answers of one field; expected a program of one, such as "
                f"personalize(program, fields=({text.partition(' ')[0]!r}, '...'))"
            )
        self.task, self.people, data = read_people(source, text, users, queries, unanswered, passed_over, columns)
        if self.setting.metric is not None:
            self.task = replace(self.task, metrics=(recorded["metric"].rpartition(":")[2], *self.task.metrics))
        self.lm = lm
        self.out, self.users, self.unanswered = Path(out), users, unanswered
        self.source = str(source) if isinstance(source, str | Path) else "in memory"
        self._fixed = {"data": data, **recorded, "queries": queries}

    @property
    def asks_lm(self) -> bool:
        """Whether any system needs an LM."""
        return any(v.system not in REFERENCES for v in self.chosen)

    def check_predictable(self) -> None:
        """Raise an ``InputError`` where the answers have no place in the benchmark's form; see ``predictions``."""
        _check_unique([query.id for person in self.people for query in person.queries])

    def model(self) -> Any:
        """The LM that is asked: as given, by name at temperature 0, or the configured one; None where none is needed.

        Raises:
            InputError: none was given and none is configured.
        """
        from persona_dspy.lm import steady_lm

        if not self.asks_lm:
            return None
        if isinstance(self.lm, str):
            self.lm = steady_lm(self.lm, seed=self.setting.seed)
        lm: Any = self.lm or dspy.settings.get("lm")
        if lm is None:
            raise InputError('evaluate(lm=None): expected an LM, such as lm="openai/gpt-4o-mini" or lm="local"')
        return lm

    def protocol(self) -> dict[str, Any]:
        """What the answers are made under; the same for every run into one folder."""
        model: Any = self.model()
        return {
            "task": self.task.name,
            "model": getattr(model, "model", None) or (self.lm if isinstance(self.lm, str) else None),
            "temperature": getattr(model, "kwargs", {}).get("temperature"),
            **self._fixed,
        }

    def results(self, workers: int | None = None) -> Results:
        """The folder's rows; made where it is missing, refused where it holds answers of another protocol."""
        names = named_users(self.users)
        users = self.users if names is None else list(names)  # names only in a list: forgetting a user looks there
        run = {"commit": commit(), "systems": [v.name for v in self.chosen], "users": users, "workers": workers}
        return Results(self.out, self.protocol(), run)

    def run(
        self,
        *,
        workers: int | None = None,
        budget: Budget | None = None,
        ledger: Ledger | None = None,
        tracker: Tracker | None = None,
        on_start: Callable[[Results], None] | None = None,
        on_row: Callable[[Judged], None] | None = None,
    ) -> Evaluation:
        """Ask what is not answered yet, and write ``table.csv`` and ``table.md`` into the folder.

        Args:
            workers: calls in flight; by default 1 for a model in this process, where two gain nothing, else 4.
            budget: bounds of this run; the same call goes on where it ended.
            ledger: counts the calls instead of one made for ``budget``, as where several experiments share one.
            tracker: gets the protocol as parameters and the table as metrics.
            on_start: told of the rows that are there; ``on_row``: of each new one.

        Raises:
            ModelError: the LM does not answer; nothing was paid.
            BudgetExceeded, InputError: a budget that cannot be kept, or a folder with other settings.
        """
        with _own_folder(self.out):
            return self._run(workers, budget, ledger, tracker, on_start, on_row)

    def _run(
        self,
        workers: int | None,
        budget: Budget | None,
        ledger: Ledger | None,
        tracker: Tracker | None,
        on_start: Callable[[Results], None] | None,
        on_row: Callable[[Judged], None] | None,
    ) -> Evaluation:
        from persona_dspy.lm import TerseJSON, check_lm, check_price
        from persona_dspy.tracking import NullTracker

        model, ledger = self.model(), ledger or Ledger(budget=budget)
        if model is not None:
            check_price(model, ledger.usd_bound)
        workers = workers or _workers(model)
        results = self.results(workers)
        if model is not None and self.left(results):
            check_lm(model)
        if on_start:
            on_start(results)
        adapter = TerseJSON() if getattr(model, "supports_response_schema", False) else dspy.ChatAdapter()
        tracker = tracker or NullTracker()
        run = results.protocol["runs"][-1]
        tracker.begin(
            {
                "command": self.command,
                **self.protocol(),
                "users": len(self.people),
                "systems": run["systems"],
                "commit": run["commit"],
                "source": self.source,
            }
        )
        ended: Any = "KILLED"
        complete = False
        try:
            with _own_cache(self.out), dspy.context(lm=model, adapter=adapter):
                complete = ask_all(
                    self.people, self.chosen, self.setting, results, workers=workers, ledger=ledger, on_row=on_row
                )
            ended = "FINISHED"
        except Exception:
            ended = "FAILED"
            raise
        finally:
            evaluation = self.evaluation(results, complete, ledger.exceeded)
            write_text(self.out / "table.csv", evaluation.table.to_csv())
            write_text(self.out / "table.md", evaluation.table.to_markdown())
            tracker.systems([columns(standing, self.task) for standing in evaluation.table])
            tracker.end(_metrics(evaluation.table), ended)
        return evaluation

    def left(self, results: Results) -> int:
        """How many answers are missing."""
        pairs = [(p, v) for p in self.people for v in self.chosen]
        return sum(len({q.id for q in p.queries} - results.answered(v.name, p.user_id)) for p, v in pairs)

    def evaluation(self, results: Results, complete: bool, stopped: str = "") -> Evaluation:
        """The rows of this experiment's users, queries and systems, scored."""
        ids = {(p.user_id, q.id): n for n, (p, q) in enumerate((p, q) for p in self.people for q in p.queries)}
        names = [v.name for v in self.chosen]
        rows = [r for r in results.rows if r.system in names]
        rows = [r for r in rows if r.kind != "answer" or (r.user_id, r.query_id) in ids]
        rows.sort(key=lambda r: ids.get((r.user_id, r.query_id), -1))  # the data's order, whoever was done first
        scored = sum(q.gold is not None for p in self.people for q in p.queries)
        found = standings(rows, self.task, names, expected=scored, seed=self.setting.seed)
        return Evaluation(
            task=self.task,
            table=Table(tuple(found), self.task),
            answers=tuple(rows),
            protocol=results.protocol,
            folder=self.out,
            complete=complete,
            stopped="" if complete else f"the budget is spent ({stopped})" if stopped else "interrupted",
        )


def _check_unique(ids: Sequence[str]) -> None:
    repeated = [query for query, times in Counter(ids).items() if times > 1]
    if repeated:
        raise InputError(f"query {repeated[0]!r}: asked of two users; expected ids that are unique within the file")


def _fields(program: Any) -> str | None:
    """A program's own fields as a task; None where it is not one yet."""
    if not isinstance(program, dspy.Module):
        return None
    named = program if isinstance(program, PersonalProgram) else personalize(program)
    return f"{named.query_field} -> {named.response_field}"


def _workers(lm: Any) -> int:
    """Calls in flight: beside another one, an answer of a model in this process can flip where two are nearly equal."""
    from persona_dspy.lm import LlamaEngine

    return 1 if isinstance(getattr(lm, "engine", None), LlamaEngine) else 4


@contextmanager
def _own_folder(out: Path) -> Generator[None]:
    """Nobody else evaluates into the folder meanwhile, or forgets a user there, who would be written again.

    Raises:
        InputError: another process does.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = lock_file(out / ".evaluation.lock")
    except OSError as failure:
        raise InputError(f"out {str(out)!r}: {failure.strerror}; expected a folder to write to") from failure
    if lock is None:
        raise InputError(
            f"out {str(out)!r}: another process evaluates into this folder; wait for it, or give another --out"
        )
    with lock:
        yield


@contextmanager
def _own_cache(out: Path) -> Generator[None]:
    """LM answers are cached in the evaluation's own folder, so that an interrupted alignment is not paid twice and
    that removing the folder removes every user's text; DSPy's cache is as before afterwards."""
    before: Any = dspy.cache  # type: ignore[attr-defined]  # made at import, missing in its stub
    try:
        dspy.configure_cache(disk_cache_dir=str(out / "lm-cache"), enable_memory_cache=False)
        yield
    finally:
        dspy.cache = before  # type: ignore[attr-defined]


def _metrics(table: Table) -> dict[str, float]:
    return {
        f"{row['system'].replace('@', '.').replace(',', '.').replace('=', '-')}.{name}": float(value)
        for row in table.to_pandas().to_dict("records")
        for name, value in row.items()
        if isinstance(value, int | float) and value == value  # not the nan that stands for an unknown
    }
