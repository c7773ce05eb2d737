"""The engine in this process: identity and options without a model, behaviour with the real 135M one."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.lm15 import Config, ContextLengthError, Message, Request
from dspy.utils.exceptions import ContextWindowExceededError

from persona_dspy.errors import InputError, ModelError
from persona_dspy.lm.local import engine as module
from persona_dspy.lm.local.engine import AsyncLlamaEngine, LlamaEngine, local_lm, shared_engine


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that passes for a model until it is loaded."""
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path))
    monkeypatch.setattr(module, "_ENGINES", {})
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF not really")
    return path


def request(text: str = "hi", **config: Any) -> Request:
    return Request(model="local/x", messages=(Message.user(text),), config=Config(**config))


# --- without a model ---------------------------------------------------------------------------------------------


def test_one_engine_per_file_however_it_is_spelled(weights: Path, monkeypatch: pytest.MonkeyPatch):
    engine = shared_engine(weights)
    monkeypatch.chdir(weights.parent)
    assert shared_engine("tiny.gguf") is engine
    assert local_lm(weights).engine is local_lm("tiny").engine is engine
    assert engine.calls == 0


def _sent(value: Any) -> Any:
    """As another process would get it."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301


def test_copies_of_the_lm_share_the_engine(weights: Path):
    lm = local_lm(weights)
    for other in (copy.copy(lm), copy.deepcopy(lm), lm.copy(temperature=0.5), _sent(lm)):
        assert other.engine is lm.engine
    assert copy.deepcopy(dspy.Predict("a -> b")).lm is None


def test_state_is_json_and_finds_the_same_weights_where_the_file_moved(weights: Path, tmp_path: Path):
    state = json.loads(json.dumps(local_lm(weights, temperature=0.5, max_tokens=77).dump_state()))
    module._ENGINES.clear()
    (tmp_path / "elsewhere").mkdir()
    state["engine"]["state"]["path"] = str(tmp_path / "elsewhere" / "tiny.gguf")
    back = dspy.LM.load_state(state, allow_custom_lm_class=True)
    assert back.engine.path == weights.resolve()
    assert (back.kwargs["temperature"], back.kwargs["max_tokens"]) == (0.5, 77)
    assert isinstance(back._async_engine_spec, AsyncLlamaEngine)


def test_state_of_other_weights_is_refused(weights: Path):
    state = shared_engine(weights).dump_state()
    weights.write_bytes(b"GGUF other weights")
    with pytest.raises(ModelError, match=r"expected .* as saved"):
        LlamaEngine.load_state(state)


def test_options_are_checked_and_cannot_differ_within_a_process(weights: Path):
    with pytest.raises(InputError, match=r"slots=0, context=8192: expected slots >= 1"):
        shared_engine(weights, slots=0)
    shared_engine(weights, slots=3)
    shared_engine(weights, slots=3)
    with pytest.raises(InputError, match=r"asked for \{'slots': 1\}, but this process has it with slots=3"):
        shared_engine(weights, slots=1)


def test_a_file_that_is_no_model_says_so(weights: Path):
    with pytest.raises(InputError, match="'gone'"):
        local_lm("gone")
    engine = shared_engine(weights)
    with pytest.raises(ModelError, match="could not load it"):
        engine.load()
    with pytest.raises(ModelError, match="could not load it"):
        engine.complete(request())
    assert engine.calls == 1


def test_without_xllamacpp_it_says_what_to_install(weights: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'persona-dspy\[local\]'"):
        local_lm(weights)


def test_capabilities_that_adapters_ask_for(weights: Path):
    lm = local_lm(weights)
    assert lm.supports_response_schema and not lm.supports_function_calling and not lm.supports_reasoning
    assert {"response_format", "temperature", "max_tokens", "top_p", "stop", "seed"} <= lm.supported_params


def test_the_name_carries_the_weights(weights: Path):
    first = local_lm(weights).model
    weights.write_bytes(b"GGUF other weights")
    assert first.startswith("local/tiny-") and local_lm(weights).model != first


# --- with the real 135M model ------------------------------------------------------------------------------------


class Rule(pydantic.BaseModel):
    when: str = pydantic.Field(max_length=40)
    tag: Literal["comedy", "horror", "romance"]


class Tag(dspy.Signature):
    """Tag the movie."""

    movie: str = dspy.InputField()
    why: str = dspy.OutputField()
    tag: Literal["comedy", "horror", "romance"] = dspy.OutputField()
    stars: int = dspy.OutputField()
    rules: list[Rule] = dspy.OutputField()


MOVIES = [
    "A slasher kills teens.",
    "Two clowns fall in love.",
    'He said "run" \\ and ran.',
    "Ein Wal, größer als alles 🐋",
]


def tagged(lm: Any, movie: str) -> dspy.Prediction:
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter(use_native_function_calling=False)):
        return dspy.Predict(Tag)(movie=movie)


@pytest.mark.model
def test_typed_output_always_parses_and_the_calls_add_up(smol_lm: Any):
    before = smol_lm.engine.calls
    for movie in MOVIES:
        out = tagged(smol_lm, movie)
        assert out.tag in ("comedy", "horror", "romance") and isinstance(out.stars, int) and out.rules
        assert all(len(rule.when) <= 40 for rule in out.rules)
    assert smol_lm.engine.calls - before == len(MOVIES)
    content = smol_lm.history[-1]["outputs"][0]
    assert list(json.loads(content)) == ["why", "tag", "stars", "rules"] and "\n" not in content


@pytest.mark.model
def test_short_of_tokens_it_still_parses(smol_lm: Any):
    with dspy.context(lm=smol_lm.copy(max_tokens=60), adapter=dspy.JSONAdapter()):
        assert dspy.Predict("question -> answer")(question="Tell everything about whales.").answer


@pytest.mark.model
def test_same_answers_cold_cached_and_beside_others(smol_lm: Any):
    def answers(workers: int) -> list[str]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(told, MOVIES))

    def told(movie: str) -> str:
        with dspy.context(lm=smol_lm.copy(max_tokens=120), adapter=dspy.JSONAdapter()):
            return dspy.Predict("movie -> story")(movie=movie).story

    smol_lm.engine.close()
    cold = answers(1)
    assert cold == answers(1) == answers(3)


@pytest.mark.model
def test_a_prompt_seen_before_is_not_computed_again(smol_lm: Any):
    system = "You tag movies. " * 40
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "first"}]
    smol_lm(messages=messages, max_tokens=4)
    messages[1]["content"] = "second"
    smol_lm(messages=messages, max_tokens=4)
    usage = smol_lm.history[-1]["usage"]
    assert usage["completion_tokens"] <= 4
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.7 * usage["prompt_tokens"] > 100


@pytest.mark.model
def test_the_template_is_applied_once(smol_lm: Any):
    """One token more than the text of the template, as counted by the raw endpoint, would be a doubled BOS."""
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    raw = smol_lm.engine._loaded().handle_completions({"prompt": text, "max_tokens": 1})
    smol_lm(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], max_tokens=1)
    assert smol_lm.history[-1]["usage"]["prompt_tokens"] == raw["usage"]["prompt_tokens"]


@pytest.mark.model
def test_length_is_reported(smol_lm: Any):
    engine: LlamaEngine = smol_lm.engine
    assert engine.complete(request("Count to one hundred.", max_tokens=5)).finish_reason == "length"
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 100, "maxLength": 400}}}
    schema["required"] = ["a"]  # type: ignore[assignment]
    cut = engine.complete(request("Hi", max_tokens=5, response_format={"type": "json_schema", "schema": schema}))
    assert cut.finish_reason == "length" and cut.usage.output_tokens == 5


@pytest.mark.model
def test_too_long_a_prompt_is_a_context_error_for_dspy(smol_lm: Any):
    with pytest.raises(ContextLengthError):
        smol_lm.engine.complete(request("word " * 9000))
    with pytest.raises(ContextWindowExceededError):
        smol_lm("word " * 9000)


@pytest.mark.model
def test_sampling_follows_temperature_and_seed(smol_lm: Any):
    def text(seed: int | None) -> str:
        return smol_lm("Invent a name for a cat.", temperature=1.5, seed=seed, max_tokens=24)[0]

    assert text(1) == text(1)
    assert len({text(seed) for seed in (1, 2, 3, None)}) > 1


@pytest.mark.model
def test_stop_ends_the_answer(smol_lm: Any):
    assert "5" not in smol_lm("Count: 1, 2, 3, 4,", stop=["5"], max_tokens=40)[0]


@pytest.mark.model
def test_async_and_sync_give_the_same(smol_lm: Any):
    async def both() -> list[Any]:
        with dspy.context(lm=smol_lm, adapter=dspy.JSONAdapter()):
            program = dspy.Predict("question -> answer")
            return await asyncio.gather(*(program.acall(question=f"What is {n} plus one?") for n in (1, 2)))

    found = asyncio.run(both())
    with dspy.context(lm=smol_lm, adapter=dspy.JSONAdapter()):
        again = [dspy.Predict("question -> answer")(question=f"What is {n} plus one?") for n in (1, 2)]
    assert [p.answer for p in found] == [p.answer for p in again]


@pytest.mark.model
def test_stream_arrives_piece_by_piece_and_is_the_answer(smol_lm: Any):
    engine: LlamaEngine = smol_lm.engine
    asked = request("Tell me about whales.", max_tokens=30)
    events = list(engine.stream(asked))
    assert (events[0].type, events[-1].type) == ("start", "end")
    pieces = [e.delta.text for e in events[1:-1]]
    assert len(pieces) > 10 and "".join(pieces) == engine.complete(asked).text
    assert events[-1].usage.output_tokens == 30


@pytest.mark.model
def test_streamify_sends_pieces(smol_lm: Any):
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener], async_streaming=False)
    with dspy.context(lm=smol_lm, adapter=dspy.JSONAdapter()):
        got = list(program(question="What is a whale? Answer in a long sentence."))
    assert isinstance(got[-1], dspy.Prediction)
    assert sum(isinstance(piece, dspy.streaming.StreamResponse) for piece in got) > 3


@pytest.mark.model
def test_leaving_a_stream_stops_the_work(smol_lm: Any):
    events = smol_lm.engine.stream(request("Tell a very long story.", max_tokens=2000))
    for _ in range(4):
        next(events)
    events.close()
    deadline = time.monotonic() + 10
    while module._STREAMS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not module._STREAMS


@pytest.mark.model
def test_threads_queue_and_keep_their_own_answers(smol_lm: Any):
    before = smol_lm.engine.calls

    def ask(n: int) -> bool:
        with dspy.context(lm=smol_lm, adapter=dspy.JSONAdapter()):
            signature = dspy.Signature("note -> number").with_updated_fields("number", type_=Literal[str(n)])  # type: ignore[valid-type]
            return dspy.Predict(signature)(note=f"The number is {n}.").number == str(n)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert smol_lm.engine.calls - before == 8


@pytest.mark.model
def test_nobody_else_can_reach_the_engine(smol_lm: Any):
    smol_lm.engine.load()
    address = smol_lm.engine._loaded().listening_address
    assert address.startswith("unix:") and not Path(address.removeprefix("unix://")).exists()


SCRIPT = """
import sys, threading, time, os, signal
from persona_dspy.lm.local.engine import local_lm
lm = local_lm(cache=False)
lm("hi", max_tokens=2)
if sys.argv[1] == "busy":
    threading.Thread(target=lambda: lm("Tell a very long story."), daemon=True).start()
    time.sleep(0.5)
if sys.argv[1] == "interrupt":
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        lm("Tell a very long story.", max_tokens=4000)
    except KeyboardInterrupt:
        print("interrupted")
if sys.argv[1] == "fork":
    child = os.fork()
    if child == 0:
        print("child", len(lm("hi", max_tokens=2)))
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print("end")
"""


@pytest.mark.model
@pytest.mark.parametrize(
    ("case", "said"), [("idle", "end"), ("busy", "end"), ("interrupt", "interrupted\nend"), ("fork", "child 1\nend")]
)
def test_a_process_ends_cleanly_and_silently(smol_lm: Any, case: str, said: str):
    smol_lm.engine.close()  # two loaded engines would slow each other
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, case], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1]
    )
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
    noise = [x for x in done.stderr.splitlines() if "truncated" not in x and "DeprecationWarning" not in x]
    assert not [line for line in noise if "llama" in line or "ggml" in line or "Traceback" in line], noise
