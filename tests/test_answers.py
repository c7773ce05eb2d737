"""One decision what kind an answer is: by the declared type, then by what people answered; labels in any spelling."""

import json
import pickle
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum, auto
from typing import Annotated, Literal, Optional

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from optimizers import PersonaAlignment
from persona_dspy import Interaction, PersonaAgent, personalize
from persona_dspy.core.answer_types import answer_text
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.scales import declared_scale, number_of, observed_scale
from persona_dspy.core.spelling import bare, match_label, spellings, truth
from persona_dspy.errors import InputError
from persona_dspy.testing.fake_lm import FakeLM


class Tag(Enum):
    COMEDY = "comedy"
    HORROR = "horror"


class Numbered(Enum):
    COMEDY = auto()
    HORROR = auto()
    DRAMA = auto()


class Stars(IntEnum):
    ONE, TWO, THREE = 1, 2, 3


class Verdict(BaseModel):
    genre: str
    stars: int


DECLARED = [
    (Literal["comedy", "drama"], (), "label", ("comedy", "drama")),
    (Literal["4000", "4001", "9000"], (), "label", ("4000", "4001", "9000")),
    (Literal[2023, 2024, 2025], (), "label", ("2023", "2024", "2025")),
    (Literal["101", "102", "103"], (), "label", ("101", "102", "103")),
    (Literal["01", "02", "03"], (), "label", ("01", "02", "03")),
    (Literal["200", "301", "404"], (), "label", ("200", "301", "404")),
    (Literal[0, 1], (), "label", ("0", "1")),
    (Literal["1", "2", "3"], (), "rating", ("1", "2", "3")),
    (Literal["0.5", "1", "1.5", "2"], (), "rating", ("0.5", "1", "1.5", "2")),
    (Literal[-1, 0, 1], (), "rating", ("-1", "0", "1")),
    (Literal[0, 25, 50, 75, 100], (), "rating", ("0", "25", "50", "75", "100")),
    (Tag, (), "label", ("comedy", "horror")),
    (Numbered, (), "label", ("COMEDY", "HORROR", "DRAMA")),
    (Numbered, ["1", "3"], "rating", ("1", "2", "3")),
    (Stars, (), "rating", ("1", "2", "3")),
    (Optional[Tag], (), "label", ("comedy", "horror")),  # noqa: UP045
    (Tag | None, (), "label", ("comedy", "horror")),
    (Literal["a", "b"] | None, (), "label", ("a", "b")),
    (bool, (), "label", ("True", "False")),
    (int, (), "rating", ()),
    (int, ["4000", "4001", "4000"], "label", ()),
    (int, ["1994", "2001", "1987"], "label", ()),
    (float, ["0.5", "4.5"], "rating", ()),
    (date, (), "label", ()),
    (list[str], (), "text", ()),
    (Verdict, (), "text", ()),
    (str, (), "text", ()),
    (str, ["drama", "Drama", "comedy", "drama."], "label", ("comedy", "drama")),
]


@pytest.mark.parametrize(("annotation", "responses", "name", "labels"), DECLARED)
def test_the_declared_type_decides_then_the_values(annotation, responses, name, labels):
    kind = ResponseKind.of(annotation, responses)
    assert (kind.name, kind.labels) == (name, labels)
    assert pickle.loads(pickle.dumps(kind)) == kind and hash(kind) == hash(kind)  # noqa: S301


@pytest.mark.parametrize(
    ("annotation", "ends"),
    [
        (Annotated[int, Field(ge=0, le=10)], (0, 10)),
        (Annotated[float, Field(ge=0.5, le=5)] | None, (0.5, 5)),
        (Annotated[Decimal, Field(ge=0, le=100)], (0, 100)),
    ],
)
def test_bounds_are_the_scale(annotation, ends):
    kind = ResponseKind.of(annotation)
    assert (kind.name, kind.low, kind.high) == ("rating", *ends)
    with pytest.raises(InputError, match="101"):
        kind.response("101")


