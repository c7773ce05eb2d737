"""Rows of answers to a table of systems."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_dspy.core import HIGHER_IS_BETTER, Interval, Paired, mean_interval, paired_difference
from persona_dspy.data import Task
from persona_dspy.judge.results import Judged
from persona_dspy.judge.variant import Variant

__all__ = ["Standing", "as_csv", "as_markdown", "best_baseline", "cells", "columns", "standings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One system over all its answers.

    ``score``: the task's first metric with a 95% bootstrap interval over users; ``others``: its further metrics.
    ``against``: paired difference to the best baseline on the queries both answered, above 0 = better; None for that
    baseline itself. Costs are means: serving (``calls``, ``tokens``, ``usd`` a user; ``seconds`` a query) and, apart
    from it, preparation (alignment, profile) a user.
    """

    system: str
    users: int
    queries: int
    expected: int
    score: Interval
    others: Mapping[str, float]
    against: Paired | None
    unparsed: int
    calls: float
    tokens: float
    seconds: float
    usd: float | None
    prepare_calls: float
    prepare_tokens: float
    prepare_seconds: float
    prepare_usd: float | None


def standings(
    rows: Sequence[Judged], task: Task, systems: Sequence[str], *, expected: int = 0, seed: int = 0
) -> list[Standing]:
    """One standing for each of ``systems`` that has answers, in their order.

    Args:
        expected: queries each system should have; 0 = as many as it has.
        seed: of the bootstrap.
    """
    answers, work = defaultdict[str, list[Judged]](list), defaultdict[str, list[Judged]](list)
    for row in rows:
        (answers if row.kind == "answer" else work)[row.system].append(row)
    values = {name: _values(answers[name], task) for name in systems if answers[name]}
    means = {name: list(v.values()) for name, v in values.items()}
    table: list[Standing] = []
    for name, scored in values.items():
        system_rows, by_user = answers[name], defaultdict[str, list[float]](list)
        for (user, _), value in scored.items():
            by_user[user].append(value)
        metrics = task.evaluate([r.gold for r in system_rows], [r.answer for r in system_rows])
        against = None
        best = best_baseline(means, task, history=Variant.parse(name).history)
        if best is not None and name != best:
            against = paired_difference(scored, values[best], higher_is_better=_higher(task), seed=seed)
        users = len(by_user)
        prepared = [r for r in work[name] if r.user_id in by_user]
        table.append(
            Standing(
                system=name,
                users=users,
                queries=len(system_rows),
                expected=expected or len(system_rows),
                score=mean_interval(by_user, seed=seed),
                others={key: metrics[key] for key in task.metrics[1:]},
                against=against,
                unparsed=sum(not r.parsed for r in system_rows),
                seconds=sum(r.seconds for r in system_rows) / len(system_rows),
                calls=sum(r.calls for r in system_rows) / users,
                tokens=sum(r.tokens for r in system_rows) / users,
                usd=_usd(system_rows, users),
                prepare_calls=sum(r.calls for r in prepared) / users,
                prepare_tokens=sum(r.tokens for r in prepared) / users,
                prepare_seconds=sum(r.seconds for r in prepared) / users,
                prepare_usd=_usd(prepared, users),
            )
        )
    return table


def best_baseline(values: Mapping[str, Sequence[float]], task: Task, *, history: int | None = None) -> str | None:
    """The LM baseline with the best mean; reference rows and variants of a system do not count. With ``history``:
    among those whose users' histories were cut to that length too."""
    means: dict[str, float] = {}
    for name, scores in values.items():
        variant = Variant.parse(name)
        if variant.is_baseline and variant == Variant(system=variant.system, history=history) and scores:
            means[name] = sum(scores) / len(scores)
    if not means:
        return None
    return (max if _higher(task) else min)(means, key=lambda name: means[name])


def _higher(task: Task) -> bool:
    return HIGHER_IS_BETTER[task.metrics[0]]


def _values(rows: Sequence[Judged], task: Task) -> dict[tuple[str, str], float]:
    headline = task.metrics[0]
    return {(r.user_id, r.query_id): task.evaluate([r.gold], [r.answer])[headline] for r in rows}


def _usd(rows: Sequence[Judged], users: int) -> float | None:
    prices = [r.usd for r in rows if r.usd is not None]
    return sum(prices) / users if prices else None


def columns(standing: Standing, task: Task) -> dict[str, Any]:
    """A standing as one flat row, numbers unrounded: what CSV and MLflow get."""
    s, against = standing, standing.against
    row: dict[str, Any] = {"system": s.system, "users": s.users, "queries": s.queries, "expected": s.expected}
    row |= {task.metrics[0]: s.score.value, "low": s.score.low, "high": s.score.high, **s.others}
    row |= {
        "difference": against.difference.value if against else None,
        "difference_low": against.difference.low if against else None,
        "difference_high": against.difference.high if against else None,
        "users_won": against.won if against else None,
        "users_lost": against.lost if against else None,
        "users_tied": against.tied if against else None,
        "unparsed": s.unparsed,
        "calls_per_user": s.calls,
        "tokens_per_user": s.tokens,
        "seconds_per_query": s.seconds,
        "usd_per_user": s.usd,
        "prepare_calls_per_user": s.prepare_calls,
        "prepare_tokens_per_user": s.prepare_tokens,
        "prepare_seconds_per_user": s.prepare_seconds,
        "prepare_usd_per_user": s.prepare_usd,
    }
    return row


def as_csv(found: Sequence[Standing], task: Task) -> str:
    """One row a system, column ``system`` first; empty where a value is not known."""
    if not found:
        return "system\n"
    rows = [columns(s, task) for s in found]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def cells(standing: Standing, task: Task) -> dict[str, str]:
    """A standing as short texts for people, by column title."""
    s, against = standing, standing.against
    arrow = "↑" if _higher(task) else "↓"
    texts = {"system": s.system, "users": str(s.users)}
    texts["queries"] = str(s.queries) if s.queries == s.expected else f"{s.queries} of {s.expected}"
    texts[f"{task.metrics[0]} {arrow} [95%]"] = f"{s.score.value:.3f} [{s.score.low:.3f}, {s.score.high:.3f}]"
    for name, value in s.others.items():
        texts[f"{name} {'↑' if HIGHER_IS_BETTER[name] else '↓'}"] = f"{value:.3f}"
    texts["better than best baseline by"] = (
        f"{against.difference.value:+.3f} [{against.difference.low:+.3f}, {against.difference.high:+.3f}]"
        if against
        else "-"
    )
    texts["users won/lost"] = f"{against.won}/{against.lost}" if against else "-"
    texts["unparsed"] = str(s.unparsed)
    texts["calls/user"] = f"{s.calls:.1f}"
    texts["tokens/user"] = f"{s.tokens:,.0f}"
    texts["s/query"] = f"{s.seconds:.2f}"
    if s.usd is not None:
        texts["usd/user"] = f"{s.usd:.4f}"
    texts["preparation: calls, tokens, s/user"] = (
        f"{s.prepare_calls:.1f}, {s.prepare_tokens:,.0f}, {s.prepare_seconds:.1f}" if s.prepare_calls else "-"
    )
    return texts


def as_markdown(found: Sequence[Standing], task: Task) -> str:
    """The table as Markdown."""
    rows = [cells(s, task) for s in found]
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(row.get(title, "-") for title in titles) + " |" for row in rows]
    return "\n".join(lines) + "\n"
