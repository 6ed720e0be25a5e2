"""Figures of several labels, numbers and tags, against values worked out by hand."""

from __future__ import annotations

import pytest

from burnish.scoring import METRICS, scorer_for
from burnish.scoring_heads import spans


def test_the_figures_of_several_labels():
    scorer = scorer_for("multilabel", labels=["a", "b", "c"])
    found = scorer.summarize([("a, b", "a"), ("C.", "b, c"), ("", "a")])
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["exact"] == 0
    assert found["sample_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_an_answer_that_is_no_label_opens_no_class():
    scorer = scorer_for("multilabel", labels=["a"])
    assert scorer.summarize([("I think a", "a")])["macro_f1"] == 0


def test_the_figures_of_numbers():
    scorer = scorer_for("regress", span=(0.0, 10.0))
    found = scorer.summarize([("1", "0"), ("It is 5.0", "5"), ("9", "10")])
    assert found["closeness"] == pytest.approx(1 - 2 / 30)
    assert found["spearman"] == pytest.approx(1)
    assert found["r2"] == pytest.approx(1 - 2 / 50)
    assert found["unparsed"] == 0


def test_no_number_is_as_bad_as_can_be():
    scorer = scorer_for("regress", span=(0.0, 10.0))
    assert scorer.score("none", "2") == {"closeness": pytest.approx(0.2), "unparsed": 1.0}
    assert scorer.summarize([("x", "0"), ("x", "10")])["spearman"] == 0


def test_ranks_of_equal_numbers_are_shared():
    scorer = scorer_for("regress", span=(0.0, 3.0))
    found = scorer.summarize([("1", "1"), ("1", "2"), ("2", "3")])["spearman"]
    assert found == pytest.approx(3**0.5 / 2)


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("O B-X I-X O", {(1, 3, "X")}),
        ("B-X B-X", {(0, 1, "X"), (1, 2, "X")}),
        ("I-X I-X O I-Y", {(0, 2, "X"), (3, 4, "Y")}),  # an I- that follows nothing of its kind begins a span
        ("B-X I-Y", {(0, 1, "X"), (1, 2, "Y")}),
        ("NOUN VERB VERB", {(0, 1, "NOUN"), (1, 2, "VERB"), (2, 3, "VERB")}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_spans_of_tags(tags, wanted):
    assert spans(tags.split()) == wanted


def test_the_figures_of_tags():
    scorer = scorer_for("tag")
    found = scorer.summarize([("B-X O", "B-X I-X"), ("O B-Y", "O B-Y")])
    assert found["span_f1"] == pytest.approx(0.5)
    assert found["tag_accuracy"] == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["multilabel", "regress", "tag"])
def test_every_figure_of_any_answer_lies_between_0_and_1(kind):
    scorer = scorer_for(kind, METRICS[kind][-1], labels=["a"], span=(-2.0, 2.0))
    reference = {"multilabel": "a", "regress": "-1.5", "tag": "O B-X"}[kind]
    for answer in ("", "a", "1e999", "-7", "B-X I-", "ü, ,,", "1 2 3"):
        figures = scorer.score(answer, reference) | scorer.summarize([(answer, reference), (reference, reference)])
        assert all(0 <= value <= 1 for value in figures.values())
        assert scorer.primary in figures


@pytest.mark.parametrize(
    ("text", "number"), [(".5", 0.5), ("-.5", -0.5), ("5.", 5.0), ("about 3.25 stars", 3.25), ("none", None)]
)
def test_numbers_are_read_as_the_labels_were(text, number):
    from burnish.scoring_heads import _number

    assert _number(text) == number
