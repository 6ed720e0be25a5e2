"""The one loop. It knows batches, objectives and hooks, and no technique by name."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from burnish.core import Batch, Objective
from burnish.data.feed import Feed
from burnish.errors import RecipeError, TrainingError
from burnish.model.net import Net
from burnish.train.optim import Optim

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


def fit(net: Net, tasks: Tasks, feed: Feed, optim: Optim, hooks: Sequence[Hook]) -> str:
    """Train until the feed ends or a hook says stop. Returns why it ended; "end" for the former.

    Raises TrainingError within the step in which a loss or gradient is no longer a finite number, before it reaches the weights.
    """
    net.train()
    for micro in feed:
        began = time.perf_counter()
        loss, stats, norm = backward(net, tasks, micro, optim)
        _refuse_nonsense(optim.steps + 1, loss, norm, net, tasks, micro)
        rate = optim.rate
        optim.step()
        optim.zero_grad()
        step = Step(
            number=optim.steps,
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


def backward(net: Net, tasks: Tasks, micro: Iterable[Batch], optim: Optim) -> tuple[float, dict[str, float], float]:
    """Gradients of one optimiser step from its micro-batches: (loss, stats by name, gradient norm before clipping).

    Everything is counted before any loss is scaled, so that each token (or group) weighs the same in whichever micro-batch it lies.
    """
    micro = [batch.to(net.device) for batch in micro]
    counts: dict[str, Tensor] = {}
    for batch in micro:
        counts[batch.task] = counts.get(batch.task, torch.zeros(())) + tasks[batch.task][0].count(batch)
    total = 0.0
    sums: defaultdict[str, float] = defaultdict(float)
    sizes: defaultdict[str, float] = defaultdict(float)
    for batch in micro:
        objective, weight = tasks[batch.task]
        loss = objective.loss(net(batch, objective.needs), batch)
        scaled = weight * loss.sum / counts[batch.task].clamp_min(1e-12)
        scaled.backward()
        total += float(scaled.detach())
        for name, (value, count) in loss.stats.items():
            sums[name] += float(value)
            sizes[name] += float(count)
    stats = {name: sums[name] / sizes[name] for name in sums if sizes[name]}
    return total, stats, float(optim.gradient_norm())


def check_streams(tasks: Tasks, micro: Iterable[Batch]) -> None:
    """Raise RecipeError before step 0 where an objective reads a stream that the feed does not supply."""
    for batch in micro:
        objective, _ = tasks[batch.task]
        if missing := objective.reads - batch.tokens.keys() - batch.values.keys():
            name = type(objective).__name__.lower()
            raise RecipeError(
                f"{name} reads {', '.join(sorted(missing))}; this feed supplies none", where=f"objective ({batch.task})"
            )


def _refuse_nonsense(step: int, loss: float, norm: float, net: Net, tasks: Tasks, micro: Sequence[Batch]) -> None:
    if torch.isfinite(torch.tensor([loss, norm])).all():
        return
    guilty = [place for batch in micro if not _is_finite(net, tasks, batch) for place in batch.where]
    places = guilty or [place for batch in micro for place in batch.where]
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    raise TrainingError(
        f"the loss is {loss} and the gradient's norm {norm}; the weights were not touched",
        where=f"step {step}, rows {shown}",
        expected="finite numbers",
        hint="--set train.learning_rate=1e-4   (a lower rate), or look at these rows with burnish data check",
    )


@torch.no_grad()
def _is_finite(net: Net, tasks: Tasks, batch: Batch) -> bool:
    objective, _ = tasks[batch.task]
    moved = batch.to(net.device)
    return bool(torch.isfinite(objective.loss(net(moved, objective.needs), moved).sum))
