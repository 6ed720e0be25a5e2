"""Every method of `adapter` against plain PEFT and transformers: the same loss, the same gradients, files that load, weights that merge."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import PeftModel
from peft.utils import loftq_utils

from burnish.core import Seq, pack
from burnish.data.classes import Classes
from burnish.data.render import Chat
from burnish.errors import CheckpointError, RecipeError
from burnish.methods import METHODS
from burnish.model.adapt import adapt, parameter_count, trained_groups, trained_parameters
from burnish.model.adapters import FIXED_SEED
from burnish.model.fast import accelerate, decoder_layers
from burnish.model.load import load_model
from burnish.model.net import Net
from burnish.model.quantize import Nf4Linear, quantize
from burnish.model.sample import Sampler
from burnish.model.starts import before_tuning
from burnish.objectives import make_objective
from burnish.recipe import Adapter, Freeze
from burnish.serve.export import export, replay, try_adapter
from burnish.train.loop import backward
from burnish.train.optim import Optim
from tiny_runs import LABELS, needs_bitsandbytes

ROWS = ([70, 65, 90, 81, 66, 66, 90], [80, 81, 82, 83], [99, 65, 70, 72, 74, 75])
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANKED = {"rank": 4, "alpha": 8}
# Our keys, and the same said to PEFT.
ADAPTERS = {
    "lora": (RANKED, lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")),
    "rslora": (RANKED, lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True)),
    "dora": (RANKED, lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True)),
    "pissa": (RANKED, lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights="pissa_niter_16")),
    "loftq": (RANKED, lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")),
    "ia3": ({}, lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "oft": ({"block": 8}, lambda: peft.OFTConfig(oft_block_size=8, target_modules="all-linear")),
    "vera": ({"rank": 12}, lambda: peft.VeraConfig(r=12, target_modules=LINEAR)),
    "prompt": ({"tokens": 5}, lambda: peft.PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init="SAMPLE_VOCAB")),
    "prefix": ({"tokens": 5}, lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, num_attention_heads=2, token_dim=16, num_layers=3)),
    "layernorm": ({}, lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"])),
}  # fmt: skip
BESIDE = [name for name, method in METHODS.items() if method.beside]
WRITING = {"main": (make_objective("sft"), 1.0)}


def batch_of(rows=ROWS):
    """The rows packed together, every token but the first trained."""
    return pack([[Seq(list(ids), [1.0] * len(ids))] for ids in rows], row_tokens=64, task="main")


def adapter_of(method):
    return Adapter(method=method, **ADAPTERS[method][0])


def stir(model):
    """Move every trained weight, the same way for the same model, so that an adapter does something."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=source))
    return model


@pytest.fixture(params=[pytest.param(one, marks=needs_bitsandbytes) if one == "loftq" else one for one in ADAPTERS])
def method(request):
    return request.param


@pytest.fixture
def start(method, make_model):
    """The tiny model with the method's adapter as it begins; that of loftq on 4 bits, without which it has no start."""
    torch.manual_seed(FIXED_SEED)
    model = adapt(make_model(), adapter_of(method), Freeze()).eval()
    if method == "loftq":
        quantize(model, "nf4")
    return model


@pytest.fixture
def tuned(start):
    return stir(start)


@pytest.fixture
def plain_start(method, make_model):
    """What PEFT itself makes of the same model. Its LoftQ asks for a GPU, but not the function that it decomposes with."""
    torch.manual_seed(FIXED_SEED)
    config = ADAPTERS[method][1]()
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(make_model(), config).eval()
    for layer in model.modules():
        if method == "loftq" and isinstance(layer, peft.tuners.lora.Linear):
            weight, dense = layer.base_layer.weight, Nf4Linear(layer.base_layer).dense().float()
            found = loftq_utils._low_rank_decomposition(weight.detach() - dense, reduced_rank=4)
            weight.data = dense
            layer.lora_A["default"].weight.data = found["R"] / 2**0.5  # the scale is alpha / r = 2
            layer.lora_B["default"].weight.data = found["L"] / 2**0.5
    return model


@pytest.fixture
def plain(plain_start):
    return stir(plain_start)


