"""What a step needs of the memory, byte by byte from the shapes of the model, and what the machine has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from burnish.errors import RecipeError
from burnish.methods import METHODS
from burnish.model.fast import BUDGETS, EAGER
from burnish.model.fp8 import multiplies
from burnish.model.head import KEPT_BYTES, LOGITS
from burnish.model.quantize import has_bitsandbytes, without_bitsandbytes
from burnish.train.shape import Shape

GIB = 2**30
HEADROOM = 0.92  # share of the memory that a step may fill: the allocator's own gaps need the rest
# Python, torch and its kernels. On an accelerator only what its allocator counts: the workspaces of the products, and those
# that recorded passes and updates have of their own.
RUNTIME_BYTES = {"cpu": 0.9 * GIB, "cuda": 0.1 * GIB}
RECORDED_BYTES = 2 * 2**25
RECOMPUTE = tuple(BUDGETS)  # from the fastest to the leanest

# What the backward pass keeps for each token and layer, by the level of recomputation.
KEPT = {
    "none": ("norm inputs", "normed", "attention", "gate and up", "product", "adapters"),
    "elementwise": ("norm inputs", "attention", "gate and up", "adapters"),
    "mlp": ("layer input", "attention", "adapters"),
    "all": ("layer input",),
    "offload": (),
}
# What exists beside that while one layer is walked back: what has to be computed again, and the slopes of the MLP's tensors.
AGAIN = {
    "none": (),
    "elementwise": ("normed", "product"),
    "mlp": ("norm inputs", "normed", "gate and up", "product"),
    "all": KEPT["none"],
    "offload": ("layer input", "layer input", *KEPT["none"]),  # one layer's input comes while the one before it is used
}


@dataclass(frozen=True)
class Settings:
    """What was decided of a run.

    micro_tokens: tokens that go through the net at once. recompute: one of RECOMPUTE. optimizer: adamw or adamw8bit.
    in_backward: whether each parameter is updated within the backward pass, so that its gradient can go at once. graph: whether passes
    and updates are recorded as CUDA graphs, for models whose kernels the host cannot launch as fast as they run. one_row: whether a
    micro-batch is a single packed row, which attention by edges allows; else rows are as long as the longest sequence may be.
    average: whether an average of the trained weights stands beside them.
    recomputable: whether activations may be computed again at all.
    """

    batch_size: int
    micro_tokens: int
    epochs: float
    steps: int
    learning_rate: float
    precision: str
    device: str
    recompute: str = "none"
    optimizer: str = "adamw"
    compile: bool = False
    in_backward: bool = False
    graph: bool = False
    one_row: bool = False
    average: bool = False
    recomputable: bool = True


def device_of_choice() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of_choice(wanted: str, device: torch.device, method: str = "lora") -> str:
    """`auto` is bf16 where the hardware multiplies it natively, else fp32: emulated bf16 is many times slower.

    method: the adapter's. Raises RecipeError for fp8 and nf4 where they cannot be: both store weights that are not trained, and only the
    products of those that are can be done in fp8.
    """
    if wanted == "fp8" and not multiplies(device):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        expected = "a card of compute capability 8.9 or above (Ada, Hopper or newer)"
        raise RecipeError(
            f"{name} multiplies no fp8", where="train.precision", expected=expected, hint="--set train.precision=bf16"
        )
    if wanted == "nf4" and not has_bitsandbytes():
        raise without_bitsandbytes("nf4", "train.precision", otherwise="bf16")
    rounds = METHODS[method].low_rank or (wanted, method) == ("fp8", "full")
    if wanted in ("fp8", "nf4") and not rounds:
        beside = METHODS[method].beside
        raise RecipeError(
            f"{method} cannot stand on weights stored as {wanted}"
            if beside
            else f"weights stored as {wanted} cannot be trained",
            where="train.precision",
            expected=f"one of these methods: {', '.join(name for name, one in METHODS.items() if one.low_rank)}"
            if beside
            else "an adapter on a frozen base",
            hint="--set adapter.method=lora   or --set train.precision=bf16",
        )
    if method == "loftq" and wanted != "nf4":
        raise RecipeError(
            "loftq begins with what 4 bits take from the weights, and these keep theirs",
            where="train.precision",
            expected="nf4",
            hint="--set train.precision=nf4   or --set adapter.method=lora",
        )
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu.get_capabilities()  # oneDNN's own answer is yes wherever there is AVX-512, emulated or not
    native = any(capable.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if native and torch.backends.mkldnn.is_available() else "fp32"


def micro_tokens_of_choice(wanted: int | str, device: torch.device, max_length: int) -> int:
    """Tokens through the net at once: enough to keep the hardware busy, few enough to keep activations small."""
    if wanted != "auto":
        return int(wanted)
    return max(max_length, 16384) if device.type == "cuda" else 1024


def memory_available(device: torch.device) -> int:
    """Bytes that are free on the accelerator, or on the machine (or its control group), and those that this process holds already."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    page = os.sysconf("SC_PAGE_SIZE")
    free, held = page * os.sysconf("SC_AVPHYS_PAGES"), 0
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            held = page * int(file.read().split()[1])
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            free = min(free, int(file.read()))
    except (OSError, KeyError, ValueError):
        pass  # no Linux, or no limit
    return free + held


