"""A task as one line: what ``--task`` takes, and what a persona JSON names."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from persona_dspy.core import Interaction, ResponseKind, Signal, match_label, one_line, own_labels
from persona_dspy.data.lamp import get_task, infer_task
from persona_dspy.data.tasks import Task
from persona_dspy.errors import InputError

__all__ = ["is_typed", "task_from_text", "task_text", "users_task"]

_TYPED = re.compile(r"^\s*(\w+)\s*->\s*(\w+)\s*:\s*(Literal|rating)\s*\[(.*)\]\s*$", re.DOTALL)
_PER_QUERY = re.compile(r"^\s*(\w+\s*->\s*\w+)\s*:\s*options\s*$")
_SELF = re.compile(r"^\s*self\b|->\s*self\b")
_MOST = 1e9  # of a scale's ends and step: beyond it no type of answers can be made
_FORMS = (
    "a LaMP task such as lamp-2m, fields such as 'film -> tag', or typed: 'film -> tag: Literal[\"comedy\", \"drama\"]'"
    ", 'film -> stars: rating[0.5, 5, 0.5]' (lowest, highest, step; the step is 1 where none is given)"
    ", 'situation -> choice: options' (what can be answered stands in each row)"
)


def task_text(task: Task) -> str:
    """A task as one line: a LaMP task's name, else ``query -> tag: Literal['a', 'b']``.

    Example:
        >>> task_text(task_from_text("film -> stars: rating[0.5, 5, 0.5]"))
        'film -> stars: rating[0.5, 5, 0.5]'
    """
    if task.name != "custom":
        return task.name
    fields = f"{task.query_field} -> {task.response_field}"
    if task.rating:
        ends = [f"{end:g}" for end in task.rating]
        step = [] if task.step == 1 else ["None" if task.step is None else f"{task.step:g}"]
        return f"{fields}: rating[{', '.join(ends + step)}]"
    if task.per_query:
        return f"{fields}: options"
    return f"{fields}: Literal{list(task.labels)}" if task.labels else fields


def task_from_text(
    text: str,
    interactions: Sequence[Interaction] = (),
    *,
    answers: ResponseKind | None = None,
    grows: bool = False,
) -> Task:
    """Inverse of ``task_text``; a signature without types takes them from the user's interactions.

    Args:
        answers: what kind all users' answers are, as in ``infer_task``.
        grows: labels or scale were inferred from an earlier history: what this one has besides belongs to them.

    Raises:
        InputError: the text is no task.

    Example:
        >>> task_from_text("film -> stars: rating[0, 100]").rating
        (0.0, 100.0)
    """
    anything = Interaction(user_id="anybody", query="anything", response="anything")
    typed = _TYPED.match(text)
    if _SELF.search(text):
        raise InputError(f"task {text[:200]!r}: 'self' is no field's name in Python; expected another one")
    if per_query := _PER_QUERY.match(text):
        offered = Interaction(user_id="anybody", query="anything", response="a", signal=Signal(options=("a", "b")))
        return infer_task([offered], per_query[1])
    if not typed:
        if "->" in text and ":" in text.replace(": str", ""):
            raise InputError(f"task {text!r}: expected {_FORMS}")
        return infer_task(interactions or [anything], text, answers=answers) if "->" in text else get_task(text)
    query, response, form, inside = typed.groups()
    values = _values(text, inside)
    plain = infer_task([anything], f"{query} -> {response}")
    responses = [i.response for i in interactions if i.answered] if grows else []
    if form == "rating":
        low, high, step = _scale(text, values)
        kind = ResponseKind(name="rating", low=low, high=high, step=step, grows=True).observing(responses)
        return replace(plain, rating=(kind.low, kind.high), step=step, metrics=("mae", "rmse"))
    labels = tuple(str(value) for value in values)
    if not labels or len(set(labels)) < len(labels):
        raise InputError(f"task {text!r}: expected one or more labels, each once, such as Literal['comedy', 'drama']")
    for label in labels:
        if one_line(label) != label:
            raise InputError(
                f"label {label!r} of task {text[:200]!r}: expected one line without marks of prompts, such as"
                f" {one_line(label)!r}"
            )
    new = [label for label in own_labels(responses) if match_label(label, labels) is None]
    return replace(plain, labels=(*labels, *new), metrics=("accuracy", "macro_f1"))


def users_task(
    known: Task | None, text: str | None, interactions: Sequence[Interaction], answers: ResponseKind | None = None
) -> Task:
    """The task for one user: the file's, else by the text, else by this user's own responses (never by another
    user's)."""
    if known is not None:
        return known
    return task_from_text(text, interactions, answers=answers) if text else infer_task(interactions, answers=answers)


def is_typed(text: str | None) -> bool:
    """Whether a task's text says by itself what kind its answers are."""
    typed = _TYPED.match(str(text)) or _PER_QUERY.match(str(text))
    return bool(text) and ("->" not in str(text) or typed is not None)


def _values(text: str, inside: str) -> tuple[Any, ...]:
    try:
        values = ast.literal_eval(f"({inside},)" if inside.strip() else "()")
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise InputError(f"task {text[:200]!r}: expected {_FORMS}") from None
    return tuple(values)


def _scale(text: str, values: tuple[Any, ...]) -> tuple[float, float, float | None]:
    low, high, step = (*values, 1)[:3] if len(values) in (2, 3) else (None, None, None)
    numbers = [v for v in (low, high, 1 if step is None else step) if isinstance(v, int | float)]
    if len(numbers) < 3 or not -_MOST <= numbers[0] < numbers[1] <= _MOST or not 0 < numbers[2] <= _MOST:
        raise InputError(
            f"task {text[:200]!r}: expected rating[lowest, highest], such as rating[1, 5] or rating[0.5, 5, 0.5]"
        )
    return float(numbers[0]), float(numbers[1]), None if step is None else float(numbers[2])
