"""Recorded decoding. On the CPU a stand-in runs the step anew on the tensors that a graph would have been recorded with."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from burnish.model import recorded, sample
from burnish.model.net import Net
from burnish.model.recorded import Recorded, Unrecordable, fixed_cache, recordable
from burnish.model.sample import Sampler


@pytest.fixture
def prompts():
    draw = random.Random(3)
    return [[draw.randrange(250) for _ in range(length)] for length in (9, 1, 30, 9, 17, 4, 25)]


@pytest.fixture
def stand_in(monkeypatch):
    """A function that lets a model of the CPU go the way of one on a GPU; it gives the list of `Recorded` passes."""
    passes = []

    class Watched(Recorded):
        def __init__(self, model):
            super().__init__(model)
            passes.append(self)

    def prepare(model):
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        monkeypatch.setattr(inner, "_valid_auto_compile_criteria", lambda *args: True)
        return passes

    monkeypatch.setattr(sample, "recordable", lambda model: True)
    monkeypatch.setattr(recorded, "Recorded", Watched)
    monkeypatch.setattr(recorded, "graph_of", lambda step, **where: step)
    monkeypatch.setattr(recorded, "never_waiting", contextlib.nullcontext)
    return prepare


def with_adapter(model):
    """LoRA with weights that matter."""
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def answers(model, tokenizer, prompts, end=None, **options):
    sampler = Sampler(model, tokenizer, {tokenizer.eos_token_id if end is None else end}, batch_size=4)
    return sampler.sample(prompts, max_new_tokens=12, **options)


@pytest.mark.parametrize("adapt", [lambda model: model, with_adapter], ids=["plain", "lora"])
def test_recorded_answers_equal_plain_ones(make_model, architecture, tokenizer, prompts, stand_in, adapt, monkeypatch):
    model = adapt(make_model(architecture))
    passes = stand_in(model)
    found = answers(model, tokenizer, prompts)
    monkeypatch.setattr(sample, "recordable", lambda model: False)
    assert found == answers(model, tokenizer, prompts)
    assert [one.calls for one in passes] == [11, 11]  # the first token comes of reading the prompt


def test_recorded_samples_equal_plain_ones(make_model, tokenizer, prompts, stand_in, monkeypatch):
    model = make_model()
    stand_in(model)
    torch.manual_seed(2)
    found = answers(model, tokenizer, prompts, n=3, temperature=0.7)
    monkeypatch.setattr(sample, "recordable", lambda model: False)
    torch.manual_seed(2)
    assert found == answers(model, tokenizer, prompts, n=3, temperature=0.7)


def test_a_recorded_batch_ends_with_the_last_of_its_answers(make_model, tokenizer, prompts, stand_in):
    model = make_model()
    [[free]] = answers(model, tokenizer, prompts[2:3])
    passes = stand_in(model)
    end = free.ids[6]
    [[found]] = answers(model, tokenizer, prompts[2:3], end=end)
    assert (found.ids, found.stop) == (free.ids[: free.ids.index(end)], "end")
    assert passes[0].calls == len(found.ids)


def test_the_attention_of_packed_rows_is_recorded_too(make_model, architecture, tokenizer, prompts, stand_in):
    wanted = [list(one) for one in answers_of_plain(make_model(architecture), tokenizer, prompts)]
    packed = Net(make_model(architecture)).model
    stand_in(packed)
    assert [[answer.ids for answer in row] for row in answers(packed, tokenizer, prompts)] == wanted


def answers_of_plain(model, tokenizer, prompts):
    """transformers' own greedy answers, one prompt at a time."""
    end = tokenizer.eos_token_id
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
        yield [[token for token in out if token != end]]


def test_weights_of_float32_are_recorded_under_autocast(make_model, tokenizer, prompts, stand_in):
    model = make_model()
    passes = stand_in(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(model, tokenizer, prompts)
    assert all(answer.ids for row in found for answer in row if answer.stop == "length")
    layer = passes[0].inputs[next(name for name in ("cache", "past_key_values") if name in passes[0].inputs)].layers[0]
    assert layer.keys.dtype == layer.values.dtype


def test_a_step_that_waits_is_answered_the_plain_way(make_model, tokenizer, prompts, stand_in, monkeypatch):
    model = make_model()
    wanted = answers(model, tokenizer, prompts)

    @contextlib.contextmanager
    def waiting():
        raise Unrecordable("it waits")
        yield

    passes = stand_in(model)
    monkeypatch.setattr(recorded, "never_waiting", waiting)
    assert answers(model, tokenizer, prompts) == wanted
    assert len(passes) == 1  # and it is not tried again


def test_memory_that_runs_out_while_recording_halves_the_batch(make_model, tokenizer, prompts, stand_in, monkeypatch):
    model = make_model()
    wanted = answers(model, tokenizer, prompts)
    passes = stand_in(model)

    def graph_of(step, **where):
        if len(passes) < 2:
            raise torch.OutOfMemoryError("injected")
        return step

    monkeypatch.setattr(recorded, "graph_of", graph_of)
    assert answers(model, tokenizer, prompts) == wanted
    assert len(passes) == 5  # 4 rows failed, then 2, 2, 2 and 1


def test_the_models_own_compiled_call_comes_back(make_model, tokenizer, prompts, stand_in):
    model = make_model()
    stand_in(model)
    answers(model, tokenizer, prompts)
    assert "get_compiled_call" not in vars(model)


def test_a_recording_is_fed_by_copies_of_its_inputs():
    step = Recorded(lambda ids, masks, cache: ids + masks["full"] + cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "graph_of", lambda run, **where: run)
        patch.setattr(recorded, "never_waiting", contextlib.nullcontext)
        given = [{"ids": torch.tensor(n), "masks": {"full": torch.tensor(10 * n)}, "cache": 100} for n in range(5)]
        assert [int(step(**inputs)) for inputs in given] == [100, 111, 122, 133, 144]
    assert [int(inputs["ids"]) for inputs in given] == list(range(5))


def test_nothing_is_recorded_on_the_cpu(make_model):
    assert not recordable(make_model())


def test_an_adapter_that_puts_tokens_before_the_prompt_is_not_recorded(make_model):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not recordable(get_peft_model(make_model(), config))


def test_a_model_that_keeps_something_other_than_keys_and_values_is_not_recorded(make_model):
    config = make_model().config
    config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    assert fixed_cache(SimpleNamespace(config=config), 8) is None


@pytest.mark.gpu
@pytest.mark.parametrize("adapt", [lambda model: model, with_adapter], ids=["plain", "lora"])
def test_a_gpu_gives_the_answers_of_the_cpu(make_model, architecture, tokenizer, prompts, adapt):
    wanted = answers(adapt(make_model(architecture)), tokenizer, prompts)
    model = adapt(make_model(architecture)).cuda()
    assert recordable(model)
    found = Sampler(Net(model).model, tokenizer, {tokenizer.eos_token_id}).sample(prompts, max_new_tokens=12)
    assert found == wanted


@pytest.mark.gpu
def test_a_gpu_has_random_numbers_and_memory_left_after_answering(make_model, tokenizer, prompts):
    model = make_model().cuda()
    answers(model, tokenizer, prompts)
    held = torch.cuda.memory_allocated()
    answers(model, tokenizer, prompts)
    assert torch.cuda.memory_allocated() == held
    assert torch.rand(3, device="cuda").unique().numel() == 3


@pytest.mark.gpu
def test_waiting_for_the_gpu_is_noticed():
    with pytest.raises(Unrecordable), recorded.never_waiting():
        torch.ones(1, device="cuda").item()
    assert torch.cuda.get_sync_debug_mode() == 0
