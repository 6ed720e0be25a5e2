"""Figures of whole distributions and their slopes, against plain torch written out in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from burnish.core import Divergence
from burnish.model import head, soft
from burnish.model.head import logit_curve

TOKENS, WIDTH, VOCABULARY, KEPT = 23, 8, 50, 4
CURVES = {"straight": {}, "capped": {"final_logit_softcapping": 3.0}, "divided": {"logits_scaling": 4.0}}
KINDS = ("forward_kl", "reverse_kl", "jsd")


@pytest.fixture(params=CURVES.values(), ids=CURVES.keys())
def config(request):
    return SimpleNamespace(vocab_size=VOCABULARY, **request.param)


@pytest.fixture(params=[False, True], ids=["whole", "chunked"])
def chunks(request, monkeypatch):
    if request.param:
        monkeypatch.setitem(head.LOGITS, "cpu", 7 * VOCABULARY)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, VOCABULARY)
    nn.init.normal_(layer.weight)
    return layer


@pytest.fixture
def case():
    """Hidden states of student and teacher, the teacher's head, targets, the teacher's top tokens and their shares."""
    torch.manual_seed(1)
    teacher = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)
    nn.init.normal_(teacher.weight)
    hidden, theirs = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    shares, ids = (teacher(theirs) * 0.5).softmax(-1).topk(KEPT)
    return SimpleNamespace(
        hidden=hidden,
        theirs=theirs,
        teacher=teacher,
        ids=ids,
        shares=shares,
        targets=torch.randint(VOCABULARY, (TOKENS,)),
    )


def measures(case, config, kind, temperature):
    return [
        soft.target_logp(case.targets),
        soft.mean_logp(),
        soft.soft_logp(case.ids, case.shares, temperature),
        soft.from_teacher(
            Divergence(kind, 0.3, temperature), case.theirs, lambda states: logit_curve(config)(case.teacher(states))
        ),
    ]


def written_out(case, config, kind, temperature):
    """The same four figures of float64 logits, each in its textbook form."""
    bend = logit_curve(config)
    teacher = copy.deepcopy(case.teacher).double()
    p = (bend(teacher(case.theirs.double())) / temperature).softmax(-1)

    def of(logits):
        plain, q = logits.log_softmax(-1), (logits / temperature).softmax(-1)
        shares = case.shares.double()
        rest = 1 - shares.sum(-1)
        named = q.gather(-1, case.ids)
        top = (shares * named.log()).sum(-1) + rest * (1 - named.sum(-1)).log()
        kl = lambda a, b: (a * (a.log() - b.log())).sum(-1)  # noqa: E731
        middle = 0.3 * p + 0.7 * q
        parted = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": 0.3 * kl(p, middle) + 0.7 * kl(q, middle)}
        return [plain.gather(-1, case.targets[:, None])[:, 0], plain.mean(-1), top, parted[kind]]

    return of


def gradients(found, factors, wanted):
    total = sum((factor * values).sum() for factor, values in zip(factors, found, strict=True))
    return [*found, *torch.autograd.grad(total, wanted)]


def assert_close(found, exact):
    for ours, theirs in zip(found, exact, strict=True):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.usefixtures("chunks")
def test_figures_and_slopes_are_those_of_plain_torch(layer, config, case, kind, temperature, trained):
    layer.requires_grad_(trained)
    factors = torch.randn(4, TOKENS)
    hidden = case.hidden.clone().requires_grad_()
    found = soft.head_measures(layer, config, hidden, measures(case, config, kind, temperature))
    exact_layer, exact_hidden = copy.deepcopy(layer).double(), case.hidden.double().requires_grad_()
    of = written_out(case, config, kind, temperature)
    exact = of(logit_curve(config)(exact_layer(exact_hidden)))
    own = list(layer.parameters()) if trained else []
    exact_own = list(exact_layer.parameters()) if trained else []
    assert_close(
        gradients(found, factors, [hidden, *own]), gradients(exact, factors.double(), [exact_hidden, *exact_own])
    )


@pytest.mark.usefixtures("chunks")
def test_a_layer_that_somebody_wrote_gives_the_same(config, case):
    torch.manual_seed(0)
    layer = type("Own", (nn.Linear,), {})(WIDTH, VOCABULARY)
    plain = nn.Linear(WIDTH, VOCABULARY)
    plain.load_state_dict(layer.state_dict())
    hidden, factors = case.hidden.clone().requires_grad_(), torch.randn(4, TOKENS)
    asked = measures(case, config, "jsd", 1.0)
    ours, theirs = (
        gradients(soft.head_measures(one, config, hidden, asked), factors, [hidden, one.weight])
        for one in (layer, plain)
    )
    assert_close(ours, [x.double() for x in theirs])


def test_nothing_as_wide_as_the_vocabulary_is_kept(layer, config, case):
    layer.requires_grad_(False)
    asked = measures(case, config, "forward_kl", 1.0)
    found = soft.head_measures(layer, config, case.hidden.requires_grad_(), asked)
    kept = found[0].grad_fn.next_functions[0][0].saved_tensors if hasattr(found[0].grad_fn, "next_functions") else ()
    assert all(x.shape[-1] == WIDTH for x in kept)


def test_a_teacher_that_is_the_student_gives_no_divergence(layer, config, case):
    for kind in KINDS:
        measure = soft.from_teacher(Divergence(kind), case.hidden, lambda states: logit_curve(config)(layer(states)))
        [found] = soft.head_measures(layer, config, case.hidden, [measure])
        assert float(found.abs().max()) < 1e-5


def test_a_token_without_shares_teaches_nothing(layer, config, case):
    hidden = case.hidden.clone().requires_grad_()
    measure = soft.soft_logp(case.ids, torch.zeros_like(case.shares))
    [found] = soft.head_measures(layer, config, hidden, [measure])
    [slope] = torch.autograd.grad(found.sum(), hidden)
    assert not found.any()
    assert not slope.any()


def test_a_vocabulary_that_was_padded_is_compared_where_both_have_tokens():
    student, teacher = torch.randn(5, VOCABULARY), torch.randn(5, VOCABULARY + 14)
    found = Divergence("forward_kl")(student, teacher)
    wanted = F.kl_div(
        student.log_softmax(-1), teacher[:, :VOCABULARY].log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_no_tokens_are_no_figures(layer, config, case):
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    [found] = soft.head_measures(layer, config, hidden, [soft.mean_logp()])
    [slope] = torch.autograd.grad(found.sum(), hidden)
    assert (found.shape, slope.shape) == ((0,), (0, WIDTH))
