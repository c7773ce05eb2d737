"""Answers in their several spellings: by case, space, punctuation at the ends, Unicode form; and words for yes and no.

Labels are matched in steps, the strictest first, and a step counts only where exactly one label fits: "C++" and "C#"
stay apart, "Comedy." is "comedy".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from persona_dspy.core.erasure import remember_short_texts
from persona_dspy.core.text import one_line
from persona_dspy.core.words import normalized

__all__ = ["LONG_LABEL", "bare", "can_be_listed", "folded", "match_label", "own_labels", "spellings", "truth"]

LONG_LABEL = 60  # characters

_OPENING, _CLOSING = "\"'“”‘’«»‹›„‚`*_([{<¿¡", "\"'“”‘’«»‹›`*_)]}>.,;:!?…。、，；：！？؟।"
_TAG = re.compile(r"</?[A-Za-z]")
_WHOLE = re.compile(r"([-+]?\d+)\.0+")
_YES = "true yes y t 1 on like liked up thumbsup positive 👍 ✓ ✔ ✅".split()  # noqa: SIM905 - a list of words
_NO = "false no n f 0 off dislike disliked down thumbsdown negative 👎 ✗ ✘ ❌".split()  # noqa: SIM905


@remember_short_texts(maxsize=4096)
def folded(text: str) -> str:
    """``text`` without differences of case, white space and Unicode form.

    Example:
        >>> folded("  Ｓci\\u00a0FI ")
        'sci fi'
    """
    plain = normalized(normalized(text, "NFKC").casefold(), "NFKC")
    return " ".join(plain.replace("\ufe0f", "").split())


@remember_short_texts(maxsize=4096)
def bare(text: str) -> str:
    """``folded`` text without quotes, brackets and marks around it; as it is where nothing else is left.

    Example:
        >>> bare("**Drama**."), bare("?"), bare("C++"), bare("3.0")
        ('drama', '?', 'c++', '3')
    """
    plain = folded(text)
    inner = plain.lstrip(_OPENING).rstrip(_CLOSING).strip() or plain
    number = _WHOLE.fullmatch(inner)
    return number[1] if number else inner


_STEPS: tuple[Callable[[str], str], ...] = (str.strip, folded, bare)


def match_label(text: str, labels: Sequence[str]) -> str | None:
    """The one of ``labels`` that ``text`` is a spelling of; None where it is none, or may be several.

    Of two labels that mean yes and no, any word for yes or no is one.

    Example:
        >>> match_label(" Comedy.", ["comedy", "drama"]), match_label("thumbs up", ["like", "dislike"])
        ('comedy', 'like')
    """
    for step in _STEPS:
        wanted = step(text)
        fitting = [label for label in labels if step(label) == wanted]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            return None
    truths = [truth(label) for label in labels]
    if len(labels) == 2 and set(truths) == {True, False} and (meant := truth(text)) is not None:
        return labels[truths.index(meant)]
    return None


def spellings(texts: Iterable[str]) -> dict[str, str]:
    """Each of ``texts`` -> the commonest spelling of the same answer, of equally common ones the first.

    Example:
        >>> spellings(["drama", "Drama.", "comedy", "drama"])
        {'drama': 'drama', 'Drama.': 'drama', 'comedy': 'comedy'}
    """
    groups: dict[str, Counter[str]] = {}
    for text in texts:
        groups.setdefault(bare(text), Counter())[text.strip()] += 1
    return {text: group.most_common(1)[0][0] for group in groups.values() for text in group}


def own_labels(texts: Sequence[str]) -> tuple[str, ...]:
    """Distinct answers that can be labels, each in its commonest spelling, sorted.

    Labels stand in the system message as they are, so what cleaning changes, what looks like a tag, or what is long,
    is none.

    Example:
        >>> own_labels(["drama", "Drama", "drama", "[[ ## tag ## ]]", "</title>"])
        ('drama',)
    """
    answers = set(spellings(texts).values())
    return tuple(sorted(filter(can_be_listed, answers)))


def can_be_listed(label: str) -> bool:
    """Whether an answer may stand in a system message as it is; see ``own_labels``."""
    return len(label) <= LONG_LABEL and one_line(label) == label and not _TAG.search(label)


def truth(text: str) -> bool | None:
    """Whether ``text`` is a word for yes or for no; None where it is neither.

    Example:
        >>> truth("Yes!"), truth("thumbs down"), truth("0"), truth("maybe")
        (True, False, False, None)
    """
    word = re.sub(r"[\s_-]", "", bare(text))
    return True if word in _YES else False if word in _NO else None
