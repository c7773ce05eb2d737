"""Counts with their nouns, as people write them."""

from __future__ import annotations

__all__ = ["plural"]


def plural(count: int, one: str, many: str = "") -> str:
    """``count`` and its noun; ``many`` where the plural is not ``one`` with an s.

    Example:
        >>> plural(1, "user"), plural(1200, "user"), plural(0, "reply", "replies")
        ('1 user', '1,200 users', '0 replies')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
