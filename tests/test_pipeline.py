"""Whole runs of the nine steps on a tiny random model: what they leave behind, repeat, refuse and survive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import burnish
from burnish.errors import DataGuardError, Interrupted, RecipeError, SmokeError, TrainingError
from burnish.folder import NAMES
from burnish.recipe import load_recipe
from tiny_runs import asked_and_answered, questions, recipe_of, write_rows

REUSABLE = ("clean", "smoke", "train", "evaluate", "deploy")


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    """The plain values of a recipe for 60 rows."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    return recipe_of(model_folder(), write_rows(data, asked_and_answered()))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """The folder of a finished run, which no test may change."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    burnish.run(recipe, out=folder, quiet=True)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to go on from."""
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.fixture
def go(model_folder, tmp_path):
    """A function that runs other rows or another recipe in a fresh folder: (folder, report)."""

    def run(rows=None, **changes):
        data = write_rows(tmp_path / "rows.jsonl", rows or asked_and_answered(40))
        folder = tmp_path / "run"
        return folder, burnish.run(recipe_of(model_folder(), data, **changes), out=folder, quiet=True)

    return run


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def status_of(report):
    return {step["name"]: step["status"] for step in report["steps"]}


def tensors_of(path):
    from safetensors.torch import load_file

    return load_file(path)


def same_weights(folder, other):
    """Whether two runs left the same bytes of weights behind."""
    files = ("adapter/adapter_model.safetensors", "merged/model.safetensors")
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in files)


# What a run leaves behind --------------------------------------------------------------------------------------------


def test_all_nine_steps_are_done_in_their_order(finished):
    steps = report_of(finished)["steps"]
    assert [(step["n"], step["name"], step["status"]) for step in steps] == [
        (n, name, "done") for n, name in enumerate(NAMES, 1)
    ]


def test_a_model_that_learnt_its_task_is_to_be_shipped(finished):
    report = report_of(finished)
    assert report["verdict"] == "ship"
    assert report["evaluation"]["ci95"][0] > 0


def test_the_folder_holds_every_file_of_the_contract(finished):
    wanted = {"recipe.yaml", "report.json", "report.html", "metrics.jsonl", "ledger.jsonl", "card.md"}
    assert wanted <= {path.name for path in finished.iterdir() if path.is_file()}
    assert {"checkpoints", "adapter", "merged"} <= {path.name for path in finished.iterdir() if path.is_dir()}


def test_no_temporary_file_is_left(finished):
    assert [path for path in finished.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"] == []


def test_the_report_has_the_documented_keys(finished):
    report = report_of(finished)
    assert report["schema"] == 1
    documented = {
        "data": {"read", "dropped", "train", "validation", "test", "trained_tokens"},
        "training": {"steps", "best_step", "seconds", "tokens_per_second", "peak_memory_bytes", "learning_rate"},
        "evaluation": {"metric", "n", "base", "tuned", "delta", "ci95", "p_value"},
    }
    assert {"verdict", "reasons", "steps", "guards", "artifacts", "versions", *documented} <= report.keys()
    for part, keys in documented.items():
        assert keys <= report[part].keys()
    assert all({"n", "name", "status", "seconds", "summary"} <= step.keys() for step in report["steps"])
    assert all({"n", "mistake", "status", "evidence", "fix"} <= guard.keys() for guard in report["guards"])


def test_every_artifact_of_the_report_is_there(finished):
    assert all((finished / path).exists() for path in report_of(finished)["artifacts"].values())


def test_ten_guards_stand_in_order_and_two_did_not_run(finished):
    guards = report_of(finished)["guards"]
    assert [guard["n"] for guard in guards] == list(range(1, 11))
    assert [guard["n"] for guard in guards if guard["status"] == "not_run"] == [4, 9]
    assert all(guard["evidence"] for guard in guards if guard["status"] != "not_run")


def test_every_row_that_was_read_is_accounted_for(finished):
    data = report_of(finished)["data"]
    gone = sum({**data["dropped"], **data["left_out"]}.values())
    assert data["read"] == gone + data["train"] + data["validation"] + data["test"]


def test_the_kept_recipe_is_the_resolved_one_and_can_be_run(finished, recipe):
    kept = load_recipe(finished / "recipe.yaml")
    assert kept.train.learning_rate == recipe["train"]["learning_rate"]
    assert kept.train.weight_decay == 0.01


def test_metrics_have_a_line_for_each_step(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, report_of(finished)["training"]["steps"] + 1))


