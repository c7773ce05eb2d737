"""What comes out of MLflow when it, its database or its server fails."""

from __future__ import annotations

from persona_dspy.core import scrubbed

__all__ = ["mlflow_failures", "reason_of"]


def mlflow_failures() -> tuple[type[Exception], ...]:
    """What is caught around a use of MLflow; imports it."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, OSError


def reason_of(failure: Exception) -> str:
    """A failure in a few words, without passwords."""
    return scrubbed(str(failure))[:200]
