"""The vocabulary head and its slopes, against float64 written out."""

from __future__ import annotations

import copy
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from burnish.model import head
from burnish.model.head import head_logp, logit_curve

TOKENS, WIDTH, VOCABULARY = 23, 8, 50
CURVES = {
    "straight": {},
    "capped": {"final_logit_softcapping": 3.0},
    "divided": {"logits_scaling": 4.0},
    "scaled": {"logit_scale": 0.25},
}


@pytest.fixture(params=CURVES.values(), ids=CURVES.keys())
def config(request):
    return SimpleNamespace(vocab_size=VOCABULARY, **request.param)


@pytest.fixture(params=[False, True], ids=["weight", "weight and bias"])
def layer(request):
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, VOCABULARY, bias=request.param)
    nn.init.normal_(layer.weight)
    return layer


@pytest.fixture(
    params=product([False, True], [False, True]), ids=lambda way: "-".join(("kept" * way[0], "chunked" * way[1]))
)
def way(request, monkeypatch):
    """Whether the slopes of a trained head are kept, and whether the tokens go through in parts."""
    kept, chunked = request.param
    monkeypatch.setitem(head.KEPT_BYTES, "cpu", 2**30 if kept else 0)
    if chunked:
        monkeypatch.setitem(head.LOGITS, "cpu", 7 * VOCABULARY)
    return request.param


@pytest.fixture
def tokens():
    """(N,d) hidden, (N,) targets, (N,) what the loss makes of each log-probability."""
    torch.manual_seed(1)
    return torch.randn(TOKENS, WIDTH), torch.randint(VOCABULARY, (TOKENS,)), torch.randn(TOKENS)


def gradients(logp_of, layer, hidden, targets, factors):
    """The log-probabilities, and the slopes of their weighted sum by the hidden states and by what is trained."""
    hidden = hidden.clone().requires_grad_()
    logp = logp_of(layer, hidden, targets)
    wanted = [hidden, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return [logp, *torch.autograd.grad((logp * factors).sum(), wanted)]


def written_out(config):
    bend = logit_curve(config)
    return lambda layer, hidden, targets: bend(layer(hidden)).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def in_double(layer, tokens):
    return copy.deepcopy(layer).double(), *(x.double() if x.is_floating_point() else x for x in tokens)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_log_probabilities_and_slopes_are_those_of_float64(layer, config, tokens, way, trained):
    layer.requires_grad_(trained)
    found = gradients(lambda layer, *rest: head_logp(layer, config, *rest), layer, *tokens)
    wanted = gradients(written_out(config), *in_double(layer, tokens))
    assert len(found) == len(wanted) == 2 + trained * len(list(layer.parameters()))
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=2e-6)


def test_a_layer_that_somebody_wrote_gives_the_same(config, tokens, way):
    torch.manual_seed(0)
    layer = type("Own", (nn.Linear,), {})(WIDTH, VOCABULARY)
    found = gradients(lambda layer, *rest: head_logp(layer, config, *rest), layer, *tokens)
    wanted = gradients(written_out(config), *in_double(layer, tokens))
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_no_tokens_are_no_log_probabilities_and_slopes_of_nothing(layer, config, way, trained):
    layer.requires_grad_(trained)
    none = torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    logp, to_hidden, *others = gradients(lambda layer, *rest: head_logp(layer, config, *rest), layer, *none)
    assert (logp.shape, logp.dtype, to_hidden.shape) == ((0,), torch.float32, (0, WIDTH))
    assert not any(slope.any() for slope in others)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_bf16_weights_give_float32_log_probabilities_near_the_exact_ones(layer, config, tokens, way, trained):
    layer.bfloat16().requires_grad_(trained)
    found = gradients(lambda layer, *rest: head_logp(layer, config, *rest), layer, *tokens)
    assert found[0].dtype == torch.float32
    for ours, exact in zip(found, gradients(written_out(config), *in_double(layer, tokens)), strict=True):
        assert float((ours.double() - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_under_autocast_the_products_are_bf16(layer, config, tokens, way, trained):
    layer.requires_grad_(trained)

    def under_autocast(layer, *rest):
        with torch.autocast("cpu", torch.bfloat16):
            return head_logp(layer, config, *rest)

    found = gradients(under_autocast, layer, *tokens)
    for ours, exact in zip(found, gradients(written_out(config), *in_double(layer, tokens)), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < float((ours.double() - exact).norm() / exact.norm()) < 0.02


def test_what_is_done_to_the_logits_is_known_from_the_configuration(config):
    assert head.bends(config) == (len(vars(config)) > 1)


def test_a_frozen_head_keeps_nothing_as_wide_as_the_vocabulary(layer, config, tokens, way):
    layer.requires_grad_(False)
    logp = head_logp(layer, config, tokens[0].requires_grad_(), tokens[1])
    assert [x.shape for x in logp.grad_fn.saved_tensors] == [(TOKENS, WIDTH)]


def test_a_trained_head_keeps_its_slopes_only_where_there_is_room(layer, config, tokens, way):
    logp = head_logp(layer, config, tokens[0].requires_grad_(), tokens[1])
    kept = [x for x in logp.grad_fn.saved_tensors if x is not None]
    rows = [len(x) for x in kept if x.dim() == 2 and x.shape[1] == VOCABULARY]
    assert sum(rows) == (TOKENS if way[0] else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpus_two_passes_give_what_the_cpus_do(tokens, monkeypatch, dtype):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    head._compiled.cache_clear()
    whole = torch.randn(2 * TOKENS, VOCABULARY).mul(5).to(dtype)
    ours, theirs = whole.clone(), whole[TOKENS:].clone()
    try:
        logp = head._compiled()(ours[TOKENS:], tokens[1])
    finally:
        head._compiled.cache_clear()
    wanted = head._straight_to_slopes(theirs, tokens[1])
    assert logp.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(logp, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[TOKENS:], theirs, rtol=0.01 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    assert torch.equal(ours[:TOKENS], whole[:TOKENS])  # those beside them stay
