"""Whether a text speaks of a user: the user's id or key, or words that the user wrote."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

from persona_dspy.core import persona_file_name, user_key

__all__ = ["Mentions"]

_WINDOW = 24  # bytes of a text that are looked for; a shorter text is nobody's own
_LONG_NAME = 4
_ESCAPED = re.compile(r"(?<!\\)\\+u([0-9a-fA-F]{4})")
_BLANKS = re.compile(r"(?<!\\)\\+[nrtbf]")
_WORDS = re.compile(r"\w+")


class Mentions:
    """Searches texts for one user. Case, punctuation, line breaks and JSON's escapes do not matter.

    Names that are plain words or short are searched in quotes only, as JSON writes them; what all texts of the user
    begin with alike, such as a question's fixed words, is not searched.

    Attributes:
        texts: those that are searched for.

    Example:
        >>> mentions = Mentions("ana@example.org", ["My sister keeps bees behind the old mill."])
        >>> mentions.found('{"q": "my sister keeps\\\\nbees behind the old mill"}')
        "words of the user's"
        >>> mentions.found("to ana@example.org")
        "the user's name"
        >>> mentions.found("bees")
        ''
    """

    def __init__(self, user_id: str, texts: Iterable[str] = ()) -> None:
        self.user_id = user_id
        self._name = re.compile("|".join(_name_patterns(user_id)))
        self._texts: set[str] = set()
        self.texts: list[str] = []
        self._windows: Counter[bytes] = Counter()
        self.add(texts)

    def add(self, texts: Iterable[str]) -> None:
        """Search for these texts of the user too."""
        for text in texts:
            words = _words(text)
            if words not in self._texts and len(words.encode()) >= _WINDOW:
                self._texts.add(words)
                self.texts.append(text)
                self._windows.update(set(_sampled(words.encode())))

    def found(self, text: str) -> str:
        """What of the user is in a text, in words; empty where nothing is."""
        if self._name.search(text):
            return "the user's name"
        if not self._windows:
            return ""
        content = _words(text).encode()
        for start in _starts(content):
            if self._windows.get(content[start : start + _WINDOW]) == 1:  # more: how this user's texts begin
                return "words of the user's"
        return ""

    def found_in_bytes(self, content: bytes) -> str:
        """As ``found``, in a file of any kind: also in UTF-16, as far as it is text."""
        if found := self.found(content.decode("utf-8", "replace")):
            return found
        halves = (content[odd:].decode("utf-16-le", "ignore") for odd in (0, 1)) if b"\0" in content else ()
        return next(filter(None, map(self.found, halves)), "")


def _name_patterns(user_id: str) -> Iterable[str]:
    yield user_key(user_id)
    yield re.escape(persona_file_name(user_id).removesuffix(".json"))
    as_text = {user_id, json.dumps(user_id)[1:-1], json.dumps(user_id, ensure_ascii=False)[1:-1]}
    for spelled in map(re.escape, sorted(as_text)):
        if len(user_id) >= _LONG_NAME and not user_id.isalpha():
            yield rf"(?<!\w){spelled}(?!\w)"
        else:
            yield rf"[\"']{spelled}\\*[\"']"


def _words(text: str) -> str:
    text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    text = _BLANKS.sub(" ", text).encode("utf-8", "ignore").decode()
    return " ".join(_WORDS.findall(text.casefold()))


def _starts(content: bytes) -> Iterable[int]:
    """Where a word begins; any place of a script that writes words without blanks."""
    last = len(content) - _WINDOW
    if not content.isascii():
        return range(last + 1)
    starts, at = list[int](), 0
    while at <= last:
        starts.append(at)
        at = content.find(b" ", at) + 1 or last + 1
    return starts


def _sampled(content: bytes) -> Iterable[bytes]:
    """Parts at the beginning, in the middle and at the end, each from the beginning of a word."""
    starts = list(_starts(content))
    for start in {starts[0], starts[len(starts) // 2], starts[-1]}:
        yield content[start : start + _WINDOW]
