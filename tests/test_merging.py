"""Adapters that are merged, stacked and switched: against the weights that they should add, and against plain PEFT."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import burnish
from burnish.errors import CheckpointError
from burnish.serve.combine import METHODS, find_part, load_parts, merge_parts, switch
from tiny_runs import asked_and_answered, recipe_of, write_rows

WEIGHTS = (0.7, 0.4)
IDS = torch.arange(3, 40)[None]


@pytest.fixture
def adapter(model_folder, tokenizer, tmp_path):
    """A function from a name and what LoraConfig takes to the folder of an adapter that adds something."""

    def make(name, **told):
        base = AutoModelForCausalLM.from_pretrained(model_folder())
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **told})
        model = get_peft_model(base, config)
        draw = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
        with torch.no_grad():
            for part, parameter in model.named_parameters():
                if "lora_" in part:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
        folder = tmp_path / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def weights_of(model):
    """The base's weights with whatever adapters are on added in."""
    return dict(model.merge_and_unload().named_parameters())


def added_by(folder, model_folder):
    """Name of a weight -> what the adapter of a folder adds to it, by plain PEFT."""
    base = AutoModelForCausalLM.from_pretrained(model_folder())
    plain = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    return {name: weight - plain[name] for name, weight in weights_of(PeftModel.from_pretrained(base, folder)).items()}


@pytest.mark.parametrize("told", [{}, {"use_rslora": True}, {"r": 6}])
def test_the_exact_merge_is_the_weighted_sum_of_what_the_adapters_add(adapter, model_folder, tmp_path, told):
    folders = [adapter("first"), adapter("second", **told)]
    found = burnish.merge(folders, tmp_path / "out", weights=WEIGHTS, quiet=True)
    sums = [added_by(folder, model_folder) for folder in folders]
    merged = added_by(tmp_path / "out" / "adapter", model_folder)
    assert found["rank"] == 4 + told.get("r", 4)
    assert found["parity"]["status"] == "pass"
    for name, change in merged.items():
        torch.testing.assert_close(change, WEIGHTS[0] * sums[0][name] + WEIGHTS[1] * sums[1][name], atol=1e-5, rtol=0)
    assert max(float(change.abs().max()) for change in merged.values()) > 1e-2


