"""Exports: whole or not at all, the same as the model in memory, and honest about the verdict."""

from __future__ import annotations

import json

import pytest
import torch
from torch._dynamo.utils import counters

from burnish.data.classes import Classes
from burnish.data.render import Chat
from burnish.errors import CheckpointError
from burnish.model.adapt import adapt
from burnish.model.fast import accelerate
from burnish.model.load import Head, load_model, load_tokenizer
from burnish.model.net import Net
from burnish.recipe import Adapter, Freeze
from burnish.serve.export import (
    check_parity,
    export,
    export_run,
    load_adapter,
    load_run,
    refuse_unless_fit,
    replay,
    restore_base,
    try_adapter,
    write_adapter,
    write_card,
)
from tiny_runs import LABELS

SEQUENCES = [list(range(65, 75)), list(range(80, 110, 3))]
REPORT = {
    "name": "tickets",
    "verdict": "ship",
    "created": "2026-01-01",
    "steps": [],
    "reasons": ["It is better."],
    "goal": "Sort tickets.",
    "guards": [{"n": 1, "mistake": "small data", "status": "pass", "found": "400 rows"}],
    "task": {"kind": "generate", "system": ""},
    "model": {"name": "tiny", "method": "lora", "trained_parameters": 1000, "parameters": 31616},
    "training": {"steps": 12, "learning_rate": 0.01},
    "evaluation": {
        "metric": "accuracy",
        "n": 50,
        "base": 0.25,
        "tuned": 0.75,
        "delta": 0.5,
        "ci95": [0.4, 0.6],
        "examples": [{"prompt": "bako"}],
    },
}


@pytest.fixture
def make_tuned(model_folder):
    """A function that gives the tiny model with an adapter that does something. dtype: what the base is held in."""

    def make(dtype=torch.float32):
        torch.manual_seed(1)
        model = adapt(load_model(model_folder(), dtype=dtype), Adapter(rank=4, alpha=8), Freeze())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture
def tuned(make_tuned):
    return make_tuned()


@pytest.fixture
def chat(tokenizer):
    return Chat(tokenizer)


@pytest.fixture
def exported(tuned, chat, model_folder, tmp_path):
    """The folder of a run with both artefacts and its report."""
    folder = tmp_path / "run"
    export(tuned, chat, model_folder(), folder, ["adapter", "merged"], SEQUENCES)
    made = {"adapter": "adapter", "merged": "merged"}
    report = REPORT | {"model": REPORT["model"] | {"source": model_folder()}, "artifacts": made}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def largest(first, second):
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


# Writing -------------------------------------------------------------------------------------------------------------


def test_both_artefacts_say_what_the_model_in_memory_says(tuned, chat, model_folder, tmp_path):
    expected = replay(tuned, SEQUENCES)
    parity = export(tuned, chat, model_folder(), tmp_path, ["adapter", "merged"], SEQUENCES)
    assert parity["status"] == "pass"
    assert parity["differences"].keys() == {"adapter", "merged"}
    merged = load_model(str(tmp_path / "merged"), dtype=torch.float32)
    assert largest(replay(merged, SEQUENCES), expected) < 1e-4


def test_a_base_that_was_held_in_16_bits_is_merged_as_it_was_published(make_tuned, chat, model_folder, tmp_path):
    export(make_tuned(torch.bfloat16), chat, model_folder(), tmp_path, ["adapter", "merged"], SEQUENCES)
    adapted = load_adapter(tmp_path / "adapter", model_folder())
    merged = load_model(str(tmp_path / "merged"), dtype=torch.float32)
    assert largest(replay(merged, SEQUENCES), replay(adapted, SEQUENCES)) < 1e-4


def test_a_model_too_large_for_its_device_in_float32_is_exported_from_the_host(
    make_tuned, chat, model_folder, tmp_path, monkeypatch
):
    model = make_tuned(torch.bfloat16)
    widen, moved, refusals = model.float, [], [torch.OutOfMemoryError("injected")]

    def full_once():
        if refusals:
            raise refusals.pop()
        return widen()

    monkeypatch.setattr(model, "float", full_once)
    monkeypatch.setattr(model, "cpu", lambda: moved.append("cpu"))
    parity = export(model, chat, model_folder(), tmp_path, ["adapter", "merged"], SEQUENCES)
    assert (moved, parity["status"]) == (["cpu"], "pass")


