"""The OpenAI-compatible proxy: what reaches the upstream, who may ask for whom, what is refused, what is passed on."""

import asyncio
import gzip
import json
import logging
import threading
import time
from dataclasses import replace

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_personas import Cut, Slow, service

from persona_dspy.core.document import PersonaDocument
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona
from persona_dspy.errors import ForgettingIncomplete, InputError, ModelError, StoreError, UserForgotten
from persona_dspy.service.metrics import Metrics
from persona_dspy.service.proxy import ProxyOptions, proxy_app
from persona_dspy.service.tokens import user_token
from persona_dspy.store.store import Store

TOKEN = "the-token-of-the-application"
OURS = {"X-Persona-Token": TOKEN, "Authorization": "Bearer sk-the-callers-own"}
OPTIONS = ProxyOptions(upstream="https://upstream.example/v1", max_bytes=20_000)
ASKED = {
    "model": "m",
    "user": "ana",
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
}


def sent(status, chunks, headers):
    async def content():
        for chunk in chunks:
            yield chunk

    return httpx.Response(status, content=content(), headers=headers)


class Upstream:
    """What the other side saw; answers with an SSE stream where one was asked for."""

    def __init__(self, fails=None):
        self.requests, self.fails = [], fails
        self.transport = httpx.MockTransport(self.answer)

    def answer(self, request):
        self.requests.append(request)
        if self.fails is not None:
            raise self.fails
        if self.bodies[-1].get("stream"):
            return sent(200, [b'data: {"a": 1}\n\n', b"data: [DONE]\n\n"], {"Content-Type": "text/event-stream"})
        if self.bodies[-1].get("model") == "busy":
            return sent(429, [b'{"error": "slow down"}'], {"Retry-After": "7", "Set-Cookie": "no"})
        return sent(200, [b'{"choices"', b": []}"], {"X-Request-Id": "r1", "Content-Type": "application/json"})

    @property
    def bodies(self):
        return [json.loads(request.content) for request in self.requests]

    def system(self, n=-1):
        return [m["content"] for m in self.bodies[n]["messages"] if m["role"] in ("system", "developer")]


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "personas.db") as opened:
        for user, text in (("ana", "Likes brevity."), ("bob", "Likes rhymes.")):
            opened.add_episodes(
                user,
                [
                    Interaction(user_id=user, query=f"{word} of {user}", response=f"reply {word}", id=word)
                    for word in ("tea", "cake")
                ],
            )
            opened.put_persona(user, PersonaDocument.of(Persona.from_text(text, user_id=user)).to_json())
        yield opened


@pytest.fixture
def upstream():
    return Upstream()


def asked(store, upstream, *calls, options=OPTIONS, optimizer=None, queue=None, metrics=None, raises=True):
    """The answers to ``calls``, (method, path, arguments) each, in one life of the application."""

    async def ask():
        done = metrics.count_alignment if metrics else None
        personas = service(store, optimizer or Slow(go=True), queue=queue, on_done=done)
        app = proxy_app(personas, TOKEN, options, metrics=metrics, transport=upstream.transport)
        transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://proxy") as client,
        ):
            answers = []
            for call in calls:
                if callable(call):
                    await asyncio.to_thread(call, personas)
                    continue
                method, path, arguments = call
                answers.append(await client.request(method, path, **{"headers": OURS, **arguments}))
            return answers

    answers = asyncio.run(ask())
    return answers[0] if len(calls) == 1 else answers


def chat(body=None, **headers):
    return "POST", "/v1/chat/completions", {"json": body or ASKED, "headers": {**OURS, **headers}}


def test_the_persona_is_last_in_the_system_message_and_all_else_is_passed_on(store, upstream):
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    body = {
        **ASKED,
        "temperature": 0.3,
        "tools": tools,
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
    }
    answer = asked(store, upstream, chat(body))
    assert answer.status_code == 200 and answer.json() == {"choices": []} and answer.headers["x-request-id"] == "r1"
    assert answer.headers["x-persona-version"] == "0"
    body_sent = upstream.bodies[0]
    system = body_sent.pop("messages")[0]["content"]
    assert system.startswith("Be kind.\n\n") and system.endswith("Likes brevity.")
    assert body_sent == {name: value for name, value in body.items() if name != "messages"}
    assert str(upstream.requests[0].url) == "https://upstream.example/v1/chat/completions"


