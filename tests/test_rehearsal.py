"""The LM that answers anything: what it says fits the schema it is sent."""

from typing import Annotated, Literal

import dspy
import pytest
from pydantic import BaseModel, Field

from persona_dspy import PersonaAgent, PersonaAlignment
from persona_dspy.lm import Ledger, TerseJSON, rehearsal_lm
from persona_dspy.testing import SyntheticUser


class Edit(BaseModel):
    kind: Literal["add", "drop"]
    words: Annotated[str, Field(json_schema_extra={"maxLength": 12})]
    count: int | None = None


def test_every_type_of_answer_can_be_read():
    signature = dspy.Signature("film -> tag, edits: list[Edit], share: float", custom_types={"Edit": Edit})
    with dspy.context(lm=rehearsal_lm(), adapter=TerseJSON()):
        answer = dspy.Predict(signature)(film="Alien")
    assert answer.edits and all(len(e.words) <= 12 and e.kind in ("add", "drop") for e in answer.edits)
    assert isinstance(answer.share, float) and answer.tag


@pytest.mark.parametrize("optimizer", [PersonaAlignment(), PersonaAlignment.as_in_paper()], ids=["ours", "paper"])
@pytest.mark.parametrize("kind", ["topic rule", "threshold shift", "style"])
def test_an_alignment_is_gone_through_and_counted(optimizer, kind):
    user = SyntheticUser(seed=1, kind=kind)
    agent, ledger = PersonaAgent(user.signature, history=user.interactions(16)), Ledger()
    with dspy.context(lm=rehearsal_lm()), ledger.recording():
        made = optimizer.compile(agent, trainset=agent.examples())
    assert made.alignment.steps
    assert {"respond", "loss"} <= set(ledger.by_role) and ledger.usage.input_tokens > 1000
