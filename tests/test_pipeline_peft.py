"""Whole runs by methods of `adapter` on a tiny model: tried, trained, held against what it was before, written, gone on from."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import burnish
from burnish.errors import Interrupted, RecipeError
from burnish.parts import expect_training
from burnish.recipe import make_recipe
from burnish.train.plan import suited
from tiny_runs import asked_and_answered, needs_bitsandbytes, recipe_of, write_rows

SIZES = {"pissa": {"rank": 8, "alpha": 16}, "loftq": {"rank": 8, "alpha": 16}, "prefix": {"tokens": 4}}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", asked_and_answered(48))


@pytest.fixture
def recipe(model_folder, rows):
    """A function from a method to the plain values of a recipe. train: changes of that section."""

    def make(method, **train):
        precision = {"precision": "nf4"} if method == "loftq" else {}
        train = {"learning_rate": 0.03, "epochs": 2, **precision, **train}
        return recipe_of(model_folder(), rows, train=train) | {"adapter": {"method": method, **SIZES.get(method, {})}}

    return make


class Terminator:
    """A tracker that tells the process to end at one step."""

    def log(self, values, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


@pytest.mark.parametrize("method", ["ia3", "layernorm", "prefix"])
def test_a_run_by_a_method_of_few_weights_tries_trains_and_exports(method, recipe, tmp_path):
    report = burnish.run(recipe(method, learning_rate=0.1), out=tmp_path, quiet=True)
    assert [step["status"] for step in report["steps"]] == ["done"] * 9
    losses = [look["loss"] for look in report["training"]["validations"]]
    assert losses[-1] < losses[0] or method == "prefix"  # few tokens steer a model of random weights but little
    assert ("merged" in report["artifacts"], (tmp_path / "merged").is_dir()) == ((method != "prefix"),) * 2
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]


@pytest.mark.parametrize("method", ["pissa", pytest.param("loftq", marks=needs_bitsandbytes)])
def test_a_start_from_the_weights_is_the_same_when_a_run_goes_on(method, recipe, tmp_path, monkeypatch):
    values = recipe(method)
    straight = burnish.run(values, out=tmp_path / "straight", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr("burnish.pipeline.open_trackers", lambda *_: [Terminator()])
        with pytest.raises(Interrupted):
            burnish.run(values, out=tmp_path / "stopped", quiet=True)
    report = burnish.run(values, out=tmp_path / "stopped", quiet=True)
    assert "went on from step 6" in report["training"]["notes"]
    weights = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("straight", "stopped")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert report["evaluation"]["base"] == straight["evaluation"]["base"]
    said = json.loads((tmp_path / "stopped" / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["init_lora_weights"]) == (
        16,
        32,
        True,
    )  # a plain LoRA on the published base


# What a method cannot have -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "found", "expected"),
    [
        ({"method": "ia3", "rank": 8}, r"ia3 takes no `adapter\.rank`", "targets"),
        ({"method": "ia3", "lora_alpha": 8}, r"ia3 takes no `adapter\.alpha`", "targets"),
        ({"method": "prompt", "targets": ["q_proj"]}, r"prompt takes no `adapter\.targets`", "tokens"),
        ({"method": "lora", "tokens": 8}, r"lora takes no `adapter\.tokens`", "rank, alpha, dropout, targets"),
        ({"method": "oft", "dropout": 0.1}, r"oft takes no `adapter\.dropout`", "block, targets"),
        ({"method": "qlora"}, "qlora", "4 bits"),
    ],
)
def test_a_key_of_another_method_is_refused_with_what_is_taken(adapter, found, expected):
    with pytest.raises(RecipeError, match=found) as caught:
        make_recipe({"data": {"train": "a"}, "adapter": adapter})
    assert expected in caught.value.expected
    assert caught.value.hint


def test_a_key_is_taken_out_by_null_and_a_dumped_recipe_reads_the_same(tmp_path):
    recipe = make_recipe({"data": {"train": "a"}, "adapter": {"method": "ia3", "rank": None}})
    assert "rank" not in recipe.dump()
    assert make_recipe({"data": {"train": "a"}, "adapter": {"method": "ia3"}}).adapter == recipe.adapter


@pytest.mark.parametrize(
    ("method", "train", "where"),
    [
        ("loftq", {"precision": "fp32"}, "train.precision"),
        ("dora", {"precision": "nf4"}, "train.precision"),
        ("prefix", {"recompute": "all"}, "train.recompute"),
        ("prompt", {"compile": True}, "train.compile"),
        ("prompt", {"graph": True}, "train.graph"),
    ],
)
def test_what_a_method_cannot_have_is_refused_before_a_weight_is_loaded(method, train, where, recipe):
    with pytest.raises(RecipeError) as caught:
        burnish.plan(recipe(method, **train))
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("method", "compiled"), [("pissa", "auto"), ("dora", False), ("prompt", False), ("full", "auto")]
)
def test_only_layers_that_are_our_own_are_compiled_unasked(method, compiled):
    train = make_recipe({"data": {"train": "a"}, "adapter": {"method": method}}).train
    assert (suited(train, method).compile, suited(train, method).graph) == (compiled, compiled)


@pytest.mark.parametrize(
    ("adapter", "where"),
    [
        ({"method": "oft", "block": 24}, "adapter.block"),
        ({"method": "layernorm", "targets": ["q_proj"]}, "adapter.targets"),
        ({"method": "ia3", "targets": ["c_attn"]}, "adapter.targets"),
        ({"method": "dora", "rank": 900}, "adapter.rank"),
    ],
)
def test_sizes_and_targets_that_the_model_does_not_have_are_refused(adapter, where, recipe):
    with pytest.raises(RecipeError) as caught:
        burnish.plan(recipe("lora") | {"adapter": adapter})
    assert caught.value.where == where
    assert caught.value.expected


@pytest.mark.parametrize(("method", "asked", "other"), [("prompt", "merged", "adapter"), ("full", "adapter", "merged")])
def test_files_that_a_method_has_none_of_are_refused_at_once(method, asked, other, recipe):
    with pytest.raises(RecipeError) as caught:
        burnish.plan(recipe(method) | {"deploy": {"export": [asked]}})
    assert caught.value.where == "deploy.export"
    assert caught.value.hint == f"--set deploy.export=[{other}]"


@pytest.mark.parametrize(
    ("device", "adapter", "compiled", "brought_up"),
    [
        ("cuda", "lora", "auto", True),
        ("cuda", "full", True, True),
        ("cuda", "lora", False, False),
        ("cuda", "prompt", "auto", False),
        ("cuda", "head", "auto", False),
        ("cpu", "lora", "auto", False),
    ],
)
def test_what_compiling_takes_is_brought_up_where_layers_may_be_compiled(
    monkeypatch, device, adapter, compiled, brought_up
):
    asked = []
    monkeypatch.setattr("burnish.train.memory.device_of_choice", lambda: torch.device(device))
    monkeypatch.setattr("burnish.parts.expect_compiling", asked.append)
    values = {"data": {"train": "a.jsonl"}, "adapter": {"method": adapter}, "train": {"compile": compiled}}
    expect_training(make_recipe(values))
    assert asked == ([torch.device(device)] if brought_up else [])