def test_replaying_compiles_no_layer(make_tuned):
    model = make_tuned()
    expected = replay(model, SEQUENCES)
    accelerate(Net(model), compile=True, backend="eager")
    counters.clear()
    assert largest(replay(model, SEQUENCES), expected) < 1e-5
    assert not counters["stats"]


@pytest.mark.parametrize("wanted", ["adapter", "merged"])
def test_only_what_is_wanted_is_written(tuned, chat, model_folder, tmp_path, wanted):
    export(tuned, chat, model_folder(), tmp_path, [wanted], SEQUENCES)
    assert [path.name for path in tmp_path.iterdir()] == [wanted]


def test_an_artefact_brings_its_tokenizer_and_end_tokens(exported, chat):
    for name in ("adapter", "merged"):
        assert load_tokenizer(str(exported / name)).chat_template == chat.tokenizer.chat_template
    ends = json.loads((exported / "merged" / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert set(ends if isinstance(ends, list) else [ends]) == set(chat.end_ids)


def test_what_was_there_is_replaced_whole(tuned, chat, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").touch()
    write_adapter(tuned, chat.tokenizer, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "old").exists()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_write_that_fails_leaves_what_was_there(tuned, chat, tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").touch()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chat.tokenizer, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_adapter(tuned, chat.tokenizer, tmp_path / "adapter")
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter", "old"]


def test_what_a_killed_export_left_behind_goes(tuned, chat, tmp_path):
    (tmp_path / ".adapter-abc").mkdir()
    write_adapter(tuned, chat.tokenizer, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# Parity --------------------------------------------------------------------------------------------------------------


def test_an_artefact_that_parts_from_the_model_is_refused(tuned, make_model, tmp_path):
    expected = replay(tuned, SEQUENCES)
    with pytest.raises(CheckpointError, match="parts from the model") as caught:
        check_parity(expected, SEQUENCES, {tmp_path / "merged": make_model}, 1e-3)
    assert caught.value.where.endswith("merged")


def test_an_artefact_that_says_no_numbers_is_refused(make_model, tmp_path):
    expected = replay(make_model(), SEQUENCES)
    broken = make_model()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError):
        check_parity(expected, SEQUENCES, {tmp_path / "merged": lambda: broken}, 1e-3)


def test_the_try_of_the_export_accepts_a_whole_adapter(tuned, tmp_path):
    try_adapter(tuned, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_the_try_of_the_export_refuses_an_adapter_that_was_not_written_as_it_is(tuned, tmp_path, monkeypatch):
    import safetensors.torch

    read = safetensors.torch.load_file
    monkeypatch.setattr(
        safetensors.torch, "load_file", lambda path: {name: value + 1 for name, value in read(path).items()}
    )
    with pytest.raises(CheckpointError, match="not written as it is"):
        try_adapter(tuned, tmp_path)


def test_a_model_without_an_adapter_has_none_to_try(make_model, tmp_path):
    try_adapter(make_model(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_score_head_says_the_same_in_plain_transformers_and_in_plain_peft(dtype, model_folder, tokenizer, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    head = Head(LABELS, tokenizer.pad_token_id)
    model = adapt(load_model(model_folder(), dtype=dtype, head=head), Adapter(rank=4, alpha=8), Freeze()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    parity = export(model, Classes(tokenizer, LABELS), model_folder(), tmp_path, ["adapter", "merged"], SEQUENCES)
    assert parity["largest_difference"] < 1e-4
    base = AutoModelForSequenceClassification.from_pretrained(
        model_folder(), **json.loads((tmp_path / "adapter" / "head.json").read_text(encoding="utf-8"))
    )
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.id2label == dict(enumerate(LABELS))
    for found, wanted in zip(replay(merged, SEQUENCES), replay(adapted, SEQUENCES), strict=True):
        assert found.shape == (3,)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


# Exporting a run again -----------------------------------------------------------------------------------------------


def test_a_run_is_exported_again_as_it_was(exported, tmp_path):
    export_run(exported, tmp_path / "out", ["merged"])
    first, second = (load_model(str(place / "merged"), dtype=torch.float32) for place in (exported, tmp_path / "out"))
    assert largest(replay(first, SEQUENCES), replay(second, SEQUENCES)) < 1e-4
    assert (tmp_path / "out" / "card.md").is_file()


def test_a_folder_that_holds_something_is_not_written_into(exported, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        export_run(exported, tmp_path / "out", ["adapter"])


def test_an_unknown_kind_of_export_names_those_that_exist(exported, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        export_run(exported, tmp_path / "out", ["onnx"])
    assert caught.value.expected == "adapter or merged"


def test_a_run_of_all_weights_has_no_adapter_to_export(exported, tmp_path):
    import shutil

    shutil.rmtree(exported / "adapter")
    with pytest.raises(CheckpointError) as caught:
        export_run(exported, tmp_path / "out", ["adapter"])
    assert caught.value.hint == "--kind merged"


def test_a_run_without_a_model_says_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load_run(tmp_path, REPORT)
    assert "burnish run" in caught.value.hint


# Verdict and card ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "force"), [("ship", False), ("improve", False), ("stop", True)])
def test_a_model_is_used_unless_its_verdict_is_stop_or_somebody_forces_it(verdict, force):
    refuse_unless_fit(REPORT | {"verdict": verdict}, force=force)


def test_a_stopped_model_is_refused_with_its_reasons():
    with pytest.raises(CheckpointError, match=r"stop: It is better\."):
        refuse_unless_fit(REPORT | {"verdict": "stop"}, force=False)


def test_the_card_holds_goal_verdict_figures_and_guards(tmp_path):
    card = write_card(REPORT, tmp_path).read_text(encoding="utf-8")
    for text in ("# tickets", "Sort tickets.", "**ship**", "+0.500", "+0.400 to +0.600", "| 1 | small data | pass |"):
        assert text in card
    assert "by force" not in card


def test_the_card_of_a_score_head_says_how_to_load_it_and_what_base_is(tmp_path):
    head = {"labels": ["a", "b"], "pad": 1, "seed": 0}
    changed = {
        "model": REPORT["model"] | {"head": head},
        "evaluation": REPORT["evaluation"] | {"base_is": "the model, prompted"},
    }
    card = write_card(REPORT | changed, tmp_path).read_text(encoding="utf-8")
    for text in ("It scores 2 labels", 'pipeline("text-classification", "merged")', "Base is the model, prompted."):
        assert text in card


def test_the_front_of_the_card_is_yaml(tmp_path):
    import yaml

    front = write_card(REPORT, tmp_path).read_text(encoding="utf-8").split("---")[1]
    assert yaml.safe_load(front)["base_model"] == "tiny"


@pytest.mark.parametrize("verdict", ["stop", "improve"])
def test_a_forced_card_warns_at_its_head(tmp_path, verdict):
    card = write_card(REPORT | {"verdict": verdict}, tmp_path, forced=True).read_text(encoding="utf-8")
    assert card.index("by force") < card.index("Verdict:")


def test_the_card_of_a_run_that_was_not_compared_says_so(tmp_path):
    report = {name: part for name, part in REPORT.items() if name != "evaluation"}
    card = write_card(report, tmp_path).read_text(encoding="utf-8")
    assert "not compared" in card
    assert "nan" not in card


def test_what_an_earlier_recipe_left_in_the_folder_is_not_this_runs_model(exported):
    with pytest.raises(CheckpointError, match="neither"):
        load_run(exported, REPORT)


def test_the_published_digits_come_back_where_there_is_no_adapter(make_classifier, model_folder):
    model = make_classifier()
    published = {name: value.clone() for name, value in model.named_parameters()}
    head = model.score.weight.clone()
    model.bfloat16().float()
    restore_base(model, model_folder())
    for name, value in model.named_parameters():
        if name != "score.weight":
            assert torch.equal(value, published[name]), name
    torch.testing.assert_close(model.score.weight, head, atol=1e-2, rtol=1e-2)
