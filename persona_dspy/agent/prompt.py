"""Adapters that put a persona and past turns into the messages of every predictor.

Everything travels by ``dspy.context``: programs are shared and never changed, so users on other threads or tasks cannot
see it. Of this room, only this file overrides DSPy's private methods; tests/test_prompt.py says what breaks
without each.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import Any

import dspy
from dspy.adapters.base import Adapter
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.utils import format_field_value, parse_value, serialize_for_json
from dspy.utils.exceptions import AdapterParseError
from pydantic import BaseModel

from persona_dspy.agent.context import Turn, answering, current_answer
from persona_dspy.agent.dspy_private import AdapterHooks, adapter_class
from persona_dspy.agent.on_loop import awaited_lm, on_loop
from persona_dspy.core import data_text, defused, defused_tags, fenced, remember
from persona_dspy.lm import TerseJSON, able, adapter_call, prompt_ready, reply_ready, reserved

__all__ = ["as_persona", "personal_adapter"]

_READ_BACK = 2_000  # characters of an answer that an error repeats


class _PersonaMixin(AdapterHooks):
    """Over any DSPy adapter: persona last in the system message, past turns before the current query.

    Order of a request: structure and task (the same for all users: prompt caches hit across them), persona (the same
    for one user's queries), the program's own demos, the user's past turns with the nearest last, the query.
    """

    def format_system_message(self, signature: Any) -> str:
        system = super().format_system_message(signature)  # type: ignore[misc]
        persona = current_answer().prompt
        return f"{system}\n\n{persona}" if persona else system

    def format_demos(self, signature: Any, demos: list[Any]) -> list[dict[str, Any]]:
        messages = super().format_demos(signature, demos)  # type: ignore[misc]
        for turn in current_answer().turns:
            if _is_answer(signature, turn):
                messages.extend(self._turn(signature, turn))
        return messages

    def _turn(self, signature: Any, turn: Turn) -> list[dict[str, Any]]:
        shared = _only(signature, frozenset(turn))
        if shared is None:
            return []  # a predictor about something else, such as query rewriting, gets no answers as examples
        values = {name: _cleaned(value) for name, value in turn.items()}
        if any(name not in values for name in shared.output_fields):  # such as reasoning: marked as DSPy marks demos
            known = {name: values[name] for name in shared.fields if name in values}
            return super().format_demos(shared, [known])  # type: ignore[misc]
        base = type(self).__bases__[1]  # see _personal_class
        if base in _PLAIN and all(isinstance(values[name], str) for name in shared.fields):
            tags = frozenset(shared.fields) if base is dspy.XMLAdapter else frozenset[str]()
            user, assistant = _turn_form(base, shared)
            query, response = user, assistant
            for name in shared.input_fields:
                query = query.replace(_slot(name), defused_tags(values[name], tags))
            for name in shared.output_fields:
                response = response.replace(_slot(name), _PLAIN[base](defused_tags(values[name], tags), shared, name))
        else:
            query = str(self.format_user_message_content(shared, values))
            response = self.format_assistant_message_content(shared, values)
        return [{"role": "user", "content": query.strip()}, {"role": "assistant", "content": response}]

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> list[dict[str, Any]]:
        messages = _with_persona(super().format(signature, demos, inputs))  # type: ignore[misc]
        if told := [turn for turn in current_answer().turns if not _is_answer(signature, turn)]:
            messages = _with_told(messages, signature, told, self._field_tags(signature))
        prompt_ready()
        return [
            {**m, "content": str(m["content"])} if isinstance(m.get("content"), _Formatted) else m for m in messages
        ]

    def format_user_message_content(self, signature: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> str:
        """Inputs may come from anybody: none may look like a field marker or a role tag."""
        safe = self._guarded(signature, inputs)
        return _Formatted(super().format_user_message_content(signature, safe, *args, **options))  # type: ignore[misc]

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], *args: Any, **options: Any
    ) -> str:
        """Past answers may have been written by anybody too."""
        safe = self._guarded(signature, outputs)
        return super().format_assistant_message_content(signature, safe, *args, **options)  # type: ignore[misc]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """As the adapter does; what it or Python's parser fails over, such as a thousand brackets, is no answer."""
        parse: Any = super().parse  # type: ignore[misc]
        try:
            try:
                return parse(signature, completion)
            except SystemError:  # CPython 3.11, gh-106905: two threads in its parser at the same time
                return parse(signature, completion)
        except (RecursionError, MemoryError, ValueError) as failure:
            raise AdapterParseError(
                adapter_name=type(self).__name__,
                signature=signature,
                lm_response=completion[:_READ_BACK],
                message=f"{type(failure).__name__}: {failure}",
            ) from None

    def _field_tags(self, signature: Any) -> frozenset[str]:
        """Names that the adapter writes as tags."""
        return frozenset(signature.fields) if isinstance(self, dspy.XMLAdapter) else frozenset()

    def _guarded(self, signature: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._field_tags(signature)
        guarded: dict[str, Any] = {}
        for name, value in values.items():
            field = signature.fields.get(name)
            if isinstance(value, list) and field is not None and field.annotation is str:
                value = [
                    item if isinstance(item, dspy.Type) else str(item) for item in value
                ]  # DSPy writes such a list as numbered texts
            elif isinstance(value, tuple | set | frozenset | deque) and field is not None and field.annotation is str:
                value = format_field_value(field, value)  # as DSPy writes it: a list, which it becomes below, is not
            guarded[name] = _guard(value, tags)
        return guarded

    def after_reply(self) -> None:
        reply_ready()

    def instead_of(self, fallback: Adapter) -> Adapter:
        return personal_adapter(fallback)

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        with reserved(lm=lm), adapter_call(lm):
            return super().__call__(awaited_lm(lm), lm_kwargs, signature, demos, inputs)  # type: ignore[misc]

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        with reserved(lm=lm), adapter_call(lm):
            return await super().acall(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]


def _with_persona(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the persona in the system message, also where an adapter writes that without being asked for it
    (``TwoStepAdapter``, templates of a user's own); counts them as delivered."""
    answer = current_answer()
    if not answer.prompt:
        return messages
    system = next((m for m in messages if m.get("role") in ("system", "developer")), None)
    if system is None:
        messages = [{"role": "system", "content": answer.prompt}, *messages]
    elif answer.prompt not in str(_text_of(system["content"])):
        changed = {**system, "content": _appended(system["content"], answer.prompt)}
        messages = [changed if m is system else m for m in messages]
    if answer.delivery is not None:
        answer.delivery.requests += 1
    return messages


def _is_answer(signature: Any, turn: Turn) -> bool:
    """Whether a turn can be shown as an answer that the adapter would accept: an output that is missing in it is marked
    by DSPy's words for that, which stand for text alone."""
    return _takes_part(signature, frozenset(turn))


@remember(maxsize=256)
def _takes_part(signature: Any, names: frozenset[str]) -> bool:
    if _only(signature, names) is None:
        return True  # another predictor's turn: it is not shown at all
    missing = [field.annotation for name, field in signature.output_fields.items() if name not in names]
    return all(map(_takes_words, missing))


def _takes_words(annotation: Any) -> bool:
    try:
        parse_value("Not supplied for this particular example.", annotation)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True


def _cleaned(value: Any) -> Any:
    """A past turn's value as data: ``data_text`` of every text in it."""
    if isinstance(value, str) and not isinstance(value, Enum):
        return data_text(value).strip()
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    return value


def _with_told(
    messages: list[dict[str, Any]], signature: Any, turns: Sequence[Turn], tags: frozenset[str]
) -> list[dict[str, Any]]:
    """Messages with past turns as data in the last one, where they are no whole answers to this signature."""
    blocks: list[str] = []
    source = "an earlier query of this user, and this user's own answer to it"
    for turn in turns:
        shown = "\n".join(f"{name}: {turn[name]}" for name in signature.fields if name in turn)
        blocks.append(fenced(defused_tags(shown, tags), source))
    text, last = "\n\n".join(blocks), messages[-1]
    content = last["content"]
    content = [{"type": "text", "text": text}, *content] if isinstance(content, list) else f"{text}\n\n{content}"
    return [*messages[:-1], {**last, "content": content}]


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content or ())


def _appended(content: Any, persona: str) -> Any:
    if isinstance(content, list):
        return [*content, {"type": "text", "text": f"\n\n{persona}"}]
    return f"{content}\n\n{persona}" if content else persona


class _Formatted(str):
    """Content that an adapter made of guarded values, such as ReAct's trajectory: its markers are the adapter's own."""

    __slots__ = ()


def _guard(value: Any, tags: frozenset[str]) -> Any:
    """``value`` with every text in it defused, also text that it only becomes when it is written.

    Of DSPy's own types, tools and history are left alone (the program's own; its messages come here one by one), and
    parts such as images stay parts.
    """
    if isinstance(value, _Formatted):
        return _Formatted(defused_tags(value, tags)) if tags else value
    if isinstance(value, str) and not isinstance(value, Enum):
        return defused(value, tags)
    if value is None or isinstance(value, bool | int | float | dspy.History | dspy.Tool | dspy.ToolCalls):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_guard(item, tags) for item in value]  # adapters write all of these as JSON lists
    if isinstance(value, Mapping):
        return {defused(k, tags) if isinstance(k, str) else k: _guard(v, tags) for k, v in value.items()}
    if isinstance(value, dspy.Type):
        return _part(value, tags)
    parts = {written: _part(part, tags) for part in _parts(value) if isinstance(written := _written(part), str)}
    if isinstance(value, BaseModel):  # stays what it is where that is enough: some adapters write models in their way
        held = {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
        copy = value.model_copy(update={name: _guard(text, tags) for name, text in held.items()})
        if not parts and _defused_json(plain := _written(copy), tags, {}) == plain:
            return copy
    return _defused_json(_written(value), tags, parts)


def _written(value: Any) -> Any:
    with warnings.catch_warnings():  # a guarded copy may hold text where its type had more
        warnings.simplefilter("ignore")
        return serialize_for_json(value)


def _defused_json(plain: Any, tags: frozenset[str], parts: Mapping[str, str]) -> Any:
    """JSON values with every text defused but those that stand for ``parts`` (as written -> defused)."""
    if isinstance(plain, str):
        return parts.get(plain) or defused(plain, tags)
    if isinstance(plain, list):
        return [_defused_json(item, tags, parts) for item in plain]
    if isinstance(plain, dict):
        return {defused(str(k), tags): _defused_json(v, tags, parts) for k, v in plain.items()}
    return plain


def _part(value: dspy.Type, tags: frozenset[str]) -> str:
    """A part of a message (an image, a file, code) as DSPy writes it into text, with the text in it defused."""
    content = value.format()
    if not isinstance(content, list):
        return defused(str(content), tags)
    inside = json.dumps(_defused_json(_written(content), tags, {}), ensure_ascii=False)
    return f"{CUSTOM_TYPE_START_IDENTIFIER}{inside}{CUSTOM_TYPE_END_IDENTIFIER}"


def _parts(value: Any) -> list[dspy.Type]:
    """The values of DSPy's types inside a model or dataclass, however deep."""
    if isinstance(value, dspy.Type):
        return [value]
    if isinstance(value, BaseModel):
        inner: Any = [*(getattr(value, name) for name in type(value).model_fields), *(value.model_extra or {}).values()]
    elif is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, Mapping):
        inner = value.values()
    else:
        inner = value if isinstance(value, list | tuple) else ()
    return [part for item in inner for part in _parts(item)]


def _slot(name: str) -> str:
    return f"\ue000{name}\ue001"  # private-use characters, which no cleaned text has


@remember(maxsize=256)
def _turn_form(base: type[Adapter], signature: Any) -> tuple[str, str]:
    """A turn's two messages with slots for values: DSPy's own way takes a fifth of a call's time, for four turns."""
    adapter, slots = base(), {name: _slot(name) for name in signature.fields}
    user = adapter.format_user_message_content(signature, slots)
    return user, adapter.format_assistant_message_content(signature, slots)


def _in_json(text: str, signature: Any, name: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_xml(text: str, signature: Any, name: str) -> str:
    plain = signature.output_fields[name].annotation is str
    return text.replace("&", "&amp;").replace("<", "&lt;") if plain else text


_PLAIN: dict[type[Adapter], Callable[[str, Any, str], str]] = {
    dspy.ChatAdapter: lambda text, signature, name: text,
    dspy.JSONAdapter: _in_json,
    TerseJSON: _in_json,
    dspy.XMLAdapter: _in_xml,
}


@remember(maxsize=256)
def _only(signature: Any, names: frozenset[str]) -> Any:
    """``signature`` with the inputs in ``names`` and all outputs; None where no input or no output is in ``names``."""
    if not any(n in names for n in signature.input_fields) or not any(n in names for n in signature.output_fields):
        return None
    for name in signature.input_fields:
        if name not in names:
            signature = signature.delete(name)
    return signature


@cache
def _personal_class(base: type[Adapter]) -> type[Adapter]:
    return adapter_class(base, _PersonaMixin)


def personal_adapter(base: Adapter | None = None, lm: Any = None) -> Adapter:
    """``base`` (or the adapter that suits ``lm``) as one that carries the persona; ``base`` itself is not changed.

    Without ``base``: DSPy's configured adapter; else TerseJSON where ``lm`` keeps to a schema (typed answers then
    always parse, also with a 135M model), else ChatAdapter. Under stream listeners, which take an unset adapter for
    ChatAdapter, that one.
    """
    base = base or dspy.settings.get("adapter")
    if isinstance(base, _PersonaMixin):
        return base  # type: ignore[return-value]
    if base is None:
        lm = lm or dspy.settings.get("lm")
        if able(lm, "response_schema") and not dspy.settings.get("stream_listeners"):
            base = TerseJSON()
        else:
            base = dspy.ChatAdapter(use_native_function_calling=able(lm, "function_calling"))
    adapter = object.__new__(_personal_class(type(base)))
    own = {name: _personal_lm(value) for name, value in vars(base).items() if isinstance(value, dspy.BaseLM)}
    adapter.__dict__.update(base.__dict__ | own)
    return adapter


class _PersonaLM:
    """An LM that an adapter asks by itself, as ``TwoStepAdapter`` does for its extraction: with the persona too."""

    def __call__(self, *args: Any, messages: Any = None, **options: Any) -> Any:
        if on_loop():
            return awaited_lm(self)(*args, messages=messages, **options)
        return super().__call__(*args, messages=_in_place(messages), **options)  # type: ignore[misc]

    async def acall(self, *args: Any, messages: Any = None, **options: Any) -> Any:
        return await super().acall(*args, messages=_in_place(messages), **options)  # type: ignore[misc]


def _in_place(messages: Any) -> Any:
    """An adapter's own list of messages with the persona in it. It stays the same list: by that DSPy knows its own."""
    if messages:
        messages[:] = _with_persona(messages)
    return messages


@lru_cache(maxsize=64)
def _personal_lm_class(base: type[dspy.BaseLM]) -> type[dspy.BaseLM]:
    return type(base.__name__, (_PersonaLM, base), {"__qualname__": f"Persona{base.__name__}"})


def _personal_lm(lm: dspy.BaseLM) -> dspy.BaseLM:
    """The LM as one that adds the persona to its messages; ``lm`` itself is not changed."""
    twin = copy.copy(lm)
    twin.__class__ = _personal_lm_class(type(lm))
    return twin


@contextmanager
def as_persona(
    prompt: str, *, turns: Sequence[Turn] = (), adapter: Adapter | None = None, lm: Any = None
) -> Generator[None]:
    """Every DSPy predictor called inside sees ``prompt`` in its system message and ``turns`` as past turns.

    ``prompt`` is kept to the letter; an empty one adds nothing. ``turns``: nearest last.
    """
    with answering(prompt=prompt, turns=tuple(turns)), dspy.context(adapter=personal_adapter(adapter, lm)):
        yield
