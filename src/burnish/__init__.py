"""Burnish fine-tunes a language model on your own examples, and proves whether it got better.

import burnish

report = burnish.run("recipe.yaml")                     # the nine steps; the report as a dict
report = burnish.run({"data": {"train": "rows.jsonl"}}) # a recipe as plain values
plan = burnish.plan("recipe.yaml")                      # memory, tokens and time, without loading a weight
study = burnish.tune("recipe.yaml", budget="20m")       # better hyperparameters; best.yaml in the study's folder
check = burnish.check("rows.jsonl")                     # what is wrong with a file of examples
model = burnish.load("runs/recipe")                     # model.say("Hello") answers
"""

from __future__ import annotations

from burnish.api import (
    augment,
    check,
    distill,
    doctor,
    export,
    fewshot,
    init,
    load,
    lr_range,
    merge,
    plan,
    run,
    runs,
    tune,
)

__all__ = [
    "augment",
    "check",
    "distill",
    "doctor",
    "export",
    "fewshot",
    "init",
    "load",
    "lr_range",
    "merge",
    "plan",
    "run",
    "runs",
    "tune",
]
