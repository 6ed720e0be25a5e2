"""One training from its beginning, or from its newest checkpoint, to its end."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.data.feed import Feed
from burnish.errors import CheckpointError, Interrupted
from burnish.evaluate.runner import Exam
from burnish.model.adapt import trained_parameters
from burnish.model.net import Net
from burnish.model.sample import Sampler
from burnish.progress import Progress, as_time
from burnish.recipe import Train
from burnish.train.average import ITERATE, Average
from burnish.train.checkpoint import Store, set_random_state
from burnish.train.hooks import Judge, Record, Save, StopSignal, Validate, Validation
from burnish.train.ladder import Ladder
from burnish.train.loop import Hook, Step, Tasks, fit
from burnish.train.optim import Optim
from burnish.train.replay import Replayed
from burnish.train.trackers import Tracker

FIXED_PROMPTS = 4  # held-out prompts whose answers are kept at each validation


@dataclass
class Session:
    """What the loop needs, put together.

    exam: the validation questions; without items nothing is validated. ladder: what to give up where the memory is not enough.
    judge: who may end the training at a validation.
    """

    net: Net
    tasks: Tasks
    feed: Feed
    optim: Optim
    exam: Exam
    sampler: Sampler
    store: Store
    settings: Train
    progress: Progress
    stop: StopSignal
    ladder: Ladder | None = None
    judge: Judge | None = None

    def run(self, metrics: Path, trackers: list[Tracker]) -> dict[str, Any]:
        """Train to the end and return the report's `training`. Raises Interrupted, once all is saved, on a signal to stop."""
        record = Record(metrics, trackers, Ticker(self.progress))
        validate = self._validation(record)
        every = None if self.settings.save_every == "auto" else self.settings.save_every
        self._average = Average(self.optim.parameters, self.settings.average)
        save = Save(
            self.store, self.optim, self.feed.state_dict, validate, every, ladder=self.ladder, average=self._average
        )
        self._resume(validate, save, record)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # what the try-out took is not what the training takes
        try:
            with self.stop.held():  # a second signal does not cut a save short
                reason = self._train(record, validate, save)
        finally:
            for tracker in trackers:
                tracker.close()
        if self.stop.received:
            hint = "type the same command again: it goes on from there"
            raise Interrupted(f"stopped by {self.stop.received} after step {self.optim.steps}", hint=hint)
        return self._report(record, validate, reason)

    def _train(self, record: Record, validate: Validate, save: Save) -> str:
        try:
            validate.look(self.optim.steps)
            if validate.best:
                save.now()  # no later weights may be better than the first
            hooks: list[Hook] = [self._average, record, validate, save, self.stop]
            passes = self._passes()
            reason = validate.reason_to_stop or fit(
                self.net, self.tasks, self.feed, self.optim, hooks, self.ladder, passes
            )
            if passes and passes.refused:
                self.store.notes.append(f"its steps were not recorded as CUDA graphs: {passes.refused}")
                self.progress.say(f"! {self.store.notes[-1]}")
        except Interrupted:
            save.now()
            raise
        save.now()
        return reason

    def _passes(self) -> Replayed | None:
        """How a micro-batch goes through the net where not plainly: recorded, as the settings say."""
        if not (self.ladder and self.ladder.settings.graph):
            return None
        self.ladder.passes = Replayed(self.net, self.optim.parameters.values())
        return self.ladder.passes

    def _resume(self, validate: Validate, save: Save, record: Record) -> None:
        """Take up the newest whole checkpoint, or begin anew where there is none."""
        found = self.store.newest()
        for note in self.store.notes:
            self.progress.say(f"! {note}")
        if found is None:
            self.store.clear()
            record.begin(0)
            return
        step, checkpoint = found
        load_trained(self.net, checkpoint.weights)
        if self.ladder and checkpoint.state["ladder"]:
            self.ladder.load_state_dict(checkpoint.state["ladder"])
        self._average.restore(checkpoint.optimizer)
        moments = {name: value for name, value in checkpoint.optimizer.items() if not name.endswith(f"/{ITERATE}")}
        self.optim.load_state_tensors(moments, checkpoint.state["steps"])
        self.feed.load_state_dict(checkpoint.state["position"])
        set_random_state(checkpoint.state["random"])
        validate.history = [Validation(**seen) for seen in checkpoint.state["validations"]]
        while (best := validate.best) and not self.store.is_whole(best.step):
            self.store.notes.append(f"step {best.step} was best so far, but its checkpoint is gone or damaged")
            validate.lost.add(best.step)
        save.saved = step
        record.begin(step)
        self.store.notes.append(f"went on from step {step}")
        self.progress.say(f"  going on from checkpoints/step-{step:06d}")

    def _validation(self, record: Record) -> Validate:
        """Looks before training and `validations` times during it; the last look is at the last step."""
        total, looks = self.feed.total_steps, self.settings.validations
        due = {round(total * number / looks) for number in range(looks + 1)} if self.exam.items else set()
        return Validate(lambda step: self._look(step, record), frozenset(due), self.settings.patience, judge=self.judge)

    def _look(self, step: int, record: Record) -> Validation:
        # Nothing changes here, so a signal need not wait.
        with self._average.held(), self.stop.held(hold=False):
            count = len(self.exam.items)
            sitting = self.exam.sit(
                self.net,
                self.sampler,
                lambda done: self.progress.update(f"step {step}: validating, {done} of {count} answers"),
            )
        figures = self.exam.figures(sitting)
        scores = [score[self.exam.item_metric] for score in sitting.scores]
        answers = sitting.answers[:FIXED_PROMPTS]
        tasks = self.exam.by_task(sitting)
        found = Validation(
            step, sitting.loss, figures[self.exam.metric], figures, answers, scores, tasks, sitting.brier
        )
        record.write(
            step, {"validation_loss": found.loss, **{f"validation_{name}": value for name, value in figures.items()}}
        )
        self.progress.say(
            f"    step {step}/{self.feed.total_steps}: validation loss {found.loss:.3f}, {self.exam.metric} {found.metric:.3f}"
        )
        for name, seen in tasks.items():
            self.progress.say(f"      {name}: loss {seen['loss']:.3f}, {seen['metric']:.3f}")
        if any(answers):  # plain text is read, not answered
            for item, answer in zip(self.exam.items, answers, strict=False):
                asked, answered = (" ".join(text.split())[:110] for text in (item.question, answer))
                self.progress.say(f"      {asked}\n      → {answered}")
        return found

    def _report(self, record: Record, validate: Validate, reason: str) -> dict[str, Any]:
        curve = [line for line in record.lines() if "loss" in line]
        seconds = sum(line["seconds"] for line in curve)
        best = validate.best
        return {
            "steps": self.optim.steps,
            "best_step": best.step if best else self.optim.steps,
            "seconds": round(seconds, 1),
            "tokens_per_second": round(sum(line["tokens"] for line in curve) / max(seconds, 1e-9), 1),
            "peak_memory_bytes": peak_memory(),
            "learning_rate": self.optim.learning_rate,
            "precision": self.net.precision,
            "device": str(self.net.device),
            "ladder": self.ladder.taken if self.ladder else [],
            "stopped": "ran to its end" if reason == "end" else f"stopped early, {reason}",
            "curve": [
                {name: line[name] for name in ("step", "loss", "learning_rate", "gradient_norm", "tokens")}
                for line in curve
            ],
            "validations": [asdict(seen) for seen in validate.history],
            **({"tasks": validate.standing()} if validate.by_task() else {}),
            "prompts": [item.question for item in self.exam.items[:FIXED_PROMPTS]],
            "notes": self.store.notes,
        }


class Ticker:
    """The live line of training: loss, speed and the time that is left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds = 0.0
        self._tokens = 0
        self._steps = 0

    def __call__(self, step: Step) -> None:
        self._seconds += step.seconds
        self._tokens += step.tokens
        self._steps += 1
        left = as_time((step.total - step.number) * self._seconds / self._steps)
        speed = self._tokens / self._seconds
        self._progress.update(
            f"step {step.number}/{step.total}  loss {step.loss:.3f}  {speed:.0f} tokens/s  {left} left"
        )


def load_trained(net: Net, weights: Mapping[str, Tensor]) -> None:
    """Put a checkpoint's weights into the net. Raises CheckpointError where they are not those of this net."""
    mine = trained_parameters(net.model)
    if mine.keys() != weights.keys() or any(mine[name].shape != weights[name].shape for name in mine):
        raise CheckpointError(
            "its weights are not those that this recipe trains",
            where="checkpoints",
            hint="--out ANOTHER   begins anew",
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(weights[name])


def peak_memory() -> int:
    """Bytes: of the accelerator where there is one, else the largest that this process has been."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
