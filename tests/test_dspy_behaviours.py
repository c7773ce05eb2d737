"""What DSPy's users rely on, for a plain program, a personalized one and a PersonaAgent: module, saving, streaming,
parallel, optimizers. What differs between the three is the persona in each request, and nothing else."""

import asyncio
import json
import threading
from contextlib import contextmanager

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from requests_seen import messages, seen_lm

from persona_dspy import Persona, PersonaAgent, personalize

PERSONA = Persona.from_text("ZEBRA: likes brevity.", user_id="ana")
SIGNATURE = "question -> answer"
MAKERS = {
    "plain": lambda: dspy.Predict(SIGNATURE),
    "personalized": lambda: personalize(dspy.Predict(SIGNATURE), persona=PERSONA),
    "agent": lambda: PersonaAgent(SIGNATURE, persona=PERSONA),
}
TRAINSET = [dspy.Example(question=f"q{n}", answer=f"a{n}").with_inputs("question") for n in range(6)]


def right(prompt):
    """Answers q7 with a7; where it is told to be wrong, with something else."""
    question = prompt.fields.get("question", "q0")
    answer = f"a{question[1:]}" if "WRONG" not in prompt.system else "no"
    return {name: answer if name == "answer" else "because" for name in prompt.outputs}


def exact(example, prediction, trace=None):
    return float(example.answer == prediction.answer)


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


@pytest.fixture
def program(kind):
    return MAKERS[kind]()


@contextmanager
def asking(kind, *handlers, adapter=None, **options):
    """An LM for the test; after it, every request had the persona, in its system message and nowhere else."""
    lm = seen_lm(*(handlers or (right,)), **options)
    with dspy.context(lm=lm, adapter=adapter or dspy.ChatAdapter()):
        yield lm
    assert lm.engine.requests, "nothing was asked"
    for request in lm.engine.requests:
        (_, system), *others = messages(request)
        assert ("ZEBRA" in system) == (kind != "plain") and not any("ZEBRA" in text for _, text in others)


# --- module ---------------------------------------------------------------------------------------------------------


def test_a_prediction_by_attribute_item_and_dictionary(kind, program):
    with asking(kind):
        said = program(question="q7")
    assert isinstance(said, dspy.Prediction)
    assert (said.answer, said["answer"], said.toDict(), list(said.keys())) == ("a7", "a7", {"answer": "a7"}, ["answer"])


def test_asyncio_gives_the_same(kind, program):
    async def both():
        return await asyncio.gather(*(program.acall(question=f"q{n}") for n in range(4)))

    with asking(kind) as lm:
        assert [said.answer for said in asyncio.run(both())] == [f"a{n}" for n in range(4)]
        asked = {messages(request)[-1] for request in lm.engine.requests}
        asked_async = {messages(request)[0] for request in lm.engine.requests}
        program(question="q0")
        assert messages(lm.engine.requests[-1])[-1] in asked and messages(lm.engine.requests[-1])[0] in asked_async


def test_predictors_are_listed_and_mapped(kind, program):
    ((_, predictor),) = program.named_predictors()
    assert [predictor] == program.predictors() and list(predictor.signature.fields) == ["question", "answer"]
    assert predictor in [parameter for _, parameter in program.named_parameters()]

    def told(module):
        module.signature = module.signature.with_instructions("Answer in WRONG words.")
        return module

    with asking(kind):
        program.map_named_predictors(told)
        assert program(question="q7").answer == "no"


def test_an_lm_of_its_own_goes_before_the_contexts(kind, program):
    with asking(kind) as lm:
        assert program.predictors()[0].lm is None
        program.set_lm(lm)
        assert program.get_lm() is lm
        with dspy.context(lm=seen_lm(lambda prompt: {"answer": "the context's"})):
            assert program(question="q7").answer == "a7"


def test_demos_are_shown_as_turns(kind, program):
    program.predictors()[0].demos = [dspy.Example(question="early", answer="bird").with_inputs("question")]
    with asking(kind) as lm:
        program(question="q7")
    _, (role, asked), (other, answered), _ = messages(lm.engine.requests[0])
    assert (role, other) == ("user", "assistant") and "early" in asked and "bird" in answered


def test_copies_are_apart_and_reset_ones_are_bare(kind, program):
    program.predictors()[0].demos = [dspy.Example(question="early", answer="bird").with_inputs("question")]
    twin, bare = program.deepcopy(), program.reset_copy()
    twin.predictors()[0].demos.clear()
    assert len(program.predictors()[0].demos) == 1 and not bare.predictors()[0].demos
    with asking(kind):
        assert [one(question="q7").answer for one in (program, twin, bare)] == ["a7"] * 3


