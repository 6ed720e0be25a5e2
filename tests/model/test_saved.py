from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from burnish.errors import CheckpointError, ModelError
from burnish.model.adapt import adapt
from burnish.model.load import Head, load_config, load_model
from burnish.model.saved import head_in, read_json
from burnish.model.teacher import Place, find_teacher, head_of_teacher
from burnish.recipe import Adapter, Freeze
from burnish.serve.export import write_adapter, write_merged
from tiny_runs import LABELS


def written(model_folder, tokenizer, folder, *, merged, **of_head):
    """(folder, head) of a model with a score head, written as an adapter or whole."""
    head = Head(LABELS, tokenizer.pad_token_id, **of_head)
    model = adapt(load_model(model_folder(), dtype=torch.float32, head=head), Adapter(rank=4), Freeze())
    if merged:
        return write_merged(model, tokenizer, folder, end_ids=[1], dtype=torch.float32), head
    return write_adapter(model, tokenizer, folder), head


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    "of_head",
    [
        {"temperature": 2.0, "frame": "chat", "system": "Say the colour."},
        {"kind": "multilabel", "thresholds": (0.1, 0.2, 0.3)},
        {"kind": "tag"},
        {"beside": True},
    ],
)
def test_all_that_a_head_stands_for_is_read_again(model_folder, tokenizer, tmp_path, merged, of_head):
    folder, head = written(model_folder, tokenizer, tmp_path / "out", merged=merged, **of_head)
    config = load_config(str(folder)).to_dict() if merged else {}
    assert head_in(folder, config) == head


@pytest.mark.parametrize("merged", [False, True])
def test_a_teacher_that_writes_beside_its_scores_is_one_that_writes(model_folder, tokenizer, tmp_path, merged):
    folder, _ = written(model_folder, tokenizer, tmp_path / "out", merged=merged, beside=True)
    assert head_of_teacher(Place(str(folder)) if merged else Place(model_folder(), str(folder))) is None


@pytest.mark.parametrize("merged", [False, True])
def test_a_teacher_of_tags_has_a_head_of_tags(model_folder, tokenizer, tmp_path, merged):
    folder, head = written(model_folder, tokenizer, tmp_path / "out", merged=merged, kind="tag")
    assert head_of_teacher(Place(str(folder)) if merged else Place(model_folder(), str(folder))) == head


def test_a_model_of_somebody_elses_has_the_labels_and_the_kind_of_its_class(model_folder, tokenizer, tmp_path):
    for kind in ("classify", "tag"):
        folder, head = written(model_folder, tokenizer, tmp_path / kind, merged=True, kind=kind)
        config = read_json(folder / "config.json")
        del config["burnish"]
        assert head_in(folder, config) == replace(head, kind=kind)


def test_an_adapter_from_before_calibration_has_the_labels(model_folder, tokenizer, tmp_path):
    folder, head = written(model_folder, tokenizer, tmp_path / "out", merged=False)
    (folder / "calibration.json").unlink()
    assert head_in(folder, {}) == head


def test_what_only_writes_has_no_head(model_folder):
    assert head_in(Path(model_folder()), load_config(model_folder()).to_dict()) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"colour": 1}', '{"id2label": ["red"]}', '{"id2label": {"a": "red"}}']
)
@pytest.mark.parametrize("name", ["head.json", "calibration.json"])
def test_a_damaged_file_is_told_by_its_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    for refusal in (ModelError, CheckpointError):
        with pytest.raises(refusal, match=name):
            head_in(tmp_path, {}, refusal)


def test_a_damaged_adapter_is_no_teacher(model_folder, tokenizer, tmp_path):
    folder, _ = written(model_folder, tokenizer, tmp_path / "out", merged=False)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        find_teacher(str(folder))
