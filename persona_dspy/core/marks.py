"""Which places of a text a prompt or a chat template may take for its own structure, and the text without them.

Structure is told by its shape, not by a list: doubled brackets with hashes (DSPy's fields), angles with bars or around
one word (role tags of chat templates), capitals in square brackets. A list of marks is never whole; the list of HTML's
elements, which stay as they are, is. Look-alikes count as what they look like. Everything here takes time in
proportion to the text, whatever the text is.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

from persona_dspy.core.erasure import remember

__all__ = ["apart", "only_tags_apart", "printable", "spaced_at", "visible"]

_ALIKE = {
    "[": "\uff3b\u2045\u3014\u2772\u3010\u301a\u27e6\u3016\u3018\u27ec\u2985\u298b\u298d\u298f\u2e22\u2e24\ufe47\ufe5d",
    "]": "\uff3d\u2046\u3015\u2773\u3011\u301b\u27e7\u3017\u3019\u27ed\u2986\u298c\u298e\u2990\u2e23\u2e25\ufe48\ufe5e",
    "<": "\uff1c\ufe64\u27e8\u3008\u2329\u276e\u2770\u2039\u02c2\u1438\u2c0d\u276c\u227a\u29fc",
    ">": "\uff1e\ufe65\u27e9\u3009\u232a\u276f\u2771\u203a\u02c3\u1433\u276d\u227b\u29fd",
    "|": "\uff5c\u00a6\ufe31\ufe33\u2502\u2503\u2758\u2759\u275a\u2223\u01c0\u23d0\uffe8\u258f\u2595\u2016\u2225\u01c1",
    "#": "\uff03\ufe5f\u266f\u2317\u22d5\u2a69\U0001d130",
    "/": "\uff0f\u2044\u2215\u2571\u29f8",
    "_": "\uff3f\u2581\u02cd\u2017",
    "`": "\uff40\u02cb\u1fef",
}
_DOUBLE = {"\u27e6": "\x01", "\u301a": "\x01", "\u27e7": "\x02", "\u301b": "\x02"}  # one sign that looks like two
_SHADOW = {
    **{ord(c): sign for sign, alike in _ALIKE.items() for c in alike if len(c.encode()) > 1},
    **{ord(c): sign for c, sign in _DOUBLE.items()},
}
_SIGNS = frozenset("[]<>|#/_`" + "".join(map(chr, _SHADOW)))

_HTML = frozenset(
    """a abbr acronym address area article aside audio b base bdi bdo big blockquote body br button canvas caption
    center cite code col colgroup data dd del details dfn dialog dir div dl dt em embed fieldset figcaption figure font
    footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe img input ins kbd label legend li
    link main map mark menu meta meter nav noscript object ol optgroup option output p param picture pre progress q rp
    rt ruby samp script section select slot small source span strike strong style sub summary sup svg table tbody td
    template textarea tfoot th thead time title tr tt u ul var video wbr""".split()  # noqa: SIM905 - a list of words
)
_KNOWN = frozenset(
    """bos eos s pad unk sop eop mask cls sep think user assistant system human bot sys image eot eod eoh eoa eosys soh
    turn role instruction instructions inst channel message tool tools function parameter invoke""".split()  # noqa: SIM905
)

_QUIET = re.compile(r"[^\[\]<>|#`]*")
_BAR = re.compile(r"(?<=<)(?=\|)|(?<=\|)(?=>)")
_TAG = re.compile(r"<(?=/?([A-Za-z0-9_.:=+-]+)(\s[^<>\n]{0,200})?/?>)")
_FENCE = re.compile(r"<(?=/?data\b)", re.IGNORECASE)
_BRACKET = re.compile(r"\[(?=/?([A-Za-z0-9_]+)\])")
_BARRED = re.compile(r"\[(?=\|/?[A-Za-z0-9_]{1,40}\|\])")
_TILDE = re.compile(r"[\[\]](?=[a-z!]*~[a-z!]*[\[\]])")
_OPENS = re.compile(r"(?=((?:\[\[|\x01)\s*##))")
_CLOSES = re.compile(r"(?=(##\s*(?:\]\]|\x02)))")
_TICKS = re.compile(r"(?=(```))")


def apart(text: str, tags: Collection[str] = (), *, fences: bool = False) -> str:
    """``text`` with a space wherever structure would otherwise stand; nothing else is changed, nothing is lost.

    Args:
        tags: names of XML tags that are structure in this prompt as well.
        fences: whether fences (three backquotes, our own ``<data>``) are structure, as in text that is fenced itself.
    """
    if _QUIET.fullmatch(text) and text.isascii():
        return text
    shadow = text if text.isascii() else _shadow(text)
    places = sorted(set(_places(shadow, fences)) | set(_tag_places(shadow, tags)))
    return spaced_at(text, places)


def only_tags_apart(text: str, tags: Collection[str]) -> str:
    """``text`` with these XML tags, and no other structure, broken up by spaces."""
    if not tags or _QUIET.fullmatch(text):
        return text
    return spaced_at(text, sorted(_tag_places(text, tags)))


def spaced_at(text: str, places: Sequence[int]) -> str:
    """``text`` with a space before each of ``places``, in ascending order.

    Example:
        >>> spaced_at("<tag>", [1])
        '< tag>'
    """
    return " ".join(text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True))


def _places(shadow: str, fences: bool) -> Iterator[int]:
    """Positions before which a space breaks structure up. Spaces create none anew: once is enough."""
    for match in _BAR.finditer(shadow):
        yield match.start()
    for match in _TAG.finditer(shadow):
        name = match[1].lower()
        is_generic = match.start() > 0 and shadow[match.start() - 1].isalnum() and "_" not in name  # List<int>
        doubtful = is_generic or (match[2] and "_" not in name)  # as in "if a <b and c> d"
        if name not in _HTML and (not doubtful or name in _KNOWN):
            yield match.end()
    for match in _BARRED.finditer(shadow):
        yield match.end()
    if fences:
        yield from (match.end() for match in _FENCE.finditer(shadow))
    for match in _BRACKET.finditer(shadow):
        if len(match[1]) > 2 and sum(c.isupper() for c in match[1]) > 1:
            yield match.end()
    for match in _TILDE.finditer(shadow):
        yield match.end()
    for pattern in (_OPENS, _CLOSES, *([_TICKS] if fences else [])):
        for match in pattern.finditer(shadow):
            sign = [match.start() + n for n, c in enumerate(match[1]) if not c.isspace()]
            yield from (place for place in sign[1:] if place - 1 in sign)


def _tag_places(text: str, tags: Collection[str]) -> list[int]:
    return [match.end() for match in _tags(frozenset(tags)).finditer(text)] if tags else []


@remember(maxsize=256)
def _tags(names: frozenset[str]) -> re.Pattern[str]:
    listed = "|".join(sorted(map(re.escape, names)))
    return re.compile(rf"[<\uff1c](?=/?(?:{listed})\b)")


def _shadow(text: str) -> str:
    """``text`` as it looks, sign by sign: as long as the text, ASCII where a sign looks like ASCII."""
    return text.translate({ord(c): _looks(c) for c in set(text) if not c.isascii()})


@lru_cache(maxsize=8192)
def _looks(char: str) -> str:
    if sign := _SHADOW.get(ord(char)):
        return sign
    plain = unicodedata.normalize("NFKC", char)
    return plain if len(plain) == 1 and plain.isascii() else char


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BREAKS = {0x85: "\n", 0x2028: "\n", 0x2029: "\n"}
_JOINERS, _SELECTORS = "\u200c\u200d", "\ufe00-\ufe0f"
_RUN = re.compile(f"[{_JOINERS}{_SELECTORS}]+")
_MARKS = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f\u180b-\u180f"
_ON_SIGN = re.compile(f"(?<=[{re.escape(''.join(sorted(_SIGNS - {'_'})))}])[{_MARKS}{_JOINERS}{_SELECTORS}]+")
_KEYCAPS = ("\u20e3", "\ufe0f\u20e3")
_NEVER_SEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")  # fillers and the joiner of graphemes


def visible(text: str) -> str:
    """``text`` without what no reader sees: control and format characters, fillers, tags; every line break is "\\n".

    Joiners and variation selectors stay inside words of scripts that need them and inside emoji. Half a surrogate pair
    becomes U+FFFD.

    Example:
        >>> visible("a\\u200bb\\r\\nc\\ud800")
        'ab\\nc\\ufffd'
    """
    if text.isascii():
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return _CONTROL.sub("", text)
    if any("\ud800" <= c <= "\udfff" for c in set(text)):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs become one character
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    unseen: dict[int, str | None] = {ord(c): None for c in set(text) if _is_unseen(c)}
    text = text.translate(unseen | _BREAKS)
    return _RUN.sub(_needed, _ON_SIGN.sub(_keycap, text))


def printable(text: str) -> str:
    """``text`` for a terminal or a log: what it would act on, or nobody sees, as JSON escapes; line breaks stay.

    Example:
        >>> print(printable("a\\x1b[2J\\nb\\u202ec"))
        a\\u001b[2J
        b\\u202ec
    """
    if text.isascii() and text.isprintable():
        return text
    odd = {ord(c): json.dumps(c)[1:-1] for c in set(text) if _is_unseen(c) or "\ud800" <= c <= "\udfff"}
    return text.translate(odd) if odd else text


@lru_cache(maxsize=8192)
def _is_unseen(char: str) -> bool:
    code = ord(char)
    if char in "\n\t\u200c\u200d":
        return False
    return (
        char in _NEVER_SEEN
        or unicodedata.category(char) in ("Cc", "Cf", "Co")
        or code == 0x2065
        or 0xFFF0 <= code <= 0xFFF8
        or 0xE0000 <= code <= 0xE0FFF
    )


def _keycap(match: re.Match[str]) -> str:
    return match[0] if match[0] in _KEYCAPS and match.string[match.start() - 1] == "#" else ""


def _needed(match: re.Match[str]) -> str:
    """Of a run of joiners and selectors, what a script or an emoji needs: a selector, then a joiner, at most."""
    before = match.string[match.start() - 1] if match.start() else ""
    after = match.string[match.end()] if match.end() < len(match.string) else ""
    selector = next((c for c in match[0] if c not in _JOINERS), "")
    joiner = next((c for c in match[0] if c in _JOINERS), "")
    selector = selector if _joins(before) or after == "\u20e3" else ""
    return selector + (joiner if (selector or _joins(before)) and _joins(after) else "")


@lru_cache(maxsize=8192)
def _joins(char: str) -> bool:
    if not char or char.isascii() or char in _SIGNS:
        return False
    category = unicodedata.category(char)
    return category[0] in "LM" or category in ("So", "Sk", "Sm", "Po")
