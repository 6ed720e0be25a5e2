"""Burnish fine-tunes a language model on your own examples, and proves whether it got better.

import burnish

report = burnish.run("recipe.yaml")                     # the nine steps; the report as a dict
report = burnish.run({"data": {"train": "rows.jsonl"}}) # a recipe as plain values
plan = burnish.plan("recipe.yaml")                      # memory, tokens and time, without loading a weight
check = burnish.check("rows.jsonl")                     # what is wrong with a file of examples
model = burnish.load("runs/recipe")                     # model.say("Hello") answers
"""

from __future__ import annotations

from burnish.api import check, distill, doctor, export, init, load, plan, run, runs

__all__ = ["check", "distill", "doctor", "export", "init", "load", "plan", "run", "runs"]
