"""The adapter's layer as one operation, against PEFT's own."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn

from burnish.model.lora import LoraLinear


@pytest.fixture
def layer():
    """A plain layer of float64 with an adapter that does something, so that only rounding of the last digits can differ."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=5)
    made = LoraLinear(nn.Linear(6, 10).double().requires_grad_(False), "default", config=config, r=3, lora_alpha=5)
    for parameter in (made.lora_A["default"].weight, made.lora_B["default"].weight):
        nn.init.normal_(parameter)
    return made.double()


def gradients(layer, x, forward):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = forward(layer, x)
    out.square().sum().backward()
    return [out, x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]


def test_output_and_gradients_are_pefts(layer):
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    ours = gradients(layer, x, LoraLinear.forward)
    for found, wanted in zip(ours, gradients(layer, x, peft.tuners.lora.Linear.forward), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_plain_layer_is_one_operation(layer):
    out = layer(torch.randn(4, 6, dtype=torch.float64))
    assert type(out.grad_fn).__name__ == "LowRankBackward"


def test_bf16_activations_meet_a_float32_adapter_without_leaving_bf16(layer):
    layer.base_layer.bfloat16()
    for part in (layer.lora_A, layer.lora_B):
        part.float()
    out, _, to_a, to_b = gradients(layer, torch.randn(4, 6).bfloat16(), LoraLinear.forward)
    assert (out.dtype, to_a.dtype, to_b.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("state", ["switched off", "merged", "dropout", "two adapters"])
def test_what_is_not_plain_is_left_to_peft(layer, state):
    other = copy.deepcopy(layer)
    if state == "switched off":
        other.enable_adapters(False)
    elif state == "merged":
        other.merge()
    elif state == "dropout":
        other.lora_dropout["default"] = nn.Dropout(0.5)
    else:
        other.update_layer("second", r=2, lora_alpha=1, config=peft.LoraConfig(r=2))
        other.double().set_adapter(["default", "second"])
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.manual_seed(1)
    found = other(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, peft.tuners.lora.Linear.forward(other, x), rtol=0, atol=0)
