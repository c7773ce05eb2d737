import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy.errors import InputError
from persona_dspy.judge.variant import ABLATIONS, OPTIMIZED, REFERENCES, RETRIEVALS, SYSTEMS, Variant, variants

numbers = st.none() | st.integers(1, 30)


@given(
    st.sampled_from((*SYSTEMS, *OPTIMIZED, *REFERENCES)),
    numbers, numbers, numbers, numbers, st.sampled_from([None, *RETRIEVALS]),
)  # fmt: skip
def test_a_name_says_all_of_a_variant(system, k, recent, epochs, history, retrieval):
    aligned = {"recent": recent, "epochs": epochs} if system in ("persona", "as-in-paper", "textgrad") else {}
    variant = Variant(system=system, k=k, history=history, retrieval=retrieval, **aligned)
    assert Variant.parse(variant.name) == variant


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_are_of_the_persona_system_only(name):
    assert Variant.parse(f"persona@{name}").changes == (name,)
    with pytest.raises(InputError, match=name):
        Variant.parse(f"rag@{name}")


def test_changes_go_together_and_the_control_is_of_baselines():
    both = Variant.parse("persona@no-alignment,any-label,k=2")
    assert both.changes == ("no-alignment", "any-label")
    assert Variant.parse(both.name) == both
    assert Variant.parse("rag@own-labels,k=2").name == "rag@own-labels,k=2"
    for text in ("persona@own-labels", "majority@own-labels"):
        with pytest.raises(InputError, match="own-labels"):
            Variant.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "gpt",
        "rag@k",
        "rag@k=-1",
        "persona@epochs=0",
        "persona@no-fun",
        "",
        "rag@size=2",
        "rag@epochs=2",
        "rag@retrieval=google",
    ],
)
def test_what_is_not_known_is_refused(text):
    with pytest.raises(InputError, match="expected"):
        Variant.parse(text)


def test_all_that_is_asked_for_each_once():
    found = [v.name for v in variants(["persona", "rag", "rag"], ablations=["block"], scale=["epochs=1,3"], cold=[3])]
    assert found == [
        "persona", "rag", "majority", "nearest", "persona@block", "persona@epochs=1", "persona@epochs=3",
        "persona@history=3", "rag@history=3", "majority@history=3", "nearest@history=3",
    ]  # fmt: skip
    assert [v.name for v in variants() if v.is_baseline] == ["direct", "icl", "rag", "pag", "react", "membank"]
