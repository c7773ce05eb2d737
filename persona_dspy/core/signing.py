"""Detached signatures of persona JSONs (ed25519), so that whoever loads one knows that its owner made it.

Needs the extra ``persona-dspy[sign]``. The private key stays where personas are compiled; imports need the public one.
"""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_dspy.core.disk import write_text
from persona_dspy.core.document import PersonaDocument, read_document
from persona_dspy.errors import InputError, RunError, to_install

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["private_key", "public_key", "sign_document", "signature_path", "verified_document"]

SCHEMA = "persona-dspy/signature/1"
_MAKE = (
    "make a pair with: openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out key.pub"
)


def signature_path(path: str | os.PathLike[str]) -> Path:
    """Where the signature of a persona JSON is: beside it.

    Example:
        >>> signature_path("personas/u1.json").as_posix()
        'personas/u1.json.sig'
    """
    file = Path(path)
    return file.with_name(f"{file.name}.sig")


def private_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """The key that signs, from a PEM or OpenSSH file without a passphrase.

    Raises:
        InputError: there is none in the file, or one of another kind.
        RunError: the extra ``sign`` is not installed.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = _key(path, private=True)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"key {str(path)!r}: {type(key).__name__}; expected an ed25519 private key; {_MAKE}")
    return key


def public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """The key that verifies, from a PEM or OpenSSH file.

    Raises:
        InputError: there is none in the file, or one of another kind; also where it is the private one, which has no
            place where personas are imported.
        RunError: the extra ``sign`` is not installed.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = _key(path, private=False)
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"key {str(path)!r}: {type(key).__name__}; expected an ed25519 public key; {_MAKE}")
    return key


def sign_document(path: str | os.PathLike[str], key: Ed25519PrivateKey) -> Path:
    """Write the signature of a persona JSON beside it; where.

    Raises:
        PersonaFormatError: it is no persona JSON.
    """
    content = Path(path).read_bytes()
    document = read_document(content, str(path))
    statement = _statement(document, content) | {"signed": datetime.now(UTC).isoformat(timespec="seconds")}
    signature = base64.b64encode(key.sign(_signed_bytes(statement))).decode()
    target = signature_path(path)
    write_text(target, json.dumps({**statement, "signature": signature}, indent=2, ensure_ascii=False) + "\n")
    return target


def verified_document(path: str | os.PathLike[str], key: Ed25519PublicKey) -> PersonaDocument:
    """The persona JSON of a file, read once, where its signature is the key's.

    Raises:
        InputError: the signature is missing, of another key, of another file, user or version, or the file was changed.
        PersonaFormatError: it is no persona JSON.
    """
    from cryptography.exceptions import InvalidSignature

    beside = signature_path(path)
    try:
        content, signed = Path(path).read_bytes(), json.loads(beside.read_bytes())
        signature = base64.b64decode(signed.pop("signature"), validate=True)
        message = _signed_bytes(signed)
    except OSError as failure:
        raise InputError(
            f"{str(failure.filename)!r}: {failure.strerror}; expected a persona JSON and its signature {beside.name!r} "
            "beside it, as export --sign writes them"
        ) from None
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        raise InputError(f"{str(beside)!r}: no signature; expected one as export --sign writes it") from None
    try:
        key.verify(signature, message)
    except InvalidSignature:
        raise InputError(
            f"{str(beside)!r}: not signed by this key; expected the signature of the owner of the key"
        ) from None
    _compare(path, signed, {"schema": SCHEMA, "sha256": sha256(content).hexdigest()})  # before anything of it is read
    document = read_document(content, str(path))
    _compare(path, signed, _statement(document, content))
    return document


def _compare(path: str | os.PathLike[str], signed: dict[str, Any], there: dict[str, Any]) -> None:
    for name, value in there.items():
        if signed.get(name) != value:
            raise InputError(
                f"{str(path)!r}: its {name} is {value!r}, but what was signed is {signed.get(name)!r}; expected the "
                "file as it was signed: have it exported again"
            )


def _statement(document: PersonaDocument, content: bytes) -> dict[str, Any]:
    whose = {"user_id": document.user_id, "version": document.version}
    return {"schema": SCHEMA, **whose, "sha256": sha256(content).hexdigest()}


def _signed_bytes(statement: dict[str, Any]) -> bytes:
    return json.dumps(statement, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def _key(path: str | os.PathLike[str], *, private: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise RunError(f"signatures: expected the package cryptography; {to_install('sign')}") from None

    try:
        content = Path(path).read_bytes()
    except OSError as failure:
        raise InputError(f"key {str(path)!r}: {failure.strerror}; expected a key file; {_MAKE}") from None
    if private:
        readers: list[Any] = [serialization.load_pem_private_key, serialization.load_ssh_private_key]
    else:
        readers = [serialization.load_pem_public_key, serialization.load_ssh_public_key]
    for read in readers:
        try:
            return read(content, password=None) if private else read(content)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
    kind = "private key without a passphrase" if private else "public key"
    raise InputError(f"key {str(path)!r}: cannot be read; expected an ed25519 {kind} in PEM or OpenSSH form; {_MAKE}")
