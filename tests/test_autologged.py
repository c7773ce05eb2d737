"""Tags on what MLflow's autologging writes, and what forgetting a user makes of it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dspy
import pytest

from optimizers import PersonaAlignment
from persona_dspy.agent import personalize
from persona_dspy.fleet import forget_user
from persona_dspy.testing import FakeLM, SyntheticUser
from persona_dspy.tracking import MlflowTracker

PAST = {
    name: [replace(i, user_id=name) for i in SyntheticUser(seed=seed).interactions(8)]
    for name, seed in (("ana", 1), ("bob", 2))
}


def autolog(uri):
    """Two users compiled and answered under autologging, one run and one trace that are of no one user."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("autologged")
    mlflow.dspy.autolog(log_compiles=True, log_evals=True)
    dspy.configure(lm=FakeLM(lambda prompt: dict.fromkeys(prompt.outputs, "comedy")))
    programs = [personalize(dspy.Predict("description -> tag"), history=past) for past in PAST.values()]
    for program in programs:
        PersonaAlignment(auto="light", progress=False).compile(program, trainset=program.examples())
        program(description="a rocket to the moon")
    with mlflow.start_run(run_name="shared"):
        mlflow.log_text(PAST["ana"][0].query + " " + PAST["ana"][1].query, "notes.txt")
    with mlflow.start_span("batch"):
        for program in programs:
            program(description="a heist")
    mlflow.flush_trace_async_logging()


@pytest.mark.slow
def test_what_autologging_wrote_goes_or_is_named(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MlflowTracker(uri)
    tracker._connect()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, __file__, uri], check=True, cwd=tmp_path, env=environment, timeout=240)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("autologged").experiment_id

    def left():
        return client.search_runs([experiment]), client.search_traces(locations=[experiment])

    runs, traces = left()
    assert (len(runs), len(traces)) == (3, 3)
    (shared,) = [run for run in runs if run.info.run_name == "shared"]
    (batch,) = [trace for trace in traces if trace.info.tags["mlflow.traceName"] == "batch"]
    (told,) = forget_user("ana", tracker=tracker, texts=[text for i in PAST["ana"] for text in (i.query, i.response)])
    assert (told.removed["runs"], told.removed["traces"]) == (1, 1)
    assert tuple(map(len, left())) == (2, 2)
    assert f"notes.txt of run {shared.info.run_id} holds words of the user's" in told.note
    assert f"trace {batch.info.trace_id} of experiment {experiment} holds the user's name" in told.note
    assert told.note.count(" holds ") == 2, told.note


if __name__ == "__main__":
    autolog(sys.argv[1])
