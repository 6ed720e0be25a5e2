"""Recorded passes. On the CPU a stand-in runs the step anew on the tensors that a graph would have been recorded with."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from burnish.core import Seq, pack
from burnish.data.feed import Feed
from burnish.model import recorded
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.net import Net
from burnish.model.recorded import Recording, Unrecordable
from burnish.objectives import make_objective
from burnish.recipe import Adapter, Freeze
from burnish.train import replay
from burnish.train.loop import backward, fit
from burnish.train.optim import Optim
from burnish.train.replay import EDGES, PLACES, ROW, Replayed, forward_backward, padded

SFT = make_objective("sft")
LENGTHS = [(30, 20, 9), (12, 40, 12), (60, 2, 2)]  # of the same shape once their lists are padded
OTHER = (60, 60, 40, 9)


@pytest.fixture
def make_net(make_model):
    """A function to the same adapted net each time; its attention goes by edges, as on a GPU."""

    def make(method="lora"):
        model = adapt(make_model(), Adapter(rank=4) if method == "lora" else Adapter(method="full"), Freeze())
        if method == "lora":
            torch.manual_seed(2)
            for parameter in trained_parameters(model).values():
                nn.init.normal_(parameter, std=0.1)
        net = Net(model)
        net.by_edges = True
        return net.train()

    return make


@pytest.fixture
def recordings(monkeypatch):
    """Lets recordings be made without a GPU; gives the list of all that are."""
    made = []

    class Watched(Recording):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(replay, "Recording", Watched)
    monkeypatch.setattr(recorded, "graph_of", lambda step, **where: step)
    monkeypatch.setattr(recorded, "never_waiting", contextlib.nullcontext)
    return made


def batch_of(lengths, seed=0):
    """Rows of 64 tokens, `longest` always 64, so that only the number of rows makes a shape."""
    draw = random.Random(f"{lengths}/{seed}")
    seqs = [
        Seq([draw.randrange(250) for _ in range(n)], [float(draw.random() < 0.7) for _ in range(n)]) for n in lengths
    ]
    batch = pack([[seq] for seq in seqs], row_tokens=64, task="main")
    return replace(batch, longest=64)


def factor_of(number):
    return torch.tensor(1 / (number + 2))


def gradients_of(net):
    return [parameter.grad.clone() for parameter in trained_parameters(net).values()]


def run_steps(net, passes, steps):
    """Each step is a list of the lengths of its micro-batches. Returns what every step gave; gradients are let go between steps."""
    found = []
    for number, micro in enumerate(steps):
        said = [passes(SFT, batch_of(lengths, number), factor_of(number)) for lengths in micro]
        found.append((said, gradients_of(net)))
        net.zero_grad(set_to_none=True)
    return found


def plainly(net):
    return lambda *given: forward_backward(net, *given)


def assert_alike(found, wanted):
    for (said, gradients), (plain, theirs) in zip(found, wanted, strict=True):
        for (loss, stats), (loss_wanted, stats_wanted) in zip(said, plain, strict=True):
            torch.testing.assert_close(loss, loss_wanted)
            torch.testing.assert_close(stats, stats_wanted)
        torch.testing.assert_close(gradients, theirs, rtol=1e-4, atol=1e-5)


MANY = [[LENGTHS[number % 3], OTHER, LENGTHS[(number + 1) % 3]][: 1 + number % 3] for number in range(9)]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recorded_steps_are_those_that_are_not(make_net, recordings, method):
    net, other = make_net(method), make_net(method)
    found = run_steps(net, Replayed(net, trained_parameters(net).values()), MANY)
    assert_alike(found, run_steps(other, plainly(other), MANY))
    assert [one.calls for one in recordings] == [9, 6, 3]  # two shapes, one of them first in a step and later in one


def test_work_that_was_watched_once_is_recorded_sooner_at_other_sizes(make_net, recordings):
    net = make_net()
    passes = Replayed(net, trained_parameters(net).values())
    for lengths, longest in ((LENGTHS[0], 64), (OTHER, 64), (LENGTHS[0], 128)):
        for _ in range(3):
            passes(SFT, replace(batch_of(lengths), longest=longest), factor_of(0))
            net.zero_grad()
    assert [one.recorded for one in recordings] == [True] * 3
    assert [one._recorded_on for one in recordings] == [3, 2, 3]  # another longest may be another kernel's


def test_what_a_step_gave_is_not_overwritten_by_the_next(make_net, recordings):
    net = make_net()
    passes = Replayed(net, trained_parameters(net).values())
    buffers = torch.zeros(()), torch.zeros(())

    class Reused(Recording):
        """As a graph has it: the same outputs, filled anew."""

        def __call__(self):
            loss, stats = super().__call__()
            buffers[0].copy_(loss)
            buffers[1].copy_(stats["loss"][0])
            return buffers[0], {"loss": (buffers[1], stats["loss"][1])}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "Recording", Reused)
        found = [passes(SFT, batch_of(lengths), factor_of(0)) for lengths in LENGTHS]
    assert len({float(loss) for loss, _ in found}) == len({float(stats["loss"][0]) for _, stats in found}) == 3


def test_gradients_stay_in_the_same_tensors_when_the_optimiser_lets_them_go(make_net, recordings):
    net = make_net()
    parameters = list(trained_parameters(net).values())
    passes = Replayed(net, parameters)
    places = []
    for number in range(4):
        passes(SFT, batch_of(LENGTHS[number % 3]), factor_of(number))
        places.append([parameter.grad.data_ptr() for parameter in parameters])
        net.zero_grad(set_to_none=True)
    assert places == [[gradient.data_ptr() for gradient in passes.gradients]] * 4


# Padded lists --------------------------------------------------------------------------------------------------------


def test_rows_and_lists_of_places_are_padded_to_few_lengths():
    for lengths in [*LENGTHS, OTHER, (64,) * 70]:
        batch = batch_of(lengths)
        filled = padded(batch)
        assert len(filled.trained) % PLACES == len(filled.edges) % EDGES == 0
        assert torch.equal(filled.trained[: len(batch.trained)], batch.trained)
        assert torch.equal(filled.edges[: len(batch.edges)], batch.edges)
        assert 0 <= len(filled.trained) - len(batch.trained) < PLACES
        assert filled.edges[-1] == filled.ids.numel()
        assert filled.ids.shape == ((1, ROW) if len(batch.ids) == 1 else batch.ids.shape)
        for name in ("ids", "pos", "seq", "weight"):
            assert torch.equal(getattr(filled, name)[:, :64], getattr(batch, name))
        assert (filled.seq[:, 64:] == -1).all()
        assert not filled.weight[:, 64:].any()
        others = ("last", "group", "y", "where", "longest")
        assert all(getattr(filled, name) is getattr(batch, name) for name in others)


def test_streams_of_a_lengthened_row_are_nothing_past_its_end():
    streams = {"one": [1.0] * 5, "two": [[1.0, 2.0]] * 5}
    filled = padded(pack([[Seq([1] * 5, [1.0] * 5, tokens=streams)]], row_tokens=64))
    assert [tuple(x.shape) for x in filled.tokens.values()] == [(1, ROW), (1, ROW, 2)]
    assert [float(x.sum()) for x in filled.tokens.values()] == [5, 15]


@pytest.mark.parametrize("by_edges", [False, True])
@pytest.mark.parametrize("lengths", [*LENGTHS, OTHER])
def test_padding_changes_no_loss_and_no_gradient(make_net, lengths, by_edges):
    net, found = make_net("full"), []
    net.by_edges = by_edges
    net.model.set_attn_implementation("sdpa")  # a GPU's, where not by edges
    for batch in (batch_of(lengths), padded(batch_of(lengths))):
        found.append(([forward_backward(net, SFT, batch, factor_of(0))], gradients_of(net)))
        net.zero_grad()
    assert_alike(found[1:], found[:1])


def test_a_batch_of_which_nothing_is_trained_is_recorded_too(make_net, recordings):
    net = make_net()
    passes = Replayed(net, trained_parameters(net).values())
    empty = pack([[Seq([1, 2, 3], [0.0] * 3)]], row_tokens=64, task="main")
    for _ in range(4):
        loss, _ = passes(SFT, replace(empty, ids=empty.ids.clone()), factor_of(0))
    assert float(loss) == 0
    assert not any(gradient.any() for gradient in passes.gradients)


# Where nothing is recorded -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def waiting():
    """As on a GPU: what had been done before the host waited stays done."""
    yield
    raise Unrecordable("called a synchronizing CUDA operation\nand more")


@pytest.mark.parametrize("micro", [1, 3])
def test_a_step_that_cannot_be_recorded_loses_no_gradient(make_net, recordings, monkeypatch, micro):
    steps = [[LENGTHS[(number + place) % 3] for place in range(micro)] for number in range(4)]
    net, other = make_net(), make_net()
    passes = Replayed(net, trained_parameters(net).values())
    monkeypatch.setattr(recorded, "never_waiting", waiting)
    assert_alike(run_steps(net, passes, steps), run_steps(other, plainly(other), steps))
    assert passes.refused == "called a synchronizing CUDA operation"
    assert len(recordings) == min(micro, 2)  # the first of a step and a later one, and nothing is tried again


def test_shapes_past_the_most_that_are_recorded_go_plainly(make_net, recordings, monkeypatch):
    monkeypatch.setattr(replay, "MOST", 2)
    steps = [[LENGTHS[0]], [OTHER], [(64,) * 5], [(64,) * 6], [LENGTHS[1]], [OTHER], [(64,) * 5], [LENGTHS[2]]]
    net, other = make_net(), make_net()
    passes = Replayed(net, trained_parameters(net).values())
    assert_alike(run_steps(net, passes, steps), run_steps(other, plainly(other), steps))
    assert [one.calls for one in recordings] == [3, 2]


def test_memory_that_runs_out_while_recording_is_not_taken_for_waiting(make_net, recordings, monkeypatch):
    net = make_net()
    passes = Replayed(net, trained_parameters(net).values())

    def full(step, **where):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(recorded, "graph_of", full)
    for _ in range(2):
        passes(SFT, batch_of(LENGTHS[0]), factor_of(0))
        net.zero_grad()
    with pytest.raises(torch.OutOfMemoryError):
        passes(SFT, batch_of(LENGTHS[0]), factor_of(0))
    assert passes.refused == ""


# In the loop ---------------------------------------------------------------------------------------------------------


def groups_of(count):
    draw = random.Random(5)
    lengths = [draw.randrange(5, 40) for _ in range(count)]
    return [[Seq([draw.randrange(250) for _ in range(n)], [0.0] * 2 + [1.0] * (n - 2))] for n in lengths]


def test_a_training_with_recorded_passes_is_the_one_without(make_net, recordings):
    weights = []
    for replayed in (False, True):
        net = make_net()
        parameters = trained_parameters(net)
        feed = Feed(groups_of(12), task="main", batch_size=4, epochs=3, row_tokens=64, micro_tokens=64, seed=0)
        optim = Optim(parameters, learning_rate=0.01, total=feed.total_steps)
        passes = Replayed(net, parameters.values()) if replayed else None
        assert fit(net, {"main": (SFT, 1.0)}, feed, optim, [], passes=passes) == "end"
        weights.append([parameter.detach() for parameter in parameters.values()])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    assert max(one.calls for one in recordings) > 3


def test_clipping_reaches_the_gradients_that_are_recorded(make_net, recordings):
    net = make_net()
    parameters = trained_parameters(net)
    passes = Replayed(net, parameters.values())
    optim = Optim(parameters, learning_rate=0.01, total=1, clip=1e-3)
    backward(net, {"main": (SFT, 1.0)}, [batch_of(LENGTHS[0])], optim, passes)
    assert float(torch.stack([gradient.norm() for gradient in passes.gradients]).norm()) == pytest.approx(
        1e-3, rel=0.01
    )


def test_a_batch_of_which_nothing_is_trained_yet_gives_no_gradient(make_net):
    net = make_net()
    parameters = list(trained_parameters(net.model).values())
    for parameter in parameters:
        parameter.requires_grad_(False)
    loss, _ = forward_backward(net, SFT, batch_of(LENGTHS[0]), torch.ones(()))
    assert loss > 0
    assert all(parameter.grad is None for parameter in parameters)
