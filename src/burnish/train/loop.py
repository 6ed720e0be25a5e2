"""The one loop. It knows batches, objectives and hooks, and no technique by name."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from burnish.core import Batch, Objective
from burnish.data.feed import Feed
from burnish.errors import RecipeError, TrainingError
from burnish.model.net import Net
from burnish.train.ladder import Ladder, is_out_of_memory, release
from burnish.train.optim import Optim
from burnish.train.replay import Passes, forward_backward

Tasks = Mapping[str, tuple[Objective, float]]


@dataclass(frozen=True)
class Step:
    """What one optimiser step did. number counts from 1. seconds: its wall time. tokens: real ones, trained: those with a weight."""

    number: int
    total: int
    loss: float
    stats: dict[str, float]
    gradient_norm: float
    learning_rate: float
    tokens: int
    trained: int
    seconds: float
    where: tuple[str, ...]


class Hook(Protocol):
    """Something that looks on after each step. A text returned ends the training, and says why."""

    def after(self, step: Step) -> str | None: ...


def fit(
    net: Net,
    tasks: Tasks,
    feed: Feed,
    optim: Optim,
    hooks: Sequence[Hook],
    ladder: Ladder | None = None,
    passes: Passes | None = None,
) -> str:
    """Train until the feed ends or a hook says stop. Returns why it ended; "end" for the former.

    ladder: what to give up where the memory is not enough; the step is then done again, with the same rows.
    passes: how a micro-batch goes forwards and backwards; None is one after the other, as written in `replay`.
    Raises TrainingError within the step in which a loss or gradient is no longer a finite number, before it reaches the weights.
    """
    net.train()
    for micro in feed:
        began = time.perf_counter()
        micro, sums = _gradients(net, tasks, feed, micro, optim, ladder, passes)
        number, rate = optim.steps + 1, optim.rate
        # Asked for before the host waits for the loss, so that the device goes from one to the other; it packs meanwhile.
        optim.step(sums.bad)
        feed.pack_ahead()
        loss, stats, norm = sums.read()
        _refuse_nonsense(number, loss, norm, net, tasks, micro, optim)
        optim.zero_grad()
        step = Step(
            number=number,
            total=feed.total_steps,
            loss=loss,
            stats=stats,
            gradient_norm=norm,
            learning_rate=rate,
            tokens=sum(batch.real_tokens for batch in micro),
            trained=sum(int((batch.weight != 0).sum()) for batch in micro),
            seconds=time.perf_counter() - began,
            where=tuple(place for batch in micro for place in batch.where),
        )
        # Every hook sees every step, even the last; the first reason counts.
        reasons = [reason for hook in hooks if (reason := hook.after(step))]
        if reasons:
            return reasons[0]
    return "end"


Gradients = tuple[float, dict[str, float], float]


@dataclass(frozen=True)
class Sums:
    """What a step added up, still on the device.

    values: (2 + 2n,) float64: the loss, the gradient norm, then sum and count of each of n statistics.
    """

    values: Tensor
    names: list[str]

    @property
    def bad(self) -> Tensor:
        """() float32: 1 where the loss or the norm is no finite number, else 0."""
        return (~self.values[:2].isfinite().all()).float()

    def read(self) -> Gradients:
        """(loss, statistics by name, gradient norm before clipping). Here the host waits, once a step."""
        loss, norm, *rest = self.values.tolist()
        pairs = zip(self.names, rest[::2], rest[1::2], strict=True)
        return loss, {name: value / count for name, value, count in pairs if count}, norm


def _gradients(
    net: Net,
    tasks: Tasks,
    feed: Feed,
    micro: list[Batch],
    optim: Optim,
    ladder: Ladder | None,
    passes: Passes | None,
) -> tuple[list[Batch], Sums]:
    """The micro-batches of a step and what `accumulate` makes of them, on the first rung of the ladder on which they fit."""
    while True:
        try:
            return micro, accumulate(net, tasks, micro, optim, passes)
        except (RuntimeError, MemoryError) as error:
            if ladder is None or not is_out_of_memory(error):
                raise
        optim.zero_grad()
        release()
        ladder.down(f"step {optim.steps + 1}", max(batch.ids.numel() for batch in micro))
        micro = feed.again()


def backward(net: Net, tasks: Tasks, micro: Sequence[Batch], optim: Optim, passes: Passes | None = None) -> Gradients:
    """Gradients of one optimiser step from its micro-batches: (loss, stats by name, gradient norm before clipping)."""
    return accumulate(net, tasks, micro, optim, passes).read()


def accumulate(net: Net, tasks: Tasks, micro: Sequence[Batch], optim: Optim, passes: Passes | None = None) -> Sums:
    """Gradients of one optimiser step from its micro-batches, clipped, and what was added up on the way.

    Everything is counted before any loss is scaled, so that each token (or group) weighs the same in whichever micro-batch it lies.
    Of several tasks each has its own mean, which counts by its part of the step's groups, times its weight.
    """
    passes = passes or partial(forward_backward, net)
    counts: dict[str, Tensor] = {}
    groups: Counter[str] = Counter()
    for batch in micro:
        groups[batch.task] += batch.groups
        counts[batch.task] = counts.get(batch.task, torch.zeros(())) + tasks[batch.task][0].count(batch)
    total = torch.zeros((), dtype=torch.float64, device=net.device)
    sums: dict[str, Tensor] = {}  # name -> (sum, count), (2,) float64
    for number, batch in enumerate(micro, 1):
        objective, weight = tasks[batch.task]
        with optim.around_backward(last=number == len(micro)):
            part = weight * groups[batch.task] / max(groups.total(), 1)
            scaled, stats = passes(objective, batch, part / counts[batch.task].clamp_min(1e-12))
        total += scaled
        for name, pair in stats.items():
            name = name if len(tasks) == 1 else f"{batch.task}/{name}"
            sums[name] = sums.get(name, 0) + torch.stack([value.double() for value in pair]).to(net.device)
    norm = optim.gradient_norm().double().to(net.device)
    return Sums(torch.cat([total[None], norm[None], *sums.values()]), list(sums))


def check_streams(tasks: Tasks, micro: Iterable[Batch]) -> None:
    """Raise RecipeError before step 0 where an objective reads a stream that the feed does not supply."""
    for batch in micro:
        objective, _ = tasks[batch.task]
        if missing := objective.reads - batch.tokens.keys() - batch.values.keys():
            name = type(objective).__name__.lower()
            raise RecipeError(
                f"{name} reads {', '.join(sorted(missing))}; this feed supplies none", where=f"objective ({batch.task})"
            )


def _refuse_nonsense(
    number: int, loss: float, norm: float, net: Net, tasks: Tasks, micro: Sequence[Batch], optim: Optim
) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    guilty = [place for batch in micro if not _is_finite(net, tasks, batch) for place in batch.where]
    places = guilty or [place for batch in micro for place in batch.where]
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    whole = "those of the last checkpoint are whole" if optim.in_backward else "the weights were not touched"
    raise TrainingError(
        f"the loss is {loss} and the gradient's norm {norm}; {whole}",
        where=f"step {number}, rows {shown}",
        expected="finite numbers",
        hint="--set train.learning_rate=1e-4   (a lower rate), or look at these rows with burnish data check",
    )


@torch.no_grad()
def _is_finite(net: Net, tasks: Tasks, batch: Batch) -> bool:
    objective, _ = tasks[batch.task]
    moved = batch.to(net.device)
    return bool(torch.isfinite(objective.loss(net(moved, objective.needs), moved).sum))
