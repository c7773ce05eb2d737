"""What "any dspy.Module" promises: DSPy's own behaviours with personalized programs and PersonaAgents."""

import asyncio
import contextvars
import copy
import pickle
import threading
import warnings

import cloudpickle
import dspy
import pytest
from requests_seen import messages, seen_lm

from persona_dspy import Interaction, Persona, PersonaAgent, personalize
from persona_dspy.agent import trace_of
from persona_dspy.errors import InputError
from persona_dspy.testing.fake_lm import FakeLM

ANA = Persona.from_text("ZEBRA: likes brevity.", user_id="ana")
PAST = [
    Interaction(user_id="ana", query=f"question {n} CANARY", response=f"own answer {n}", id=str(n)) for n in range(4)
]
ECHO = {"answer": "fine", "reasoning": "so", "subject": "s", "priority": 1}


def says(prompt):
    return {name: ECHO.get(name, "text") for name in prompt.outputs or prompt.schema.get("properties", {})}


def sent(program, *args, adapter=None, lm=None, **inputs):
    model = lm or seen_lm(says)
    with dspy.context(lm=model, adapter=adapter):
        answer = program(*args, **inputs)
    return answer, [messages(request) for request in model.engine.requests]


class Text(dspy.Module):
    """Returns whatever ``shape`` makes of the answer; takes positional arguments and a default."""

    def __init__(self, shape=lambda answer: answer):
        super().__init__()
        self.answer, self.shape = dspy.Predict("question, tone -> answer"), shape

    def forward(self, question, tone="plain"):
        return self.shape(self.answer(question=question, tone=tone).answer)

    async def aforward(self, question, tone="plain"):
        return self.shape((await self.answer.acall(question=question, tone=tone)).answer)


# --- The persona is in every request, or an error says so ---------------------------------------------------------


class Template(dspy.ChatAdapter):
    def format(self, signature, demos, inputs):
        text = "Answer [[ ## answer ## ]] then [[ ## completed ## ]]"
        return [{"role": "system", "content": text}, {"role": "user", "content": str(inputs)}]


class NoSystem(dspy.ChatAdapter):
    def format(self, signature, demos, inputs):
        return [{"role": "user", "content": f"[[ ## answer ## ]] [[ ## completed ## ]] {inputs}"}]


class InParts(dspy.ChatAdapter):
    def format(self, signature, demos, inputs):
        first, *rest = super().format(signature, demos, inputs)
        return [{**first, "content": [{"type": "text", "text": first["content"]}]}, *rest]


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("make", [Template, NoSystem, InParts, "two steps"])
def test_adapters_with_a_format_of_their_own_carry_the_persona(make, how):
    asked = []
    lm = FakeLM(lambda p: (asked.append(p), "[[ ## answer ## ]]\nfine\n\n[[ ## completed ## ]]")[1])
    extracted = []
    extractor = FakeLM(lambda p: (extracted.append(p), says(p))[1])
    adapter = dspy.TwoStepAdapter(extractor) if make == "two steps" else make()
    mine = personalize(dspy.Predict("question -> answer"), persona=ANA)
    with dspy.context(lm=lm, adapter=adapter):
        answer = mine(question="well?") if how == "sync" else asyncio.run(mine.acall(question="well?"))
    assert answer.answer == "fine"
    assert [p.system.count("ZEBRA") for p in asked] == [1]
    assert [p.system.count("ZEBRA") for p in extracted] == [1] * (make == "two steps")
    assert type(extractor) is dspy.LM


class Threaded(dspy.Module):
    def __init__(self, carry):
        super().__init__()
        self.answer, self.carry = dspy.Predict("question -> answer"), carry

    def forward(self, question):
        answers = []
        work = lambda: answers.append(self.answer(question=question))  # noqa: E731
        thread = threading.Thread(
            target=contextvars.copy_context().run if self.carry else work, args=(work,) if self.carry else ()
        )
        thread.start()
        thread.join()
        return answers[0]


class PastAdapters(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question):
        return dspy.Prediction(answer=dspy.settings.lm(question)[0])


class OwnAdapterInside(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question):
        with dspy.context(adapter=dspy.JSONAdapter()):
            return self.answer(question=question)


