"""What a terminal or a log shows of a fleet.

Rows of a million users are never held: the first ``ROWS`` are shown, all are counted.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Literal, Self

from persona_dspy.cli.output import print_json, terminal
from persona_dspy.core import plural, printable
from persona_dspy.fleet import UserResult
from persona_dspy.lm import Ledger

__all__ = ["Progress", "View"]

Progress = Literal["bar", "lines", "quiet"]
ROWS = 40
_EVERY = 5.0  # seconds between two lines
_WINDOW = 60.0  # seconds over which the rate is taken


class _Rate:
    """Calls and tokens a second over the last minute; the time before the first call does not count."""

    def __init__(self) -> None:
        self._points = deque([(time.monotonic(), 0, 0)])
        self._lock = threading.Lock()

    def of(self, now: float, calls: int, tokens: int) -> tuple[float, float]:
        with self._lock:
            if not calls:
                self._points = deque([(now, 0, 0)])
                return 0.0, 0.0
            self._points.append((now, calls, tokens))
            while len(self._points) > 2 and now - self._points[1][0] > _WINDOW:
                self._points.popleft()
            then, calls_then, tokens_then = self._points[0]
            seconds = max(now - then, 1e-3)
            return (calls - calls_then) / seconds, (tokens - tokens_then) / seconds


class View:
    """A fleet's progress and outcome.

    Args:
        total: users to come, finished ones of earlier runs not counted.
        ledger: the fleet's account.
        mode: ``bar`` on a terminal, ``lines`` = JSON lines on standard error, ``quiet`` = the final table only.
        as_json: standard output gets a JSON line for each user and a last one for all, instead of the table.
        unpriced: names of the models that are asked and whose price is not known.
    """

    def __init__(
        self,
        total: int,
        ledger: Ledger,
        mode: Progress = "bar",
        *,
        as_json: bool = False,
        unpriced: tuple[str, ...] = (),
    ) -> None:
        self.total, self.ledger, self.mode = total, ledger, mode
        self.unpriced = unpriced
        self.as_json, self.console = as_json, terminal(stderr=as_json)
        self.rows: list[tuple[str, ...]] = []
        self.failures: list[str] = []
        self.done = self.failed = self.stopped = self.better = self.accepted = self.skipped = self.made = 0
        self.calls = self.tokens = self.judged = self.worse = self.unread = self.unheard = self.left_out = 0
        self.by_pairs = False
        self.expected = 20.0  # LM calls a user, until users who are finished say better
        self._began, self._told = time.monotonic(), 0.0
        self._rate = _Rate()
        self._lock = threading.Lock()
        self._wide = self.console.width >= 110
        self._bar = self._progress()

    def _progress(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=40 if self._wide else 8),
            MofNCompleteColumn(),
            TextColumn("users" if self._wide else ""),
        )
        more = (TextColumn("{task.fields[rates]}"), TimeElapsedColumn())
        bar = Progress(*columns, *more, console=self.console, disable=self.mode != "bar")
        self._task = bar.add_task("compiling", total=self.total, rates="")
        return bar

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def numbers(self) -> dict[str, Any]:
        """Counts and rates so far, JSON-safe. ``usd`` is None where no price is known; what calls to the models in
        ``unpriced`` cost is not in it."""
        usage, now = self.ledger.usage, time.monotonic()
        seconds = max(now - self._began, 1e-3)
        calls_per_second, tokens_per_second = self._rate.of(now, usage.calls, usage.input_tokens + usage.output_tokens)
        return {
            "users": self.total,
            "done": self.done,
            "failed": self.failed,
            "stopped": self.stopped,
            "skipped": self.skipped,
            "calls": usage.calls,
            "tokens": usage.tokens,
            "usd": usage.usd,
            "unpriced": list(self.unpriced),
            "calls_per_second": round(calls_per_second, 2),
            "tokens_per_second": round(tokens_per_second, 1),
            "seconds": round(seconds, 1),
            "eta_seconds": self._seconds_left(usage.calls, calls_per_second),
        }

    def _seconds_left(self, calls: int, calls_per_second: float) -> int | None:
        """By LM calls, not by users, of whom none is finished in the first minutes; None before the first call."""
        finished = self.done + self.failed + self.stopped
        users = self.total - self.skipped
        if finished >= users:
            return 0
        if not calls_per_second:
            return None
        each = (self.expected + self.calls) / (1 + self.made)  # what was expected weighs as much as one user
        under_way = calls - self.calls
        left = max(each * (users - finished) - under_way, (users - finished) * 1.0)
        return round(left / calls_per_second)

    def event(self, event: dict[str, Any]) -> None:
        """An optimizer's step, from any thread."""
        name = printable(f"{event['user_id'][: 24 if self._wide else 8]}: {event['event']}")
        with self._lock:
            if self.mode == "bar":
                self._bar.update(self._task, description=name, rates=self._rates())
            elif self.mode == "lines" and time.monotonic() - self._told > _EVERY:
                self._say({"event": "progress", **self.numbers()})

    def _rates(self) -> str:
        n = self.numbers()
        cost = f", ${n['usd']:.2f}{'+' if self.unpriced else ''}" if n["usd"] is not None else ""
        bad = f", {self.failed} failed" if self.failed else ""
        left = "" if n["eta_seconds"] is None else f", about {_duration(n['eta_seconds'])} left"
        tokens = f", {n['tokens_per_second']:,.0f} tokens/s" if self._wide else ""
        return f"{n['calls_per_second']:.1f} calls/s{tokens}{cost}{bad}{left}"

    def _say(self, line: dict[str, Any]) -> None:
        self._told = time.monotonic()
        sys.stderr.write(printable(json.dumps(line, ensure_ascii=False)) + "\n")
        sys.stderr.flush()

    def _spent(self) -> str:
        """What this run cost, where that is known; and what of it is not. Empty for models that cost nothing."""
        usage, names = self.ledger.usage, " and ".join(map(repr, self.unpriced))
        known = f"{usage.usd:.2f} US dollars" if usage.usd is not None else ""
        unknown = f"the price of {names} is not known, so its calls are not counted in dollars" if names else ""
        money = ", and more: ".join(part for part in (known, unknown) if part)
        return (
            f"spent in {plural(usage.calls, 'call')}, {plural(usage.tokens, 'token')}: {money}"
            if money and usage.calls
            else ""
        )

    def skip(self) -> None:
        """A user was finished by an earlier run."""
        self.skipped += 1
        self._bar.update(self._task, total=self.total - self.skipped)

    def finished(self, result: UserResult) -> None:
        """Count a result and keep it for the table while there is room."""
        self._bar.advance(self._task)
        record = result.alignment
        self.stopped += result.stopped
        if record is not None:
            self.made += 1
            self.done += not result.stopped
            self.calls += record.total.calls
            self.tokens += record.total.input_tokens + record.total.output_tokens
            self.accepted += record.accepted
            gain = record.scores.gain
            self.judged += gain is not None
            self.better += gain is not None and gain > 0
            self.worse += gain is not None and gain < 0
            self.unread += record.unread
            self.by_pairs = self.by_pairs or "judge" in record.usage
            self.left_out += record.left_out
            if len(self.rows) < ROWS:
                self.rows.append(_row(result))
        elif not result.stopped:
            self.failed += 1
            if self.mode == "bar":
                self._bar.console.print(f"failed {result.user_id!r}: {result.error}", highlight=False)
        self.unheard += result.nothing_read
        if (result.document is None or result.nothing_read) and len(self.failures) < ROWS:
            self.failures.append(f"{result.user_id!r}: {result.error or _unheard(result)}")
        state = "stopped" if result.stopped else "failed" if record is None else "done"
        one = {"event": "user", "user_id": result.user_id, "state": state, "seconds": round(result.seconds, 2)}
        one |= {"error": result.error} if result.error else {}
        if self.mode == "lines":
            self._say(one)
        if self.as_json:
            print_json(one | _outcome(result))

    def close(self, out: Path, where: str) -> None:
        """The table, the failures, and where to look; or the last JSON line."""
        from rich.table import Table

        if self.as_json:
            counts = {"better": self.better, "same": self.judged - self.better - self.worse, "worse": self.worse}
            counts |= {"accepted": self.accepted, "unread": self.unread, "nothing_read": self.unheard}
            counts |= {"out": str(out), "runs": where}
            print_json({"event": "end", **self.numbers(), **counts})
            return

        table = Table(title="Held-out score, in [0, 1], higher is better")
        for name in ("user", "without persona", "with persona", "accepted edits", "LM calls", "tokens", "seconds"):
            table.add_column(name, justify="left" if name == "user" else "right", no_wrap=name == "user", max_width=32)
        for row in self.rows:
            table.add_row(*row)
        self.console.print(table)
        if self.made > len(self.rows):
            self.console.print(f"and {plural(self.made - len(self.rows), 'more user')}")
        if self.by_pairs:
            self.console.print(
                "texts are compared by pairs with those given without a persona: 0.50 is as good as these"
            )
        if self.left_out:
            self.console.print(
                f"not learned from, since the LM is too small: {plural(self.left_out, 'draft')} that users only "
                "commented on, rated or gave a thumb; give answers or edits, or a larger --reflection-lm",
                soft_wrap=True,
            )
        if self.unread:
            self.console.print(
                f"{plural(self.unread, 'answer')} of the reflecting LM could not be read; the personas say which"
            )
        if self.skipped:
            nothing = "; nothing was left to do" if self.skipped >= self.total else ""
            self.console.print(f"{plural(self.skipped, 'user')} finished before, from the same interactions{nothing}")
        for failure in self.failures:
            self.console.print(f"failed: {failure}", highlight=False)
        if self.stopped:
            self.console.print(f"{plural(self.stopped, 'user')} stopped; to go on, add --resume (and raise the budget)")
        if where:
            self.console.print(f"see the runs: {where}", highlight=False, soft_wrap=True)
        if spent := self._spent():
            self.console.print(spent, highlight=False, soft_wrap=True)
        same, rest = self.judged - self.better - self.worse, self.made - self.judged
        told = f"{plural(self.better, 'user')} better, {same} same, {self.worse} worse than without a persona"
        told += f", {rest} with too few interactions to tell" if rest else ""
        if self.unheard:
            told += f"; {plural(self.unheard, 'user')} learned only what code counts: "
            told += "no answer of the reflecting LM could be read"
        self.console.print(f"{told}; personas are in {out}/", soft_wrap=True)


