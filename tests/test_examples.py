"""The examples run as they stand."""

import asyncio
import importlib.util

import dspy
import httpx
import pytest
from test_docs import faked
from tree import ROOT


@pytest.fixture
def fastapi_app(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dspy, "LM", faked(lambda prompt: dict.fromkeys(prompt.outputs, "On its way.")))
    spec = importlib.util.spec_from_file_location("fastapi_service", ROOT / "examples" / "fastapi_service.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.app
    dspy.configure(lm=None)


def test_the_fastapi_service(fastapi_app):
    asyncio.run(used(fastapi_app))


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
