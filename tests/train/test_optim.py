from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from burnish.errors import RecipeError
from burnish.model.depth import Pace
from burnish.train.optim import Optim, auto_batch_size, auto_learning_rate, rate_at


def test_loras_rate_is_ten_times_that_of_full_fine_tuning():
    assert auto_learning_rate(576, "lora", 100) == pytest.approx(10 * auto_learning_rate(576, "full", 100))


def test_loras_rate_is_fifteen_times_in_runs_under_a_hundred_steps():
    assert auto_learning_rate(576, "lora", 99) == pytest.approx(15 * auto_learning_rate(576, "full", 99))


def test_the_full_rate_is_five_millionths_of_ten_at_a_width_of_two_thousand_and_falls_with_it():
    assert auto_learning_rate(2000, "full", 500) == pytest.approx(5e-5)
    assert auto_learning_rate(4000, "full", 500) == pytest.approx(5e-5 * 2**-0.781)


@pytest.mark.parametrize(("rows", "batch"), [(1, 4), (64, 4), (320, 8), (1000, 16), (10_000, 64), (1_000_000, 64)])
def test_the_batch_grows_with_the_root_of_the_rows(rows, batch):
    assert auto_batch_size(rows) == batch


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.05), (2, 0.5), (100, 0.05), (100, 0.0), (37, 0.3)])
def test_the_rate_rises_to_its_peak_once_and_falls_from_there(total, warmup):
    rates = [rate_at(step, total, warmup) for step in range(total)]
    peak = rates.index(max(rates))
    assert max(rates) == 1
    assert all(rate > 0 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_the_rate_warms_up_in_equal_parts_and_ends_near_zero():
    rates = [rate_at(step, 100, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] < 0.001


@pytest.fixture
def parameters():
    torch.manual_seed(0)
    return {"matrix": nn.Parameter(torch.randn(3, 4)), "vector": nn.Parameter(torch.randn(4))}


def give_gradients(parameters, scale=1.0):
    for number, parameter in enumerate(parameters.values()):
        parameter.grad = scale * torch.linspace(-1, 1, parameter.numel()).view_as(parameter) + number


def test_vectors_do_not_decay_and_matrices_do(parameters):
    optim = Optim(parameters, learning_rate=0.1, total=10, warmup=0.0, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optim.step()
    torch.testing.assert_close(parameters["matrix"].data, before["matrix"] * (1 - 0.1 * 0.5))
    assert torch.equal(parameters["vector"].data, before["vector"])


def test_the_first_step_moves_each_weight_by_the_rate(parameters):
    optim = Optim({"vector": parameters["vector"]}, learning_rate=0.1, total=10, warmup=0.0)
    before = parameters["vector"].detach().clone()
    parameters["vector"].grad = torch.tensor([1.0, -2.0, 3.0, -4.0])
    optim.step()
    torch.testing.assert_close(before - parameters["vector"].data, 0.1 * torch.tensor([1.0, -1, 1, -1]))


def test_the_norm_is_told_before_clipping_and_gradients_after(parameters):
    optim = Optim(parameters, learning_rate=0.1, total=10, clip=0.5)
    give_gradients(parameters, scale=3.0)
    whole = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in parameters.values()))
    assert float(optim.gradient_norm()) == pytest.approx(whole)
    clipped = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in parameters.values()))
    assert clipped == pytest.approx(0.5, rel=1e-4)


def test_a_small_gradient_is_not_scaled_up(parameters):
    optim = Optim(parameters, learning_rate=0.1, total=10, clip=1e6)
    give_gradients(parameters)
    before = parameters["matrix"].grad.clone()
    optim.gradient_norm()
    assert torch.equal(parameters["matrix"].grad, before)


def test_an_optimiser_taken_up_from_its_state_steps_bit_for_bit_alike(parameters):
    settings = {"learning_rate": 0.1, "total": 10, "warmup": 0.3}
    first = Optim(parameters, **settings)
    for scale in (1.0, -2.0, 0.5):
        give_gradients(parameters, scale)
        first.step()
    copies = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    second = Optim(copies, **settings)
    second.load_state_tensors({name: value.clone() for name, value in first.state_tensors().items()}, first.steps)
    for optim, mine in ((first, parameters), (second, copies)):
        give_gradients(mine, 3.0)
        optim.step()
    assert second.rate == first.rate
    assert all(torch.equal(parameters[name], copies[name]) for name in parameters)


# Moments of eight bits -----------------------------------------------------------------------------------------------


@pytest.fixture
def wide():
    """Parameters of which two are large enough to have 8-bit moments."""
    torch.manual_seed(0)
    sides = {"one": (64, 96), "two": (96, 64), "vector": (96,)}
    return {name: nn.Parameter(torch.randn(*size)) for name, size in sides.items()}


def random_gradients(parameters, seed):
    random = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=random)


def copies_of(parameters):
    return {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}