def test_a_persona_that_reached_no_request_is_an_error(monkeypatch):
    lm = FakeLM(lambda p: says(p) or "text")
    for lost in (PastAdapters(), OwnAdapterInside()):
        with dspy.context(lm=lm), pytest.raises(InputError, match="no LM call carried the persona"):
            personalize(lost, persona=ANA)(question="well?")
        with dspy.context(lm=lm):
            assert personalize(lost, user_id="ana")(question="well?").answer, "nothing to carry"
    raw = personalize(Threaded(carry=False), persona=ANA)
    raw.set_lm(lm)  # a raw thread has no context to take an LM from
    with pytest.raises(InputError, match="Parallel"):
        raw(question="well?")
    with dspy.context(lm=lm):
        assert personalize(Threaded(carry=True), persona=ANA)(question="well?").answer == "fine"


# --- It adds the persona and nothing else --------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
@pytest.mark.parametrize("schema", [True, False])
@pytest.mark.parametrize(
    "make", [lambda: dspy.Predict("question -> answer"), lambda: dspy.ChainOfThought("question -> n: int")]
)
def test_the_request_is_the_plain_programs_and_the_persona(make, schema, adapter):
    ours, mine = sent(
        personalize(make(), persona=ANA), question="well?", adapter=adapter, lm=seen_lm(says_typed, keeps_schema=schema)
    )
    theirs, plain = sent(make(), question="well?", adapter=adapter, lm=seen_lm(says_typed, keeps_schema=schema))
    assert ours.toDict() == theirs.toDict()
    for with_persona, without in zip(mine, plain, strict=True):
        assert with_persona[0] == ("system", f"{without[0][1]}\n\n{ANA.render()}")
        assert with_persona[1:] == without[1:]


def says_typed(prompt):
    return {**says(prompt), **({"n": 3} if "n" in says(prompt) else {})}


def test_an_answer_that_cannot_be_parsed_falls_back_as_in_the_plain_program():
    asked = []

    def broken_chat(prompt):
        asked.append(prompt.system)
        return {"answer": "fine"} if "JSON object" in prompt.system or prompt.schema else "no markers"

    with dspy.context(lm=FakeLM(broken_chat)):
        assert personalize(dspy.Predict("question -> answer"), persona=ANA)(question="x").answer == "fine"
    assert len(asked) == 2 and all("ZEBRA" in system for system in asked)


def test_a_second_persona_is_refused():
    mine = personalize(dspy.Predict("question -> answer"), persona=ANA)

    class Around(dspy.Module):
        def __init__(self):
            super().__init__()
            self.inner = mine

    for program in (mine, Around(), PersonaAgent("question -> answer", persona=ANA)):
        with pytest.raises(InputError, match="answers for user 'ana' already"):
            personalize(program, persona=Persona.from_text("Other.", user_id="bob"))


# --- It takes and returns what the program does --------------------------------------------------------------------


def test_positional_arguments_defaults_and_names():
    mine = personalize(Text(), persona=ANA)
    for args, inputs in (
        (("well?",), {}),
        (("well?", "plain"), {}),
        ((), {"question": "well?"}),
        (("well?",), {"tone": "plain"}),
    ):
        answer, ((_, (_, user)),) = sent(mine, *args, **inputs)
        assert answer == "fine" and "well?" in user and "plain" in user
    with pytest.raises(TypeError, match="question"):
        mine()
    with pytest.raises(ValueError, match="Positional arguments are not allowed"):
        sent(personalize(dspy.Predict("question -> answer"), persona=ANA), "well?")


SHAPES = [
    (lambda a: a, "fine"),
    (lambda a: [a, a], ["fine", "fine"]),
    (lambda a: {"answer": a, "n": 1}, {"answer": "fine", "n": 1}),
    (lambda a: None, None),
    (lambda a: (a, 1), ("fine", 1)),
]


@pytest.mark.parametrize(("shape", "value"), SHAPES)
@pytest.mark.parametrize("how", ["call", "async", "batch", "parallel", "asyncify"])
def test_what_the_program_returns_is_returned(shape, value, how):
    mine = personalize(Text(shape), persona=ANA)
    example = dspy.Example(question="well?").with_inputs("question")
    with dspy.context(lm=FakeLM(says)):
        if how == "call":
            answers = [mine("well?")]
        elif how == "async":
            answers = [asyncio.run(mine.acall("well?"))]
        elif how == "asyncify":
            answers = [asyncio.run(dspy.asyncify(mine)(question="well?"))]
        elif how == "batch":
            answers = mine.batch([example, example], num_threads=2, disable_progress_bar=True, timeout=0)
        else:
            pairs = [(mine, example), (mine, {"question": "well?"}), (mine, ("well?",))]
            answers = dspy.Parallel(num_threads=2, disable_progress_bar=True, timeout=0)(pairs)
    assert answers == [value] * len(answers)


