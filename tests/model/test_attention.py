"""Attention one sequence at a time, against transformers' own over the whole packed row."""

from __future__ import annotations

import pytest
import torch

from burnish.core import Seq, pack
from burnish.model import attention
from burnish.model.net import Net

LOGP = frozenset({"logp"})


@pytest.fixture
def batch():
    """Two rows of sequences, some longer than the sliding windows of the tiny models, with padding at the end of one."""
    torch.manual_seed(0)
    lengths = [40, 20, 3, 1, 33, 12]
    return pack([[Seq(torch.randint(250, (n,)).tolist(), [1.0] * n)] for n in lengths], row_tokens=64)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_it_says_what_one_mask_over_the_row_says(architecture, make_model, batch):
    net = Net(make_model(architecture))
    ours = net(batch, LOGP).logp
    net.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, net(batch, LOGP).logp, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_no_call_sees_more_than_one_sequence(make_model, batch, monkeypatch):
    seen = []
    inner = attention.sdpa_attention_forward

    def watch(module, query, *rest, **kwargs):
        seen.append(query.shape[2])
        return inner(module, query, *rest, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watch)
    Net(make_model())(batch, LOGP)
    assert max(seen) == 40


def test_boundaries_are_the_starts_of_the_sequences_and_the_end(batch):
    assert attention.boundaries(batch.pos).tolist() == [0, 40, 60, 63, 64, 97, 109, 128]


def test_a_model_with_another_attention_keeps_its_own(make_model):
    model = make_model("gemma2")
    model.set_attn_implementation("eager")
    assert not attention.use(model)
    assert model.config._attn_implementation == "eager"


def test_a_saved_configuration_does_not_name_it(make_model, tmp_path):
    Net(make_model()).model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
