"""What is asked of a user's program, and how its answers are read and scored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Annotated, Any, Literal

from persona_dspy.core import (
    FREE_TEXT,
    Interaction,
    ResponseKind,
    Scale,
    metrics,
    official_figures,
    parse_time,
    remember,
    written,
)
from persona_dspy.errors import DataError, InputError

__all__ = ["Place", "Task", "answered", "checked_text", "read_time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value was read, so that an error about it can say so: a file, a line or a row's id, a part of the row."""

    file: str = "<value>"
    line: int | None = None
    row_id: str | None = None
    within: str = ""

    def inside(self, within: str) -> Place:
        """The same place, one level in: ``at.inside("profile[3].")``."""
        return replace(self, within=self.within + within)

    def error(self, field: str | None, value: object, expected: str, hint: str = "") -> DataError:
        """A ``DataError`` about ``value`` at this place."""
        return DataError(
            self.file,
            line=self.line,
            row_id=self.row_id,
            field=None if field is None else self.within + field,
            value=value,
            expected=expected,
            hint=hint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked of a user's program, and how its answers are read and scored. Hashable, holds no user's text.

    Args:
        name: ``"lamp-2m"``; ``"custom"`` for a task inferred from a history.
        title: for people.
        query_field, response_field: the signature's input and output.
        instructions: the signature's instruction: what is asked, and what the ends of a scale mean.
        query_means, response_means: descriptions of the two fields.
        labels: the closed set of responses, or None.
        per_query: what can be answered differs from query to query; there are then no ``labels``.
        rating: lowest and highest response, or None. At most one of ``labels`` and ``rating``.
        step: of a rating, what its values are multiples of; None = any number between.
        metrics: names in ``metrics.HIGHER_IS_BETTER``; the first is the headline.
        input_pattern: regular expression over LaMP's official input; its last group is the item itself.
        item_query, item_response: keys of a profile item; of several query keys the first that is not blank.
        item_extras: keys of a profile item kept as metadata. None that tells the response.
        item_reads: keys of a profile item that ``make_pair`` is given beside those, and that are not kept.
        make_pair: builds (query, response) where a profile item holds no such pair.
        make_query: builds the query from the groups of ``input_pattern`` where it is more than the last one.
        licence: what to do about texts that the public files do not hold.
    """

    name: str
    title: str
    query_field: str
    response_field: str
    instructions: str
    metrics: tuple[str, ...]
    query_means: str = "what is asked"
    response_means: str = "what this user would answer"
    labels: tuple[str, ...] | None = None
    per_query: bool = False
    rating: tuple[float, float] | None = None
    step: float | None = 1.0
    input_pattern: str = r"(?s)(.*)"
    item_query: tuple[str, ...] = ("query",)
    item_response: str = "response"
    item_extras: tuple[str, ...] = ()
    item_reads: tuple[str, ...] = ()
    make_pair: Callable[[Mapping[str, str], Sequence[Interaction], str], tuple[str, str]] | None = None
    make_query: Callable[..., str] | None = None
    licence: str = ""

    @property
    def kind(self) -> Literal["label", "rating", "text"]:
        """What a response is, in the words of ``ResponseKind``."""
        return self._responses.name

    @property
    def choices(self) -> tuple[str, ...] | None:
        """Every response possible, as text (the steps of a rating included); None: any text, or too many to name."""
        if self.rating:
            return Scale(low=self.rating[0], high=self.rating[1], step=self.step).steps or None
        return self.labels

    def parse_input(self, text: object, at: Place | None = None) -> str:
        """The item itself (film description, article, two references, ...) out of LaMP's official input.

        Raises:
            DataError: the text is blank or not an official input of this task.

        Example:
            >>> from persona_dspy.data import get_task
            >>> get_task("lamp-4").parse_input("Generate a headline for the following article: It rained.")
            'It rained.'
        """
        at = at or Place(file="<input>")
        official = checked_text(text, at, "input", f"the official input of {self.name}, not an empty one")
        match = re.search(self.input_pattern, official)
        if match is None:
            hint = " ".join(["Check --task.", self.licence]).strip()
            raise at.error("input", text, f"an official input of {self.name} ({self.title})", hint)
        groups = [g.strip() for g in match.groups()]
        if not all(groups):
            raise at.error("input", text, "text after the instruction, not nothing")
        return self.make_query(*groups) if self.make_query else groups[-1]

    def parse_response(self, value: object, at: Place | None = None, field: str = "response") -> str:
        """A response as this task writes it: one of ``choices`` (case, space, marks around it and Unicode form do not
        matter), a number of its scale, or any text.

        Raises:
            DataError: blank, not text or a number, or none of those.

        Example:
            >>> from persona_dspy.data import get_task
            >>> get_task("lamp-2m").parse_response(" Comedy ")
            'comedy'
        """
        at = at or Place()
        text = answered(value, at, field)
        answer = self._responses.read(text)
        if answer is None:
            raise at.error(field, value, self._expected)
        return answer

    @property
    def _expected(self) -> str:
        if not self.rating:
            return f"one of: {', '.join(self.labels or ())}"
        number = "a whole number" if self.step == 1 else f"a multiple of {self.step:g}" if self.step else "a number"
        return f"{number} from {self.rating[0]:g} to {self.rating[1]:g}"

    def interaction(
        self, item: object, user_id: str, *, earlier: Sequence[Interaction] = (), at: Place | None = None
    ) -> Interaction:
        """One profile item as something the user did. ``earlier``: this same user's interactions before it (LaMP-1
        builds its query from them); other tasks ignore them.

        Raises:
            DataError: a field is missing, blank, of the wrong type, or not among ``choices``.

        Example:
            >>> from persona_dspy.data import get_task
            >>> get_task("lamp-2m").interaction({"id": "7", "description": "A heist.", "tag": "action"}, "u1").response
            'action'
        """
        at = at or Place(file="<profile item>")
        if not isinstance(item, Mapping):
            raise at.error(
                "profile", item, "an object such as {" + ", ".join(f'"{k}": ...' for k in self._keys()) + "}"
            )
        texts = {k: self._text(item, k, at) for k in self.item_query + self.item_extras + self.item_reads}
        if self.make_pair:
            if not texts[self.item_query[0]]:
                raise at.error(self.item_query[0], item.get(self.item_query[0]), "text that is not empty")
            query, response = self.make_pair(texts, earlier, user_id)
            if not query.strip():
                raise at.error(self.item_query[0], item.get(self.item_query[0]), "text with at least one word")
            if not response:
                key = self.item_reads[-1]
                raise at.error(key, item.get(key), "text that is not empty")
        else:
            query = next((texts[k] for k in self.item_query if texts[k]), "")
            if not query:
                raise at.error(self.item_query[0], item.get(self.item_query[0]), "text that is not empty", self.licence)
            response = self.parse_response(item.get(self.item_response), at, self.item_response)
        item_id = "" if item.get("id") is None else item["id"]
        if isinstance(item_id, bool) or not isinstance(item_id, str | int):
            raise at.error("id", item_id, "a text or a whole number, unique within the user")
        return Interaction(
            user_id=user_id,
            query=query,
            response=response,
            time=read_time(item.get("date", item.get("time", item.get("year"))), at, "date"),
            id=str(item_id),
            metadata={k: texts[k] for k in self.item_extras if texts[k]},
        )

    def _keys(self) -> tuple[str, ...]:
        return (*self.item_query[:1], self.item_response) if self.make_pair is None else self.item_query[:1]

    @staticmethod
    def _text(item: Mapping[str, Any], key: str, at: Place) -> str:
        value = item.get(key)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise at.error(key, value, "a text")
        return checked_text(value, at, key) if str(value).strip() else ""

    def signature(self, instructions: str | None = None) -> Any:
        """The typed ``dspy.Signature`` class: one input (``query_field``), one output (``response_field``), whose type
        is a ``Literal`` of ``choices``, a number with bounds, or ``str``. The same class for the same arguments.

        Example:
            >>> from persona_dspy.data import get_task
            >>> list(get_task("lamp-2m").signature().output_fields)
            ['tag']
        """
        return _signature(self, instructions or self.instructions)

    def score(self, gold: str, answer: object) -> float:
        """One answer in [0, 1], higher is better: equality for labels, closeness on a rating's scale, ROUGE-L for
        text. An unusable answer scores 0.

        Example:
            >>> from persona_dspy.data import get_task
            >>> get_task("lamp-3").score("5", "4")
            0.75
        """
        return self._responses.score(gold, "" if answer is None else answer)

    @property
    def _responses(self) -> ResponseKind:
        choices = self.choices or ()
        if self.rating:
            low, high = self.rating
            return ResponseKind(
                name="rating",
                labels=choices,
                low=low,
                high=high,
                step=self.step,
                annotation=str if choices else self.number_type,
            )
        return ResponseKind(name="label" if choices or self.per_query else "text", labels=choices)

    @property
    def number_type(self) -> type:
        return int if self.step is not None and self.step == int(self.step) else float

    def evaluate(self, golds: Sequence[str], answers: Sequence[object]) -> dict[str, float]:
        """The task's own metrics over many answers, in the order of ``metrics``. ``HIGHER_IS_BETTER`` has directions.

        Raises:
            InputError: no golds, lengths that differ, or a gold that is no response of this task.

        Example:
            >>> from persona_dspy.data import get_task
            >>> get_task("lamp-3").evaluate(["5", "1"], ["5", "2"])["mae"]
            0.5
        """
        texts = ["" if a is None else str(a) for a in answers]
        if self.name == "custom":  # LaMP's own evaluation takes answers to the letter
            responses = self._responses
            golds, texts = ([responses.read(text) or text for text in some] for some in (golds, texts))
        values: dict[str, float] = {}
        for name in self.metrics:
            if name not in metrics.HIGHER_IS_BETTER:  # a user's own, which scored the predictions themselves
                continue
            function: Callable[..., float] = getattr(metrics, name)
            extra: tuple[Any, ...] = ()
            if name == "macro_f1":
                extra = (self.choices,)
            elif name in ("mae", "rmse"):
                extra = self.rating or ()
            values[name] = function(list(golds), texts, *extra)
        return values

    def official(self, golds: Sequence[str], answers: Sequence[object], *, seed: int = 0) -> dict[str, float]:
        """The metrics as the benchmark's own script has them (``core.official_figures`` says where they differ).

        Raises:
            InputError: as ``official_figures``.

        Example:
            >>> from persona_dspy.data import get_task
            >>> get_task("lamp-3").official(["1"], ["9"])["mae"], get_task("lamp-3").evaluate(["1"], ["9"])["mae"]
            (8.0, 4.0)
        """
        low, high = self.rating or (1, 5)
        texts = ["" if a is None else str(a) for a in answers]
        return official_figures(self.metrics, list(golds), texts, labels=self.choices, low=low, high=high, seed=seed)


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def checked_text(value: object, at: Place, field: str, expected: str = "text that is not empty") -> str:
    """``value`` as text without surrounding space; numbers become text.

    Raises:
        DataError: blank, of another type, or holding what no database and no UTF-8 file can (NUL, half a surrogate
            pair).
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value or not str(value).strip():
        raise at.error(field, value, expected)
    text = written(value) if isinstance(value, float) and isfinite(value) else str(value).strip()
    if _UNSTORABLE.search(text):
        raise at.error(field, value, "text without NUL characters and half surrogate pairs", "Clean the text")
    return text


