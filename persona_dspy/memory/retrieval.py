"""How near an episode is to a query: terms (BM25), vectors (Dense), both (Hybrid), and how age counts (Recency).

Not here: who may see which episode and time order (``episodic.py``); encoders (``encoders.py``); storage.

A **retriever** is a frozen configuration, shared by all users. It turns texts into items (``encode``: pure and
possibly slow, so it is never called under a lock) and makes one **index** per user (``index``: cheap, mutable, not
thread-safe alone: ``EpisodicMemory`` guards it).
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from persona_dspy.errors import InputError

__all__ = ["BM25", "Dense", "Hybrid", "Index", "Recency", "Retriever", "dense_part", "tokenize", "top"]

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


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


def tokenize(text: str) -> list[str]:
    """Words of a text for BM25: NFKC, case-folded, runs of letters and digits; a CJK character is a word.

    No stop words and no stemming: both are per language, and BM25's idf already plays common words down.

    Example:
        >>> tokenize("Alien (1979): L'ÉTÉ 東京")
        ['alien', '1979', 'l', 'été', '東', '京']
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


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
        words: text -> words, the same for episodes and queries.
    """

    k1: float = 1.5
    b: float = 0.75
    words: Callable[[str], list[str]] = tokenize

    def __post_init__(self) -> None:
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise InputError(f"BM25(k1={self.k1!r}, b={self.b!r}): expected k1 >= 0 and b in [0, 1], such as BM25()")

    def encode(self, texts: Sequence[str], vectors: Sequence[Any] | None = None) -> list[Counter[str]]:
        """Word counts of each text; ``vectors`` are not looked at."""
        return [Counter(self.words(text)) for text in texts]

    def index(self) -> Index:
        return _Postings(self.k1, self.b)


class _Postings:
    """For each word the slots that hold it and how often; appending is O(words of the episode)."""

    def __init__(self, k1: float, b: float) -> None:
        self._k1, self._b = k1, b
        self._postings: dict[str, array[int]] = {}  # slot, count, slot, count, ...: one small object a word
        self._lengths: array[int] = array("i")

    def add(self, items: Sequence[Counter[str]]) -> None:
        for counts in items:
            slot = len(self._lengths)
            self._lengths.append(counts.total())
            for word, count in counts.items():
                self._postings.setdefault(word, array("i")).extend((slot, count))

    def scores(self, query: Counter[str], live: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        # copied views: an array.array refuses to grow while numpy still looks at its buffer
        lengths = np.array(self._lengths, dtype=np.float32)
        found = np.zeros(len(lengths), dtype=np.float32)
        seen = lengths if live is None else lengths[live]
        if not len(seen):
            return found
        mean = float(seen.mean(dtype=np.float64)) or 1.0
        for word, times in query.items():
            posting = self._postings.get(word)
            if posting is None:
                continue
            pairs = np.array(posting).reshape(-1, 2)
            if live is not None:
                pairs = pairs[live[pairs[:, 0]]]
            slots, counts = pairs[:, 0], pairs[:, 1].astype(np.float32)
            idf = math.log(1 + (len(seen) - len(slots) + 0.5) / (len(slots) + 0.5))
            norm = np.float32(self._k1) * (1 - self._b + self._b / mean * lengths[slots])
            found[slots] += np.float32(times * idf) * counts / (norm + counts)  # slots of one word are distinct
        return found


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Cosine similarity of sentence vectors, to 5 decimals, over all of them: one float32 matrix a user, unit rows.

    Args:
        encoder: texts -> array of shape (texts, dimensions); ``encoders.minilm_encoder()``, a ``dspy.Embedder``
            (asked without its cache, which knows no user and could not forget one) or any callable.
        name: labels stored vectors, so that those of two encoders are never mixed; by default the encoder's own
            ``name``, or the model name of a ``dspy.Embedder``.
        batch_size: texts given to the encoder at once.

    Raises:
        InputError: no name; when used, an encoder that returns another shape or a value that is not finite.

    Example:
        >>> letters = Dense(encoder=lambda texts: [[t.count("a"), t.count("b")] for t in texts], name="letters")
        >>> index = letters.index()
        >>> index.add(letters.encode(["aab", "b"]))
        >>> index.scores(letters.encode(["a"])[0], None).round(2).tolist()
        [0.8899999856948853, 0.0]
    """

    encoder: Callable[[list[str]], Any]
    name: str = ""
    batch_size: int = 256

    def __post_init__(self) -> None:
        own = getattr(self.encoder, "name", None) or getattr(self.encoder, "model", None)
        name = self.name or (own if isinstance(own, str) else "")
        if not name:
            raise InputError(f"Dense(encoder={self.encoder!r}): expected a name, such as name='my-encoder-v1'")
        object.__setattr__(self, "name", name)

    def encode(
        self, texts: Sequence[str], vectors: Sequence[NDArray[np.float32] | None] | None = None
    ) -> list[NDArray[np.float32]]:
        """Unit vectors; only texts whose vector is not given reach the encoder."""
        known: list[NDArray[np.float32] | None] = [None] * len(texts) if vectors is None else list(vectors)
        missing = [i for i, vector in enumerate(known) if vector is None]
        for start in range(0, len(missing), self.batch_size):
            chosen = missing[start : start + self.batch_size]
            for i, row in zip(chosen, self._embed([texts[i] for i in chosen]), strict=True):
                known[i] = row
        return [_unit(np.asarray(vector, dtype=np.float32)) for vector in known]

    def index(self) -> Index:
        return _Matrix(self.name)

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        uncached = {"caching": False} if hasattr(self.encoder, "caching") else {}
        rows = np.asarray(self.encoder(texts, **uncached), dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(texts) or not rows.shape[1] or not np.isfinite(rows).all():
            raise InputError(
                f"encoder {self.name!r} gave shape {rows.shape} for {len(texts)} texts: "
                f"expected finite numbers of shape ({len(texts)}, dimensions)"
            )
        return rows


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


class _Matrix:
    """Rows in a buffer that doubles, so that appending is O(dimensions) on average."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rows = np.zeros((0, 0), dtype=np.float32)
        self._size = 0

    def add(self, items: Sequence[NDArray[np.float32]]) -> None:
        if not items:
            return
        width = self._rows.shape[1] or len(items[0])
        self._check(items, width)
        size = self._size + len(items)
        if size > len(self._rows):
            rows = np.zeros((max(size, 2 * self._size), width), dtype=np.float32)
            if self._size:
                rows[: self._size] = self._rows[: self._size]
            self._rows = rows
        self._rows[self._size : size] = items
        self._size = size

    def scores(self, query: NDArray[np.float32], live: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        if self._size:
            self._check([query], self._rows.shape[1])
        # a cosine depends on no other episode, so live changes nothing; BLAS may give equal rows unequal last digits,
        # which would decide between equals in place of their age: hence the rounding
        return np.round(self._rows[: self._size] @ query, 5)

    def _check(self, items: Sequence[NDArray[np.float32]], width: int) -> None:
        wrong = next((item.shape for item in items if item.shape != (width,)), None)
        if wrong is not None:
            raise InputError(
                f"a vector of encoder {self._name!r} has shape {wrong!r}: expected ({width},); "
                "give an encoder that changed another name"
            )


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Several retrievers as one, by reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).

    ``score = Σ_parts 1 / (k + rank)``, rank = 1 + how many are nearer: equals share a rank. A part ranks only
    what it scores above 0.

    Example:
        >>> both = Hybrid(parts=(BM25(), Dense(encoder=lambda texts: [[len(t), 1.0] for t in texts], name="length")))
        >>> both.k
        60
    """

    parts: tuple[Retriever, ...]
    k: int = 60

    def __post_init__(self) -> None:
        if not self.parts or self.k < 0:
            raise InputError(f"Hybrid({len(self.parts)} parts, k={self.k!r}): expected one part or more and k >= 0")

    def encode(
        self, texts: Sequence[str], vectors: Sequence[NDArray[np.float32] | None] | None = None
    ) -> list[tuple[Any, ...]]:
        return list(zip(*(part.encode(texts, vectors) for part in self.parts), strict=True))

    def index(self) -> Index:
        return _Fused(tuple(part.index() for part in self.parts), self.k)


class _Fused:
    def __init__(self, parts: tuple[Index, ...], k: int) -> None:
        self._parts, self._k = parts, k

    def add(self, items: Sequence[tuple[Any, ...]]) -> None:
        for number, part in enumerate(self._parts):
            part.add([item[number] for item in items])

    def scores(self, query: tuple[Any, ...], live: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        fused = np.zeros(0, dtype=np.float32)
        for part, encoded in zip(self._parts, query, strict=True):
            scores = part.scores(encoded, live)
            fused = fused if len(fused) else np.zeros(len(scores), dtype=np.float32)
            ranked = np.flatnonzero(scores > 0 if live is None else (scores > 0) & live)
            falling = np.sort(-scores[ranked])
            better = np.searchsorted(falling, -scores[ranked], side="left")
            fused[ranked] += (1 / (self._k + 1 + better)).astype(np.float32)
        return fused


def dense_part(retriever: Retriever | None) -> Dense | None:
    """The ``Dense`` in a retriever, whose vectors are worth storing, or None."""
    if isinstance(retriever, Dense):
        return retriever
    parts = retriever.parts if isinstance(retriever, Hybrid) else ()
    return next((found for part in parts if (found := dense_part(part))), None)


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
    n = len(scores)
    if k <= 0:
        return np.arange(0)
    if k >= n:
        chosen = np.arange(n)
    else:
        edge = np.partition(scores, n - k)[n - k]
        above, level = np.flatnonzero(scores > edge), np.flatnonzero(scores == edge)
        chosen = np.concatenate((above, level[len(level) - (k - len(above)) :]))
    return chosen[np.lexsort((-chosen, -scores[chosen]))]
