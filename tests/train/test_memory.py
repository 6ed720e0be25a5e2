"""What a step needs: the parts, what each of them follows, and what a machine is asked for before it is used."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from burnish.errors import RecipeError
from burnish.model.adapt import adapt
from burnish.model.head import LOGITS
from burnish.model.load import empty_model
from burnish.recipe import Adapter, Freeze
from burnish.train import memory
from burnish.train.memory import GIB, RECOMPUTE, Settings, micro_tokens_of_choice, precision_of_choice, predict
from burnish.train.shape import shape_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CARD = Settings(
    batch_size=16,
    micro_tokens=8192,
    epochs=1,
    steps=100,
    learning_rate=1e-4,
    precision="bf16",
    device="cuda",
    compile=True,
)
PLAIN = replace(CARD, precision="fp32", device="cpu", compile=False)
EIGHT = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
ONE = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
SMALL = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4}


FULL = Adapter(method="full")


def make_shape(sizes=SMALL, *, adapter=None, freeze=None, heads=4, keys=2, tied=False):
    from transformers import LlamaConfig

    config = LlamaConfig(num_attention_heads=heads, num_key_value_heads=keys, tie_word_embeddings=tied, **sizes)
    return shape_of(config, adapt(empty_model(config), adapter or Adapter(rank=16), freeze or Freeze()))


@pytest.fixture(scope="module")
def eight():
    return make_shape(EIGHT, heads=32, keys=8)


@pytest.fixture(scope="module")
def small():
    return make_shape()


# Against what was measured on one H100 -------------------------------------------------------------------------------


def test_the_peak_of_8b_without_recomputation_is_the_measured_one(eight):
    assert predict(eight, CARD, 8192, split=True)["total"] / GIB == pytest.approx(49.8, rel=0.05)


def test_the_peak_of_1b_without_recomputation_is_the_measured_one():
    shape = make_shape(ONE, heads=32, keys=8, tied=True)
    assert predict(shape, CARD, 16384, split=True)["total"] / GIB == pytest.approx(21.6, rel=0.05)


def test_the_peak_of_8b_with_recomputation_is_the_measured_one(eight):
    assert predict(eight, replace(CARD, recompute="mlp"), 8192, split=True)["total"] / GIB == pytest.approx(
        24.5, rel=0.05
    )


@pytest.mark.parametrize(
    ("precision", "level", "tokens", "measured"),
    [("fp8", "elementwise", 2048, 15.2), ("nf4", "none", 2048, 15.4), ("nf4", "elementwise", 4096, 18.3)],
)
def test_the_peaks_of_8b_in_few_tokens_at_once_are_the_measured_ones(eight, precision, level, tokens, measured):
    total = predict(eight, replace(CARD, precision=precision, recompute=level), tokens, split=True)["total"]
    assert total / GIB == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "tokens", "split", "measured"),
    [
        ({}, 16384, False, 42.24),
        ({"precision": "fp8"}, 16384, False, 41.33),
        ({"optimizer": "adamw8bit"}, 4096, False, 16.56),
        ({"in_backward": True}, 4096, False, 23.43),
        ({"optimizer": "adamw8bit", "in_backward": True}, 4096, False, 16.56),
        ({"recompute": "offload"}, 4096, False, 19.52),
        ({"compile": False}, 4096, True, 31.03),
    ],
    ids=[
        "plain",
        "fp8",
        "8-bit moments",
        "updates in the backward pass",
        "both",
        "offload",
        "not compiled, two at once",
    ],
)
def test_the_peaks_of_1b_with_all_weights_are_the_measured_ones(changes, tokens, split, measured):
    shape = make_shape(ONE, adapter=FULL, heads=32, keys=8, tied=True)
    total = predict(shape, replace(CARD, **changes), tokens, split=split)["total"]
    assert total / GIB == pytest.approx(measured, rel=0.03)


# The shape -----------------------------------------------------------------------------------------------------------


def test_a_model_with_experts_is_counted_by_those_that_a_token_meets():
    from transformers import Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=160, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    shape = shape_of(config, adapt(empty_model(config), Adapter(rank=4), Freeze()))
    assert (shape.mlp, shape.copies) == (2 * 32, 2)
    attention, router, expert = 64 * 64 * 2 + 64 * 32 * 2, 64 * 8, 3 * 64 * 32
    assert shape.met == 2 * (attention + router + 2 * expert)


def test_the_shape_counts_what_is_frozen_and_what_is_trained():
    lora, full = make_shape(tied=True), make_shape(adapter=FULL, tied=True)
    assert full.trained == full.parameters == lora.parameters == lora.frozen
    assert (full.frozen, full.matrices, full.beside, full.head_trained) == (0, 0, False, True)
    assert (lora.beside, lora.head_trained) == (True, False)
    assert lora.ranks == 7 * 16


@pytest.mark.parametrize(
    ("method", "outside"), [("ia3", False), ("layernorm", True), ("vera", False), ("prompt", True), ("prefix", True)]
)
def test_any_adapter_stands_beside_a_model_that_is_frozen_whole(method, outside):
    shape = make_shape(adapter=Adapter(method=method))
    assert (shape.beside, shape.head_trained, shape.walked) == (True, False, 1.0)
    assert shape.frozen == shape.parameters
    assert 0 < shape.trained < 0.1 * shape.frozen
    assert (shape.outside > 0) == outside


def test_frozen_layers_at_the_bottom_are_not_walked():
    assert make_shape(freeze=Freeze(layers="0-2")).walked == 0.25
    assert make_shape(adapter=FULL, freeze=Freeze(layers="0-2")).walked == 1.0  # down to the embeddings
    assert make_shape(adapter=FULL, freeze=Freeze(layers="0-2", modules=["embed_tokens"])).walked == 0.25


# The parts -----------------------------------------------------------------------------------------------------------


def test_memory_is_the_sum_of_its_parts(small):
    parts = predict(small, CARD, 512, split=True)
    assert parts.pop("total") == sum(parts.values())


def test_graphs_hold_memory_in_reserve_beside_the_peak(small):
    plain, recorded = (predict(small, replace(CARD, graph=graph), 512, split=True) for graph in (False, True))
    assert plain["total"] == memory.needed(plain)
    assert recorded["total"] == plain["total"] + memory.RECORDED_BYTES  # workspaces of their own
    assert memory.needed(recorded) == recorded["total"] + recorded["activations"]


def test_the_recorded_peak_of_1b_in_fp8_is_the_measured_one():
    shape = make_shape(ONE, heads=32, keys=8, tied=True)
    recorded = predict(shape, replace(CARD, precision="fp8", graph=True), 16384, split=False)
    assert recorded["total"] / GIB == pytest.approx(21.39, rel=0.05)


def test_full_fine_tuning_needs_sixteen_bytes_a_parameter():
    shape = make_shape(adapter=FULL)
    parts = predict(shape, PLAIN, 512, split=True)
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == 16 * shape.parameters


def test_moments_of_eight_bits_take_a_quarter():
    shape = make_shape(adapter=FULL)
    parts = predict(shape, replace(CARD, optimizer="adamw8bit"), 512, split=True)
    assert parts["optimizer"] == 2 * shape.parameters


def test_an_update_within_the_backward_pass_keeps_few_gradients():
    shape = make_shape(ONE, adapter=FULL, heads=32, keys=8)
    with_all, with_few = (predict(shape, replace(CARD, in_backward=now), 64, split=False) for now in (False, True))
    assert with_all["gradients"] == 4 * shape.trained
    assert with_few["gradients"] == 4 * shape.outside


def test_gradients_of_one_micro_batch_grow_into_the_room_of_its_activations():
    shape = make_shape(adapter=FULL)
    many, one = (predict(shape, CARD, 512, split=split) for split in (True, False))
    assert one["total"] < many["total"]
    assert one["activations"] + one["gradients"] >= many["gradients"]


def test_what_one_layer_takes_is_that_of_the_layers_that_are_walked_back():
    frozen = Freeze(layers="0-2", modules=["embed_tokens", "lm_head", "norm"])
    shape = make_shape(adapter=FULL, freeze=frozen)
    whole = make_shape(adapter=FULL)
    norms = 2 * shape.hidden
    assert memory.trained_in_layer(shape) == memory.trained_in_layer(whole) - norms
    (_, left, _) = memory.moments_of(shape, CARD, 1000, 512, 512, split=False)[3]
    assert left == 1000


def test_an_update_within_the_backward_pass_lets_the_gradient_of_a_head_of_its_own_go():
    now = replace(CARD, in_backward=True)
    own, shared = (make_shape(adapter=FULL, tied=tied) for tied in (False, True))
    first = [memory.moments_of(shape, now, 0, 512, 512, split=False)[2][0] for shape in (own, shared)]
    assert first[1] - first[0] == 4 * own.vocabulary * own.hidden


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_head_and_embeddings_have_a_second_gradient_for_a_moment(tied):
    shape = make_shape(adapter=FULL, tied=tied)
    assert shape.tied == tied
    last = memory.moments_of(shape, CARD, 0, 512, 512, split=True)[-1]
    assert last == (4 * (shape.trained + (shape.vocabulary * shape.hidden if tied else 0)), 0, 0)


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("bf16", 2), ("fp8", 1), ("nf4", 0.5)])
def test_the_frozen_matrices_are_as_small_as_they_are_stored(eight, precision, bytes_each):
    weights = memory.weight_bytes(eight, replace(CARD, precision=precision))
    beside = (eight.frozen - eight.matrices) * (4 if precision == "fp32" else 2) + eight.trained * 6
    assert (weights - beside) / eight.matrices == pytest.approx(bytes_each, rel=0.04)


def test_without_a_compiler_a_layer_is_kept_or_computed_again_as_a_whole(eight):
    kept = {level: memory.kept_bytes(eight, replace(CARD, compile=False, recompute=level)) for level in RECOMPUTE}
    assert (kept["elementwise"], kept["mlp"]) == (kept["none"], kept["all"])
    assert memory.levels(replace(CARD, compile=False)) == ("none", "all", "offload")
    assert memory.levels(PLAIN) == ("none", "all")


def test_logits_that_are_bent_are_counted_in_float32_too():
    straight = make_shape()
    plain, bent = (memory.head_bytes(shape, CARD, 10_000) for shape in (straight, replace(straight, bent=True)))
    assert not straight.bent
    assert plain == 10_000 * 1000 * 2
    assert bent - plain == 10_000 * 1000 * 20


def test_a_head_that_is_trained_keeps_its_slopes_while_they_are_few():
    shape = make_shape(adapter=FULL)
    few, many = (memory.head_bytes(shape, CARD, tokens) for tokens in (10_000, 10_000_000))
    assert few == shape.vocabulary * shape.hidden * 2 + 10_000 * 1000 * 2
    assert many - 2 * LOGITS["cuda"] == shape.vocabulary * shape.hidden * 2


def test_each_level_of_recomputation_keeps_less(eight):
    totals = [predict(eight, replace(CARD, recompute=level), 8192, split=True)["total"] for level in RECOMPUTE]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(RECOMPUTE)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"shape": {"adapter": Adapter(rank=32)}}, {}),
        ({}, {"shape": {"freeze": Freeze(layers="0-1")}}),
        ({"tokens": 65536}, {}),
        ({"settings": {"precision": "fp32"}}, {}),
        ({"settings": {"compile": False}}, {}),
    ],
    ids=["rank", "frozen layers", "tokens", "fp32", "not compiled"],
)
def test_memory_follows_what_it_depends_on(more, less):
    def total(shape=None, settings=None, tokens=32768):
        return predict(make_shape(**shape or {}), replace(CARD, **settings or {}), tokens, split=True)["total"]

    assert total(**more) > total(**less)


# What a machine can do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "device", "length", "tokens"),
    [(512, CPU, 2048, 512), ("auto", CPU, 64, 1024), ("auto", CUDA, 512, 16384), ("auto", CUDA, 32768, 32768)],
)
def test_micro_batches_are_as_asked_or_as_the_hardware_likes(wanted, device, length, tokens):
    assert micro_tokens_of_choice(wanted, device, length) == tokens


def test_a_precision_that_is_asked_for_is_given():
    assert [precision_of_choice(wanted, CPU) for wanted in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    ("capable", "chosen"),
    [({"avx512_bf16": True}, "bf16"), ({"bf16": True}, "bf16"), ({"avx512_bw": True, "avx512_bf16": False}, "fp32")],
)
def test_auto_is_bf16_only_where_the_processor_multiplies_it(monkeypatch, capable, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert precision_of_choice("auto", CPU) == chosen


def test_fp8_is_refused_where_there_is_no_card():
    with pytest.raises(RecipeError, match="multiplies no fp8") as caught:
        precision_of_choice("fp8", CPU)
    assert "8.9" in caught.value.expected


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 9), False), ((9, 0), False)])
def test_fp8_wants_a_card_that_multiplies_it(monkeypatch, capability, refused):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    if refused:
        with pytest.raises(RecipeError, match="A card multiplies no fp8"):
            precision_of_choice("fp8", CUDA)
    else:
        assert precision_of_choice("fp8", CUDA) == "fp8"


def test_nf4_is_refused_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr(memory, "has_bitsandbytes", lambda: False)
    with pytest.raises(RecipeError, match="needs bitsandbytes") as caught:
        precision_of_choice("nf4", CPU)
    assert "pip install bitsandbytes" in caught.value.hint


def test_weights_that_are_trained_are_not_stored_small(monkeypatch):
    monkeypatch.setattr(memory, "has_bitsandbytes", lambda: True)
    with pytest.raises(RecipeError, match="cannot be trained"):
        precision_of_choice("nf4", CPU, "full")


def test_products_of_trained_weights_are_rounded_where_a_card_does_it(monkeypatch):
    monkeypatch.setattr(memory, "multiplies", lambda device: True)
    assert precision_of_choice("fp8", CUDA, "full") == "fp8"
    with pytest.raises(RecipeError, match="cannot be trained"):
        precision_of_choice("fp8", CUDA, "head")


def test_some_memory_is_available_here():
    assert memory.memory_available(CPU) > 0


def test_the_limit_of_one_run_is_not_that_of_the_next(monkeypatch):
    shares = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    for limit in (20, None, 100):
        memory.hold_to(limit, CUDA)
    assert shares == [0.25, 1.0, 1.0]


def test_a_limit_holds_where_there_is_more(monkeypatch):
    monkeypatch.setattr(memory, "memory_available", lambda device: 80 * GIB)
    assert memory.room(CUDA, 18) < 18 * GIB < memory.room(CUDA, None) < 80 * GIB