def test_callbacks_see_module_adapter_and_lm_once_each(kind, program):
    seen = []

    class Watch(BaseCallback):
        def on_module_end(self, call_id, outputs, exception):
            seen.append("module")

        def on_lm_start(self, call_id, instance, inputs):
            seen.append("lm")

        def on_lm_end(self, call_id, outputs, exception):
            assert exception is None
            seen.append("lm end")

    with asking(kind), dspy.context(callbacks=[Watch()]):
        program(question="q7")
    assert (seen.count("lm"), seen.count("lm end")) == (1, 1) and seen.count("module") >= 1 and seen[-1] == "module"


def test_usage_is_tracked_and_a_trace_names_the_predictor(kind, program):
    with asking(kind), dspy.context(track_usage=True, trace=[]):
        said = program(question="q7")
        ((predictor, inputs, outputs),) = dspy.settings.trace
    assert said.get_lm_usage()["fake/seen"]["completion_tokens"] == 7
    assert predictor is program.predictors()[0] and inputs["question"] == "q7" and outputs.answer == "a7"


def test_the_history_has_the_call(kind, program):
    with asking(kind) as lm:
        program(question="q7")
        assert len(lm.history) == len(program.history) == 1 and "q7" in str(lm.history[0]["messages"])
        with dspy.context(disable_history=True):
            program(question="q8")
        assert len(lm.history) == 1


def test_an_answer_that_cannot_be_read_is_an_adapter_error(kind, program):
    with asking(kind, lambda prompt: "no form at all"), pytest.raises(dspy.utils.exceptions.AdapterParseError):
        program(question="q7")


def test_an_error_of_the_lm_comes_through(kind, program):
    def broken(prompt):
        raise dspy.lm15.AuthError("wrong key")

    with asking(kind, broken), pytest.raises(dspy.utils.exceptions.LMAuthError, match="wrong key"):
        program(question="q7")


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_adapters(kind, program, adapter):
    with asking(kind, adapter=adapter(), keeps_schema=False):
        assert program(question="q7").answer == "a7"


@pytest.mark.parametrize("how", ["attribute", "list", "dictionary"])
def test_as_a_part_of_another_module(kind, program, how):
    class Outer(dspy.Module):
        def __init__(self):
            super().__init__()
            self.part = {"attribute": program, "list": [program], "dictionary": {"a": program}}[how]

        def forward(self, question):
            part = self.part if how == "attribute" else self.part[0 if how == "list" else "a"]
            return part(question=question)

    outer = Outer()
    assert len(outer.predictors()) == 1
    with asking(kind):
        assert outer(question="q7").answer == "a7" and outer.deepcopy()(question="q8").answer == "a8"


# --- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "pkl"])
def test_state_is_saved_and_loaded(kind, program, suffix, tmp_path):
    program.predictors()[0].demos = [dspy.Example(question="early", answer="bird").with_inputs("question")]
    program.predictors()[0].signature = program.predictors()[0].signature.with_instructions("Be WRONG.")
    program.save(tmp_path / f"p.{suffix}")
    other = MAKERS[kind]()
    other.load(tmp_path / f"p.{suffix}", **({"allow_pickle": True} if suffix == "pkl" else {}))
    assert other.predictors()[0].demos[0]["answer"] == "bird"
    with asking(kind):
        assert other(question="q7").answer == "no"
    if suffix == "json":
        assert json.loads((tmp_path / "p.json").read_text())["metadata"]["dependency_versions"]["dspy"]


def test_a_state_is_json_and_loads_again_and_again(kind, program):
    state = json.loads(json.dumps(program.dump_state()))
    for _ in range(3):
        program.load_state(state)
    with asking(kind):
        assert program(question="q7").answer == "a7"


def test_a_whole_program_is_saved_and_loaded(kind, program, tmp_path):
    program.save(tmp_path / "whole", save_program=True)
    again = dspy.load(str(tmp_path / "whole"), allow_pickle=True)
    with asking(kind):
        assert again(question="q7").answer == "a7"


# --- streaming ------------------------------------------------------------------------------------------------------


async def streamed(program, **options):
    return [chunk async for chunk in dspy.streamify(program, **options)(question="q123456789")]


def test_pieces_of_a_field_and_then_the_prediction(kind, program):
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    with asking(kind):
        *pieces, last = asyncio.run(streamed(program, stream_listeners=[listener], async_streaming=True))
    assert isinstance(last, dspy.Prediction) and last.answer == "a123456789"
    texts = [piece.chunk for piece in pieces if isinstance(piece, dspy.streaming.StreamResponse)]
    assert "".join(texts) == "a123456789" and len(texts) > 1
    assert {piece.signature_field_name for piece in pieces} == {"answer"}


def test_without_a_listener_the_last_piece_is_the_prediction(kind, program):
    with asking(kind):
        assert asyncio.run(streamed(program))[-1].answer == "a123456789"


# --- parallel -------------------------------------------------------------------------------------------------------


