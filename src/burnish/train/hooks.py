"""What looks on while the loop runs: validation, saving, recording, and the signal to stop."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from burnish.errors import Interrupted
from burnish.train.average import Average
from burnish.train.checkpoint import Checkpoint, Store, random_state
from burnish.train.ladder import Ladder
from burnish.train.loop import Step
from burnish.train.optim import Optim
from burnish.train.trackers import Tracker

TIE = 1e-6  # what a difference in loss may weigh at most beside the metric


@dataclass(frozen=True)
class Validation:
    """One look at the validation split.

    loss: nats a trained token. metric: the main figure, higher is better. answers: to the fixed prompts. scores: the metric of each item,
    or what stands for it. tasks: loss, metric and scores of each task, where there are several. brier: the mean Brier score of the
    probabilities, 0 at best and 2 at worst, where a head gave some.
    """

    step: int
    loss: float
    metric: float
    metrics: dict[str, float]
    answers: list[str]
    scores: list[float] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    brier: float | None = None

    @property
    def error(self) -> float:
        """What ranks looks whose metrics are level, lower is better.

        A head's loss may grow while its metric still rises, since a few answers that are wrong with more and more confidence outweigh
        all others (Guo et al. 2017, arXiv 1706.04599, section 3); no answer weighs more than 2 in the Brier score.
        """
        return self.loss if self.brier is None else self.brier

    def of_task(self, name: str) -> Validation:
        """What this look saw of one task."""
        return Validation(self.step, metrics={}, answers=[], **self.tasks[name])

    def beats(self, other: Validation) -> bool:
        """Whether this look is better: by the metric, or by the error where the metric's difference is within its own noise.

        The noise is one standard error of the difference on the same items: a handful of generated answers cannot rank two
        checkpoints that are close, and the loss, which sees every token, can.
        """
        return self.error < other.error if self.is_level_with(other) else self.metric > other.metric

    def is_level_with(self, other: Validation) -> bool:
        """Whether the metrics differ by no more than one standard error of their difference on the same items."""
        gains = [mine - theirs for mine, theirs in zip(self.scores, other.scores, strict=True)]
        noise = statistics.pstdev(gains) / math.sqrt(len(gains)) if gains else 0.0
        return abs(self.metric - other.metric) <= noise

    @property
    def value(self) -> float:
        """The metric as a number by which any two looks are ranked: the error decides where the metrics are equal."""
        return self.metric + (TIE * math.exp(-self.error) if math.isfinite(self.error) else 0.0)


Judge = Callable[[Sequence[Validation]], str | None]  # of all looks so far; a text ends the training, and says why


def best_of(history: Sequence[Validation]) -> Validation | None:
    """The look that beat the best one before it; None without any."""
    best: Validation | None = None
    for seen in history:
        if best is None or seen.beats(best):
            best = seen
    return best


def looks_since_best(history: Sequence[Validation]) -> int:
    best = best_of(history)
    return sum(seen.step > best.step for seen in history) if best else 0


@dataclass
class Validate:
    """Measures at the given steps, remembers the best by the metric, and stops after `patience` looks without a better one.

    The metric, not the loss, decides: an early stop on loss can lose accuracy that was still rising.
    lost: steps that cannot be the best any more, since their weights are gone. judge: who may end the training after a look.
    """

    measure: Callable[[int], Validation]
    due: frozenset[int]
    patience: int
    history: list[Validation] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    judge: Judge | None = None
    judged: str | None = None

    @property
    def best(self) -> Validation | None:
        """The look that beat the best one before it: its weights are always among those that were saved."""
        return best_of([seen for seen in self.history if seen.step not in self.lost])

    @property
    def reason_to_stop(self) -> str | None:
        """Where there are several tasks, one that goes on getting better keeps the others going."""
        seen = self.by_task()
        since = min(looks_since_best(own) for own in seen.values()) if seen else self._since_best()
        what = "no task better" if seen else "no better"
        return f"{what} for {since} validations" if since >= self.patience else self.judged

    def _since_best(self) -> int:
        best = self.best
        return sum(seen.step > best.step for seen in self.history) if best else 0

    def by_task(self) -> dict[str, list[Validation]]:
        """Every look at each task, in order."""
        names = self.history[0].tasks if self.history else {}
        return {name: [seen.of_task(name) for seen in self.history] for name in names}

    def standing(self) -> dict[str, dict[str, Any]]:
        """Of each task: the step at which it was best, its metric there and now, and what that means in words."""
        found: dict[str, dict[str, Any]] = {}
        for name, seen in self.by_task().items():
            best, last, since = best_of(seen), seen[-1], looks_since_best(seen)
            assert best is not None
            said = "falls" if best.beats(last) else "no better"
            found[name] = {
                "best_step": best.step,
                "best_metric": best.metric,
                "last_metric": last.metric,
                "looks_since_best": since,
                "said": f"{said} since step {best.step}"
                if since >= self.patience or (since and said == "falls")
                else "",
            }
        return found

    def look(self, step: int) -> None:
        """Measure at this step unless it was done, as it may have been before a run went on."""
        if step in self.due and all(seen.step != step for seen in self.history):
            self.history.append(self.measure(step))
            self.judged = self.judge(self.history) if self.judge else None

    def after(self, step: Step) -> str | None:
        self.look(step.number)
        return self.reason_to_stop


@dataclass
class Save:
    """Saves every so many steps, or about once a minute where `every` is None; at each best validation; and when told to.

    ladder: whose rung is saved too, so that a run goes on from there. average: whose weights are those of the checkpoint.
    """

    store: Store
    optim: Optim
    position: Callable[[], dict[str, Any]]
    validate: Validate
    every: int | None = None
    interval: float = 60.0
    ladder: Ladder | None = None
    average: Average = field(default_factory=lambda: Average({}, 0.0))
    saved: int = -1
    _last: float = field(default_factory=time.monotonic)

    def after(self, step: Step) -> str | None:
        best = self.validate.best
        is_best = best is not None and best.step == step.number
        due = step.number % self.every == 0 if self.every else time.monotonic() - self._last >= self.interval
        if due or is_best or step.number == step.total:
            self.now()
        return None

    def now(self) -> None:
        """Save the state as it is, unless it stands on disk already."""
        step = self.optim.steps
        if step == self.saved:
            return
        state = {
            "position": self.position(),
            "steps": step,
            "random": random_state(),
            "validations": [asdict(seen) for seen in self.validate.history],
            "ladder": self.ladder.state_dict() if self.ladder else None,
        }
        best = self.validate.best
        with self.average.held() as iterates:
            checkpoint = Checkpoint(dict(self.optim.parameters), self.optim.state_tensors() | iterates, state)
            self.store.save(checkpoint, step, best=best.step if best else None)
        self.saved, self._last = step, time.monotonic()


@dataclass
class Record:
    """Appends each step to `metrics.jsonl`, hands it to the trackers, and shows it."""

    path: Path
    trackers: Sequence[Tracker] = ()
    show: Callable[[Step], None] = lambda step: None

    def begin(self, done: int) -> None:
        """Drop the lines of steps after `done`: they were lost with the weights that they speak of."""
        kept = [line for line in self.lines() if line.get("step", 0) <= done]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """Every line that is whole; the last may have been cut by a kill."""
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
        return lines

    def after(self, step: Step) -> str | None:
        values = {
            **step.stats,
            "loss": step.loss,
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "tokens": step.tokens,
            "trained_tokens": step.trained,
            "seconds": round(step.seconds, 4),
        }
        self.write(step.number, values)
        self.show(step)
        return None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self.trackers:
            tracker.log(numbers, step)


class StopSignal:
    """SIGTERM and SIGINT: at once where nothing can be lost, after the running step where the weights are being changed."""

    def __init__(self) -> None:
        self.received = ""
        self._held = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handle both signals until the block ends; in a thread, where Python allows no handlers, do nothing."""
        try:
            before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self, hold: bool = True) -> Iterator[None]:
        """Within the block a signal is only noted (or, with hold=False, acted on at once although an outer block holds)."""
        before, self._held = self._held, hold
        try:
            if not hold:
                self._raise_if_received()
            yield
        finally:
            self._held = before

    def after(self, step: Step) -> str | None:
        return f"stopped by {self.received}" if self.received else None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if not self._held:
            self._raise_if_received()

    def _raise_if_received(self) -> None:
        if self.received:
            raise Interrupted(f"stopped by {self.received}", hint="type the same command again: it goes on from here")
