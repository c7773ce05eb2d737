"""Retrieval by sentence vectors (``Dense``), and by several retrievers at once (``Hybrid``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_dspy.errors import InputError
from persona_dspy.memory.retrieval import Index, Retriever

__all__ = ["Dense", "Hybrid", "dense_part"]


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
        encoder_name = getattr(self.encoder, "name", None) or getattr(self.encoder, "model", None)
        name = self.name or (encoder_name if isinstance(encoder_name, str) else "")
        if not name:
            raise InputError(f"Dense(encoder={self.encoder!r}): expected a name, such as name='my-encoder-v1'")
        object.__setattr__(self, "name", name)

    def encode(
        self, texts: Sequence[str], vectors: Sequence[NDArray[np.float32] | None] | None = None
    ) -> list[NDArray[np.float32]]:
        """Unit vectors; only texts whose vector is not given reach the encoder."""
        rows: list[NDArray[np.float32] | None] = [None] * len(texts) if vectors is None else list(vectors)
        missing = [i for i, vector in enumerate(rows) if vector is None]
        for start in range(0, len(missing), self.batch_size):
            chosen = missing[start : start + self.batch_size]
            for i, row in zip(chosen, self._embed([texts[i] for i in chosen]), strict=True):
                rows[i] = row
        return [_unit(np.asarray(vector, dtype=np.float32)) for vector in rows]

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
        >>> from persona_dspy.memory import BM25
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
    return next((dense for part in parts if (dense := dense_part(part))), None)
