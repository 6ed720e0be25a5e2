"""Frozen layers at the bottom cost no backward pass: what enters the lowest trained layer wants no gradient."""

from __future__ import annotations

import pytest
import torch

from burnish.core import Seq, pack
from burnish.model.adapt import adapt, layer_of, trained_parameters
from burnish.model.depth import paces
from burnish.model.net import Net
from burnish.objectives import make_objective
from burnish.recipe import Adapter, Freeze
from burnish.train.loop import backward
from burnish.train.optim import Optim

WAYS = {
    "lora": (Adapter(rank=4), Freeze(layers="0-1")),
    "full": (Adapter(method="full"), Freeze(layers="0-1", modules=["embed_tokens", "lm_head"])),
}


@pytest.fixture(params=["none", "all"])
def recompute(request):
    return request.param


@pytest.mark.parametrize(("adapter", "freeze"), WAYS.values(), ids=WAYS.keys())
def test_the_backward_pass_ends_at_the_lowest_trained_layer(make_model, adapter, freeze, recompute):
    from burnish.model.fast import accelerate

    net = Net(adapt(make_model(), adapter, freeze))
    accelerate(net, compile=False, recompute=recompute)
    wanted, reached = [], []
    for number, layer in enumerate(net.language_model.get_decoder().layers):
        layer.register_forward_pre_hook(lambda _, args, n=number: wanted.append((n, args[0].requires_grad)))
        layer.register_full_backward_hook(lambda *_, n=number: reached.append(n))
    batch = pack([[Seq(list(range(9)), [1.0] * 9)]], row_tokens=16, task="main")
    net.train()
    optim = Optim(trained_parameters(net.model), learning_rate=0.1, total=1)
    backward(net, {"main": (make_objective("sft"), 1.0)}, [batch], optim)
    assert [number for number, wants in wanted if wants and number < 2] == []
    assert set(reached) == {2}
    gradients = [parameter.grad for parameter in trained_parameters(net.model).values()]
    assert all(gradient is not None for gradient in gradients)
    assert torch.stack([gradient.norm() for gradient in gradients]).sum() > 0


@pytest.mark.parametrize("adapter", [Adapter(rank=4), Adapter(method="full")], ids=["lora", "full"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_the_backward_pass_ends_at_the_lowest_layer_whose_time_has_come(make_model, adapter, recompute, in_backward):
    from burnish.model.fast import accelerate

    net = Net(adapt(make_model(), adapter, Freeze()))
    accelerate(net, compile=False, recompute=recompute)
    reached = []
    for number, layer in enumerate(net.language_model.get_decoder().layers):
        layer.register_full_backward_hook(lambda *_, n=number: reached.append(n))
    batch = pack([[Seq(list(range(9)), [1.0] * 9)]], row_tokens=16, task="main")
    net.train()
    trained = trained_parameters(net.model)
    pace_of = paces(trained, unfreezing=0.75, steps=8)
    optim = Optim(trained, learning_rate=0.1, total=8, paces=pace_of, in_backward=in_backward)
    seen = []
    for _ in range(8):
        reached.clear()
        backward(net, {"main": (make_objective("sft"), 1.0)}, [batch], optim)
        optim.step()
        optim.zero_grad()
        seen.append(min(reached, default=3))
    starts = [(pace.start, layer_of(name)) for name, pace in pace_of.items() if layer_of(name) is not None]
    assert seen == [min((layer for start, layer in starts if start <= step), default=3) for step in range(8)]
    assert seen[0] > seen[-1] == 0
