"""Retrieval by words (``BM25``), the weight of an episode's age (``Recency``), and the k best scores (``top``).

A **retriever** is a frozen configuration, shared by all users. It turns texts into items (``encode``: pure and
possibly slow, so it is never called under a lock) and makes one **index** per user (``index``: cheap, mutable, not
thread-safe alone: ``EpisodicMemory`` guards it).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from persona_dspy.core import words_of
from persona_dspy.errors import InputError

__all__ = ["BM25", "Index", "Recency", "Retriever", "top"]

_BLOCK = 64


class Index(Protocol):
    """The searchable form of one user's episodes; slot i is the i-th item ever added."""

    def add(self, items: Sequence[Any]) -> None:
        """Append encoded items as the next slots."""
        ...

    def scores(self, query: Any, live: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Nearness of every slot to an encoded query, shape (slots,), higher is nearer.

        ``live`` (shape (slots,), None = all) marks what may be seen: the scores of live slots are exactly those of
        an index that holds the live slots only. Scores of the others are meaningless.
        """
        ...


class Retriever(Protocol):
    """Frozen configuration of a search, shared by users and threads."""

    def encode(self, texts: Sequence[str], vectors: Sequence[NDArray[np.float32] | None] | None = None) -> list[Any]:
        """One item per text, ``len(result) == len(texts)``; ``vectors`` are embeddings already known, if any."""
        ...

    def index(self) -> Index:
        """A new, empty index."""
        ...


@dataclass(frozen=True, kw_only=True)
class BM25:
    """Term matching, Lucene's variant of BM25 (Kamphuis et al., ECIR 2020).

    ``score = Σ_t idf_t · tf / (k1 · (1 - b + b · dl / avgdl) + tf)``, ``idf_t = ln(1 + (N - df + .5) / (df + .5))``;
    a term repeated in the query counts that often. The same numbers as ``bm25s`` with ``method="lucene"``; unlike it,
    N, df and avgdl are taken when asked, over the live episodes alone, so that a search "as of then" has that time's
    statistics and an append costs no rebuild.

    Args:
        k1: how fast repeated terms saturate, >= 0.
        b: how much long episodes are played down, in [0, 1].
        words: text -> words, the same for episodes and queries; by default of any script, without stop words or stems,
            which are per language: BM25's idf already plays common words down.
    """

    k1: float = 1.5
    b: float = 0.75
    words: Callable[[str], list[str]] = words_of

    def __post_init__(self) -> None:
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise InputError(f"BM25(k1={self.k1!r}, b={self.b!r}): expected k1 >= 0 and b in [0, 1], such as BM25()")

    def encode(self, texts: Sequence[str], vectors: Sequence[Any] | None = None) -> list[Counter[str]]:
        """Word counts of each text; ``vectors`` are not looked at."""
        return [Counter(self.words(text)) for text in texts]

    def index(self) -> Index:
        return _Postings(self.k1, self.b)


class _Postings:
    """For each word the slots that hold it and how often; appending is O(words of the episode).

    The weights of words in earlier queries are cached until the next append: at most 1.5 times the postings' size.
    """

    def __init__(self, k1: float, b: float) -> None:
        self._k1, self._b = k1, b
        self._postings: dict[str, array[int]] = {}  # slot, count, slot, count, ...: one small object a word
        self._lengths: array[int] = array("i")
        self._query_weights: dict[str, tuple[NDArray[np.intp], NDArray[np.float32]]] = {}

    def add(self, items: Sequence[Counter[str]]) -> None:
        self._query_weights.clear()
        for counts in items:
            slot = len(self._lengths)
            self._lengths.append(counts.total())
            for word, count in counts.items():
                self._postings.setdefault(word, array("i")).extend((slot, count))

    def scores(self, query: Counter[str], live: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        totals = np.zeros(len(self._lengths), dtype=np.float32)
        words = [word for word in query if word in self._postings]
        if live is not None and words:
            slots, weights, sizes = self._weigh(words, live)
            times = np.repeat(np.array([query[word] for word in words], dtype=np.float32), sizes)
            np.add.at(totals, slots, times * weights)
        elif words:
            self._cache_weights([word for word in words if word not in self._query_weights])
            for word in words:
                slots, weights = self._query_weights[word]
                np.add.at(totals, slots, weights if query[word] == 1 else np.float32(query[word]) * weights)
        return totals

    def _cache_weights(self, words: Sequence[str]) -> None:
        if not words:
            return
        slots, weights, sizes = self._weigh(words, None)
        ends = np.cumsum(sizes)[:-1]
        self._query_weights.update(
            zip(words, zip(np.split(slots, ends), np.split(weights, ends), strict=True), strict=True)
        )

    def _weigh(
        self, words: Sequence[str], live: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.intp]]:
        """Slots that hold a word and its BM25 weight in each, word after word, and how many slots each word has."""
        # copied: an array.array refuses to grow while numpy looks at its buffer
        lengths = np.array(self._lengths, dtype=np.float32)
        live_lengths = lengths if live is None else lengths[live]
        postings = [np.array(self._postings[word]) for word in words]
        pairs, owner = (
            np.concatenate(postings).reshape(-1, 2),
            np.repeat(np.arange(len(words)), [len(p) // 2 for p in postings]),
        )
        if live is not None:
            is_live = live[pairs[:, 0]]
            pairs, owner = pairs[is_live], owner[is_live]
        slots, counts = pairs[:, 0].astype(np.intp), pairs[:, 1].astype(np.float32)
        slots_per_word = np.bincount(owner, minlength=len(words))
        idf = np.log(1 + (len(live_lengths) - slots_per_word + 0.5) / (slots_per_word + 0.5))
        mean = (live_lengths.sum(dtype=np.float64) / len(live_lengths) if len(live_lengths) else 0.0) or 1.0
        norm = np.float32(self._k1) * (1 - self._b + self._b / np.float32(mean) * lengths[slots])
        return slots, (idf[owner] * counts / (norm + counts)).astype(np.float32), slots_per_word


@dataclass(frozen=True, slots=True, kw_only=True)
class Recency:
    """How fast an episode's weight fades: ``score = max(relevance, 0) · 0.5 ** (age / half_life)``.

    Args:
        half_life: age at which half the weight is left, > 0.
        unit: "episodes": age = how many newer ones may be seen. "days": age = days before the cut, or before the
            newest that may be seen; episodes without a time count as old as the oldest.

    Example:
        >>> Recency(half_life=10, unit="days").weights(np.array([0.0, 10.0])).tolist()
        [1.0, 0.5]
    """

    half_life: float
    unit: Literal["episodes", "days"] = "episodes"

    def __post_init__(self) -> None:
        if not self.half_life > 0 or self.unit not in ("episodes", "days"):
            raise InputError(
                f"Recency(half_life={self.half_life!r}, unit={self.unit!r}): expected a half-life above 0 and the "
                "unit 'episodes' or 'days', such as Recency(half_life=90, unit='days')"
            )

    def weights(self, ages: NDArray[Any]) -> NDArray[np.float32]:
        """Factors in (0, 1], one per age."""
        return np.power(0.5, ages / self.half_life).astype(np.float32)


def top(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Positions of the k highest scores, best first; of equals the last position first. Exact, O(n + k log k).

    Example:
        >>> top(np.array([0.0, 2.0, 0.0, 1.0], dtype=np.float32), 3).tolist()
        [1, 3, 2]
    """
    if k <= 0:
        return np.arange(0)
    candidates = np.arange(len(scores))
    blocks = len(scores) // _BLOCK
    if blocks > 4 * k:  # at least k scores reach the k-th highest maximum of a block: lower ones are out
        highest = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        candidates = np.flatnonzero(scores >= np.partition(highest, blocks - k)[blocks - k])
    if k < len(candidates):
        candidate_scores = scores[candidates]
        edge = np.partition(candidate_scores, len(candidates) - k)[len(candidates) - k]
        above, equal = candidates[candidate_scores > edge], candidates[candidate_scores == edge]
        candidates = np.concatenate((above, equal[len(equal) - (k - len(above)) :]))
    return candidates[np.lexsort((-candidates, -scores[candidates]))]