@pytest.mark.parametrize(
    ("messages", "system"),
    [
        ([{"role": "user", "content": "Hi"}], ["{}"]),
        ([{"role": "developer", "content": "D"}, {"role": "user", "content": "Hi"}], ["D\n\n{}"]),
        (
            [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, {"role": "user", "content": "x"}],
            ["A", "B\n\n{}"],
        ),
        ([{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}], ["{}"]),
        (
            [{"role": "system", "content": [{"type": "text", "text": "A"}]}, {"role": "user", "content": "Hi"}],
            [[{"type": "text", "text": "A"}, {"type": "text", "text": "{}"}]],
        ),
    ],
)
def test_every_form_of_system_message(store, upstream, messages, system):
    asked(store, upstream, chat({"model": "m", "user": "ana", "messages": messages}))
    persona = Persona.from_text("Likes brevity.", user_id="ana").render()
    assert upstream.system() == json.loads(json.dumps(system).replace("{}", json.dumps(persona)[1:-1]))


def test_a_new_user_has_no_persona_and_no_row(store, upstream):
    answer = asked(store, upstream, chat({**ASKED, "user": "new"}))
    assert answer.headers["x-persona-version"] == "0" and upstream.system() == ["Be kind."]
    assert sorted(store.users()) == ["ana", "bob"]


def test_episodes_become_turns_where_asked(store, upstream):
    body = {**ASKED, "messages": [{"role": "user", "content": "Some tea?"}]}
    asked(store, upstream, chat(body), chat(body, **{"X-Persona-Recall": "1"}), chat(body, **{"X-Persona-Recall": "2"}))
    turns = [[m["content"] for m in body_sent["messages"] if m["role"] != "system"] for body_sent in upstream.bodies]
    assert turns[0] == ["Some tea?"] and turns[1] == ["tea of ana", "reply tea", "Some tea?"]
    assert turns[2][2:] == turns[1]  # nearest last
    wrong = ("17", "-1", "x", "9999999999", "0000999", "0" * 5_000, b"\xc2\xb2")
    answers = asked(store, upstream, *[chat(body, **{"X-Persona-Recall": one}) for one in wrong])
    assert {answer.status_code for answer in answers} == {400}


def test_streams_and_refusals_are_passed_on(store, upstream):
    stream, busy = asked(store, upstream, chat({**ASKED, "stream": True}), chat({**ASKED, "model": "busy"}))
    assert stream.text.endswith("data: [DONE]\n\n") and stream.headers["content-type"] == "text/event-stream"
    assert busy.status_code == 429 and busy.headers["retry-after"] == "7" and "set-cookie" not in busy.headers


def test_only_what_the_upstream_needs_leaves(store, upstream, caplog):
    caplog.set_level(logging.DEBUG)
    asked(store, upstream, chat(None, Cookie="c", **{"X-Forwarded-For": "1.2.3.4", "OpenAI-Organization": "o"}))
    seen = upstream.requests[0].headers
    assert seen["authorization"] == "Bearer sk-the-callers-own" and seen["openai-organization"] == "o"
    assert not any(name.startswith("x-persona") or name in ("cookie", "x-forwarded-for") for name in seen)
    assert "sk-the-callers-own" not in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("fails", "status"),
    [(httpx.ConnectError("refused"), 502), (httpx.ReadTimeout("slow"), 504), (httpx.ReadError("cut"), 502)],
)
def test_an_upstream_that_fails_is_an_error_of_openais_form(store, fails, status):
    answer = asked(store, Upstream(fails), chat())
    assert answer.status_code == status and "upstream" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (StoreError("store '/srv/x.db': disk is full"), 503, "nothing was kept"),
        (ForgettingIncomplete("place /srv/x.db failed"), 503, "not wholly forgotten"),
        (UserForgotten("user 'ana' was forgotten in '/srv/x.db'"), 409, "nothing was kept"),
        (ModelError("/srv/x.gguf"), 500, "its log says why"),
        (RecursionError("/srv/x.py"), 500, "its log says why"),
    ],
)
def test_what_fails_here_is_said_without_names_of_files(store, upstream, monkeypatch, caplog, failure, status, words):
    def fails(self, user_id):
        raise failure

    monkeypatch.setattr("persona_dspy.service.personas.Personas.forget", fails)
    answer = asked(store, upstream, ("DELETE", "/users/ana", {}), raises=False)
    assert answer.status_code == status and words in answer.json()["error"]["message"]
    assert "srv" not in answer.text
    assert isinstance(failure, UserForgotten | RecursionError) or "/srv/x" in caplog.text


