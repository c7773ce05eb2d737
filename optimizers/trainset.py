"""Reads a trainset in any of its forms as the user's interactions, in the user's own time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from persona_dspy.agent import PersonalProgram, apart
from persona_dspy.core import SIGNAL_FIELDS, Interaction, Signal, answer_text, count_tokens
from persona_dspy.errors import BudgetExceeded, InputError

__all__ = ["fitting", "remembered"]

_LONG = 500  # estimated tokens; shorter queries are never over a context


def remembered(program: PersonalProgram, items: Iterable[Any]) -> list[dspy.Example]:
    """The items as examples, oldest first, each with an id that the program's memory knows; what memory does not know
    is added to a memory of the program's own. Scale and labels that are only observed take all of them in.

    An example without an id is the interaction of the same query and response, where memory has one that no other
    example is: a second copy would show the answer to whoever is asked for it.

    Args:
        items: examples, dictionaries of their fields, or interactions; in any order: some of DSPy's optimizers shuffle.
            What the user said of a draft (fields of a ``Signal`` that are no fields of the program) stays with it;
            drafts that were only judged are remembered, and are no examples.

    Raises:
        InputError: an item without query or response, or another user's.
    """
    given = [_with_signal(program, item) for item in items]
    judged = [i for i in given if isinstance(i, Interaction) and not i.answered]  # signals, not answers to learn from
    new = {i.id: i for i in judged if program.memory.get(i.id) is None}
    if new:
        program.memory = program.memory.extended(new.values(), user_id=program.user_id)
    answers = [item for item in given if not isinstance(item, Interaction) or item.answered]
    signals = {item.id: item.signal for item in answers if isinstance(item, Interaction)}
    examples = [_example(program, item) for item in answers]
    known_ids = {i.id for i in program.memory.interactions}
    unnamed: dict[tuple[str, str], list[str]] = defaultdict(list)
    named_already = {str(e.get("interaction_id")) for e in examples}
    for one in program.memory.interactions:
        if one.id not in named_already:
            unnamed[one.query, one.response].append(one.id)
    program.kind = program.kind.observing([_value(e, program.response_field) for e in examples])
    fresh: list[Interaction] = []
    named: list[dspy.Example] = []
    for example in examples:
        query = answer_text(_value(example, program.query_field))
        response = program.kind.response(_value(example, program.response_field))
        item_id = str(example.get("interaction_id") or "")
        if not item_id and (same_ids := unnamed.get((query, response))):
            item_id = same_ids.pop(0)
        item = Interaction(
            user_id=program.user_id,
            query=query,
            response=response,
            time=example.get("time"),
            id=item_id,
            metadata=program.metadata_of(example),
            signal=signals.get(item_id),
        )
        if not item_id:
            (item,) = apart([item], known_ids)
        if item.id not in known_ids:
            fresh.append(item)
            known_ids.add(item.id)
        named.append(example.copy(interaction_id=item.id))
    if fresh:
        program.memory = program.memory.extended(fresh, user_id=program.user_id)
    places = {i.id: place for place, i in enumerate(program.memory.interactions)}
    return sorted(named, key=lambda example: places[example.interaction_id])


def fitting(program: PersonalProgram, examples: Sequence[dspy.Example]) -> tuple[list[dspy.Example], list[str]]:
    """The examples that the LM's context has room for, and a note on each of the others, which names it.

    Those far longer than the user's others are asked, once, before anything else is; a request that is too long is not
    paid.
    """
    lengths = {e.interaction_id: count_tokens(answer_text(e[program.query_field])) for e in examples}
    least = max(_LONG, 4 * median(lengths.values())) if lengths else 0
    notes: dict[str, str] = {}
    for example in examples:
        if lengths[example.interaction_id] <= least:
            continue
        try:
            program.simulate(example)
        except dspy.ContextWindowExceededError:
            length = f"a query of about {lengths[example.interaction_id]} tokens is over the LM's context"
            notes[example.interaction_id] = f"interaction {example.interaction_id!r} is left out: {length}"
        except AdapterParseError:
            pass  # it fits; whether it is right is asked later
        except BudgetExceeded:
            break  # the run says so
    return [e for e in examples if e.interaction_id not in notes], list(notes.values())


def _with_signal(program: PersonalProgram, item: Any) -> Any:
    """An example with what the user said of a draft, as the interaction that it is; anything else as it is."""
    if isinstance(item, Interaction) or not isinstance(item, dspy.Example | Mapping):
        return item
    fields: dict[str, Any] = dict(program.gathered(item))
    own = {program.query_field, program.response_field, *program.response_fields, *program.inputs_taken()}
    said = {name: fields[name] for name in SIGNAL_FIELDS if name not in own and fields.get(name) is not None}
    if not said or "interaction_id" in fields or fields.get(program.query_field) is None:
        return item
    response: Any = fields.get(program.response_field)
    example = dspy.Example(**fields)
    return Interaction(
        user_id=program.user_id,
        query=answer_text(fields[program.query_field]),
        response="" if response is None else program.kind.response(response),
        time=fields.get("time"),
        metadata=program.metadata_of(example),
        signal=Signal.of(said),
    )


def _example(program: PersonalProgram, item: Any) -> dspy.Example:
    if isinstance(item, Interaction):
        if item.user_id != program.user_id:
            raise InputError(f"trainset with an interaction of {item.user_id!r}: expected user {program.user_id!r}")
        return dspy.Example(program.example(item), time=item.time).with_inputs(*program.example(item).inputs().keys())
    if isinstance(item, dspy.Example | Mapping):
        item = program.gathered(item)
    if isinstance(item, dspy.Example):
        return item
    if isinstance(item, Mapping):
        others: Sequence[str] = [
            name
            for name in item
            if name not in (program.response_field, *program.response_fields, "interaction_id", "time")
        ]
        return dspy.Example(**item).with_inputs(*others)
    raise InputError(
        f"trainset item {item!r}: expected a dspy.Example with {program.query_field!r} and {program.response_field!r}, "
        "such as trainset=agent.examples()"
    )


def _value(example: dspy.Example, field: str) -> Any:
    if example.get(field) is None:
        raise InputError(f"example {dict(example)!r}: expected a field {field!r}; use trainset=agent.examples()")
    return example[field]
