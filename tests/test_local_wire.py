"""Translation between canonical lm15 values and llama.cpp's JSON."""

from __future__ import annotations

from typing import Any

import pytest
from dspy.lm15 import (
    Config,
    ContextLengthError,
    FunctionTool,
    ImagePart,
    InvalidRequestError,
    LM15Error,
    Message,
    Request,
    ServerError,
    TextPart,
    UnsupportedFeatureError,
)

from persona_dspy.lm.local.wire import DEFAULT_MAX_TOKENS, ending, failure, pieces, to_server


def request(*messages: Message, **kwargs: Any) -> Request:
    return Request(model="local/x", messages=messages or (Message.user("hi"),), **kwargs)


def test_roles_and_texts_keep_their_order():
    turns = (Message.user("q1"), Message.assistant("a1"), Message.user([TextPart("q"), TextPart("2")]))
    body = to_server(request(*turns, system="rules"))
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("system", "rules"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
    ]


def test_a_silent_request_is_greedy_and_bounded():
    body = to_server(request())
    assert (body["temperature"], body["max_tokens"], body["cache_prompt"]) == (0.0, DEFAULT_MAX_TOKENS, True)
    assert "seed" not in body and "stop" not in body


def test_sampling_options_are_passed_on():
    given = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 5, "max_tokens": 12, "frequency_penalty": 0.5}
    body = to_server(request(config=Config(**given, stop=("END",))))
    assert {name: body[name] for name in given} == given
    assert body["stop"] == ["END"]


def test_a_seed_of_zero_is_a_seed():
    assert to_server(request(config=Config(seed=0)))["seed"] == 0


def test_a_schema_becomes_a_constraint():
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    body = to_server(request(config=Config(response_format={"type": "json_schema", "schema": schema, "name": "o"})))
    assert '"enum": ["x", "y"]' in body["grammar"]


@pytest.mark.parametrize(
    "bad",
    [
        lambda: request(config=Config(logprobs=1)),
        lambda: request(tools=(FunctionTool(name="f"),)),
        lambda: request(Message.user([ImagePart(url="http://127.0.0.1/x.png")])),
        lambda: request(config=Config(extensions={"id_slot": 1})),
    ],
)
def test_what_cannot_be_honoured_is_refused_not_dropped(bad: Any):
    with pytest.raises(UnsupportedFeatureError, match="local engine takes text"):
        to_server(bad())


CHUNKS = [
    {"id": "c1", "choices": [{"finish_reason": None, "delta": {"role": "assistant", "content": None}}]},
    {"choices": [{"finish_reason": None, "delta": {"reasoning_content": "hm"}}]},
    {"choices": [{"finish_reason": None, "delta": {"content": "he"}}]},
    {"choices": [{"finish_reason": None, "delta": {"content": "llo"}}]},
    {"choices": [{"finish_reason": "length", "delta": {}}]},
    {
        "choices": [],
        "usage": {"completion_tokens": 3, "prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 30}},
        "timings": {"cache_n": 30},
    },
]


def test_pieces_and_ending_of_a_stream():
    last: dict[str, Any] = {}
    assert list(pieces(iter(CHUNKS), last)) == [("thinking", "hm"), ("text", "he"), ("text", "llo")]
    end = ending(last)
    assert end["finish_reason"] == "length"
    usage = end["usage"]
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == (40, 3, 30)


def test_a_stream_without_an_end_is_no_answer():
    last: dict[str, Any] = {}
    assert list(pieces(iter(CHUNKS[:4]), last))
    with pytest.raises(ServerError, match="stopped before its end"):
        ending(last)


def test_an_error_chunk_raises_in_place():
    with pytest.raises(ContextLengthError, match="9031"):
        list(pieces(iter([{"error": {"type": "exceed_context_size_error", "message": "request (9031 tokens)"}}]), {}))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "exceed_context_size_error", "message": "m"}, ContextLengthError),
        ({"type": "server_error", "message": "Context size has been exceeded."}, ContextLengthError),
        ({"type": "invalid_request_error", "message": "m"}, InvalidRequestError),
        ({"message": "out of memory"}, ServerError),
        ({}, ServerError),
    ],
)
def test_failures_become_lm15_errors(error: dict[str, str], kind: type[LM15Error]):
    found = failure(error)
    assert type(found) is kind
