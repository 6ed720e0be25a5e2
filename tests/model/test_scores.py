from __future__ import annotations

import numpy as np
import pytest

from burnish.model.load import Head
from burnish.model.scores import brier_score

CERTAIN = 40.0


@pytest.mark.parametrize(
    ("kind", "scores", "wanted", "expected"),
    [
        ("classify", [CERTAIN, 0.0, 0.0], [0], 0.0),
        ("classify", [CERTAIN, 0.0, 0.0], [2], 2.0),
        ("classify", [0.0, 0.0, 0.0], [1], (2 / 3) ** 2 + 2 * (1 / 3) ** 2),
        ("tag", [[CERTAIN, 0.0, 0.0], [CERTAIN, 0.0, 0.0]], [0, 1], 1.0),
        ("tag", np.zeros((0, 3)), [], 0.0),
        ("multilabel", [CERTAIN, -CERTAIN, 0.0], [1, 0, 1], 2 * 0.25 / 3),
        ("multilabel", [CERTAIN, CERTAIN, CERTAIN], [0, 0, 0], 2.0),
    ],
)
def test_the_brier_score_is_the_squared_distance_from_what_is_right(kind, scores, wanted, expected):
    assert brier_score(Head(("a", "b", "c"), 0, kind=kind), np.array(scores), wanted) == pytest.approx(expected)
