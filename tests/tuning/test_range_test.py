"""The learning-rate range test: the curve it draws and the rate that it suggests."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from burnish import api
from burnish.errors import RecipeError
from burnish.train.loop import Step
from burnish.tuning.range_test import Watch, render, suggestion, summary
from tiny_runs import asked_and_answered, recipe_of, write_rows


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    rows = write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", asked_and_answered())
    return recipe_of(model_folder(), rows, train={"max_steps": 5})


@pytest.fixture(scope="module")
def found(recipe, tmp_path_factory):
    return api.lr_range(recipe, steps=60, out=tmp_path_factory.mktemp("range"), quiet=True)


def step(number, loss, rate=1e-3):
    return Step(number, 100, loss, {}, 1.0, rate, 1, 1, 0.1, ())


def test_the_rate_grows_by_the_same_factor_each_step(found):
    rates = [point["rate"] for point in found["curve"]]
    factors = [after / before for before, after in itertools.pairwise(rates)]
    assert rates[0] == pytest.approx(found["usual"] / 1000)
    assert factors == pytest.approx([10 ** (5 / 59)] * len(factors))


def test_a_tiny_model_trains_well_at_the_rate_that_is_suggested(found, recipe, tmp_path):
    changes = {"train.learning_rate": found["suggested"], "train.max_steps": 60, "train.epochs": 10}
    report = api.run(recipe, out=tmp_path, overrides=changes, quiet=True)
    looks = report["training"]["validations"]
    assert min(look["loss"] for look in looks) < 0.1 * looks[0]["loss"]


def test_it_goes_on_for_its_own_steps_whatever_the_recipes_limit(found):
    assert found["steps"] == len(found["curve"]) > 5


def test_what_it_found_lies_in_the_folder_with_a_page(found, recipe, tmp_path):
    again = api.lr_range(recipe, steps=20, out=tmp_path, quiet=True)
    assert json.loads((tmp_path / "lr-range.json").read_text(encoding="utf-8")) == again
    page = (tmp_path / "lr-range.html").read_text(encoding="utf-8")
    assert page == render(again)
    assert "<svg" in page
    assert f"{found['suggested']:.1e}" in summary(found)


def test_too_few_steps_are_refused(recipe, tmp_path):
    with pytest.raises(RecipeError, match="too few"):
        api.lr_range(recipe, steps=5, out=tmp_path, quiet=True)


# The suggestion ------------------------------------------------------------------------------------------------------


def test_the_suggestion_lies_a_decade_below_the_lowest_loss():
    rates = [10 ** (power / 10 - 6) for power in range(50)]
    losses = [3.0 if rate < 1e-4 else 1.0 + abs(math.log10(rate / 1e-2)) for rate in rates]
    result = suggestion(rates, losses)
    assert result["lowest"] == pytest.approx(1e-2)
    assert result["suggested"] == pytest.approx(1e-3)
    assert result["why"] == ""


def test_a_loss_that_never_falls_suggests_nothing():
    result = suggestion([1e-5, 1e-4, 1e-3], [2.0, 2.1, 4.0])
    assert result["suggested"] is None
    assert "never fell" in result["why"]
    shown = {"curve": [], "folder": "runs", "usual": 1e-3, "ended": "x", "steps": 3, "batch_size": 4, **result}
    assert "no rate can be suggested" in summary(shown)
    assert "No learning rate" in render(shown)


def test_a_loss_that_falls_to_the_end_says_so():
    assert "still fell" in suggestion([1e-5, 1e-4, 1e-3], [2.0, 1.5, 1.0])["why"]


def test_the_test_ends_where_the_loss_runs_away():
    watch = Watch()
    calm = [watch.after(step(number, 1.0)) for number in range(1, 21)]
    wild = [watch.after(step(number, 9.0)) for number in range(21, 25)]
    assert set(calm) == {None}
    assert wild[-1] == "the loss ran away"


def test_one_bad_step_does_not_end_the_test():
    watch = Watch()
    for number in range(1, 21):
        watch.after(step(number, 1.0))
    assert watch.after(step(21, 4.0)) is None