# -- who may ask for whom ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [None, "", "wrong", TOKEN + "x", user_token(TOKEN, "bob"), user_token("other-token-16ch", "ana")]
)
def test_without_the_right_token_nothing_is_answered(store, upstream, given):
    headers = {"X-Persona-Token": given} if given is not None else {}
    calls = [
        ("POST", "/v1/chat/completions", {"json": ASKED}),
        ("POST", "/feedback", {"json": {"user": "ana", "query": "q", "response": "r"}}),
        ("GET", "/users/ana", {}),
        ("DELETE", "/users/ana", {}),
        ("GET", "/metrics", {}),
    ]
    answers = asked(store, upstream, *[(method, path, {**more, "headers": headers}) for method, path, more in calls])
    assert [answer.status_code for answer in answers] == [401] * 5
    assert upstream.requests == [] and len(store.episodes("ana")) == 2
    assert not any("Likes" in answer.text or "tea" in answer.text for answer in answers)


def test_a_users_own_token_opens_that_user_alone(store, upstream):
    mine = {"X-Persona-Token": user_token(TOKEN, "ana")}
    for_bob = {**ASKED, "user": "bob"}
    answers = asked(
        store,
        upstream,
        ("POST", "/v1/chat/completions", {"json": ASKED, "headers": mine}),
        ("GET", "/users/ana", {"headers": mine}),
        ("POST", "/v1/chat/completions", {"json": for_bob, "headers": mine}),
        (
            "POST",
            "/v1/chat/completions",
            {"json": {**ASKED, "user": None}, "headers": {**mine, "X-Persona-User": "bob"}},
        ),
        ("GET", "/users/bob", {"headers": mine}),
        ("DELETE", "/users/bob", {"headers": mine}),
        ("POST", "/feedback", {"json": {"user": "bob", "query": "q", "response": "r"}, "headers": mine}),
        ("GET", "/metrics", {"headers": mine}),
    )
    assert [answer.status_code for answer in answers] == [200, 200, *[401] * 6]
    assert len(store.episodes("bob")) == 2 and "rhymes" not in json.dumps(upstream.bodies)


@pytest.mark.parametrize(
    "wrong",
    [
        {"user": 7}, {"user": ["ana"]}, {"user": ""}, {"user": "  "}, {"user": "a\0b"}, {"user": "\ud800"},
        {"user": "z" * 1300}, {}, {"user": None}, {"user": {"$ne": 1}},
    ],
)  # fmt: skip
def test_users_that_are_none_are_refused(store, upstream, wrong):
    body = {"model": "m", "messages": ASKED["messages"], **wrong}
    answer = asked(store, upstream, ("POST", "/v1/chat/completions", {"content": json.dumps(body)}))
    assert answer.status_code == 400 and "user" in answer.json()["error"]["message"] and not upstream.requests


def test_two_users_in_one_request_are_refused(store, upstream):
    twice = [*OURS.items(), ("X-Persona-User", "ana"), ("X-Persona-User", "bob")]
    answers = asked(
        store,
        upstream,
        chat(None, **{"X-Persona-User": "bob"}),
        ("POST", "/v1/chat/completions", {"json": {**ASKED, "user": None}, "headers": twice}),
        ("GET", "/users/ana", {"headers": [*OURS.items(), ("X-Persona-Token", "other")]}),
    )
    assert [answer.status_code for answer in answers] == [400, 400, 400] and not upstream.requests
    content = json.dumps(ASKED)[:-1] + ', "user": "bob"}'  # one name twice: what is checked is what is sent
    asked(store, upstream, ("POST", "/v1/chat/completions", {"content": content}))
    assert upstream.bodies[0]["user"] == "bob" and "rhymes" in upstream.system()[0]
    assert upstream.requests[0].content.count(b'"user":"') == 1


@pytest.mark.slow
@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_id_reaches_another_users_persona(store, first, second):
    """Whatever the ids, each gets its own persona or a refusal."""
    upstream, users = Upstream(), {"ana": "brevity", "bob": "rhymes"}
    for user in (first, second, first + " ", f"{first}/../ana", f"ana\u200b{second}", "ANA", "ana%00"):
        if user not in users:
            answer = asked(
                store, upstream, ("POST", "/v1/chat/completions", {"content": json.dumps({**ASKED, "user": user})})
            )
            assert answer.status_code in (200, 400)
    assert not any(word in json.dumps(upstream.bodies) for word in users.values())


