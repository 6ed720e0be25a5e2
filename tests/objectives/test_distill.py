"""What distillation weighs, and the loss of a span whose tokens differ between two tokenizers."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.core import Outputs, Seq, pack
from burnish.objectives.distill import Distill
from burnish.objectives.sft import Sft


def batch_of(**streams):
    return pack([[Seq([1, 2, 3, 4, 5], [0.0, 1.0, 1.0, 1.0, 1.0], tokens=streams)]], row_tokens=64)


def of_row(batch, values):
    spread = torch.zeros(batch.ids.shape)
    spread[0, : len(values)] = torch.tensor(values)
    return spread.requires_grad_()


def test_alpha_mixes_the_divergence_at_its_temperature_with_the_plain_loss():
    batch = batch_of()
    outputs = Outputs(logp=of_row(batch, [0.0, -1, -1, -1, -1]), divergence=of_row(batch, [0, 0.5, 0.5, 0.5, 0.5]))
    loss = Distill(alpha=0.25, temperature=2.0).loss(outputs, batch).sum
    assert float(loss) == pytest.approx(0.75 * 4 * 2.0 + 0.25 * 4.0)


def test_a_span_is_judged_by_the_product_of_its_tokens():
    q, known = 0.6, [1.0, 1.0, math.log(0.6), 1.0, math.log(0.2)]  # two spans: tokens 1 and 2, tokens 3 and 4
    batch = batch_of(teacher_logp=known, span_ahead=[0, 1, 0, 1, 0])
    logp = of_row(batch, [0.0, math.log(0.8), math.log(0.5), math.log(0.4), math.log(0.5)])
    found = Distill(source="spans").loss(Outputs(logp=logp), batch)
    kl = lambda q, p: q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))  # noqa: E731
    assert float(found.sum) == pytest.approx(kl(q, 0.4) + kl(0.2, 0.2), rel=1e-5)


def test_tokens_outside_of_every_span_teach_nothing():
    batch = batch_of(teacher_logp=[1.0] * 5, span_ahead=[0] * 5)
    logp = of_row(batch, [0.0, -1, -2, -3, -4])
    loss = Distill(source="spans").loss(Outputs(logp=logp), batch).sum
    [slope] = torch.autograd.grad(loss, logp)
    assert float(loss) == 0
    assert not slope.any()


def test_top_shares_that_the_student_has_too_are_no_divergence():
    shares = [[0.5, 0.2]] * 5
    batch = batch_of(teacher_ids=[[7, 8]] * 5, teacher_shares=shares)
    entropy = 0.5 * math.log(0.5) + 0.2 * math.log(0.2) + 0.3 * math.log(0.3)
    outputs = Outputs(logp=of_row(batch, [0.0] * 5), soft_logp=of_row(batch, [0.0] + [entropy] * 4))
    assert float(Distill(source="top").loss(outputs, batch).sum) == pytest.approx(0, abs=1e-6)


def test_label_smoothing_spreads_its_share_and_leaves_the_figure_alone():
    batch = batch_of()
    outputs = Outputs(logp=of_row(batch, [0.0, -1, -1, -1, -1]), mean_logp=of_row(batch, [0.0, -5, -5, -5, -5]))
    found = Sft(label_smoothing=0.1).loss(outputs, batch)
    assert float(found.sum) == pytest.approx(0.9 * 4 + 0.1 * 20)
    assert float(found.stats["loss"][0]) == pytest.approx(4)
    assert Sft().needs == {"logp"}