def _duration(seconds: float) -> str:
    """
    Example:
        >>> _duration(42), _duration(600), _duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _unheard(result: UserResult) -> str:
    record = result.alignment
    assert record is not None
    return (
        f"{plural(record.unread, 'answer')} of the reflecting LM could not be read: {record.first_unread}; "
        "only what code counts was learned: expected answers in the form that is asked for; is it the right "
        "--reflection-lm (or --lm)? With another one --resume goes on, with the same --fresh"
    )


def _outcome(result: UserResult) -> dict[str, Any]:
    from persona_dspy.core import persona_file_name

    if (record := result.alignment) is None:
        return {}
    scores = {"without_persona": record.scores.without_persona, "with_persona": record.scores.final}
    tokens = record.total.input_tokens + record.total.output_tokens
    counted = {"accepted": record.accepted, "calls": record.total.calls, "tokens": tokens}
    counted |= {"nothing_read": True} if result.nothing_read else {}
    return {**scores, **counted, "file": persona_file_name(result.user_id)}


def _row(result: UserResult) -> tuple[str, ...]:
    record = result.alignment
    assert record is not None
    scores = [f"{s:.2f}" if s is not None else "-" for s in (record.scores.without_persona, record.scores.final)]
    tokens = record.total.input_tokens + record.total.output_tokens
    counted = (str(record.accepted), str(record.total.calls), f"{tokens:,}", f"{result.seconds:.1f}")
    return (result.user_id, *scores, *counted)
