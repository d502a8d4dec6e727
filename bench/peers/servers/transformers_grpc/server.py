"""The pipeline of transformers behind a grpc server, as a platform team writes it first; messages are JSON."""

import json
import os
from concurrent import futures

import grpc
import torch
import transformers


def main() -> None:
    torch.set_num_threads(int(os.environ["PROCESSORS"]))
    model = os.path.realpath(os.environ["CHECKPOINT"])
    classify = transformers.pipeline("text-classification", model=model, device="cpu", top_k=None, truncation=True)
    labels = list(classify.model.config.label2id)

    def predict(request: bytes, context: grpc.ServicerContext) -> bytes:
        (scores,) = classify([json.loads(request)["text"]])
        by_label = {one["label"]: one["score"] for one in scores}
        return json.dumps([by_label[label] for label in labels]).encode()

    # As many threads as grpc's examples have.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=10))
    handlers = {"Predict": grpc.unary_unary_rpc_method_handler(predict)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("notes.Notes", handlers),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
