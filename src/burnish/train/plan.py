"""What a run will need, and the settings under which it fits and is fastest: nothing here loads a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from burnish.errors import RecipeError
from burnish.methods import METHODS
from burnish.model.quantize import has_bitsandbytes, without_bitsandbytes
from burnish.progress import as_time
from burnish.recipe import Recipe, Train
from burnish.train import memory, speed
from burnish.train.memory import GIB, Settings
from burnish.train.shape import Shape, shape_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LEAST_TOKENS = 256  # a smaller micro-batch saves little and leaves the hardware idle
# Answers decoded together, and the seconds of a step beside reading the weights.
ANSWERS_AT_ONCE, ANSWER_STEP = 16, 0.03


@dataclass(frozen=True)
class Workload:
    """What the data asks for: rows to train on, their tokens, and what validation and test will generate.

    longest: tokens of the longest group, which no micro-batch can split. step: tokens of the largest step, 0 where that is not known.
    largest: of the largest micro-batch (tokens with its padding, trained tokens), by the `micro_tokens` that it was cut to.
    span: see `speed.seconds_per_token`. teacher: parameters of a teacher that reads every batch beside the student.
    """

    rows: int
    tokens: int
    trained: int
    longest: int
    generated: int
    prompted: int
    step: int = 0
    largest: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    span: float = 0.0
    teacher: int = 0

    def at_once(self, micro_tokens: int) -> tuple[int, int]:
        """(tokens, trained tokens) of the largest micro-batch."""
        tokens = max(micro_tokens, self.longest)
        return self.largest.get(micro_tokens, (tokens, tokens))

    def splits(self, micro_tokens: int) -> bool:
        """Whether a step may have several micro-batches."""
        return not self.step or self.step > micro_tokens


@dataclass(frozen=True)
class Plan:
    """memory: bytes by part and in total. seconds: training and the answers given meanwhile. would_fit: what to type when it does not.

    measured: what this machine was measured to do, in operations and bytes a second.
    """

    model: str
    device: str
    precision: str
    recompute: str
    optimizer: str
    in_backward: bool
    graph: bool
    one_row: bool
    average: bool
    recomputable: bool
    compile: bool
    parameters: int
    trained_parameters: int
    rows: int
    tokens_per_epoch: int
    trained_tokens_per_epoch: int
    batch_size: int
    micro_tokens: int
    epochs: float
    steps: int
    learning_rate: float
    memory: dict[str, int]
    memory_available: int
    memory_limit: float | None
    fits: bool
    would_fit: str
    measured: dict[str, float]
    tokens_per_second: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        parts = "".join(f"\n  {name:<18} {size / GIB:7.2f} GiB" for name, size in self.memory.items())
        fit = "it fits" if self.fits else f"it does not fit; what would: {self.would_fit}"
        limit = f", of which {self.memory_limit:g} GiB may be used" if self.memory_limit else ""
        share = self.trained_parameters / self.parameters
        tokens = f"{self.tokens_per_epoch:,} tokens an epoch, {self.trained_tokens_per_epoch:,} trained"
        schedule = f"{self.batch_size} rows over {self.epochs:g} epochs, learning rate {self.learning_rate:.1e}"
        rates = f"{self.measured['rate'] / 1e12:,.3g} TFLOP/s and {self.measured['bandwidth'] / 1e9:,.3g} GB/s"
        return (
            f"{self.model} in {self.precision} on {self.device}\n"
            f"  parameters       {self.parameters:,}, trained {self.trained_parameters:,} ({share:.1%})\n"
            f"  data             {self.rows:,} rows, {tokens}\n"
            f"  steps            {self.steps:,} of {schedule}\n"
            f"  optimiser        {self.optimizer}{self._updates}\n"
            f"memory ({self.micro_tokens:,} tokens at once, {self._recomputed}){parts}\n"
            f"  {'available':<18} {self.memory_available / GIB:7.2f} GiB{limit}: {fit}\n"
            f"time               about {as_time(self.seconds)}, at {self.tokens_per_second:,.0f} tokens/s\n"
            f"  measured here    {rates}"
        )

    @property
    def _updates(self) -> str:
        if not self.in_backward:
            return ""
        return ", each parameter updated within the backward pass, its gradient clipped by itself"

    @property
    def _recomputed(self) -> str:
        return {"none": "nothing recomputed", "all": "all recomputed", "offload": "all recomputed from the host's memory"}.get(
            self.recompute, f"{self.recompute} recomputed"
        )  # fmt: skip


def choose(wanted: Train, config: PretrainedConfig, model: nn.Module, work: Workload, settings: Settings) -> Settings:
    """The settings with the fastest of `recompute` and `micro_tokens` that fits, and a leaner optimiser only where memory asks for it.

    What the recipe names stays as it is. Where nothing fits, the leanest is taken. settings: all else; its `micro_tokens` is the most.
    Raises RecipeError for an optimiser that is not installed.
    """
    shape, device = shape_of(config, model), torch.device(settings.device)
    if wanted.optimizer == "adamw8bit" and not has_bitsandbytes():
        raise without_bitsandbytes("adamw8bit", "train.optimizer", otherwise="adamw")
    room, seen = memory.room(device, wanted.memory_limit), []
    for leaner in _optimizers(wanted, shape, settings):
        options = list(_options(wanted, work, leaner))
        fitting = [one for one in options if _total(shape, one, work) <= room]
        if fitting:
            return min(fitting, key=lambda one: _seconds(shape, one, work))
        seen += options
    return min(seen, key=lambda one: _total(shape, one, work))


def _optimizers(wanted: Train, shape: Shape, settings: Settings) -> Iterator[Settings]:
    """From plain AdamW on, ever leaner: first what leaves the arithmetic of a step alone, then 8-bit moments, then both."""
    kinds = ["adamw", "adamw8bit"] if wanted.optimizer == "auto" else [wanted.optimizer]
    if shape.beside or not has_bitsandbytes():  # an adapter's moments are small
        kinds = kinds[:1]
    for kind in kinds:
        yield replace(settings, optimizer=kind)
        if not shape.beside:
            yield replace(settings, optimizer=kind, in_backward=True)


def suited(wanted: Train, method: str) -> Train:
    """The section with what is left open settled where the adapter settles it.

    Only the layers of LoRA's kin are compiled and recorded unasked: PEFT's own may do what a compiler takes apart. Raises RecipeError for
    what learnt tokens cannot have.
    """
    if METHODS[method].prompts:
        for key, found in (("compile", wanted.compile is True), ("graph", wanted.graph is True)):
            if found:
                raise RecipeError(
                    f"a step of {method} tuning has a shape of its own each time",
                    where=f"train.{key}",
                    expected="false or auto",
                )
        if method == "prefix" and wanted.recompute not in ("auto", "none"):
            raise RecipeError(
                "transformers forgets a prefix where it computes activations again",
                where="train.recompute",
                expected="none or auto",
            )
    changes: dict[str, Any] = {}
    if not METHODS[method].low_rank and METHODS[method].beside:
        changes |= {key: False for key in ("compile", "graph") if getattr(wanted, key) == "auto"}
    if method == "prefix":
        changes["recompute"] = "none"
    return wanted.model_copy(update=changes)


def may_record(wanted: Train, settings: Settings) -> bool:
    """Whether a step can be a CUDA graph: everything that it touches must stay where it is."""
    fixed = settings.optimizer == "adamw" and not settings.in_backward and settings.recompute != "offload"
    fixed = fixed and not wanted.gradual_unfreezing  # which changes who gets a gradient
    return wanted.graph is not False and settings.device.startswith("cuda") and fixed


def _options(wanted: Train, work: Workload, settings: Settings) -> Iterator[Settings]:
    for level in memory.levels(settings) if wanted.recompute == "auto" else (wanted.recompute,):
        for tokens in micro_candidates(wanted.micro_tokens, settings.micro_tokens, work.longest):
            # With several micro-batches gradients must outlive them, so there is nothing to gain.
            if not (settings.in_backward and work.splits(tokens)):
                plain = replace(settings, recompute=level, micro_tokens=tokens)
                recordable = may_record(wanted, plain)
                if not recordable or wanted.graph == "auto":
                    yield plain
                if recordable:
                    yield replace(plain, graph=True)


def micro_candidates(wanted: int | str, most: int, longest: int) -> list[int]:
    """Tokens at once, from the most down by halves, as long as the longest row fits in."""
    if wanted != "auto":
        return [int(wanted)]
    least = max(longest, min(LEAST_TOKENS, most))
    tokens = [most]
    while tokens[-1] // 2 >= least:
        tokens.append(tokens[-1] // 2)
    return tokens


def _memory(shape: Shape, settings: Settings, work: Workload) -> dict[str, int]:
    tokens, trained = work.at_once(settings.micro_tokens)
    parts = memory.predict(shape, settings, tokens, split=work.splits(settings.micro_tokens), trained=trained)
    if not work.teacher:
        return parts
    total, teacher = parts.pop("total"), _teacher_bytes(settings, work)
    return parts | {"teacher": teacher, "total": total + teacher}


def _teacher_bytes(settings: Settings, work: Workload) -> int:
    """Its weights: bf16 on an accelerator, float32 on the CPU. It leaves nothing for a backward pass."""
    return work.teacher * (2 if settings.device.startswith("cuda") else 4)


def _total(shape: Shape, settings: Settings, work: Workload) -> int:
    return memory.needed(_memory(shape, settings, work))


def _seconds(shape: Shape, settings: Settings, work: Workload) -> float:
    """Seconds a token, on this machine."""
    machine = speed.measure(torch.device(settings.device), settings.precision, shape.hidden, shape.mlp)
    step = max(work.tokens / work.rows * settings.batch_size, 1)
    count = -(-step // settings.micro_tokens)  # micro-batches in a step
    share, span = work.trained / max(work.tokens, 1), work.span or work.tokens / work.rows
    seconds = speed.seconds_per_token(shape, settings, machine, micro=step / count, step=step, share=share, span=span)
    return seconds + 2 * work.teacher / machine.rate


def make_plan(recipe: Recipe, config: PretrainedConfig, model: nn.Module, work: Workload, settings: Settings) -> Plan:
    """The plan of a run. model: the adapted model on the meta device, of which only sizes are read."""
    device, shape, limit = torch.device(settings.device), shape_of(config, model), recipe.train.memory_limit
    parts = _memory(shape, settings, work)
    room = memory.room(device, limit)
    machine = speed.measure(device, settings.precision, shape.hidden, shape.mlp)
    rate = 1 / _seconds(shape, settings, work)
    fits = memory.needed(parts) <= room
    passes = 1.0 if recipe.adapter.method == "head" else settings.steps * settings.batch_size / work.rows
    trained_for = work.tokens * passes / rate
    return Plan(
        model=recipe.model,
        parameters=shape.parameters,
        trained_parameters=shape.trained,
        rows=work.rows,
        tokens_per_epoch=work.tokens,
        trained_tokens_per_epoch=work.trained,
        memory=parts,
        memory_available=memory.memory_available(device),
        memory_limit=limit,
        fits=fits,
        would_fit="" if fits else _what_would_fit(recipe, shape, work, settings, room),
        measured={"rate": machine.rate, "bandwidth": machine.bandwidth},
        tokens_per_second=round(rate, 1),
        seconds=round(trained_for + _answer_seconds(shape, work, rate, machine), 1),
        **asdict(settings),
    )


def _answer_seconds(shape: Shape, work: Workload, rate: float, machine: speed.Machine) -> float:
    """Time of the answers for validation and test: prompts at twice the training rate; each step of decoding reads all weights."""
    reading = 4 * (shape.frozen + shape.trained) / machine.bandwidth
    return work.prompted / (2 * rate) + work.generated / ANSWERS_AT_ONCE * (reading + ANSWER_STEP)


def _what_would_fit(recipe: Recipe, shape: Shape, work: Workload, settings: Settings, room: int) -> str:
    """The first thing to type that makes the plan fit; in words where nothing here would."""

    def fits(tokens: int, **changes: Any) -> bool:
        parts = memory.predict(shape, replace(settings, **changes), tokens, split=True)
        return memory.needed(parts) <= room - _teacher_bytes(settings, work)

    most, _ = work.at_once(settings.micro_tokens)
    if settings.recompute not in ("all", "offload") and fits(most, recompute="all"):
        return "--set train.recompute=all"
    for tokens in range(most // 64 * 64, 0, -64):
        if fits(tokens):
            return f"--set train.micro_tokens={tokens} --set train.max_length={min(tokens, recipe.train.max_length)}"
    if not shape.beside:
        return "--set adapter.method=lora"
    if settings.precision == "bf16" and fits(64, precision="nf4", recompute="all"):
        return "--set train.precision=nf4 --set train.recompute=all"
    return "a smaller model, or a machine with more memory"