def test_bounds_of_a_field_are_the_scale():
    class Rate(dspy.Signature):
        film: str = dspy.InputField()
        stars: int = dspy.OutputField(ge=0, le=10)

    kind = PersonaAgent(Rate).kind
    assert (kind.name, kind.low, kind.high) == ("rating", 0, 10)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (["3", "4"], (1, 5)),
        (["3", "9"], (1, 10)),
        (["0", "7"], (0, 10)),
        (["0.5", "4.5", "3.0"], (0.5, 5)),
        (["0", "4.5"], (0, 5)),
        (["7.5", "2"], (1, 10)),
        (["-2", "1"], (-2, 2)),
        ([str(n % 7 + 1) for n in range(20)], (1, 7)),
        ([str(n % 7 + 1) for n in range(9)], (1, 10)),
        (["3,5", "4,0", "1"], (0.5, 5)),
        (["87", "62", "91", "45", "73", "100"], (0, 100)),
        (["10", "20", "30", "40", "50"] * 6, (0, 100)),
        (["0.12", "0.5", "0.93", "0.77", "0.31"], (0, 1)),
        (["4000", "4001"], None),
        (["1994", "2001", "2026"], None),
        (["007", "042"], None),
        (["0", "1", "1"], None),
        (["100", "101", "102"], None),
        (["11", "12", "13", "14", "15"] * 5, None),
        (["3", "great"], None),
        (["nan", "3"], None),
        ([], None),
    ],
)
def test_numbers_are_a_rating_only_on_a_scale(values, scale):
    found = observed_scale(values)
    assert (None if found is None else (found.low, found.high)) == scale


@given(st.lists(st.integers(2, 5), min_size=1), st.lists(st.integers(2, 5), min_size=1))
def test_users_of_one_scale_get_one_scale(a, b):
    assert observed_scale(list(map(str, a))) == observed_scale(list(map(str, b)))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.integers(), max_size=30))
def test_a_scale_holds_what_it_was_read_from(numbers):
    values = [answer_text(n) for n in numbers]
    for scale in (observed_scale(values), declared_scale(values)):
        assert scale is None or all(scale.low <= number_of(v) <= scale.high for v in values)


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("Comedy", ("comedy", "drama"), "comedy"),
        (" comedy. ", ("comedy", "drama"), "comedy"),
        ("“Comedy”", ("comedy", "drama"), "comedy"),
        ("**DRAMA**", ("comedy", "drama"), "drama"),
        ("sci-fi\u00a0", ("sci-fi",), "sci-fi"),
        ("Cafe\u0301", ("café",), "café"),
        ("ＣＯＭＥＤＹ", ("comedy",), "comedy"),
        ("STRASSE", ("straße",), "straße"),
        ("true  story", ("true story",), "true story"),
        ("1", ("[1]", "[2]"), "[1]"),
        ("4000.0", ("4000", "4001"), "4000"),
        ("c++", ("C", "C++", "C#"), "C++"),
        ("a", ("A", "a"), "a"),
        ("YES", ("no", "yes"), "yes"),
        ("1", ("dislike", "like"), "like"),
        ("👎", ("dislike", "like"), "dislike"),
        ("western", ("comedy", "drama"), None),
        ("-1", ("1", "2"), None),
        ("01", ("1", "2"), None),
        ("comedy drama", ("comedy", "drama"), None),
    ],
)
def test_labels_are_matched_by_case_space_marks_and_unicode_form(text, labels, label):
    assert match_label(text, labels) == label


@given(st.text(), st.text())
def test_matching_is_stable(a, b):
    assert bare(bare(a)) == bare(a) or bare(a) == a
    assert match_label(a, [a]) == a
    written = spellings([a, b])
    assert set(written) >= {a.strip(), b.strip()} and set(written.values()) <= {a.strip(), b.strip()}


@pytest.mark.parametrize(
    ("yes", "no"), [("yes", "No"), ("1", "0"), ("like", "Dislike."), ("TRUE", "false"), ("👍", "👎")]
)
def test_words_for_yes_and_no_are_bools(yes, no):
    assert (truth(yes), truth(no), truth("perhaps")) == (True, False, None)
    kind = ResponseKind.of(bool)
    assert kind.typed(yes) is True and kind.typed(no) is False
    assert kind.score(yes, True) == 1 and kind.score(yes, False) == 0
    with pytest.raises(InputError, match="perhaps"):
        kind.response("perhaps")


