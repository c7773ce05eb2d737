from typing import Literal

import dspy

from persona_dspy.terse import TerseJSON
from persona_dspy.testing import FakeLM

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
    assert (terse.system, terse.schema) == (plain.system, plain.schema)
    assert terse.choices("tag") == ("drama", "horror")
