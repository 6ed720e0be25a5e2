"""Rows as texts with a class: the ids that plain transformers would give, and labels that the head has."""

from __future__ import annotations

import pytest

from burnish.data.classes import Classes
from burnish.data.ledger import Ledger
from burnish.data.render import render_rows
from burnish.data.rows import Conversation, Labelled, Turn
from burnish.errors import RecipeError, RowError


def labelled(text, label="red", line=1):
    return Labelled(file="rows.csv", line=line, turns=(Turn("user", text),), label=label)


@pytest.fixture
def classes(tokenizer):
    return Classes(tokenizer, ["green", "red"], max_length=16)


@pytest.fixture
def with_ends(make_tokenizer):
    """A function that gives a tokenizer which puts `<s>` before a text and a token after it."""
    from tokenizers import processors

    def make(after, pad="<pad>"):
        tokenizer = make_tokenizer(pad=pad)
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", after)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"<s> $A {after}", special_tokens=ids
        )
        return tokenizer

    return make


def test_a_row_is_its_plain_text_as_the_tokenizer_encodes_it(classes, tokenizer):
    [seq] = classes.render(labelled("bako ritu"))
    assert seq.ids == tokenizer("bako ritu")["input_ids"]
    assert (seq.y, seq.where, seq.trained) == (1.0, "rows.csv:1", 0)


def test_the_tokenizers_own_ends_stand_around_the_text(with_ends):
    tokenizer = with_ends("</s>")
    [seq] = Classes(tokenizer, ["green", "red"]).render(labelled("bako"))
    assert seq.ids == tokenizer("bako")["input_ids"]
    assert len(seq.ids) == 6


def test_an_end_that_is_the_padding_is_left_off_since_nobody_could_tell_it_from_padding(with_ends):
    tokenizer = with_ends("<|im_end|>", pad="<|im_end|>")
    [seq] = Classes(tokenizer, ["green", "red"]).render(labelled("bako"))
    assert seq.ids == tokenizer("bako")["input_ids"][:-1]


def test_a_long_text_loses_its_end_and_keeps_what_stands_around_it(with_ends):
    tokenizer = with_ends("</s>")
    [seq] = Classes(tokenizer, ["green", "red"], max_length=16).render(labelled("bako" * 10))
    assert (len(seq.ids), seq.lost) == (16, 26)
    assert (seq.ids[0], seq.ids[-1]) == (tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("</s>"))


def test_a_control_token_that_a_text_spells_stays_text(classes, tokenizer):
    [seq] = classes.render(labelled("a<pad>"))
    assert tokenizer.pad_token_id not in seq.ids
    assert tokenizer.decode(seq.ids) == "a<pad>"


def test_a_conversation_is_classified_by_its_last_answer(classes, tokenizer):
    turns = (Turn("system", "Sort."), Turn("user", "bako"), Turn("assistant", "red"))
    [seq] = classes.render(Conversation(file="rows.jsonl", line=3, turns=turns))
    assert (tokenizer.decode(seq.ids), seq.y) == ("bako", 1.0)


def asked_in_a_chat(tokenizer, *said):
    turns = [{"role": role, "content": content} for role, content in said]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]


def test_a_row_in_the_frame_of_a_chat_is_what_the_model_would_be_asked(tokenizer):
    classes = Classes(tokenizer, ["green", "red"], system="Sort.", max_length=64, frame="chat")
    [seq] = classes.render(labelled("bako ritu"))
    assert seq.ids == asked_in_a_chat(tokenizer, ("system", "Sort."), ("user", "bako ritu"))
    assert (seq.y, seq.lost, classes.prompt((Turn("user", "bako ritu"),))) == (1.0, 0, seq.ids)


def test_the_frame_of_a_chat_keeps_the_turns_of_a_conversation_apart(tokenizer):
    classes = Classes(tokenizer, ["green", "red"], frame="chat")
    said = (("system", "Sort."), ("user", "bako"), ("assistant", "ritu"), ("user", "tasi"))
    turns = tuple(Turn(role, content) for role, content in (*said, ("assistant", "red")))
    [seq] = classes.render(Conversation(file="rows.jsonl", line=3, turns=turns))
    assert seq.ids == asked_in_a_chat(tokenizer, *said)


