"""The benchmark of unlearning: methods x corpora x targets x seeds, against attack and beside retraining."""
