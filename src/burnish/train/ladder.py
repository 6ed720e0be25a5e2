"""The ladder: what is given up, one rung after another, when the memory is not enough after all.

First what leaves the result alone: smaller micro-batches, of which a step then has more, and activations that are computed again.
Then what rounds: the optimiser's moments in 8 bits, and the frozen weights in 4. The rows of a step are the same on every rung.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from burnish.core import GRAIN
from burnish.data.feed import Feed
from burnish.errors import TrainingError
from burnish.model.fast import accelerate
from burnish.model.net import Net
from burnish.model.quantize import has_bitsandbytes, quantize
from burnish.train.memory import RECOMPUTE, Settings, levels
from burnish.train.optim import Optim
from burnish.train.replay import Replayed


class Ladder:
    """Stands on the rung that `settings` say, and steps down. taken: a sentence for each step down.

    feed, optim: what follows the settings, beside the net. low_rank: whether the base is frozen, so that it can be stored in 4 bits.
    """

    def __init__(
        self,
        net: Net,
        settings: Settings,
        feed: Feed,
        *,
        low_rank: bool,
        optim: Optim | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.net, self.settings, self.feed, self.low_rank = net, settings, feed, low_rank
        self.optim, self.say = optim, say
        self.taken: list[str] = []
        self.passes: Replayed | None = None  # recordings to let go of

    def down(self, place: str, tokens: int) -> None:
        """One rung down. place: where it happened, such as "step 3". tokens: of the largest micro-batch that did not fit.

        Raises TrainingError on the last rung.
        """
        found = next_rung(self.settings, tokens=tokens, longest=self.feed.longest, low_rank=self.low_rank)
        if found is None:
            tried = "; ".join(self.taken) or "there was nothing to give up"
            raise TrainingError(
                f"the memory is not enough for {tokens} tokens at once",
                where=place,
                expected=f"a smaller model or shorter rows; what was tried: {tried}",
                hint=f"--set train.max_length={max(16, self.feed.longest // 2)}   or burnish plan RECIPE",
            )
        settings, what = found
        self.move_to(settings)
        self.taken.append(f"{place}: {what}")
        self.say(f"! the memory was not enough at {self.taken[-1]}")

    def move_to(self, settings: Settings) -> None:
        """Bring net, feed and optimiser to these settings, of which batch, schedule and device stay as they are."""
        before, self.settings = self.settings, settings
        self.feed.micro_tokens = settings.micro_tokens
        if self.passes and not settings.graph:
            self.passes.forget("the memory was not enough")
        if self.optim and (settings.optimizer != before.optimizer or settings.graph != before.graph):
            self.optim.use(settings.optimizer)  # which records nothing from here on
        if settings.recompute != before.recompute:
            accelerate(self.net, compile=settings.compile, recompute=settings.recompute)
        if settings.precision != before.precision:
            quantize(self.net.model, "nf4")
            self.net.precision = settings.precision

    def state_dict(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the rung that a run had reached."""
        self.move_to(Settings(**state["settings"]))
        self.taken = list(state["taken"])


def next_rung(settings: Settings, *, tokens: int, longest: int, low_rank: bool) -> tuple[Settings, str] | None:
    """The settings one rung down and what changes, in words; None where there is no further rung.

    tokens: of the largest micro-batch that did not fit. longest: of the longest group, which cannot be split.
    """
    if settings.graph:
        return replace(settings, graph=False), "steps are not recorded as CUDA graphs (train.graph=false)"
    micro = max(longest, min(settings.micro_tokens, tokens) // 2, GRAIN)  # rows are padded to multiples of the last
    # An update within the backward pass is worth its while only as long as a step is one micro-batch.
    if micro < min(settings.micro_tokens, tokens) and not settings.in_backward:
        return replace(settings, micro_tokens=micro), f"{micro} tokens go through at once (train.micro_tokens={micro})"
    place = RECOMPUTE.index(settings.recompute)
    if leaner := [level for level in levels(settings) if RECOMPUTE.index(level) > place]:
        what = f"more activations are computed again (train.recompute={leaner[0]})"
        return replace(settings, recompute=leaner[0]), what
    if settings.optimizer == "adamw" and has_bitsandbytes():
        return replace(settings, optimizer="adamw8bit"), "Adam's moments have 8 bits (train.optimizer=adamw8bit)"
    # Not from fp32: the products of 4 bits are those of bf16, and a run that goes on from here loads the rest of its weights so.
    if settings.precision == "bf16" and low_rank and settings.device != "cpu" and has_bitsandbytes():
        return replace(settings, precision="nf4"), "the frozen weights have 4 bits (train.precision=nf4)"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: each allocator, and each library on top of it, has its own way to say so."""
    said = str(error).lower()
    known = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in said for text in known)


def release() -> None:
    """Give back what nobody holds any more. To be called outside of the `except` block: an error holds on to its frames' tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
