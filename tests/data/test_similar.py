"""How alike texts are: the normal form, the MinHash index with its recall, shared runs of words, and frames."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import sentence

from burnish.data.frames import Frames
from burnish.data.similar import (
    CROWD,
    WORDS,
    Index,
    candidates,
    distinct_pairs,
    fingerprint,
    jaccard,
    normalise,
    shared_runs,
    shingles,
)


def index_of(*texts: str) -> Index:
    index = Index()
    for text in texts:
        index.add(text)
    return index


def altered(text: str, likeness: float) -> str:
    """The text with words of it replaced until its Jaccard with the original falls to `likeness`, or a little below."""
    words = text.split()
    draw = random.Random(text)
    for place in draw.sample(range(len(words)), len(words)):
        if jaccard(normalise(text), normalise(" ".join(words))) <= likeness:
            break
        words[place] = sentence(1, (text, place))
    return " ".join(words)


# ---------------------------------------------------------------- the normal form


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is it?", "where  is it"),
        ("top-up", "top up"),
        ("ﬁne", "FINE"),
        ("„Ja“, bitte", "ja bitte"),
        ("STRASSE", "straße"),
    ],
)
def test_texts_that_differ_in_form_alone_are_equal(one: str, other: str):
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1.5", "15"), ("-1", "1"), ("a+b", "a b"), ("x < y", "x > y"), ("10:30", "1030"), ("?", "!"), ("é", "e")],
)
def test_texts_that_say_something_else_are_not_equal(one: str, other: str):
    assert fingerprint(one) != fingerprint(other)


@given(st.text())
def test_the_normal_form_is_its_own(text: str):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(max_size=30), st.text(max_size=30))
def test_jaccard_is_that_of_the_shingles(one: str, other: str):
    first, second = shingles(one), shingles(other)
    assert jaccard(one, other) == pytest.approx(len(first & second) / len(first | second))


@given(st.lists(st.text(max_size=20), max_size=5))
def test_an_index_gives_its_texts_back(texts: list[str]):
    index = index_of(*texts)
    assert [index.parts(number)[0] for number in range(len(index))] == [normalise(text) for text in texts]


# ---------------------------------------------------------------- MinHash


def test_the_share_of_equal_minima_estimates_the_jaccard():
    pairs = [(text, altered(text, 0.6)) for text in (sentence(30, number) for number in range(50))]
    signatures = index_of(*(text for both in pairs for text in both)).signatures()
    estimates = (signatures[::2] == signatures[1::2]).mean()
    assert estimates == pytest.approx(np.mean([jaccard(*map(normalise, both)) for both in pairs]), abs=0.02)


@pytest.mark.parametrize(("jaccard_of_pairs", "near", "least"), [(0.8, 0.8, 0.97), (0.8, 0.65, 1.0), (0.5, 0.5, 0.85)])
def test_the_bands_find_nearly_all_pairs_at_the_limit(jaccard_of_pairs: float, near: float, least: float):
    """At 0.65 is looked for by a split: of the pairs at 0.8 it must not miss any."""
    texts = [sentence(30, number) for number in range(100)]
    index = index_of(*(text for original in texts for text in (original, altered(original, jaccard_of_pairs + 0.05))))
    pairs = {(one, one + 1) for one in range(0, len(index), 2) if index.likeness(one, one + 1) >= jaccard_of_pairs}
    found = set(distinct_pairs(candidates(index.signatures(), near), len(index)))
    assert len(pairs) > 60
    assert len(pairs & found) >= least * len(pairs)


def test_pairs_across_sides_only():
    index = index_of(*["the same text for all of them"] * 4)
    sides = np.array([0, 1, 0, 1])
    pairs = set(distinct_pairs(candidates(index.signatures(), 0.8, sides=sides), 4))
    assert pairs == {(0, 1), (0, 3), (1, 2), (2, 3)}


def test_items_of_another_salt_do_not_meet():
    index = index_of(*["the same text for all of them"] * 3)
    salt = np.array([7, 0, 7], np.uint64)
    assert set(distinct_pairs(candidates(index.signatures(), 0.8, salt=salt), 3)) == {(0, 2)}


def test_in_a_crowd_each_is_compared_with_the_first():
    count = 2 * CROWD
    index = index_of(*["the same text for all of them"] * count)
    pairs = set(distinct_pairs(candidates(index.signatures(), 0.8), count))
    assert {(0, number) for number in range(1, count)} <= pairs


# ---------------------------------------------------------------- shared runs of words


def test_texts_that_share_thirteen_words_are_found_and_twelve_are_too_few():
    run = sentence(WORDS, "run")
    texts = [f"one {run} and more", f"quite another beginning {run}", f"so {run.rsplit(' ', 1)[0]} it ends"]
    pairs = [pair for ones, others in shared_runs(index_of(*texts)) for pair in zip(ones, others, strict=True)]
    assert {tuple(map(int, pair)) for pair in pairs} == {(0, 1)}


def test_a_run_that_many_texts_share_is_boilerplate():
    run = sentence(WORDS, "run")
    texts = [f"{sentence(5, number)} {run} {sentence(5, -number)}" for number in range(30)]
    assert not any(len(ones) for ones, _ in shared_runs(index_of(*texts)))


# ---------------------------------------------------------------- frames


def test_what_all_texts_share_is_no_part_of_their_cores():
    texts = [f"Classify this ticket: {sentence(3, number)}. Answer with one word." for number in range(20)]
    index = index_of(*texts)
    assert [index.core(number) for number in range(20)] == [sentence(3, number) for number in range(20)]


def test_a_few_texts_without_the_frame_do_not_hide_it():
    framed = [f"Please classify the following ticket: {sentence(3, number)}" for number in range(30)]
    index = index_of(*framed, *(sentence(9, f"other {number}") for number in range(10)))
    assert index.core(0) == sentence(3, 0)
    assert index.core(35) == sentence(9, "other 5")


def test_several_frames_may_share_a_file():
    first, second = (sentence(12, name) for name in ("first", "second"))
    texts = [f"{(first, second)[number % 2]} {sentence(3, number)}" for number in range(40)]
    index = index_of(*texts)
    assert {index.core(number) for number in range(40)} == {sentence(3, number) for number in range(40)}


def test_a_text_that_is_nothing_but_its_frame_stays():
    index = index_of("Classify this ticket:", *(f"Classify this ticket: {sentence(3, number)}" for number in range(20)))
    assert index.core(0) == "classify this ticket"


def test_copies_of_a_row_are_no_frame():
    index = index_of(*["How do I reset the device that I bought here?"] * 20, *(sentence(9, n) for n in range(20)))
    assert index.frames == Frames()


def test_a_few_words_with_which_some_texts_begin_are_no_frame():
    """They belong to the texts; without them "How do I" and "Can I" would seem less alike than they are."""
    index = index_of(*(f"How do I {sentence(4, n)}" for n in range(20)), *(sentence(7, -n) for n in range(1, 80)))
    assert index.frames == Frames()


def test_frames_do_not_depend_on_the_order_of_the_texts():
    texts = [f"{sentence(6, number % 3)} {sentence(4, number)}" for number in range(2200)]
    assert index_of(*texts).frames == index_of(*reversed(texts)).frames


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map(" ".join), unique=True))
def test_a_core_is_a_part_of_its_text_and_never_empty(texts: list[str]):
    frames = Frames.of(texts)
    assert all(frames.core(text) and f" {frames.core(text)} " in f" {text} " for text in texts)
