"""The differences between two texts as an editor would mark them: what was removed, what replaced it, and where."""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher

import regex

__all__ = ["differences"]

_ALIKE = 0.5  # share of words and signs in common from which on one text is a version of the other
_MOST = 1200  # words and signs: longer texts are compared at both ends by whoever reads them
_PAIRS = 150_000  # equal words, each place with each: prose of that length has a seventh; more takes seconds
_CONTEXT = 3  # words around a change, so that it can be found
_LONG = 240  # characters of one change; longer ones keep both ends
# A character of a script without spaces is a word by itself; marks stay with the letter that they belong to.
_TOKEN = regex.compile(
    r"\n+|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*|[\p{L}\p{M}\p{N}_]+|[^\p{L}\p{M}\p{N}_\s]"
)


def differences(ours: str, own: str, *, most: int = 12) -> list[str]:
    """The changes that turn ``ours`` into ``own``, in order, at most ``most`` of them, the largest; line breaks as ⏎.
    None where the texts share so little that one is not a version of the other, or are very long (1,200 words and
    signs), or repeat few words over and over.

    Example:
        >>> differences("Dear Ana, thanks a lot for your mail.", "Hi Ana, thanks for your mail.")
        ['"Dear" -> "Hi" (before: "Ana, thanks")', 'dropped "a lot" (after: "Ana, thanks")']
    """
    before, after = (list(_TOKEN.finditer(text)) for text in (ours, own))
    if max(len(before), len(after)) > _MOST:
        return []
    old_signs, new_signs = ([_sign(m) for m in found] for found in (before, after))
    counted = Counter(new_signs)
    if sum(counted[sign] for sign in old_signs) > _PAIRS:
        return []
    matcher = SequenceMatcher(None, old_signs, new_signs, autojunk=False)
    if matcher.real_quick_ratio() < _ALIKE or matcher.quick_ratio() < _ALIKE or matcher.ratio() < _ALIKE:
        return []
    changes: list[tuple[int, int, str]] = []
    for op, a, b, c, d in matcher.get_opcodes():
        old, new = _text(ours, before[a:b]), _text(own, after[c:d])
        if op == "equal" or old == new:
            continue
        what = f'"{old}" -> "{new}"' if old and new else f'dropped "{old}"' if old else f'added "{new}"'
        left, right = _text(ours, before[max(0, a - _CONTEXT) : a]), _text(ours, before[b : b + _CONTEXT])
        place = f'(after: "{left}")' if left else f'(before: "{right}")' if right else "(the whole text)"
        changes.append((max(b - a, d - c), len(changes), f"{what} {place}"))
    largest = sorted(changes, key=lambda change: -change[0])[:most]
    return [said for _, _, said in sorted(largest, key=lambda change: change[1])]


def _sign(match: regex.Match[str]) -> str:
    return "\n" if match[0].startswith("\n") else match[0]


def _text(text: str, tokens: list[regex.Match[str]]) -> str:
    """The part of ``text`` from the first to the last of ``tokens``, on one line."""
    if not tokens:
        return ""
    part = regex.sub(r"\s+", " ", text[tokens[0].start() : tokens[-1].end()].replace("\n", " ⏎ ")).strip()
    return part if len(part) <= _LONG else f"{part[: _LONG // 2]} ... {part[-_LONG // 2 :]}"
