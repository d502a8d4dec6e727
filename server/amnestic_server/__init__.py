"""The Amnestic server: serves a classifier over gRPC and lets it forget labels while it serves."""
