from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from burnish.model.adapt import adapt
from burnish.model.load import empty_model
from burnish.recipe import Recipe, make_recipe
from burnish.train import memory
from burnish.train.memory import GIB, Settings, Workload, make_plan, micro_tokens_of_choice, precision_of_choice

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAYERS = 4
SIDES = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]  # of a layer's matrices
PARAMETERS = 49152 * 576 + LAYERS * (sum(a * b for a, b in SIDES) + 2 * 576) + 576
WORK = Workload(rows=1000, tokens=200_000, trained=50_000, longest=512, generated=2000, prompted=10_000)
SETTINGS = Settings(
    batch_size=16, micro_tokens=1024, epochs=3, steps=189, learning_rate=1e-4, precision="fp32", device="cpu"
)


@pytest.fixture(scope="module")
def config():
    """The shape of SmolLM2-135M, with four of its thirty layers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )


@pytest.fixture
def plan(config, monkeypatch):
    """A function from parts of a recipe to a plan, on a machine of known speed and memory."""
    monkeypatch.setattr(memory, "measured_rate", lambda *args: 1e11)

    def of(*, available=64 * GIB, work=WORK, settings=SETTINGS, **sections):
        monkeypatch.setattr(memory, "memory_available", lambda device: int(available))
        recipe: Recipe = make_recipe({"data": {"train": "a.jsonl"}} | sections)
        shape = adapt(empty_model(config), recipe.adapter, recipe.freeze)
        return make_plan(recipe, config, shape, work, settings)

    return of


FULL = {"method": "full"}


def test_parameters_are_counted_without_their_adapter(plan):
    assert plan().parameters == plan(adapter=FULL).parameters == PARAMETERS


def test_an_adapter_trains_its_two_matrices_for_each_linear_layer(plan):
    assert plan(adapter={"rank": 8}).trained_parameters == LAYERS * 8 * sum(a + b for a, b in SIDES)


def test_full_fine_tuning_needs_sixteen_bytes_a_parameter(plan):
    parts = plan(adapter=FULL).memory
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == 16 * PARAMETERS


def test_memory_is_the_sum_of_its_parts(plan):
    parts = dict(plan().memory)
    assert parts.pop("total") == sum(parts.values())


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"adapter": FULL}, {}),
        ({}, {"adapter": {"rank": 4}}),
        ({}, {"freeze": {"layers": "0-1"}}),
        ({"settings": replace(SETTINGS, micro_tokens=4096)}, {}),
        ({}, {"settings": replace(SETTINGS, precision="bf16")}),
        ({"work": replace(WORK, longest=8192)}, {}),
    ],
    ids=["full", "rank", "frozen layers", "micro-batch", "bf16", "longest row"],
)
def test_memory_follows_what_it_depends_on(plan, more, less):
    assert plan(**more).memory["total"] > plan(**less).memory["total"]


def test_memory_does_not_depend_on_the_number_of_rows(plan):
    assert plan(work=replace(WORK, rows=10**6, tokens=2 * 10**8)).memory == plan().memory


def test_time_grows_with_the_tokens_and_shrinks_with_frozen_layers(plan):
    assert plan(work=replace(WORK, tokens=400_000, trained=100_000)).seconds > 1.5 * plan().seconds
    assert plan(freeze={"layers": "0-2"}).seconds < plan().seconds


def test_a_plan_fits_where_there_is_room_for_it(plan):
    needed = plan().memory["total"]
    assert plan(available=1.2 * needed).fits
    assert plan(available=1.2 * needed).would_fit == ""
    assert not plan(available=needed).fits


def test_a_plan_that_does_not_fit_says_which_micro_batch_would(plan):
    large = replace(SETTINGS, micro_tokens=16384)
    needed = plan(settings=large).memory
    available = needed["total"] - 0.5 * needed["activations"]
    advice = plan(settings=large, available=available).would_fit
    micro, length = map(
        int, re.fullmatch(r"--set train\.micro_tokens=(\d+) --set train\.max_length=(\d+)", advice).groups()
    )
    smaller = {
        "settings": replace(SETTINGS, micro_tokens=micro),
        "work": replace(WORK, longest=min(WORK.longest, length)),
    }
    assert plan(available=available, **smaller).fits


def test_full_fine_tuning_that_does_not_fit_at_all_is_told_of_lora(plan):
    assert plan(available=1 * GIB, adapter=FULL).would_fit == "--set adapter.method=lora"


def test_where_nothing_would_fit_it_says_so(plan):
    assert "more memory" in plan(available=0.5 * GIB).would_fit


def test_a_plan_can_be_written_as_json(plan):
    assert plan().as_json()["steps"] == 189


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


def test_some_memory_is_available_here():
    assert memory.memory_available(CPU) > 0


def test_the_measured_rate_is_a_rate():
    assert memory.measured_rate(CPU, "fp32", seconds=0.01) > 1e8