# -- limits and bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"[" * 15_000, 400), (b"\xff", 400), (b'{"user": "ana"}', 400),
        (b'{"user": "ana", "messages": "x"}', 400), (b'{"user": "ana", "messages": []}', 400),
        (b'{"user": "ana", "messages": ["x"]}', 400), (b'{"a": "' + b"x" * 20_001 + b'"}', 413),
    ],
)  # fmt: skip
def test_bodies_that_are_refused(store, upstream, content, status):
    answer = asked(store, upstream, ("POST", "/v1/chat/completions", {"content": content}))
    assert answer.status_code == status and answer.json()["error"]["message"] and not upstream.requests


def test_other_paths_and_methods(store, upstream):
    answers = asked(
        store, upstream, ("GET", "/v1/chat/completions", {}), ("POST", "/v1/embeddings", {}), ("GET", "/", {})
    )
    assert [answer.status_code for answer in answers] == [405, 404, 404]


# -- feedback, export, forgetting ----------------------------------------------------------------------------------


def test_feedback_is_learned_from_and_the_next_answer_is_under_it(store, upstream):
    metrics = Metrics()
    given_back = [
        (
            "POST",
            "/feedback",
            {"json": {"user": "ana", "query": f"q{n}", "response": "my own words", "time": "2026-01-01"}},
        )
        for n in range(3)
    ]
    *kept, _, page = asked(
        store,
        upstream,
        *given_back,
        lambda personas: personas.wait(10),
        chat(),
        ("GET", "/metrics", {}),
        metrics=metrics,
    )
    assert [answer.status_code for answer in kept] == [202] * 3 and kept[0].json()["user"] == "ana"
    assert "Learned from 5." in upstream.system()[0]
    assert 'persona_alignments_total{result="changed"} 1.0' in page.text
    assert 'persona_requests_total{route="feedback",status="202"} 3.0' in page.text and "ana" not in page.text


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"comment": "too long"}, "comment"), ({"thumbs": "down"}, "thumbs"), ({"query": ""}, "query"),
        ({"response": None}, "response"), ({"time": "soon"}, "soon"), ({"metadata": 3}, "metadata"), ({"id": 3}, "id"),
        ({"id": "tea"}, "taken by other content"),
    ],
)  # fmt: skip
def test_feedback_that_cannot_be_used_is_refused_whole(store, upstream, wrong, named):
    body = {"user": "ana", "query": "q", "response": "r", **wrong}
    answer = asked(store, upstream, ("POST", "/feedback", {"json": body}))
    assert answer.status_code == 400 and named in answer.json()["error"]["message"]
    assert len(store.episodes("ana")) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        '"metadata": {"x": NaN}', '"metadata": {"x": [-1e999]}', '"metadata": {"k\\ud800": "v"}', '"query": "a\\ud800"',
        '"options": ["\\udfff", "b"]', f'"metadata": {{"x": {"[" * 101}{"]" * 101}}}', f'"scale": [0, {"9" * 400}]',
    ],
)  # fmt: skip
def test_feedback_that_no_json_can_hold_is_refused(store, upstream, wrong):
    body = '{"user": "ana", "query": "q", "draft": "r", "rating": 3, ' + wrong + "}"
    refused, export = asked(
        store, upstream, ("POST", "/feedback", {"content": body.encode()}), ("GET", "/users/ana", {})
    )
    field = wrong.partition(":")[0].strip('"')
    assert refused.status_code == 400 and field in refused.json()["error"]["message"]
    assert export.status_code == 200 and len(export.json()["interactions"]) == 2


def test_a_user_is_exported_with_whatever_was_stored_before(store, upstream):
    odd = {"score": float("nan"), "most": float("inf"), "half": "\ud800", "name": "NaN"}
    store.add_episodes("eve", [Interaction(user_id="eve", query="q", response="zoë", metadata=odd)])
    export = asked(store, upstream, ("GET", "/users/eve", {}))
    (kept,) = export.json()["interactions"]
    assert kept["metadata"] == {**odd, "score": "NaN", "most": "Infinity"} and "zoë" in export.text


def test_a_header_in_utf_8_names_the_user(store, upstream):
    headers = {**OURS, "X-Persona-User": "zoë".encode()}
    feedback = ("POST", "/feedback", {"json": {"query": "q", "response": "r"}, "headers": headers})
    kept, export = asked(store, upstream, feedback, ("GET", "/users/zo%C3%AB", {}))
    assert kept.json()["user"] == "zoë" and export.status_code == 200


