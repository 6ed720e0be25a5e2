"""What a run will need, from shapes alone: parameters, memory by part, tokens, steps and time."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from burnish.progress import as_time
from burnish.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 2**30
HEADROOM = 0.92  # share of the memory that a plan may fill
RUNTIME_BYTES = {"cpu": 0.9 * GIB, "cuda": 0.7 * GIB}  # Python, torch and its kernels, before any tensor
EFFICIENCY = {"cpu": 0.6, "cuda": 0.5}  # share of the measured matrix product rate that a whole step reaches


@dataclass(frozen=True)
class Plan:
    """memory: bytes by part and in total. seconds: training and the answers given meanwhile. would_fit: what to type when it does not."""

    model: str
    device: str
    precision: str
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
    fits: bool
    would_fit: str
    tokens_per_second: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        parts = "".join(f"\n  {name:<16} {size / GIB:7.2f} GiB" for name, size in self.memory.items())
        fit = "it fits" if self.fits else f"it does not fit; what would: {self.would_fit}"
        share = self.trained_parameters / self.parameters
        tokens = f"{self.tokens_per_epoch:,} tokens an epoch, {self.trained_tokens_per_epoch:,} trained"
        schedule = f"{self.batch_size} rows over {self.epochs:g} epochs, learning rate {self.learning_rate:.1e}"
        return (
            f"{self.model} in {self.precision} on {self.device}\n"
            f"  parameters       {self.parameters:,}, trained {self.trained_parameters:,} ({share:.1%})\n"
            f"  data             {self.rows:,} rows, {tokens}\n"
            f"  steps            {self.steps:,} of {schedule}\n"
            f"memory ({self.micro_tokens:,} tokens at once){parts}\n"
            f"  available        {self.memory_available / GIB:7.2f} GiB: {fit}\n"
            f"time               about {as_time(self.seconds)}, at {self.tokens_per_second:,.0f} tokens/s"
        )


@dataclass(frozen=True)
class Workload:
    """What the data asks for: rows to train on, their tokens, and what validation and test will generate."""

    rows: int
    tokens: int
    trained: int
    longest: int
    generated: int
    prompted: int


@dataclass(frozen=True)
class Settings:
    """What `set_up` decided."""

    batch_size: int
    micro_tokens: int
    epochs: float
    steps: int
    learning_rate: float
    precision: str
    device: str


def device_of_choice() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of_choice(wanted: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies it natively, else fp32: emulated bf16 is many times slower."""
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
    """Bytes of the accelerator, or what the machine (or its control group) still has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            free = min(free, int(file.read()))
    except (OSError, KeyError, ValueError):
        pass  # no Linux, or no limit
    return free


def make_plan(recipe: Recipe, config: PretrainedConfig, shape: nn.Module, work: Workload, settings: Settings) -> Plan:
    """The plan of a run. shape: the adapted model on the meta device, of which only sizes are read."""
    device = torch.device(settings.device)
    memory = _memory(config, shape, work, settings)
    available = memory_available(device)
    rate = _tokens_per_second(config, shape, work, settings)
    answering = _answer_seconds(shape, work, rate)
    fits = memory["total"] <= HEADROOM * available
    return Plan(
        model=recipe.model,
        device=settings.device,
        precision=settings.precision,
        parameters=sum(p.numel() for name, p in shape.named_parameters() if "lora_" not in name),
        trained_parameters=sum(p.numel() for p in shape.parameters() if p.requires_grad),
        rows=work.rows,
        tokens_per_epoch=work.tokens,
        trained_tokens_per_epoch=work.trained,
        batch_size=settings.batch_size,
        micro_tokens=settings.micro_tokens,
        epochs=settings.epochs,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        memory=memory,
        memory_available=available,
        fits=fits,
        would_fit="" if fits else _what_would_fit(recipe, settings, memory, HEADROOM * available),
        tokens_per_second=round(rate, 1),
        seconds=round(work.tokens * settings.steps * settings.batch_size / work.rows / rate + answering, 1),
    )


def _memory(config: PretrainedConfig, shape: nn.Module, work: Workload, settings: Settings) -> dict[str, int]:
    text = config.get_text_config()
    half = settings.precision == "bf16"
    trained = sum(p.numel() for p in shape.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in shape.parameters() if not p.requires_grad)
    head = 256 * text.vocab_size * 4 * 3  # a chunk's logits, their exponentials and one copy
    parts = {
        "weights": frozen * (2 if half else 4) + trained * 4,
        "gradients": trained * 4,
        "optimizer": trained * 8,
        "activations": int(max(settings.micro_tokens, work.longest) * _bytes_per_token(text, shape, half)),
        "loss head": head,
        "runtime": int(RUNTIME_BYTES[torch.device(settings.device).type]),
    }
    return parts | {"total": sum(parts.values())}


def _bytes_per_token(text: Any, shape: nn.Module, half: bool) -> float:
    """Activations that the backward pass keeps for a token, over the layers that it walks through.

    In each layer: two norms with their residuals (6 d), queries and attention output (5 q), keys and values (4 kv), the two
    projections of the MLP, their activation and product (5 f).
    """
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    queries, keys = heads * size, (getattr(text, "num_key_value_heads", None) or heads) * size
    numbers = (
        6 * text.hidden_size
        + 5 * queries
        + 4 * keys
        + 5 * (getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    )
    return numbers * (2 if half else 4) * text.num_hidden_layers * _share_walked_back(shape)


def _share_walked_back(shape: nn.Module) -> float:
    """The share of the layers, from the top, down to the lowest with something trained."""
    from burnish.model.adapt import layer_of

    layers = [number for name, _ in shape.named_parameters() if (number := layer_of(name)) is not None]
    trained = [layer_of(name) for name, p in shape.named_parameters() if p.requires_grad]
    lowest = min((number for number in trained if number is not None), default=0)
    below_all = any(number is None for number in trained)  # something outside the layers, such as the embeddings
    count = max(layers, default=0) + 1
    return 1.0 if below_all else (count - lowest) / count


def _tokens_per_second(config: PretrainedConfig, shape: nn.Module, work: Workload, settings: Settings) -> float:
    """From the operations of a token and the matrix product rate of this machine, measured here and now.

    Forward 2N, backward 2N over the layers it walks through and 2N more for the weights where they are trained; the head on trained
    tokens alone, 4 V d each.
    """
    text = config.get_text_config()
    linear = sum(
        p.numel()
        for name, p in shape.named_parameters()
        if p.dim() == 2 and "embed" not in name and "lm_head" not in name
    )
    trained = sum(p.numel() for p in shape.parameters() if p.requires_grad)
    share = work.trained / max(work.tokens, 1)
    operations = (
        2 * linear * (1 + _share_walked_back(shape)) + 2 * trained + 4 * text.vocab_size * text.hidden_size * share
    )
    device = torch.device(settings.device)
    return EFFICIENCY[device.type] * measured_rate(device, settings.precision) / operations


def measured_rate(device: torch.device, precision: str, seconds: float = 0.5) -> float:
    """Operations a second of a matrix product of a layer's shape."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, inner, columns = (8192, 4096, 4096) if device.type == "cuda" else (1024, 576, 1536)
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(columns, inner, device=device, dtype=dtype)

    def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            nn.functional.linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    run(3)
    times = max(1, int(seconds / max(run(3) / 3, 1e-6)))
    return 2 * rows * inner * columns * times / run(times)


def _answer_seconds(shape: nn.Module, work: Workload, rate: float) -> float:
    """Time of the answers generated for validation and test: prompts at twice the training rate, tokens in batches of 16."""
    weights = sum(p.numel() for p in shape.parameters()) * 4
    return work.prompted / (2 * rate) + work.generated / 16 * (weights / 8e9 + 0.03)


def _what_would_fit(recipe: Recipe, settings: Settings, memory: dict[str, int], room: float) -> str:
    """The first thing to type that makes the plan fit; in words where nothing here would."""
    fixed = memory["total"] - memory["activations"]
    if fixed < room:
        tokens = int(settings.micro_tokens * (room - fixed) / memory["activations"])
        if tokens >= 64:
            return f"--set train.micro_tokens={tokens} --set train.max_length={min(tokens, recipe.train.max_length)}"
    if recipe.adapter.method == "full":
        return "--set adapter.method=lora"
    return "a smaller model, or a machine with more memory"
