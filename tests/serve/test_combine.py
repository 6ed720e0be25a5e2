"""What PEFT's own merging would leave out or get wrong without a word, heads that are averaged, and rows that prove nothing."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

import burnish
from burnish.errors import CheckpointError
from burnish.model.adapt import adapt
from burnish.model.load import head_of, load_model
from burnish.recipe import Adapter, Freeze
from burnish.serve.export import write_adapter
from tiny_runs import LABELS, asked_and_answered, recipe_of, write_rows


@pytest.fixture
def make_part(model_folder, make_classifier, tokenizer, tmp_path):
    """A function that writes an adapter that does something, of a model that scores where there are labels."""

    def make(name, seed, method="lora", freeze="", labels=None):
        torch.manual_seed(seed)
        plain = make_classifier(labels=labels) if labels else load_model(model_folder(), dtype=torch.float32)
        model = adapt(plain, Adapter(method=method, rank=4, alpha=8), Freeze(layers=freeze))
        with torch.no_grad():
            for part, parameter in model.named_parameters():
                if "lora_" in part or "modules_to_save" in part:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        return write_adapter(model, tokenizer, tmp_path / name)

    return make


@pytest.fixture
def added_by(model_folder):
    """A function from the folder of an adapter to what it adds to each layer's weights, by plain PEFT."""

    def found(folder):
        model = PeftModel.from_pretrained(load_model(model_folder(), dtype=torch.float32), str(folder))
        layers = {name: part for name, part in model.named_modules() if "default" in getattr(part, "lora_A", ())}
        return {name: layer.get_delta_weight("default") for name, layer in layers.items()}

    return found


@pytest.mark.parametrize(
    ("frozen", "methods"),
    [
        (("0-1", ""), ("lora", "lora")),
        (("", "0-1"), ("lora", "lora")),
        (("0", "2"), ("lora", "lora")),
        (("", ""), ("rslora", "lora")),
        (("", ""), ("lora", "rslora")),
    ],
)
def test_every_layer_that_any_of_them_trained_is_in_the_sum(make_part, added_by, tmp_path, frozen, methods):
    parts = [make_part(f"p{n}", n, methods[n], frozen[n]) for n in range(2)]
    burnish.merge(parts, tmp_path / "out", weights=[0.7, 0.3], quiet=True)
    first, second = map(added_by, parts)
    merged = added_by(tmp_path / "out" / "adapter")
    assert merged.keys() == first.keys() | second.keys()
    for layer, change in merged.items():
        wanted = 0.7 * first.get(layer, 0 * change) + 0.3 * second.get(layer, 0 * change)
        torch.testing.assert_close(change, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["svd", "linear", "ties", "dare_ties"])
def test_the_other_methods_keep_those_layers_too(make_part, added_by, tmp_path, method):
    parts = [make_part("p0", 0, freeze="0-1"), make_part("p1", 1)]
    density = 0.5 if method in ("ties", "dare_ties") else None
    burnish.merge(parts, tmp_path / "out", method=method, density=density, quiet=True)
    assert added_by(tmp_path / "out" / "adapter").keys() == added_by(parts[1]).keys()


def test_score_heads_of_the_same_labels_become_their_mean(make_part, make_classifier, tmp_path):
    parts = [make_part("p0", 0, labels=LABELS), make_part("p1", 1, labels=LABELS)]
    found = burnish.merge(parts, tmp_path / "out", weights=[3, 1], full=True, quiet=True)
    heads = []
    for folder in [*parts, tmp_path / "out" / "adapter"]:
        model = PeftModel.from_pretrained(make_classifier(), str(folder))
        heads.append(model.get_base_model().score.modules_to_save["default"].weight.detach())
    torch.testing.assert_close(heads[2], 0.75 * heads[0] + 0.25 * heads[1])
    assert head_of(model).labels == LABELS
    assert set(found["parity"]["differences"]) == {"adapter", "merged"}


def refused(*given, **told):
    with pytest.raises(CheckpointError) as caught:
        burnish.merge(*given, quiet=True, **told)
    return str(caught.value)


