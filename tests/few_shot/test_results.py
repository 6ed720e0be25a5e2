"""Curve, cost and advice from results that are known."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.few_shot.page import write_page
from burnish.few_shot.results import advise, as_table, summarize

ITEMS = 200


def result(method, share, *, k=4, seed=0, test=None, train=1.0, answer=0.001):
    """A run that has this share of the items right; the items are the same for all, hardest last."""

    def scores(wanted):
        return [float(n < round(wanted * ITEMS)) for n in range(ITEMS)]

    return {
        "method": method,
        "k": k,
        "seed": seed,
        "rows": 3 * k,
        "metric": "accuracy",
        "validation": scores(share),
        "test": scores(share if test is None else test),
        "clusters": {"validation": list(range(ITEMS)), "test": list(range(ITEMS))},
        "trained_parameters": 10,
        "train_seconds": train,
        "answer_seconds": answer,
        "note": "",
    }


def test_the_best_is_advised_where_validation_tells_it_from_the_cheaper():
    advice = advise([result("lora", 0.9, train=100), result("head", 0.5)])
    assert (advice["method"], advice["not_worse"]) == ("lora", ["lora"])
    assert advice["differences"]["head"]["ci95"][1] < 0


def test_the_cheapest_is_advised_where_validation_cannot_tell():
    advice = advise([result("lora", 0.9, train=100), result("head", 0.895), result("in_context", 0.9, answer=1.0)])
    assert advice["method"] == "head"
    assert advice["best_on_validation"] == "lora"
    assert set(advice["not_worse"]) == {"lora", "head", "in_context"}


def test_test_figures_take_no_part_in_the_choice():
    advice = advise([result("lora", 0.9, test=0.1), result("head", 0.5, test=1.0)])
    assert advice["method"] == "lora"
    assert advice["test"] == pytest.approx(0.1)


def test_mean_and_spread_are_over_the_seeds():
    summary = summarize([result("head", share, seed=seed) for seed, share in enumerate((0.4, 0.5, 0.6))])
    [point] = summary["curve"]
    assert point["test"] == pytest.approx(0.5)
    assert point["test_sd"] == pytest.approx(np.std([0.4, 0.5, 0.6], ddof=1))
    assert point["seeds"] == 3


def test_one_seed_has_no_spread():
    assert summarize([result("head", 0.5)])["curve"][0]["test_sd"] is None


def test_table_and_page_name_every_method_and_k(tmp_path):
    summary = summarize(
        [result(method, 0.5 + k / 50, k=k, seed=s) for method in ("lora", "<b>") for k in (4, 8) for s in (0, 1)]
    )
    table = as_table(summary)
    assert "k 4: use" in table
    assert "k 8: use" in table
    assert "mean of 2 seeds" in table
    write_page(summary, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<path") == 6  # two methods, each with its mean and the spread on both sides
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