def test_many_users_in_parallel_each_under_their_own_persona():
    program, asked = Text(), []
    lm = FakeLM(lambda p: (asked.append(p), {"answer": p.fields["question"]})[1])
    users = [f"u{n}" for n in range(20)]
    mine = {u: personalize(program, persona=Persona.from_text(f"Persona of {u}.", user_id=u)) for u in users}
    with dspy.context(lm=lm):
        pairs = [(mine[u], {"question": f"from {u}"}) for u in users * 3]
        answers = dspy.Parallel(num_threads=8, disable_progress_bar=True, timeout=0)(pairs)
    assert answers == [f"from {u}" for u in users * 3]
    assert len(asked) == 60 and all(f"Persona of {p.fields['question'][5:]}." in p.system for p in asked)


@pytest.mark.parametrize(
    "make",
    [
        lambda: personalize(dspy.Predict("question -> answer"), persona=ANA),
        lambda: PersonaAgent("question -> answer", persona=ANA),
    ],
)
def test_streams(make):
    async def chunks():
        with dspy.context(lm=FakeLM(says), disable_history=True):
            program = dspy.streamify(make())
            return [chunk async for chunk in program(question="well?")]

    assert asyncio.run(chunks())[-1].answer == "fine"


def test_an_output_named_trace_stays_the_users():
    with dspy.context(lm=FakeLM(lambda p: {"trace": "footsteps"})):
        found = personalize(dspy.Predict("case -> trace"), persona=ANA)(case="x")
    assert found.trace == "footsteps" and found.toDict() == {"trace": "footsteps"}
    assert trace_of(found).user_id == "ana"


class Verdict(dspy.Prediction):
    def loud(self):
        return self.answer.upper()


def test_a_prediction_of_a_class_of_the_users_own_stays_one():
    with dspy.context(lm=FakeLM(says)):
        answer = personalize(Text(lambda a: Verdict(answer=a)), persona=ANA)("well?")
    assert answer.loud() == "FINE" and trace_of(answer).response == "fine"


def test_signatures_without_inputs_or_outputs_are_refused():
    for signature in ("-> answer", "question ->"):
        with pytest.raises(InputError, match="an input and an output"):
            PersonaAgent(dspy.Signature(signature))
        with pytest.raises(InputError, match="an input and an output"):
            personalize(dspy.Predict(dspy.Signature(signature)))


@pytest.mark.parametrize("shape", [lambda a: a, lambda a: {"answer": a}, lambda a: dspy.Prediction(answer=a)])
def test_an_optimizer_learns_from_whatever_is_returned(shape):
    from optimizers import PersonaAlignment

    past = [Interaction(user_id="ana", query=f"question {n}", response="fine", id=str(n)) for n in range(8)]
    mine = personalize(Text(shape), history=past, fields=("question", "answer"))
    with dspy.context(lm=FakeLM(says)):
        aligned = PersonaAlignment(epochs=1).compile(mine, trainset=mine.examples())
    assert aligned.alignment.scores.final == 1


def test_a_prediction_without_the_response_field_is_an_error_at_the_first_simulation():
    from optimizers import PersonaAlignment

    mine = personalize(Text(lambda a: dspy.Prediction(final=a)), history=PAST * 1, fields=("question", "answer"))
    lm = FakeLM(says)
    with dspy.context(lm=lm), pytest.raises(InputError, match=r"\['final'\].*'answer'.*fields=\('question', 'final'\)"):
        PersonaAlignment(epochs=1).compile(mine, trainset=mine.examples())
    assert len(lm.engine.calls) <= 1


# --- Saving ---------------------------------------------------------------------------------------------------------

