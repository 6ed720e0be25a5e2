"""Spans of text at whose ends two tokenizers both cut."""

from __future__ import annotations

import numpy as np

from burnish.model.align import APART, ends_of, ends_of_pieces, span_streams, spans


def test_spans_end_where_both_end():
    text = "the cat sat"
    found = spans(ends_of_pieces(["the", " cat", " sat"], text), ends_of_pieces(["th", "e c", "at", " s", "at"], text))
    assert found == [(slice(0, 2), slice(0, 3)), (slice(2, 3), slice(3, 5))]


def test_equal_tokens_are_spans_of_one_each():
    ends = ends_of_pieces(["a", "b", "c"], "abc")
    assert spans(ends, ends) == [(slice(n, n + 1), slice(n, n + 1)) for n in range(3)]


def test_text_that_one_of_them_never_ends_with_has_no_span():
    assert spans(ends_of_pieces(["ab"], "ab"), ends_of_pieces(["abc"], "ab")) == []


def test_a_token_that_ends_within_a_character_ends_nowhere(tokenizer):
    text = "aé"  # two bytes, two tokens
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ends_of(tokenizer, ids, text) == {1: 0, 2: 2}


def test_streams_hold_the_sum_at_the_last_token_and_how_far_it_is():
    teacher = np.array([-1.0, -2.0, -0.5])
    found = span_streams(8, [(3, [(slice(0, 2), slice(0, 2)), (slice(2, 3), slice(2, 3))], teacher)])
    assert found["teacher_logp"].tolist() == [APART] * 4 + [-3.0, -0.5] + [APART] * 2
    assert found["span_ahead"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_a_span_that_was_cut_off_is_left_out():
    found = span_streams(4, [(3, [(slice(0, 2), slice(0, 2))], np.array([-1.0, -2.0]))])
    assert (found["teacher_logp"] == APART).all()
    assert not found["span_ahead"].any()
