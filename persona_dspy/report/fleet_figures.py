"""A fleet's figures as files, collected user by user.

They hold scores only: no user's name, no text, so they may lie where everybody looks, such as an MLflow parent run.
"""

from __future__ import annotations

import random
from typing import Any

from persona_dspy.core import Alignment, Scores
from persona_dspy.report.figures import before_and_after, curve, each_user, fleet_curve

__all__ = ["FleetFigures"]

_MOST = 5000  # users whose scores are kept: a fair sample of a larger fleet

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Fleet</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}</style>
</head><body>{}</body></html>
"""
_TITLES = {
    "before_and_after": "Mean held-out score, with 95% intervals over users",
    "learning_curve": "Mean held-out score of the persona in force",
    "gains": "Gain of each user over no persona",
}


class FleetFigures:
    """Scores of a fleet's users, and the figures of them. ``add`` is called once a user, by one thread at a time.

    Example:
        >>> figures = FleetFigures()
        >>> figures.add(Alignment(user_id="u1", scores=Scores(without_persona=0.25, initial=0.5, final=0.75)))
        >>> sorted(figures.files())
        ['before_and_after.json', 'figures.html', 'gains.json', 'learning_curve.json']
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Scores, list[float]]] = []
        self._seen = 0
        self._rng = random.Random(0)

    def add(self, alignment: Alignment | None) -> None:
        """Note a user; one without held-out scores has nothing to draw."""
        if alignment is None or alignment.scores.final is None:
            return
        one = (alignment.scores, [p.score for p in curve(alignment)])
        self._seen += 1
        if len(self._kept) < _MOST:
            self._kept.append(one)
        elif (place := self._rng.randrange(self._seen)) < _MOST:
            self._kept[place] = one

    def files(self) -> dict[str, str]:
        """File name -> text: each figure as Plotly JSON, and all on one HTML page that needs no network (5 MB, most of
        it Plotly). Empty without users.

        Raises:
            RunError: the extra ``report`` is not installed.
        """
        if not self._kept:
            return {}
        records = [Alignment(user_id="-", scores=scores) for scores, _ in self._kept]
        gains = {
            str(n): (s.without_persona, s.final)
            for n, (s, _) in enumerate(self._kept)
            if s.without_persona is not None and s.final is not None
        }
        figures: dict[str, Any] = {
            "before_and_after": before_and_after(records),
            "learning_curve": fleet_curve([line for _, line in self._kept]),
            "gains": each_user(gains, named=False),
        }
        files = {f"{name}.json": str(figure.to_json()) for name, figure in figures.items()}
        parts: list[str] = []
        for name, figure in figures.items():
            drawn = figure.to_html(full_html=False, include_plotlyjs=not parts, config={"displaylogo": False})
            parts.append(f"<h2>{_TITLES[name]}</h2>\n{drawn}")
        return {**files, "figures.html": _PAGE.format("\n".join(parts))}
