"""Noise on embeddings and dropout: in training alone, and as large as they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from burnish.core import Seq, pack
from burnish.errors import RecipeError
from burnish.model import attention
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.fast import accelerate
from burnish.model.net import Net
from burnish.model.regularise import drops, noisy_embeddings, set_dropout, undisturbed
from burnish.recipe import Adapter, Freeze
from burnish.train.optim import Optim

LOGP = frozenset({"logp"})
LENGTHS = (5, 20, 9, 30)


def batch_of(lengths=LENGTHS):
    seqs = [
        [Seq([(7 * n + place) % 250 for place in range(length)], [1.0] * length)] for n, length in enumerate(lengths)
    ]
    return pack(seqs, row_tokens=40)


def logp(net, seed=0, batch=None):
    torch.manual_seed(seed)
    return net(batch or batch_of(), LOGP).logp.detach()


# Noise on embeddings --------------------------------------------------------------------------------------------------


def noise_of(batch, alpha, width=16):
    embedding = nn.Embedding(300, width)
    plain = embedding(batch.ids)
    torch.manual_seed(0)
    with noisy_embeddings(embedding, batch, alpha):
        found = embedding(batch.ids)
    assert torch.equal(embedding(batch.ids), plain)  # the hook is gone
    return (found - plain).detach()


def test_noise_is_uniform_and_scaled_by_the_length_of_each_sequence_not_of_the_row():
    batch = batch_of()
    noise = noise_of(batch, alpha=5.0, width=64)
    for number, length in enumerate(LENGTHS):
        own = noise[batch.seq == number]
        bound = 5.0 / (length * 64) ** 0.5
        assert own.abs().max() <= bound
        assert own.abs().max() > 0.95 * bound
        assert own.std() == pytest.approx(bound / 3**0.5, rel=0.1)  # of a uniform distribution
        assert abs(own.mean()) < 0.1 * bound


def test_padding_gets_no_noise():
    batch = batch_of()
    assert (batch.seq < 0).any()
    assert noise_of(batch, 5.0)[batch.seq < 0].abs().max() == 0


@pytest.fixture
def make_net(make_model):
    def make(method="lora", neftune=5.0, **adapter):
        net = Net(adapt(make_model(), Adapter(method=method, rank=4, **adapter), Freeze()))
        net.neftune = neftune
        return net.train()

    return make


def test_noise_is_there_in_training_and_follows_torchs_generator(make_net):
    net = make_net()
    assert torch.equal(logp(net, 1), logp(net, 1))
    assert not torch.allclose(logp(net, 1), logp(net, 2))


def test_two_passes_in_a_row_have_other_noise(make_net):
    net = make_net()
    torch.manual_seed(0)
    first, second = (net(batch_of(), LOGP).logp for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("evaluate", [lambda net: net.eval(), lambda net: net.model.eval()])
def test_there_is_no_noise_outside_of_training(make_net, evaluate):
    net = make_net()
    evaluate(net)
    assert torch.equal(logp(net, 1), logp(net, 2))
    assert torch.equal(logp(net), logp(make_net(neftune=0.0).eval()))


def test_the_models_own_call_has_no_noise(make_net):
    net = make_net()
    ids = batch_of((20,)).ids
    assert torch.equal(net.model(input_ids=ids).logits, net.model(input_ids=ids).logits)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_noise_changes_no_weight_and_leaves_nothing_in_the_model(make_net, method):
    net = make_net(method)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(batch_of(), LOGP).logp.sum().backward()
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not net.language_model.get_input_embeddings()._forward_hooks
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained_parameters(net).values())


def test_the_noise_of_a_sequence_has_one_size_wherever_it_is_packed(make_net):
    alone, packed = batch_of((20,)), batch_of((20, 9))
    sizes = [noise_of(batch, 5.0, 64)[batch.seq == 0].abs().max() for batch in (alone, packed)]
    assert sizes[0] == pytest.approx(float(sizes[1]), rel=0.02)


def test_compiled_layers_get_the_same_noise(make_net):
    net, other = make_net(), make_net()
    torch._dynamo.reset()
    try:
        accelerate(other, compile=True, backend="eager")
        torch.testing.assert_close(logp(other, 3), logp(net, 3), rtol=1e-4, atol=1e-4)
    finally:
        torch._dynamo.reset()
        torch._functorch.config.activation_memory_budget = 1.0


@pytest.mark.parametrize("recompute", ["all"])
def test_what_is_computed_again_had_the_same_noise_and_dropout(make_model, recompute):
    found = []
    for level in ("none", recompute):
        model = make_model()
        set_dropout(model, 0.2)
        net = Net(adapt(model, Adapter(method="full"), Freeze())).train()
        net.neftune = 5.0
        accelerate(net, compile=False, recompute=level)
        torch.manual_seed(5)
        net(batch_of(), LOGP).logp.sum().backward()
        found.append([p.grad for p in trained_parameters(net).values()])
    torch.testing.assert_close(found[0], found[1])


# Dropout --------------------------------------------------------------------------------------------------------------


def test_an_adapters_dropout_is_there_in_training_alone(make_net):
    net = make_net(neftune=0.0, dropout=0.5)
    for parameter in trained_parameters(net).values():
        nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(logp(net, 1), logp(net, 2))
    net.eval()
    assert torch.equal(logp(net, 1), logp(net, 2))


def gpt2():
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
def test_attention_drops_in_training_alone(make_model, family):
    model = make_model(family)
    set_dropout(model, 0.5)
    net = Net(model).train()
    assert not torch.allclose(logp(net, 1), logp(net, 2))
    net.eval()
    assert torch.equal(logp(net, 1), logp(net, 2))
    assert torch.equal(logp(net), logp(Net(make_model(family)).eval()))


def test_dropout_of_hidden_states_and_residuals_is_set_too():
    model = gpt2()
    set_dropout(model, 0.25)
    shares = {part.p for part in model.modules() if isinstance(part, nn.Dropout)}
    assert shares == {0.25}
    assert {model.config.attn_pdrop, model.config.resid_pdrop, model.config.embd_pdrop} == {0.25}


def test_dropout_of_nothing_switches_off_what_a_model_brings():
    model = gpt2().train()
    ids = torch.arange(20)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    set_dropout(model, 0.0)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_dropout_that_is_not_given_stays_as_the_model_has_it():
    model = gpt2()
    set_dropout(model, None)
    assert model.config.resid_pdrop == 0.1


def test_a_model_without_dropout_is_refused_and_the_keys_are_named(make_model):
    model = make_model()
    model.config.attention_dropout = None
    with pytest.raises(RecipeError, match="a model of the kind llama has no dropout") as caught:
        set_dropout(model, 0.1)
    assert "attention_dropout, attn_pdrop" in caught.value.expected
    set_dropout(model, 0.0)


def test_wide_heads_that_drop_keep_their_own_attention(make_model):
    model = make_model("qwen3")
    model.set_attn_implementation("sdpa")
    model.config.head_dim = attention.WIDEST_DROPPING + 64
    assert attention.fits_packed(model)
    set_dropout(model, 0.1)
    assert not attention.fits_packed(model)


@pytest.mark.parametrize(
    ("kept", "share", "found"), [(0.0, None, False), (0.2, None, True), (0.2, 0.0, False), (0.0, 0.1, True)]
)
def test_what_drops_is_told_before_a_model_is_loaded(make_model, kept, share, found):
    config = make_model().config
    config.attention_dropout = kept
    assert drops(config, share) == found


@pytest.mark.parametrize("training", [True, False])
def test_the_packed_kernel_is_told_of_dropout_in_training_alone(make_model, monkeypatch, training):
    told = []
    keeping = torch.ops.burnish.packed_attention
    stand_in = lambda *given: (told.append(given[-1]), keeping(*given[:-1])[0])[1]  # noqa: E731
    monkeypatch.setattr(attention, "attention_dropping", stand_in)
    model = make_model()
    model.set_attn_implementation("sdpa")
    set_dropout(model, 0.1)
    assert attention.fits_packed(model)
    net = Net(model).train(training)
    net.by_edges = True
    logp(net, 0, batch_of((20, 15)))
    assert told == [0.1] * model.config.num_hidden_layers * training


@pytest.mark.parametrize("recompute", ["none", "elementwise", "all"])
def test_a_backward_pass_drops_what_the_forward_pass_dropped_compiled_or_not(make_model, monkeypatch, recompute):
    """With a stand-in for the GPU's kernel: it draws which values it lets through, and hands that on to its backward pass."""

    def forward(q, k, v, edges, longest, scale, window, dropout):
        out = attention._reference(q, k, v, edges, scale, window)[0]
        state = torch.bernoulli(torch.full(out.shape, 1 - dropout)) / (1 - dropout)
        return out * state, torch.zeros(1), state

    def backward(grad, saved, longest, scale, window, dropout):
        q, k, v, _, _, state, edges = saved
        return attention._reference_backward(grad * state, q, k, v, edges, scale, window)

    monkeypatch.setattr(attention, "_torch_forward", forward)
    monkeypatch.setattr(attention, "_torch_backward", backward)
    found = []
    for compiled in (False, True):
        torch.manual_seed(2)
        model = make_model()
        model.set_attn_implementation("sdpa")
        set_dropout(model, 0.5)
        net = Net(adapt(model, Adapter(method="full"), Freeze())).train()
        net.by_edges = True
        level = recompute if compiled else "none"
        accelerate(net, compile=compiled, recompute=level, backend="aot_eager_decomp_partition")
        torch.manual_seed(3)
        net(batch_of(), LOGP).logp.sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in trained_parameters(net).values()]))
    accelerate(net, compile=False)  # which puts the share of kept activations back for the tests that follow
    assert torch.allclose(*found, rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))


