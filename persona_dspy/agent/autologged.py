"""Tags what MLflow's autologging writes of an answer with its user's key, so that forgetting the user finds it."""

from __future__ import annotations

import logging
import sys
from typing import Any

from persona_dspy.core import user_key

__all__ = ["AUTOLOG_TAG", "tag_run", "tag_trace"]

AUTOLOG_TAG = "persona_dspy.user."
"""Before ``user_key``: a tag a user, since a trace or run may hold several users' answers."""
_log = logging.getLogger(__name__)


def tag_trace(user_id: str) -> None:
    """Tag the trace that MLflow is recording in this context; nothing where it records none. Imports no mlflow."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or mlflow.get_current_active_span() is None:
        return
    _safely(mlflow, mlflow.update_current_trace, tags={AUTOLOG_TAG + user_key(user_id): "answer"})


def tag_run(user_id: str) -> None:
    """As ``tag_trace``, for the run that is active: that of ``compile`` under ``mlflow.dspy.autolog``."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or mlflow.active_run() is None:
        return
    _safely(mlflow, mlflow.set_tag, AUTOLOG_TAG + user_key(user_id), "compile")


def _safely(mlflow: Any, tag: Any, *arguments: Any, **options: Any) -> None:
    try:
        tag(*arguments, **options)
    except (mlflow.exceptions.MlflowException, OSError) as failure:  # MLflow may be down: no answer fails for it
        _log.warning("MLflow took no tag with the user's key: %s", failure)
