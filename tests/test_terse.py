from types import SimpleNamespace
from typing import Literal

import dspy

from persona_dspy.lm.terse import TerseJSON
from persona_dspy.testing.fake_lm import FakeLM

SIGNATURE = dspy.Signature({"film": (str, dspy.InputField()), "tag": (Literal["drama", "horror"], dspy.OutputField())})


def asked(adapter):
    lm = FakeLM(lambda p: {"tag": "horror"})
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(SIGNATURE)(film="Alien").tag == "horror"
    return lm.engine.calls[-1]


def test_it_says_less_after_the_query_and_the_same_elsewhere():
    plain, terse = asked(dspy.JSONAdapter()), asked(TerseJSON())
    assert len(terse.user) < len(plain.user)
    assert "Literal" in plain.user and "Literal" not in terse.user
    assert terse.schema == plain.schema
    assert "# note" in plain.system and "# note" not in terse.system, "a comment in a template is copied"
    head, objective = "Your input fields are", "your objective is"
    assert all(part in terse.system and part in plain.system for part in (head, objective))
    assert terse.choices("tag") == ("drama", "horror")


def test_a_signatures_schema_is_built_once(monkeypatch):
    from dspy.adapters import json_adapter

    built, build = [], json_adapter._get_structured_outputs_response_format
    monkeypatch.setattr(
        json_adapter, "_get_structured_outputs_response_format", lambda *a: built.append(a[0]) or build(*a)
    )
    lm = SimpleNamespace(supported_params={"response_format"}, supports_response_schema=True)
    first, second = dspy.Signature("film, year -> tag"), dspy.Signature("film, year -> rating: int")
    for signature in (first, second, first, second):
        options = {}
        TerseJSON()._prepare_response_format(lm, options, signature)
        assert list(options["response_format"].model_fields) == list(signature.output_fields)
    assert built == [first, second]
    options = {}
    weak = SimpleNamespace(supported_params={"response_format"}, supports_response_schema=False)
    TerseJSON()._prepare_response_format(weak, options, first)
    assert options["response_format"] == {"type": "json_object"}
