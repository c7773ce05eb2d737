"""Where runs are written down. Owns: the Tracker protocol, NullTracker, MlflowTracker - the only importer of mlflow.

Not here: what is written (alignment.py, export.py). The core knows trackers only as things that get finished users.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from persona_dspy.alignment import Alignment
from persona_dspy.errors import RunError
from persona_dspy.export import PersonaDocument

__all__ = ["MlflowTracker", "NullTracker", "Tracker", "tracker_for"]

EXPERIMENT = "persona-dspy"


class Tracker(Protocol):
    """One batch of users: ``begin`` once, ``user`` for each finished or failed user from any thread, ``end`` once."""

    def begin(self, params: Mapping[str, Any]) -> None: ...

    def user(self, user_id: str, document: PersonaDocument | None, error: str = "") -> None: ...

    def end(self, metrics: Mapping[str, float]) -> None: ...

    @property
    def where(self) -> str:
        """What to type to see the runs, or empty."""
        ...


class NullTracker:
    """Writes nothing."""

    def begin(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def user(self, user_id: str, document: PersonaDocument | None, error: str = "") -> None:
        """Nothing."""

    def end(self, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    @property
    def where(self) -> str:
        return ""


class MlflowTracker:
    """A parent run for the batch and a child run for each user: step metrics, the persona JSON and the alignment
    record as artifacts. Uses ``MlflowClient`` only, never the fluent API's global state.

    Args:
        uri: tracking URI, such as ``sqlite:///mlflow.db`` or ``http://localhost:5000``.

    Raises:
        RunError: the server or file cannot be used.
    """

    def __init__(self, uri: str = "sqlite:///mlflow.db", experiment: str = EXPERIMENT) -> None:
        self.uri, self.experiment = uri, experiment
        self._client: Any = None
        self._experiment_id = self.run_id = ""

    def begin(self, params: Mapping[str, Any]) -> None:
        client = self._connect()
        run = client.create_run(self._experiment_id, run_name=f"compile {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self.run_id = run.info.run_id
        self._log(self.run_id, params={k: str(v)[:500] for k, v in params.items() if v is not None})

    def user(self, user_id: str, document: PersonaDocument | None, error: str = "") -> None:
        client = self._connect()
        tags = {"mlflow.parentRunId": self.run_id, "persona_dspy.user_id": user_id, "mlflow.runName": user_id[:250]}
        run = client.create_run(self._experiment_id, tags=tags)
        child = run.info.run_id
        if document is None:
            client.set_tag(child, "persona_dspy.error", error[:5000])
            client.set_terminated(child, "FAILED")
            return
        alignment = document.alignment or Alignment(user_id=user_id)
        self._log(child, params=_params(document), metrics=_metrics(alignment))
        client.log_text(child, document.to_json(), "persona.json")
        client.log_text(child, alignment.model_dump_json(indent=2), "alignment.json")
        client.set_terminated(child)

    def end(self, metrics: Mapping[str, float]) -> None:
        self._log(self.run_id, metrics=[(name, value, 0) for name, value in metrics.items()])
        self._connect().set_terminated(self.run_id)

    @property
    def where(self) -> str:
        return f"mlflow ui --backend-store-uri {self.uri}" if "://" in self.uri and "http" not in self.uri else self.uri

    def _connect(self) -> Any:
        if self._client is not None:
            return self._client
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=self.uri)
        try:
            found = client.get_experiment_by_name(self.experiment)
            self._experiment_id = (
                found.experiment_id if found else client.create_experiment(self.experiment, self._artifacts())
            )
        except (MlflowException, OSError) as failure:
            raise RunError(
                f"MLflow tracking URI {self.uri!r} cannot be used ({str(failure)[:200]}); expected a running server or a "
                "file such as sqlite:///mlflow.db; --tracking-uri off goes without"
            ) from failure
        self._client = client
        return client

    def _artifacts(self) -> str | None:
        """Artifacts lie beside a SQLite file, wherever the program was started; a server decides for itself."""
        if not self.uri.startswith("sqlite:///"):
            return None
        return (Path(self.uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()

    def _log(
        self,
        run_id: str,
        *,
        params: Mapping[str, str] | None = None,
        metrics: list[tuple[str, float, int]] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self._connect().log_batch(
            run_id,
            metrics=[Metric(name, float(value), now, step) for name, value, step in metrics or []],
            params=[Param(name, value) for name, value in (params or {}).items()],
        )


def _params(document: PersonaDocument) -> dict[str, str]:
    options = document.alignment.options if document.alignment else {}
    named = {"task": document.task, "model": document.model, "version": document.version, **options}
    return {k: str(v)[:500] for k, v in named.items() if v is not None}


def _metrics(alignment: Alignment) -> list[tuple[str, float, int]]:
    """(name, value, step): held-out score after each step, batch scores, usage by role."""
    found: list[tuple[str, float, int]] = []
    score = alignment.scores.initial
    for number, step in enumerate(alignment.steps, 1):
        for trial in step.trials:
            if trial.accepted and trial.challenger_score is not None:
                score = trial.challenger_score
        if score is not None:
            found.append(("held_out_score", score, number))
        if step.scores:
            found.append(("simulated_score", sum(step.scores) / len(step.scores), number))
        found.append(("step_calls", step.usage.calls, number))
    for name, value in alignment.scores.model_dump().items():
        if value is not None:
            found.append((f"score_{name}", value, 0))
    found += [("accepted", alignment.accepted, 0), ("gate_size", alignment.gate_size, 0)]
    for role, usage in alignment.usage.items():
        prefix = "" if role == "total" else f"{role}_"
        found += [(f"{prefix}calls", usage.calls, 0), (f"{prefix}tokens", usage.input_tokens + usage.output_tokens, 0)]
        found += [(f"{prefix}lm_seconds", usage.seconds, 0)]
        if usage.usd is not None:
            found.append((f"{prefix}usd", usage.usd, 0))
    return found


def tracker_for(uri: str | None, *, runs: str = "sampled", register: bool = False) -> Tracker:
    """The tracker of a ``--tracking-uri``: ``off`` = none, None = a SQLite file ``mlflow.db`` in this folder."""
    if uri == "off":
        return NullTracker()
    return MlflowTracker(uri or "sqlite:///mlflow.db")
