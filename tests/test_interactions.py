"""Values: what they accept, refuse and add up to."""

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy.core.interactions import Interaction, Usage, in_time_order, parse_time, time_order
from persona_dspy.errors import InputError


@pytest.mark.parametrize("field", ["user_id", "query", "response"])
def test_blank_field_names_itself(field):
    values = {"user_id": "u", "query": "q", "response": "r", field: "  "}
    with pytest.raises(InputError, match=f"Interaction.{field} '  '"):
        Interaction(**values)


def test_times_in_every_form_are_the_same_moment():
    moment = datetime(1995, 1, 1, tzinfo=UTC)
    assert parse_time("1995") == parse_time(1995) == parse_time("1995-01-01") == parse_time(moment) == moment
    assert parse_time(None) is None and parse_time("<NA>") is None and parse_time(float("nan")) is None
    for odd in (datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-12))), Decimal("sNaN"), [1, 2]):
        with pytest.raises(InputError, match="expected an ISO date"):
            parse_time(odd)
    with pytest.raises(InputError, match=r"'soon'.*ISO date"):
        parse_time("soon")


def test_default_ids_differ_with_content_and_repeat_with_it():
    a = Interaction(user_id="u", query="q", response="r", time="2026-01-01")
    assert a.id == Interaction(user_id="u", query="q", response="r", time="2026-01-01").id
    assert a.id != Interaction(user_id="u", query="q", response="r", time="2026-01-02").id


def test_an_interaction_is_frozen_and_survives_copies():
    item = Interaction(user_id="u", query="q", response="r", metadata={"k": [1]})
    with pytest.raises(TypeError):
        item.metadata["k"] = 2  # type: ignore[index]
    assert copy.deepcopy(item) == pickle.loads(pickle.dumps(item)) == item  # noqa: S301 - our own bytes


def test_order_is_by_time_only_where_all_have_one():
    late, early = (Interaction(user_id="u", query=q, response="r", time=t) for q, t in (("l", "2026"), ("e", "2025")))
    undated = Interaction(user_id="u", query="x", response="r")
    assert in_time_order([late, early]) == [early, late]
    assert in_time_order([late, undated, early]) == [late, undated, early]


def test_a_log_is_in_order_where_most_have_a_time():
    late, early = parse_time("2026"), parse_time("2025")
    assert time_order([late, None, early]) == [2, 1, 0], "it begins with the newest"
    assert time_order([early, None, late]) == [0, 1, 2]
    assert time_order([late, None]) == [0, 1], "half of them say nothing"
    assert time_order([]) == []


counts = st.builds(
    Usage, calls=st.integers(0, 9), input_tokens=st.integers(0, 9), usd=st.one_of(st.none(), st.integers(0, 9))
)


@given(counts, counts)
def test_usage_adds_and_subtracts(a, b):
    total = a + b
    assert total.calls == a.calls + b.calls
    assert (total - b).input_tokens == a.input_tokens
    assert (total.usd is None) == (a.usd is None and b.usd is None)
