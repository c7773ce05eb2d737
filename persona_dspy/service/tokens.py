"""Who may ask the proxy: one token for the application's own servers, and one a user that opens nobody else's."""

from __future__ import annotations

import hashlib
import hmac

from persona_dspy.errors import InputError

__all__ = ["allowed", "checked_token", "user_token"]

_SHORTEST = 16


def checked_token(token: str | None) -> str:
    """The application's token.

    Raises:
        InputError: none, too short to be secret, or one that no header can carry.
    """
    if token is None or len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        reason = "none is set" if not token else f"{len(token)} characters"
        raise InputError(
            f"PERSONA_DSPY_TOKEN: {reason}; expected at least {_SHORTEST} visible ASCII characters, type: export "
            'PERSONA_DSPY_TOKEN=$(python -c "import secrets; print(secrets.token_urlsafe(32))")'
        )
    return token


def user_token(token: str, user_id: str) -> str:
    """A token that opens one user only, made from the application's; safe to hand to that user's own client.

    Example:
        >>> user_token("0123456789abcdef", "ana")[:12], user_token("0123456789abcdef", "bob")[:12]
        ('user-ae207b9', 'user-9c8ad64')
    """
    digest = hmac.new(token.encode(), b"persona-dspy/user\0" + user_id.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return f"user-{digest.hexdigest()}"


def allowed(given: str | None, token: str, user_id: str | None) -> bool:
    """Whether a request with the token ``given`` may act for ``user_id``; None: for no user in particular."""
    if given is None:
        return False
    proof = given.encode("utf-8", "surrogatepass")
    if hmac.compare_digest(proof, token.encode()):
        return True
    return user_id is not None and hmac.compare_digest(proof, user_token(token, user_id).encode())
