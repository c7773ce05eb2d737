"""Rows of answers to a table of systems."""

from __future__ import annotations

import csv
import html
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, overload

from persona_dspy.core import HIGHER_IS_BETTER, Interval, mean_interval
from persona_dspy.data import Task
from persona_dspy.judge.results import Judged
from persona_dspy.judge.significance import Comparison, compare, holm, power, smallest_difference
from persona_dspy.judge.variant import Variant

__all__ = [
    "Standing",
    "Table",
    "best_baseline",
    "cells",
    "columns",
    "compare_parts",
    "html_table",
    "latex_table",
    "standings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One system over all its answers.

    ``score``: the task's first metric with a 95% bootstrap interval over users; ``others``: its further metrics.
    ``against``: how it compares to the best baseline on the queries both answered, above 0 = better, p adjusted for all
    systems of the table; None for that baseline itself. Costs are means: serving (``calls``,
    ``tokens``, ``usd`` a user; ``seconds`` a query) and, apart from it, preparation (alignment, profile) a user.
    """

    system: str
    users: int
    queries: int
    expected: int
    score: Interval
    others: Mapping[str, float]
    against: Comparison | None
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
        if row.kind != "answer":
            work[row.system].append(row)
        elif row.gold:  # a withheld one cannot be scored
            answers[row.system].append(row)
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
            against = compare(name, best, values, higher_is_better=_higher(task), seed=seed)
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
    compared = [place for place, standing in enumerate(table) if standing.against]
    for place, comparison in zip(compared, holm([c for s in table if (c := s.against)]), strict=True):
        table[place] = replace(table[place], against=comparison)
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


def compare_parts(
    rows: Sequence[Judged], task: Task, parts: Mapping[str, tuple[str, str]], *, seed: int = 0
) -> dict[str, Comparison]:
    """What a system gains by each of its parts: it against itself without that part, on the queries both answered.

    Args:
        parts: name -> (the whole system, the system without the part); pairs that have no answers are left out.

    Returns:
        Name -> comparison, above 0 = better with the part, p adjusted for all of them.
    """
    answers = defaultdict[str, list[Judged]](list)
    for row in rows:
        if row.kind == "answer" and row.gold:
            answers[row.system].append(row)
    wanted = {name for pair in parts.values() for name in pair if answers[name]}
    values = {name: _values(answers[name], task) for name in wanted}
    found = {
        name: comparison
        for name, (whole, without) in parts.items()
        if whole in values and without in values
        if (comparison := compare(whole, without, values, higher_is_better=_higher(task), seed=seed)) is not None
    }
    return dict(zip(found, holm(list(found.values())), strict=True))


def _higher(task: Task) -> bool:
    return HIGHER_IS_BETTER.get(task.metrics[0], True)  # a metric of one's own is a score


def _values(rows: Sequence[Judged], task: Task) -> dict[tuple[str, str], float]:
    headline = task.metrics[0]
    return {
        (r.user_id, r.query_id): task.evaluate([r.gold], [r.answer])[headline] if r.score is None else r.score
        for r in rows
    }


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
        "users_won": against.paired.won if against else None,
        "users_lost": against.paired.lost if against else None,
        "users_tied": against.paired.tied if against else None,
        "p": against.p if against else None,
        "p_adjusted": against.p_adjusted if against else None,
        "effect": against.effect if against else None,
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


def cells(standing: Standing, task: Task) -> dict[str, str]:
    """A standing as short texts for people, by column title."""
    s, against = standing, standing.against
    arrow = "↑" if _higher(task) else "↓"
    texts = {"system": s.system, "users": str(s.users)}
    texts["queries"] = str(s.queries) if s.queries == s.expected else f"{s.queries} of {s.expected}"
    texts[f"{task.metrics[0]} {arrow} [95%]"] = f"{s.score.value:.3f} [{s.score.low:.3f}, {s.score.high:.3f}]"
    for name, value in s.others.items():
        texts[f"{name} {'↑' if HIGHER_IS_BETTER.get(name, True) else '↓'}"] = f"{value:.3f}"
    texts["better than best baseline by"] = (
        f"{against.difference.value:+.3f} [{against.difference.low:+.3f}, {against.difference.high:+.3f}]"
        if against
        else "-"
    )
    texts["p (Holm)"] = f"{against.p_adjusted:.3f}" if against else "-"
    texts["effect"] = f"{against.effect:+.2f}" if against and against.effect is not None else "-"
    texts["users won/lost"] = f"{against.paired.won}/{against.paired.lost}" if against else "-"
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


@dataclass(frozen=True, slots=True)
class Table(Sequence[Standing]):
    """The standings of an evaluation, in the order asked for, and their forms.

    ``print(table)`` and ``to_markdown()`` give Markdown, a notebook shows HTML; ``to_csv()`` and ``to_pandas()`` hold
    numbers unrounded, a row a system; ``to_latex()`` is a booktabs table.

    Example:
        >>> print(Table((), Task(name="t", title="t", query_field="q", response_field="r", instructions="",
        ...                      metrics=("accuracy",))).to_csv())
        system
        <BLANKLINE>
    """

    standings: tuple[Standing, ...]
    task: Task

    def __len__(self) -> int:
        return len(self.standings)

    @overload
    def __getitem__(self, index: int) -> Standing: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Standing]: ...
    def __getitem__(self, index: int | slice) -> Standing | Sequence[Standing]:
        return self.standings[index]

    def __iter__(self) -> Iterator[Standing]:
        return iter(self.standings)

    def system(self, name: str) -> Standing:
        """The standing of one system.

        Raises:
            KeyError: it is not in the table; the message lists those that are.
        """
        for standing in self.standings:
            if standing.system == name:
                return standing
        raise KeyError(f"{name!r}: the table has {', '.join(s.system for s in self.standings) or 'no system'}")

    @property
    def notes(self) -> list[str]:
        """What a reader has to know of the figures: the tests, how many comparisons, and what so few users can show."""
        comparisons = [c for s in self.standings if (c := s.against)]
        lines = ["Intervals are 95% bootstrap intervals over users."] if self.standings else []
        if comparisons:
            lines.append(
                "p: paired permutation test over users against the best baseline, by Holm's method over "
                f"{len(comparisons)} comparisons; effect: Cohen's d over users. The best baseline was chosen on these "
                "answers, so it is flattered a little."
            )
        spreads = [c.spread for c in comparisons if c.spread]
        if spreads:
            spread, users = median(spreads), int(median(c.users for c in comparisons))
            if users >= 5:  # fewer show nothing whatever the difference: 2 / 2**4 is over .05
                need = smallest_difference(spread, users)
                lines.append(
                    f"With {users} users a true difference of {need / 2:.3f} in {self.task.metrics[0]} is seen "
                    f"{power(need / 2, spread, users):.0%} of the time; 80% needs {need:.3f}."
                )
        return lines

    def to_csv(self) -> str:
        """One row a system, column ``system`` first; empty where a value is not known."""
        if not self.standings:
            return "system\n"
        rows = [columns(s, self.task) for s in self.standings]
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, a row a system; the columns of ``to_csv``."""
        import pandas

        return pandas.DataFrame([columns(s, self.task) for s in self.standings])

    def to_markdown(self) -> str:
        """The table for people, its notes below."""
        titles, rows = self._texts()
        lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def to_latex(self) -> str:
        """The table of scores as LaTeX; needs ``\\usepackage{booktabs}``."""
        titles, rows = self._texts()
        scores = titles.index("unparsed") if "unparsed" in titles else len(titles)
        shown = [[row[at] for at in range(scores)] for row in rows]
        return latex_table(titles[:scores], shown, notes=self.notes)

    def _texts(self) -> tuple[list[str], list[list[str]]]:
        rows = [cells(s, self.task) for s in self.standings]
        titles = list(dict.fromkeys(title for row in rows for title in row)) or ["system"]
        return titles, [[row.get(title, "-") for title in titles] for row in rows]

    def __str__(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """What a notebook shows: the table and its notes, every text escaped."""
        titles, rows = self._texts()
        return html_table(titles, rows, notes=self.notes)


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, notes: Sequence[str] = ()) -> str:
    """A table with its notes below, every text escaped.

    Example:
        >>> html_table(["a"], [["<b>"]])
        '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX_SIGNS = _LATEX | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "–": "--"}


def latex_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, notes: Sequence[str] = ()) -> str:
    """A booktabs table: numbers to the right, the first column and texts to the left; every cell is escaped.

    Example:
        >>> print(latex_table(["system", "acc ↑"], [["rag_1", "50%"]]))
        \\begin{tabular}{lr}
        \\toprule
        system & acc $\\uparrow$ \\\\
        \\midrule
        rag\\_1 & 50\\% \\\\
        \\bottomrule
        \\end{tabular}
        <BLANKLINE>
    """
    lines = [f"% {note}" for note in notes]
    sides = ["r" if any(re.match(r"[-+]?\d", row[at]) for row in rows) else "l" for at in range(1, len(titles))]
    lines += [r"\begin{tabular}{l" + "".join(sides) + "}", r"\toprule"]
    lines += [_latex_row(titles), r"\midrule", *(_latex_row(row) for row in rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(re.sub(r"([&%$#_{}])|([\\~^↑↓±–])", _latex_character, cell) for cell in cells) + r" \\"


def _latex_character(match: re.Match[str]) -> str:
    return f"\\{match[1]}" if match[1] else _LATEX_SIGNS[match[2]]
