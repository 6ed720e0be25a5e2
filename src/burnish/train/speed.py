"""How long a step takes, from its operations and passes over memory, and from what this machine was measured to do."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from burnish.model.fp8 import multiplies
from burnish.train.memory import Settings, level_of, token_bytes
from burnish.train.shape import Shape

# Share of the measured rate that the products of a whole step reach, and passes over the activations of a layer beside the products.
# On one H100 the two give 8B and 1B in bf16 and fp8 to within 3%; on the CPU the passes are in the share.
EFFICIENCY = {"cpu": 0.6, "cuda": 0.9}
PASSES = {"cpu": 0.0, "cuda": 14.0}
# Seconds of the host for a layer of a micro-batch, forward and back, by whether layers are compiled: the card waits for them.
HOST_SECONDS = {("cuda", True): 4e-3, ("cuda", False): 4.5e-3, ("cpu", True): 0.0, ("cpu", False): 0.0}
# The same of a layer of a recorded one, however few its tokens are: its kernels wait for each other. On one H100, SmolLM2-135M.
RECORDED_SECONDS = {True: 2.5e-4, False: 9e-4}
UNPACK_BYTES = 2.5  # memory traffic of a 4-bit weight each time that it is unpacked
OPTIMIZER_BYTES = {"adamw": 28, "adamw8bit": 16}  # memory traffic of a parameter's update
LINK = 2.5e10  # bytes a second between an accelerator and the host
MEASURE_SECONDS = 0.3  # of each measurement


@dataclass(frozen=True)
class Machine:
    """Measured here. rate: operations a second of a matrix product at the run's precision; plain: in bf16 or fp32, whatever the weights
    are stored as. bandwidth: bytes a second, read and written.
    """

    rate: float
    plain: float
    bandwidth: float


@functools.cache
def measure(device: torch.device, precision: str, inner: int, outer: int) -> Machine:
    """A few seconds at the most, once in a process. inner, outer: sides of a layer's matrix."""
    half = "fp32" if precision == "fp32" else "bf16"
    plain = measured_rate(device, half, inner=inner, outer=outer)
    stored = "fp8" if precision == "nf4" and multiplies(device) else precision  # 4 bits are unpacked to what is fastest
    rate = measured_rate(device, stored, inner=inner, outer=outer) if stored == "fp8" else plain
    return Machine(rate, plain, measured_bandwidth(device))


def measured_rate(
    device: torch.device,
    precision: str,
    seconds: float = MEASURE_SECONDS,
    *,
    inner: int | None = None,
    outer: int | None = None,
) -> float:
    """Operations a second of a matrix product of a layer's shape."""
    rows, side, other = (8192, 4096, 4096) if device.type == "cuda" else (1024, 576, 1536)
    inner, outer = (16 * -(-size // 16) for size in (inner or side, outer or other))  # fp8 wants multiples of 16
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(outer, inner, device=device, dtype=dtype)
    product: Callable[[], object] = lambda: nn.functional.linear(a, b)  # noqa: E731
    if precision == "fp8":
        ones = (torch.ones(rows, 1, device=device), torch.ones(1, outer, device=device))  # a scale for each row
        low_a, low_b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T
        product = lambda: torch._scaled_mm(low_a, low_b, *ones, out_dtype=dtype, use_fast_accum=True)  # noqa: E731
    return 2 * rows * inner * outer / _seconds_of(product, device, seconds)


def measured_bandwidth(device: torch.device, seconds: float = MEASURE_SECONDS) -> float:
    """Bytes a second that a copy reads and writes; of more than any cache holds."""
    source = torch.zeros(2**26 if device.type == "cuda" else 2**25, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds_of(lambda: target.copy_(source), device, seconds)


def _seconds_of(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """How long the work takes once, from as many times as fit into `seconds`."""

    def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    run(3)
    times = max(1, int(seconds / max(run(3) / 3, 1e-6)))
    return run(times) / times


def seconds_per_token(
    shape: Shape, settings: Settings, machine: Machine, *, micro: float, step: float, share: float, span: float
) -> float:
    """Of training. micro, step: tokens in a micro-batch and in a step. share: of the tokens that are trained.

    span: the tokens that a token attends to at the most, on average: sum of squared lengths over sum of lengths.
    """
    device = torch.device(settings.device).type
    linear, other = operations(shape, settings, share=share, span=span)
    products = (linear / machine.rate + other / machine.plain) / EFFICIENCY[device]
    layer = sum(size for name, size in token_bytes(shape, settings).items() if name != "layer input")
    passes = PASSES[device] * layer * shape.layers * (1 + shape.walked) / 2 / machine.bandwidth
    unpacking = (
        (1 + shape.walked) * UNPACK_BYTES * shape.matrices / machine.bandwidth if settings.precision == "nf4" else 0
    )
    moved = 2 * 2 * shape.hidden * shape.layers / LINK if settings.recompute == "offload" else 0  # there and back
    busy = (products + passes + moved) * micro + unpacking
    least = RECORDED_SECONDS[settings.compile] if settings.graph else HOST_SECONDS[device, settings.compile]
    waiting = least * shape.layers
    updating = OPTIMIZER_BYTES[settings.optimizer] * shape.trained / machine.bandwidth
    return max(busy, waiting) / micro + (updating if device == "cuda" else 0) / step


def operations(shape: Shape, settings: Settings, *, share: float, span: float) -> tuple[float, float]:
    """Operations of a token in (linear maps of the layers, all else): the first are the ones that fp8 makes faster.

    Forward 2 a weight, as many for the slopes of the inputs of the layers that are walked back, and for the weights that are trained.
    Attention sees half of its span: 2 forward, 5 back, since its own backward pass computes the scores again. The head meets trained
    tokens alone.
    """
    linear = 2 * shape.met * (1 + shape.walked)
    attention = shape.queries * shape.layers * span
    level, projected = level_of(settings), shape.queries * shape.hidden * shape.layers
    whole = level in ("all", "offload")
    again = {"none": 0.0, "elementwise": 0.0, "mlp": projected + shape.gated}.get(level, shape.met)
    repeated = 2 * attention * shape.walked if whole else 0
    head = (6 if shape.head_trained else 4) * shape.vocabulary * shape.hidden * share
    adapters = (6 if shape.beside else 2) * shape.met_trained
    other = attention * (2 + 5 * shape.walked) + repeated + head + adapters
    return linear + 2 * again * shape.walked, other
