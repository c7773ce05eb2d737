"""Fleets for the tests of the report page: documents made by hand, without an LM."""

from persona_dspy.agent.trace import Step, Trace
from persona_dspy.core.alignment import Alignment, AlignmentStep, Scores, Trial
from persona_dspy.core.document import PersonaDocument
from persona_dspy.core.interactions import Interaction, Usage
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.report.sources import Subject

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u2028 <!-- & \u202e"


def rule(words, then, evidence=()):
    quoted = " or ".join(f'"{w}"' for w in words)
    return Bullet(section="what decides", when=f"it mentions {quoted}", then=then, evidence=evidence, source="learned")


def record(user, before=0.25, after=0.75, accepted=True, said="The user wants shorter answers."):
    trials = (
        Trial(edits=("add a bad idea",), incumbent_score=before, challenger_score=0.1, accepted=False, reason="worse"),
        Trial(edits=("add a rule",), incumbent_score=before, challenger_score=after, accepted=accepted, reason="gain"),
    )
    step = AlignmentStep(epoch=1, simulated=("e1", "e2"), scores=(0.0, 1.0), feedback=(said, ""), trials=trials)
    return Alignment(
        user_id=user,
        scores=Scores(without_persona=before, initial=before, final=after if accepted else before),
        gate_size=4,
        accepted=int(accepted),
        steps=(step,),
        stopped="all epochs done",
        usage={
            "respond": Usage(calls=9, input_tokens=900, output_tokens=90, usd=0.01),
            "total": Usage(calls=9, input_tokens=900, output_tokens=90, seconds=2.0, usd=0.01),
        },
        options={"recent": 3},
    )


def subject(user, kind="ghost", then="horror", after=0.75, traces=(), note="Prefers long answers."):
    """A user with two versions: the second revises one bullet and adds a rule."""
    style = Bullet(section="style", text=note, source="summary")
    first = Persona(user_id=user, bullets=(style,))
    shorter = style.model_copy(update={"text": note.replace("long", "short")})
    edits = [
        Edit(op="revise", id=style.id, bullet=shorter),
        Edit(op="add", bullet=rule((kind,), then, ("e1", "e9"))),
    ]
    second = first.apply(edits)
    documents = (
        PersonaDocument.of(first, task="film -> tag", model="m"),
        PersonaDocument.of(second, alignment=record(user, after=after), task="film -> tag", model="m"),
    )
    episode = Interaction(user_id=user, query=f"A {kind} in the cellar", response=then, time="2026-01-03", id="e1")
    return Subject(user_id=user, versions=documents, current=1, episodes={"e1": episode}, traces=tuple(traces))


def trace(user):
    steps = (
        Step(action="recall_history", query="cellar films", steered_by=("b1",)),
        Step(action="recall_history", query="attic films"),
        Step(action="search_knowledge", query="Nosferatu", failed=True),
    )
    return Trace(user_id=user, query="q", persona_version=1, persona="p", steps=steps)


def fleet(n):
    kinds = [("ghost", "horror"), ("wedding", "romance"), ("rocket", "sci-fi")]
    scores = [0.75, 0.25, 0.1]
    notes = [f"Prefers long answers and word{'abcdefg'[i % 7]}." for i in range(n)]
    return [subject(f"user-{i:04}", *kinds[i % 3], after=scores[i % 3], note=notes[i]) for i in range(n)]
