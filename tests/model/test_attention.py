"""Attention one sequence at a time, against transformers' own over the whole packed row; and by edges, against torch's own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import library, nn

from burnish.core import Seq, pack
from burnish.model import attention
from burnish.model.net import Net

LOGP = frozenset({"logp"})
PACKABLE = ("llama", "qwen3", "mistral")


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
    assert batch.edges.tolist() == [0, 40, 60, 63, 64, 97, 109, 128]


def test_a_model_with_another_attention_keeps_its_own(make_model):
    model = make_model("gemma2")
    model.set_attn_implementation("eager")
    assert not attention.use(model)
    assert model.config._attn_implementation == "eager"


def test_a_saved_configuration_does_not_name_it(make_model, tmp_path):
    Net(make_model()).model.save_pretrained(tmp_path)
    assert attention.BY_SEQUENCE not in (tmp_path / "config.json").read_text()


# By edges: the reference that the kernels are held against ------------------------------------------------------------

EDGES = [0, 7, 8, 30, 41, 41, 41]  # ends in empty sequences, as a list that was filled up does
CASES = {
    "plain": (4, 4, 8, -1),
    "shared keys": (4, 2, 8, -1),
    "one key, window": (4, 1, 16, 4),
    "sees only itself": (2, 2, 8, 0),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def packed_input(request):
    """q, k, v, edges, longest, scale and window of the packed operation."""
    heads, shared, size, window = request.param
    torch.manual_seed(0)
    q, k, v = (torch.randn(EDGES[-1], n, size, requires_grad=True) for n in (heads, shared, shared))
    return q, k, v, torch.tensor(EDGES, dtype=torch.int32), 32, 0.3, window


def one_at_a_time(q, k, v, edges, longest, scale, window):
    """The same by torch's own attention, with the mask written out."""
    outs = []
    for start, end in pairwise(edges.tolist()):
        places = torch.arange(end - start)
        distance = places[:, None] - places
        seen = (distance >= 0) & (distance <= (window if window >= 0 else end))
        parts = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def test_packed_attention_is_torchs_own_on_each_sequence(packed_input):
    found = torch.ops.burnish.packed_attention(*packed_input)[0]
    torch.testing.assert_close(found, one_at_a_time(*packed_input), rtol=1e-5, atol=1e-6)


def test_the_gradients_of_packed_attention_are_torchs_own(packed_input):
    slope = torch.randn(packed_input[0].shape)
    found, wanted = (
        torch.autograd.grad(way(*packed_input), packed_input[:3], slope)
        for way in (lambda *given: torch.ops.burnish.packed_attention(*given)[0], one_at_a_time)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_packed_attention_gives_the_sums_of_the_scores(packed_input):
    q, k, _, edges, _, scale, _ = packed_input
    _, sums = torch.ops.burnish.packed_attention(*packed_input)
    assert (sums.shape, sums.dtype) == ((q.shape[1], len(q)), torch.float32)
    first = sums[:, edges[1]]  # a sequence of one token scores itself alone
    torch.testing.assert_close(first, scale * (q[7] * k[7].repeat_interleave(q.shape[1] // k.shape[1], 0)).sum(-1))


def test_packed_attention_is_an_operation_that_a_compiler_may_leave_whole(packed_input):
    library.opcheck(torch.ops.burnish.packed_attention.default, packed_input)


def test_the_shapes_that_its_gradients_are_said_to_have_are_theirs(packed_input):
    q, k, v, edges, *rest = (x.detach() if isinstance(x, torch.Tensor) else x for x in packed_input)
    out, sums = torch.ops.burnish.packed_attention(q, k, v, edges, *rest)
    given = (torch.randn_like(out), q, k, v, out, sums, edges, *rest)
    library.opcheck(torch.ops.burnish.packed_attention_backward.default, given)


def test_bf16_goes_in_and_comes_out(packed_input):
    half = [x.bfloat16() for x in packed_input[:3]]
    found = torch.ops.burnish.packed_attention(*half, *packed_input[3:])[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), one_at_a_time(*packed_input), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("architecture", [*PACKABLE, "gemma3_text", "qwen3_moe"])
def test_models_that_only_mask_or_window_fit_the_packed_kernel(architecture, make_model):
    assert attention.fits_packed(make_model(architecture))


@pytest.mark.parametrize("trait", attention.OWN)
def test_a_model_whose_attention_does_more_keeps_its_own(trait, make_model):
    model = make_model()
    setattr(model.config, trait, 1)
    assert not attention.fits_packed(model)


def test_a_model_with_capped_scores_does_not_fit_the_packed_kernel(make_model):
    assert not attention.fits_packed(make_model("gemma2"))


def test_a_model_with_sinks_does_not_fit_the_packed_kernel(make_model):
    model = make_model()
    model.model.layers[0].self_attn.sinks = nn.Parameter(torch.zeros(4))
    assert not attention.fits_packed(model)


def test_a_model_set_to_another_attention_does_not_fit_the_packed_kernel(make_model):
    model = make_model()
    model.set_attn_implementation("eager")
    assert not attention.fits_packed(model)


@pytest.fixture
def make_packed(make_model):
    """A function from a family to a net that attends by edges."""

    def make(architecture):
        net = Net(make_model(architecture))
        net.by_edges = True
        return net

    return make


@torch.no_grad()
@pytest.mark.parametrize("architecture", PACKABLE)
def test_a_net_by_edges_says_what_one_by_masks_says(architecture, make_packed, make_model, batch):
    found, wanted = make_packed(architecture)(batch, LOGP).logp, Net(make_model(architecture))(batch, LOGP).logp
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", PACKABLE)
def test_empty_sequences_at_the_end_change_nothing(architecture, make_packed, batch):
    net = make_packed(architecture)
    filled = replace(batch, edges=torch.cat([batch.edges, batch.edges[-1:].expand(5)]))
    assert torch.equal(net(filled, LOGP).logp, net(batch, LOGP).logp)


@torch.no_grad()
@pytest.mark.parametrize("perturbed", range(6))
@pytest.mark.parametrize("architecture", PACKABLE)
def test_by_edges_a_perturbed_document_never_moves_another(architecture, perturbed, make_packed, batch):
    net, mine = make_packed(architecture), batch.seq == perturbed
    before = net(batch, LOGP).logp
    after = net(replace(batch, ids=torch.where(mine, (batch.ids + 1) % 250, batch.ids)), LOGP).logp
    assert torch.equal(before[~mine], after[~mine])
    assert perturbed == 3 or not torch.equal(
        before[mine], after[mine]
    )  # the fourth is one token, which nothing predicts


@torch.no_grad()
def test_the_models_own_attention_comes_back_after_each_pass(make_packed, batch):
    net = make_packed("llama")
    net(batch, LOGP)
    assert net.model.config._attn_implementation == attention.BY_SEQUENCE