MAKERS = {
    "personalized": lambda **more: personalize(dspy.ChainOfThought("question -> answer"), **more),
    "own module": lambda **more: personalize(Text(), **more),
    "agent": lambda **more: PersonaAgent("question -> answer", **more),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("suffix", [".json", ".pkl"])
def test_load_refuses_another_users_persona_and_changes_nothing(name, suffix, tmp_path):
    file = tmp_path / f"ana{suffix}"
    MAKERS[name](persona=ANA).save(file)
    more = {"allow_pickle": True} if suffix == ".pkl" else {}
    bob = MAKERS[name](persona=Persona.from_text("Bob's own.", user_id="bob"))
    with warnings.catch_warnings(), pytest.raises(InputError, match="persona of user 'ana': expected user 'bob'"):
        warnings.simplefilter("ignore")
        bob.load(file, **more)
    assert bob.persona.value.render().endswith("Bob's own.")
    with pytest.raises(InputError, match="'ana'"):
        bob.persona.value = ANA
    again = MAKERS[name](user_id="ana")
    again.load(file, **more)
    assert again.persona.value == ANA


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_of_the_plain_program_says_what_to_do(name, tmp_path):
    dspy.ChainOfThought("question -> answer").save(tmp_path / "plain.json")
    with pytest.raises(InputError, match=r"plain\.load"):
        MAKERS[name](persona=ANA).load(tmp_path / "plain.json")


@pytest.mark.parametrize("key", [None, "sk-SECRET"])
def test_an_lm_in_the_file_is_kept_without_its_key(key, tmp_path):
    mine = personalize(dspy.Predict("question -> answer"), persona=ANA)
    mine.set_lm(dspy.LM("openai/x", api_key=key, max_tokens=77) if key else None)
    mine.save(tmp_path / "mine.json")
    again = personalize(dspy.Predict("question -> answer"), user_id="ana")
    again.load(tmp_path / "mine.json")
    assert again.persona.value == ANA and b"SECRET" not in (tmp_path / "mine.json").read_bytes()
    assert again.program.lm is None if key is None else again.program.lm.kwargs["max_tokens"] == 77


@pytest.mark.parametrize("dump", [pickle, cloudpickle])
@pytest.mark.parametrize("name", MAKERS)
def test_a_pickle_holds_no_memory_no_key_and_no_prompt(name, dump, tmp_path):
    mine = MAKERS[name](persona=ANA, history=PAST)
    mine.set_lm(dspy.LM("openai/x", api_key="sk-SECRET", max_tokens=77))
    mine.predictors()[0].lm.history.append({"prompt": "PROMPT"})
    packed = dump.dumps(mine)
    assert not [word for word in (b"CANARY", b"SECRET", b"PROMPT") if word in packed]
    with pytest.warns(UserWarning, match="4 interactions of user 'ana'.*for_user"):
        again = pickle.loads(packed)  # noqa: S301
    assert again.persona.value == ANA and len(again.memory) == 0 and again.user_id == "ana"
    assert again.predictors()[0].lm.kwargs["max_tokens"] == 77
    assert mine.predictors()[0].lm.kwargs["api_key"] == "sk-SECRET" and len(mine.memory) == 4
    bound = again.for_user("ana", PAST, again.persona.value)
    bound.set_lm(None)
    assert sent(bound, question="well?")[0] is not None and len(bound.memory) == 4


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:the 4 interactions")
def test_a_whole_program_is_saved_and_loaded(name, tmp_path):
    MAKERS[name](persona=ANA, history=PAST).save(tmp_path / "whole", save_program=True)
    assert not [f for f in (tmp_path / "whole").rglob("*") if f.is_file() and b"CANARY" in f.read_bytes()]
    again = dspy.load(str(tmp_path / "whole"), allow_pickle=True)
    assert again.persona.value == ANA and sent(again, question="well?")[0]


@pytest.mark.parametrize("name", MAKERS)
def test_copies_keep_memory_and_are_apart(name):
    mine = MAKERS[name](persona=ANA, history=PAST)
    for twin in (mine.deepcopy(), copy.deepcopy(mine), copy.copy(mine), mine.reset_copy()):
        assert len(twin.memory) == 4 and twin.persona.value == ANA and twin is not mine
    twin = mine.deepcopy()
    twin.persona.value = Persona.from_text("Later.", user_id="ana")
    assert mine.persona.value == ANA


class Stages(dspy.Module):
    def __init__(self):
        super().__init__()
        self.stages = {"rewrite": dspy.Predict("question -> words")}
        self.answer = dspy.ChainOfThought("question, words -> answer")

    def forward(self, question):
        return self.answer(question=question, words=self.stages["rewrite"](question=question).words)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Stages, ["stages['rewrite']", "answer.predict"]),
        (lambda: dspy.ChainOfThought("question -> answer"), ["predict"]),
        (lambda: dspy.Predict("question -> answer"), ["Predict"]),
    ],
)
def test_spans_keep_the_names_of_the_predictors(make, names):
    with dspy.context(lm=FakeLM(says)):
        trace = personalize(make(), persona=ANA)(question="well?").trace
    assert [span.name for span in trace.spans() if span.kind == "LLM"] == names
    known = {name for name, _ in make().named_predictors()} | {"Predict"}
    assert set(names) <= known
