"""Frozen layers in 8 and 4 bits: their products, the adapters beside them, and the way in and out."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import PeftModel
from torch import nn

from burnish.core import Seq, pack
from burnish.errors import RecipeError
from burnish.model import quantize as quantizing
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.fast import accelerate
from burnish.model.fp8 import E4M3, Fp8Linear, Fp8Products, by_row, suits
from burnish.model.frozen import FrozenLinear
from burnish.model.lora import LoraLinear
from burnish.model.net import Net
from burnish.model.quantize import Nf4Fp8Linear, Nf4Linear, quantize, unquantize
from burnish.recipe import Adapter, Freeze
from tiny_runs import needs_bitsandbytes

LOGP = frozenset({"logp"})
# What rounding each kind adds to a product, as a share of it: e4m3 has 3 bits after the point, and both factors are rounded or one.
KINDS = [
    pytest.param(Fp8Linear, 0.04, id="fp8"),
    pytest.param(Nf4Linear, 0.005, id="nf4", marks=needs_bitsandbytes),
    pytest.param(Nf4Fp8Linear, 0.06, id="nf4-fp8", marks=needs_bitsandbytes),
]
EITHER = ["fp8", pytest.param("nf4", marks=needs_bitsandbytes)]


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(64, 96).requires_grad_(False)


@pytest.fixture
def make_lora(make_model):
    """A function to an adapted tiny model with weights of bf16, whose adapter does something."""

    def make(architecture="llama", dtype=torch.bfloat16):
        model = adapt(make_model(architecture).to(dtype), Adapter(rank=4, alpha=8), Freeze()).eval()
        torch.manual_seed(2)
        for parameter in trained_parameters(model).values():
            nn.init.normal_(parameter, std=0.1)
        return model

    return make


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return pack([[Seq(torch.randint(250, (n,)).tolist(), [1.0] * n)] for n in (30, 20, 9)], row_tokens=64)


def off_by(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# The products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rounding"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_products_are_those_with_the_dense_weight_but_for_rounding(linear, kind, rounding, dtype):
    frozen = kind(linear.to(torch.bfloat16))
    x, slope = torch.randn(3, 7, 64).to(dtype).requires_grad_(), torch.randn(3, 7, 96).to(dtype)
    out = frozen(x)
    (to_x,) = torch.autograd.grad(out, x, slope)
    dense = frozen.dense().float()
    assert (out.dtype, out.shape, to_x.dtype, to_x.shape) == (dtype, (3, 7, 96), dtype, x.shape)
    assert off_by(out, x.float() @ dense.T + linear.bias.float()) < rounding
    assert off_by(to_x, slope.float() @ dense) < rounding


@pytest.mark.parametrize(("kind", "rounding"), KINDS)
def test_the_dense_weight_is_near_the_one_that_was_stored(linear, kind, rounding):
    frozen = kind(linear)
    assert (frozen.dense().dtype, frozen.dense().shape) == (torch.bfloat16, linear.weight.shape)
    assert off_by(frozen.dense(), linear.weight) < (0.04 if kind is Fp8Linear else 0.12)


def test_each_rows_largest_number_is_the_largest_there_is():
    rounded, scale = by_row(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    assert (rounded.dtype, scale.dtype, scale.shape) == (E4M3, torch.float32, (2, 1))
    assert rounded.float().tolist() == [[224, -448, 112], [0, 0, 0]]


@pytest.mark.parametrize(("kind", "rounding"), KINDS)
def test_nothing_but_what_is_stored_is_kept(linear, kind, rounding):
    frozen, kept = kind(linear), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        frozen(torch.randn(5, 64, requires_grad=True))
    assert {id(x) for x in kept} <= {id(x) for x in frozen.stored()}


# The adapter beside it -----------------------------------------------------------------------------------------------


def adapted(base):
    """The same adapter, in float32, over any base."""
    plain = nn.Linear(base.in_features, base.out_features)
    layer = LoraLinear(plain, "default", config=peft.LoraConfig(r=4), r=4, lora_alpha=8)
    layer.base_layer = base
    random = torch.Generator().manual_seed(3)
    for parameter in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
        nn.init.normal_(parameter, std=0.1, generator=random)
    return layer


def gradients(layer, x):
    x = x.clone().requires_grad_()
    out = layer(x)
    adapter = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return [out, *torch.autograd.grad(out.float().square().sum(), [*adapter, x])]


def exact_in_8_bits(rows, columns):
    """Numbers that e4m3 has, the largest of which stands in every row: a scale of a power of two loses nothing."""
    numbers = torch.randn(rows, columns).mul(100).clamp(-400, 400).to(E4M3).float()
    numbers[:, 0] = 448
    return numbers / 2**9


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_over_a_base_that_8_bits_hold_exactly_the_adapters_gradients_are_those_over_a_plain_one(dtype, rounding):
    torch.manual_seed(0)
    plain = nn.Linear(64, 96, bias=False, dtype=dtype).requires_grad_(False)
    plain.weight.copy_(exact_in_8_bits(96, 64))
    x = exact_in_8_bits(10, 64).to(dtype)
    found, wanted = gradients(adapted(Fp8Linear(plain)), x), gradients(adapted(plain), x)
    for ours, theirs in zip(found[:3], wanted[:3], strict=True):
        assert off_by(ours, theirs) < rounding
    assert off_by(found[3], wanted[3]) < 0.04  # the gradient that comes in is rounded all the same


@needs_bitsandbytes
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_over_4_bits_the_adapters_gradients_are_those_over_their_dense_weight(linear, dtype, rounding):
    frozen = Nf4Linear(linear.to(torch.bfloat16))
    x = torch.randn(10, 64).to(dtype)
    plain = frozen.plain().to(dtype)
    for ours, theirs in zip(gradients(adapted(frozen), x), gradients(adapted(plain), x), strict=True):
        assert off_by(ours, theirs) < rounding


@pytest.mark.parametrize(("kind", "rounding"), KINDS)
def test_an_adapter_of_nothing_adds_nothing(linear, kind, rounding):
    layer, x = adapted(kind(linear)), torch.randn(10, 64)
    nn.init.zeros_(layer.lora_B["default"].weight)
    assert torch.equal(layer(x), layer.base_layer(x))


# A whole model -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_every_adapted_layer_is_stored_in_few_bits_and_nothing_else_is(make_lora, batch, kind, architecture):
    model = make_lora(architecture)
    others = {name: p.clone() for name, p in model.named_parameters() if "base_layer" not in name}
    count = quantize(model, kind)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    assert count == len(layers) == 3 * 7
    assert all(isinstance(layer.base_layer, FrozenLinear) for layer in layers)
    assert {name for name, _ in model.named_parameters()} == others.keys()
    assert all(torch.equal(p, others[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", EITHER)
def test_every_adapter_gets_a_gradient(make_lora, batch, kind):
    model = make_lora()
    quantize(model, kind)
    Net(model)(batch, LOGP).logp.sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in trained_parameters(model).values())


@needs_bitsandbytes
def test_trained_weights_cannot_have_4_bits_and_what_to_type_is_said(make_model):
    with pytest.raises(RecipeError, match="nf4") as caught:
        quantize(make_model(), "nf4")
    assert caught.value.hint == "--set adapter.method=lora"


# Trained weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_weights_get_the_gradients_of_plain_ones_but_for_rounding(linear, dtype):
    linear.requires_grad_()
    layer = Fp8Products(linear)
    x, slope = torch.randn(3, 7, 64).to(dtype).requires_grad_(), torch.randn(3, 7, 96).bfloat16()
    out, wanted = layer(x), linear(x.float())
    found = torch.autograd.grad(out, (x, linear.weight, linear.bias), slope)
    plain = torch.autograd.grad(wanted, (x, linear.weight, linear.bias), slope.float())
    assert out.dtype == torch.bfloat16
    assert [one.dtype for one in found] == [dtype, torch.float32, torch.float32]
    assert 0.005 < off_by(out, wanted) < 0.04
    assert 0.005 < off_by(found[0], plain[0]) < 0.04
    assert all(off_by(one, other) < 0.005 for one, other in zip(found[1:], plain[1:], strict=True))  # never in 8 bits


def test_all_layers_of_a_trained_model_multiply_in_8_bits_and_go_back_to_what_they_were(make_model, batch):
    model = make_model()
    before = dict(model.named_parameters())
    assert quantize(model, "fp8") == 3 * 7
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert type(model.get_output_embeddings()) is nn.Linear
    Net(model, precision="fp8")(batch, LOGP).logp.sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in before.values())
    unquantize(model)
    assert not any(isinstance(layer, Fp8Products) for layer in model.modules())
    assert all(after[name] is parameter for name, parameter in model.named_parameters())


def test_a_trained_model_without_a_layer_that_fits_is_refused(make_model):
    model = make_model()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.in_features = 24
    with pytest.raises(RecipeError, match="multiples of 16"):
        quantize(model, "fp8")


def test_compiled_products_of_trained_weights_are_as_near_to_float32_as_plain_ones(make_model, batch):
    found = []
    for precision, compiled in (("fp32", False), ("fp8", False), ("fp8", True)):
        net = Net(make_model(), precision=precision)
        with torch.no_grad():  # as they come, even bf16 gives gradients that are off by half
            torch._foreach_mul_([parameter for parameter in net.model.parameters() if parameter.dim() > 1], 0.1)
        if precision == "fp8":
            quantize(net.model, "fp8")
            accelerate(net, compile=compiled, backend="aot_eager")
        net(batch, LOGP).logp.sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in net.model.parameters()]))
    exact, plain, compiled = found
    assert 0 < off_by(compiled, exact) <= 1.5 * off_by(plain, exact) < 0.15


def test_4_bits_without_bitsandbytes_say_what_to_install(make_lora, monkeypatch):
    monkeypatch.setattr(quantizing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="bitsandbytes") as caught:
        quantize(make_lora(), "nf4")
    assert caught.value.hint == "pip install bitsandbytes"


@pytest.mark.parametrize(("sides", "fits"), [((32, 48), True), ((24, 48), False), ((32, 40), False), ((8, 8), False)])
def test_layers_with_odd_sides_stay_plain(sides, fits):
    model = nn.ModuleList([adapted(nn.Linear(*side).requires_grad_(False)) for side in (sides, (16, 16))])
    assert suits(model[0].base_layer) == fits
    assert quantize(model, "fp8") == 1 + fits
    assert (type(model[0].base_layer) is nn.Linear) == (not fits)


@torch.no_grad()
@pytest.mark.parametrize("kind", EITHER)
def test_back_to_ordinary_layers_the_numbers_stay(make_lora, batch, kind):
    model = make_lora()
    quantize(model, kind)
    dense = [layer.base_layer.dense() for layer in model.modules() if isinstance(layer, LoraLinear)]
    before = Net(model)(batch, LOGP).logp
    unquantize(model)
    bases = [layer.base_layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    assert {type(base) for base in bases} == {nn.Linear}
    assert all(torch.equal(base.weight, weight) for base, weight in zip(bases, dense, strict=True))
    assert not any(base.weight.requires_grad for base in bases)
    after = Net(model)(batch, LOGP).logp
    assert float((after - before).abs().mean()) < (1.0 if kind == "fp8" else 0.2)  # bf16


@torch.no_grad()
@pytest.mark.parametrize("kind", EITHER)
def test_the_adapter_switched_off_is_the_stored_base(make_lora, batch, kind):
    model = make_lora()
    quantize(model, kind)
    net = Net(model)
    tuned = net(batch, LOGP).logp
    with model.disable_adapter():
        off = net(batch, LOGP).logp
    for name, parameter in trained_parameters(model).items():
        if "lora_B" in name:
            nn.init.zeros_(parameter)
    assert torch.equal(net(batch, LOGP).logp, off)
    assert not torch.equal(tuned, off)


@torch.no_grad()
@pytest.mark.parametrize("kind", EITHER)
def test_an_adapter_trained_over_few_bits_loads_in_plain_peft(make_lora, make_model, batch, kind, tmp_path):
    model = make_lora(dtype=torch.float32)
    wanted = Net(model)(batch, LOGP).logp
    quantize(model, kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path).eval()
    mine = trained_parameters(model)
    theirs = {name: parameter for name, parameter in loaded.named_parameters() if "lora_" in name}
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in mine.items())
    assert type(next(m for m in loaded.modules() if hasattr(m, "lora_A"))) is peft.tuners.lora.Linear
    torch.testing.assert_close(Net(loaded)(batch, LOGP).logp, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EITHER)
def test_a_checkpoint_of_the_adapter_holds_no_base(make_lora, kind, tmp_path):
    model = make_lora()
    quantize(model, kind)
    assert all("lora_" in name for name in trained_parameters(model))


# As bitsandbytes has it ----------------------------------------------------------------------------------------------


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sides", [(64, 96), (256, 512), (32, 48)])
def test_4_bits_are_those_that_bitsandbytes_layer_holds(sides, dtype):
    import bitsandbytes

    torch.manual_seed(0)
    linear = nn.Linear(*sides, bias=False, dtype=dtype).requires_grad_(False)
    mine = Nf4Linear(linear)
    theirs = bitsandbytes.nn.Linear4bit(
        *sides, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=True
    )
    theirs.weight = bitsandbytes.nn.Params4bit(
        linear.weight.detach().clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    theirs.to("cpu")
    state = theirs.weight.quant_state
    assert torch.equal(mine.weight.flatten(), theirs.weight.detach().flatten())
    assert torch.equal(mine.absmax, state.absmax)
    assert torch.equal(mine.nested_absmax, state.state2.absmax)
    assert torch.equal(mine.nested_code, state.state2.code)
    assert torch.equal(mine.offset, state.offset)
    dense = bitsandbytes.functional.dequantize_4bit(theirs.weight, state)
    assert torch.equal(mine.dense(), dense.to(torch.bfloat16))
