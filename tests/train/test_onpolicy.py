"""A feed of the student's own answers: when they are drawn, which rows keep the written one, and what a stopped run reads again."""

from __future__ import annotations

import pytest

from burnish.core import Seq
from burnish.data.feed import Feed
from burnish.train.onpolicy import OwnAnswers

WRITTEN, OWN = 7, 9


@pytest.fixture
def make(tmp_path):
    """A function to a feed of twelve rows in steps of four, and the list of what the student was asked for."""

    def feed(share=0.0, every=2):
        groups = [[Seq([n, WRITTEN], [0.0, 1.0])] for n in range(12)]
        plain = Feed(groups, task="main", batch_size=4, epochs=2, row_tokens=64, micro_tokens=64, seed=0)
        asked = []

        def write(numbers):
            asked.append(list(numbers))
            return [[Seq([n, OWN], [0.0, 1.0])] for n in numbers]

        return OwnAnswers(plain, write, every=every, share=share, folder=tmp_path / "samples"), asked

    return feed


def answers(micro):
    return [int(batch.ids.flatten()[place]) for batch in micro for place in batch.trained]


def test_answers_are_drawn_every_few_steps_for_the_rows_of_those_steps(make):
    feed, asked = make(every=2)
    assert all(set(answers(micro)) == {OWN} for micro in feed)
    assert len(asked) == 3
    assert all(len(numbers) <= 8 for numbers in asked)


def test_a_step_is_drawn_only_once_the_one_before_it_is_done(make):
    feed, asked = make(every=1)
    for number, _ in enumerate(feed, 1):
        assert len(asked) == number


def test_a_share_of_the_rows_keeps_the_written_answer(make):
    feed, _ = make(share=0.5)
    found = [answer for micro in feed for answer in answers(micro)]
    assert {WRITTEN, OWN} == set(found)


def test_a_run_that_was_stopped_reads_its_samples_again(make):
    first, asked = make()
    steps = [answers(micro) for micro in first]
    again, asked_again = make()
    again.load_state_dict({"step": 3})
    assert [answers(micro) for micro in again] == steps[3:]
    assert (len(asked), len(asked_again)) == (3, 0)
