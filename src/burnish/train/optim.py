"""AdamW with warm-up, cosine decay and clipping, its moments in 32 or 8 bits, and the learning rate to begin with."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from burnish.methods import METHODS
from burnish.model.depth import Pace
from burnish.model.quantize import without_bitsandbytes
from burnish.model.recorded import Recording

BETAS = (0.9, 0.95)
EPSILON = 1e-8
HEAD_RATE = 3e-3  # of a linear head on features that do not move


def auto_learning_rate(hidden_size: int, method: str, steps: int) -> float:
    """The peak learning rate from the size of the model: 5e-5 * (2000 / hidden)^0.781, times 10 for LoRA, 15 in runs under 100 steps.

    Source: Schulman et al. 2025, "LoRA Without Regret": LoRA's best rate is about ten times that of full fine-tuning, about
    fifteen times in short runs, and nearly free of the rank. `METHODS` says how the rates of other adapters stand to LoRA's.
    """
    full = 5e-5 * (2000 / hidden_size) ** 0.781
    if method == "full":
        return full
    if method == "head":
        return HEAD_RATE
    return full * (15 if steps < 100 else 10) * METHODS[method].rate


def auto_batch_size(rows: int) -> int:
    """Rows in a step: about half the square root of the rows, as a power of two from 4 to 64, so that small sets get enough steps."""
    return int(min(64, max(4, 2 ** round(math.log2(max(math.sqrt(rows) / 2, 1))))))


def rate_at(step: int, total: int, warmup: float) -> float:
    """The share of the peak rate at a step counted from 0: linear warm-up, then a cosine that ends near 0."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class Optim:
    """AdamW (arXiv 1711.05101) over named parameters. Matrices decay; vectors (norms, biases) do not.

    learning_rate: the peak. total: optimiser steps of the whole run, which the schedule needs. kind: "adamw", or "adamw8bit", whose moments
    are stored in 8 bits by blocks of 256 (Dettmers et al. 2021, arXiv 2110.02861; from bitsandbytes).
    in_backward: update each parameter as soon as its gradient is there, and let the gradient go (Lv et al. 2023, arXiv 2306.09782). The
    norm of all gradients is known too late then: each parameter's is clipped by itself, which leaves alone all that clipping by the
    common norm leaves alone. recorded: on a GPU, clip and update as CUDA graphs; gradients must stay in the same tensors then.
    schedule: the share of the peak rate at a step counted from 0, in place of `rate_at`. paces: by name, of parameters that have a share
    of the rate or are first updated at a later step. Until then they want no gradient, and where there are such nothing is recorded.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        learning_rate: float,
        total: int,
        warmup: float = 0.05,
        weight_decay: float = 0.01,
        clip: float = 1.0,
        kind: str = "adamw",
        in_backward: bool = False,
        recorded: bool = False,
        schedule: Callable[[int], float] | None = None,
        paces: Mapping[str, Pace] | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.paces = {parameter: (paces or {}).get(name, Pace()) for name, parameter in self.parameters.items()}
        self.learning_rate, self.total, self.warmup, self.clip = learning_rate, total, warmup, clip
        self.weight_decay, self.kind, self.in_backward = weight_decay, kind, in_backward
        self.recorded = recorded and not in_backward and not any(pace.start for pace in self.paces.values())
        self.schedule = schedule or (lambda step: rate_at(step, total, warmup))
        self.steps = 0
        self._norms: dict[nn.Parameter, Tensor] = {}  # of this step, by the parameters that were updated within it
        self._bad = torch.zeros((), device=next(iter(self.parameters.values())).device)  # 1 skips an update
        self._engines = self._make_engines()
        self._record()

    def _record(self) -> None:
        """Clipping and the update of all parameters at once, recorded where that is wanted."""
        self._clipped: Callable[[], Tensor] = Recording(self._clip) if self.recorded else self._clip
        self._recorded_step = Recording(next(iter(self._engines.values())).step) if self.recorded else None

    def _make_engines(self) -> dict[nn.Parameter, torch.optim.Optimizer]:
        """Who updates each parameter: one for all, or one for each where they are updated at different times."""
        every = list(self.parameters.values())
        parts = [[parameter] for parameter in every] if self.in_backward else [every]
        return {parameter: engine for part in parts for engine in [self._engine(part)] for parameter in part}

    def _engine(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        alike: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for parameter in sorted(parameters, key=lambda p: p.dim() <= 1):  # matrices first
            alike[self.paces[parameter].share, parameter.dim() > 1].append(parameter)
        given: Any = [
            {"params": members, "weight_decay": self.weight_decay if decays else 0.0, "share": share}
            for (share, decays), members in alike.items()
        ]
        settings: Any = {"lr": self.learning_rate, "betas": BETAS, "eps": EPSILON}
        if self.kind == "adamw8bit":
            return _adamw8bit()(given, **settings)
        if self.recorded:  # a graph reads each rate where it lies
            given = [{**group, "lr": torch.tensor(self.learning_rate, device=parameters[0].device)} for group in given]
        engine = torch.optim.AdamW(given, **settings, fused=True, capturable=self.recorded)
        engine.found_inf = self._bad  # type: ignore[attr-defined]  # where the fused update looks whether to do nothing
        return engine

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.learning_rate * self.schedule(self.steps)

    @contextlib.contextmanager
    def around_backward(self, *, last: bool) -> Iterator[None]:
        """To be held around both passes of each micro-batch. last: whether it is the last one of its step.

        Within it parameters whose time has not come want no gradient, so that the backward pass ends above them; outside of it they are
        trained as any other, for checkpoints and counts.
        """
        waiting = [parameter for parameter, pace in self.paces.items() if pace.start > self.steps]
        updating = [
            parameter
            for parameter, pace in self.paces.items()
            if self.in_backward and last and pace.start <= self.steps
        ]
        hooks = [parameter.register_post_accumulate_grad_hook(self._update) for parameter in updating]
        try:
            for parameter in waiting:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in waiting:
                parameter.requires_grad_(True)
            for hook in hooks:
                hook.remove()

    def _update(self, parameter: Any) -> None:
        """Clip and apply the gradient of one parameter. A step that is done again, for want of memory, updates it only once."""
        if parameter not in self._norms:
            self._norms[parameter] = nn.utils.clip_grad_norm_([parameter], self.clip)
            self._apply(self._engines[parameter])
        parameter.grad = None

    def _apply(self, engine: torch.optim.Optimizer) -> None:
        for group in engine.param_groups:
            rate = self.rate * group["share"]
            if self.recorded:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        update = self._recorded_step or engine.step
        update()

    def gradient_norm(self) -> Tensor:
        """() the norm of all gradients together, before clipping. Gradients are clipped to `clip` in place."""
        if self.in_backward:
            return torch.stack(list(self._norms.values()) or [torch.zeros(())]).norm()
        return self._clipped()

    def _clip(self) -> Tensor:
        return nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip)

    def step(self, bad: Tensor | None = None) -> None:
        """Update, unless `bad` () is 1: the device decides, so that the host need not wait. 8-bit moments make it wait."""
        if bad is not None:
            self._bad.copy_(bad)
        if not self.in_backward and not (self.kind == "adamw8bit" and bool(self._bad)):
            self._apply(next(iter(self._engines.values())))
        self._norms.clear()
        self.steps += 1

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def use(self, kind: str) -> None:
        """Go on with moments of another kind, made from those that are there."""
        moments = self.state_tensors()
        self.kind, self.recorded, self._engines = kind, False, {}
        self._engines = self._make_engines()
        self._record()
        self.load_state_tensors(moments, self.steps)

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's moments by "parameter/moment", flat, as a checkpoint keeps them; the tables of 8-bit values are not part of it."""
        return {
            f"{name}/{moment}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for moment, value in self._engines[parameter].state[parameter].items()
            if not moment.startswith("qmap")
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        self.steps = steps
        found: dict[str, dict[str, Tensor]] = {name: {} for name in self.parameters}
        for key, value in tensors.items():
            name, _, moment = key.rpartition("/")
            found[name][moment] = value
        for name, moments in found.items():
            parameter = self.parameters[name]
            engine = self._engines[parameter]
            if self.kind == "adamw8bit":
                _load_8bit(engine, parameter, moments)
            else:
                engine.state[parameter] = _in_32_bits(parameter, moments)


def _in_32_bits(parameter: nn.Parameter, moments: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of torch's AdamW; its count of steps lies where the update wants it."""
    device = parameter.device if parameter.is_cuda else torch.device("cpu")
    return {
        name: value.to(device, copy=True) if name == "step" else value.to(parameter) for name, value in moments.items()
    }


def _load_8bit(engine: Any, parameter: nn.Parameter, moments: Mapping[str, Tensor]) -> None:
    """Fill the state of bitsandbytes' AdamW from its own moments, or from those of torch's, which are rounded."""
    if not moments:
        return
    for number, group in enumerate(engine.param_groups):
        place = next((place for place, one in enumerate(group["params"]) if one is parameter), None)
        if place is not None:
            engine.init_state(group, parameter, number, place)
    state = engine.state[parameter]
    state["step"] = int(moments["step"])
    for number, name in enumerate(("exp_avg", "exp_avg_sq"), 1):
        target = state[f"state{number}"]
        if name not in moments:
            target.copy_(moments[f"state{number}"])
            if f"absmax{number}" in moments:
                state[f"absmax{number}"].copy_(moments[f"absmax{number}"])
        elif target.dtype != torch.uint8:  # the moments of a small parameter stay as they are
            target.copy_(moments[name])
        else:
            from bitsandbytes import functional

            code, value = state[f"qmap{number}"], moments[name].to(parameter).contiguous()
            rounded, scales = functional.quantize_blockwise(value, code=code, blocksize=256)
            target.copy_(rounded.view_as(target))
            state[f"absmax{number}"].copy_(scales.absmax)


def _adamw8bit() -> Any:
    """bitsandbytes' AdamW. Raises RecipeError where it is not installed."""
    try:
        from bitsandbytes import optim
    except ImportError as error:
        raise without_bitsandbytes("adamw8bit", "train.optimizer") from error
    kind: Any = optim
    return kind.AdamW8bit
