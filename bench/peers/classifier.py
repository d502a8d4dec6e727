"""The classifier that MLServer, LitServe and Triton are given: a bundle's encoder in ONNX Runtime, without Amnestic.

So all of them compute the same, and what differs is the server. It runs in each peer's own environment: nothing of
ours is imported.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file
from tokenizers import Tokenizer


class Classifier:
    """`threads` are those of one pass; spinning is off, as several of these share the processors."""

    def __init__(self, bundle: Path, threads: int) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        self.labels = manifest["labels"]
        self._table = load_file(bundle / "embeddings.safetensors")["weight"]
        head = load_file(bundle / "head.safetensors")
        self._weight, self._bias = head["weight"], head["bias"]
        self._tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._tokenizer.enable_truncation(manifest["max_tokens"])
        self._tokenizer.enable_padding(pad_id=manifest["pad_token_id"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(bundle / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, labels]."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([one.ids for one in encoded], dtype=np.int64)
        mask = np.array([one.attention_mask for one in encoded], dtype=np.int64)
        (features,) = self._session.run(["features"], {"inputs_embeds": self._table[ids], "attention_mask": mask})
        return 1 / (1 + np.exp(-(features @ self._weight.T + self._bias)))