def run_steps(optim, parameters, seeds):
    for seed in seeds:
        random_gradients(parameters, seed)
        optim.step()
        optim.zero_grad()


def furthest(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_moments_of_eight_bits_move_the_weights_nearly_as_those_of_thirty_two(wide):
    pytest.importorskip("bitsandbytes")
    other, settings = copies_of(wide), {"learning_rate": 0.01, "total": 40, "warmup": 0.0}
    run_steps(Optim(wide, **settings), wide, range(10))
    eight = Optim(other, **settings, kind="adamw8bit")
    run_steps(eight, other, range(10))
    assert 0 < furthest(wide, other) < 0.02  # of the 0.1 that ten steps may move a weight
    kinds = {name: value.dtype for name, value in eight.state_tensors().items()}
    assert (kinds["one/state1"], kinds["vector/state1"]) == (torch.uint8, torch.float32)


def test_eight_bits_taken_up_from_their_state_step_bit_for_bit_alike(wide):
    pytest.importorskip("bitsandbytes")
    settings = {"learning_rate": 0.01, "total": 40, "kind": "adamw8bit"}
    first = Optim(wide, **settings)
    run_steps(first, wide, range(3))
    other = copies_of(wide)
    second = Optim(other, **settings)
    second.load_state_tensors({name: value.clone() for name, value in first.state_tensors().items()}, first.steps)
    run_steps(first, wide, [7])
    run_steps(second, other, [7])
    assert all(torch.equal(wide[name], other[name]) for name in wide)


def test_moments_are_rounded_not_lost_where_a_run_goes_over_to_eight_bits(wide):
    pytest.importorskip("bitsandbytes")
    other, anew = copies_of(wide), copies_of(wide)
    settings = {"learning_rate": 0.01, "total": 40, "warmup": 0.0}
    exact, changed, fresh = (Optim(parameters, **settings) for parameters in (wide, other, anew))
    for optim, parameters in ((exact, wide), (changed, other), (fresh, anew)):
        run_steps(optim, parameters, range(5))
    changed.use("adamw8bit")
    fresh.load_state_tensors({}, fresh.steps)  # as if the moments had been lost
    for optim, parameters in ((exact, wide), (changed, other), (fresh, anew)):
        run_steps(optim, parameters, [9])
    assert changed.steps == exact.steps
    assert furthest(wide, other) < 0.3 * furthest(wide, anew)


def test_eight_bits_without_bitsandbytes_say_what_to_install(wide, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(RecipeError, match="pip install bitsandbytes"):
        Optim(wide, learning_rate=0.01, total=1, kind="adamw8bit")


# Updates within the backward pass ------------------------------------------------------------------------------------


def backward_of(optim, parameters, times=1):
    """A loss that depends on every parameter, walked back as a step of `times` micro-batches."""
    for number in range(times):
        loss = sum((parameter * (number + 1)).sin().sum() for parameter in parameters.values())
        with optim.around_backward(last=number == times - 1):
            loss.backward()


@pytest.mark.parametrize("times", [1, 3])
def test_updates_within_the_backward_pass_are_those_after_it(parameters, times):
    other, settings = copies_of(parameters), {"learning_rate": 0.1, "total": 10, "clip": 1e6}
    within, after = Optim(parameters, **settings, in_backward=True), Optim(other, **settings)
    for _ in range(3):
        for optim, mine in ((within, parameters), (after, other)):
            backward_of(optim, mine, times)
            norm = float(optim.gradient_norm())
            optim.step()
            optim.zero_grad()
            mine["norm"] = norm
        assert parameters.pop("norm") == pytest.approx(other.pop("norm"))
    assert all(torch.equal(parameters[name], other[name]) for name in parameters)


def test_no_gradient_is_left_after_a_backward_pass_with_updates(parameters):
    optim = Optim(parameters, learning_rate=0.1, total=10, in_backward=True)
    backward_of(optim, parameters, times=2)
    assert all(parameter.grad is None for parameter in parameters.values())
    backward = torch.ones((), requires_grad=True) * sum(parameter.sum() for parameter in parameters.values())
    backward.backward()  # outside of a step nothing is updated
    assert all(parameter.grad is not None for parameter in parameters.values())


def test_a_step_that_is_done_again_updates_each_parameter_once(parameters):
    once, twice = parameters, copies_of(parameters)
    for mine, times in ((once, 1), (twice, 2)):
        optim = Optim(mine, learning_rate=0.1, total=10, in_backward=True)
        for _ in range(times):
            backward_of(optim, mine)
        optim.step()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_each_gradient_is_clipped_by_itself_within_the_backward_pass(parameters):
    optim = Optim(parameters, learning_rate=0.1, total=10, in_backward=True, clip=0.5)
    seen = []
    optim._apply = lambda engine: seen.extend(float(p.grad.norm()) for g in engine.param_groups for p in g["params"])
    backward_of(optim, parameters)
    assert seen == pytest.approx([0.5, 0.5], rel=1e-3)


def test_moments_of_updates_within_the_backward_pass_are_kept(parameters):
    settings = {"learning_rate": 0.1, "total": 10, "in_backward": True}
    first = Optim(parameters, **settings)
    backward_of(first, parameters)
    first.step()
    other = copies_of(parameters)
    second = Optim(other, **settings)
    second.load_state_tensors({name: value.clone() for name, value in first.state_tensors().items()}, first.steps)
    for optim, mine in ((first, parameters), (second, other)):
        backward_of(optim, mine)
        optim.step()
    assert all(torch.equal(parameters[name], other[name]) for name in parameters)


def test_a_schedule_of_its_own_takes_the_place_of_warm_up_and_cosine():
    weights = {"w": torch.nn.Parameter(torch.ones(2, 2))}
    optim = Optim(weights, learning_rate=0.5, total=4, schedule=lambda step: 2.0**step)
    rates = []
    for _ in range(3):
        rates.append(optim.rate)
        weights["w"].grad = torch.ones(2, 2)
        optim.step()
    assert rates == [0.5, 1.0, 2.0]


# A pace for each parameter -------------------------------------------------------------------------------------------

PACES = {"one": Pace(0.5), "vector": Pace(0.25)}


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_share_of_the_rate_is_that_rate_for_that_parameter_alone(wide, in_backward):
    apart = copies_of(wide)
    loss = sum(parameter.square().sum() for parameter in wide.values())
    together = Optim(wide, learning_rate=0.1, total=10, warmup=0.0, clip=1e9, paces=PACES, in_backward=in_backward)
    with together.around_backward(last=True):
        loss.backward()
    together.step()
    for name, parameter in apart.items():
        rate = 0.1 * PACES.get(name, Pace()).share
        alone = Optim({name: parameter}, learning_rate=rate, total=10, warmup=0.0, clip=1e9)
        parameter.square().sum().backward()
        alone.step()
        torch.testing.assert_close(wide[name], parameter, rtol=1e-6, atol=1e-7)


def test_shares_of_the_rate_hold_for_moments_of_eight_bits(wide):
    pytest.importorskip("bitsandbytes")
    optim = Optim(wide, learning_rate=0.1, total=10, warmup=0.0, kind="adamw8bit", paces=PACES, weight_decay=0.0)
    before = copies_of(wide)
    for parameter in wide.values():
        parameter.grad = torch.ones_like(parameter)
    optim.step()
    moved = {name: float((before[name] - wide[name]).mean()) for name in wide}
    assert moved == pytest.approx({"one": 0.05, "two": 0.1, "vector": 0.025}, rel=0.01)


def test_recorded_rates_lie_each_in_a_place_of_its_own(wide):
    optim = Optim(wide, learning_rate=0.1, total=10, paces=PACES)
    optim.recorded = True
    groups = optim._engine(list(wide.values())).param_groups
    assert len({id(group["lr"]) for group in groups}) == len(groups) == 3


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_parameter_moves_from_its_first_step_on_and_wants_no_gradient_before(wide, in_backward):
    paces = {"one": Pace(start=2)}
    optim = Optim(wide, learning_rate=0.1, total=10, warmup=0.0, paces=paces, in_backward=in_backward)
    for step in range(4):
        before = copies_of(wide)
        with optim.around_backward(last=True):
            assert wide["one"].requires_grad == (step >= 2)
            sum(parameter.square().sum() for parameter in wide.values()).backward()
        assert wide["one"].requires_grad
        optim.step()
        optim.zero_grad()
        assert torch.equal(wide["one"], before["one"]) == (step < 2)
        assert not torch.equal(wide["two"], before["two"])


def test_where_parameters_wait_nothing_is_recorded(wide):
    assert Optim(wide, learning_rate=0.1, total=10, paces={"one": Pace(start=2)}, recorded=True).recorded is False


def test_an_optimiser_taken_up_before_a_parameter_begins_steps_bit_for_bit_alike(wide):
    other, settings = copies_of(wide), {"learning_rate": 0.01, "total": 10, "paces": {"one": Pace(0.5, start=3)}}

    def go(optim, parameters, steps):
        for _ in steps:
            with optim.around_backward(last=True):
                sum(parameter.sin().sum() for parameter in parameters.values()).backward()
            optim.step()
            optim.zero_grad()

    whole = Optim(wide, **settings)
    go(whole, wide, range(6))
    first = Optim(other, **settings)
    go(first, other, range(2))
    kept = {name: value.clone() for name, value in first.state_tensors().items()}
    assert not any(name.startswith("one/") for name in kept)
    second = Optim(other, **settings)
    second.load_state_tensors(kept, first.steps)
    go(second, other, range(4))
    assert all(torch.equal(wide[name], other[name]) for name in wide)