def test_plain_libraries_read_equal_logits_from_adapter_and_merged(finished, recipe):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = AutoModelForCausalLM.from_pretrained(finished / "merged").eval()
    base = AutoModelForCausalLM.from_pretrained(recipe["model"]).eval()
    ids = AutoTokenizer.from_pretrained(finished / "merged")("bako ritu", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, finished / "adapter").eval()(ids).logits
        assert torch.allclose(merged(ids).logits, adapted, atol=1e-4)
    assert not torch.allclose(adapted, before, atol=0.1)


def test_the_card_states_the_figures_of_the_report(finished):
    report = report_of(finished)
    card = (finished / "card.md").read_text(encoding="utf-8")
    assert "Verdict: **ship**" in card
    assert f"gain {report['evaluation']['delta']:+.3f}" in card
    assert "by force" not in card


# Running again -------------------------------------------------------------------------------------------------------


def test_the_same_recipe_again_repeats_nothing_and_finds_the_same(copied, recipe):
    before = report_of(copied)
    after = burnish.run(recipe, out=copied, quiet=True)
    assert {name for name, status in status_of(after).items() if status == "reused"} == set(REUSABLE)
    for part in ("verdict", "reasons", "data", "training", "evaluation", "artifacts", "task", "model"):
        assert after[part] == before[part]


@pytest.mark.parametrize(
    ("changes", "repeated"),
    [
        ({"name": "another"}, []),
        ({"guards.min_rows": 10}, []),
        ({"train.save_every": 3}, []),
        ({"deploy.export": ["merged"]}, ["deploy"]),
        ({"train.weight_decay": 0.1}, ["smoke", "train", "evaluate", "deploy"]),
        ({"task.goal": "Say no."}, ["smoke", "train", "evaluate", "deploy"]),
        ({"data.test": 10}, list(REUSABLE)),
    ],
    ids=lambda value: "+".join(value),
)
def test_a_changed_recipe_repeats_only_what_it_must(copied, recipe, changes, repeated):
    report = burnish.run(recipe, overrides=changes, out=copied, quiet=True)
    assert [name for name in REUSABLE if status_of(report)[name] == "done"] == repeated


def test_changed_rows_are_read_again(go, tmp_path):
    _, before = go(asked_and_answered(40))
    _, after = go(asked_and_answered(44))
    assert (before["data"]["read"], after["data"]["read"]) == (40, 44)
    assert status_of(after)["clean"] == "done"


def test_an_artifact_that_was_deleted_is_written_again(copied, recipe):
    shutil.rmtree(copied / "merged")
    burnish.run(recipe, out=copied, quiet=True)
    assert (copied / "merged" / "model.safetensors").is_file()


def test_an_artifact_of_an_earlier_recipe_does_not_stay(copied, recipe):
    burnish.run(recipe, overrides={"deploy.export": ["adapter"]}, out=copied, quiet=True)
    assert (copied / "adapter").is_dir()
    assert not (copied / "merged").exists()


def test_the_ledger_of_a_second_run_repeats_no_entry(go, tmp_path):
    long = [{"prompt": "go on", "completion": "ok " * 50}]
    folder, _ = go([*asked_and_answered(40), *long])
    before = (folder / "ledger.jsonl").read_text(encoding="utf-8")
    go([*asked_and_answered(40), *long])
    assert "rows.jsonl" in before
    assert (folder / "ledger.jsonl").read_text(encoding="utf-8") == before


def test_rows_that_a_kill_left_half_written_are_not_taken_up(copied, recipe, monkeypatch):
    from burnish.folder import Run

    def killed(self, split, rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            burnish.run(recipe, overrides={"data.test": 10}, out=copied, quiet=True)
    assert status_of(burnish.run(recipe, out=copied, quiet=True))["clean"] == "done"


def damage_by_truncation(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage_by_one_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_one_byte])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json", "checksums.json"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(copied, recipe, finished, capsys, damage, file):
    newest = max((copied / "checkpoints").iterdir())
    damage(newest / file)
    (copied / "steps" / "train.json").unlink()
    report = burnish.run(recipe, out=copied)
    assert f"{newest.name} is damaged" in (said := capsys.readouterr().err)
    assert "going on from" in said
    assert any("damaged" in note for note in report["training"]["notes"])
    assert same_weights(copied, finished)


