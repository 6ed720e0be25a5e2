"""A few rows of each class: how many, which, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest

from burnish.data.draw import draw, keep_per_class
from burnish.data.ledger import Ledger
from burnish.data.rows import Labelled, Text, Turn
from burnish.errors import RecipeError, RowError


def rows_of(**sizes):
    labels = [label for label, size in sizes.items() for _ in range(size)]
    return [
        Labelled(file="a.jsonl", line=number, turns=(Turn("user", f"text {number}"),), label=label)
        for number, label in enumerate(labels, 1)
    ]


def counts(rows):
    return dict(Counter(row.label for row in rows))


def test_every_class_gives_as_many_rows_and_the_order_is_the_files():
    drawn = draw(rows_of(red=9, green=5, blue=7), 4, seed=1)
    assert counts(drawn) == {"red": 4, "green": 4, "blue": 4}
    assert [row.line for row in drawn] == sorted(row.line for row in drawn)


def test_a_smaller_draw_is_part_of_a_larger_one_and_another_seed_draws_others():
    rows = rows_of(red=40, green=40)
    few, many, other = ({row.line for row in draw(rows, k, seed)} for k, seed in ((4, 1), (16, 1), (4, 2)))
    assert few < many
    assert few != other


def test_a_class_more_changes_nothing_for_the_others():
    with_blue = draw(rows_of(red=20, green=20, blue=20), 5, seed=3)
    assert [row for row in with_blue if row.label != "blue"] == draw(rows_of(red=20, green=20), 5, seed=3)


def test_more_rows_than_a_class_has_names_it_and_its_size():
    with pytest.raises(RecipeError, match=r"8 rows of each class.*'blue' has 3.*smallest of 2") as caught:
        draw(rows_of(red=9, green=5, blue=3), 8, seed=0)
    assert "take_fewer=true" in caught.value.hint


def test_a_class_that_is_too_small_gives_all_it_has_where_that_is_wanted():
    assert counts(draw(rows_of(red=9, blue=3), 8, seed=0, fewer=True)) == {"red": 8, "blue": 3}


def test_one_class_alone_is_refused():
    with pytest.raises(RecipeError, match="all training rows have the label 'red'"):
        draw(rows_of(red=9), 2, seed=0)


def test_rows_without_a_label_are_refused_by_place():
    with pytest.raises(RowError, match="no class to draw from") as caught:
        draw([*rows_of(red=2), Text(file="b.txt", line=7, text="words")], 1, seed=0)
    assert caught.value.where == "b.txt:7"


def test_what_is_left_out_stands_in_the_ledger(tmp_path):
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        keep_per_class(rows_of(red=9, green=5), 4, 0, ledger, fewer=False)
        assert ledger.by_reason("left out") == {"data.per_class": 6}
