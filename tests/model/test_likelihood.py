"""Scores of options against the model's own full logits."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from burnish.core import Seq
from burnish.model.head import head_logp
from burnish.model.likelihood import OptionScores, option_logp, sequence_logp
from burnish.model.net import Net


def draw_ids(draw, length):
    return [draw.randrange(250) for _ in range(length)]


@pytest.fixture
def questions():
    """Prompts of unequal length, with two to five options of unequal length."""
    draw = random.Random(4)
    prompts = [draw_ids(draw, length) for length in (1, 40, 7, 150, 23)]
    return prompts, [[draw_ids(draw, draw.randint(1, 20)) for _ in range(count)] for count in (2, 5, 4, 3, 4)]


def own_logp(model, prompt, option):
    """log p of an option from the model's own logits, alone and unpadded."""
    ids = torch.tensor([prompt + option])
    with torch.no_grad():
        logp = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return float(logp.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum())


def test_option_scores_are_those_of_the_models_own_logits(make_model, architecture, questions):
    model = make_model(architecture)
    wanted = [
        [own_logp(model, prompt, option) for option in options] for prompt, options in zip(*questions, strict=True)
    ]
    found = option_logp(Net(model), *questions, row_tokens=128)
    assert len(found) == len(wanted)
    for scores, own in zip(found, wanted, strict=True):
        np.testing.assert_allclose(scores.logp, own, rtol=1e-4)


def test_tokens_are_those_of_the_options_alone(make_model, questions):
    found = option_logp(Net(make_model()), *questions, row_tokens=128)
    assert [scores.tokens.tolist() for scores in found] == [[len(option) for option in row] for row in questions[1]]


@pytest.mark.parametrize("micro_tokens", [1, 100, 10_000])
def test_scores_do_not_depend_on_what_goes_through_together(make_model, questions, micro_tokens):
    net = Net(make_model())
    found = option_logp(net, *questions, row_tokens=64, micro_tokens=micro_tokens)
    for one, other in zip(found, option_logp(net, *questions, row_tokens=256), strict=True):
        np.testing.assert_allclose(one.logp, other.logp, rtol=1e-4)


def test_only_tokens_of_options_meet_the_vocabulary_head(make_model, questions, monkeypatch):
    seen = []

    def watched(head, config, hidden, targets):
        seen.append(len(targets))
        return head_logp(head, config, hidden, targets)

    monkeypatch.setattr("burnish.model.net.head_logp", watched)
    option_logp(Net(make_model()), *questions, row_tokens=128)
    assert sum(seen) == sum(len(option) for options in questions[1] for option in options)


def test_a_short_option_wins_as_it_stands_and_a_long_one_by_its_tokens():
    scores = OptionScores(np.array([-4.0, -5.0, -9.0]), np.array([1.0, 5.0, 3.0]))
    assert (scores.choice, scores.normalised_choice) == (0, 1)


def test_no_prompts_have_no_scores(make_model):
    assert option_logp(Net(make_model()), [], [], row_tokens=64) == []


def test_an_option_without_tokens_is_a_mistake(make_model):
    with pytest.raises(AssertionError, match="option"):
        option_logp(Net(make_model()), [[1]], [[[2], []]], row_tokens=64)


def test_a_micro_batch_that_does_not_fit_is_halved_and_no_sequence_is_lost(make_model, monkeypatch):
    net = Net(make_model())
    draw = random.Random(5)
    groups = [[Seq(draw_ids(draw, 30), [1.0] * 30)] for _ in range(20)]
    wanted, tokens = sequence_logp(net, groups, row_tokens=64)
    sizes, forward = [], net.forward

    def limited(batch, needs):
        sizes.append(batch.ids.numel())
        if batch.ids.numel() > 128:
            raise torch.OutOfMemoryError("injected")
        return forward(batch, needs)

    monkeypatch.setattr(net, "forward", limited)
    found, counted = sequence_logp(net, groups, row_tokens=64, micro_tokens=512)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert counted.tolist() == tokens.tolist() == [29.0] * 20
    assert max(sizes) > 128


def test_a_row_that_does_not_fit_is_an_error_and_the_net_is_left_as_it_was(make_model, monkeypatch):
    net = Net(make_model()).train()

    def full(batch, needs):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(net, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        sequence_logp(net, [[Seq([1, 2], [1.0, 1.0])]], row_tokens=64, micro_tokens=512)
    assert net.training


@pytest.mark.gpu
def test_a_gpu_gives_the_scores_of_the_cpu(make_model, architecture, questions):
    wanted = option_logp(Net(make_model(architecture)), *questions, row_tokens=128)
    found = option_logp(Net(make_model(architecture).cuda()), *questions, row_tokens=128)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.logp, other.logp, rtol=1e-3)
