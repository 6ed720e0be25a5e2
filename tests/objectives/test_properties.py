"""What every objective must satisfy (docs/architecture.md, rule 3), whichever they are: a new file of `objectives/` is tested at once."""

from __future__ import annotations

import pkgutil
import random

import pytest
import torch

from burnish import objectives
from burnish.core import Divergence, Seq, pack
from burnish.heads import SCORED
from burnish.model.net import Net, Teacher
from burnish.objectives import make_objective
from burnish.objectives.distill import Distill
from burnish.objectives.sft import Sft
from burnish.train.loop import backward
from burnish.train.optim import Optim
from tiny_runs import LABELS

GROUPS = 6
KEPT = 3  # tokens that a teacher's stream keeps
FURTHER = {  # objectives whose options ask for other outputs or streams than their defaults do
    "sft-smoothed": Sft(label_smoothing=0.1),
    "distill-jsd": Distill(divergence="jsd", beta=0.3, temperature=2.0, alpha=0.3),
    "distill-reverse": Distill(divergence="reverse_kl"),
    "distill-top": Distill(source="top", alpha=0.2),
    "distill-spans": Distill(source="spans", alpha=0.2),
    "distill-scores": Distill(source="scores", alpha=0.5),
}


# Options of an objective that change its loss: each is held to the same properties.
OPTIONS = {
    "classify": [{"class_weights": [0.5, 3.0, 1.0]}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1}],
    "multilabel": [{"class_weights": [0.5, 3.0, 1.0]}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1}],
    "regress": [{"huber_delta": 0.5}],
    "tag": [{"class_weights": [0.5, 3.0, 1.0], "focal_gamma": 2.0, "label_smoothing": 0.1}],
}
NOBODY = {"regress": float("nan")}  # the y of a sequence that has no answer, where it is not -1


def every_objective():
    names = [module.name for module in pkgutil.iter_modules(objectives.__path__)]
    from_teachers = [
        pytest.param(objective, synthetic_groups(objective), id=name) for name, objective in FURTHER.items()
    ]
    return from_teachers + [
        pytest.param(objective, synthetic_groups(objective), id="-".join([name, *(options or {})]))
        for name in names
        for options in [None, *OPTIONS.get(name, [])]
        for objective in [make_objective(name, options)]
    ]


def name_of(objective):
    return type(objective).__module__.rsplit(".", 1)[-1]


def scored(objective):
    return bool({"score", "token_score"} & objective.needs)


def synthetic_groups(objective, *, weight=1.0):
    """Groups as this objective compares them: single sequences or a better and a worse one, with the streams that it reads."""
    draw = random.Random(0)
    sizes = 1 if objective.atom == "seq" else 2
    # A class, where no weight of a token says anything.
    unknown = NOBODY.get(name_of(objective), -1.0) if scored(objective) and not weight else None
    return [
        [
            _sequence(draw, objective, y=float(1 - place) if unknown is None else unknown, weight=weight)
            for place in range(sizes)
        ]
        for _ in range(GROUPS)
    ]


def _sequence(draw, objective, y, weight):
    length = draw.randint(5, 30)
    prompt = draw.randint(1, length - 3)
    ids = [draw.randrange(250) for _ in range(length)]
    weights = [0.0] * prompt + [weight * draw.choice([0.5, 1.0, 2.0]) for _ in range(length - prompt)]
    made = {
        "teacher_ids": lambda: draw.sample(range(250), KEPT),
        "teacher_shares": lambda: [draw.uniform(0, 1 / KEPT) for _ in range(KEPT)],
        "span_ahead": lambda: 0.0,
        "tag": lambda: float(draw.randrange(len(LABELS) + 1)) * (weight > 0),  # a class plus one at some tokens
    }
    streams = {name: [made.get(name, lambda: -draw.uniform(1, 5))() for _ in ids] for name in objective.reads}
    several = name_of(objective) == "multilabel"
    values = {f"label.{n}": float(draw.random() < 0.5) for n in range(len(LABELS))} if several else {}
    return Seq(ids, weights, y=y, tokens=streams, values=values, where=f"made.jsonl:{draw.randrange(100)}")