def test_packed_sequences_keep_apart_under_dropout(make_model):
    model = make_model()
    set_dropout(model, 0.3)
    net, batch = Net(model).train(), batch_of((20, 15))
    other = replace(batch, ids=torch.where(batch.seq == 1, (batch.ids + 1) % 250, batch.ids))
    first = [logp(net, 4, one)[batch.seq == 0] for one in (batch, other)]
    assert torch.equal(*first)


def test_an_undisturbed_net_has_neither_and_gets_both_back(make_model):
    model = make_model()
    set_dropout(model, 0.3)
    net = Net(adapt(model, Adapter(rank=4, dropout=0.4), Freeze())).train()
    net.neftune = 5.0
    for parameter in trained_parameters(net).values():
        nn.init.normal_(parameter, std=0.1)
    with undisturbed(net):
        assert torch.equal(logp(net, 1), logp(net, 2))
    assert not torch.allclose(logp(net, 1), logp(net, 2))
    kept = {part.p for part in net.modules() if isinstance(part, nn.Dropout)}
    assert (net.neftune, kept, model.config.attention_dropout) == (5.0, {0.4}, 0.3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_only_matrices_of_a_model_decay(make_net, method):
    net = make_net(method, neftune=0.0)
    parameters = trained_parameters(net.model)
    for parameter in parameters.values():
        nn.init.constant_(parameter, 1.0)
        parameter.grad = torch.zeros_like(parameter)
    Optim(parameters, learning_rate=0.1, total=1, warmup=0.0, weight_decay=0.5).step()
    for name, parameter in parameters.items():
        wanted = 1.0 if "norm" in name or name.endswith("bias") else 0.95
        assert (name, float(parameter.detach().mean())) == (name, pytest.approx(wanted))
