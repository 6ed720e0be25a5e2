"""Small files of examples and small recipes, for the tests of whole runs."""

from __future__ import annotations

import importlib.util
import json
import random

import pytest

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
LABELS = ("green", "red", "yellow")  # what the tiny models with a score head tell apart
SYLLABLES = ("ba", "ko", "ri", "tu", "ne", "sa", "lo", "mi", "fe", "du", "gra", "pel", "zin", "vor")


def questions(count, words=2):
    """`count` texts of made-up words: no two are near-duplicates, none shares 13 words with another."""
    source = random.Random(0)
    return [" ".join("".join(source.choices(SYLLABLES, k=3)) for _ in range(words)) for _ in range(count)]


def asked_and_answered(count=60, answer="ok"):
    """Rows with the same answer each: what even a tiny random model learns within a second."""
    return [{"prompt": question, "completion": answer} for question in questions(count)]


def write_rows(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def recipe_of(folder, file, **changes):
    """A recipe as plain values, for a model's folder and a file of rows. changes: key -> what to put in; sections are merged."""
    values = {
        "model": folder,
        "task": {"kind": "generate", "goal": "Say ok."},
        "data": {"train": file, "validation": 6, "test": 12},
        "adapter": {"rank": 8, "alpha": 32},
        "train": {
            "epochs": 4,
            "batch_size": 4,
            "learning_rate": 0.01,
            "max_length": 128,
            "validations": 2,
            "validation_items": 4,
            "save_every": 4,
        },
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values
