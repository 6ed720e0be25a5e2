"""The recipe: one YAML file that says what to train, on what, and what to make of it.

Every key has a default but `data.train`, which each of several `tasks` brings for itself. Unknown keys fail and name the nearest one;
`--set a.b=c` overrides any key. Where a key means the same as one of Hugging Face's `TrainingArguments` or PEFT's `LoraConfig`, their
name is accepted too.
"""

from __future__ import annotations

from burnish.recipe.read import load_recipe, make_recipe, own_key, parse_yaml, with_overrides
from burnish.recipe.sections import (
    MAIN,
    Adapter,
    Augment,
    Data,
    Distill,
    Freeze,
    Mixing,
    Noise,
    Recipe,
    Rewriting,
    Service,
    Train,
    TunedBy,
)

__all__ = [
    "MAIN",
    "Adapter",
    "Augment",
    "Data",
    "Distill",
    "Freeze",
    "Mixing",
    "Noise",
    "Recipe",
    "Rewriting",
    "Service",
    "Train",
    "TunedBy",
    "load_recipe",
    "make_recipe",
    "own_key",
    "parse_yaml",
    "with_overrides",
]
