"""Class-level unlearning for BERT-family classifiers.

The modules `spec`, `patch`, `manifest`, `measures`, `corpus`, `architecture` and `errors` are light: they import
neither transformers nor training code, and the server uses them too. Everything else runs in a process of its own.
"""
