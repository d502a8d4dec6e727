"""Wire contract of Amnestic: the generated protobuf messages and gRPC stubs live in `amnestic.v1`."""

__version__ = "0.1.0"
