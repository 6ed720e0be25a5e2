from __future__ import annotations

import pytest

from burnish.model.adapt import adapt, trained_parameters
from burnish.model.depth import Pace, as_table, by_depth, depth_of, paces
from burnish.recipe import Adapter, Freeze

FULL, LORA = Adapter(method="full"), Adapter(rank=4)
ABOVE = float("inf")


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("model.embed_tokens.weight", -1),
        ("transformer.wte.weight", -1),
        ("gpt_neox.embed_in.weight", -1),
        ("embed_out.weight", ABOVE),
        ("base_model.model.model.layers.7.mlp.up_proj.lora_A.default.weight", 7),
        ("model.norm.weight", ABOVE),
        ("lm_head.weight", ABOVE),
        ("base_model.model.score.modules_to_save.default.weight", ABOVE),
    ],
)
def test_a_parameters_depth_is_read_from_its_name(name, depth):
    assert depth_of(name) == depth


def test_each_layers_rate_is_that_of_the_one_above_times_the_decay(architecture, make_model):
    names = trained_parameters(adapt(make_model(architecture), FULL, Freeze()))
    found = paces(names, layer_decay=0.5)
    shares = {depth_of(name): found[name].share for name in names}
    assert shares == {ABOVE: 1, 2: 0.5, 1: 0.25, 0: 0.125, -1: 0.0625}
    assert {pace.start for pace in found.values()} == {0}


def test_without_a_decay_every_rate_is_the_whole_one(make_model):
    names = trained_parameters(adapt(make_model(), FULL, Freeze()))
    assert set(paces(names).values()) == {Pace()}


def test_the_topmost_that_is_trained_has_the_whole_rate(make_model):
    names = trained_parameters(adapt(make_model(), LORA, Freeze()))
    found = paces(names, layer_decay=0.5)
    assert {depth_of(name): found[name].share for name in names} == {2: 1, 1: 0.5, 0: 0.25}


def test_layers_that_stay_frozen_in_between_are_steps_down(make_model):
    names = trained_parameters(adapt(make_model(), FULL, Freeze(layers="1")))
    found = paces(names, layer_decay=0.5)
    assert {depth_of(name): found[name].share for name in names} == {ABOVE: 1, 2: 0.5, 0: 0.125, -1: 0.0625}


def test_depths_begin_from_the_top_down_at_equal_distances(make_model):
    names = trained_parameters(adapt(make_model(), FULL, Freeze()))
    found = paces(names, unfreezing=0.5, steps=80)
    assert {depth_of(name): found[name].start for name in names} == {ABOVE: 0, 2: 10, 1: 20, 0: 30, -1: 40}


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_with_fewer_steps_than_depths_several_begin_together_and_all_within_the_run(make_model, steps):
    names = trained_parameters(adapt(make_model(), FULL, Freeze()))
    starts = {pace.start for pace in paces(names, unfreezing=0.9, steps=steps).values()}
    assert min(starts) == 0
    assert max(starts) < steps


def test_the_table_by_depth_names_every_depth_with_its_size_rate_and_first_step(make_classifier):
    model = adapt(make_classifier(), LORA, Freeze(layers="0"))
    trained = trained_parameters(model)
    rows = by_depth(model, paces(trained, layer_decay=0.5, unfreezing=0.5, steps=8), 0.1)
    assert [row["group"] for row in rows] == ["above the layers", "layer 2", "layer 1"]
    assert sum(row["parameters"] for row in rows) == sum(parameter.numel() for parameter in trained.values())
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.05, 0.025])
    assert [row["first_step"] for row in rows] == [1, 3, 5]


def test_the_table_as_text_has_rates_where_they_differ():
    plain = {"group": "layers 0-2: mlp.up_proj", "parameters": 1234}
    assert as_table([plain]).split() == ["1,234", "layers", "0-2:", "mlp.up_proj"]
    paced = {"group": "layer 2", "parameters": 10, "learning_rate": 0.05, "first_step": 3}
    assert as_table([paced]).split() == ["10", "5.0e-02", "from", "step", "3", "layer", "2"]