def plain_loss(model, rows=ROWS):
    """The summed loss of each row by itself, as transformers and PEFT compute it; no row's first token is learnt, from a prompt neither."""
    total = torch.zeros(())
    for ids in rows:
        tokens = torch.tensor([ids])
        labels = torch.tensor([[-100, *ids[1:]]])
        loss = model(input_ids=tokens, labels=labels).loss
        total = total + loss * (len(ids) - 1)
    return total


def test_the_table_of_methods_is_tested_whole():
    assert set(ADAPTERS) == set(BESIDE)


def test_it_trains_the_parameters_that_peft_trains(tuned, plain):
    ours, theirs = trained_parameters(tuned), trained_parameters(plain)
    assert {name: p.shape for name, p in ours.items()} == {name: p.shape for name, p in theirs.items()}


def test_it_begins_where_peft_begins(start, plain_start):
    theirs = trained_parameters(plain_start)
    for name, value in trained_parameters(start).items():
        torch.testing.assert_close(value, theirs[name])


def test_loss_and_gradients_are_those_of_plain_peft(tuned, plain):
    net = Net(tuned)
    loss = WRITING["main"][0].loss(net(batch_of(), frozenset({"logp"})), batch_of()).sum
    loss.backward()
    wanted = plain_loss(plain)
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    theirs = trained_parameters(plain)
    for name, parameter in trained_parameters(tuned).items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


def test_its_loss_falls(start):
    net = Net(start)
    optim = Optim(trained_parameters(net.model), learning_rate=0.03, total=100, weight_decay=0.0)
    losses = []
    for _ in range(15):
        optim.zero_grad()
        losses.append(backward(net, WRITING, [batch_of()], optim)[0])
        optim.step()
    assert losses[-1] < 0.9 * losses[0]


def test_before_tuning_it_is_the_base_model(start, method, make_model):
    wanted = replay(start if method == "loftq" else make_model(), ROWS)
    begun = replay(start, ROWS)
    tuned = replay(stir(start), ROWS)
    with before_tuning(start) as model:
        found = replay(model, ROWS)
    for place, base in enumerate(wanted):
        torch.testing.assert_close(found[place], base, rtol=1e-3, atol=1e-3)
        if not METHODS[method].prompts:  # which begin with tokens that the model has not seen
            torch.testing.assert_close(begun[place], base, rtol=1e-3, atol=1e-3)
    assert (tuned[0] - wanted[0]).abs().max() > 1e-2
    torch.testing.assert_close(replay(start, ROWS)[0], tuned[0])


@needs_bitsandbytes
def test_loftq_begins_nearer_to_the_model_than_4_bits_are(make_model):
    def difference(method):
        torch.manual_seed(0)
        model = adapt(make_model(), Adapter(method=method, rank=8), Freeze()).eval()
        quantize(model, "nf4")
        return float((torch.cat(replay(model, ROWS)) - torch.cat(replay(make_model(), ROWS))).norm())

    assert difference("loftq") < 0.8 * difference("lora")


