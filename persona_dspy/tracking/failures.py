"""What comes out of MLflow when it, its database or its server fails."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from persona_dspy.core import scrubbed
from persona_dspy.errors import RunError

__all__ = ["explained", "mlflow_failures", "reason_of"]


def mlflow_failures() -> tuple[type[Exception], ...]:
    """What is caught around a use of MLflow; imports it."""
    from google.protobuf.json_format import Error as FormError
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, FormError, RequestException, SQLAlchemyError, OSError


def reason_of(failure: Exception) -> str:
    """A failure in a few words, without passwords."""
    return scrubbed(str(failure))[:200]


@contextmanager
def explained(uri: str, what: str) -> Generator[None]:
    """Around a use of the MLflow at ``uri``: ``what`` it did not do, where it fails.

    Raises:
        RunError: it failed.
    """
    try:
        yield
    except mlflow_failures() as failure:
        raise RunError(f"MLflow at {scrubbed(uri)!r} {what}: {reason_of(failure)}") from failure
