"""How alike personas are: a map, groups, Jaccard similarity.

The paper shows a t-SNE map of its learned personas and a Jaccard matrix of their words (arXiv 2506.06254); here the
embedding is TF-IDF unless an encoder is given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_dspy.core import Bullet, Persona, words_of
from persona_dspy.errors import InputError
from persona_dspy.memory import function_words

__all__ = ["Encoder", "PersonaMap", "jaccard", "map_personas", "nearest", "persona_terms", "persona_text", "spread"]

Encoder = Callable[[list[str]], Any]
"""Texts -> one vector a text, such as ``dspy.Embedder`` or ``minilm_encoder()``."""

GROUPS = 6  # at most: more colours cannot be told apart
_LEAST_FOR_GROUPS = 6
_NAME = 44
_SHARED = 0.7  # of a line's terms, that it may speak for its group
_CLEAR = 0.05  # silhouette, in [-1, 1], below which groups are not worth a name


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonaMap:
    """Where each persona lies. All tuples have one entry a persona, in the order given, but ``names``.

    Args:
        xy: positions; near = alike, far says little, and axes have no unit (t-SNE).
        groups: index into ``names``.
        names: of a group the line that tells most of it, or its most telling terms, each held by half of the group at
            least.
    """

    users: tuple[str, ...]
    xy: tuple[tuple[float, float], ...]
    groups: tuple[int, ...]
    names: tuple[str, ...]


def persona_text(persona: Persona) -> str:
    """What a persona says, a line a bullet, without the headings that all personas share: what an encoder gets."""
    return "\n".join(b.sentence for b in persona.bullets)


def persona_terms(persona: Persona) -> list[str]:
    """What a persona consists of, lower case: the words of its sentences without function words, and for a
    decision rule each word of its condition with the response, so that opposite rules about one word are not alike.
    Of a counted fact only what it quotes: the rest is the same for every user.

    Example:
        >>> from persona_dspy.core import Bullet
        >>> rule = Bullet(section="what decides", words=("ghost", "demon"), then="horror")
        >>> persona_terms(Persona(user_id="u1", bullets=(rule, Bullet(section="style", text="Writes short words."))))
        ['ghost → horror', 'demon → horror', 'writes', 'short', 'words']
    """
    return [term for bullet in persona.bullets for term in _terms(bullet)]


def _terms(bullet: Bullet) -> list[str]:
    if bullet.when:
        conditions = ["anything else"] if bullet.is_default else list(bullet.words) or _words(bullet.when)
        return [f"{word} → {bullet.then.lower()}" for word in conditions]
    quoted = re.findall(r'"([^"]+)"', bullet.text.lower()) if bullet.source == "fact" else []
    return quoted or _words(bullet.text)


def jaccard(sets: Sequence[Collection[str]]) -> NDArray[np.float64]:
    """Shared entries over all entries, for each pair: a symmetric matrix in [0, 1] with ones on its diagonal.

    Two empty sets have similarity 0.

    Example:
        >>> jaccard([{"a", "b"}, {"b", "c"}]).round(2).tolist()
        [[1.0, 0.33], [0.33, 1.0]]
    """
    from scipy.sparse import csr_matrix

    column_of: dict[str, int] = {}
    columns = [[column_of.setdefault(word, len(column_of)) for word in set(one)] for one in sets]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.array([c for row in columns for c in row], dtype=np.int64)
    held = csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(sets), max(1, len(column_of))))
    shared = np.asarray((held @ held.T).todense(), dtype=np.float64)
    sizes = shared.diagonal()
    either = sizes[:, None] + sizes[None, :] - shared
    similarity = np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def nearest(similarity: NDArray[np.float64], k: int = 3) -> list[list[int]]:
    """For each row the ``k`` most similar others, best first; those with nothing in common are left out.

    Example:
        >>> nearest(jaccard([{"a", "b"}, {"b"}, {"c"}]))
        [[1], [0], []]
    """
    others = similarity.copy()
    np.fill_diagonal(others, -1.0)
    order = np.argsort(-others, axis=1, kind="stable")[:, :k]
    return [[int(j) for j in row if others[i, j] > 0] for i, row in enumerate(order)]


def spread(groups: Sequence[int], limit: int, *, seed: int = 0) -> list[int]:
    """Which ``limit`` members stand for all: each group by its share, members drawn with ``seed``; by group.

    Example:
        >>> spread([0, 0, 0, 1], limit=10), len(spread([0] * 90 + [1] * 30, limit=20))
        ([0, 1, 2, 3], 20)
    """
    by_group = sorted(range(len(groups)), key=lambda i: (groups[i], i))
    if len(groups) <= limit:
        return by_group
    rng = np.random.default_rng(seed)
    shuffled = sorted(by_group, key=dict(zip(by_group, rng.permutation(len(by_group)), strict=True)).__getitem__)
    shuffled.sort(key=lambda i: groups[i])
    step = len(shuffled) / limit  # one of each run of `step`: a group's share is met within one
    return [shuffled[int((n + 0.5) * step)] for n in range(limit)]


def map_personas(personas: Sequence[Persona], *, encoder: Encoder | None = None, seed: int = 0) -> PersonaMap:
    """Positions and groups of personas. Deterministic in ``seed``; 2,000 personas take about half a minute of CPU.

    Args:
        encoder: texts -> vectors; None = TF-IDF of ``persona_terms``.

    Raises:
        InputError: no personas, or the encoder returns another number of vectors.
    """
    if not personas:
        raise InputError("personas []: expected at least one persona to map")
    weights, vocabulary = _tfidf([persona_terms(p) for p in personas])
    vectors = _reduced(weights) if encoder is None else _encoded(encoder, [persona_text(p) for p in personas])
    groups = _groups(vectors, seed)
    if encoder is None and not all(_common(weights, groups, g).any() for g in set(groups)):
        groups = [0] * len(groups)  # neighbours that share no term are so by the reduction only
    return PersonaMap(
        users=tuple(p.user_id for p in personas),
        xy=tuple((round(float(x), 3), round(float(y), 3)) for x, y in _positions(vectors, seed)),
        groups=tuple(groups),
        names=_names(personas, weights, vocabulary, groups),
    )


def _words(text: str) -> list[str]:
    words = words_of(text)
    return [word for word in words if word not in function_words(words)]


def _tfidf(terms: list[list[str]]) -> tuple[Any, list[str]]:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(terms):
        return csr_matrix((len(terms), 1)), [""]
    analyzer: Any = list
    vectorizer = TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, max_features=20_000)
    return vectorizer.fit_transform(terms), list(vectorizer.get_feature_names_out())


def _reduced(weights: Any) -> NDArray[np.float64]:
    from sklearn.decomposition import TruncatedSVD

    size = min(50, weights.shape[1] - 1, weights.shape[0] - 1)
    if size < 2 or not weights.nnz:
        return np.asarray(weights.todense(), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # equal personas: no variance to explain
        return TruncatedSVD(size, random_state=0).fit_transform(weights)


def _encoded(encoder: Encoder, texts: list[str]) -> NDArray[np.float64]:
    vectors = np.asarray(encoder([t or " " for t in texts]), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise InputError(f"encoder returned shape {vectors.shape!r}: expected {len(texts)} vectors, one a persona")
    return vectors


def _positions(vectors: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    n = len(vectors)
    if n < 4 or len(np.unique(vectors.round(9), axis=0)) < 4:  # too few places for t-SNE: a ring, in order
        angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
        return np.column_stack([np.cos(angles), np.sin(angles)]) * (n > 1)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.5, (n - 1) / 3))
    start = "pca" if vectors.shape[1] >= 2 else "random"
    return TSNE(perplexity=perplexity, init=start, random_state=seed, max_iter=600).fit_transform(vectors)


def _groups(vectors: NDArray[np.float64], seed: int) -> list[int]:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    places = len(np.unique(vectors.round(9), axis=0))
    if len(vectors) < _LEAST_FOR_GROUPS or places < 2:
        return [0] * len(vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    best, chosen = _CLEAR, [0] * len(vectors)
    starts: Any = 5
    for k in range(2, min(GROUPS, places, len(vectors) // 3) + 1):
        labels = KMeans(k, n_init=starts, random_state=seed).fit_predict(unit)
        sizes = Counter(labels.tolist())
        if len(sizes) < 2 or min(sizes.values()) < 2:  # one odd persona is no group
            continue
        score = float(silhouette_score(unit, labels, sample_size=min(len(unit), 1000), random_state=seed))
        if score > best:
            best, chosen = score, labels.tolist()
    by_size = [group for group, _ in Counter(chosen).most_common()]
    return [by_size.index(g) for g in chosen]


def _common(weights: Any, groups: Sequence[int], group: int) -> NDArray[np.bool_]:
    """Which terms two members at least and half of the group have."""
    members = weights[np.array(groups) == group]
    holders = np.asarray((members > 0).sum(axis=0)).ravel()
    return holders >= max(2, members.shape[0] / 2)


def _names(personas: Sequence[Persona], weights: Any, vocabulary: list[str], groups: Sequence[int]) -> tuple[str, ...]:
    if max(groups) == 0:
        return ("all personas",)
    overall, rows, names = np.asarray(weights.mean(axis=0)).ravel(), np.array(groups), list[str]()
    for group in range(max(groups) + 1):
        telling = np.asarray(weights[rows == group].mean(axis=0)).ravel() - overall
        common = _common(weights, groups, group)  # one member's own words do not speak for the others
        words = [vocabulary[i] for i in np.argsort(-telling, kind="stable") if telling[i] > 0 and common[i]]
        words = [w for w in words if not any(c.isdigit() for c in w)]
        tells = {vocabulary[i]: max(float(telling[i]), 0.0) for i in np.flatnonzero(common)}
        bullets = [b for persona, of in zip(personas, groups, strict=True) if of == group for b in persona.bullets]
        line = "" if "→" in "".join(words[:3]) else _telling_line(bullets, tells)
        names.append(line or ", ".join(words[: 2 if "→" in "".join(words[:3]) else 3]) or f"group {group + 1}")
    return tuple(names)


def _telling_line(bullets: Sequence[Bullet], tells: Mapping[str, float]) -> str:
    """The line whose terms tell most of a group, most of them being the group's, cut to ``_NAME`` characters; empty
    where there is none. ``tells``: how much each term that the group has in common sets it apart."""

    def telling(bullet: Bullet) -> float:
        terms = _terms(bullet)
        shared = [tells[term] for term in terms if term in tells]
        return sum(shared) / len(terms) if terms and len(shared) >= _SHARED * len(terms) else 0.0

    best = max(bullets, key=telling, default=None)
    if best is None or not telling(best):
        return ""
    return shorten(best.sentence, _NAME, placeholder=" ...").removesuffix(".")
