"""The table of adapter methods: what is measured, and that a method that fails is in it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import yaml

from tiny_runs import asked_and_answered, recipe_of, write_rows

PLACE = Path(__file__).resolve().parents[2] / "bench/peft_table.py"


def test_a_method_is_measured_and_one_that_fails_is_listed_with_its_error(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(PLACE.parent)
    spec = importlib.util.spec_from_file_location("peft_table", PLACE)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    monkeypatch.setenv("PYTHONPATH", str(PLACE.parents[1] / "src"))
    recipe = tmp_path / "recipe.yaml"
    rows = write_rows(tmp_path / "rows.jsonl", asked_and_answered())
    recipe.write_text(yaml.safe_dump(recipe_of(model_folder(), rows)), encoding="utf-8")
    words = ["--recipe", str(recipe), "--methods", "lora", "head", "--set", "train.epochs=1"]
    monkeypatch.setattr(sys, "argv", ["peft_table.py", *words, "--out", str(tmp_path / "lines.json")])
    assert table.main() == 1
    lora, head = json.loads((tmp_path / "lines.json").read_text())
    assert 0 < lora["share"] < 1
    assert lora["n"] == 12
    assert lora["ci95"][0] <= lora["gain"] <= lora["ci95"][1]
    assert "writes text" in head["error"]
    printed = capsys.readouterr().out
    assert "| lora |" in printed
    assert "head failed: " in printed
