"""LaMP-1: how an author's own paper becomes an interaction: a pair of references to choose from.

A LaMP-1 profile holds the author's papers and no citation, so there is no real (query, response) to learn from. What
is known for certain is what the author wrote, and that authors cite themselves. So a paper becomes the question

    paper: "this paper's title"
    [1]: "the author's own earlier title that shares most words with it"
    [2]: "a title of another field"

whose answer is the author's own earlier title; sides are drawn by a hash. The first paper has no earlier one and asks
for itself, with no paper line. It is a proxy: self-citation stands for citation. Where an item says what
the paper cites (``citation``, as OPPU's files do), that title stands in place of the author's own.

The other title must come from somewhere, and never from another user. It is composed here from plain words of many
fields, by a hash of the user and the paper, among those that share no word with any title of the author's so far;
so "the author would not cite it" is a safe statement and the same history always gives the same questions. Nothing
later than the paper itself is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256

from persona_dspy.core import Interaction, remember_short_texts

__all__ = ["distractor", "pair", "query"]

_FORMS = (
    "A Survey of {}",
    "On the Limits of {}",
    "{}: A Comparative Study",
    "Towards Robust {}",
    "An Efficient Approach to {}",
    "{} Revisited",
    "Advances in {}",
    "A Case Study in {}",
)
_TOPICS = (
    "Query Optimization in Distributed Databases",
    "Register Allocation for Embedded Compilers",
    "Packet Routing in Wireless Sensor Networks",
    "Cache Coherence for Multicore Processors",
    "Public-Key Cryptography on Smart Cards",
    "Intrusion Detection in Cloud Platforms",
    "Garbage Collection for Real-Time Systems",
    "Software Testing by Symbolic Execution",
    "Formal Verification of Railway Interlocking",
    "Grasp Planning for Robot Hands",
    "Simultaneous Localization and Mapping Underwater",
    "Medical Image Segmentation of the Liver",
    "Face Recognition under Varying Illumination",
    "Pedestrian Tracking in Crowded Video",
    "Ray Tracing of Translucent Materials",
    "Mesh Simplification for Terrain Rendering",
    "Collaborative Filtering of Music Playlists",
    "Web Crawling at Large Scale",
    "Social Network Community Detection",
    "Auction Design for Online Advertising",
    "Swarm Optimization of Power Grids",
    "Evolutionary Design of Antennas",
    "Traffic Signal Control in Cities",
    "Vehicle Scheduling with Time Windows",
    "Bike-Sharing Demand Forecasting",
    "Battery Ageing in Electric Cars",
    "Wind Turbine Fault Diagnosis",
    "Protein Folding by Molecular Dynamics",
    "Gene Expression Clustering in Yeast",
    "Epidemic Spread on Contact Graphs",
    "Electrocardiogram Arrhythmia Screening",
    "Brain-Computer Interfaces for Typing",
    "Virtual Reality in Surgical Training",
    "Touchscreen Ergonomics for Older Adults",
    "Educational Games for Arithmetic",
    "Earthquake Early Warning",
    "Satellite Monitoring of Deforestation",
    "Soil Moisture and Irrigation Timing",
    "Ocean Circulation Modelling",
    "Stock Price Volatility",
    "Credit Risk in Small Firms",
    "Quantum Error Correction",
    "Superconducting Qubit Calibration",
    "Sparse Matrix Factorization on Accelerators",
    "Sorting Networks and Parallel Hardware",
    "Graph Colouring Heuristics",
    "Approximate Counting of Triangles",
    "Digital Preservation of Museum Archives",
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = frozenset(
    _WORD.findall(
        "the and for with from into using based towards toward its via among between over under their our new study "
        "case approach survey limits comparative robust efficient revisited advances"
    )
)


@remember_short_texts(maxsize=8192)
def words(title: str) -> frozenset[str]:
    """The content words of a title, case-folded; what sharing a word means here."""
    return frozenset(_WORD.findall(title.casefold())) - _COMMON


def query(paper: str, first: str, second: str) -> str:
    """The query of a question or interaction. ``paper`` blank: no paper line.

    Example:
        >>> query("Cats", "Dogs", "Lions").splitlines()
        ['paper: "Cats"', '[1]: "Dogs"', '[2]: "Lions"']
    """
    head = f'paper: "{paper}"\n' if paper else ""
    return f'{head}[1]: "{first}"\n[2]: "{second}"'


def distractor(own: Sequence[str], seed: str) -> str:
    """A composed title sharing no content word with any title in ``own`` (if one is left: else with the fewest).
    Deterministic in its arguments; holds no user's text.
    """
    avoid = frozenset().union(*(words(title) for title in own))
    drawn = sorted(_TOPICS, key=lambda topic: sha256(f"{seed}\0{topic}".encode("utf-8", "replace")).digest())
    topic = min(drawn, key=lambda candidate: len(words(candidate) & avoid))  # the first of the least shared
    return _FORMS[_draw(seed, "form") % len(_FORMS)].format(topic)


def pair(texts: Mapping[str, str], earlier: Sequence[Interaction], user_id: str) -> tuple[str, str]:
    """(query, response) of one paper of an author.

    Args:
        texts: the paper; its ``title`` and, where known, a title it cites as ``citation``.
        earlier: this author's earlier papers as interactions, oldest first, with ``metadata["title"]``.
        user_id: the author.
    """
    title = texts["title"]
    before = [str(i.metadata["title"]) for i in earlier if i.metadata.get("title")]
    before = [t for t in before if t != title]
    title_words = words(title)
    # max keeps the first of equals: the latest paper wins a draw
    cited = texts.get("citation", "")
    own = cited or max(reversed(before), key=lambda t: len(words(t) & title_words), default=title)
    seed = f"{user_id}\0{title}"
    other = distractor([*before, title, own], seed)
    paper = title if before or cited else ""
    if _draw(seed, "side") % 2:
        return query(paper, other, own), "[2]"
    return query(paper, own, other), "[1]"


def _draw(seed: str, purpose: str) -> int:
    return int.from_bytes(sha256(f"{purpose}\0{seed}".encode("utf-8", "replace")).digest()[:4], "big")