def test_what_is_exported_loads_in_plain_peft_and_transformers(tuned, method, model_folder, tokenizer, tmp_path):
    try_adapter(tuned, tmp_path / "tried")
    if method == "loftq":  # as any run in 4 bits: the published weights take the place of the stored ones
        export(tuned, Chat(tokenizer), model_folder(), tmp_path, ["adapter"], ROWS)
    expected = replay(tuned, ROWS)
    wanted = ["adapter", "merged"] if METHODS[method].merges else ["adapter"]
    found = export(tuned, Chat(tokenizer), model_folder(), tmp_path, wanted, ROWS)
    assert found["status"] == "pass"
    loads = {
        "adapter": lambda folder: PeftModel.from_pretrained(load_model(model_folder(), dtype=torch.float32), folder),
        "merged": lambda folder: load_model(folder, dtype=torch.float32),
    }
    for loaded in (loads[name](tmp_path / name) for name in wanted):
        for ours, theirs in zip(expected, replay(loaded, ROWS), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


def test_trained_weights_are_float32_on_a_base_of_16_bits(method, model_folder):
    model = adapt(load_model(model_folder(), dtype=torch.bfloat16), adapter_of(method), Freeze())
    assert {parameter.dtype for parameter in trained_parameters(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    net = Net(stir(model), precision="bf16")
    logp = net(batch_of(), frozenset({"logp"})).logp
    logp.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in trained_parameters(model).values())


def test_frozen_layers_have_no_adapter(method, make_model):
    if METHODS[method].prompts:
        with pytest.raises(RecipeError, match="trains no layer"):
            adapt(make_model(), adapter_of(method), Freeze(layers="0-1"))
        return
    model = adapt(make_model(), adapter_of(method), Freeze(layers="0-1"))
    assert not [name for name in trained_parameters(model) if ".layers.0." in name or ".layers.1." in name]
    assert [name for name in trained_parameters(model) if ".layers.2." in name]


def test_what_is_trained_is_counted_apart_from_the_model(tuned, make_model):
    assert parameter_count(tuned) == parameter_count(make_model())
    groups = trained_groups(tuned)
    assert sum(row["parameters"] for row in groups) == sum(p.numel() for p in trained_parameters(tuned).values())
    assert all("default" not in row["group"] for row in groups)


def test_a_score_head_is_trained_beside_it(method, make_classifier):
    if METHODS[method].prompts:
        with pytest.raises(RecipeError, match="scores texts"):
            adapt(make_classifier(), adapter_of(method), Freeze())
        return
    model = adapt(make_classifier(), adapter_of(method), Freeze())
    heads = [p.shape for name, p in trained_parameters(model).items() if ".score." in name]
    assert heads == [(3, 32)]


def test_a_model_with_a_score_head_loads_elsewhere_too(method, make_classifier, model_folder, tokenizer, tmp_path):
    if METHODS[method].prompts:
        return
    model = adapt(make_classifier(), adapter_of(method), Freeze()).eval()
    if method == "loftq":
        quantize(model, "nf4")
    found = export(stir(model), Classes(tokenizer, LABELS), model_folder(), tmp_path, ["adapter", "merged"], ROWS)
    assert found["status"] == "pass"


# Learnt tokens -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["prompt", "prefix"])
def prompting(request, make_model):
    """A function from the name of a family to the tiny model with learnt tokens that change what it writes."""

    def make(architecture):
        torch.manual_seed(0)
        model = adapt(make_model(architecture), Adapter(method=request.param, tokens=5), Freeze()).eval()
        with torch.no_grad():
            for parameter in trained_parameters(model).values():
                parameter.normal_()
        return model

    return make


def test_learnt_tokens_stand_before_each_packed_sequence(prompting, architecture):
    model = prompting(architecture)
    batch = batch_of()
    loss = WRITING["main"][0].loss(Net(model)(batch, frozenset({"logp"})), batch).sum
    torch.testing.assert_close(loss, plain_loss(model), rtol=1e-4, atol=1e-4)


def test_prompts_of_unequal_length_are_answered_as_each_alone(prompting, architecture, tokenizer):
    model = prompting(architecture)
    prompts = [[70, 71, 72, 80, 90], [65, 66, 67]]
    found = Sampler(model, tokenizer, end_ids=[260]).sample(prompts, max_new_tokens=6)
    for prompt, (answer,) in zip(prompts, found, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6:
            with torch.no_grad():
                chosen = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if chosen == 260:
                break
            ids.append(chosen)
        assert answer.ids == ids[len(prompt) :]


def test_learnt_tokens_cannot_be_merged(prompting, tokenizer, model_folder, tmp_path):
    with pytest.raises(CheckpointError, match="adapter"):
        export(prompting("llama"), Chat(tokenizer), model_folder(), tmp_path, ["merged"], ROWS)
    assert not (tmp_path / "merged").exists()


def test_layers_computed_again_give_the_same_gradients_to_a_prompt(make_model):
    found = []
    for recompute in ("none", "all"):
        torch.manual_seed(0)
        net = Net(adapt(make_model(), Adapter(method="prompt", tokens=5), Freeze()))
        accelerate(net, compile=False, recompute=recompute)
        assert all(layer.gradient_checkpointing == (recompute == "all") for layer in decoder_layers(net.language_model))
        optim = Optim(trained_parameters(net.model), learning_rate=0.1, total=1)
        net.train()
        backward(net, WRITING, [batch_of()], optim)
        found += [parameter.grad for parameter in trained_parameters(net.model).values()]
    torch.testing.assert_close(found[0], found[1])