def test_an_unknown_user_is_named_and_the_store_is_not(store, upstream, tmp_path):
    answer = asked(store, upstream, ("GET", "/users/nobody", {}))
    assert answer.status_code == 404 and "nobody" in answer.text
    assert str(tmp_path) not in answer.text and "sqlite" not in answer.text


def test_what_a_user_says_of_a_draft_is_no_answer(store, upstream):
    body = {"user": "ana", "query": "q", "draft": "We are so sorry!", "version": 1}
    said = [
        {"comment": "too long", "thumbs": "down"},
        {"rating": 2},
        {"response": "On Friday."},
        {"preferred": "Soon."},
    ]
    posts = [("POST", "/feedback", {"json": {**body, **one}}) for one in said]
    *kept, export = asked(store, upstream, *posts, ("GET", "/users/ana", {}))
    assert [answer.status_code for answer in kept] == [202] * 4
    rows = [row for row in export.json()["interactions"] if "signal" in row]
    assert [row["response"] for row in rows] == ["", "", "On Friday.", "Soon."]
    assert {row["signal"]["draft"] for row in rows} == {"We are so sorry!"}
    assert rows[0]["signal"] | {"comment": "too long", "thumbs": "down", "version": 1} == rows[0]["signal"]
    assert len(store.memory("ana")) == 4 and len(store.memory("ana").signals) == 4


def test_what_is_said_of_one_draft_adds_up_under_its_id(store, upstream):
    body = {"user": "ana", "query": "q", "draft": "We are so sorry!", "id": "chatcmpl-1"}
    said = [{"comment": "too long"}, {"thumbs": "down"}, {"response": "On Friday."}, {"response": "On Friday."}]
    others = [{"query": "another"}, {"draft": "another"}]
    posts = [("POST", "/feedback", {"json": {**body, **one}}) for one in said]
    wrong = [("POST", "/feedback", {"json": {**body, "thumbs": "up", **one}}) for one in others]
    answers = asked(store, upstream, *posts, *wrong)
    assert [answer.status_code for answer in answers] == [202] * 4 + [400] * 2
    assert all("taken by other content" in answer.text for answer in answers[4:])
    (one,) = store.memory("ana").signals
    assert (one.response, one.signal.comment, one.signal.thumbs) == ("On Friday.", "too long", "down")
    assert one.signal.draft == "We are so sorry!"


def test_what_is_said_of_one_draft_adds_up_after_the_store_was_gone(store, upstream, monkeypatch, tmp_path):
    cut = Cut(store, monkeypatch)
    body = {"user": "ana", "query": "q", "draft": "We are so sorry!", "id": "chatcmpl-1"}
    posts = [("POST", "/feedback", {"json": {**body, **one}}) for one in ({"comment": "long"}, {"response": "Friday."})]
    cut.gone = True

    def answers_again(personas):
        cut.gone = False
        for _ in range(200):
            if not personas.status()["queued"]:
                return
            threading.Event().wait(0.02)

    answers = asked(store, upstream, *posts, answers_again, queue=tmp_path / "queue")
    assert [answer.status_code for answer in answers] == [202] * 2
    (one,) = store.memory("ana").signals
    assert (one.response, one.signal.comment) == ("Friday.", "long")


def test_a_user_is_exported_and_forgotten(store, upstream, tmp_path):
    store.add_episodes("a/b ü", [Interaction(user_id="a/b ü", query="q", response="secret")])
    export, odd, gone, after, _, nobody = asked(
        store,
        upstream,
        ("GET", "/users/ana", {}),
        ("GET", "/users/a%2Fb%20%C3%BC", {}),
        ("DELETE", "/users/ana", {}),
        ("GET", "/users/ana", {}),
        chat(),
        ("DELETE", "/users/nobody", {}),
    )
    assert [one["query"] for one in export.json()["interactions"]] == ["tea of ana", "cake of ana"]
    assert export.json()["versions"][0]["persona"]["system_prompt"].endswith("Likes brevity.")
    assert odd.json()["interactions"][0]["response"] == "secret"
    assert gone.json()["removed"][0]["removed"]["episodes"] == 2 and after.status_code == 404
    assert upstream.system() == ["Be kind."] and nobody.status_code == 200
    assert b"brevity" not in b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_health_says_no_more_than_it_must(store, upstream, monkeypatch, tmp_path):
    cut = Cut(store, monkeypatch)

    def fail(personas):
        cut.gone = True

    ok, answer, kept, down, refused = asked(
        store,
        upstream,
        ("GET", "/health", {"headers": {}}),
        fail,
        chat(),
        ("POST", "/feedback", {"json": {"user": "ana", "query": "q", "response": "r"}}),
        ("GET", "/health", {"headers": {}}),
        ("GET", "/users/carl", {}),
        queue=tmp_path / "queue",
    )
    assert ok.json() == {"status": "ok"} and down.json() == {"status": "degraded"}
    assert answer.status_code == 200 and kept.status_code == 202 and refused.status_code == 404
    monkeypatch.undo()


