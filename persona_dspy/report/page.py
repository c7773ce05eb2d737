"""The report page: subjects to one HTML text that needs no network.

Users' text enters the page as JSON in inert script elements, with every ``<`` escaped, and the page's own script puts
it in place as text, never as markup. The policy in the page allows its own script by hash and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from persona_dspy.core import HIGHER_IS_BETTER, parse_number, plural
from persona_dspy.errors import InputError, RunError, to_install
from persona_dspy.report.figures import (
    before_and_after,
    curve,
    each_user,
    fleet_curve,
    learning_curve,
    option_curves,
    systems_figure,
)
from persona_dspy.report.map_figures import map_figure, similarity_figure
from persona_dspy.report.overview import overview, pairs
from persona_dspy.report.persona_map import Encoder, jaccard, map_personas, nearest, persona_terms, spread
from persona_dspy.report.sources import Subject, SystemScore
from persona_dspy.report.user_view import alignment_of, user_view

__all__ = ["report_page"]

MOST_IN_MATRIX = 60  # personas; more are sampled, each group by its share
MOST_ON_MAP = 2000
CARDS, CARD_LINES = 3, 5
_SCRIPTS = ("core.js", "charts.js", "user.js", "main.js")


def report_page(
    subjects: Sequence[Subject],
    *,
    title: str = "Personas",
    systems: Sequence[SystemScore] = (),
    encoder: Encoder | None = None,
    notes: Sequence[str] = (),
    made: datetime | None = None,
) -> str:
    """One HTML page about these users. It holds their text: give it only to people who may see all of them.

    Args:
        systems: rows of an evaluation, shown beside the fleet.
        encoder: texts -> vectors for the map; None = TF-IDF.
        notes: what the reader should know, such as files that were skipped.
        made: when; by default now.

    Raises:
        InputError: no subjects.
        RunError: the extra ``report`` is not installed.

    Example:
        >>> from persona_dspy.core import PersonaDocument
        >>> from persona_dspy.core import Persona
        >>> document = PersonaDocument.of(Persona.from_text("Prefers short answers.", user_id="ana"))
        >>> page = report_page([Subject(user_id="ana", versions=(document,), current=0)])
        >>> page.startswith("<!doctype html>"), "Prefers short answers." in page, "src=" in page.split("<script>")[0]
        (True, True, False)
    """
    if not subjects:
        raise InputError("subjects []: expected at least one user with a persona")
    summary = overview(subjects)
    landscape = _landscape(subjects, encoder)
    records = [record for record in map(alignment_of, subjects) if record]
    figures = {
        "before": before_and_after(records) if summary.scored else None,
        "fleet": fleet_curve([[p.score for p in curve(r)] for r in records]) if summary.scored else None,
        "each": each_user(pairs(subjects)) if summary.scored else None,
        "curve": learning_curve([]),
        **_of_evaluation(systems),
        **landscape.pop("figures"),
    }
    index = {
        "users": [_row(subject, landscape, n) for n, subject in enumerate(subjects)],
        "groups": landscape["names"],
        "cards": _cards(subjects),
        "figures": {name: json.loads(figure.to_json()) for name, figure in figures.items() if figure is not None},
    }
    scripts = ["\n".join(_part(name) for name in _SCRIPTS)]
    page = _environment().get_template("page.html").render(
        title=title,
        overview=summary,
        systems=systems,
        columns=_columns(systems),
        higher=HIGHER_IS_BETTER.get(systems[0].metric) if systems else None,
        figures={name for name, figure in figures.items() if figure is not None},
        notes=[*landscape["notes"], *notes],
        made=(made or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        index=_json(index),
        views=[_json(user_view(subject)) for subject in subjects],
        style=_part("page.css"),
        scripts=scripts,
        policy=_policy(scripts),
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode()


def _cards(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """The personas of the first screen: those of users who gained most, then those that say most; their first lines."""
    gains = pairs(subjects)

    def told(n: int) -> tuple[float, int]:
        before, after = gains.get(subjects[n].user_id, (0.0, 0.0))
        return before - after, -len(subjects[n].document.persona().bullets)

    chosen = sorted((n for n in range(len(subjects)) if subjects[n].document.sections), key=told)[:CARDS]
    lines = {n: [b.sentence for b in subjects[n].document.persona().bullets] for n in chosen}
    return [{"user": n, "lines": lines[n][:CARD_LINES], "more": max(0, len(lines[n]) - CARD_LINES)} for n in chosen]


def _row(subject: Subject, landscape: Mapping[str, Any], n: int) -> dict[str, Any]:
    """What the table and the search know of a user without opening the view."""
    record = alignment_of(subject)
    scores, usage = (record.scores, record.total) if record else (None, None)
    return {
        "id": subject.user_id,
        "version": subject.current,
        "before": scores.without_persona if scores else None,
        "after": scores.final if scores else None,
        "accepted": record.accepted if record else None,
        "calls": usage.calls if usage else None,
        "tokens": usage.input_tokens + usage.output_tokens if usage else None,
        "usd": usage.usd if usage else None,
        "group": landscape["group"][n],
        "near": landscape["near"][n],
    }


def _landscape(subjects: Sequence[Subject], encoder: Encoder | None) -> dict[str, Any]:
    """The map, the matrix, each user's group and most similar users; what was left out, as notes."""
    personas = [s.document.persona() for s in subjects]
    terms = [set(persona_terms(p)) for p in personas]
    landscape: dict[str, Any] = {
        "group": [None] * len(subjects),
        "near": [[]] * len(subjects),
        "names": [],
        "notes": [],
    }
    landscape["figures"] = {}
    if len(subjects) == 1:
        return landscape
    mapped = spread([0] * len(subjects), MOST_ON_MAP)
    drawn = map_personas([personas[i] for i in mapped], encoder=encoder)
    for place, i in enumerate(mapped):
        landscape["group"][i] = drawn.groups[place]
    landscape["names"] = list(drawn.names)
    similar = jaccard([terms[i] for i in mapped])
    closest = nearest(similar)
    for place, i in enumerate(mapped):
        landscape["near"][i] = [[mapped[j], round(float(similar[place, j]), 3)] for j in closest[place]]
    if encoder is not None or any(closest):  # else places would say nothing
        landscape["figures"]["map"] = _placed(map_figure(drawn.users, drawn.xy, drawn.groups, drawn.names), mapped)
    in_matrix = spread(drawn.groups, MOST_IN_MATRIX)
    if any(closest):
        landscape["figures"]["similarity"] = similarity_figure(
            [drawn.users[i] for i in in_matrix], similar[in_matrix][:, in_matrix].tolist()
        )
    if len(mapped) < len(subjects) and "map" in landscape["figures"]:
        landscape["notes"].append(f"The map shows {len(mapped):,} of {len(subjects):,} users, drawn at random.")
    if len(in_matrix) < len(subjects) and "similarity" in landscape["figures"]:
        landscape["notes"].append(
            f"The matrix shows {len(in_matrix)} of {len(subjects):,} users, each group by its share."
        )
    return landscape


