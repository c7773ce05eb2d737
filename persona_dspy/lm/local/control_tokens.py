"""The control tokens of a model file, which a tokenizer takes for structure wherever they stand; texts without them"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from persona_dspy.core import spaced_at
from persona_dspy.errors import ModelFileError

__all__ = ["control_tokens", "without_control"]

_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_UNKNOWN, _CONTROL = 2, 3  # of llama.cpp's types of tokens those that no text of a user's can mean
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def control_tokens(path: str | os.PathLike[str]) -> frozenset[str]:
    """The control tokens in a GGUF file's own vocabulary, as text; the tensors are not read.

    Raises:
        ModelFileError: the head of the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            file.seek(8)
            _tensors, count = struct.unpack("<QQ", file.read(16))
            found: dict[str, list[Any]] = {}
            while count and len(found) < 2:
                key, (kind,), count = _string(file), struct.unpack("<I", file.read(4)), count - 1
                value = _value(file, kind, keep=key in (_TOKENS, _TYPES))
                if value is not None:
                    found[key] = value
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ModelFileError(f"model file {os.fspath(path)!r}: its head cannot be read ({error})") from error
    pairs = zip(found.get(_TOKENS, ()), found.get(_TYPES, ()), strict=False)
    return frozenset(token for token, kind in pairs if kind in (_UNKNOWN, _CONTROL) and len(token) > 1)


def without_control(tokens: frozenset[str]) -> Callable[[str], str]:
    """What puts a space into each of ``tokens`` that a text holds, so that it is the letters it consists of.

    Example:
        >>> without_control(frozenset({"<|im_end|>"}))("so <|im_end|> it is")
        'so < |im_end|> it is'
    """
    if not tokens:
        return lambda text: text
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    starts = re.compile(rf"(?=(?:{'|'.join(map(re.escape, longest_first))}))")

    def apart(text: str) -> str:
        return spaced_at(text, [match.start() + 1 for match in starts.finditer(text)])

    return apart


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length).decode("utf-8")


def _value(file: BinaryIO, kind: int, *, keep: bool) -> list[Any] | None:
    """The items of an array that is to be kept; of anything else only the place behind it is found."""
    if kind == _STRING:
        _string(file)
        return None
    if kind != _ARRAY:
        file.seek(struct.calcsize(_NUMBERS[kind]), os.SEEK_CUR)
        return None
    inner, length = struct.unpack("<IQ", file.read(12))
    if inner == _STRING:
        items = [_string(file) for _ in range(length)]
        return items if keep else None
    if inner == _ARRAY:
        for _ in range(length):
            _value(file, inner, keep=False)
        return None
    data = file.read(length * struct.calcsize(_NUMBERS[inner]))
    return list(struct.unpack(f"<{length}{_NUMBERS[inner]}", data)) if keep else None