def room(device: torch.device, limit: float | None) -> int:
    """Bytes that a step may fill. limit: GiB that the recipe allows at the most; predictions may be 3% under what is measured."""
    free = HEADROOM * memory_available(device)
    return int(min(free, 0.97 * limit * GIB) if limit else free)


def hold_to(limit: float | None, device: torch.device) -> None:
    """Let the accelerator's allocator refuse what is above the limit (GiB), so that the ladder steps down before it is passed.

    Without a limit, one that an earlier run of the same process had is lifted.
    """
    if device.type == "cuda":
        share = limit * GIB / torch.cuda.get_device_properties(device).total_memory if limit else 1.0
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def levels(settings: Settings) -> tuple[str, ...]:
    """The levels of recomputation that there are, from the fastest to the leanest."""
    if not settings.recomputable:
        return ("none",)
    known = [level for level in RECOMPUTE if settings.compile or level not in EAGER]
    return tuple(level for level in known if level != "offload" or torch.device(settings.device).type != "cpu")


def predict(
    shape: Shape, settings: Settings, tokens: int, *, split: bool, trained: int | None = None
) -> dict[str, int]:
    """Bytes at the peak of a step, by part and in `total`.

    tokens: of its largest micro-batch, padding with them; trained: how many of them are trained, all where it is None. split: whether a
    step has several micro-batches, so that gradients outlive them.
    On an accelerator `total` stands for torch.cuda.max_memory_allocated, on the CPU for the resident size. `recordings`, beside it, is
    what the pool of CUDA graphs keeps of the card though nothing is allocated there any more: activations of steps of every shape.
    """
    device = torch.device(settings.device).type
    kept = int(tokens * kept_bytes(shape, settings))
    moments = moments_of(shape, settings, kept, tokens, tokens if trained is None else trained, split=split)
    gradients, activations, beside = max(moments, key=sum)
    parts = {
        "weights": int(weight_bytes(shape, settings)),
        "gradients": gradients,
        "optimizer": shape.trained * (8 if settings.optimizer == "adamw" else 2),
        "activations": activations,
        "one layer or head": beside + int(scratch_bytes(shape, settings)),
        "runtime": int(RUNTIME_BYTES[device]) + (RECORDED_BYTES if settings.graph else 0),
    }
    if settings.average:
        parts["average"] = shape.trained * 4
    total = sum(parts.values())
    return parts | {"total": total} | ({"recordings": kept} if settings.graph else {})


def needed(parts: Mapping[str, int]) -> int:
    """Bytes that must be free for what `predict` gave: the peak, and what recordings hold in reserve beside it."""
    return parts["total"] + parts.get("recordings", 0)


def weight_bytes(shape: Shape, settings: Settings) -> float:
    """Frozen weights as they are stored, trained ones in float32; and the copies of the latter that products read."""
    plain = 4 if settings.precision == "fp32" or not shape.beside else 2
    stored = {"fp8": 1 + 4 / shape.hidden, "nf4": 0.5 + 1 / 64 + 1 / 4096}.get(settings.precision, plain)
    number = {"fp32": 0, "fp8": 2 if shape.beside else 1}.get(settings.precision, 2)
    copies = number * (shape.trained - shape.outside)
    if settings.compile and settings.recompute in ("all", "offload"):
        copies = number * trained_in_layer(shape)  # made within a layer, and gone with it
    return shape.matrices * stored + (shape.frozen - shape.matrices) * plain + shape.trained * 4 + copies


