from __future__ import annotations

import random

import pytest
import torch

from burnish.model.net import Net
from burnish.model.sample import Sampler, fitting, row_bytes


@pytest.fixture
def prompts():
    draw = random.Random(3)
    return [[draw.randrange(250) for _ in range(length)] for length in (9, 1, 30, 9, 17, 4, 25)]


def greedy(model, prompt, count, end_ids):
    """transformers' own greedy answer to one prompt, alone and unpadded, with its end token where it has one."""
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": sorted(end_ids), "pad_token_id": 0}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def rows_per_call(model, monkeypatch, room=10**9):
    """The list to which every call of `generate` adds its number of rows; the GPU is out of memory for more than `room`."""
    seen, generate = [], model.generate

    def limited(*, input_ids, **rest):
        seen.append(len(input_ids))
        if len(input_ids) > room:
            raise torch.OutOfMemoryError("injected")
        return generate(input_ids=input_ids, **rest)

    monkeypatch.setattr(model, "generate", limited)
    return seen


def test_batched_answers_equal_those_of_each_prompt_alone(architecture, make_model, tokenizer, prompts):
    model = make_model(architecture)
    sampler = Sampler(model, tokenizer, {tokenizer.eos_token_id}, batch_size=3)
    found = [answers[0].ids for answers in sampler.sample(prompts, max_new_tokens=12)]
    alone = [greedy(model, prompt, 12, {tokenizer.eos_token_id}) for prompt in prompts]
    assert found == [[token for token in ids if token != tokenizer.eos_token_id] for ids in alone]


def test_padding_with_the_end_token_hides_the_padding_and_no_end_token_of_a_prompt(make_model, make_tokenizer, prompts):
    tokenizer = make_tokenizer(pad="<|im_end|>")
    end = tokenizer.eos_token_id
    talks = [[*prompt, end, 10, *prompt] for prompt in prompts]
    model = make_model()
    found = [answers[0].ids for answers in Sampler(model, tokenizer, {end}).sample(talks, max_new_tokens=8)]
    assert found == [[token for token in greedy(model, talk, 8, {end}) if token != end] for talk in talks]


def test_an_answer_ends_at_the_first_end_token(make_model, tokenizer, prompts):
    model = make_model()
    free = [greedy(model, prompt, 12, {tokenizer.eos_token_id}) for prompt in prompts]
    end = free[2][4]  # whatever is said fifth becomes the end
    found = Sampler(model, tokenizer, {end}, batch_size=3).sample(prompts, max_new_tokens=12)
    assert found[2][0].stop == "end"
    assert found[2][0].ids == free[2][: free[2].index(end)]
    assert all(end not in answers[0].ids for answers in found)


def test_an_answer_that_fills_its_room_says_so(make_model, tokenizer, prompts):
    found = Sampler(make_model(), tokenizer, {tokenizer.eos_token_id}).sample(prompts[:1], max_new_tokens=1)
    assert (found[0][0].stop, len(found[0][0].ids)) == ("length", 1)


def test_several_samples_of_a_prompt_stay_with_it(make_model, tokenizer, prompts):
    torch.manual_seed(0)
    sampler = Sampler(make_model(), tokenizer, {tokenizer.eos_token_id}, batch_size=2)
    found = sampler.sample(prompts[:3], n=4, max_new_tokens=5, temperature=1.0)
    assert [len(answers) for answers in found] == [4, 4, 4]
    assert len({tuple(answer.ids) for answer in found[0]}) > 1


def test_the_end_token_is_no_part_of_the_text(make_model, tokenizer, prompts):
    found = Sampler(make_model(), tokenizer, {tokenizer.eos_token_id}).sample(prompts, max_new_tokens=12)
    for answers in found:
        assert answers[0].text == tokenizer.decode(answers[0].ids, skip_special_tokens=True)


@pytest.mark.parametrize("training", [True, False])
def test_sampling_leaves_the_model_in_the_mode_it_was_in(make_model, tokenizer, prompts, training):
    model = make_model().train(training)
    Sampler(model, tokenizer, {tokenizer.eos_token_id}).sample(prompts[:1], max_new_tokens=1)
    assert model.training == training


def test_progress_counts_up_to_all_prompts(make_model, tokenizer, prompts):
    seen: list[int] = []
    Sampler(make_model(), tokenizer, {0}, batch_size=3).sample(prompts, max_new_tokens=1, progress=seen.append)
    assert seen == [3, 6, 7]


def test_no_prompts_give_no_answers(make_model, tokenizer):
    assert Sampler(make_model(), tokenizer, {0}).sample([], max_new_tokens=1) == []


