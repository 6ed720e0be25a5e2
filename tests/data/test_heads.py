"""Rows for heads of several labels, numbers and tags: what is learnt at which token, and what is refused."""

from __future__ import annotations

import pytest
from reading import again

from burnish.data.heads import Grades, MultiLabel, Tags
from burnish.data.rows import Labelled, Tagged, Turn
from burnish.errors import RecipeError, RowError


def labelled(label, text="bako"):
    return Labelled(file="rows.jsonl", line=3, turns=(Turn("user", text),), label=label)


def tagged(words, tags):
    return Tagged(file="rows.jsonl", line=3, words=tuple(words.split()), tags=tuple(tags.split()))


def test_each_label_is_a_value_of_its_own(tokenizer):
    [seq] = MultiLabel(tokenizer, ["a", "b", "c"]).render(labelled(("c", "a")))
    assert seq.values == {"label.0": 1.0, "label.1": 0.0, "label.2": 1.0}


def test_one_label_is_a_list_of_one(tokenizer):
    [seq] = MultiLabel(tokenizer, ["a", "b"]).render(labelled("b"))
    assert seq.values == {"label.0": 0.0, "label.1": 1.0}


@pytest.mark.parametrize("label", [("a", "z"), 2.5, ("a, b",)])
def test_labels_that_the_head_has_not_name_their_row(tokenizer, label):
    with pytest.raises(RecipeError) as caught:
        MultiLabel(tokenizer, ["a", "b"]).render(labelled(label))
    assert caught.value.where == "rows.jsonl:3"


@pytest.mark.parametrize("label", [14, 14.0, "14"])
def test_a_number_is_told_in_spreads_from_the_mean(tokenizer, label):
    [seq] = Grades(tokenizer, mean=10, spread=2).render(labelled(label))
    assert seq.y == 2


@pytest.mark.parametrize("label", ["good", "nan", ("1",)])
def test_what_is_no_number_names_its_row(tokenizer, label):
    with pytest.raises(RecipeError, match="no number") as caught:
        Grades(tokenizer, mean=0, spread=1).render(labelled(label))
    assert caught.value.where == "rows.jsonl:3"


def test_a_tag_lies_at_the_last_token_of_its_word(tokenizer):
    chat = Tags(tokenizer, ["B-X", "O"])
    [seq] = chat.render(tagged("ab cde f", "O B-X O"))  # each byte is a token
    assert seq.ids == tokenizer("ab cde f")["input_ids"]
    assert seq.tokens["tag"] == [0, 2, 0, 0, 0, 1, 0, 2]
    assert chat.show(seq) == "ab cde⟪B-X⟫ f"


def test_words_of_several_bytes_and_control_tokens_keep_their_places(tokenizer):
    chat = Tags(tokenizer, ["B-X", "O"])
    [seq] = chat.render(tagged("ü <|im_end|> z", "B-X O B-X"))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in seq.ids
    places = [place for place, tag in enumerate(seq.tokens["tag"]) if tag]
    assert [seq.tokens["tag"][place] for place in places] == [1, 2, 1]
    assert places[0] == 1  # the second byte of the first word
    assert places[-1] == len(seq) - 1


def test_words_beyond_the_length_are_counted_as_lost(tokenizer):
    [seq] = Tags(tokenizer, ["O"], max_length=16).render(tagged("abcdefgh " * 3, "O O O"))
    assert seq.lost == 2
    assert sum(tag > 0 for tag in seq.tokens["tag"]) == 1


def test_a_tag_that_the_head_has_not_names_its_row(tokenizer):
    with pytest.raises(RecipeError, match="'B-Y'"):
        Tags(tokenizer, ["O"]).render(tagged("a", "B-Y"))


def test_other_rows_have_no_tags(tokenizer):
    with pytest.raises(RowError, match="no tags"):
        Tags(tokenizer, ["O"]).render(labelled("O"))


def test_tagged_rows_are_read_and_written():
    row = tagged("Ada lives", "B-PER O")
    assert again(row) == row