def test_a_long_text_in_a_chat_loses_its_end_and_keeps_the_opening_of_the_answer(tokenizer):
    classes = Classes(tokenizer, ["green", "red"], system="Sort.", max_length=50, frame="chat")
    [seq] = classes.render(labelled("bako" * 10))
    whole = asked_in_a_chat(tokenizer, ("system", "Sort."), ("user", "bako" * 10))
    opening = whole[whole.index(tokenizer.eos_token_id, 20) :]  # from the end of the user's turn on
    assert (len(seq.ids), seq.lost) == (50, len(whole) - 50)
    assert seq.ids == [*whole[: 50 - len(opening)], *opening]


def test_a_conversation_that_the_template_refuses_costs_its_row_alone(make_tokenizer):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    tokenizer = make_tokenizer(strict + make_tokenizer().chat_template)
    classes = Classes(tokenizer, ["green", "red"], frame="chat")
    turns = (Turn("system", "Sort."), Turn("assistant", "ritu"), Turn("user", "tasi"), Turn("assistant", "red"))
    refused = Conversation(file="rows.jsonl", line=3, turns=turns)
    done = render_rows([refused, labelled("bako", line=4)], classes, ledger := Ledger())
    assert len(done.groups) == 1
    assert "the chat template refuses" in next(iter(ledger.by_reason("dropped")))


def test_an_end_token_that_is_the_padding_is_no_place_for_a_head_to_read(make_tokenizer):
    template = "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
    tokenizer = make_tokenizer(template, pad="<|im_end|>")
    [seq] = Classes(tokenizer, ["green", "red"], frame="chat").render(labelled("bako"))
    assert tokenizer.decode(seq.ids) == "bako"


def test_a_frame_that_leaves_no_room_for_a_text_is_refused(tokenizer):
    frame = len(asked_in_a_chat(tokenizer, ("system", "Sort."), ("user", "")))
    with pytest.raises(RecipeError, match=f"its frame takes {frame}") as caught:
        Classes(tokenizer, ["green", "red"], system="Sort.", max_length=frame, frame="chat")
    assert caught.value.where == "train.max_length"
    assert Classes(tokenizer, ["green", "red"], system="Sort.", max_length=frame + 1, frame="chat").frame == "chat"


def test_a_control_token_that_a_text_spells_stays_text_in_a_chat(tokenizer):
    [seq] = Classes(tokenizer, ["green", "red"], frame="chat").render(labelled("a<|im_end|>"))
    assert seq.ids.count(tokenizer.eos_token_id) == 1


def test_what_is_asked_later_gets_the_ids_of_training(classes):
    [seq] = classes.render(labelled("bako"))
    assert classes.prompt((Turn("user", "bako"),)) == seq.ids


def test_a_label_that_the_head_does_not_have_names_its_row(classes):
    with pytest.raises(RecipeError, match=r"'blue'.*among the 2") as caught:
        classes.render(labelled("bako", "blue", line=7))
    assert caught.value.where == "rows.csv:7"
    assert "task: {labels:" in caught.value.hint


@pytest.mark.parametrize("label", [0.5, ("red", "green")])
def test_a_grade_or_several_labels_are_no_class(classes, label):
    with pytest.raises(RecipeError) as caught:
        classes.render(labelled("bako", label))
    assert (caught.value.where, caught.value.expected) == ("rows.csv:1", "one class for each text")


def test_a_row_without_text_is_refused(classes):
    with pytest.raises(RowError, match="no text"):
        classes.render(labelled(""))


def test_rows_are_kept_although_no_token_of_them_is_trained(classes):
    done = render_rows([labelled("a"), labelled("b" * 30, "green", 2)], classes, Ledger())
    assert (len(done.groups), done.trained, done.tokens, done.truncated) == (2, 0, 17, 1)


def test_a_shown_row_has_its_label_marked(classes):
    [seq] = classes.render(labelled("bako"))
    assert classes.show(seq) == "bako ⟪red⟫"
