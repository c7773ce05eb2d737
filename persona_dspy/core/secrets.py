"""What no message, tag or table may hold: passwords in URLs and API keys, also those that a provider echoes."""

from __future__ import annotations

import os
import re

__all__ = ["remember_secret", "scrubbed"]

_IN_URL = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")
_IN_QUERY = re.compile(
    r"(?i)([?&](?:password|passwd|sslpassword|secret|token|api[_-]?key|access[_-]?token)=)[^\s&\"']+"
)
_BEARER = re.compile(r"(?i)\b(bearer\s)[^\s\"',;]{6,}")
_KEYS = re.compile(r"\b(?:sk|pk|rk|gsk|hf|xai|ghp|glpat|AKIA|AIza)[-_A-Za-z0-9]{10,}\b(?!\.)")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD", re.IGNORECASE)
_LEAST = 8  # characters of a value that is a secret by its name: "none" and "local" are not
_remembered: set[str] = set()


def remember_secret(value: object) -> None:
    """Have ``value`` (an API key that was given in code) scrubbed from now on."""
    if isinstance(value, str) and len(value) >= _LEAST and len(_remembered) < 1000:
        _remembered.add(value)


def scrubbed(text: str) -> str:
    """``text`` without passwords of URLs, values of secret environment variables, and what looks like an API key.

    Example:
        >>> scrubbed("postgresql://ana:pw@db/x refused; Incorrect API key provided: sk-abcdef123456")
        'postgresql://ana:***@db/x refused; Incorrect API key provided: ***'
    """
    values = {v for name, v in os.environ.items() if len(v) >= _LEAST and _SECRET_NAME.search(name)}
    for value in sorted(values | _remembered, key=len, reverse=True):
        if value in text:
            text = text.replace(value, "***")
    text = _IN_URL.sub(r"\1***@", text)
    text = _BEARER.sub(r"\1***", _KEYS.sub("***", text))
    return _IN_QUERY.sub(r"\1***", text)