TYPED = [
    (Tag, "Horror", Tag.HORROR),
    (Tag, "HORROR", Tag.HORROR),
    (Numbered, "comedy", Numbered.COMEDY),
    (Stars, "2", Stars.TWO),
    (Stars, "Two", Stars.TWO),
    (Tag | None, "none", None),
    (Literal[1, 2, 3], "2.0", 2),
    (Annotated[float, Field(ge=0.5, le=5)], "4.50", 4.5),
    (int, "4000", 4000),
    (date, "2026-01-31", date(2026, 1, 31)),
    (list[str], "comedy, horror", ["comedy", "horror"]),
    (list[str], '["a, b", "c"]', ["a, b", "c"]),
    (list[Literal["a", "b"]], "A; b.", ["a", "b"]),
    (list[int], "[1, 2]", [1, 2]),
    (tuple[str, ...], "a\n- b", ("a", "b")),
    (Verdict, '{"genre": "drama", "stars": 4}', Verdict(genre="drama", stars=4)),
    (dict[str, int], '{"a": 1}', {"a": 1}),
]


@pytest.mark.parametrize(("annotation", "response", "value"), TYPED)
@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()], ids=lambda a: type(a).__name__
)
def test_a_turn_is_an_answer_that_the_adapter_would_take(annotation, response, value, adapter):
    kind = ResponseKind.of(annotation, [response])
    assert kind.typed(response) == value and type(kind.typed(response)) is type(value)
    assert kind.score(response, value) == 1 and kind.score(value, value) == 1
    fields = {"item": (str, dspy.InputField()), "out": (annotation, dspy.OutputField())}
    signature = dspy.make_signature(fields, "Answer.", "S")
    shown = adapter.format_assistant_message_content(signature, {"out": kind.shown(response)})
    if not (value is None and isinstance(adapter, dspy.ChatAdapter | dspy.XMLAdapter)):
        assert adapter.parse(signature, shown)["out"] == value


@pytest.mark.parametrize(
    ("annotation", "response"),
    [
        (Tag, "western"),
        (Literal["a", "b"], "c"),
        (bool, "so so"),
        (Verdict, "fine"),
        (date, "soon"),
        (Literal[1, 2, 3], "4"),
    ],
)
def test_what_matches_none_is_an_error_that_names_it(annotation, response):
    with pytest.raises(InputError, match=f"'{response}'"):
        ResponseKind.of(annotation).response(response)
    past = [Interaction(user_id="u", query="q", response=response, id="i7")]
    signature = dspy.make_signature({"q": (str, dspy.InputField()), "a": (annotation, dspy.OutputField())}, "x", "S")
    with pytest.raises(InputError, match=f"interaction 'i7' of user 'u': response '{response}'"):
        PersonaAgent(signature, history=past)
    with pytest.raises(InputError, match=f"'{response}'"):
        PersonaAgent(signature, user_id="u").observe("q", response)


def test_lists_and_objects_are_scored_by_their_parts():
    tags, verdict = ResponseKind.of(list[str]), ResponseKind.of(Verdict)
    assert tags.score("comedy, horror", ["Horror", "comedy"]) == 1
    assert tags.score("comedy, horror", ["comedy"]) == pytest.approx(2 / 3)
    assert verdict.score('{"genre": "dark drama", "stars": 4}', Verdict(genre="drama", stars=4)) == pytest.approx(5 / 6)


@given(st.sampled_from([a for a, *_ in DECLARED]), st.text(), st.none() | st.text() | st.integers() | st.floats())
def test_any_answer_has_a_score_between_0_and_1(annotation, gold, answer):
    kind = ResponseKind.of(annotation, [gold])
    assert 0 <= kind.score(gold, answer) <= 1
    assert answer_text(kind.typed(gold)) is not None


def history(pairs, user="u1"):
    return [Interaction(user_id=user, query=q, response=r, id=f"i{n}") for n, (q, r) in enumerate(pairs, 1)]


def program(annotation, past, make=PersonaAgent):
    signature = dspy.make_signature(
        {"item": (str, dspy.InputField()), "out": (annotation, dspy.OutputField())}, "x", "S"
    )
    return make(signature, history=past) if make is PersonaAgent else make(dspy.Predict(signature), history=past)


