"""The Open Inference Protocol beside the native services: the same model for clients of Triton and KServe.

`service` converts, calls, converts; `request` and `answer` are its two conversions of an inference, over `tensors`, and
`describe` tells of the model, its versions and their statistics.
"""
