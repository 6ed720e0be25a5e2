from __future__ import annotations

import random

import pytest
import torch

from burnish.model.sample import Sampler


@pytest.fixture
def prompts():
    draw = random.Random(3)
    return [[draw.randrange(250) for _ in range(length)] for length in (9, 1, 30, 9, 17, 4, 25)]


def greedy(model, prompt, count, end_ids):
    """transformers' own greedy answer to one prompt, alone and unpadded, with its end token where it has one."""
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": sorted(end_ids), "pad_token_id": 0}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


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