def knows(pairs, wrong=()):
    def answer(prompt):
        if "edits" in prompt.outputs or "edits" in json.dumps(prompt.schema):
            return {"edits": []}
        if "about_the_user" in prompt.outputs or "about_the_user" in json.dumps(prompt.schema):
            return {"about_the_user": "Likes things."}
        right = next(r for q, r in pairs if q in prompt.user)
        return {"out": dict(wrong).get(right, right)}

    return FakeLM(answer)


@pytest.mark.parametrize("make", [PersonaAgent, personalize])
@pytest.mark.parametrize("annotation", [Literal["4000", "4001", "9000"], int, str])
def test_swapped_codes_are_wrong_and_not_nearly_right(annotation, make):
    codes = ["4000", "4001", "9000"]
    pairs = [(f"payment {n:02d}", codes[n % 3]) for n in range(18)]
    agent = program(annotation, history(pairs), make)
    with dspy.context(lm=knows(pairs, {"4000": "4001", "4001": "4000"})):
        aligned = PersonaAlignment(epochs=1).compile(agent, trainset=agent.examples())
    assert agent.kind.name == "label"
    assert aligned.alignment.scores.final <= 0.5


@pytest.mark.parametrize("make", [PersonaAgent, personalize])
@pytest.mark.parametrize("annotation", [Tag, Tag | None, Literal["comedy", "horror"], list[str]])
def test_a_perfect_lm_is_left_alone_whatever_the_type(annotation, make):
    pairs = [(f"film number {n:02d}", ["comedy", "horror"][n % 2]) for n in range(12)]
    agent, lm = program(annotation, history(pairs), make), knows(pairs)
    if annotation == list[str]:
        lm = FakeLM(lambda p: {"out": [next(r for q, r in pairs if q in p.user)]})
    with dspy.context(lm=lm):
        aligned = PersonaAlignment().compile(agent, trainset=agent.examples())
    assert aligned.alignment.scores.final == 1 and "nothing left to gain" in aligned.alignment.stopped


def test_labels_in_other_spellings_are_one_label_everywhere():
    pairs = [(f"film {n:02d}", ["Comedy", "comedy.", "HORROR", " Comedy"][n % 4]) for n in range(16)]
    agent = program(Literal["comedy", "horror", "drama"], history(pairs))
    assert {i.response for i in agent.memory.interactions} == {"comedy", "horror"}
    assert '"comedy" 12, "horror" 4' in agent.persona.value.render()
    assert agent.observe("another", "Drama!").response == "drama"
    assert agent.memory.interactions[-1].response == "drama"
    asked = []
    with dspy.context(lm=FakeLM(lambda p: (asked.append(p), {"out": "comedy"})[1])):
        assert agent(item="a film").out == "comedy"
    assert asked[0].choices("out")[0] == "comedy"
    assert {json.loads(answer)["out"] for _, answer in asked[0].turns} <= {"comedy", "horror", "drama"}


def test_another_users_program_is_of_the_same_kind_with_labels_of_the_user_alone():
    ana = program(str, history([(f"q{n}", ["secret", "plain"][n % 2]) for n in range(8)]))
    bob = ana.for_user("bob", history([("x", "one long answer that comes but once")], user="bob"))
    assert bob.kind.name == ana.kind.name == "label"
    assert bob.kind.labels == ("one long answer that comes but once",)


def test_a_bare_number_is_decided_by_the_first_answers_and_stays_so():
    undecided = program(int, ())
    assert not undecided.kind.decided
    assert undecided.for_user("u", history([(f"q{n}", "4000") for n in range(3)], user="u")).kind.name == "label"
    rated = undecided.for_user("u", history([(f"q{n}", "4") for n in range(3)], user="u"))
    assert rated.kind.name == "rating" and rated.kind.decided
    assert rated.for_user("v", history([("q", "4000")], user="v")).kind.name == "rating"
    undecided.observe("payment", 4000)
    assert undecided.kind.name == "label"


def test_scales_grow_with_what_is_observed():
    agent = program(float, history([(f"q{n}", f"{n % 5 + 1}") for n in range(10)]))
    assert (agent.kind.low, agent.kind.high) == (1, 5)
    agent.observe("better than ever", "9.5")
    assert (agent.kind.low, agent.kind.high) == (1, 9.5)
    assert 0 < agent.kind.score("9.5", "5") < 1
