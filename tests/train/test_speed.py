"""How long training takes: against what was measured on one H100, and what it follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from burnish.model.adapt import adapt
from burnish.model.load import empty_model
from burnish.recipe import Adapter, Freeze
from burnish.train import speed
from burnish.train.memory import Settings
from burnish.train.shape import shape_of
from burnish.train.speed import Machine, operations, seconds_per_token

CPU = torch.device("cpu")
CARD = Settings(
    batch_size=4, micro_tokens=8192, epochs=1, steps=1, learning_rate=1e-4, precision="bf16", device="cuda", compile=True
)  # fmt: skip
BF16 = Machine(rate=798e12, plain=798e12, bandwidth=3.0e12)
FP8 = replace(BF16, rate=1400e12)


@pytest.fixture(scope="module")
def shapes():
    """8B and 1B of Llama 3, with adapters of rank 16."""
    from transformers import LlamaConfig

    def of(hidden, mlp, layers, **more):
        config = LlamaConfig(
            vocab_size=128256, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=32, num_key_value_heads=8, **more,
        )  # fmt: skip
        return shape_of(config, adapt(empty_model(config), Adapter(rank=16), Freeze()))

    return {"8B": of(4096, 14336, 32), "1B": of(2048, 8192, 16, tie_word_embeddings=True)}


@pytest.mark.parametrize(
    ("size", "precision", "machine", "recompute", "measured"),
    [
        ("8B", "bf16", BF16, "none", 15_849),
        ("8B", "fp8", FP8, "none", 21_455),
        ("8B", "bf16", BF16, "mlp", 12_891),
        ("1B", "bf16", BF16, "none", 76_431),
        ("1B", "fp8", FP8, "none", 92_791),
    ],
)
def test_the_speed_is_about_what_was_measured_on_an_h100(shapes, size, precision, machine, recompute, measured):
    settings = replace(CARD, precision=precision, recompute=recompute)
    tokens = 8192 if size == "8B" else 16384
    seconds = seconds_per_token(shapes[size], settings, machine, micro=tokens, step=tokens, share=1, span=2048)
    assert 1 / seconds == pytest.approx(measured, rel=0.1)


def test_a_token_of_an_adapter_takes_four_operations_a_weight_and_the_head_on_what_is_trained(shapes):
    shape = shapes["8B"]
    all_trained, none_trained = (sum(operations(shape, CARD, share=share, span=1)) for share in (1, 0))
    assert all_trained - none_trained == 4 * 128256 * 4096
    assert none_trained == pytest.approx(4 * shape.met, rel=0.05)


def test_recomputation_takes_up_to_two_more_a_weight(shapes):
    shape = shapes["8B"]
    none, mlp, everything = (
        operations(shape, replace(CARD, recompute=level), share=1, span=1)[0] for level in ("none", "mlp", "all")
    )
    assert mlp - none == 2 * 32 * 4096 * (2 * 14336 + 4096)
    assert everything - none == 2 * shape.met


def test_a_card_that_waits_for_its_host_gains_from_larger_micro_batches(shapes):
    small, large = (
        seconds_per_token(shapes["1B"], CARD, BF16, micro=tokens, step=16384, share=1, span=256)
        for tokens in (256, 16384)
    )
    assert small > 2 * large


def test_four_bits_cost_the_more_the_smaller_the_micro_batch(shapes):
    settings = replace(CARD, precision="nf4")
    costs = [
        seconds_per_token(shapes["8B"], settings, BF16, micro=tokens, step=16384, share=1, span=2048)
        for tokens in (4096, 16384)
    ]
    assert costs[0] > costs[1]


def test_what_is_measured_here_is_a_rate():
    assert speed.measured_rate(CPU, "fp32", seconds=0.01) > 1e8
    assert speed.measured_bandwidth(CPU, seconds=0.01) > 1e8


def test_a_machine_is_measured_once(monkeypatch):
    calls = []
    monkeypatch.setattr(speed, "measured_rate", lambda *args, **sides: calls.append(args) or 1.0)
    monkeypatch.setattr(speed, "measured_bandwidth", lambda device: 1.0)
    speed.measure.cache_clear()
    assert speed.measure(CPU, "fp32", 8, 8) == speed.measure(CPU, "fp32", 8, 8)
    assert len(calls) == 1
    speed.measure.cache_clear()