@pytest.fixture
def net_for(make_model, make_classifier, architecture):
    """A function from an objective to a net of each family that gives what it needs, beside a teacher that knows something else."""

    def make(objective):
        net = Net(model_for(objective))
        if objective.needs & {"divergence", "teacher_score"}:
            teacher = model_for(objective)
            with torch.no_grad():
                for parameter in teacher.parameters():
                    parameter.mul_(0.9)
            divergence = Divergence(objective.divergence, objective.beta, objective.temperature)
            net.teacher = Teacher(Net(teacher), divergence)
        return net

    def model_for(objective):
        if not scored(objective):
            return make_model(architecture)
        kind = name_of(objective) if name_of(objective) in SCORED else "classify"
        return make_classifier(architecture, kind, labels=LABELS[:1] if kind == "regress" else LABELS)

    return make


@pytest.fixture
def gradient(net_for):
    """A function from an objective and the groups of each micro-batch to the gradient of all weights, laid end to end."""

    def of(objective, parts, row_tokens=64):
        net = net_for(objective)
        parameters = dict(net.named_parameters())
        micro = [pack(groups, row_tokens=row_tokens, task="main") for groups in parts]
        unclipped = Optim(parameters, learning_rate=0.0, total=1, clip=float("inf"))
        backward(net, {"main": (objective, 1.0)}, micro, unclipped)
        found = [
            p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters.values()
        ]  # None: nobody asked for it
        return torch.cat([gradient.flatten() for gradient in found])

    return of


def assert_same(found, wanted):
    """Alike to within 1e-5 of the gradient's length: single small numbers may differ by more in float32."""
    assert float(wanted.norm()) > 0
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize(("objective", "groups"), every_objective())
def test_gradient_does_not_depend_on_how_a_step_is_split(objective, groups, gradient):
    if objective.atom == "step":
        pytest.skip("its step is one micro-batch")
    assert_same(gradient(objective, [groups[:1], groups[1:3], groups[3:]]), gradient(objective, [groups]))


@pytest.mark.parametrize(("objective", "groups"), every_objective())
def test_gradient_does_not_depend_on_packing(objective, groups, gradient):
    assert_same(gradient(objective, [groups], row_tokens=1), gradient(objective, [groups], row_tokens=10_000))


@pytest.mark.parametrize(("objective", "groups"), every_objective())
def test_gradient_does_not_depend_on_the_order_of_groups(objective, groups, gradient):
    assert_same(gradient(objective, [groups[::-1]]), gradient(objective, [groups]))


@pytest.mark.parametrize(("objective", "groups"), every_objective())
def test_groups_without_a_trained_token_give_no_gradient(objective, groups, gradient):
    untrained = gradient(objective, [synthetic_groups(objective, weight=0.0)])
    assert untrained.abs().max() == 0


@pytest.mark.parametrize(("objective", "groups"), every_objective())
def test_a_micro_batch_without_a_trained_token_leaves_the_others_alone(objective, groups, gradient):
    if float(objective.count(pack(synthetic_groups(objective, weight=0.0), row_tokens=64))):
        pytest.skip("it counts groups, trained tokens or not")
    assert_same(gradient(objective, [groups, synthetic_groups(objective, weight=0.0)]), gradient(objective, [groups]))


@pytest.mark.parametrize(("objective", "groups"), every_objective())
def test_counts_and_losses_and_figures_are_sums(objective, groups, net_for):
    if objective.atom == "step":
        pytest.skip("its step is one micro-batch")
    net = net_for(objective)
    batches = [pack(part, row_tokens=64) for part in (groups, groups[:2], groups[2:])]
    losses = [objective.loss(net(batch, objective.needs), batch) for batch in batches]
    figures = [
        torch.stack(
            [
                objective.count(batch),
                loss.sum,
                *(part for name in sorted(loss.stats) for part in map(torch.as_tensor, loss.stats[name])),
            ]
        )
        for batch, loss in zip(batches, losses, strict=True)
    ]
    torch.testing.assert_close(figures[0], figures[1] + figures[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("objective", "groups"), every_objective())
def test_an_objective_says_what_it_learns_from_and_needs(objective, groups):
    assert objective.rows
    assert objective.needs
    assert objective.atom in {"seq", "group", "step"}
