from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from burnish.core import Loss, pack
from burnish.data.classes import Classes
from burnish.data.feed import Feed
from burnish.data.render import Chat
from burnish.data.rows import Conversation, Labelled, Turn
from burnish.errors import SmokeError
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.net import Net
from burnish.objectives import make_objective
from burnish.recipe import Adapter, Freeze
from burnish.train.ladder import Ladder
from burnish.train.memory import Settings
from burnish.train.smoke import smoke
from tiny_runs import LABELS


@pytest.fixture
def try_out(make_model, tokenizer):
    """A function that runs the try-out on six rows, and gives its report and the net; parts of it may be replaced."""

    def run(
        architecture="llama", *, change=lambda net: None, objective=None, export=lambda model, folder: None, rate=0.003
    ):
        torch.manual_seed(0)
        net = Net(adapt(make_model(architecture), Adapter(rank=8, alpha=16), Freeze()))
        change(net)
        chat = Chat(tokenizer)
        texts = ["a", "long " * 12, "b c", "d", "e e e", "f"]
        rows = [
            Conversation(file="r.jsonl", line=n, turns=(Turn("user", text), Turn("assistant", text)))
            for n, text in enumerate(texts, 1)
        ]
        groups = [chat.render(row) for row in rows]
        longest = [pack(groups, row_tokens=128, task="main")]
        tasks = {"main": (objective or make_objective("sft"), 1.0)}
        return smoke(net, tasks, {"main": groups}, {"main": chat}, longest, rate, export), net

    return run


def test_a_sound_model_passes_and_the_report_says_what_was_seen(try_out, architecture):
    report, _ = try_out(architecture)
    assert report.learnt_loss < 0.25 * report.first_loss
    assert report.head_difference < 1e-3
    assert report.mask.endswith("⟪a<|im_end|>⟫\n")
    assert "learnt by heart" in report.summary


@pytest.mark.parametrize("adapter", [Adapter(rank=8, alpha=16), Adapter(method="full")], ids=["lora", "full"])
def test_a_score_head_is_tried_in_the_same_way(adapter, make_classifier, tokenizer, architecture):
    torch.manual_seed(0)
    net = Net(adapt(make_classifier(architecture), adapter, Freeze()))
    chat = Classes(tokenizer, LABELS)
    rows = [
        Labelled(file="r.csv", line=n, turns=(Turn("user", text),), label=LABELS[n % 3])
        for n, text in enumerate(["a", "b c", "long " * 12], 1)
    ]
    groups = [chat.render(row) for row in rows]
    longest = [pack(groups, row_tokens=128, task="main")]
    tasks = {"main": (make_objective("classify"), 1.0)}
    report = smoke(net, tasks, {"main": groups}, {"main": chat}, longest, 0.003, lambda model, folder: None)
    assert report.learnt_loss < 0.3
    assert report.head_difference < 1e-3
    assert report.mask == "a ⟪red⟫"


def test_no_optimizer_and_none_of_its_moments_are_left_behind(try_out):
    try_out()
    gc.collect()

    def optimizers():
        return {id(one) for one in gc.get_objects() if isinstance(one, torch.optim.Optimizer)}

    others = optimizers()  # of other tests in this process
    gc.disable()  # what only Python's collector would find must be gone all the same
    try:
        try_out()
        left = optimizers() - others
    finally:
        gc.enable()
    assert not left


def test_weights_gradients_and_random_numbers_are_as_before(try_out):
    kept = {}

    def keep(net):
        kept.update({name: parameter.detach().clone() for name, parameter in trained_parameters(net).items()})
        kept["random"] = torch.get_rng_state()

    _, net = try_out(change=keep)
    assert all(
        torch.equal(parameter, kept[name]) and parameter.grad is None
        for name, parameter in trained_parameters(net).items()
    )
    assert torch.equal(torch.get_rng_state(), kept["random"])


def test_weights_are_as_before_even_where_it_fails(try_out):
    nets = []

    def fail(model, folder):
        raise SmokeError("no", where="export")

    before = {}
    with pytest.raises(SmokeError):
        try_out(
            change=lambda net: (
                nets.append(net),
                before.update({n: p.detach().clone() for n, p in trained_parameters(net).items()}),
            ),
            export=fail,
        )
    assert all(torch.equal(parameter, before[name]) for name, parameter in trained_parameters(nets[0]).items())


def test_a_head_that_does_more_than_we_know_is_found(try_out):
    class Shifted(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def get_base_model(self):
            return self.model.get_base_model()

        def forward(self, **inputs):
            out = self.model(**inputs)
            out.logits[..., 5] += 3
            return out

    def wrap(net):
        net.model = Shifted(net.model)

    with pytest.raises(SmokeError, match="own logits") as caught:
        try_out(change=wrap)
    assert caught.value.where == "loss head"


def test_a_model_without_numbers_is_found(try_out):
    def break_(net):
        with torch.no_grad():
            net.language_model.get_decoder().layers[0].mlp.up_proj.weight[0, 0] = float("nan")

    with pytest.raises(SmokeError):
        try_out(change=break_)


def test_a_loss_without_a_gradient_is_found(try_out):
    class Flat(type(make_objective("sft"))):
        def loss(self, outputs, batch):
            return Loss(outputs.logp.sum() * 0)

    with pytest.raises(SmokeError, match="no gradient"):
        try_out(objective=Flat())


def test_a_rate_that_cannot_learn_two_rows_is_found(try_out):
    with pytest.raises(SmokeError, match="fell from") as caught:
        try_out(rate=1e-7)
    assert "by heart" in caught.value.where
    assert "r.jsonl:1" in caught.value.where


def test_a_batch_that_does_not_fit_says_what_to_type(try_out, monkeypatch):
    def no_memory(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("burnish.train.smoke.backward", no_memory)
    with pytest.raises(SmokeError, match=r"--set train\.micro_tokens="):
        try_out()


def test_a_batch_that_does_not_fit_goes_down_the_ladder_where_there_is_one(make_model, tokenizer):
    class Tight(type(make_objective("sft"))):
        def loss(self, outputs, batch):
            if batch.sequences > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().loss(outputs, batch)

    torch.manual_seed(0)
    net, chat = Net(adapt(make_model(), Adapter(rank=8, alpha=16), Freeze())), Chat(tokenizer)
    turns = [(Turn("user", text), Turn("assistant", text)) for text in ("a", "b c", "d", "e", "f")]
    groups = [chat.render(Conversation(file="r.jsonl", line=n, turns=turn)) for n, turn in enumerate(turns)]
    feed = Feed(groups, task="main", batch_size=5, epochs=1, row_tokens=256, micro_tokens=256, seed=0)
    settings = Settings(5, 256, epochs=1, steps=1, learning_rate=0.003, precision="fp32", device="cpu")
    ladder = Ladder(net, settings, feed, low_rank=True)
    tasks = {"main": (Tight(), 1.0)}
    rows, chats, longest = {"main": groups}, {"main": chat}, feed.hardest()
    report = smoke(net, tasks, rows, chats, longest, 0.003, lambda model, folder: None, ladder)
    assert report.longest_tokens <= ladder.settings.micro_tokens < 256
    assert ladder.taken[0].startswith("the try-out: ")


def test_an_export_is_tried_in_a_folder_of_its_own(try_out):
    folders = []
    try_out(export=lambda model, folder: folders.append((folder, folder.is_dir())))
    assert [there for _, there in folders] == [True]
    assert not folders[0][0].exists()
