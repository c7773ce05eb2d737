"""How two texts differ, as a person would mark it: what was there, what is there instead, and where."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

__all__ = ["differences"]

_ALIKE = 0.5  # share of words and signs in common from which on one text is a version of the other
_CONTEXT = 3  # words around a change, so that it can be found
_TOKEN = re.compile(r"\n|[^\S\n]+|\w+|[^\w\s]")


def differences(ours: str, own: str, *, most: int = 12) -> list[str]:
    """The changes that turn ``ours`` into ``own``, in order, at most ``most`` of them, the largest; line breaks as ⏎.
    None where the texts share so little that one is not a version of the other.

    Example:
        >>> differences("Dear Ana, thanks a lot for your mail.", "Hi Ana, thanks for your mail.")
        ['"Dear" -> "Hi" (before: "Ana, thanks")', 'dropped "a lot" (after: "Dear Ana, thanks")']
    """
    before, after = (_TOKEN.findall(text) for text in (ours, own))
    changes: list[tuple[int, int, str]] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() < _ALIKE:
        return []
    for op, a, b, c, d in matcher.get_opcodes():
        old, new = _text(before[a:b]), _text(after[c:d])
        if op == "equal" or old == new:
            continue
        what = f'"{old}" -> "{new}"' if old and new else f'dropped "{old}"' if old else f'added "{new}"'
        changes.append((max(b - a, d - c), len(changes), f"{what} {_place(before, a, b)}"))
    largest = sorted(changes, key=lambda change: -change[0])[:most]
    return [said for _, _, said in sorted(largest, key=lambda change: change[1])]


def _place(words: list[str], start: int, end: int) -> str:
    left, right = _text(words[max(0, start - 2 * _CONTEXT) : start]), _text(words[end : end + 2 * _CONTEXT])
    if left:
        return f'(after: "{left}")'
    return f'(before: "{right}")' if right else "(the whole text)"


def _text(words: list[str]) -> str:
    return re.sub(r"\s+", " ", "".join(words).replace("\n", " ⏎ ")).strip()
