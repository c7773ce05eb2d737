"""The examples run as they stand."""

import asyncio
import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dspy
import httpx
import pytest
from test_cli import run
from test_docs import faked
from test_serve import provider, workers
from tree import ROOT


@pytest.fixture
def example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys.modules["dspy.dsp.utils.settings"], "config_owner_async_task", None
    )  # each test has a loop of its own
    monkeypatch.setattr(dspy, "LM", faked(lambda prompt: dict.fromkeys(prompt.outputs, "On its way.")))

    def loaded(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module.app

    yield loaded
    dspy.configure(lm=None)


def test_the_fastapi_service(example):
    asyncio.run(used(example("fastapi_service")))


def test_a_model_that_fails_is_told_as_such(example, monkeypatch):
    """A 502 without words that may be a user's; and no answer is kept where no user is forgotten."""
    app, asked = example("fastapi_service"), []

    def failing(prompt):
        asked.append(prompt)
        raise ConnectionError("no connection, while asking: Dear Ana")

    given = {}
    monkeypatch.setattr(dspy, "LM", dspy.LM.__base__)  # the real one

    class Failing(faked(failing)):
        def __init__(self, model, **options):
            given.update(options)
            super().__init__(model, **options)

    monkeypatch.setattr(dspy, "LM", Failing)
    answers = asyncio.run(twice(app))
    assert [answer.status_code for answer in answers] == [502, 502] and len(asked) >= 2
    assert "Ana" not in answers[0].text and given["cache"] is False


async def twice(app):
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        return [await client.post("/draft", json={"message": "x"}, headers={"X-User": "ana"}) for _ in range(2)]


def test_the_service_that_learns_from_feedback(example, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    asyncio.run(judged(example("fastapi_feedback")))


async def used(app):
    ana, bob = {"X-User": "ana"}, {"X-User": "bob"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        answer = (await client.post("/draft", json={"message": "Where is my parcel?"}, headers=ana)).json()
        assert answer == {"reply": "On its way.", "persona_version": 0}
        for n in range(3):
            sent = {"message": f"Where is parcel {n}?", "reply": "It arrives on Friday!"}
            assert (await client.post("/sent", json=sent, headers=ana)).status_code == 202
        personas = app.state.personas
        assert personas.wait(30)
        version = (await client.get("/persona", headers=ana)).json()["version"]
        after = await client.post("/draft", json={"message": "And now?"}, headers=ana)
        assert after.json()["persona_version"] == version
        assert (await client.get("/persona", headers=bob)).json() == {"version": 0, "persona": ""}
        assert (await client.post("/draft", json={"message": ""}, headers=ana)).status_code == 422
        assert (await client.post("/draft", json={"message": "x"})).status_code == 422
        assert (await client.get("/health")).json()["store"] == ""
        removed = {place["place"]: place["removed"] for place in (await client.delete("/me", headers=ana)).json()}
        assert removed["store"]["episodes"] == 3
        assert personas.history("ana") == []
        assert (await client.get("/persona", headers=ana)).json()["version"] == 0


async def judged(app):
    ana, bob = {"X-User": "ana"}, {"X-User": "bob"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        draft = (await client.post("/drafts", json={"message": "Where is my parcel?"}, headers=ana)).json()
        place = f"/drafts/{draft['id']}/feedback"
        said = await client.post(place, json={"thumbs": "down", "comment": "no date"}, headers=ana)
        assert (said.status_code, said.json()) == (202, {"id": draft["id"], "learned": "signal"})
        edited = await client.post(place, json={"edited": "It arrives on Friday."}, headers=ana)
        assert edited.json()["learned"] == "answer"
        for body, user in (({"thumbs": "up"}, bob), ({}, ana), ({"rating": 9}, ana)):
            assert (await client.post(place, json=body, headers=user)).status_code == 422
        assert (await client.post("/drafts/tr-0/feedback", json={"thumbs": "up"}, headers=ana)).status_code == 422
        (kept,) = app.state.personas.store.episodes("ana")
        assert (kept.response, kept.signal.draft) == ("It arrives on Friday.", "On its way.")
        assert (kept.signal.comment, kept.signal.thumbs) == ("no date", "down")
        await client.delete("/me", headers=ana)
        assert (await client.post(place, json={"thumbs": "up"}, headers=ana)).status_code == 422


@pytest.mark.loopback
@pytest.mark.slow
def test_two_workers_as_in_the_guide(tmp_path, capsys):
    """The commands of docs/guides/deploy.md: drafts, feedback, an alignment, a kill, what is typed, the end."""
    guide = (ROOT / "docs" / "guides" / "deploy.md").read_text(encoding="utf-8").splitlines()
    start = next(line for line in guide if line.startswith("uvicorn "))
    draft, edit, comment, show, health, forget = [line for line in guide if line.startswith('curl -s "$API')] + [
        line for line in guide if line.startswith('curl -s -X DELETE "$API/me"')
    ]
    store = str(tmp_path / "personas.db")
    with provider() as api, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OPENAI_API_KEY": "sk-ours",
            "OPENAI_API_BASE": f"http://127.0.0.1:{api.port}/v1",
            "PERSONA_STORE": store,
            "PERSONA_QUEUE": str(tmp_path / "queue"),
            "API": f"http://127.0.0.1:{port}",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)

        def typed(line, **more):
            done = subprocess.run(
                ["bash", "-c", line], env={**environment, **more}, capture_output=True, text=True, cwd=ROOT
            )
            return json.loads(done.stdout) if done.stdout else None

        with (tmp_path / "log").open("w") as log:
            words = shlex.split(start.replace("--port 8000", f"--port {port}"))
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=ROOT)
        try:
            until(lambda: (typed(health) or {}).get("store") == "", "it answers")
            first = typed(draft)
            assert first["reply"] == "It comes on Friday!" and first["persona_version"] == 0
            assert typed(comment, ID=first["id"])["learned"] == "signal"
            assert typed(edit, ID=first["id"])["learned"] == "answer"
            for n in range(8):
                given = typed(draft.replace("my parcel", f"parcel {n}"))
                sent = edit.replace("It comes on Friday.", f"* It comes on Friday the {n}. Cheers, and good-bye")
                assert typed(sent, ID=given["id"])["learned"] == "answer"
            until(lambda: typed(show)["version"] >= 1, "an alignment")
            killed = workers(process.pid)
            os.kill(killed[0], signal.SIGKILL)
            until(lambda: len(set(workers(process.pid)) - {killed[0]}) == 2, "another in its place")
            assert {typed(draft)["persona_version"] for _ in range(4)} == {typed(show)["version"]}
            run(capsys, "rollback", "ana", "--to", "0", "--store", store)
            assert {typed(draft)["persona_version"] for _ in range(6)} == {0}
            assert run(capsys, "forget", "ana", "--store", store, "--yes")[0] == 0
            assert [typed(show) for _ in range(6)] == [{"version": 0, "persona": ""}] * 6
            assert typed(forget)[0]["place"] == "store"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert "Traceback" not in (tmp_path / "log").read_text()


def until(holds, what):
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within a minute")
