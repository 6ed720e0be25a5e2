"""Students cut from a model: which layers and channels stay, and that what is written loads anywhere."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from burnish.core import Seq
from burnish.errors import ModelError, RecipeError
from burnish.model.load import Head, load_config
from burnish.model.prune import cut_depth, cut_width, keep_by_similarity, keep_evenly, layers_of, write_student
from tiny_runs import LABELS

FAMILIES = ("llama", "qwen3", "gemma2", "mistral", "gemma3_text", "qwen3_moe")


def rows(count=6):
    torch.manual_seed(0)
    return [[Seq(torch.randint(250, (length,)).tolist(), [1.0] * length)] for length in range(12, 12 + count)]


@pytest.fixture
def cut(model_folder, tokenizer, tmp_path):
    """A function from what to keep to (folder, what was kept) of a student."""

    def make(architecture="llama", *, keep=None, layers=None, by="even", mlp=None, head=None):
        found = write_student(
            model_folder(architecture), tmp_path, tokenizer, rows(), keep=keep, layers=layers, by=by, mlp=mlp, head=head
        )
        return tmp_path, found

    return make


def logits(model, ids, **options):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **options).logits


@pytest.mark.parametrize("count", range(1, 31))
def test_evenly_kept_layers_are_as_many_as_asked_and_span_the_model(count):
    kept = keep_evenly(30, count)
    assert len(set(kept)) == count
    assert kept == sorted(kept)
    assert count == 1 or (kept[0], kept[-1]) == (0, 29)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_student_loads_in_plain_transformers_and_its_cache_fits(cut, family):
    folder, found = cut(family, keep=[0, 2])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert (model.config.num_hidden_layers, found["layers"], found["of_layers"]) == (2, [0, 2], 3)
    prompt = torch.tensor([list(range(40, 70))])
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(
        model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=True, **options),
        model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **options),
    )


def test_kinds_of_layers_go_with_the_layers(cut, model_folder):
    before = load_config(model_folder("gemma3_text")).layer_types
    folder, _ = cut("gemma3_text", keep=[1, 2])
    assert load_config(str(folder)).layer_types == [before[1], before[2]]


def test_a_kept_layer_computes_what_it_did(make_model):
    whole, student = make_model(), cut_depth(make_model(), [0, 1])
    ids = list(range(20))
    with torch.no_grad():
        states = whole(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        ours = student.model(input_ids=torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(ours, whole.model.norm(states[2]))


def test_a_layer_that_changes_nothing_is_the_first_to_go(make_model):
    model = make_model()
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            layers_of(model)[1].get_submodule(name).weight.zero_()
    assert keep_by_similarity(model, rows(), 2) == [0, 2]


def test_channels_that_never_speak_can_go_without_a_trace(make_model):
    model = make_model()
    silent = torch.arange(0, 48, 2)
    with torch.no_grad():
        for layer in layers_of(model):
            layer.mlp.up_proj.weight[silent] = 0
    before = logits(model, list(range(20)))
    after = logits(cut_width(model, rows(), 0.5), list(range(20)))
    assert model.config.intermediate_size == 24
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_student_may_be_cut_both_ways(cut):
    folder, found = cut("llama", layers=2, by="similarity", mlp=0.5)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 24)
    assert found["parameters"] < found["of_parameters"]


def test_a_score_head_goes_with_the_student(make_classifier, tokenizer, tmp_path):
    teacher = make_classifier()
    with torch.no_grad():
        teacher.score.weight.fill_(0.5)
    teacher.save_pretrained(tmp_path / "teacher")
    head = Head(LABELS, tokenizer.pad_token_id)
    write_student(
        str(tmp_path / "teacher"),
        tmp_path / "student",
        tokenizer,
        rows(),
        keep=None,
        layers=2,
        by="even",
        mlp=None,
        head=head,
    )
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.config.num_hidden_layers == 2
    assert torch.equal(student.score.weight, teacher.score.weight)


@pytest.mark.parametrize("wrong", [{"layers": 4}, {"layers": 0}, {"keep": [0, 1, 2, 0]}])
def test_more_layers_than_there_are_is_an_error(cut, wrong):
    with pytest.raises(RecipeError, match="1 to 3 layers"):
        cut(**wrong)


def test_experts_are_not_narrowed(cut):
    with pytest.raises(ModelError, match="gate_proj"):
        cut("qwen3_moe", layers=2, mlp=0.5)
