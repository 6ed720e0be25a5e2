"""The exam of a score head against the model's own forward pass, and its comparison with a base that writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from burnish.data.classes import Classes
from burnish.data.rows import Labelled, Turn
from burnish.evaluate.runner import Exam, Sitting, compare, make_items
from burnish.evaluate.scored import ScoredExam
from burnish.model.likelihood import as_fits
from burnish.model.load import Head
from burnish.model.net import Net
from burnish.scoring import scorer_for
from tiny_runs import LABELS

TEXTS = ("bako", "ritu nesa lo", "m", "fedu gra", "pel zin vor ba ko")


@pytest.fixture
def exam(tokenizer):
    rows = [
        Labelled(file="rows.csv", line=line, turns=(Turn("user", text),), label=LABELS[line % 3])
        for line, text in enumerate(TEXTS, 1)
    ]
    items = make_items(rows, Classes(tokenizer, LABELS), None)
    return ScoredExam(
        items, scorer_for("classify", "macro_f1", labels=LABELS), 8, 16, Head(LABELS, tokenizer.pad_token_id)
    )


def test_answers_and_losses_are_those_of_the_models_own_scores(exam, make_classifier, tokenizer, architecture):
    model = make_classifier(architecture)
    seen: list[int] = []
    sitting = exam.sit(Net(model), None, seen.append)
    with torch.no_grad():
        logp = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits.log_softmax(-1) for text in TEXTS])
    assert sitting.answers == [LABELS[number] for number in logp.argmax(-1)]
    wanted = [-float(logp[place, (place + 1) % 3]) for place in range(len(TEXTS))]
    assert sitting.nll == pytest.approx(wanted, rel=1e-4)
    assert sitting.loss == pytest.approx(np.mean(wanted), rel=1e-4)
    assert seen[-1] == len(TEXTS)


def test_the_figures_are_those_of_the_scorer_for_labels(exam, make_classifier):
    sitting = exam.sit(Net(make_classifier()), None)
    assert exam.figures(sitting).keys() == {"accuracy", "unparsed", "macro_f1"}


def test_a_look_during_training_sees_every_item(exam):
    assert exam.first(1) is exam


def test_a_net_that_trained_goes_on_training(exam, make_classifier):
    net = Net(make_classifier()).train()
    exam.sit(net, None)
    assert net.training


def test_texts_that_do_not_fit_at_once_are_read_in_smaller_batches(exam, make_classifier, monkeypatch):
    net = Net(make_classifier())
    wanted, forward = exam.sit(net, None), net.forward

    def limited(batch, needs):
        if batch.sequences > 1:
            raise torch.OutOfMemoryError("injected")
        return forward(batch, needs)

    monkeypatch.setattr(net, "forward", limited)
    monkeypatch.setattr("burnish.evaluate.scored.as_fits", lambda work, net, row: as_fits(work, net, 1, 64))
    found = exam.sit(net, None)
    assert found.answers == wanted.answers
    assert found.nll == pytest.approx(wanted.nll, rel=1e-4)


def test_a_base_that_wrote_its_answers_is_named_and_its_perplexity_left_out(exam, make_classifier):
    tuned = exam.sit(Net(make_classifier()), None)
    scores = [exam.scorer.score("no label", item.reference) for item in exam.items]
    base = Sitting(["no label"] * len(TEXTS), scores, np.ones(len(TEXTS)), np.full(len(TEXTS), 4.0))
    found = compare(exam, base, tuned, seed=0)
    assert "prompted to write the label" in found["base_is"]
    assert found["perplexity"] is None


def test_two_models_that_write_are_compared_by_perplexity_too(exam):
    plain = Exam(exam.items, exam.scorer, 8, 16)
    scores = [exam.scorer.score("red", item.reference) for item in exam.items]
    sitting = Sitting(["red"] * len(TEXTS), scores, np.ones(len(TEXTS)), np.ones(len(TEXTS)))
    found = compare(plain, sitting, sitting, seed=0)
    assert found["perplexity"]["base"] == pytest.approx(np.e)