def test_batches_keep_their_order(kind, program):
    examples = [dspy.Example(question=f"q{n}").with_inputs("question") for n in range(12)]
    with asking(kind):
        said = program.batch(examples, num_threads=4, disable_progress_bar=True, timeout=0)
    assert [one.answer for one in said] == [f"a{n}" for n in range(12)]


def test_parallel_pairs_and_what_fails(kind, program):
    def some(prompt):
        return "no form" if prompt.fields["question"] == "q1" else right(prompt)

    pairs = [(program, {"question": f"q{n}"}) for n in range(3)]
    with asking(kind, some):
        parallel = dspy.Parallel(
            num_threads=2, max_errors=5, return_failed_examples=True, disable_progress_bar=True, timeout=0
        )
        said, failed, errors = parallel(pairs)
    assert [one and one.answer for one in said] == ["a0", None, "a2"]
    assert len(failed) == len(errors) == 1 and isinstance(errors[0], dspy.utils.exceptions.AdapterParseError)


def test_one_program_in_many_threads(kind, program):
    """Raw threads need DSPy's context as they always do; the answers never mix."""
    with asking(kind) as lm:
        found, barrier = {}, threading.Barrier(8)

        def ask(n):
            with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
                barrier.wait()
                found[n] = program(question=f"q{n}").answer

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {n: f"a{n}" for n in range(8)}


def test_asyncify(kind, program):
    with asking(kind):
        assert asyncio.run(dspy.asyncify(program)(question="q7")).answer == "a7"


# --- optimizers -----------------------------------------------------------------------------------------------------


def test_evaluate(kind, program):
    evaluate = dspy.Evaluate(
        devset=TRAINSET, metric=exact, num_threads=2, display_progress=False, provide_traceback=False
    )
    with asking(kind):
        found = evaluate(program)
    assert found.score == 100.0 and [row[1].answer for row in found.results] == [f"a{n}" for n in range(6)]


def test_labelled_demos(kind, program):
    with asking(kind):
        compiled = dspy.LabeledFewShot(k=2).compile(program, trainset=TRAINSET)
        assert compiled(question="q7").answer == "a7"
    assert len(compiled.predictors()[0].demos) == 2 and not program.predictors()[0].demos


def test_bootstrapped_demos(kind, program):
    with asking(kind):
        optimizer = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=3, max_labeled_demos=0)
        compiled = optimizer.compile(program, trainset=TRAINSET)
        assert compiled(question="q7").answer == "a7"
    assert len(compiled.predictors()[0].demos) == 3 and all(demo.augmented for demo in compiled.predictors()[0].demos)
    assert not program.predictors()[0].demos


def test_the_best_of_several(kind, program):
    def reward(inputs, prediction):
        return float(prediction.answer == "a7")

    with asking(kind):
        assert dspy.BestOfN(module=program, N=2, reward_fn=reward, threshold=1.0)(question="q7").answer == "a7"


def test_instructions_are_searched_for(kind, program):
    """COPRO proposes instructions; the reflecting requests themselves are nobody's."""

    def propose(prompt):
        if "proposed_instruction" in prompt.outputs:
            return {"proposed_instruction": "Answer well.", "proposed_prefix_for_output_field": "Answer:"}
        return right(prompt)

    lm = seen_lm(propose)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        optimizer = dspy.COPRO(metric=exact, breadth=2, depth=1)
        evaluating = {"num_threads": 1, "display_progress": False}
        compiled = optimizer.compile(program, trainset=TRAINSET[:2], eval_kwargs=evaluating)
        assert compiled(question="q7").answer == "a7"
    for request, prompt in zip(lm.engine.requests, lm.engine.calls, strict=True):
        answers = prompt.outputs == ("answer",)
        assert ("ZEBRA" in messages(request)[0][1]) == (answers and kind != "plain")


def test_gepa_evolves_the_predictors_instructions(kind, program):
    def metric(gold, pred, trace=None, pred_name=None, pred_trace=None):
        return dspy.Prediction(score=exact(gold, pred), feedback="be right")

    def reflect(prompt):
        return {"new_instruction": "Answer with the letter a and the number."}

    wrong = program.deepcopy()
    wrong.predictors()[0].signature = wrong.predictors()[0].signature.with_instructions("Be WRONG.")
    lm, reflecting = seen_lm(right), seen_lm(reflect)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        optimizer = dspy.GEPA(metric=metric, reflection_lm=reflecting, max_metric_calls=24, num_threads=1)
        compiled = optimizer.compile(wrong, trainset=TRAINSET[:3], valset=TRAINSET[3:])
        assert compiled(question="q7").answer == "a7"
    assert compiled.predictors()[0].signature.instructions.startswith("Answer with the letter")
    assert all(("ZEBRA" in messages(request)[0][1]) == (kind != "plain") for request in lm.engine.requests)
