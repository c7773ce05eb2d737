import csv
import io

import pytest

from persona_dspy.data.lamp import get_task
from persona_dspy.judge.results import Judged
from persona_dspy.judge.table import Table, best_baseline, standings

FILMS, RATING = get_task("lamp-2m"), get_task("lamp-3")


def rows(system, answers, golds=("comedy", "action", "comedy", "classic"), **cost):
    made = [
        Judged(
            system=system, user_id=f"u{n // 2}", query_id=str(n), gold=g, answer=a, parsed=bool(a), calls=1,
            input_tokens=100, output_tokens=5, seconds=2.0, **cost,
        )
        for n, (a, g) in enumerate(zip(answers, golds, strict=True))
    ]  # fmt: skip
    return made


ROWS = [
    *rows("persona", ["comedy", "action", "comedy", "comedy"], usd=0.01),
    *rows("rag", ["comedy", "comedy", "comedy", "comedy"]),
    *rows("direct", ["action", "", "action", "action"]),
    *rows("majority", ["comedy", "action", "comedy", "classic"]),
    Judged(kind="prepared", system="persona", user_id="u0", calls=7, input_tokens=50, seconds=9.0),
    Judged(kind="partly", system="persona", user_id="u0", calls=3, input_tokens=50, seconds=1.0),
]
NAMES = ["persona", "rag", "direct", "majority", "react"]


def test_scores_differences_and_costs():
    found = {s.system: s for s in standings(ROWS, FILMS, NAMES, expected=4)}
    assert list(found) == ["persona", "rag", "direct", "majority"]
    persona = found["persona"]
    assert persona.score.value == 0.75
    assert persona.against.difference.value == pytest.approx(0.25)
    assert (persona.against.paired.won, persona.against.paired.lost, persona.against.paired.tied) == (1, 0, 1)
    assert (persona.calls, persona.tokens, persona.seconds, persona.usd) == (2, 210, 2, pytest.approx(0.02))
    assert (persona.prepare_calls, persona.prepare_tokens, persona.prepare_seconds) == (5, 50, 5)
    assert found["rag"].against is None, "it is the best baseline itself"
    assert found["direct"].unparsed == 1
    assert found["persona"].others["macro_f1"] == pytest.approx(FILMS.evaluate(
        ["comedy", "action", "comedy", "classic"], ["comedy", "action", "comedy", "comedy"]
    )["macro_f1"])  # fmt: skip


def test_references_and_variants_are_never_the_best_baseline():
    values = {"persona": [1.0], "majority": [1.0], "rag@k=8": [0.9], "rag": [0.5], "icl": [0.4]}
    assert best_baseline(values, FILMS) == "rag"
    assert best_baseline(values, RATING) == "icl", "an error: lower is better"
    assert best_baseline({"persona": [1.0]}, FILMS) is None


def test_of_errors_the_lower_is_better_and_what_cannot_be_read_counts_as_lamp_counts_it():
    golds = ("5", "1", "3", "3")
    made = [*rows("persona", ["5", "1", "", "3"], golds), *rows("rag", ["1", "1", "1", "1"], golds)]
    persona, rag = standings(made, RATING, ["persona", "rag"])
    assert persona.score.value == 0.5  # 2 off for the unreadable one: the far end of the scale
    assert rag.score.value == 2.0
    assert persona.against.difference.value == pytest.approx(1.5)


def test_csv_and_markdown_hold_one_row_a_system():
    found = Table(tuple(standings(ROWS, FILMS, NAMES, expected=8)), FILMS)
    table = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [r["system"] for r in table] == ["persona", "rag", "direct", "majority"]
    assert float(table[0]["accuracy"]) == 0.75
    assert table[1]["difference"] == ""
    lines = found.to_markdown().split("\n\n")[0].splitlines()
    assert len(lines) == 6
    assert "4 of 8" in lines[2]
    assert len({line.count("|") for line in lines}) == 1
    assert Table((), FILMS).to_csv() == "system\n"
