"""Temperature, thresholds and calibration error against what they must be."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.evaluate.calibrate import (
    best_threshold,
    by_class,
    calibrated,
    calibration_error,
    errors_of,
    fit_temperature,
    reliability,
)
from burnish.model.load import Head
from burnish.model.scores import answer, fitting, probabilities

HEAD = Head(("a", "b", "c"), 0)
SEVERAL = Head(("a", "b", "c"), 0, kind="multilabel")


def drawn(count, scale, seed=0):
    """Scores of which the classes are drawn as softmax(scores / scale) says."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, 3)) * 2
    noise = rng.gumbel(size=scores.shape)
    return scores * scale, (scores + noise).argmax(-1)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_temperature_is_the_one_by_which_scores_are_too_large(scale):
    assert fit_temperature(HEAD, *drawn(20_000, scale)) == pytest.approx(scale, rel=0.05)


def test_calibrating_lowers_the_error_and_changes_no_answer():
    scores, wanted = drawn(4000, 4.0)
    head = calibrated(HEAD, scores, wanted)
    found = reliability(head, *drawn(4000, 4.0, seed=1))
    assert found["ece_after"] < 0.03 < found["ece_before"]
    assert found["nll_after"] < found["nll_before"]
    assert (probabilities(head, scores).argmax(-1) == scores.argmax(-1)).all()


def test_where_nothing_is_wrong_no_temperature_can_be_known():
    scores = np.eye(3) * 3
    assert fit_temperature(HEAD, scores, np.arange(3)) == 1.0


def test_several_labels_have_a_temperature_and_a_threshold_each():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5000, 3)) * 2
    wanted = (rng.random(scores.shape) < 1 / (1 + np.exp(-scores))).astype(float)
    head = calibrated(SEVERAL, scores * 3, wanted)
    assert head.temperature == pytest.approx(3, rel=0.06)
    assert len(head.thresholds) == 3
    assert all(0.2 < one < 0.5 for one in head.thresholds)  # for F1 below one half (Lipton et al. 2014)


def test_a_handful_of_items_moves_no_threshold():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 3)) - 1
    wanted = np.zeros((60, 3))
    wanted[:9, 0], wanted[:11, 1], wanted[:51, 2] = 1, 1, 1
    thresholds = calibrated(SEVERAL, scores, wanted).thresholds
    assert (thresholds[0], thresholds[2]) == (0.5, 0.5)
    assert thresholds[1] != 0.5


def test_the_threshold_is_the_one_of_the_highest_f1():
    found, wanted = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 1, 1, 1])
    assert 0.1 < best_threshold(found, wanted) <= 0.2


def test_a_label_that_never_fits_keeps_one_half():
    assert best_threshold(np.array([0.1, 0.9]), np.array([0, 0])) == 0.5


def test_the_calibration_error_of_a_sure_model_is_its_share_of_mistakes():
    found = np.array([[1.0, 0.0]] * 4)
    assert calibration_error(found, np.array([0, 0, 0, 1])) == pytest.approx(0.25)
    assert calibration_error(found, np.array([0, 0, 0, 0])) == 0


def test_the_confusion_counts_who_was_taken_for_whom():
    found = by_class(("a", "b"), np.array([0, 0, 1, 0]), np.array([0, 1, 1, 0]))
    assert found["confusion"] == [[2, 0], [1, 1]]
    assert found["table"][0] == {
        "label": "a",
        "rows": 2,
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "f1": pytest.approx(0.8),
    }


def test_a_label_that_was_never_given_has_no_precision():
    table = by_class(("a", "b"), np.array([0, 0]), np.array([0, 1]))["table"]
    assert table[1]["precision"] is None
    assert table[1]["recall"] == 0


def test_errors_of_numbers_are_in_their_own_unit():
    head = Head(("value",), 0, kind="regress", mean=10, spread=2)
    found = errors_of(head, np.array([[0.0], [1.0]]), np.array([0.5, 1.0]))
    assert found == {"mae": pytest.approx(0.5), "rmse": pytest.approx(0.5**0.5), "mae_of_mean": pytest.approx(1.5)}
    assert answer(head, np.array([1.5])) == "13"


def test_labels_fit_from_their_thresholds_on():
    head = Head(("a", "b", "c"), 0, kind="multilabel", thresholds=(0.5, 0.9, 0.1))
    assert fitting(head, np.array([0.1, 0.1, -1.0])) == ["a", "c"]
    assert answer(head, np.array([-9.0, -9.0, -9.0])) == ""


def test_a_tag_for_each_word():
    head = Head(("O", "B-X"), 0, kind="tag")
    assert answer(head, np.array([[1.0, 0.0], [0.0, 1.0]])) == "O B-X"


def test_a_head_comes_back_from_json_as_it_was():
    import json
    from dataclasses import asdict

    head = Head(("a", "b"), 3, kind="multilabel", temperature=1.5, thresholds=(0.5, 0.25))
    assert Head.restored(json.loads(json.dumps(asdict(head)))) == head
