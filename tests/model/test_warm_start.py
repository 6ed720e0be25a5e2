from __future__ import annotations

import pytest
import torch

from burnish.errors import RecipeError
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.load import Head, load_model
from burnish.model.warm_start import check_start, find_start, keeps_head, put_start, start_as_json
from burnish.recipe import Adapter, Freeze
from burnish.serve.export import write_adapter
from tiny_runs import LABELS

HEADS = {
    "none": {},
    "in place": {"labels": LABELS},
    "beside": {"labels": LABELS, "beside": True},
    "tags": {"labels": LABELS, "kind": "tag"},
}


@pytest.fixture
def make(model_folder, tokenizer):
    """A function from a kind of head and a seed to (adapted model, head); every trained weight is drawn by the seed."""

    def adapted(kind, seed, **changes):
        head = Head(**{"pad": tokenizer.pad_token_id, **HEADS[kind], **changes}) if HEADS[kind] else None
        model = adapt(load_model(model_folder(), dtype=torch.float32, head=head), Adapter(rank=4), Freeze())
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in trained_parameters(model).values():
                parameter.copy_(torch.randn(parameter.shape, generator=random))
        return model, head

    return adapted


@pytest.mark.parametrize("kind", HEADS)
def test_what_was_written_is_what_a_start_puts_back(kind, make, tokenizer, model_folder, tmp_path):
    first, _ = make(kind, 1)
    write_adapter(first, tokenizer, tmp_path / "adapter")
    second, head = make(kind, 2)
    start = find_start(Adapter(rank=4, start=str(tmp_path)))
    check_start(start, second, model_folder(), second.config)
    put_start(start, second, head)
    mine, wanted = trained_parameters(second), trained_parameters(first)
    assert mine.keys() == wanted.keys()
    assert [name for name in mine if not torch.equal(mine[name], wanted[name])] == []
    assert start_as_json(start, head)["head"] == (None if kind == "none" else "goes on")


@pytest.mark.parametrize("kind", ["in place", "beside"])
@pytest.mark.parametrize("labels", [("green", "red"), ("red", "green", "yellow")])
def test_a_head_of_other_labels_or_of_another_order_stays_as_it_began(kind, labels, make, tokenizer, tmp_path):
    first, _ = make(kind, 1)
    write_adapter(first, tokenizer, tmp_path)
    second, head = make(kind, 2, labels=labels)
    start = find_start(Adapter(rank=4, start=str(tmp_path)))
    before = {name: parameter.clone() for name, parameter in trained_parameters(second).items()}
    put_start(start, second, head)
    kept = {name for name, parameter in trained_parameters(second).items() if torch.equal(parameter, before[name])}
    assert not keeps_head(start, head)
    assert kept == {name for name in before if "score" in name}


METHODS = {
    "rslora": {"rank": 4},
    "dora": {"rank": 4},
    "ia3": {},
    "oft": {"block": 4},
    "vera": {"rank": 8},
    "layernorm": {},
    "prompt": {"tokens": 3},
    "prefix": {"tokens": 3},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_go_on_from_its_own_adapter_alone(method, make_model, model_folder, tokenizer, tmp_path):
    def drawn(seed, adapter):
        model = adapt(make_model(), adapter, Freeze())
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in trained_parameters(model).values():
                parameter.copy_(torch.randn(parameter.shape, generator=random))
        return model

    adapter = Adapter(method=method, start=str(tmp_path), **METHODS[method])
    first, second, other = drawn(1, adapter), drawn(2, adapter), drawn(3, Adapter(rank=4))
    write_adapter(first, tokenizer, tmp_path)
    start = find_start(adapter)
    check_start(start, second, model_folder(), second.config)
    put_start(start, second, None)
    mine, wanted = trained_parameters(second), trained_parameters(first)
    assert [name for name in mine if not torch.equal(mine[name], wanted[name])] == []
    with pytest.raises(RecipeError):
        check_start(start, other, model_folder(), other.config)


@pytest.mark.parametrize("method", ["pissa", "loftq"])
def test_a_method_that_begins_from_the_bases_weights_begins_nowhere_else(method, tmp_path):
    with pytest.raises(RecipeError, match="the base's own weights"):
        find_start(Adapter(method=method, start=str(tmp_path)))


def test_a_recipe_without_a_start_has_none():
    assert find_start(Adapter()) is None
    assert start_as_json(None, None) is None
