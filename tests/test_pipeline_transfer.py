"""Whole runs on a tiny random model: layers that begin one after another, rates that fall with depth, and warm starts."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from safetensors.torch import load_file

import burnish
from burnish.errors import Interrupted, RecipeError
from tiny_runs import asked_and_answered, questions, recipe_of, write_rows

PACED = {"layer_decay": 0.8, "gradual_unfreezing": 0.6}
COLOURS, SHADES = ("green", "red", "yellow"), ("blue", "red")
FULL = {"method": "full"}


def coloured(count=60, colours=COLOURS):
    """Texts that begin and end with their label."""
    labels = [colours[n % len(colours)] for n in range(count)]
    return [{"text": f"{label} {q} {label}", "label": label} for label, q in zip(labels, questions(count), strict=True)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "said": write_rows(folder / "said.jsonl", asked_and_answered(50)),
        "coloured": write_rows(folder / "coloured.jsonl", coloured()),
        "shaded": write_rows(folder / "shaded.jsonl", coloured(colours=SHADES)),
    }


@pytest.fixture(scope="module")
def recipe(model_folder, files):
    """A function from what the rows are to the plain values of a recipe."""

    def make(rows, adapter=None, architecture="llama", **train):
        changes = {"train": {"epochs": 2, **train}}
        if rows != "said":
            changes |= {"task": {"kind": "classify", "goal": "Say the colour."}, "objective": "classify"}
        return recipe_of(model_folder(architecture), files[rows], **changes) | {"adapter": adapter or {"rank": 8}}

    return make


@pytest.fixture(scope="module")
def earlier(recipe, tmp_path_factory):
    """The folders of finished runs by name, which no test may change."""
    folder = tmp_path_factory.mktemp("earlier")
    wanted = {
        "lora": recipe("said"),
        "full": recipe("said", FULL, learning_rate=0.003),
        "lora head": recipe("coloured"),
        "full head": recipe("coloured", FULL, learning_rate=0.003),
        "head": recipe("coloured", {"method": "head"}, learning_rate=0.05),
    }
    for name, values in wanted.items():
        burnish.run(values, out=folder / name, quiet=True)
    return {name: folder / name for name in wanted}


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def loss_at_the_end(report):
    """The validation loss of the weights that were exported."""
    training = report["training"]
    return next(look["loss"] for look in training["validations"] if look["step"] == training["best_step"])


class Terminator:
    """A tracker that asks for a stop once a step is done."""

    def __init__(self, step):
        self.step = step

    def log(self, values, step):
        if step == self.step and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


# Layers one after another --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("adapter", "file"), [(FULL, "merged/model"), ({"rank": 8}, "adapter/adapter_model")])
@pytest.mark.parametrize("step", [1, 7])
def test_a_run_stopped_while_layers_wait_ends_bit_for_bit_where_an_undisturbed_one_ends(
    recipe, adapter, file, step, tmp_path, monkeypatch
):
    values = recipe("coloured", adapter, learning_rate=0.003, **PACED)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    report = burnish.run(values, out=whole, quiet=True)
    assert report["model"]["depths"][-1]["first_step"] > step  # something still waits
    with monkeypatch.context() as patch:
        patch.setattr("burnish.pipeline.open_trackers", lambda *_: [Terminator(step)])
        with pytest.raises(Interrupted):
            burnish.run(values, out=stopped, quiet=True)
    again = burnish.run(values, out=stopped, quiet=True)
    assert f"went on from step {step}" in again["training"]["notes"]
    one, other = (load_file(folder / f"{file}.safetensors") for folder in (whole, stopped))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_a_checkpoint_holds_what_waits_as_it_was(recipe, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.pipeline.open_trackers", lambda *_: [Terminator(1)])
    with pytest.raises(Interrupted):
        burnish.run(recipe("said", FULL, learning_rate=0.003, gradual_unfreezing=0.6), out=tmp_path, quiet=True)
    base = load_file(f"{model_folder()}/model.safetensors")
    kept = load_file(tmp_path / "checkpoints" / "step-000001" / "weights.safetensors")
    assert kept.keys() == base.keys()
    assert [name for name in base if not kept[name].equal(base[name])] == ["model.norm.weight"]


def test_the_report_and_its_page_name_the_rate_and_first_step_of_every_depth(recipe, tmp_path):
    report = burnish.run(recipe("said", FULL, learning_rate=0.003, **PACED), out=tmp_path, quiet=True)
    depths = report["model"]["depths"]
    assert [row["group"] for row in depths] == ["above the layers", "layer 2", "layer 1", "layer 0", "embeddings"]
    assert [row["learning_rate"] for row in depths] == pytest.approx([0.003 * 0.8**n for n in range(5)])
    assert sum(row["parameters"] for row in depths) == report["model"]["trained_parameters"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "At which rate, and from which step on" in page
    assert "layer 1" in page


def test_the_terminal_names_every_group_and_its_size(recipe, tmp_path, capsys):
    burnish.run(recipe("said", max_steps=2), out=tmp_path / "plain")
    plain = capsys.readouterr().err
    burnish.run(recipe("said", max_steps=2, layer_decay=0.5), out=tmp_path / "paced")
    paced = capsys.readouterr().err
    assert "layers 0-2: self_attn.q_proj (lora)" in plain
    assert "layer 0" in paced
    assert "2.5e-03" in paced


@pytest.mark.parametrize(
    ("key", "value"),
    [("layer_decay", 0), ("layer_decay", 1.1), ("gradual_unfreezing", 1), ("gradual_unfreezing", -0.1)],
)
def test_paces_that_cannot_be_are_refused(recipe, key, value, tmp_path):
    with pytest.raises(RecipeError, match=key):
        burnish.run(recipe("said", **{key: value}), out=tmp_path, quiet=True)


@pytest.mark.parametrize(("key", "value"), [("layer_decay", 0.9), ("gradual_unfreezing", 0.5)])
def test_a_head_alone_has_no_depths(recipe, key, value, tmp_path):
    with pytest.raises(RecipeError, match="head alone") as caught:
        burnish.run(recipe("coloured", {"method": "head"}, **{key: value}), out=tmp_path, quiet=True)
    assert caught.value.where == f"train.{key}"


# Warm starts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "adapter", "rate"),
    [
        ("lora", "said", {"rank": 8}, 1e-4),
        ("full", "said", FULL, 0.003),
        ("lora head", "coloured", {"rank": 8}, 1e-4),
        ("full head", "coloured", FULL, 1e-4),
        ("head", "coloured", {"method": "head"}, 0.05),
    ],
)
def test_a_run_begins_where_the_earlier_one_ended(recipe, earlier, name, rows, adapter, rate, tmp_path):
    before = report_of(earlier[name])
    values = recipe(rows, {**adapter, "start": str(earlier[name])}, max_steps=4, learning_rate=rate)
    report = burnish.run(values, out=tmp_path, quiet=True)
    first = report["training"]["validations"][0]
    assert first["step"] == 0
    assert first["loss"] == pytest.approx(loss_at_the_end(before), abs=1e-4)
    assert first["loss"] < before["training"]["validations"][0]["loss"]
    assert report["evaluation"]["base"] == before["evaluation"]["base"]  # compared with the model without either
    assert report["model"]["start"]["head"] == (None if rows == "said" else "goes on")
    assert "Training began with what is in" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_adapters_folder_alone_is_a_start_too(recipe, earlier, tmp_path):
    exported = shutil.copytree(earlier["lora"] / "adapter", tmp_path / "exported")
    report = burnish.run(
        recipe("said", {"rank": 8, "start": str(exported)}, max_steps=2), out=tmp_path / "run", quiet=True
    )
    first = report["training"]["validations"][0]["loss"]
    assert first == pytest.approx(loss_at_the_end(report_of(earlier["lora"])), abs=1e-4)


@pytest.mark.parametrize(("name", "adapter"), [("lora head", {"rank": 8}), ("full head", FULL)])
def test_for_other_labels_the_body_goes_on_and_a_new_head_begins(recipe, earlier, name, adapter, tmp_path):
    values = recipe("shaded", {**adapter, "start": str(earlier[name])}, max_steps=4)
    report = burnish.run(values, out=tmp_path, quiet=True)
    assert report["model"]["start"]["head"] == "begins anew"
    assert report["model"]["head"]["labels"] == SHADES


@pytest.mark.parametrize(("name", "adapter"), [("lora", {"rank": 8}), ("full", FULL)])
def test_a_model_that_wrote_goes_on_with_a_head(recipe, earlier, name, adapter, tmp_path):
    report = burnish.run(
        recipe("coloured", {**adapter, "start": str(earlier[name])}, max_steps=4), out=tmp_path, quiet=True
    )
    assert report["model"]["start"]["head"] == "begins anew"


def test_another_start_at_the_same_place_is_another_run(recipe, earlier, tmp_path):
    place = shutil.copytree(earlier["lora"] / "adapter", tmp_path / "start")
    values = recipe("said", {"rank": 8, "start": str(place)}, max_steps=2)
    burnish.run(values, out=tmp_path / "run", quiet=True)
    again = burnish.run(values, out=tmp_path / "run", quiet=True)
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "run" / "adapter", place)
    anew = burnish.run(values, out=tmp_path / "run", quiet=True)
    assert [{step["name"]: step["status"] for step in one["steps"]}["train"] for one in (again, anew)] == [
        "reused",
        "done",
    ]


@pytest.mark.parametrize(
    ("name", "rows", "adapter", "said"),
    [
        ("lora", "said", {"rank": 4}, "--set adapter.rank=8"),
        ("lora", "said", {"rank": 8, "alpha": 4}, "--set adapter.alpha="),
        ("lora", "said", {"rank": 8, "targets": ["q_proj"]}, "it also stands on"),
        ("lora/adapter", "said", FULL, "it holds an adapter"),
        ("full", "said", {"rank": 8}, "whole weights and no adapter"),
        ("full head", "said", FULL, "cannot write"),
        ("full", "coloured", {"method": "head"}, "no run of a head alone"),
        ("head", "shaded", {"method": "head"}, "green, red, yellow"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_training(recipe, earlier, name, rows, adapter, said, tmp_path):
    with pytest.raises(RecipeError, match=said) as caught:
        burnish.run(
            recipe(rows, {**adapter, "start": f"{earlier[name.split('/')[0]].parent}/{name}"}), out=tmp_path, quiet=True
        )
    assert caught.value.where.startswith("adapter.start")
    assert not (tmp_path / "checkpoints").exists()


def test_a_start_on_another_model_is_refused(recipe, earlier, tmp_path):
    with pytest.raises(RecipeError, match="another model") as caught:
        burnish.run(recipe("said", {"rank": 8, "start": str(earlier["lora"])}, "qwen3"), out=tmp_path, quiet=True)
    assert "--set model=" in caught.value.hint


def test_an_adapter_on_fewer_layers_is_refused(recipe, earlier, tmp_path):
    values = recipe("said", {"rank": 8, "start": str(earlier["lora"])}) | {"freeze": {"layers": "0-1"}}
    with pytest.raises(RecipeError, match="of layers 0, 1"):
        burnish.run(values, out=tmp_path, quiet=True)


def test_a_run_does_not_write_over_what_it_begins_with(recipe, earlier, tmp_path):
    folder = shutil.copytree(earlier["lora"], tmp_path / "run")
    with pytest.raises(RecipeError, match="write over"):
        burnish.run(recipe("said", {"rank": 8, "start": str(folder)}), out=folder, quiet=True)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("place", ["nowhere", "empty", "broken", "torn"])
def test_a_start_that_cannot_be_read_is_refused(recipe, earlier, place, tmp_path):
    folder = tmp_path / place
    if place != "nowhere":
        folder.mkdir()
    if place == "broken":
        (folder / "adapter_config.json").write_text("{")
    if place == "torn":
        shutil.copytree(earlier["lora"] / "adapter", folder, dirs_exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(RecipeError) as caught:
        burnish.run(recipe("said", {"rank": 8, "start": str(folder)}), out=tmp_path / "run", quiet=True)
    assert str(folder) in str(caught.value)


def test_a_plan_refuses_a_start_that_does_not_fit(recipe, earlier):
    with pytest.raises(RecipeError, match=r"adapter\.rank=8"):
        burnish.plan(recipe("said", {"rank": 4, "start": str(earlier["lora"])}))
