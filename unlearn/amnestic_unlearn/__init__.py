"""Class-level unlearning for BERT-family classifiers.

The modules `spec`, `patch`, `manifest`, `measures` and `corpus` are light: they import neither torch's
training code nor transformers, and the server uses them too. Everything else runs in a process of its own.
"""