def answered(value: object, at: Place, field: str = "response") -> str:
    """``checked_text`` of a user's response; JSON's true and false are answers too, and objects of several fields."""
    plain = str(value).lower() if isinstance(value, bool) else value
    if isinstance(value, dict) and value:
        plain = json.dumps(value, ensure_ascii=False)
    return checked_text(plain, at, field, "the user's own response, as text")


def read_time(value: object, at: Place, field: str) -> Any:
    """``parse_time`` whose error says where. Returns an aware datetime or None."""
    try:
        return parse_time(value)
    except (InputError, OverflowError):
        raise at.error(
            field, value, "an ISO date such as 2026-01-31, a year such as 1995, or seconds since 1970"
        ) from None


@remember(maxsize=256)  # users differ in their labels: not one class for each of a fleet, for ever
def _signature(task: Task, instructions: str) -> Any:
    import dspy

    choices = task.choices
    kind: Any = str if task.per_query else Annotated[str, FREE_TEXT]
    kind = Literal[choices] if choices else kind  # type: ignore[valid-type]
    bounds: dict[str, Any] = {}
    if task.rating and not choices:
        kind = task.number_type
        bounds = {"ge": task.rating[0], "le": task.rating[1]}
    fields: Any = {
        task.query_field: (str, dspy.InputField(desc=task.query_means)),
        task.response_field: (kind, dspy.OutputField(desc=task.response_means, **bounds)),
    }
    name = "".join(part.capitalize() for part in re.split(r"\W+", task.title)) or "Task"
    return dspy.make_signature(fields, instructions, name)