class Terminator:
    """A tracker that tells the process to end at one step."""

    def log(self, values, step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


def test_a_run_that_was_told_to_stop_goes_on_and_ends_bit_for_bit_the_same(recipe, finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("burnish.pipeline.open_trackers", lambda *_: [Terminator()])
        with pytest.raises(Interrupted, match="SIGTERM after step 9"):
            burnish.run(recipe, out=folder, quiet=True)
    assert status_of(report_of(folder))["train"] == "not_run"
    assert report_of(folder)["verdict"] == "stop"
    report = burnish.run(recipe, out=folder, quiet=True)
    assert "went on from step 9" in report["training"]["notes"]
    assert same_weights(folder, finished)


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_three(recipe, finished, tmp_path):
    path, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "burnish", "run", str(path), "--out", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (folder / "checkpoints" / "step-000004").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (3, "")
    assert "error: stopped by SIGTERM" in err
    assert "Traceback" not in err
    burnish.run(recipe, out=folder, quiet=True)
    assert same_weights(folder, finished)


@pytest.mark.slow
def test_a_run_killed_in_a_save_or_elsewhere_ends_bit_for_bit_the_same():
    bench = Path(__file__).parent.parent / "bench" / "kill_resume.py"
    done = subprocess.run([sys.executable, str(bench), "--kills", "2"], capture_output=True, text=True, check=False)
    assert "2 of 2 bit-equal" in done.stdout, done.stdout + done.stderr


# Other recipes -------------------------------------------------------------------------------------------------------


def test_a_sample_takes_the_whole_way_on_fewer_rows(go):
    folder, report = go(asked_and_answered(60), data={"sample": 24, "validation": 4, "test": 6})
    data = report["data"]
    assert data["train"] + data["validation"] + data["test"] == 24
    assert (data["dropped"], data["left_out"]) == ({}, {"data.sample": 36})
    assert report["steps"][1]["summary"].startswith("60 rows read, 36 left out by data.sample, 0 dropped, 0 mended; ")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "60 rows were read, 36 left out by data.sample, 0 dropped and" in page
    assert "left out 36" in page
    assert '<th scope="row">data.sample <span class="quiet">left out</span></th>' in page
    assert set(status_of(report).values()) == {"done"}


def test_full_fine_tuning_writes_whole_weights_and_no_adapter(go):
    folder, report = go(adapter={"method": "full"})
    assert report["artifacts"] == {"merged": "merged", "card": "card.md"}
    assert not (folder / "adapter").exists()
    assert report["model"]["trained_parameters"] == report["model"]["parameters"]
    assert report["evaluation"]["tuned"] > report["evaluation"]["base"]


def test_a_base_in_four_bits_is_measured_trained_on_and_exported_in_full(go):
    pytest.importorskip("bitsandbytes")
    folder, report = go(train={"precision": "nf4"})
    rounding = report["model"]["rounding"]
    assert set(rounding) == {"bf16", "nf4"}
    assert rounding["bf16"] != rounding["nf4"]
    assert "nf4 makes the loss" in report["steps"][3]["summary"]
    assert report["evaluation"]["tuned"] > report["evaluation"]["base"]
    assert report["deploy"]["parity"]["status"] == "pass"
    assert (folder / "merged" / "model.safetensors").exists()


def test_a_base_that_does_not_fit_in_full_is_put_into_four_bits_unmeasured(go, monkeypatch):
    pytest.importorskip("bitsandbytes")

    def full(*_):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr("burnish.parts._nats", full)
    _, report = go(train={"precision": "nf4", "max_steps": 2})
    assert "rounding" not in report["model"]
    assert report["training"]["precision"] == "nf4"


def test_memory_that_ends_outside_of_a_training_step_is_told_without_a_traceback(copied, recipe, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("injected")

    shutil.rmtree(copied / "adapter")
    monkeypatch.setattr("burnish.pipeline.export", full)
    with pytest.raises(TrainingError, match="memory of the accelerator") as caught:
        burnish.run(recipe, out=copied, quiet=True)
    assert caught.value.where == "step deploy"
    assert report_of(copied)["verdict"] == "stop"


def test_what_the_rounding_does_is_measured_once(go, monkeypatch):
    pytest.importorskip("bitsandbytes")
    _, first = go(train={"precision": "nf4"})
    monkeypatch.setattr("burnish.parts._nats", lambda *args: pytest.fail("it was measured again"))
    _, again = go(train={"precision": "nf4"})
    assert again["steps"][3]["status"] == "reused"
    assert again["model"]["rounding"] == first["model"]["rounding"]


def test_eight_bits_on_a_device_without_them_are_refused_with_what_to_type(go):
    with pytest.raises(RecipeError, match=r"train\.precision=bf16"):
        go(train={"precision": "fp8"})


def test_all_weights_learn_with_products_of_8_bits_and_are_tested_as_they_are_deployed(go, monkeypatch):
    monkeypatch.setattr("burnish.train.memory.multiplies", lambda device: True)  # as a card would
    folder, report = go(adapter={"method": "full"}, train={"precision": "fp8"})
    assert report["training"]["precision"] == "fp8"
    assert report["evaluation"]["tuned"] > report["evaluation"]["base"]
    before, after = report["model"]["rounding"].values()
    assert before != after
    tensors = tensors_of(folder / "merged" / "model.safetensors")
    assert not any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors.values())


def test_frozen_layers_keep_their_weights(go, model_folder):
    folder, report = go(adapter={"method": "full"}, freeze={"layers": "0-1"})
    before, after = (tensors_of(Path(place) / "model.safetensors") for place in (model_folder(), folder / "merged"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(f"layers.{number}." in name for name in moved for number in (0, 1))
    assert not any(group["group"].startswith(("layers 0", "layers 1")) for group in report["model"]["trained"])


def test_an_adapter_leaves_frozen_layers_alone(go):
    folder, _ = go(freeze={"layers": "0-1"})
    names = tensors_of(folder / "adapter" / "adapter_model.safetensors")
    assert names
    assert all("layers.2." in name for name in names)


def test_plain_text_is_judged_by_its_perplexity(go):
    rows = [{"text": f"{question} yes yes yes yes yes yes"} for question in questions(40)]
    _, report = go(rows, train={"epochs": 3})
    evaluation = report["evaluation"]
    assert evaluation["metric"] == "inverse_perplexity"
    assert 0 < evaluation["base"] < evaluation["tuned"] < 1
    assert evaluation["perplexity"]["tuned"] < evaluation["perplexity"]["base"]


def test_a_classification_counts_its_labels_and_is_scored_by_accuracy(go):
    rows = [{"text": question, "label": "aa"} for question in questions(24, words=3)]
    rows += [{"text": question, "label": "bb"} for question in questions(44)[24:]]
    _, report = go(rows, task={"kind": "classify"})
    assert report["evaluation"]["metric"] == "accuracy"
    assert {"macro_f1", "unparsed"} <= {figure["name"] for figure in report["evaluation"]["figures"]}
    assert Counter(report["data"]["labels"]).total() == report["data"]["train"]
    assert "aa" in report["task"]["system"]


def test_a_recipe_without_a_test_split_ends_with_stop(go):
    folder, report = go(data={"test": 0})
    assert report["verdict"] == "stop"
    assert "evaluation" not in report
    assert "locked" not in report["steps"][5]["summary"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "34 train and 6 choose the checkpoint." in page
    assert next(guard for guard in report["guards"] if guard["n"] == 6)["status"] == "fail"


# What stops a run ----------------------------------------------------------------------------------------------------


def test_a_rate_at_which_nothing_is_learnt_stops_the_run_before_training(go, tmp_path):
    with pytest.raises(SmokeError, match="by heart"):
        go(train={"learning_rate": 1e-9})
    report = report_of(tmp_path / "run")
    assert report["verdict"] == "stop"
    assert report["reasons"][0].startswith("Step 4, smoke:")
    assert (status_of(report)["smoke"], status_of(report)["train"]) == ("failed", "not_run")
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_that_are_no_numbers_stop_the_run_before_training(go, make_model, tokenizer, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(SmokeError, match="nan"):
        go(model=str(tmp_path / "broken"))
    assert report_of(tmp_path / "run")["verdict"] == "stop"


def leaking(tmp_path):
    """Rows of which four also stand in the test file."""
    rows = asked_and_answered(60)
    test = write_rows(tmp_path / "test.jsonl", [*rows[:4], *asked_and_answered(80)[60:]])
    return rows, {"validation": 6, "test": test}


def test_a_leak_stops_the_run_and_stands_in_the_report(go, tmp_path):
    rows, data = leaking(tmp_path)
    with pytest.raises(DataGuardError, match="4 held-out rows also stand in train"):
        go(rows, data=data)
    report = report_of(tmp_path / "run")
    leakage = next(guard for guard in report["guards"] if guard["n"] == 7)
    assert (report["verdict"], leakage["status"]) == ("stop", "fail")
    assert leakage["evidence"]["leaked_held_out_rows"] == 4


def test_leaked_rows_that_are_dropped_from_train_let_the_run_go_on(go, tmp_path):
    rows, data = leaking(tmp_path)
    _, report = go(rows, data=data, guards={"leakage": {"action": "drop"}})
    assert report["data"]["dropped"]["leak (exact)"] == 4
    assert report["data"]["test"] == 24
    assert next(guard for guard in report["guards"] if guard["n"] == 7)["status"] == "pass"


def test_answers_and_plain_text_do_not_share_an_exam(go):
    rows = asked_and_answered(40) + [{"text": question} for question in questions(80)[40:]]
    with pytest.raises(RecipeError, match="plain text"):
        go(rows)


def test_a_plan_loads_no_weights_and_leaves_nothing(recipe, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("burnish.parts.load_model", None)
    plan = burnish.plan(recipe)
    assert plan.steps == report_of(finished)["training"]["steps"]
    assert list(tmp_path.iterdir()) == []
