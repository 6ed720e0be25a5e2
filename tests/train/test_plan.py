"""The plan of a run, and the settings that are chosen for it, on machines of known speed and memory."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from burnish.errors import RecipeError
from burnish.model.adapt import adapt
from burnish.model.load import empty_model
from burnish.recipe import make_recipe
from burnish.train import memory, speed
from burnish.train.memory import GIB, Settings
from burnish.train.plan import Workload, choose, make_plan, micro_candidates
from burnish.train.speed import Machine

LAYERS = 4
SIDES = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]  # of a layer's matrices
PARAMETERS = 49152 * 576 + LAYERS * (sum(a * b for a, b in SIDES) + 2 * 576) + 576
WORK = Workload(rows=1000, tokens=200_000, trained=50_000, longest=512, generated=2000, prompted=10_000)
SETTINGS = Settings(
    batch_size=16, micro_tokens=1024, epochs=3, steps=189, learning_rate=1e-4, precision="fp32", device="cpu"
)
CARD = replace(SETTINGS, micro_tokens=16384, precision="bf16", device="cuda", compile=True)
H100 = Machine(rate=798e12, plain=798e12, bandwidth=3.0e12)
FULL = {"method": "full"}
SMOLLM = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": LAYERS}
EIGHT = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
THIRTEEN = {"vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
LONG = Workload(rows=1000, tokens=2_000_000, trained=2_000_000, longest=2048, generated=0, prompted=0)


def config_of(sizes, heads, keys, tied=False):
    from transformers import LlamaConfig

    return LlamaConfig(num_attention_heads=heads, num_key_value_heads=keys, tie_word_embeddings=tied, **sizes)


@pytest.fixture
def machine(monkeypatch):
    """A function that sets the speed and the memory of this machine."""

    def become(found, available):
        monkeypatch.setattr(speed, "measure", lambda *args: found)
        monkeypatch.setattr(memory, "memory_available", lambda device: int(available))

    return become


def recipe_of(sections):
    return make_recipe({"data": {"train": "a.jsonl"}} | sections)


@pytest.fixture
def planned(machine):
    """A function from parts of a recipe to the plan of a small model on a small machine."""
    config = config_of(SMOLLM, 9, 3, tied=True)

    def of(*, available=64 * GIB, work=WORK, settings=SETTINGS, **sections):
        machine(Machine(1e11, 1e11, 1e10), available)
        recipe = recipe_of(sections)
        model = adapt(empty_model(config), recipe.adapter, recipe.freeze)
        return make_plan(recipe, config, model, work, settings)

    return of


@pytest.fixture
def chosen(machine):
    """A function from a size, a memory and parts of a recipe to the settings that are chosen on an H100 of that memory."""

    def of(gib, *, sizes=EIGHT, heads=32, keys=8, work=LONG, settings=CARD, **sections):
        machine(H100, gib * GIB)
        recipe, config = recipe_of(sections), config_of(sizes, heads, keys)
        model = adapt(empty_model(config), recipe.adapter, recipe.freeze)
        return choose(recipe.train, config, model, work, settings)

    return of


@pytest.fixture
def planned_for():
    """A function from settings to the plan of 8B on the machine that was set last."""

    def of(settings):
        recipe, config = recipe_of({}), config_of(EIGHT, 32, 8)
        model = adapt(empty_model(config), recipe.adapter, recipe.freeze)
        return make_plan(recipe, config, model, LONG, settings)

    return of


def sizes_of(settings):
    return settings.recompute, settings.micro_tokens


# The plan ------------------------------------------------------------------------------------------------------------


def test_parameters_are_counted_without_their_adapter(planned):
    assert planned().parameters == planned(adapter=FULL).parameters == PARAMETERS


def test_an_adapter_trains_its_two_matrices_for_each_linear_layer(planned):
    assert planned(adapter={"rank": 8}).trained_parameters == LAYERS * 8 * sum(a + b for a, b in SIDES)


def test_memory_does_not_depend_on_the_number_of_rows(planned):
    assert planned(work=replace(WORK, rows=10**6, tokens=2 * 10**8)).memory == planned().memory


def test_memory_follows_the_largest_micro_batch_that_there_will_be(planned):
    few, many = (
        planned(work=replace(WORK, largest={1024: (tokens, 1)})).memory["activations"] for tokens in (512, 1024)
    )
    assert many == 2 * few


def test_time_grows_with_the_tokens_and_shrinks_with_frozen_layers(planned):
    assert planned(work=replace(WORK, tokens=400_000, trained=100_000)).seconds > 1.5 * planned().seconds
    assert planned(freeze={"layers": "0-2"}).seconds < planned().seconds


def test_a_plan_fits_where_there_is_room_for_it(planned):
    needed = planned().memory["total"]
    assert planned(available=1.2 * needed).fits
    assert planned(available=1.2 * needed).would_fit == ""
    assert not planned(available=needed).fits


def test_a_plan_that_is_over_the_limit_of_the_recipe_does_not_fit(planned):
    limit = planned().memory["total"] / GIB
    assert planned(train={"memory_limit": 1.1 * limit}).fits
    assert not planned(train={"memory_limit": 0.9 * limit}).fits


def test_a_plan_that_does_not_fit_says_that_recomputation_would(planned):
    large = replace(SETTINGS, micro_tokens=16384)
    needed = planned(settings=large).memory
    advice = planned(settings=large, available=needed["total"] - 0.5 * needed["activations"]).would_fit
    assert advice == "--set train.recompute=all"


def test_a_plan_that_does_not_fit_says_which_micro_batch_would(planned):
    large = replace(SETTINGS, micro_tokens=16384, recompute="all")
    needed = planned(settings=large).memory
    available = needed["total"] - 0.5 * needed["activations"]
    advice = planned(settings=large, available=available).would_fit
    micro, length = map(
        int, re.fullmatch(r"--set train\.micro_tokens=(\d+) --set train\.max_length=(\d+)", advice).groups()
    )
    smaller = {
        "settings": replace(large, micro_tokens=micro),
        "work": replace(WORK, longest=min(WORK.longest, length)),
    }
    assert planned(available=available, **smaller).fits


def test_full_fine_tuning_that_does_not_fit_at_all_is_told_of_lora(planned):
    assert planned(available=1 * GIB, adapter=FULL).would_fit == "--set adapter.method=lora"


def test_where_nothing_would_fit_it_says_so(planned):
    assert "more memory" in planned(available=0.5 * GIB).would_fit


def test_a_plan_can_be_written_as_json(planned):
    found = planned().as_json()
    assert (found["steps"], found["recompute"], found["optimizer"]) == (189, "none", "adamw")


def test_the_text_of_a_plan_says_what_was_measured_and_how_long_it_takes(planned):
    text = planned().as_text()
    assert "0.1 TFLOP/s and 10 GB/s" in text
    assert "nothing recomputed" in text
    assert "time" in text


def test_three_epochs_of_52000_short_rows_take_thirteen_billion_parameters_half_an_hour(machine):
    machine(H100, 79 * GIB)
    work = Workload(rows=52_000, tokens=52_000 * 110, trained=52_000 * 60, longest=512, generated=0, prompted=0)
    recipe, config = recipe_of({}), config_of(THIRTEEN, 40, 40)
    model = adapt(empty_model(config), recipe.adapter, recipe.freeze)
    settings = replace(CARD, batch_size=64, steps=3 * 52_000 // 64)
    found = make_plan(recipe, config, model, work, choose(recipe.train, config, model, work, settings))
    assert found.fits
    assert 0.3 < found.seconds / 3600 < 1
    assert "min" in found.as_text()


# What is chosen ------------------------------------------------------------------------------------------------------


def test_nothing_is_computed_again_where_the_memory_allows_it(chosen):
    assert sizes_of(chosen(79)) == ("none", 8192)  # smaller micro-batches cost less than recomputation


def test_thirteen_billion_parameters_need_no_recomputation_either(chosen):
    assert chosen(79, sizes=THIRTEEN, heads=40, keys=40).recompute == "none"


def test_less_memory_makes_it_slower_until_activations_are_computed_again(chosen, planned_for):
    settings = [chosen(gib) for gib in (79, 40, 24, 20)]
    speeds = [planned_for(one).tokens_per_second for one in settings]
    assert speeds == sorted(speeds, reverse=True)
    assert settings[-1].recompute != "none"


def test_whatever_is_chosen_fits(chosen, planned_for):
    assert all(planned_for(chosen(gib)).fits for gib in (79, 40, 24, 20))


def test_a_limit_of_the_recipe_is_like_a_smaller_card(chosen):
    assert sizes_of(chosen(79, train={"memory_limit": 18 / 0.97 * 0.92})) == sizes_of(chosen(18))


def test_what_the_recipe_names_is_not_chosen(chosen):
    settings = chosen(79, train={"recompute": "mlp", "micro_tokens": 4096}, settings=replace(CARD, micro_tokens=4096))
    assert sizes_of(settings) == ("mlp", 4096)


@pytest.mark.parametrize("wanted", [True, False])
def test_recordings_are_made_or_not_as_the_recipe_says(chosen, wanted):
    assert chosen(79, train={"graph": wanted}).graph == wanted


@pytest.mark.parametrize("compiled", [True, False])
def test_the_short_rows_of_a_small_model_are_recorded_all_at_once(chosen, compiled):
    work = Workload(rows=10_000, tokens=380_000, trained=10_000, longest=110, generated=0, prompted=0)
    settings = replace(CARD, batch_size=64, compile=compiled)
    sizes = {**SMOLLM, "num_hidden_layers": 30}
    found = chosen(79, sizes=sizes, heads=9, keys=3, work=work, settings=settings, adapter=FULL)
    assert found.graph
    assert found.micro_tokens > 64 * 38


def test_nothing_is_recorded_while_layers_wait_for_their_turn(chosen):
    assert chosen(79, train={"graph": True, "gradual_unfreezing": 0.5}).graph is False


def test_where_nothing_fits_the_leanest_is_taken(chosen):
    assert sizes_of(chosen(4)) == ("offload", 2048)


def test_full_fine_tuning_takes_a_leaner_optimiser_only_where_memory_asks_for_it(chosen, monkeypatch):
    monkeypatch.setattr("burnish.train.plan.has_bitsandbytes", lambda: True)
    one = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    whole = {"sizes": one, "adapter": FULL, "work": replace(LONG, step=4096, longest=512)}
    kinds = [(found.optimizer, found.in_backward) for gib in (79, 24, 21, 16) for found in [chosen(gib, **whole)]]
    assert kinds == [("adamw", False), ("adamw", True), ("adamw8bit", False), ("adamw8bit", True)]


def test_steps_of_several_micro_batches_are_not_updated_within_the_backward_pass(chosen, monkeypatch):
    monkeypatch.setattr("burnish.train.plan.has_bitsandbytes", lambda: True)
    found = chosen(30, adapter=FULL, sizes=SMOLLM | {"num_hidden_layers": 32}, heads=9, keys=3)
    assert not found.in_backward


def test_without_bitsandbytes_moments_stay_as_they_are(chosen, monkeypatch):
    monkeypatch.setattr("burnish.train.plan.has_bitsandbytes", lambda: False)
    assert chosen(14, adapter=FULL).optimizer == "adamw"
    with pytest.raises(RecipeError, match="needs bitsandbytes"):
        chosen(79, train={"optimizer": "adamw8bit"})


def test_micro_batches_halve_as_long_as_the_longest_row_fits_in():
    assert micro_candidates("auto", 16384, 2000) == [16384, 8192, 4096, 2048]
    assert micro_candidates("auto", 1024, 10) == [1024, 512, 256]
    assert micro_candidates(300, 300, 2000) == [300]


def test_a_step_splits_where_its_tokens_do_not_go_through_at_once():
    assert [replace(WORK, step=step).splits(1024) for step in (0, 1024, 1025)] == [True, False, True]