def framed(folder, **changes):
    """The adapter, its head said to read texts otherwise."""
    path = folder / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_heads_that_stand_for_something_else_are_told(make_part, tmp_path):
    scores, others, writes = (make_part(*told) for told in (("a", 0), ("b", 1), ("c", 2)))
    scores, others = make_part("a", 0, labels=LABELS), make_part("b", 1, labels=("black", "white"))
    assert "black, white" in refused([scores, others], tmp_path / "out")
    assert "it writes" in refused([scores, writes], tmp_path / "out")
    in_a_chat = framed(make_part("d", 0, labels=LABELS), frame="chat")
    assert "(classify, in a chat)" in refused([scores, in_a_chat], tmp_path / "out")
    (others / "calibration.json").write_text('{"colour": 1}')
    assert "no score head" in refused([scores, others], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_heads_that_read_after_other_prompts_are_told_with_both(make_part, tmp_path):
    asked = "Say the colour.", "Name the mood."
    first, other, same = (
        framed(make_part(name, seed, labels=LABELS), frame="chat", system=system)
        for seed, (name, system) in enumerate([("a", asked[0]), ("b", asked[1]), ("c", asked[0])])
    )
    told = refused([first, other], tmp_path / "out")
    assert str(other) in told
    assert all(repr(prompt) in told for prompt in asked)
    assert "task.goal" in told
    assert not (tmp_path / "out").exists()
    found = burnish.merge([first, same], tmp_path / "out", quiet=True)
    assert set(found["parity"]["differences"]) == {"adapter"}
    calibration = json.loads((tmp_path / "out" / "adapter" / "calibration.json").read_text())
    assert (calibration["frame"], calibration["system"]) == ("chat", asked[0])


def test_heads_for_numbers_are_held_to_one_frame_too(make_part, tmp_path):
    plain, in_a_chat = (framed(make_part(name, n, labels=("number",)), kind="regress") for n, name in enumerate("ab"))
    framed(in_a_chat, frame="chat")
    assert "(regress, in a chat)" in refused([plain, in_a_chat], tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_adapter_is_told(make_part, tmp_path, text):
    parts = [make_part("p0", 0), make_part("p1", 1)]
    (parts[1] / "adapter_config.json").write_text(text)
    assert "adapter_config.json: it cannot be read" in refused(parts, tmp_path / "out")


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(model_folder, tmp_path_factory):
    """Two runs on one base that answer otherwise, each trained on some of the other's test rows."""
    folder = tmp_path_factory.mktemp("runs")
    rows = asked_and_answered(100)
    halves = {"ok": rows[:60], "no": [row | {"completion": "no"} for row in rows[40:]]}
    for answer, own in halves.items():
        file = write_rows(folder / f"{answer}.jsonl", own)
        burnish.run(recipe_of(model_folder(), file, task={"goal": f"Say {answer}."}), out=folder / answer, quiet=True)
    return folder


def test_rows_that_another_adapter_was_trained_on_are_left_out_of_the_proof(two_runs, tmp_path):
    from burnish.merging import as_text

    folders = [two_runs / "ok", two_runs / "no"]
    found = burnish.merge(folders, tmp_path / "out", force=True, quiet=True)
    trained = [{row["prompt"] for row in rows_of(folder, "train")} for folder in folders]
    tested = [{row["prompt"] for row in rows_of(folder, "test")} for folder in folders]
    for part, test, other in zip(found["parts"], tested, reversed(trained), strict=True):
        assert part["proof"]["main"]["known"] == len(test & other)
        assert part["proof"]["main"]["n"] == 12 - len(test & other)
    known = sum(part["proof"]["main"]["known"] for part in found["parts"])
    assert known > 0
    assert "that another adapter was trained on" in as_text(found)


def rows_of(folder, split):
    kept = [json.loads(line)["row"] for line in (folder / "data" / f"{split}.jsonl").read_text().splitlines()]
    return [{"prompt": row["messages"][-2]["content"] if "messages" in row else row["prompt"]} for row in kept]


def test_switching_brings_the_system_prompt_of_the_run_along(two_runs):
    model = burnish.load(two_runs / "ok", adapters={"other": two_runs / "no"}, force=True)
    said = [model.chat.system]
    for name in ("other", "own"):
        model.use(name)
        said.append(model.chat.system)
    assert said[0] == said[2] != said[1]
    assert "Say no." in said[1]


def test_a_slip_in_the_name_does_not_end_the_conversation(two_runs):
    model = burnish.load(two_runs / "ok", adapters={"other": two_runs / "no"}, force=True)
    first, second = model.answers(iter(["/use othr", "ba ko"]))
    assert "there is no adapter 'othr'" in first
    assert "other" in first
    assert second == "ok"


def test_a_run_whose_verdict_is_stop_is_merged_by_force_alone(two_runs, tmp_path):
    path = two_runs / "no" / "report.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"verdict": "stop", "reasons": ["It got worse."]}))
        parts = [two_runs / "ok", two_runs / "no"]
        assert "verdict of this run is stop" in refused(parts, tmp_path / "out")
        assert burnish.merge(parts, tmp_path / "out", force=True, proof=False, quiet=True)["rank"] == 16
    finally:
        path.write_text(before)
