"""The net against transformers' own logits, over the families of decoders whose attention and heads differ."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from burnish.core import Seq, pack
from burnish.model import head
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.load import Head, load_model
from burnish.model.net import Net
from burnish.recipe import Adapter, Freeze
from tiny_runs import LABELS

LOGP, SCORE = frozenset({"logp"}), frozenset({"score"})
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture
def documents():
    """Seven groups of one sequence, longer and shorter than the sliding windows of the tiny models."""
    draw = random.Random(1)
    lengths = [3, 40, 7, 25, 1, 18, 30]
    return [
        [Seq([draw.randrange(250) for _ in range(n)], [float(draw.random() < 0.7) for _ in range(n)])] for n in lengths
    ]


@pytest.fixture
def make_lora(make_model):
    """A function from a family to a model with an adapter that does change its outputs."""

    def make(architecture):
        model = adapt(make_model(architecture), Adapter(rank=4, alpha=8), Freeze()).eval()
        torch.manual_seed(2)
        for parameter in trained_parameters(model).values():
            nn.init.normal_(parameter, std=0.1)  # an adapter begins as nothing
        return model

    return make


def logp_by_document(net, groups, row_tokens):
    batch = pack(groups, row_tokens=row_tokens)
    logp = net(batch, LOGP).logp
    return [logp[batch.seq == number] for number in range(batch.sequences)]


def own_logp(model, seq):
    """(T,) the same log-probabilities from the model's own logits, the document alone."""
    ids = torch.tensor([seq.ids])
    logp = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    trained = torch.tensor(seq.weight[1:]) != 0
    return torch.cat([torch.zeros(1), logp * trained])


@torch.no_grad()
def test_packed_log_probabilities_are_those_of_each_document_alone(architecture, make_model, documents):
    net = Net(make_model(architecture))
    packed, alone = (logp_by_document(net, documents, row_tokens) for row_tokens in (64, 1))
    for found, wanted in zip(packed, alone, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)


@torch.no_grad()
def test_log_probabilities_are_those_of_the_models_own_logits(architecture, make_model, documents):
    model = make_model(architecture)
    for found, group in zip(logp_by_document(Net(model), documents, 64), documents, strict=True):
        torch.testing.assert_close(found, own_logp(model, group[0]), **CLOSE)


@torch.no_grad()
def test_log_probabilities_see_the_adapter(architecture, make_lora, documents):
    model = make_lora(architecture)
    for found, group in zip(logp_by_document(Net(model), documents, 64), documents, strict=True):
        torch.testing.assert_close(found, own_logp(model, group[0]), **CLOSE)


