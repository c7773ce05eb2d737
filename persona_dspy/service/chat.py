"""A chat request with a persona in it: pure functions over the JSON that OpenAI-compatible clients send."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from persona_dspy.core import Episode, clip_tokens, data_text
from persona_dspy.errors import InputError

__all__ = ["check_plain_json", "header_text", "parse_body", "query_of", "user_of", "with_persona"]

_INSTRUCTIONS = ("system", "developer")
_TURN_TOKENS = 192  # estimated tokens of a past query or answer that is shown as a turn; more is cut
_DEEPEST = 100  # lists or objects that a kept value may lie in: whoever reads it needs a stack for each
_MOST_KEPT = 10_000  # values that are kept with one interaction
_MOST_METADATA = 65_536  # bytes of metadata that are kept with one interaction
_MOST_VALUES = 100_000  # of a request: reading and writing them holds everybody else up


def parse_body(content: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        InputError: not JSON, or another value, or one of more than 100,000 values.
    """
    if content.count(b"[") + content.count(b"{") > _MOST_VALUES:  # in texts too: they would fill no context
        raise InputError(_TOO_MANY)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as failure:
        raise InputError(f"body: not JSON ({failure}): expected a JSON object") from None
    if not isinstance(body, dict):
        raise InputError(f"body: {type(body).__name__}: expected a JSON object")
    if not _levels(body, _MOST_VALUES):
        raise InputError(_TOO_MANY)
    return body


_TOO_MANY = f"body: expected at most {_MOST_VALUES:,} values"


def _levels(value: Any, most: int) -> int:
    """In how many lists and objects values lie, ``value`` itself counted; 0 where there are more than ``most``."""
    levels, total, values = 0, 1, [value]
    while values:
        levels += 1
        inner = [one.values() if isinstance(one, dict) else one for one in values if isinstance(one, dict | list)]
        total += sum(map(len, inner))
        if total > most:
            return 0
        values = [one for several in inner for one in several]
    return levels


def check_plain_json(body: dict[str, Any]) -> None:
    """Refuse what Python reads as JSON and cannot give back as JSON in UTF-8: NaN, infinite numbers, lone surrogates,
    values in more than 100 lists or objects; and more than is to be kept with one interaction: 10,000 values, or 64 KiB
    of metadata.

    Raises:
        InputError: one of these, in the field that is named.

    Example:
        >>> check_plain_json({"user": "ana", "metadata": {"score": float("nan")}})
        Traceback (most recent call last):
        ...
        persona_dspy.errors.InputError: 'metadata': NaN, an infinite number or half of a surrogate pair: expected ...
    """
    for name, value in body.items():
        if not (levels := _levels(value, _MOST_KEPT)):
            raise InputError(f"{name!r}: expected at most {_MOST_KEPT:,} values; nothing was kept")
        if levels > _DEEPEST + 1:
            raise InputError(f"{name!r}: expected values in at most {_DEEPEST} lists or objects; nothing was kept")
        try:
            size = len(json.dumps({name: value}, ensure_ascii=False, allow_nan=False).encode())
        except ValueError:  # also of a text that UTF-8 has no form for
            raise InputError(
                f"{name!r}: NaN, an infinite number or half of a surrogate pair: expected finite numbers and valid "
                "Unicode; nothing was kept"
            ) from None
        if name == "metadata" and size > _MOST_METADATA:
            raise InputError(f"metadata: {size:,} bytes: expected at most {_MOST_METADATA:,}; nothing was kept")


def header_text(value: str | None) -> str | None:
    """A header's text as it was sent: UTF-8, which HTTP servers read as Latin-1; Latin-1 where it is no UTF-8.

    Example:
        >>> header_text("zoÃ«"), header_text("zoë")
        ('zoë', 'zoë')
    """
    try:
        return value and value.encode("latin-1").decode()
    except UnicodeError:
        return value


def user_of(body: dict[str, Any], header: str | None) -> str:
    """Whose persona a request asks for: its field ``user``, or the header; where both are there, both alike.

    Raises:
        InputError: neither, no text, or two different users.

    Example:
        >>> user_of({"user": "ana"}, None), user_of({}, "ana")
        ('ana', 'ana')
    """
    field = body.get("user")
    if field is not None and not isinstance(field, str):
        raise InputError(f"user {field!r}: expected the user's id as a string")
    if field is not None and header is not None and field != header:
        raise InputError("user and X-Persona-User name two different users: expected one, or the same in both")
    user = header if field is None else field
    if user is None or not user.strip():
        raise InputError("no user: expected the user's id in the field 'user', or in the header X-Persona-User")
    return user


def query_of(body: dict[str, Any]) -> str:
    """The text of the last user message; empty where there is none.

    Raises:
        InputError: ``messages`` is no list of messages.
    """
    texts = [_text(message) for message in _messages(body) if message.get("role") == "user"]
    return texts[-1] if texts else ""


def with_persona(body: dict[str, Any], persona: str, episodes: Sequence[Episode] = ()) -> dict[str, Any]:
    """The request with ``persona`` last in its system message, to the letter, and past episodes as turns behind it,
    nearest last. ``body`` is not changed; all else in it stays.

    Raises:
        InputError: ``messages`` is no list of messages.

    Example:
        >>> asked = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]}
        >>> with_persona(asked, "Likes brevity.")["messages"][0]["content"]
        'Be kind.\\n\\nLikes brevity.'
        >>> with_persona({"messages": [{"role": "user", "content": "Hello"}]}, "Likes brevity.")["messages"][0]["role"]
        'system'
    """
    messages = _messages(body)
    leading = 0
    while leading < len(messages) and messages[leading].get("role") in _INSTRUCTIONS:
        leading += 1
    head, rest = list(messages[:leading]), messages[leading:]
    if persona and head:
        head[-1] = {**head[-1], "content": _appended(head[-1].get("content"), persona)}
    elif persona:
        head = [{"role": "system", "content": persona}]
    turns: list[dict[str, Any]] = []
    for episode in reversed(episodes):
        pair = (("user", episode.interaction.query), ("assistant", episode.interaction.response))
        turns += [{"role": role, "content": clip_tokens(data_text(text), _TURN_TOKENS)} for role, text in pair]
    return {**body, "messages": [*head, *turns, *rest]}


def _appended(content: Any, persona: str) -> Any:
    if isinstance(content, list):
        return [*content, {"type": "text", "text": persona}]
    return f"{content}\n\n{persona}" if content else persona


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise InputError("messages: expected a list of at least one message, each an object with role and content")
    return messages


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
