"""What an LM's name means, the preflight, defaults."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from persona_dspy.errors import InputError, ModelError
from persona_dspy.lm import names as settings
from persona_dspy.lm.ledger import Ledger
from persona_dspy.lm.names import check_lm, home_dir, resolve_lm


def test_names_go_to_dspy_with_their_options():
    lm = resolve_lm("openai/gpt-4o-mini", temperature=0.3, cache=False)
    assert (lm.model, lm.kwargs["temperature"], lm.cache) == ("openai/gpt-4o-mini", 0.3, False)
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"


def test_an_lm_is_returned_as_it_is_or_copied_with_the_options():
    lm = dspy.LM("openai/x")
    assert resolve_lm(lm) is lm
    other = resolve_lm(lm, temperature=0.5)
    assert other is not lm and other.kwargs["temperature"] == 0.5 and lm.kwargs.get("temperature") is None


@pytest.mark.parametrize("bad", ["", "  ", None, 3, Path("x")])
def test_other_values_are_refused(bad: Any):
    with pytest.raises(InputError, match="expected 'local'"):
        resolve_lm(bad)


def test_local_names_a_file_that_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path))
    with pytest.raises(InputError, match="'nothing'"):
        resolve_lm("local:nothing")
    (tmp_path / "bad.gguf").write_bytes(b"<htm")
    for spec in (f"local:{tmp_path / 'bad.gguf'}", "local:bad", str(tmp_path / "bad.gguf")):
        with pytest.raises(ModelError, match="expected b'GGUF'"):
            resolve_lm(spec)


def test_a_missing_catalogue_model_is_fetched_once_with_a_word_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path))
    fetched: list[str] = []

    def fetch(name: str) -> Path:
        fetched.append(name)
        path = tmp_path / settings.CATALOGUE[name].file
        path.write_bytes(b"GGUF made up")
        return path

    monkeypatch.setattr(settings, "fetch_model", fetch)
    lm = resolve_lm("local:half", seed=3)
    assert lm.model.startswith("local/Qwen2.5-Coder-0.5B") and lm.kwargs["seed"] == 3
    assert "fetching the local model 'half' (491 MB)" in capsys.readouterr().err
    assert resolve_lm("local:half").engine is lm.engine
    assert fetched == ["half"]


class _Server(http.server.BaseHTTPRequestHandler):
    """Speaks as much of the chat protocol as the preflight needs, on 127.0.0.1."""

    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "OK"}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
        }
        if self.status != 200:
            answer = {"error": {"message": "no such key or model", "type": "invalid", "code": "x"}}
        body = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Any]:
    handler = type("Handler", (_Server,), {})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{running.server_address[1]}/v1"
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.mark.loopback
def test_preflight_passes_and_nobody_counts_it(server: Any):
    _, url = server
    lm = resolve_lm("openai/m", api_base=url, api_key="k")
    ledger = Ledger()
    with ledger.recording(), dspy.context(track_usage=True):
        check_lm(lm)
    assert ledger.usage.calls == 0 and lm.history == []
    lm.close()


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("status", "advice"), [(401, "export OPENAI_API_KEY"), (404, "check the name"), (503, "again")]
)
def test_preflight_turns_answers_into_one_message(server: Any, status: int, advice: str):
    handler, url = server
    handler.status = status
    with pytest.raises(ModelError, match=rf"lm 'openai/m': .*{advice}.*--lm local") as error:
        check_lm(resolve_lm("openai/m", api_base=url, api_key="k"))
    assert "\n" not in str(error.value)


@pytest.mark.loopback
def test_preflight_names_a_model_that_ollama_does_not_have(server: Any):
    handler, url = server
    handler.status = 404
    with pytest.raises(ModelError, match=r"type: ollama pull llama3.2, "):
        check_lm(resolve_lm("ollama_chat/llama3.2", api_base=url))


@pytest.mark.loopback
def test_preflight_without_a_server(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match=r"start the server at http://127.0.0.1:9/v1"):
        check_lm(resolve_lm("openai/m", api_base="http://127.0.0.1:9/v1", api_key="k"))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:9/v1")  # goes another way through DSPy
    with pytest.raises(ModelError, match=r"start the server at http://127.0.0.1:9/v1"):
        check_lm(resolve_lm("openai/m"))


# behind an address of one's own DSPy asks LiteLLM, whose import takes seconds
@pytest.mark.parametrize("address", ["", pytest.param("http://127.0.0.1:9/v1", marks=pytest.mark.slow)])
def test_preflight_without_a_key(monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)
    if address:
        monkeypatch.setenv("OPENAI_API_BASE", address)
    with pytest.raises(ModelError, match=r"type: export OPENAI_API_KEY=\.\.\."):
        check_lm(resolve_lm("openai/gpt-4o-mini"))


def test_preflight_leaves_other_engines_alone():
    class Engine:
        calls = 0

        def complete(self, request: Any) -> Any:
            Engine.calls += 1

    check_lm(dspy.LM("fake/x", engine=Engine()))
    assert Engine.calls == 0


def test_the_home_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PERSONA_DSPY_HOME", str(tmp_path / "home"))
    assert home_dir() == tmp_path / "home"
    monkeypatch.delenv("PERSONA_DSPY_HOME")
    assert home_dir().name == ".persona_dspy"
