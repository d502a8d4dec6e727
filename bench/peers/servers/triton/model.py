"""The classifier in Triton's Python backend. An instance is a process; Triton batches what waits for them."""

import json
import os
import sys
from pathlib import Path

sys.path[:0] = os.environ["MODEL_PATH"].split(os.pathsep)

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from classifier import Classifier  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        bundle, threads = (parameters[name]["string_value"] for name in ("bundle", "threads"))
        self._classifier = Classifier(Path(bundle), int(threads))

    def execute(self, requests: list) -> list:
        inputs = [pb_utils.get_input_tensor_by_name(request, "text").as_numpy() for request in requests]
        texts = [text.decode() for rows in inputs for text in rows[:, 0]]
        rows = np.split(self._classifier.probabilities(texts), np.cumsum([len(one) for one in inputs])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", one)]) for one in rows]
