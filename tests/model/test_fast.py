"""What a recipe means never depends on speed: nets that are compiled, or compute again, against the same nets run plainly.

Compiled here is what torch traces, run without a code generator (`aot_eager`): the numbers of the generated code are a GPU's to check.
"""

from __future__ import annotations

import random
from collections import Counter
from threading import enumerate as enumerate_threads

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.async_compile import AsyncCompile

from burnish.core import Seq, pack
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.fast import BUDGETS, accelerate, decoder_layers, expect_compiling
from burnish.model.net import Net
from burnish.recipe import Adapter, Freeze

LOGP = frozenset({"logp"})
FAMILIES = ("llama", "qwen3", "gemma3_text", "mistral", "qwen3_moe")
METHODS = {"lora": Adapter(rank=4, alpha=8), "full": Adapter(method="full")}
TWO_ROWS = (40, 20, 3, 33, 12)


@pytest.fixture
def make_net(make_model):
    """A function to a net in training. precision: bf16 is frozen weights of bf16 under an adapter, and autocast over one's own.

    rounded: float32 throughout, on the numbers that a frozen base of bf16 has.
    """

    def make(architecture="llama", method="lora", *, by_edges=True, precision="fp32", rounded=False, freeze=""):
        model = make_model(architecture)
        if method == "lora" and (rounded or precision == "bf16"):
            model.to(torch.bfloat16).to(torch.float32 if rounded else torch.bfloat16)
        model = adapt(model, METHODS[method], Freeze(layers=freeze))
        if method == "lora":
            torch.manual_seed(2)
            for parameter in trained_parameters(model).values():
                nn.init.normal_(parameter, std=0.1)  # an adapter begins as nothing
        net = Net(model, precision=precision)
        net.by_edges = by_edges
        return net.train()

    yield make
    torch._dynamo.reset()
    torch._functorch.config.activation_memory_budget = BUDGETS["none"]


def batch_of(*lengths):
    """Rows of 64 tokens, or of as many as the longest sequence has."""
    draw = random.Random(1)
    seqs = [
        Seq([draw.randrange(250) for _ in range(n)], [float(draw.random() < 0.7) for _ in range(n)]) for n in lengths
    ]
    return pack([[seq] for seq in seqs], row_tokens=64)


def outcome(net, batch=None):
    """The loss and all gradients, as one float64 vector."""
    batch = batch or batch_of(*TWO_ROWS)
    net.zero_grad()
    loss = -(net(batch, LOGP).logp * batch.weight).sum()
    loss.backward()
    gradients = [parameter.grad.flatten().double() for parameter in trained_parameters(net).values()]
    return torch.cat([loss.detach().double()[None], *gradients])


def distance(found, wanted):
    """The larger of the relative differences of loss and gradient."""
    return max(float((a - b).norm() / b.norm()) for a, b in ((found[:1], wanted[:1]), (found[1:], wanted[1:])))


def kept_bytes(net):
    """Bytes that the forward pass leaves for the backward pass, parameters aside; 0 for what is moved to the host."""
    sizes = {}

    def keep(x):
        if not isinstance(x, nn.Parameter):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logp = net(batch_of(*TWO_ROWS), LOGP).logp
    logp.sum().backward()
    return sum(sizes.values())


def compilations():
    return counters["stats"]["unique_graphs"]


# Run plainly, but computed again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_edges", [False, True], ids=["mask", "edges"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_computing_again_changes_no_gradient(make_net, architecture, method, by_edges):
    net = make_net(architecture, method, by_edges=by_edges)
    plain = outcome(net)
    for level in BUDGETS:
        accelerate(net, compile=False, recompute=level)
        assert distance(outcome(net), plain) < 1e-6, level


@pytest.mark.parametrize("method", METHODS)
def test_what_is_computed_again_sees_only_its_own_sequence(make_net, method):
    """As on a GPU, where the attention that the model has beside that by edges would see the whole row."""
    net = make_net("qwen3", method)
    net.model.set_attn_implementation("sdpa")
    plain = outcome(net)
    accelerate(net, compile=False, recompute="all")
    assert distance(outcome(net), plain) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_attention_by_edges_means_what_a_mask_means(make_net, method):
    found, wanted = (outcome(make_net("mistral", method, by_edges=by_edges)) for by_edges in (True, False))
    assert distance(found, wanted) < 1e-5


def test_less_is_kept_where_more_is_computed_again(make_net):
    net, kept = make_net(by_edges=False), {}
    for level in ("none", "all", "offload", "none"):
        accelerate(net, compile=False, recompute=level)
        kept.setdefault(level, []).append(kept_bytes(net))
    assert kept["none"][0] == kept["none"][1] > 3 * kept["all"][0] > 3 * kept["offload"][0]


# Compiled ------------------------------------------------------------------------------------------------------------


def some_slow(cases, fast):
    return [pytest.param(*case, marks=() if case in fast else pytest.mark.slow, id="-".join(case)) for case in cases]


EVERY = [(family, method, "edges") for family in FAMILIES for method in METHODS]
BY_MASK = [("llama", "lora", "mask"), ("gemma3_text", "full", "mask")]


@pytest.mark.parametrize(
    ("architecture", "method", "attention"), some_slow([*EVERY, *BY_MASK], [("llama", "lora", "edges")])
)
def test_compiled_layers_give_the_loss_and_gradients_of_plain_ones(make_net, architecture, method, attention):
    net = make_net(architecture, method, by_edges=attention == "edges")
    plain = outcome(net)
    counters.clear()
    accelerate(net, compile=True, backend="aot_eager")
    assert distance(outcome(net), plain) < 1e-5
    assert compilations() > 0


