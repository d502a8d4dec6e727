"""A custom runtime of MLServer, as its documentation has them for models that no runtime of its own serves.

Reloaded through the repository API, it reads what the environment's MODEL points to then.
"""

import os
from pathlib import Path

from classifier import Classifier
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Notes(MLModel):
    async def load(self) -> bool:
        self._classifier = Classifier(Path(os.environ["MODEL"]), int(os.environ["THREADS"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        probabilities = self._classifier.probabilities(texts)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", probabilities)]
        )
