from __future__ import annotations

import pytest
import torch

from burnish.core import Outputs, Seq, pack
from burnish.errors import RecipeError
from burnish.objectives import make_objective


def test_sft_is_the_weighted_negative_log_likelihood():
    batch = pack([[Seq([1, 2, 3], [0, 0.5, 2])]], row_tokens=8)
    logp = torch.zeros(batch.weight.shape)
    logp[0, :3] = torch.tensor([0.0, -1.0, -3.0])
    loss = make_objective("sft").loss(Outputs(logp=logp), batch)
    assert loss.sum == 0.5 * 1 + 2 * 3


def test_sft_counts_weights_and_never_the_first_token():
    assert make_objective("sft").count(pack([[Seq([1, 2, 3], [9, 0.5, 2])]], row_tokens=8)) == 2.5


def test_an_unknown_objective_names_those_that_exist():
    with pytest.raises(RecipeError, match="sft"):
        make_objective("sfd")