@pytest.mark.parametrize(
    ("architecture", "method"),
    some_slow(
        [("llama", "lora"), ("llama", "full"), ("gemma3_text", "full"), ("qwen3_moe", "lora")], [("llama", "lora")]
    ),
)
def test_compiled_bf16_is_as_near_to_float32_as_plain_bf16(make_net, architecture, method):
    exact = outcome(make_net(architecture, method, rounded=True))
    net = make_net(architecture, method, precision="bf16")
    plain = outcome(net)
    accelerate(net, compile=True, backend="aot_eager")
    assert 0 < distance(outcome(net), exact) <= 2 * distance(plain, exact)


@pytest.mark.parametrize("level", some_slow([(level,) for level in BUDGETS if level != "none"], [("mlp",)]))
def test_compiled_layers_that_compute_again_give_the_same_gradients(make_net, level):
    net = make_net("llama", "full")
    plain = outcome(net)
    accelerate(net, compile=True, recompute=level, backend="aot_eager")
    assert distance(outcome(net), plain) < 1e-5


@pytest.mark.slow
def test_each_level_keeps_less_than_the_one_before_and_can_be_left_again(make_net):
    net = make_net()
    plain, kept_plainly, kept = outcome(net), kept_bytes(net), {}
    for level in ("none", "elementwise", "mlp", "all"):
        accelerate(net, compile=True, recompute=level, backend="aot_eager")
        kept[level] = kept_bytes(net)
    assert kept["none"] > kept["elementwise"] > kept["mlp"] > kept["all"]
    accelerate(net, compile=False)
    assert torch.equal(outcome(net), plain)
    assert kept_bytes(net) == kept_plainly


def test_all_switched_off_is_the_plain_net_exactly(make_net):
    net = make_net(by_edges=False)
    plain, kept = outcome(net), kept_bytes(net)
    counters.clear()
    accelerate(net, compile=True, recompute="offload", backend="eager")
    accelerate(net, compile=False)
    assert torch.equal(outcome(net), plain)
    assert kept_bytes(net) == kept
    assert compilations() == 0


# The backend that only traces is enough to count by, and quick.


@pytest.mark.parametrize(("architecture", "kinds"), [("qwen3", 1), ("gemma3_text", 2)])
def test_batches_of_all_shapes_take_two_compilations_of_each_kind_of_layer(make_net, architecture, kinds):
    net = make_net(architecture)
    counters.clear()
    accelerate(net, compile=True, backend="eager")
    for lengths in (TWO_ROWS, (30, 30, 30), (64,) * 4, (10,) * 20, (5, 5), (100,), (100, 90, 80)):
        outcome(net, batch_of(*lengths))
    assert compilations() <= 2 * kinds


def test_an_exam_compiles_nothing(make_net):
    net = make_net()
    counters.clear()
    accelerate(net, compile=True, backend="eager")
    with torch.no_grad():
        for lengths in (TWO_ROWS, (5, 5), (100,)):
            net(batch_of(*lengths), LOGP)
    assert compilations() == 0


def test_nothing_below_the_lowest_trained_layer_is_walked_back(make_net):
    net = make_net(freeze="0-1")
    plain = outcome(net)
    accelerate(net, compile=True, backend="aot_eager")
    entered = []
    for layer in decoder_layers(net.language_model):
        layer._compiled_call_impl = watched(layer._compiled_call_impl, entered)
    assert distance(outcome(net), plain) < 1e-5
    assert [x.grad_fn for x in entered] == [None, None, None]
    assert not any(x.requires_grad for x in entered)


def watched(call, entered):
    def run(hidden, *args, **kwargs):
        entered.append(hidden)
        return call(hidden, *args, **kwargs)

    return run


def test_layers_are_found_by_what_transformers_calls_them(make_net):
    for family in FAMILIES:
        layers = list(decoder_layers(make_net(family).language_model))
        assert Counter(type(layer).__name__.endswith("DecoderLayer") for layer in layers) == {True: 3}


@pytest.mark.slow
def test_generated_code_gives_the_loss_and_gradients_of_plain_layers(make_net):
    net = make_net()
    plain = outcome(net)
    accelerate(net, compile=True, recompute="elementwise")
    assert distance(outcome(net), plain) < 1e-5


@pytest.mark.parametrize("alike", [True, False])
def test_floats_are_constants_to_the_compiler_where_all_layers_have_the_same(make_net, alike):
    net = make_net("llama", "full")
    if not alike:
        next(decoder_layers(net.model)).self_attn.scaling *= 2
    accelerate(net, compile=True, backend="eager")
    assert torch._dynamo.config.specialize_float == alike


@pytest.fixture
def brought_up(monkeypatch):
    """A function that lets compiling be expected and waits for it; gives what was compiled. The code generators are not started."""
    monkeypatch.setattr(AsyncCompile, "use_process_pool", lambda: None)
    compiled = []

    def expect(compile):
        monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or compile(f))
        before = set(enumerate_threads())
        expect_compiling(torch.device("cpu"))
        for thread in set(enumerate_threads()) - before:
            thread.join(60)
        return compiled

    return expect


def test_something_small_is_compiled_in_the_background(brought_up):
    assert brought_up(lambda f: f) == [torch.cos]


def test_what_fails_in_the_background_is_left_to_where_it_is_needed(brought_up, capfd):
    assert brought_up(lambda f: 1 / 0) == [torch.cos]
    assert capfd.readouterr().err == ""