def test_what_a_killed_process_left_is_aligned_without_any_request(store, upstream):
    for n in range(3):
        store.observe("ana", [Interaction(user_id="ana", query=f"film {n}", response="drama")])
    assert store.take_lease("ana", 77, at_least=3) is not None  # and dies

    def wait(personas):
        for _ in range(500):
            if store.current("ana").version:
                return
            threading.Event().wait(0.02)

    asked(store, upstream, wait, ("GET", "/health", {"headers": {}}))
    assert store.current("ana").version == 1


@pytest.mark.parametrize("token", [None, "", "short", "with a blank in it, sadly", "ünïcödé-ünïcödé-ünïcödé"])
def test_a_token_that_is_no_secret_is_refused(store, token):
    with service(store, Slow()) as personas, pytest.raises(InputError, match="PERSONA_DSPY_TOKEN"):
        proxy_app(personas, token, OPTIONS)


@pytest.mark.parametrize("url", ["", "api.openai.com", "ftp://x", "file:///etc/passwd"])
def test_an_upstream_that_is_none_is_refused(url):
    with pytest.raises(InputError, match="upstream"):
        ProxyOptions(upstream=url)


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "more", "says"),
    [
        ("/feedback", '"metadata": {"a": ' + json.dumps([1] * 20_000) + "}", "'metadata': expected at most 10,000"),
        ("/feedback", '"metadata": {"a": "' + "x" * 70_000 + '"}', "metadata: 70,0"),
        ("/feedback", '"options": ' + json.dumps(list(map(str, range(20_000)))), "'options': expected at most"),
        ("/feedback", '"metadata": ' + "[" * 102 + "]" * 102, "at most 100 lists"),
        ("/feedback", ",".join(f'"{n}": 0' for n in range(30_000)), "and 29,995 more"),
        ("/v1/chat/completions", '"a": ' + json.dumps([{}] * 110_000), "at most 100,000 values"),
        ("/v1/chat/completions", '"a": ' + json.dumps([1] * 110_000), "at most 100,000 values"),
        ("/feedback", ",".join(f'"{n}": 0' for n in range(110_000)), "at most 100,000 values"),
    ],
)
def test_a_body_of_countless_values_is_refused_before_it_holds_anybody_up(store, upstream, path, more, says):
    fields = '"query": "q", "response": "r"' if path == "/feedback" else json.dumps(ASKED)[1:-1]
    body = f'{{"user": "ana", {fields}, {more}}}'
    start = time.thread_time()
    answer = asked(store, upstream, ("POST", path, {"content": body}), options=replace(OPTIONS, max_bytes=4 << 20))
    assert answer.status_code == 400 and says in answer.json()["error"]["message"] and len(answer.content) < 1_000
    assert time.thread_time() - start < 2 and not upstream.requests and len(store.episodes("ana")) == 2


def test_a_body_too_deep_to_be_passed_on_is_refused(store, upstream, monkeypatch):
    monkeypatch.setattr(upstream, "transport", httpx.MockTransport(lambda request: sent(200, [b"{}"], {})))
    nested = [json.dumps(ASKED)[:-1] + ', "metadata": ' + "[" * n + "]" * n + "}" for n in range(100, 1_000, 20)]
    answers = asked(store, upstream, *[("POST", "/v1/chat/completions", {"content": body}) for body in nested])
    assert {answer.status_code for answer in answers} == {200, 400} and answers[0].status_code == 200


def test_an_upstream_that_compresses_all_the_same_is_passed_on_with_its_encoding(store, upstream, monkeypatch):
    packed = gzip.compress(b'{"choices": []}')
    head = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    monkeypatch.setattr(upstream, "transport", httpx.MockTransport(lambda request: sent(200, [packed], head)))
    answer = asked(store, upstream, chat())
    assert answer.json() == {"choices": []} and answer.headers["content-encoding"] == "gzip"
