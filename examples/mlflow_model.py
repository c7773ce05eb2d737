"""A program with a persona for each user, served by MLflow. It is logged as code: no pickle, no key, no prompts.

pip install persona-dspy
persona-dspy compile examples/movie_tags.jsonl --out personas/
python mlflow_model.py personas/ > model.txt
export OPENAI_API_KEY=... PERSONA_MODEL=openai/gpt-4o-mini
mlflow models serve --model-uri $(cat model.txt) --env-manager local --host 127.0.0.1 --port 5001
curl 127.0.0.1:5001/invocations --json '{"inputs": [{"user": "ana", "film": "A crew drifts through space."}]}'
"""

import os
import sys
from pathlib import Path

import dspy
import mlflow
from pydantic import BaseModel

from persona_dspy import Persona, PersonaAgent, load_persona
from persona_dspy.core import persona_file_name


class Question(BaseModel):
    """Who asks comes from your own session or token, in the service that calls this one; never from a client."""

    user: str
    film: str


class Answers(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.folder = Path(context.artifacts["personas"])
        self.program = PersonaAgent("film -> tag")  # or personalize(any dspy.Module)
        self.lm = dspy.LM(os.environ.get("PERSONA_MODEL", "openai/gpt-4o-mini"))

    def predict(self, context, model_input: list[Question]) -> list[str]:
        with dspy.context(lm=self.lm):
            return [self.answer(question.user, question.film) for question in model_input]

    def answer(self, user: str, film: str) -> str:
        """Under the user's own persona; a user who has none yet gets the program's answer."""
        file = self.folder / persona_file_name(user)
        persona = load_persona(file) if file.exists() else Persona(user_id=user)
        return self.program.for_user(user, persona=persona)(film=film).tag


def log(personas: str | Path) -> str:
    """Log this file as a model, with the folder of personas as its artifact; returns the model's address."""
    return mlflow.pyfunc.log_model(
        name="persona",
        python_model=__file__,
        artifacts={"personas": str(personas)},
        pip_requirements=["persona-dspy"],  # or MLflow starts a process to find out
    ).model_uri


if __name__ == "__main__":
    print(log(sys.argv[1]))
else:  # where MLflow loads the model
    mlflow.models.set_model(Answers())