def test_the_samples_are_those_that_transformers_draws_from_the_same_seed(make_model, tokenizer, prompts):
    model, end = make_model(), tokenizer.eos_token_id
    torch.manual_seed(5)
    [found] = Sampler(model, tokenizer, {end}).sample(prompts[:1], n=3, max_new_tokens=6, temperature=0.8)
    torch.manual_seed(5)
    ids = torch.tensor(prompts[:1])
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.8, "eos_token_id": end, "pad_token_id": 0}
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), num_return_sequences=3, **options)[
        :, ids.shape[1] :
    ]
    assert [answer.ids for answer in found] == [
        [token for token in row if token not in (end, 0)] for row in wanted.tolist()
    ]


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_halved_and_no_answer_is_lost(make_model, tokenizer, prompts, monkeypatch, room):
    model = make_model()
    sampler = Sampler(model, tokenizer, {tokenizer.eos_token_id})
    wanted = sampler.sample(prompts, max_new_tokens=6)
    rows = rows_per_call(model, monkeypatch, room)
    assert sampler.sample(prompts, max_new_tokens=6) == wanted
    assert sum(count for count in rows if count <= room) == len(prompts)


def test_what_did_not_fit_once_is_not_tried_again(make_model, tokenizer, prompts, monkeypatch):
    model = make_model()
    rows = rows_per_call(model, monkeypatch, room=3)
    Sampler(model, tokenizer, {0}).sample(prompts, max_new_tokens=1)
    assert rows == [7, 3, 3, 1]


def test_the_samples_of_a_prompt_may_take_several_batches(make_model, tokenizer, prompts, monkeypatch):
    model = make_model()
    rows, done = rows_per_call(model, monkeypatch, room=2), []
    sampler = Sampler(model, tokenizer, {0}, batch_size=1)
    found = sampler.sample(prompts[:2], n=5, max_new_tokens=2, temperature=1.0, progress=done.append)
    assert [len(answers) for answers in found] == [5, 5]
    assert rows == [5, 2, 2, 2, 2, 2]
    assert done[-1] == 2


def test_a_prompt_that_does_not_fit_alone_is_an_error_and_the_model_is_left_as_it_was(
    make_model, tokenizer, prompts, monkeypatch
):
    model = make_model().train()
    rows_per_call(model, monkeypatch, room=0)
    with pytest.raises(torch.OutOfMemoryError):
        Sampler(model, tokenizer, {0}).sample(prompts, max_new_tokens=1)
    assert model.training


def test_a_batch_is_as_large_as_its_longest_prompt_allows():
    assert fitting([10, 20, 30, 40], lambda length: length, room=90) == 3
    assert fitting([10, 20, 30, 40], lambda length: length, room=1000) == 4
    assert fitting([10, 20], lambda length: length, room=1) == 1


def test_prompts_of_like_length_go_together():
    assert fitting([1, 100, 128, 129], lambda length: 0, room=1) == 3
    assert fitting([129, 200, 258, 259], lambda length: 0, room=1) == 3


def test_a_row_takes_at_least_its_keys_and_values(make_model, architecture):
    model = make_model(architecture)
    cache = model(torch.zeros(1, 12, dtype=torch.int64), use_cache=True)[1]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held < row_bytes(model, 8, 4) < row_bytes(model, 9, 4) < row_bytes(model, 9, 5)


# What is not computed ------------------------------------------------------------------------------------------------


def forwards(model):
    """The list to which every pass through the model adds the shape of its logits."""
    seen = []
    model.register_forward_hook(lambda module, args, out: seen.append(tuple(out.logits.shape)))
    return seen


def test_a_batch_ends_with_the_last_of_its_answers(make_model, tokenizer, prompts):
    model = make_model()
    passes = forwards(model)
    [[answer]] = Sampler(model, tokenizer, range(len(tokenizer))).sample(prompts[:1], max_new_tokens=50)
    assert (answer.stop, answer.ids, len(passes)) == ("end", [], 1)


def test_no_prompt_has_logits_but_at_its_last_token(make_model, tokenizer, prompts, architecture):
    model = make_model(architecture)
    passes = forwards(model)
    Sampler(model, tokenizer, {tokenizer.eos_token_id}).sample(prompts, max_new_tokens=3)
    assert {shape[1] for shape in passes} == {1}


# Beside training -----------------------------------------------------------------------------------------------------


def test_layers_that_training_compiled_are_not_compiled_for_an_answer(make_model, tokenizer, prompts):
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    model, end = make_model(), tokenizer.eos_token_id
    wanted = Sampler(model, tokenizer, {end}).sample(prompts, max_new_tokens=4)
    for layer in model.model.layers:
        layer.compile(backend=backend)
    assert Sampler(model, tokenizer, {end}).sample(prompts, max_new_tokens=4) == wanted
    assert compiled == []
    model(torch.tensor(prompts[:1]))  # and for training they still are
    assert compiled


def test_the_attention_of_packed_rows_answers_as_transformers_own_does(make_model, tokenizer, prompts, architecture):
    end = tokenizer.eos_token_id
    wanted = Sampler(make_model(architecture), tokenizer, {end}).sample(prompts, max_new_tokens=8)
    packed = Net(make_model(architecture))
    assert Sampler(packed.model, tokenizer, {end}).sample(prompts, max_new_tokens=8) == wanted
