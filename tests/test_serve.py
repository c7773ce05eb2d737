"""``persona-dspy serve`` as it is deployed: two workers, real connections, the guide's own commands."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from test_cli import run
from tree import ROOT

from persona_dspy.core.interactions import Interaction
from persona_dspy.service.tokens import user_token
from persona_dspy.store.store import Store

TOKEN = "32-random-characters-of-your-own"
HEADERS = {"X-Persona-Token": TOKEN, "Authorization": "Bearer sk-callers"}
GUIDE = (ROOT / "docs" / "guides" / "proxy.md").read_text(encoding="utf-8")
PAUSE = 0.4


class Provider:
    """An OpenAI-compatible API over real connections; streams come in pieces, with pauses between them."""

    def __init__(self):
        self.bodies = []
        routes = [Route("/v1/chat/completions", self.answer, methods=["POST"])]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=self.port, log_level="error")
        self.server = uvicorn.Server(config)

    async def answer(self, request):
        body = await request.json()
        self.bodies.append((body, request.headers.get("authorization")))
        if body.get("stream"):
            return StreamingResponse(self.pieces(), media_type="text/event-stream")
        await self.slowly(body)
        asks_edits = "edits" in json.dumps(body.get("response_format") or {}) or "`edits`" in json.dumps(body)
        text = '{"edits": []}' if asks_edits else json.dumps({"reply": "It comes on Friday!"})
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return JSONResponse(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    async def slowly(self, body):
        if body.get("model") == "slow":
            await asyncio.sleep(1.5)

    async def pieces(self):
        for n in range(3):
            yield f"data: {n}\n\n".encode()
            await asyncio.sleep(PAUSE)
        yield b"data: [DONE]\n\n"


@contextmanager
def provider():
    api = Provider()
    thread = threading.Thread(target=api.server.run, daemon=True)
    thread.start()
    while not api.server.started:
        time.sleep(0.01)
    try:
        yield api
    finally:
        api.server.should_exit = True
        thread.join(10)


@contextmanager
def serving(folder, api, *more):
    """A running ``persona-dspy serve`` and its URL; asked to stop at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    upstream = f"http://127.0.0.1:{api.port}/v1"
    command = ["serve", "--store", str(folder / "s.db"), "--upstream", upstream, "--port", str(port), *more]
    code = "import sys; from persona_dspy.cli import main; main(sys.argv[1:])"
    environment = {**os.environ, "PERSONA_DSPY_TOKEN": TOKEN, "OPENAI_API_KEY": "sk-ours", "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *command], env=environment, stdout=log, stderr=log, cwd=folder
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def chat(url, user="ana", **more):
    body = {"model": "m", "user": user, "messages": [{"role": "user", "content": "Where is my parcel?"}], **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=HEADERS, timeout=30)


@pytest.mark.loopback
@pytest.mark.slow
def test_two_workers_as_in_the_guide(tmp_path):
    """The guide's curl and Node, streams as they come, learning, export, forgetting, one account of both workers."""
    with provider() as api, serving(tmp_path, api, "--model", "m", "--every", "3", "--workers", "2") as (url, process):
        environment = {**os.environ, "PROXY": url, "PERSONA_DSPY_TOKEN": TOKEN, "OPENAI_API_KEY": "sk-callers"}
        curl = next(line for line in GUIDE.splitlines() if line.startswith("curl "))
        if shutil.which("curl"):
            done = subprocess.run(["bash", "-c", curl], env=environment, capture_output=True, text=True, check=True)
            assert json.loads(done.stdout)["choices"][0]["message"]["content"]
        if shutil.which("node"):
            script = tmp_path / "ask.mjs"
            script.write_text(re.search(r"```js\n(.*?)```", GUIDE, re.DOTALL)[1])
            done = subprocess.run(["node", script], env=environment, capture_output=True, text=True, check=True)
            assert done.stdout == "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
        assert all(authorization == "Bearer sk-callers" for _, authorization in api.bodies)

        began, arrivals = time.monotonic(), []
        body = {"model": "m", "user": "ana", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=HEADERS, timeout=30) as stream:
            arrivals = [time.monotonic() - began for _ in stream.iter_raw()]
        assert arrivals[-1] - arrivals[0] >= 2 * PAUSE, "each piece as it came"

        for n in range(5):
            kept = {"user": "ana", "query": f"Where is parcel {n}?", "response": "It comes on Friday!"}
            assert httpx.post(f"{url}/feedback", json=kept, headers=HEADERS).status_code == 202
        for _ in range(200):
            if any(authorization == "Bearer sk-ours" for _, authorization in api.bodies):
                break
            time.sleep(0.1)
        assert any(authorization == "Bearer sk-ours" for _, authorization in api.bodies), "aligned by the server's key"
        export = httpx.get(f"{url}/users/ana", headers=HEADERS).json()
        assert len(export["interactions"]) >= 5
        seen = [chat(url) for _ in range(12)]  # of both workers
        assert {answer.status_code for answer in seen} == {200}
        metrics = httpx.get(f"{url}/metrics", headers=HEADERS).text
        counted = re.search(r'persona_requests_total\{route="chat",status="200"\} (\d+)', metrics)
        assert int(counted[1]) >= 13
        alone = {"X-Persona-Token": user_token(TOKEN, "bob")}
        assert httpx.delete(f"{url}/users/ana", headers=alone).status_code == 401
        assert httpx.delete(f"{url}/users/ana", headers=HEADERS, timeout=30).status_code == 200
        for _ in range(8):
            assert httpx.get(f"{url}/users/ana", headers=HEADERS).status_code == 404
        with Store.open(tmp_path / "s.db") as store:
            assert list(store.users()) == []
    log = (tmp_path / "log").read_text()
    assert "sk-" not in log and TOKEN not in log and "ana" not in log and "Traceback" not in log, log
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.loopback
@pytest.mark.slow
def test_workers_that_are_killed(tmp_path):
    """Others take their place, align who is due though nobody asks, and are alone in what the metrics say of now."""
    with provider() as api, serving(tmp_path, api, "--model", "m", "--workers", "2") as (url, process):
        answers = [chat(url, user=f"user-{n}") for n in range(6)]
        assert {answer.status_code for answer in answers} == {200}
        assert _counted(url, "persona_open_users") > 0
        killed = workers(process.pid)
        assert len(killed) == 2
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        with Store.open(tmp_path / "s.db") as store:
            for n in range(4):
                one = Interaction(user_id="ana", query=f"Where is parcel {n}?", response="It comes on Friday!")
                store.observe("ana", [one])
        for _ in range(600):
            with suppress(httpx.TransportError):
                if _counted(url, "persona_alignments_total"):
                    break
            time.sleep(0.1)
        assert _counted(url, "persona_alignments_total") == 1
        assert not set(workers(process.pid)) & set(killed)
        assert _counted(url, "persona_open_users") <= 2, "ana, in one worker or both: nobody of those who were killed"
        assert _counted(url, 'persona_requests_total{route="chat",status="200"}') == 6, "what they counted stays"


def _counted(url, name):
    page = httpx.get(f"{url}/metrics", headers=HEADERS, timeout=30).text
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


def workers(pid):
    """Ids of the worker processes of a running uvicorn."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.loopback
def test_what_is_being_answered_is_finished_before_it_stops(tmp_path):
    with provider() as api, serving(tmp_path, api) as (url, process):
        answers = []
        asking = threading.Thread(target=lambda: answers.append(chat(url, model="slow")))
        asking.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        asking.join(20)
        assert [answer.status_code for answer in answers] == [200]
        process.wait(20)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("environment", "arguments", "named"),
    [
        ({}, [], "PERSONA_DSPY_TOKEN: none is set"),
        ({"PERSONA_DSPY_TOKEN": "short"}, [], "PERSONA_DSPY_TOKEN: 5 characters"),
        ({"PERSONA_DSPY_TOKEN": TOKEN}, ["--upstream", "api.openai.com"], "upstream 'api.openai.com': expected a URL"),
        ({"PERSONA_DSPY_TOKEN": TOKEN}, ["--model", "m"], "OPENAI_API_KEY is not set"),
    ],
)
def test_it_does_not_start_on_wrong_words(tmp_path, monkeypatch, capsys, environment, arguments, named):
    for name in ("PERSONA_DSPY_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, error = run(capsys, "serve", "--store", str(tmp_path / "s.db"), *arguments)
    assert (code == 2 and named in error and "type: export" in error) or "expected a URL" in error
    assert not (tmp_path / "s.db").exists()
