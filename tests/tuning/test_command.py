"""`burnish tune` as it is typed: what it prints, and what bad input comes to before anything runs."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from burnish import api, cli
from tiny_runs import asked_and_answered, recipe_of, write_rows


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, model_folder):
    """A function that types the command beside recipe.yaml, in this process: (exit code, stdout, stderr)."""
    rows = write_rows(tmp_path / "rows.jsonl", asked_and_answered(40))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(model_folder(), rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["burnish", "tune", "recipe.yaml", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def test_a_study_of_the_usual_keys_prints_its_report_as_json(call, tmp_path):
    code, out, _ = call("--budget", 2, "--seeds", 1, "-q", "--json", "--set", "train.epochs=1")
    report = json.loads(out)
    assert code == 0
    assert set(report["space"]) > {"train.learning_rate", "train.batch_size", "adapter.rank"}
    assert len(report["trials"]) == 2
    assert (tmp_path / "runs" / f"{tmp_path.name}-tune" / "best.yaml").exists()


def test_the_test_of_rates_prints_the_suggestion(call):
    code, out, err = call("--lr-range", "--steps", 20, "--out", "range")
    assert code == 0
    assert "learning rate" in out or "no rate" in out
    assert "range/lr-range.html" in out
    assert "smoke" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--range", "train.learning_rate=1e-3:1e-5"], "from 0.001 to 1e-05"),
        (["--range", "train.weight_decay=0:0.1:log"], "logarithm"),
        (["--range", "train.learnin_rate=1e-5:1e-3"], "did you mean"),
        (["--choices", "adapter.rank=0,8"], "adapter.rank"),
        (["--range", "train.seed=0:3"], "cannot be tuned"),
        (["--set", "adapter.method=full", "--choices", "adapter.rank=4,8"], "the method full has no use for it"),
        (["--budget", "soon"], "expected a number of trials, or a time"),
        (["--storage", "nothing://here"], "--storage"),
        (["--lr-range", "--steps", "3"], "too few"),
    ],
)
def test_bad_input_is_told_without_a_traceback(call, words, said, tmp_path):
    code, out, err = call(*words, "-q")
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs" / f"{tmp_path.name}-tune" / "trials").exists()


def test_without_optuna_it_says_what_to_install(call, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = call("-q")
    assert code == 2
    assert "pip install 'burnish[tune]'" in err


def test_a_winner_that_is_surely_worse_on_the_test_rows_says_so_by_the_exit_code(call, monkeypatch):
    report = {"counts": {}, "seconds": 0, "default": None, "best": None, "spread": {}, "folder": "f"}
    report |= {"importance": {}, "unvaried": {}}
    test = {"metric": "m", "base": 0.5, "tuned": 0.2, "n": 9, "delta": -0.3, "ci95": [-0.4, -0.1]}
    monkeypatch.setattr(api, "tune", lambda *given, **named: report | {"metric": "m", "test": test})
    code, out, _ = call()
    assert code == 1
    assert "-0.300" in out