@pytest.mark.parametrize("method", [name for name in METHODS if name != "cat"])
def test_other_merges_are_those_of_plain_peft(adapter, model_folder, tmp_path, method):
    folders = [adapter("first"), adapter("second")]
    density = 0.5 if method.startswith(("ties", "dare", "magnitude")) else None
    burnish.merge(folders, tmp_path / "out", weights=WEIGHTS, method=method, density=density, seed=3, quiet=True)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder()), folders[0], adapter_name="a"
    )
    model.load_adapter(folders[1], adapter_name="b")
    torch.manual_seed(3)
    told = {} if density is None else {"density": density}
    model.add_weighted_adapter(["a", "b"], list(WEIGHTS), adapter_name="both", combination_type=method, **told)
    model.set_adapter("both")
    plain = AutoModelForCausalLM.from_pretrained(model_folder())
    ours = PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter")
    with torch.inference_mode():
        torch.testing.assert_close(ours(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_stacked_adapters_add_what_both_add_and_none_is_the_base(adapter, model_folder):
    folders = [adapter("first"), adapter("second", r=2)]
    model = load_parts([find_part(folder) for folder in folders], ["a", "b"])
    base = AutoModelForCausalLM.from_pretrained(model_folder())
    with torch.inference_mode():
        alone = model(IDS).logits
        switch(model, [])
        torch.testing.assert_close(model(IDS).logits, base(IDS).logits)
        switch(model, ["a", "b"])
        stacked = model(IDS).logits
        assert float((stacked - alone).abs().max()) > 1e-3
        merge_parts(model, ["a", "b"], [1.0, 1.0], "cat", None, 0)
        torch.testing.assert_close(model(IDS).logits, stacked, atol=1e-4, rtol=1e-4)


def test_the_whole_model_is_written_where_it_is_asked_for(adapter, tmp_path):
    found = burnish.merge([adapter("first"), adapter("second")], tmp_path / "out", full=True, quiet=True)
    assert set(found["parity"]["differences"]) == {"adapter", "merged"}
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["parts"][0]["weight"] == 0.5
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    base = AutoModelForCausalLM.from_pretrained(found["base"])
    ours = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    with torch.inference_mode():
        torch.testing.assert_close(whole(IDS).logits, ours(IDS).logits, atol=1e-3, rtol=1e-3)


@pytest.fixture
def two_runs(model_folder, tmp_path):
    """The folders of two small runs on one base that learn to say something else each."""
    folders = []
    for answer in ("ok", "no"):
        rows = write_rows(tmp_path / f"{answer}.jsonl", asked_and_answered(answer=answer))
        folders.append(tmp_path / answer)
        burnish.run(recipe_of(model_folder(), rows), out=folders[-1], quiet=True)
    return folders


def test_a_merge_is_held_against_each_run_on_its_own_test_rows(two_runs, tmp_path):
    before = (two_runs[0] / "report.json").read_text()
    found = burnish.merge(two_runs, tmp_path / "out", weights=[1.0, 0.0], quiet=True)
    first, second = (part["proof"]["main"] for part in found["parts"])
    assert (first["n"], second["n"]) == (12, 12)
    assert first["own"] == first["merged"] > 0.9
    assert first["said"].startswith("as good")
    assert second["own"] > 0.9 > second["merged"]
    assert second["said"] == "worse"
    assert first["base"] < 0.5
    assert (two_runs[0] / "report.json").read_text() == before


def test_a_run_of_several_tasks_is_proven_task_by_task(two_runs, model_folder, tmp_path):
    held_out = {"validation": 6, "test": 12}
    tasks = {
        answer: {
            "data": {"train": str(tmp_path / f"{answer}.jsonl"), **held_out},
            "task": {"kind": "generate", "goal": f"Say {answer}, please."},
        }
        for answer in ("ok", "yes")
    }
    write_rows(tmp_path / "yes.jsonl", [{"prompt": f"{n} {n}", "completion": "yes"} for n in range(60)])
    values = recipe_of(model_folder(), "", tasks=tasks)
    both = {key: value for key, value in values.items() if key not in ("data", "task")}
    burnish.run(both, out=tmp_path / "both", quiet=True)
    found = burnish.merge([two_runs[1], tmp_path / "both"], tmp_path / "out", quiet=True, force=True)
    alone, several = (part["proof"] for part in found["parts"])
    assert (set(alone), set(several)) == ({"main"}, {"ok", "yes"})
    assert {one["n"] for one in [*alone.values(), *several.values()]} == {12}
    assert all(one["own"] > 0.9 for one in several.values())


def test_a_conversation_switches_and_stacks_adapters(two_runs):
    model = burnish.load(two_runs[0], adapters={"other": two_runs[1]}, force=True)
    lines = ["ba ko", "/use other", "/new", "ba ko", "/use own", "/new", "ba ko"]
    assert list(model.answers(iter(lines))) == ["ok", "no", "ok"]
    model.use("own", "other")
    model.use("base")
    with pytest.raises(CheckpointError, match="there is no adapter 'third'") as caught:
        model.use("third")
    assert "base" in caught.value.expected
    with pytest.raises(CheckpointError, match="found the name 'own'"):
        model.add("own", two_runs[1])


def refused(*given, **told):
    with pytest.raises(CheckpointError) as caught:
        burnish.merge(*given, quiet=True, **told)
    return str(caught.value)


def test_what_cannot_be_merged_is_refused_with_what_could(adapter, model_folder, tmp_path):
    one, two, wide = adapter("one"), adapter("two"), adapter("wide", r=6)
    out = tmp_path / "out"
    assert "two or more" in refused([one], out)
    assert "3 weights for 2 adapters" in refused([one, two], out, weights=[1, 2, 3])
    assert "cat, svd" in refused([one, two], out, method="mean")
    assert "--method cat" in refused([one, wide], out, method="ties", density=0.5)
    assert "--density 0.5" in refused([one, two], out, method="dare_linear")
    assert "above 0" in refused([one, two], out, method="ties", density=1.5)
    assert "nothing" in refused([one, two], out, density=0.5)
    assert "there is no adapter" in refused([one, tmp_path / "nowhere"], out)
    assert "method dora" in refused([one, adapter("dora", use_dora=True)], out)
    said = json.loads((two / "adapter_config.json").read_text())
    (two / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": model_folder("qwen3")}))
    assert "the base of the first" in refused([one, two], out)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "not empty" in refused([one, wide], out)
    (one / "head.json").write_text("{}")
    assert "score head" in refused([one, wide], tmp_path / "new")
