"""A training that is stopped, killed, damaged or told to stop early, on a tiny model with an adapter and dropout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from burnish.data.feed import Feed
from burnish.data.render import Chat
from burnish.data.rows import Conversation, Turn
from burnish.errors import CheckpointError, Interrupted, TrainingError
from burnish.evaluate.runner import Exam, Sitting, make_items
from burnish.model import attention, recorded
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.net import Net
from burnish.model.sample import Sampler
from burnish.objectives import make_objective
from burnish.progress import Progress
from burnish.recipe import Adapter, Freeze, Train
from burnish.scoring import scorer_for
from burnish.train.checkpoint import Checkpoint, Store
from burnish.train.hooks import StopSignal
from burnish.train.ladder import Ladder
from burnish.train.memory import Settings
from burnish.train.optim import Optim
from burnish.train.session import Session, load_trained

STEPS = 9  # three epochs of three steps
SETTINGS = Settings(
    batch_size=4, micro_tokens=128, epochs=3, steps=STEPS, learning_rate=0.01, precision="fp32", device="cpu"
)
NO_EXAM = Exam([], None, 4, 64)
ROWS = [
    Conversation(
        file="rows.jsonl",
        line=line,
        turns=(Turn("user", f"What is {line}?"), Turn("assistant", f"It is {line * line}.")),
    )
    for line in range(1, 13)
]


class Script:
    """An exam whose figure at each look is written beforehand; it may also do something while it is sat."""

    metric = "score"

    def __init__(self, scores, losses=None, during=lambda look: None):
        self.items = [SimpleNamespace(question="?")]
        self.scores, self.losses, self.during, self.looks = list(scores), losses, during, 0

    def sit(self, net, sampler, progress):
        self.during(self.looks)
        loss = self.losses[self.looks] if self.losses else 1.0
        self.looks += 1
        return Sitting(["an answer"], [], np.array([loss]), np.array([1.0]))

    def by_task(self, sitting):
        return {}

    def figures(self, sitting):
        return {"score": self.scores[self.looks - 1]}


class Meddler:
    """A tracker that does something at one step."""

    def __init__(self, step, act):
        self.step, self.act, self.closed = step, act, False

    def log(self, values, step):
        if step == self.step and "loss" in values:
            self.act()

    def close(self):
        self.closed = True


def terminate(signal_number=signal.SIGTERM):
    os.kill(os.getpid(), signal_number)


def crash():
    raise ZeroDivisionError


@pytest.fixture
def train(make_model, tokenizer, tmp_path):
    """A function that trains from scratch, or from what a folder holds, and gives the report and the session."""

    def run(name="run", *, exam=NO_EXAM, trackers=(), objective=None, ladder=False, sizes=SETTINGS, **settings):
        folder = tmp_path / name
        base = make_model()
        torch.manual_seed(0)
        model = adapt(base, Adapter(rank=4, alpha=8, dropout=0.1), Freeze())
        chat = Chat(tokenizer)
        groups = [chat.render(row) for row in ROWS]
        train = Train(**{"save_every": 4, "validations": 3} | settings)
        net, optim = Net(model), Optim(trained_parameters(model), learning_rate=0.01, total=STEPS)
        feed = Feed(groups, task="main", batch_size=4, epochs=3, row_tokens=128, micro_tokens=128, seed=0)
        session = Session(
            net=net,
            tasks={"main": (objective or make_objective("sft"), 1.0)},
            feed=feed,
            optim=optim,
            exam=exam,
            sampler=Sampler(model, tokenizer, chat.end_ids),
            store=Store(folder / "checkpoints", "key"),
            settings=train,
            progress=Progress(quiet=True),
            stop=StopSignal(),
            ladder=Ladder(net, sizes, feed, low_rank=True, optim=optim) if ladder else None,
        )
        folder.mkdir(exist_ok=True)
        session.metrics = folder / "metrics.jsonl"
        with session.stop.watching():
            return session.run(session.metrics, list(trackers)), session

    return run


@pytest.fixture
def real_exam(tokenizer):
    return Exam(make_items(ROWS[:3], Chat(tokenizer), None), scorer_for("chat"), 4, 128)


def weights_of(session):
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(session.net.model).items()}


def assert_bit_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def steps_on_disk(session):
    return sorted(int(path.name[5:]) for path in session.store.folder.iterdir())


def without_times(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_steps_that_wait_for_the_gpu_are_not_recorded_and_the_report_says_so(train, monkeypatch):
    @contextlib.contextmanager
    def found_waiting():
        raise recorded.Unrecordable("a copy waits\nat some line")
        yield

    monkeypatch.setattr(recorded, "never_waiting", found_waiting)
    monkeypatch.setattr(attention, "by_edges", lambda *given: True)  # as on a GPU
    report, _ = train(ladder=True, sizes=replace(SETTINGS, graph=True))
    assert report["steps"] == STEPS
    assert report["notes"] == ["its steps were not recorded as CUDA graphs: a copy waits"]


@pytest.mark.parametrize(("step", "average"), [(1, 0.0), (4, 0.0), (8, 0.0), (5, 0.9)])
def test_a_run_that_was_stopped_ends_bit_for_bit_where_an_undisturbed_one_ends(train, real_exam, step, average):
    whole_report, whole = train("whole", exam=real_exam, average=average)
    with pytest.raises(Interrupted):
        train(exam=real_exam, trackers=[Meddler(step, terminate)], average=average)
    report, again = train(exam=real_exam, average=average)
    assert_bit_equal(whole.store.load_step(STEPS).weights, again.store.load_step(STEPS).weights)
    assert_bit_equal(weights_of(again), weights_of(whole))
    assert_bit_equal(again.optim.state_tensors(), whole.optim.state_tensors())
    assert without_times(again.metrics) == without_times(whole.metrics)
    assert report["validations"] == whole_report["validations"]


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_that_crashed_ends_bit_for_bit_where_an_undisturbed_one_ends(train, real_exam, step):
    _, whole = train("whole", exam=real_exam)
    with pytest.raises(ZeroDivisionError):
        train(exam=real_exam, trackers=[Meddler(step, crash)])
    _, again = train(exam=real_exam)
    assert_bit_equal(weights_of(again), weights_of(whole))
    assert without_times(again.metrics) == without_times(whole.metrics)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_within_its_step(train, number):
    meddler = Meddler(2, lambda: terminate(number))
    with pytest.raises(Interrupted, match="after step 2"):
        train(trackers=[meddler])
    assert meddler.closed
    report, _ = train()
    assert "went on from step 2" in report["notes"]


def test_a_signal_during_a_validation_ends_it_at_once_and_saves(train):
    def during(look):
        if look == 1:
            terminate()
            pytest.fail("the validation went on")

    with pytest.raises(Interrupted):
        train(exam=Script([0.0] * 4, during=during))
    report, _ = train(exam=Script([0.0] * 4))
    assert "went on from step 3" in report["notes"]
    assert [look["step"] for look in report["validations"]] == [0, 3, 6, 9]


def test_a_second_signal_does_not_cut_the_save_short(train, monkeypatch):
    save = Store.save

    def save_under_fire(store, checkpoint, step, *, best):
        if step == 2:
            terminate()
        return save(store, checkpoint, step, best=best)

    monkeypatch.setattr(Store, "save", save_under_fire)
    with pytest.raises(Interrupted):
        train(trackers=[Meddler(2, terminate)])
    report, _ = train()
    assert "went on from step 2" in report["notes"]


def test_a_run_that_is_done_trains_no_further(train):
    _, first = train()
    report, again = train()
    assert report["steps"] == STEPS
    assert_bit_equal(weights_of(again), weights_of(first))


def test_training_stops_after_patience_looks_without_a_better_metric(train):
    report, _ = train(exam=Script([0.1, 0.5, 0.4, 0.5, 0.9]), validations=9, patience=2)
    assert report["steps"] == 3
    assert report["stopped"] == "stopped early, no better for 2 validations"


def test_training_that_improves_now_and_then_runs_to_its_end(train):
    report, _ = train(exam=Script([0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5]), validations=9, patience=2)
    assert (report["steps"], report["stopped"]) == (STEPS, "ran to its end")


def test_a_run_that_stopped_early_stays_stopped(train):
    train(exam=Script([0.5, 0.1, 0.1]), validations=9, patience=2)
    report, session = train(exam=Script([]), validations=9, patience=2)
    assert report["steps"] == session.optim.steps == 2


def test_the_best_checkpoint_is_the_one_of_the_best_metric_whatever_the_loss(train):
    report, session = train(exam=Script([0.1, 0.9, 0.5, 0.4], losses=[4.0, 3.0, 2.0, 1.0]))
    assert report["best_step"] == 3
    assert steps_on_disk(session) == [3, 8, 9]


def test_among_equal_metrics_the_lower_loss_is_best(train):
    report, _ = train(exam=Script([0.5, 0.5, 0.5, 0.5], losses=[4.0, 2.0, 1.0, 3.0]))
    assert report["best_step"] == 6


def test_the_best_may_be_the_model_before_any_training(train):
    report, session = train(exam=Script([0.9, 0.1, 0.1, 0.1]))
    assert report["best_step"] == 0
    loaded = session.store.load_step(0).weights
    assert all(not value.any() for name, value in loaded.items() if "lora_B" in name)


def test_the_best_checkpoint_holds_the_weights_of_its_step(train, tmp_path):
    _, session = train(exam=Script([0.1, 0.9, 0.5, 0.4]))
    with pytest.raises(Interrupted):
        train("short", trackers=[Meddler(3, terminate)])
    short = Store(tmp_path / "short" / "checkpoints", "key")
    assert_bit_equal(session.store.load_step(3).weights, short.load_step(3).weights)


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_ends_bit_for_bit_alike(train, real_exam, tmp_path):
    _, whole = train("whole", exam=real_exam)
    with pytest.raises(Interrupted):
        train(exam=real_exam, trackers=[Meddler(5, terminate)])
    newest = tmp_path / "run/checkpoints/step-000005/weights.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-9] ^= 16
    newest.write_bytes(damaged)
    report, again = train(exam=real_exam)
    assert any("step-000005 is damaged" in note for note in report["notes"])
    assert "went on from step 4" in report["notes"]
    assert_bit_equal(weights_of(again), weights_of(whole))


def test_a_best_checkpoint_that_was_damaged_since_is_not_the_best(train, tmp_path):
    with pytest.raises(Interrupted):
        train(exam=Script([0.1, 0.9, 0.5, 0.4]), trackers=[Meddler(8, terminate)])
    (tmp_path / "run/checkpoints/step-000003/state.json").write_text("{}")
    report, _ = train(exam=Script([0.4]))
    assert report["best_step"] == 9
    assert any("step 3 was best" in note for note in report["notes"])


def test_checkpoints_of_another_run_are_cleared(train, tmp_path):
    other = Store(tmp_path / "run" / "checkpoints", "another key")
    other.save(Checkpoint({"a": torch.zeros(1)}, {}, {}), 500, best=None)
    report, session = train()
    assert report["steps"] == STEPS
    assert steps_on_disk(session) == [8, 9]


def test_weights_of_another_shape_are_refused(train):
    _, session = train()
    weights = weights_of(session)
    weights[next(iter(weights))] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="not those that this recipe trains"):
        load_trained(session.net, weights)


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_good_checkpoint(train):
    class Poisoned(type(make_objective("sft"))):
        calls = 0

        def loss(self, outputs, batch):
            Poisoned.calls += 1
            loss = super().loss(outputs, batch)
            return loss if Poisoned.calls <= 6 else type(loss)(loss.sum * float("nan"))

    with pytest.raises(TrainingError, match=r"rows\.jsonl:"):
        train(objective=Poisoned(), save_every=2)
    report, _ = train()
    assert any(note.startswith("went on from step") for note in report["notes"])


def test_the_report_of_a_training_has_its_curve_and_figures(train, real_exam):
    report, _ = train(exam=real_exam)
    assert [point["step"] for point in report["curve"]] == list(range(1, STEPS + 1))
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"]
    assert report["prompts"] == [f"What is {line}?" for line in (1, 2, 3)]
    assert all(len(look["answers"]) == 3 for look in report["validations"])
    assert report["tokens_per_second"] > 0
    assert json.dumps(report)


class Tight(type(make_objective("sft"))):
    """Runs out of memory once, where a micro-batch has several rows."""

    spent = False

    def loss(self, outputs, batch):
        if not self.spent and batch.sequences > 1:
            type(self).spent = True
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(outputs, batch)


def test_the_report_of_a_training_says_what_was_given_up(train, monkeypatch):
    monkeypatch.setattr(Tight, "spent", False)
    report, session = train(objective=Tight(), ladder=True)
    assert len(report["ladder"]) == 1
    assert report["ladder"][0].startswith("step 1: ")
    assert report["steps"] == STEPS
    assert session.feed.micro_tokens < 128


def test_a_run_goes_on_from_the_rung_that_it_had_reached(train, monkeypatch):
    monkeypatch.setattr(Tight, "spent", False)
    with pytest.raises(Interrupted):
        train(objective=Tight(), ladder=True, trackers=[Meddler(2, terminate)])
    report, session = train(ladder=True)
    assert len(report["ladder"]) == 1
    assert session.feed.micro_tokens == session.ladder.settings.micro_tokens < 128
