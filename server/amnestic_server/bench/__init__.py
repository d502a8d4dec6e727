"""Benchmarks that anyone can run: what is measured, and beside it, in the same run, what it could be at best."""
