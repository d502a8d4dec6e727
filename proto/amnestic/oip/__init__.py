"""The Open Inference Protocol: the public wire that the clients of Triton and KServe speak."""
