"""What no message, tag or table may hold: passwords in URLs and API keys, also those that a provider echoes."""

from __future__ import annotations

import json
import os
import re
from urllib.parse import quote

__all__ = ["remember_secret", "scrubbed"]

# a password may hold @ and /; digits before a slash are a port
_IN_URL = re.compile(r"(://[^\s:/@]{0,256}:)(?!\d{1,5}[/?#])[^\s<>]{1,512}@")
_TOKEN_IN_URL = re.compile(r"(://)(?=[^\s:/@]{0,256}\d)[-_A-Za-z0-9]{16,256}@")
_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:(?:sk|pk|rk)[-_]|gsk_|hf_|xai-|gh[opusr]_|github_pat_|glpat-|xox[a-z]-|nvapi-|r8_)"
    r"(?:[-_A-Za-z0-9]|\.(?=[A-Za-z0-9])){10,}"
    r"|AKIA[A-Z0-9]{12,}|AIza[-_A-Za-z0-9]{10,}|dapi[0-9a-f]{16,}(?:-\d)?"
    r"|eyJ[-_A-Za-z0-9]{5,}\.[-_A-Za-z0-9]{4,}(?:\.[-_A-Za-z0-9]*)?"
    r")"
)
_BEARER = re.compile(r"(?i)\b(bearer\s)[^\s\"',;]{6,}")
_BASIC = re.compile(r"\b([Bb]asic\s)(?=[A-Za-z0-9+/]{0,200}(?:[0-9=]|[a-z][A-Z]))[A-Za-z0-9+/]{6,}={0,2}")
_SECRET = r"(?:password|passwd|secret|token|api[_-]?key|(?:access|secret)[_-]key)"  # the end of a field's name
_NAMED = re.compile(
    rf"(?i)((?<![A-Za-z0-9])(?:ssl|pg)?{_SECRET}=|[?&]key=|(?<![A-Za-z0-9])api[_-]?key[\"']?:\s?|{_SECRET}[\"']:\s?)"
    r"(?!\.\.\.|\$)(\"[^\"]{1,512}\"|'[^']{1,512}'|[^\s&\"',;]+)"
)
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
    written = {form for value in values | _remembered for form in _forms(value)}
    for value in sorted(written, key=len, reverse=True):
        if value in text:
            text = text.replace(value, "***")
    text = _TOKEN_IN_URL.sub(r"\1***@", _IN_URL.sub(r"\1***@", text))
    text = _BASIC.sub(r"\1***", _BEARER.sub(r"\1***", _KEYS.sub("***", text)))
    return _NAMED.sub(_masked, text)


def _masked(found: re.Match[str]) -> str:
    name, value = found.groups()
    mark = value[0] if value[0] in "\"'" else ""
    return f"{name}{mark}***{mark}"


def _forms(value: str) -> set[str]:
    """A secret as text, Python, JSON and URLs write it."""
    return {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="", errors="replace")}