@torch.no_grad()
def test_an_adapter_says_what_its_merged_weights_say(architecture, make_lora, documents):
    model = make_lora(architecture)
    apart = logp_by_document(Net(model), documents, 64)
    merged = logp_by_document(Net(model.merge_and_unload()), documents, 64)
    for found, wanted in zip(apart, merged, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("perturbed", range(7))
def test_a_perturbed_document_never_moves_another_in_its_pack(architecture, make_model, documents, perturbed):
    net = Net(make_model(architecture))
    changed = [list(group) for group in documents]
    seq = changed[perturbed][0]
    changed[perturbed] = [replace(seq, ids=[(token + 1) % 250 for token in seq.ids])]
    before, after = (logp_by_document(net, groups, 200) for groups in (documents, changed))
    others = [number for number in range(len(documents)) if number != perturbed]
    assert all(torch.equal(before[number], after[number]) for number in others)


@torch.no_grad()
def test_the_adapter_switched_off_is_the_base_model_exactly(architecture, make_model, make_lora, documents):
    batch = pack(documents, row_tokens=64)
    tuned, base = Net(make_lora(architecture)), Net(make_model(architecture).requires_grad_(False))
    with tuned.model.disable_adapter():
        off = tuned(batch, LOGP).logp
    assert torch.equal(off, base(batch, LOGP).logp)
    assert not torch.equal(tuned(batch, LOGP).logp, off)


def test_the_frozen_heads_gradient_is_that_of_the_models_own_logits(architecture, make_lora, documents):
    model = make_lora(architecture)
    gradients = []
    for logp in (logp_by_document(Net(model), documents, 64), [own_logp(model, group[0]) for group in documents]):
        model.zero_grad()
        torch.cat(logp).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5


def test_the_trained_heads_gradient_is_that_of_the_models_own_logits(architecture, make_model, documents):
    model = make_model(architecture)
    gradients = []
    for logp in (logp_by_document(Net(model), documents, 64), [own_logp(model, group[0]) for group in documents]):
        model.zero_grad()
        torch.cat(logp).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5


@torch.no_grad()
def test_chunks_of_the_head_change_nothing(make_model, documents, monkeypatch):
    net = Net(make_model())
    whole = logp_by_document(net, documents, 64)
    monkeypatch.setitem(head.LOGITS, "cpu", 7 * net.language_model.config.vocab_size)
    for found, wanted in zip(logp_by_document(net, documents, 64), whole, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)


@torch.no_grad()
def test_tokens_without_a_weight_get_no_log_probability(make_model, documents):
    batch = pack(documents, row_tokens=64)
    logp = Net(make_model())(batch, LOGP).logp
    assert torch.equal(logp != 0, batch.weight != 0)


def test_a_batch_without_trained_tokens_has_a_gradient_of_zero(make_lora):
    model = make_lora("llama")
    Net(model)(pack([[Seq([1, 2, 3], [0, 0, 0])]], row_tokens=8), LOGP).logp.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@torch.no_grad()
def test_bf16_stays_near_float32(make_model, documents):
    batch = pack(documents, row_tokens=64)
    model = make_model()
    half, full = Net(model, precision="bf16")(batch, LOGP).logp, Net(model)(batch, LOGP).logp
    assert half.dtype == torch.float32
    assert 0 < float((half - full).abs().mean()) < 0.1


@pytest.mark.parametrize("frozen", [True, False])
def test_log_probabilities_are_exact_over_a_wide_vocabulary(make_model, frozen):
    torch.manual_seed(0)
    layer = nn.Linear(32, 128_000, bias=False).requires_grad_(not frozen)
    nn.init.normal_(layer.weight, std=0.5)
    hidden, targets = torch.randn(64, 32), torch.randint(128_000, (64,))
    wanted = (hidden.double() @ layer.weight.double().T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    found = head.head_logp(layer, make_model().config, hidden, targets).double()
    assert float((found - wanted).abs().max()) < 6e-6


# The score head ------------------------------------------------------------------------------------------------------


def plain_scores(model, groups, tokenizer, side):
    """(S,C) by plain transformers, all sequences in one batch that is padded on one side."""
    tokenizer.padding_side = side
    padded = tokenizer.pad({"input_ids": [group[0].ids for group in groups]}, return_tensors="pt")
    return model(**padded).logits


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_plain_transformers_on_either_side_of_the_padding(
    architecture, side, make_classifier, documents, make_tokenizer
):
    model = make_classifier(architecture)
    wanted = plain_scores(model, documents, make_tokenizer(), side)
    for row_tokens in (1, 64):
        score = Net(model)(pack(documents, row_tokens=row_tokens), SCORE).score
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, wanted, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_scores_see_the_adapter_and_the_head_that_it_trains(architecture, make_classifier, documents):
    model = adapt(make_classifier(architecture), Adapter(rank=4, alpha=8), Freeze()).eval()
    batch = pack(documents, row_tokens=64)
    before = Net(model)(batch, SCORE).score
    torch.manual_seed(2)
    for parameter in trained_parameters(model).values():
        nn.init.normal_(parameter, std=0.1)
    after = Net(model)(batch, SCORE).score
    assert not torch.allclose(before, after, atol=0.1)
    merged = Net(model.merge_and_unload())(batch, SCORE).score
    torch.testing.assert_close(merged, after, rtol=1e-3, atol=1e-3)


def test_the_gradient_of_scores_reaches_every_parameter(architecture, make_classifier, documents):
    model = make_classifier(architecture)
    Net(model)(pack(documents, row_tokens=64), SCORE).score.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@torch.no_grad()
def test_a_model_in_bf16_is_scored_by_a_head_in_float32(model_folder, tokenizer, documents):
    head = Head(LABELS, tokenizer.pad_token_id)
    model = load_model(model_folder(), dtype=torch.bfloat16, head=head).eval()
    assert (model.dtype, model.score.weight.dtype) == (torch.bfloat16, torch.float32)
    assert Net(model, precision="bf16")(pack(documents, row_tokens=64), SCORE).score.dtype == torch.float32