def _placed(figure: Any, mapped: Sequence[int]) -> Any:
    """Dots name users by their place on the page, which is not that on the map where only some are mapped."""
    for trace in figure.data:
        trace.customdata = [mapped[int(i)] for i in trace.customdata]
    return figure


def _of_evaluation(systems: Sequence[SystemScore]) -> dict[str, Any]:
    """The figures of an evaluation: all systems with what they took, and a curve for each option that was varied."""
    if not systems:
        return {}
    rows, metric = [(r.system, r.score, r.low, r.high) for r in systems], systems[0].metric
    curves = option_curves(rows, metric, systems[0].defaults)
    others = [row for row in rows if not any(f"{option}=" in row[0] for option in curves)] or rows
    figures = {"systems": systems_figure(others, metric, {r.system: _cost(r) for r in systems})}
    return figures | {f"curve-{option}": figure for option, figure in curves.items()}


def _cost(row: SystemScore) -> str:
    """LM calls a user, those that prepared the persona among them; empty where it is not known."""
    try:
        calls = sum(float(row.columns.get(name) or 0) for name in ("calls_per_user", "prepare_calls_per_user"))
    except ValueError:
        return ""
    return f"{plural(round(calls), 'call')} a user" if calls else ""


_TITLES = {
    "users": "users",
    "queries": "queries",
    "difference": "vs best baseline",
    "users_won": "won",
    "users_lost": "lost",
    "calls_per_user": "calls a user",
    "tokens_per_user": "tokens a user",
    "seconds_per_query": "s a query",
    "usd_per_user": "USD a user",
    "prepare_calls_per_user": "calls to prepare",
}


def _columns(rows: Sequence[SystemScore]) -> list[tuple[str, str]]:
    """(column, title) of what the page shows of an evaluation: known columns in which any row says something."""
    return [(name, title) for name, title in _TITLES.items() if any(r.columns.get(name) for r in rows)]


def _json(value: object) -> str:
    """JSON that cannot end or change the script element it lies in, whatever text it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: separators and surrogates are escaped
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    parts = ("default-src 'none'", f"script-src {allowed}", "style-src 'unsafe-inline'", "img-src data: blob:")
    return "; ".join((*parts, "base-uri 'none'", "form-action 'none'"))


def _part(name: str) -> str:
    return files("persona_dspy.report").joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as missing:
        raise _not_installed(missing) from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("persona_dspy.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["plural"] = plural  # type: ignore[assignment]
    environment.filters["brief"] = _brief
    environment.filters["signed"] = lambda value: f"{value:+.2f}".replace("-", "−")  # type: ignore[assignment]
    return environment


def _not_installed(missing: ImportError) -> RunError:
    return RunError(f"package {missing.name!r}: expected to be installed; {to_install('report')}")


def _number(value: float) -> str:
    """A count or cost for people.

    Example:
        >>> _number(1234567), _number(0.00123), _number(45.678)
        ('1.2M', '0.0012', '45.7')
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.0f}k"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _brief(cell: str, signed: bool = False) -> str:
    """A cell of an evaluation's CSV for people; what is no number stays as it is."""
    value = parse_number(cell)
    if value is None:
        return cell
    return f"{value:+.3f}".replace("-", "−") if signed else _number(value)
