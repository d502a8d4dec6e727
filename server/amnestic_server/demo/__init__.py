"""`amnestic demo`: the main job from end to end on the shipped corpus, through processes and calls a user would make.

`story` tells it, with `model` for the kept checkpoint and bundle, `process` for the subprocesses, `stream` for the
load, `quality` for what is measured about the model, and `report` for everything that is shown.
"""
