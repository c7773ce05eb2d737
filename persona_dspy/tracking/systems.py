"""An evaluation in MLflow: a table of systems, and a run for each, so that they can be chosen and compared there."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from persona_dspy.core import plural, scrubbed

__all__ = ["dataset_input", "description", "run_kind", "run_name", "write_systems"]

_LONG = 500


def run_kind(params: Mapping[str, Any]) -> str:
    """What a run is of, by the parameters it begins with.

    Example:
        >>> run_kind({"command": "reproduce"}), run_kind({"service": True}), run_kind({"users": 6})
        ('reproduce', 'serve', 'compile')
    """
    return str(params.get("command") or ("serve" if params.get("service") else "compile"))


def run_name(params: Mapping[str, Any], when: str) -> str:
    """What a run is called in MLflow's table: what it is of, on which data, since when.

    Example:
        >>> run_name({"source": "data/films.jsonl"}, "2026-01-31 12:00:00"), run_name({"service": True}, "today")
        ('compile films 2026-01-31 12:00:00', 'serve today')
    """
    data = PurePath(str(params.get("source") or "")).stem
    return " ".join(part for part in (run_kind(params), scrubbed(data)[:60], when) if part)


def description(params: Mapping[str, Any]) -> str:
    """One line for the run's page: how many users, of which data, with which model.

    Example:
        >>> description({"users": 6, "source": "films.jsonl", "lm": "openai/gpt-4o-mini"})
        'compile: 6 users of films.jsonl, openai/gpt-4o-mini'
    """
    of = f" of {params['source']}" if params.get("source") else ""
    users = f"{plural(int(params['users']), 'user')}{of}" if params.get("users") else "alignments of a service"
    model = params.get("lm") or params.get("model")
    return f"{run_kind(params)}: {users}" + (f", {model}" if model else "")


def dataset_input(params: Mapping[str, Any]) -> Any:
    """The data as an MLflow dataset, with its digest; None where the parameters do not name any."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not (params.get("source") and params.get("data")):
        return None
    source = str(params["source"])
    dataset = Dataset(
        name=re.split(r"[\\/]", source)[-1][:_LONG],
        digest=str(params["data"])[:36],
        source_type="local",
        source=source[:_LONG],
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", run_kind(params))])


def write_systems(client: Any, experiment: str, parent: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table as ``systems.json``, and a finished child run a system, named as it, with its numbers as metrics.

    Args:
        rows: one a system, ``system`` among its keys; values that are None are unknown.
    """
    from mlflow.entities import Metric, Param, RunTag

    if not rows:
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    client.log_table(parent, {name: [row.get(name) for row in rows] for name in columns}, "systems.json")
    for row in rows:
        now, system = int(time.time() * 1000), str(row["system"])
        tags = {"mlflow.parentRunId": parent, "persona_dspy.system": system}
        run = client.create_run(experiment, run_name=system[:250], tags=tags).info.run_id
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and v == v}
        client.log_batch(
            run,
            metrics=[Metric(name, value, now, 0) for name, value in numbers.items()],
            params=[Param("system", system)],
            tags=[RunTag("mlflow.note.content", f"One system of an evaluation; the others are beside it: {parent}")],
        )
        client.set_terminated(run)