def moments_of(
    shape: Shape, settings: Settings, kept: int, tokens: int, trained: int, *, split: bool
) -> list[tuple[int, int, int]]:
    """(gradients, activations, what is there beside them) in bytes, at each moment of a step that may be its peak.

    kept: bytes of all activations. Gradients are float32. Within a single backward pass they come as activations go, the head's
    first; those of an earlier micro-batch are there from the beginning. Recorded passes bring theirs to where they stay for good at the
    end. An update within the backward pass lets each go at once, but for weights that head and embeddings share: these have one from
    the head on, and a second for a moment at the end.
    """
    head = 4 * shape.vocabulary * shape.hidden if shape.head_trained else 0
    shared = head if shape.tied else 0
    all_of_them, stays = 4 * shape.trained, head
    if settings.graph:
        plain = moments_of(shape, replace(settings, graph=False), kept, tokens, trained, split=False)
        return [(all_of_them + fresh, activations, beside) for fresh, activations, beside in plain]
    if settings.in_backward and not split:
        all_of_them, stays = 4 * max(shape.layer, shape.outside), shared
    earlier = all_of_them if split else 0
    layer = int(tokens * layer_bytes(shape, settings))
    return [
        (earlier, kept, head_bytes(shape, settings, trained)),
        (earlier + head, kept, head_slope_bytes(shape, settings, trained)),
        (max(earlier, stays) + 4 * trained_in_layer(shape), kept, layer),
        (all_of_them, kept // walked_layers(shape), layer),
        (all_of_them + shared, 0, 0),
    ]


def trained_in_layer(shape: Shape) -> int:
    """Parameters that are trained in one of the layers that are walked back, on average."""
    return (shape.trained - shape.outside) // walked_layers(shape)


def walked_layers(shape: Shape) -> int:
    return max(1, round(shape.layers * shape.walked))


def head_bytes(shape: Shape, settings: Settings, trained: int) -> int:
    """What the vocabulary head takes forwards: logits of a chunk, which become their slopes; if trained, a copy of itself and all slopes.

    Logits that are bent are there in float32 as well, with what autograd keeps of them and with their slopes. On the CPU a chunk is small,
    and counted as three times its logits in float32.
    """
    device, number = torch.device(settings.device).type, number_bytes(settings)
    chunk = min(LOGITS[device], trained * shape.vocabulary) * (12 if device == "cpu" else number + 20 * shape.bent)
    if not shape.head_trained:
        return chunk
    return (_kept_slopes(shape, settings, trained) or chunk) + number * shape.vocabulary * shape.hidden


def head_slope_bytes(shape: Shape, settings: Settings, trained: int) -> int:
    """What it takes backwards, beside its gradient: the slopes, and the product of a chunk that is added to the gradient."""
    if not shape.head_trained:
        return 0
    return _kept_slopes(shape, settings, trained) + number_bytes(settings) * shape.vocabulary * shape.hidden


def _kept_slopes(shape: Shape, settings: Settings, trained: int) -> int:
    slopes = trained * shape.vocabulary * number_bytes(settings)
    return slopes if slopes <= KEPT_BYTES[torch.device(settings.device).type] else 0


def kept_bytes(shape: Shape, settings: Settings) -> float:
    """Activations that a token leaves for the backward pass, over the layers that it walks through, and around the decoder."""
    table, level = token_bytes(shape, settings), level_of(settings)
    layer = sum(table[name] for name in KEPT[level])
    around = 4 * shape.hidden * number_bytes(settings)  # the last norm, the head's input and its slope
    return layer * shape.layers * shape.walked + around


def layer_bytes(shape: Shape, settings: Settings) -> float:
    """What one layer takes for a token while it is walked back, beside what it kept."""
    table = token_bytes(shape, settings)
    slopes = (3 * shape.mlp + 2 * shape.hidden) * number_bytes(settings)
    return slopes + sum(table[name] for name in AGAIN[level_of(settings)])


def token_bytes(shape: Shape, settings: Settings) -> dict[str, float]:
    """Bytes of each tensor that a layer makes of a token.

    Trained weights under autocast leave the stream between the layers in float32; so do the norms of layers that are not compiled, and
    these also keep the activation of the gate. Not compiled under autocast, each linear map casts its input for itself, and a norm keeps
    what its trained weight is multiplied with.
    """
    number = number_bytes(settings)
    stream = 4 if not shape.beside or not settings.compile else number
    copied = shape.copies or 1
    normed = (1 + copied) * number
    if not shape.beside and not settings.compile and number < 4:
        normed = (3 + 2 * copied) * number + shape.norms * 4
    return {
        "layer input": shape.hidden * (4 if not shape.beside else number),
        "norm inputs": shape.norms * shape.hidden * stream,
        "normed": normed * shape.hidden,
        "attention": 2 * (shape.queries + shape.keys) * number + 4 * shape.heads,
        "gate and up": 2 * shape.mlp * number,
        "product": (shape.mlp * (1 if settings.compile else 2) + shape.hidden * shape.copies) * number,
        "adapters": shape.ranks * number,
    }


def scratch_bytes(shape: Shape, settings: Settings) -> float:
    """Room for the largest matrix as a product reads it: turned, in fp8; unpacked from nf4 and turned, with some to spare."""
    return {"nf4": 4, "fp8": 1}.get(settings.precision, 0) * shape.largest


def level_of(settings: Settings) -> str:
    """The level of recomputation that is really had; without a compiler the ones in between are the one below or above."""
    return settings.recompute if settings.compile else EAGER.get(settings.recompute, settings.recompute)


def number_bytes(settings: Settings) -> int:
    return 4 if settings.precision == "fp32" else 2
