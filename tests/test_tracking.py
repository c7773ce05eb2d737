"""MLflow's own evaluation, prompt optimization and models from code, over a program with a persona."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import dspy
import httpx
import pytest
from tree import ROOT

from persona_dspy.agent import PersonaAgent
from persona_dspy.core import Persona, persona_file_name, save_persona
from persona_dspy.testing import FakeLM
from persona_dspy.testing.server import FakeServer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow warns of its own
KEY = "sk-persona-secret-key"


def agent_of(text="Finds ghosts funny."):
    return PersonaAgent("film -> tag", persona=Persona.from_text(text, user_id="ana"))


def lm():
    return FakeLM(lambda prompt: {"tag": "comedy" if "ghosts" in prompt.system else "horror"})


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_experiment("peers")
    yield mlflow
    mlflow.set_tracking_uri(before)


def test_genai_evaluate_scores_a_persona(mlflow):
    from mlflow.genai.scorers import scorer

    @scorer
    def right(outputs, expectations):
        return outputs == expectations["tag"]

    rows = [{"inputs": {"film": film}, "expectations": {"tag": "comedy"}} for film in ("Ghosts", "Alien")]
    for text, share in (("Finds ghosts funny.", 1.0), ("Likes tea.", 0.0)):
        agent, model = agent_of(text), lm()

        def predict(film, agent=agent, model=model):
            with dspy.context(lm=model):
                return agent(film=film).tag

        assert mlflow.genai.evaluate(data=rows, predict_fn=predict, scorers=[right]).metrics["right/mean"] == share


@pytest.fixture
def logged(mlflow, tmp_path, monkeypatch):
    """The example of the guide, logged as a model with a folder of two personas; its address."""
    for user, text in (("ana", "Finds ghosts funny."), ("bob", "Fears ghosts.")):
        save_persona(Persona.from_text(text, user_id=user), tmp_path / "personas" / persona_file_name(user))
    spec = importlib.util.spec_from_file_location("mlflow_model", ROOT / "examples" / "mlflow_model.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mlflow_model", module)
    spec.loader.exec_module(module)
    with dspy.context(lm=dspy.LM("openai/m", api_key=KEY)), mlflow.start_run():
        return module.log(tmp_path / "personas")


@pytest.fixture
def served(logged, tmp_path):
    """``mlflow models serve`` of that model in a process of its own, in front of a fake provider; its address."""

    def answer(prompt):
        systems.append(prompt.system)
        return {"tag": "comedy" if "funny" in prompt.system else "horror" if "Fears" in prompt.system else "drama"}

    systems = []
    with FakeServer(answer) as provider, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        asked = {"OPENAI_API_BASE": provider.url, "OPENAI_API_KEY": KEY, "PERSONA_MODEL": "openai/m"}
        environment = {**os.environ, **asked, "PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(tmp_path / "cache")}
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        command = ["mlflow", "models", "serve", "--model-uri", logged, "--env-manager", "local"]
        with (tmp_path / "serve.log").open("w") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", port],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}", systems
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)


@pytest.mark.loopback
def test_mlflow_serves_each_user_under_the_users_own_persona(served, tmp_path):
    address, systems = served
    with httpx.Client(base_url=address, timeout=60) as client:
        for _ in range(120):
            with suppress(httpx.TransportError):
                if client.get("/ping").status_code == 200:
                    break
            time.sleep(0.5)
        asked = [{"user": user, "film": "Ghosts"} for user in ("ana", "bob", "carl")]
        answer = client.post("/invocations", json={"inputs": asked})
        assert answer.status_code == 200, (tmp_path / "serve.log").read_text()
        assert answer.json() == {"predictions": ["comedy", "horror", "drama"]}
        assert client.post("/invocations", json={"inputs": [{"film": "Ghosts"}]}).status_code == 400
    assert len(systems) == 3 and sum("Finds ghosts funny." in system for system in systems) == 1
    files = [f for f in (tmp_path / "mlruns").rglob("*") if f.is_file()]
    assert any(b"Finds ghosts funny." in f.read_bytes() for f in files)
    kept = [*files, tmp_path / "mlflow.db"]
    assert not any(KEY.encode() in f.read_bytes() or b"The actual input" in f.read_bytes() for f in kept)


def test_optimize_prompts_searches_over_a_personas_text(mlflow):
    from mlflow.genai.optimize.optimizers import BasePromptOptimizer
    from mlflow.genai.optimize.types import PromptOptimizerOutput
    from mlflow.genai.scorers import scorer

    class Tries(BasePromptOptimizer):
        def optimize(self, eval_fn, train_data, target_prompts, enable_tracking=True):
            (name, first), best = next(iter(target_prompts.items())), 0.0
            scores = {}
            for text in (first, "Finds ghosts funny."):
                scores[text] = sum(r.score for r in eval_fn({name: text}, train_data)) / len(train_data)
            best = max(scores, key=scores.get)
            return PromptOptimizerOutput(
                optimized_prompts={name: best}, initial_eval_score=scores[first], final_eval_score=scores[best]
            )

    @scorer
    def right(outputs, expectations):
        return float(outputs == expectations["expected_response"])

    prompt = mlflow.genai.register_prompt(name="persona-ana", template="Likes tea.")
    model = lm()

    def predict(film):
        text = mlflow.genai.load_prompt(f"prompts:/persona-ana/{prompt.version}").template
        with dspy.context(lm=model):
            return agent_of(text)(film=film).tag

    rows = [{"inputs": {"film": "Ghosts"}, "expectations": {"expected_response": "comedy"}}]
    found = mlflow.genai.optimize_prompts(
        predict_fn=predict, train_data=rows, prompt_uris=[prompt.uri], optimizer=Tries(), scorers=[right],
        aggregation=lambda scores: float(scores["right"]),
    )  # fmt: skip
    assert (found.initial_eval_score, found.final_eval_score) == (0.0, 1.0)
    assert found.optimized_prompts[0].template == "Finds ghosts funny."
