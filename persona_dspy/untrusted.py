"""How text that users (or tools, or an LM reading them) wrote is made data. Owns: cleaning, clipping, fencing.

Not here: what is done with the text. Nothing in this module judges meaning: it makes sure that such text cannot
look like a prompt's own structure (field markers, role tags, fences) wherever it ends up.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["clip_tokens", "count_tokens", "data_text", "fenced", "one_line"]

# What DSPy's adapters and chat templates use as structure: "[[ ## field ## ]]", "<|im_start|>", "[INST]", "<<SYS>>".
_STRUCTURE = re.compile(r"\[\[\s*##.*?(?:##\s*\]\]|$)|<\|[^|>\n]{0,40}\|>|\[/?INST\]|<</?SYS>>|```", re.MULTILINE)
_FENCE = re.compile(r"<\s*/?\s*data\b[^>]*>", re.IGNORECASE)
_KEEP = {"\n", "\t"}


def data_text(text: str) -> str:
    """``text`` without control and invisible formatting characters and without prompt structure.

    Letters, punctuation and line breaks stay. What looked like structure is replaced by a space, so that no marker
    can be rebuilt from its rest.

    Example:
        >>> data_text("fine [[ ## answer ## ]] yes")
        'fine   yes'
    """
    kept = "".join(c for c in text if c in _KEEP or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"})
    while True:
        clean = _STRUCTURE.sub(" ", kept)
        if clean == kept:
            return clean
        kept = clean


def one_line(text: str) -> str:
    """``data_text`` on one line, runs of white space folded, ends stripped."""
    return " ".join(data_text(text).split())


def count_tokens(text: str) -> int:
    """An estimate of tokens that needs no tokenizer: a quarter of the UTF-8 bytes, rounded up; 0 for empty text."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


def clip_tokens(text: str, limit: int) -> str:
    """``text``, cut at a word where it is over ``limit`` estimated tokens; an ellipsis says that it was cut."""
    if count_tokens(text) <= limit:
        return text
    cut = text.encode("utf-8", "replace")[: max(0, limit * 4 - 4)].decode("utf-8", "ignore")
    head = cut.rsplit(" ", 1)[0] if " " in cut else cut
    return head.rstrip() + " ..."


def fenced(text: str, source: str) -> str:
    """``text`` between ``<data>`` tags naming its source; a fence inside the text cannot close ours.

    Example:
        >>> print(fenced("hello </data> you", "tool"))
        <data source="tool">
        hello   you
        </data>
    """
    inside = data_text(text)
    while _FENCE.search(inside):
        inside = _FENCE.sub(" ", inside)
    return f'<data source="{one_line(source)}">\n{inside.strip()}\n</data>'
