"""MLflow's own evaluation, prompt optimization and models from code, over a program with a persona."""

import dspy
import pytest

from persona_dspy.agent import PersonaAgent
from persona_dspy.core import Persona
from persona_dspy.testing import FakeLM

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow warns of its own
KEY = "sk-persona-secret-key"
MODEL = """
import dspy
import mlflow
from persona_dspy.agent import PersonaAgent
from persona_dspy.core import load_persona
from persona_dspy.testing import FakeLM


class Answers(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.agent = PersonaAgent("film -> tag", persona=load_persona(context.artifacts["persona"]))
        self.lm = FakeLM(lambda prompt: {"tag": "comedy" if "ghosts" in prompt.system else "horror"})

    def predict(self, context, model_input: list[str]) -> list[str]:
        with dspy.context(lm=self.lm):
            return [self.agent(film=film).tag for film in model_input]


mlflow.models.set_model(Answers())
"""


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


def test_models_from_code_serve_a_persona_and_hold_neither_prompt_nor_key(mlflow, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    agent_of().persona.value.to_json(tmp_path / "ana.json")
    with dspy.context(lm=dspy.LM("openai/m", api_key=KEY)), mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="ana", python_model=str(tmp_path / "model.py"), artifacts={"persona": str(tmp_path / "ana.json")}
        )
    assert mlflow.pyfunc.load_model(info.model_uri).predict(["Ghosts"]) == ["comedy"]
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert files and not any(KEY.encode() in f.read_bytes() for f in files)


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
