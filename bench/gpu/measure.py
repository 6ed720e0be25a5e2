"""Clock and statistics of one arm. What is timed is whole steps: from the end of one, with the card idle, to the end of the next."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from work import RATE, SHAPES, Document, Work, least_seconds, model_flops

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "trl",
    "unsloth",
    "unsloth_zoo",
    "liger_kernel",
    "bitsandbytes",
    "xformers",
    "flash_attn_4",
)
SHOWN = 3  # first steps whose loss and gradient norm are kept
MARK = "RESULT "


class Clock:
    """Ends of steps, in seconds since `begin`, each taken when the card had finished everything."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.began = 0.0

    def begin(self) -> None:
        """Training begins: what loading took is not its memory."""
        if on_card():
            import torch

            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.began = time.perf_counter()

    def end_step(self) -> None:
        if on_card():
            import torch

            torch.cuda.synchronize()
        self.ends.append(time.perf_counter() - self.began)

    def note(self, loss: float, norm: float) -> None:
        if len(self.losses) < SHOWN:
            self.losses.append(float(loss))
            self.norms.append(float(norm))

    @property
    def seconds(self) -> list[float]:
        """The time of each step, the first with all that was compiled in it."""
        return [end - start for start, end in zip([0.0, *self.ends], self.ends, strict=False)]


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Within the block the card is this arm's alone. Arms that were started together get ready side by side, and then go in order.

    $BURNISH_BENCH_TURN is a folder and this arm's number in it; run.py puts the number of arms and a deadline into the folder, and says
    there which arms have ended.
    """
    if not (told := os.environ.get("BURNISH_BENCH_TURN")):
        yield
        return
    name, _, number = told.rpartition("#")
    folder = Path(name)
    arms, deadline = json.loads((folder / "all").read_text())
    (folder / f"ready-{number}").touch()
    while len(list(folder.glob("ready-*"))) < arms and time.time() < deadline:
        time.sleep(0.2)
    while not all((folder / f"ended-{before}").exists() for before in range(int(number))):
        time.sleep(0.1)
    yield


def on_card() -> bool:
    import torch

    return torch.cuda.is_available()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, between neighbours in a straight line."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summary(
    work: Work, steps: list[list[Document]], clock: Clock, warmup: int, *, four_bit: bool = False
) -> dict[str, Any]:
    """The numbers of one run. Rates are sums over sums: the timed steps' tokens over their time, never a mean of rates."""
    shape = SHAPES[work.shape]
    seconds, timed = clock.seconds[warmup:], steps[warmup : len(clock.ends)]
    if not seconds:
        raise RuntimeError(f"only {len(clock.ends)} steps were taken: none after the {warmup} to warm up")
    total = sum(seconds)
    tokens = sum(len(document.ids) for step in timed for document in step)
    trained = sum(document.trained for step in timed for document in step)
    return {
        "tokens_per_second": tokens / total,
        "trained_per_second": trained / total,
        "step_ms": [1000 * percentile(seconds, share) for share in (0.1, 0.5, 0.9)],
        "of_rate": sum(model_flops(shape, step, work.method) for step in timed) / total / RATE,
        "of_floor": sum(least_seconds(shape, step, work.method, four_bit=four_bit) for step in timed) / total,
        "losses": clock.losses,
        "gradient_norms": clock.norms,
        "first_step_seconds": clock.seconds[0],
        "seconds": [round(second, 5) for second in clock.seconds],
        "tokens": [sum(len(document.ids) for document in step) for step in steps[: len(clock.ends)]],
        "trained": [sum(document.trained for document in step) for step in steps[: len(clock.ends)]],
        **_memory(),
    }


def _memory() -> dict[str, float | None]:
    if not on_card():
        return {"peak_gib": None, "reserved_gib": None}
    import torch

    return {
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


def machine() -> dict[str, Any]:
    """The card and the versions that an arm ran with."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"card": torch.cuda.get_device_name() if on_card() else "CPU", "versions": versions}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def say(run: Callable[[], dict[str, Any]], began: float) -> int:
    """Run an arm and print its one line of JSON, its error where it failed. Returns the exit code."""
    try:
        result, code = run(), 0
    except BaseException as error:  # an arm that ends in any way has still to say so
        traceback.print_exc()
        result, code = {"error": plain(f"{type(error).__name__}: {error}")}, 1
    try:
        result |= machine()
    except Exception as error:
        result.setdefault("error", plain(f"{type(error).__name__}: {error}"))
    result["total_seconds"] = time.time() - began
    sys.stdout.flush()
    print(f"\n{MARK}{json.dumps(result)}", flush=True)
    return code


def plain(text: str, most: int = 400) -> str:
    """An error without colours and without the folders of the machine it happened on."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"(?<![\w:/])/(?:[\w.+@~-]+/)+", "", text)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
