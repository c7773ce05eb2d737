"""Identity of model files: GGUF check, remembered hashes, names."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from persona_dspy.errors import ModelError
from persona_dspy.lm.local import files as model_files
from persona_dspy.lm.local.files import check_gguf, model_name, models_dir, weights_hash


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def gguf(path: Path, body: bytes = b"weights") -> Path:
    path.write_bytes(b"GGUF" + body)
    return path


def test_models_dir_is_the_environment_or_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path))
    assert models_dir() == tmp_path
    monkeypatch.delenv("PERSONA_DSPY_MODELS")
    assert models_dir().parts[-3:] == (".cache", "persona_dspy", "models")


def test_a_gguf_passes_and_other_files_say_what_they_are(folder: Path):
    assert check_gguf(gguf(folder / "a.gguf")) == folder / "a.gguf"
    (folder / "b.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"b'PK.*expected b'GGUF'.*models pull smol"):
        check_gguf(folder / "b.gguf")
    with pytest.raises(ModelError, match="No such file"):
        check_gguf(folder / "gone.gguf")
    with pytest.raises(ModelError, match="Is a directory"):
        check_gguf(folder)


def test_the_hash_is_right_and_read_only_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = gguf(folder / "a.gguf")
    right = hashlib.sha256(b"GGUFweights").hexdigest()
    assert weights_hash(path) == right
    monkeypatch.setattr(model_files, "_sha256", lambda _: pytest.fail("hashed again"))
    assert weights_hash(path) == right


def test_changed_weights_have_another_hash_and_name(folder: Path):
    path = gguf(folder / "tiny-model.gguf")
    before = model_name(path)
    gguf(path, b"WEIGHTS")
    os.utime(path, ns=(1, 1))
    assert before.startswith("local/tiny-model-")
    assert model_name(path) != before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', '{"PATH": [1, 2]}'])
def test_a_damaged_memory_of_hashes_is_no_error(folder: Path, content: str):
    path = gguf(folder / "a.gguf")
    (folder / "hashes.json").write_text(content.replace("PATH", str(path)))
    assert weights_hash(path) == hashlib.sha256(b"GGUFweights").hexdigest()
    assert json.loads((folder / "hashes.json").read_text())[str(path)][2] == weights_hash(path)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path / "file" / "models"))
    assert weights_hash(gguf(tmp_path / "a.gguf")) == hashlib.sha256(b"GGUFweights").hexdigest()
