"""Words of a text in any script, by Unicode: runs of letters, marks and digits, or pairs of characters where a script
puts no spaces between words."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import Literal

import regex

__all__ = ["count_characters", "is_spaceless", "normalized", "split_words", "words_of"]

_WORD_CHARACTER = r"[\p{L}\p{M}\p{N}]"
_SCRIPTS = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
_SPACELESS = "[[" + "".join(f"\\p{{scx={script}}}" for script in _SCRIPTS) + f"]&&{_WORD_CHARACTER}]"
_RUN = regex.compile(rf"(?V1)(?P<spaceless>{_SPACELESS}(?:{_SPACELESS}|\p{{M}})*)|[{_WORD_CHARACTER}--{_SPACELESS}]+")
_SPACELESS_CHARACTER = regex.compile(rf"(?V1){_SPACELESS}")
_WITH_MARKS = regex.compile(r"\P{M}\p{M}*|\p{M}+")
# Inside words: soft hyphens, and the joiners of Persian and Indic scripts.
_JOINERS: dict[int, None] = dict.fromkeys((0xAD, 0x200C, 0x200D))
_COMBINING = r"[\P{ccc=0}\u0f73\u0f75\u0f81\uff9e\uff9f]"  # the named ones become such in a normal form
_TOO_MANY_MARKS = regex.compile(rf"({_COMBINING}{{30}}){_COMBINING}+")


def normalized(text: str, form: Literal["NFC", "NFD", "NFKC"]) -> str:
    """``text`` in a Unicode form, in time proportional to it: of a run of combining marks the first 30 are kept
    (Unicode's stream-safe limit), because a run is sorted in time quadratic in its length.

    Example:
        >>> normalized("e\\u0301", "NFC"), len(normalized("a" + "\\u0315\\u0316" * 1000, "NFC"))
        ('é', 31)
    """
    if text.isascii():
        return text
    return unicodedata.normalize(form, _TOO_MANY_MARKS.sub(r"\1", text))


def words_of(text: str) -> list[str]:
    """The words of a text in order, in one spelling: NFKC, case-folded.

    Runs of letters, marks and digits. In scripts without spaces between words (Han, kana, Thai, Lao, Khmer, Burmese)
    each pair of neighbouring characters is a word, and a character that stands alone. No stop words, no stemming.

    Example:
        >>> words_of("Alien (1979): L'ÉTÉ हिन्दी 東京都 猫")
        ['alien', '1979', 'l', 'été', 'हिन्दी', '東京', '京都', '猫']
    """
    return split_words(normalized(text, "NFKC").casefold())


def split_words(text: str) -> list[str]:
    """``words_of``, as they are written.

    Example:
        >>> split_words("Straße")
        ['Straße']
    """
    if text.isascii():
        return regex.findall(r"[A-Za-z0-9]+", text)
    found: list[str] = []
    for run in _RUN.finditer(text.translate(_JOINERS)):
        if run["spaceless"]:
            characters = _WITH_MARKS.findall(run[0])
            found += map("".join, pairwise(characters)) if characters[1:] else characters
        else:
            found.append(run[0])
    return found


def is_spaceless(text: str) -> bool:
    """Whether most of a text's letters are of scripts without spaces between words: its length is in characters.

    Example:
        >>> is_spaceless("这部电影 OK"), is_spaceless("a film: 电影")
        (True, False)
    """
    if text.isascii():
        return False
    letters = len(regex.findall(r"[\p{L}\p{N}]", text))
    return 2 * len(_SPACELESS_CHARACTER.findall(regex.sub(r"\p{M}", "", text))) > letters


def count_characters(text: str) -> int:
    """How many characters a reader sees, white space not counted; a letter with its marks is one.

    Example:
        >>> count_characters("ที่ 你好！")
        4
    """
    return len(regex.findall(r"\S\p{M}*", normalized(text, "NFC")))
