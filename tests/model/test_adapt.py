from __future__ import annotations

import pytest
from peft import PeftModel
from torch import nn

from burnish.errors import RecipeError
from burnish.model.adapt import adapt, layer_of, parameter_count, parse_layers, trained_groups, trained_parameters
from burnish.recipe import Adapter, Freeze

LORA = Adapter(rank=4, alpha=8)
FULL = Adapter(method="full")


def layers_trained(model):
    return {layer_of(name) for name in trained_parameters(model)}


def modules_with_adapters(model):
    return {name.split(".")[-4] for name in trained_parameters(model)}


def test_lora_stands_on_every_linear_layer_but_the_head(architecture, make_model):
    found = modules_with_adapters(adapt(make_model(architecture), LORA, Freeze()))
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_lora_trains_matrices_of_the_wanted_rank_alone(architecture, make_model):
    trained = trained_parameters(adapt(make_model(architecture), LORA, Freeze()))
    assert {min(parameter.shape) for parameter in trained.values()} == {4}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


def test_lora_takes_its_scale_and_dropout_from_the_recipe(make_model):
    model = adapt(make_model(), Adapter(rank=4, alpha=12, dropout=0.25), Freeze())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert (layer.scaling["default"], layer.lora_dropout["default"].p) == (3.0, 0.25)


def test_lora_stands_only_on_the_targets_that_are_named(make_model):
    adapter = Adapter(rank=4, targets=["q_proj", "self_attn.v_proj"])
    assert modules_with_adapters(adapt(make_model(), adapter, Freeze())) == {"q_proj", "v_proj"}


def test_full_trains_every_parameter(architecture, make_model):
    model = adapt(make_model(architecture), FULL, Freeze())
    assert not isinstance(model, PeftModel)
    assert trained_parameters(model).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
def test_frozen_layers_are_not_trained(adapter, make_model):
    assert layers_trained(adapt(make_model(), adapter, Freeze(layers="0-1"))) - {None} == {2}


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
def test_frozen_modules_are_not_trained(adapter, make_model):
    trained = trained_parameters(adapt(make_model(), adapter, Freeze(modules=["mlp", "v_proj"])))
    assert trained
    assert not [name for name in trained if "mlp" in name or "v_proj" in name]


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_tied_weights_are_frozen_by_either_name(name, make_model):
    model = adapt(make_model("llama"), FULL, Freeze(modules=[name]))
    assert not model.get_input_embeddings().weight.requires_grad


def test_a_rank_above_the_smallest_matrix_is_refused(make_model):
    with pytest.raises(RecipeError, match="at most 16") as caught:
        adapt(make_model(), Adapter(rank=17), Freeze())
    assert caught.value.where == "adapter.rank"


@pytest.mark.parametrize("targets", [["q_prj"], ["q_proj", "v_prj"]])
def test_a_target_that_does_not_exist_is_named(targets, make_model):
    with pytest.raises(RecipeError, match=r"_prj(.|\n)*k_proj"):
        adapt(make_model(), Adapter(rank=4, targets=targets), Freeze())


def test_a_frozen_module_that_does_not_exist_is_named(make_model):
    with pytest.raises(RecipeError, match=r"attnetion(.|\n)*self_attn"):
        adapt(make_model(), LORA, Freeze(modules=["attnetion"]))


@pytest.mark.parametrize(
    ("adapter", "freeze"),
    [
        (LORA, Freeze(layers="0-2")),
        (LORA, Freeze(modules=["proj"])),
        (FULL, Freeze(modules=["model", "lm_head"])),
        (Adapter(rank=4, targets=["q_proj"]), Freeze(modules=["self_attn"])),
    ],
)
def test_freezing_everything_is_refused(adapter, freeze, make_model):
    with pytest.raises(RecipeError):
        adapt(make_model(), adapter, freeze)


@pytest.mark.parametrize(
    ("text", "layers"), [("", set()), ("0-2,5", {0, 1, 2, 5}), (" 3 , 1 - 2 ", {1, 2, 3}), ("4,", {4})]
)
def test_layers_are_numbers_and_ranges(text, layers):
    assert parse_layers(text, 6) == layers


@pytest.mark.parametrize("text", ["6", "2-1", "a", "-1", "0-6", "1.5", "0--1"])
def test_layers_that_do_not_exist_are_refused(text):
    with pytest.raises(RecipeError, match="from 0 to 5"):
        parse_layers(text, 6)


def test_the_table_of_what_is_trained_adds_up(architecture, make_model):
    model = adapt(make_model(architecture), LORA, Freeze(layers="0"))
    rows = trained_groups(model)
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in trained_parameters(model).values())
    assert "layers 1-2: self_attn.q_proj (lora)" in {row["group"] for row in rows}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("base_model.model.model.layers.12.mlp.up_proj.lora_A.default.weight", 12),
        ("transformer.h.3.attn.weight", 3),
        ("lm_head.weight", None),
    ],
)
def test_a_parameters_layer_is_read_from_its_name(name, layer):
    assert layer_of(name) == layer


def test_a_model_without_layers_is_refused():
    class Shapeless(nn.Module):
        class config:
            @staticmethod
            def get_text_config():
                return object()

    with pytest.raises(ValueError, match="num_hidden_layers"):
        adapt(Shapeless(), LORA, Freeze())


# With a score head ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
def test_a_score_head_is_always_trained_whole(adapter, architecture, make_classifier):
    model = adapt(make_classifier(architecture), adapter, Freeze(layers="0-1"))
    heads = [parameter for name, parameter in trained_parameters(model).items() if ".score." in f".{name}"]
    assert [parameter.shape for parameter in heads] == [(3, 32)]


def test_a_score_head_gets_no_adapter_and_its_narrowness_bounds_no_rank(make_classifier):
    model = adapt(make_classifier(), Adapter(rank=8), Freeze())
    assert model.active_peft_config.task_type == "SEQ_CLS"
    assert not [name for name, _ in model.named_parameters() if "score" in name and "lora" in name]


def test_the_copy_of_a_head_that_is_trained_is_no_parameter_of_its_own(make_classifier):
    plain = make_classifier()
    count = sum(parameter.numel() for parameter in plain.parameters())
    assert parameter_count(plain) == count
    assert parameter_count(adapt(plain, LORA, Freeze())) == count


def test_a_score_head_is_named_in_the_table_of_what_is_trained(make_classifier):
    groups = trained_groups(adapt(make_classifier(), LORA, Freeze()))
    assert groups[-1] == {"group": "score", "parameters": 96}
