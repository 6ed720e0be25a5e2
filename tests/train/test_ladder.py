"""What happens when the memory is not enough: the rungs, and that a step which is done again loses and repeats no row."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from burnish.core import Seq
from burnish.data.feed import Feed
from burnish.errors import TrainingError
from burnish.model.net import Net
from burnish.objectives import make_objective
from burnish.train import ladder as module
from burnish.train.ladder import Ladder, is_out_of_memory, next_rung
from burnish.train.loop import fit
from burnish.train.memory import Settings
from burnish.train.optim import Optim

SETTINGS = Settings(
    batch_size=8, micro_tokens=256, epochs=2, steps=4, learning_rate=0.01, precision="fp32", device="cpu"
)
CARD = replace(SETTINGS, device="cuda", precision="bf16", micro_tokens=8192, compile=True)
CPU_SAYS = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"
ERRORS = {"cuda": torch.OutOfMemoryError("CUDA out of memory"), "cpu": RuntimeError(CPU_SAYS), "python": MemoryError()}


@pytest.fixture
def levels(monkeypatch):
    """What the net was told to compute again: levels in order."""
    told = []
    monkeypatch.setattr(module, "accelerate", lambda net, *, compile, recompute: told.append(recompute))
    return told


@pytest.fixture
def with_bitsandbytes(monkeypatch):
    monkeypatch.setattr(module, "has_bitsandbytes", lambda: True)


def groups_of(count):
    return [
        [Seq([(7 * number + place) % 250 for place in range(6 + number)], [1.0] * (6 + number), where=f"r:{number}")]
        for number in range(count)
    ]


class Narrow:
    """An objective that runs out of memory where a micro-batch has more than `most` tokens, after `calls` that fitted."""

    def __init__(self, most, error, calls=0):
        self.inner, self.most, self.error, self.calls = make_objective("sft"), most, error, calls
        self.rows, self.needs, self.reads, self.atom = (
            getattr(self.inner, name) for name in ("rows", "needs", "reads", "atom")
        )

    def count(self, batch):
        return self.inner.count(batch)

    def loss(self, outputs, batch):
        self.calls -= 1
        if self.calls < 0 and batch.real_tokens > self.most:
            raise self.error
        return self.inner.loss(outputs, batch)


class Watch:
    def __init__(self):
        self.steps = []

    def after(self, step):
        self.steps.append(step)


def train(make_model, objective, *, settings=SETTINGS, said=None):
    """Two epochs of sixteen rows: (net, watch, ladder, optimiser)."""
    net = Net(make_model())
    feed = Feed(groups_of(16), task="main", batch_size=8, epochs=2, row_tokens=64, micro_tokens=256, seed=0)
    optim = Optim(
        dict(net.named_parameters()), learning_rate=1e-4, total=4
    )  # Adam makes much of gradients that are nothing but rounding
    ladder = Ladder(net, settings, feed, low_rank=False, optim=optim, say=[].append if said is None else said.append)
    watch = Watch()
    fit(net, {"main": (objective, 1.0)}, feed, optim, [watch], ladder)
    return net, watch, ladder, optim


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("calls", [0, 2], ids=["in the first step", "in a later step"])
def test_a_run_that_ran_out_of_memory_ends_with_the_same_weights(make_model, levels, error, calls):
    whole, seen_whole, _, _ = train(make_model, make_objective("sft"))
    again, seen, ladder, _ = train(make_model, Narrow(70, error, calls))
    assert ladder.taken
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    losses = [[step.loss for step in watch.steps] for watch in (seen_whole, seen)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_every_row_is_seen_once_an_epoch_and_the_effective_batch_stays(make_model, levels):
    _, watch, _, _ = train(make_model, Narrow(70, MemoryError(), calls=1))
    assert [len(step.where) for step in watch.steps] == [8, 8, 8, 8]
    for epoch in (watch.steps[:2], watch.steps[2:]):
        assert set(Counter(place for step in epoch for place in step.where).values()) == {1}


def test_what_was_given_up_is_told_with_what_to_type(make_model, levels):
    said = []
    _, _, ladder, _ = train(make_model, Narrow(70, MemoryError(), calls=1), said=said)
    assert ladder.taken[0].startswith("step 2: ")
    assert "(train.micro_tokens=" in ladder.taken[0]
    assert len(said) == len(ladder.taken)
    assert levels == []  # smaller micro-batches were enough


def test_after_micro_batches_of_one_row_activations_are_computed_again(make_model, levels):
    with pytest.raises(TrainingError, match="memory is not enough") as caught:
        train(make_model, Narrow(0, MemoryError()))
    assert levels == ["all"]
    assert "train.micro_tokens=" in caught.value.expected
    assert caught.value.where == "step 1"


def test_other_errors_are_not_caught(make_model, levels):
    with pytest.raises(RuntimeError, match="shapes"):
        train(make_model, Narrow(0, RuntimeError("shapes differ")))


def test_without_a_ladder_the_error_is_as_it_was(make_model):
    net = Net(make_model())
    feed = Feed(groups_of(8), task="main", batch_size=8, epochs=1, row_tokens=64, micro_tokens=256, seed=0)
    optim = Optim(dict(net.named_parameters()), learning_rate=0.01, total=1)
    with pytest.raises(MemoryError):
        fit(net, {"main": (Narrow(0, MemoryError()), 1.0)}, feed, optim, [])


def test_a_ladder_goes_back_to_the_rung_that_was_reached(make_model, levels):
    _, _, reached, _ = train(make_model, Narrow(70, MemoryError()))
    fresh = Ladder(reached.net, SETTINGS, Feed(groups_of(4), task="main", batch_size=4, epochs=1, row_tokens=64,
                   micro_tokens=256, seed=0), low_rank=False)  # fmt: skip
    fresh.load_state_dict(reached.state_dict())
    assert fresh.feed.micro_tokens == reached.settings.micro_tokens < 256
    assert fresh.taken == reached.taken


def test_on_a_rung_without_recordings_the_optimiser_records_nothing_either(make_model):
    net = Net(make_model())
    feed = Feed(groups_of(4), task="main", batch_size=4, epochs=1, row_tokens=64, micro_tokens=256, seed=0)
    optim = Optim(dict(net.named_parameters()), learning_rate=0.01, total=1, recorded=True)
    ladder = Ladder(net, replace(SETTINGS, graph=True), feed, low_rank=False, optim=optim)
    ladder.load_state_dict(
        {"settings": vars(SETTINGS), "taken": []}
    )  # as a run that goes on does, without recorded passes
    assert not optim.recorded


def test_a_base_that_went_into_four_bits_is_said_so_by_its_net(make_model, monkeypatch):
    monkeypatch.setattr(module, "quantize", lambda model, kind: None)
    net = Net(make_model(), precision="bf16")
    feed = Feed(groups_of(4), task="main", batch_size=4, epochs=1, row_tokens=64, micro_tokens=256, seed=0)
    Ladder(net, replace(SETTINGS, precision="bf16"), feed, low_rank=True).move_to(replace(SETTINGS, precision="nf4"))
    assert net.precision == "nf4"


# The rungs -----------------------------------------------------------------------------------------------------------


def rungs_from(settings, *, low_rank=True):
    """Each rung from these settings down, as what changes."""
    found = []
    while step := next_rung(settings, tokens=settings.micro_tokens, longest=2048, low_rank=low_rank):
        changes = [name for name in vars(settings) if getattr(settings, name) != getattr(step[0], name)]
        found += [f"{name}={getattr(step[0], name)}" for name in changes]
        settings = step[0]
    return found


def test_the_ladder_of_a_card_gives_up_speed_first_and_exactness_last(with_bitsandbytes):
    assert rungs_from(CARD) == [
        "micro_tokens=4096",
        "micro_tokens=2048",
        "recompute=elementwise",
        "recompute=mlp",
        "recompute=all",
        "recompute=offload",
        "optimizer=adamw8bit",
        "precision=nf4",
    ]


def test_weights_that_are_trained_or_small_already_are_not_put_into_four_bits(with_bitsandbytes):
    assert "precision=nf4" not in rungs_from(CARD, low_rank=False)
    assert "precision=nf4" not in rungs_from(replace(CARD, precision="fp8"))
    assert "precision=nf4" not in rungs_from(replace(CARD, precision="fp32"))


def test_without_bitsandbytes_nothing_is_rounded(monkeypatch):
    monkeypatch.setattr(module, "has_bitsandbytes", lambda: False)
    assert rungs_from(CARD)[-1] == "recompute=offload"


def test_updates_within_the_backward_pass_keep_their_step_in_one_micro_batch():
    assert (
        rungs_from(replace(CARD, in_backward=True, optimizer="adamw8bit"), low_rank=False)[0] == "recompute=elementwise"
    )


def test_a_micro_batch_that_was_smaller_than_allowed_is_halved_from_its_own_size():
    settings, _ = next_rung(CARD, tokens=5000, longest=64, low_rank=True)
    assert settings.micro_tokens == 2500


def test_errors_of_every_allocator_are_known():
    known = [*ERRORS.values(), RuntimeError("Triton Error [CUDA]: out of memory"),
             RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")]  # fmt: skip
    assert all(map(is_out_of_memory, known))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
