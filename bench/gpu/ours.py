"""One arm of burnish: python ours.py WORK ARM, with what run.py adds. Prints one line of JSON.

The model, the adapter, the net, the optimiser and the loop are those of `burnish run`; only the documents come from work.py.
"""

from __future__ import annotations

import time

BEGAN = time.time()

import os  # noqa: E402
import sys  # noqa: E402
from dataclasses import replace  # noqa: E402
from typing import Any  # noqa: E402

from measure import Clock, on_card, say, summary, turn  # noqa: E402
from options import Asked, asked  # noqa: E402
from work import LORA_ALPHA, LORA_RANK, SHAPES, Document, Work, random_model  # noqa: E402


def adapter_of(method: str) -> Any:
    from burnish.recipe import Adapter

    return Adapter(method="full") if method == "full" else Adapter(rank=LORA_RANK, alpha=LORA_ALPHA)


def make_net(model: Any, settings: dict[str, Any], method: str) -> Any:
    """burnish's own steps from a model to a net that trains, as its pipeline takes them."""
    from burnish.model.adapt import adapt
    from burnish.model.fast import accelerate
    from burnish.model.net import Net
    from burnish.model.quantize import quantize
    from burnish.recipe import Freeze

    adapted = adapt(model, adapter_of(method), Freeze())
    if settings["precision"] in ("fp8", "nf4"):
        quantize(adapted, settings["precision"])
    net = Net(adapted, precision=settings["precision"])
    accelerate(net, compile=settings["compile"], recompute=settings["recompute"])
    return net


def make_passes(net: Any, settings: dict[str, Any]) -> Any:
    """How a micro-batch goes forwards and backwards: recorded as CUDA graphs, or None for as it is written."""
    if not settings["graph"]:
        return None
    from burnish.model.adapt import trained_parameters
    from burnish.train.replay import Replayed

    return Replayed(net, trained_parameters(net.model).values())


def make_optimizer(net: Any, settings: dict[str, Any], total: int) -> Any:
    from burnish.model.adapt import trained_parameters
    from burnish.train.optim import Optim

    return Optim(
        trained_parameters(net.model),
        learning_rate=1e-4,
        total=total,
        warmup=0.0,
        kind=settings["optimizer"],
        in_backward=settings["in_backward"],
    )


def make_feed(work: Work, steps: list[list[Document]], settings: dict[str, Any]) -> Any:
    """burnish's feed, which packs, over the given documents in the given order."""
    from burnish.core import Seq
    from burnish.data.feed import Feed

    class InOrder(Feed):
        def _order(self, step: int) -> list[int]:
            return list(range(step * work.documents, (step + 1) * work.documents))

    groups = [
        [Seq(document.ids, _weights(document), where=f"step {number}")]
        for number, step in enumerate(steps)
        for document in step
    ]
    return InOrder(
        groups,
        task="sft",
        batch_size=work.documents,
        epochs=1,
        # Where attention goes by edges, all documents of a micro-batch are one row, as `burnish run` has it.
        row_tokens=settings["row_tokens"]
        or (None if on_card() else max(len(one.ids) for step in steps for one in step)),
        micro_tokens=settings["micro_tokens"],
        seed=0,
    )


def _weights(document: Document) -> list[float]:
    return [0.0] * document.prompt + [1.0] * (len(document.ids) - document.prompt)


def get_ready(order: Asked) -> None:
    """Import and compile, on a model of two layers and short documents, what the run will need: the disk keeps it for the real one."""
    if not os.environ.get("BURNISH_BENCH_TURN"):
        return
    import gc

    import torch

    from burnish.objectives.sft import Sft
    from burnish.train.loop import backward

    work, settings = order.work, order.arm.settings
    net = make_net(model_of(replace(SHAPES[work.shape], layers=2), work.method), settings, work.method)
    short = [replace(document, ids=document.ids[:256], prompt=0) for document in order.documents()[0][:4]]
    feed = make_feed(replace(work, documents=len(short)), [short], settings)
    optim = make_optimizer(net, settings, 10)
    for micro in feed:
        for _ in range(2):
            backward(net, {"sft": (Sft(), 1.0)}, micro, optim)
            optim.step()
            optim.zero_grad()
    del net, optim
    gc.collect()
    if on_card():
        torch.cuda.empty_cache()


def predicted_gib(model: Any, feed: Any, settings: dict[str, Any], method: str) -> float:
    """What the planner says of the largest micro-batch of the feed. model: only its configuration is read."""
    import torch

    from burnish.model.adapt import adapt
    from burnish.recipe import Freeze
    from burnish.train.memory import GIB, Settings, predict
    from burnish.train.shape import shape_of

    with torch.device("meta"):
        empty = adapt(type(model)(model.config), adapter_of(method), Freeze())
    known = {name: value for name, value in settings.items() if name != "row_tokens"}
    device = "cuda" if on_card() else "cpu"
    about = Settings(batch_size=0, epochs=1, steps=feed.total_steps, learning_rate=0.0, device=device, **known)
    sizes, split = [], False
    for micro in feed:
        split = split or len(micro) > 1
        sizes += [(batch.ids.numel(), int((batch.weight != 0).sum())) for batch in micro]
    tokens, trained = max(sizes)
    return predict(shape_of(model.config, empty), about, tokens, split=split, trained=trained)["total"] / GIB


def model_of(shape: Any, method: str) -> Any:
    import torch

    # What is trained is float32, as burnish loads it.
    dtype = torch.float32 if method == "full" else torch.bfloat16
    return random_model(shape, "cuda" if on_card() else "cpu", dtype)


def train(order: Asked) -> dict[str, Any]:
    get_ready(order)
    with turn():
        return timed(order)


def timed(order: Asked) -> dict[str, Any]:
    import torch

    from burnish.objectives.sft import Sft
    from burnish.train.loop import fit

    torch.manual_seed(0)
    work, settings = order.work, order.arm.settings
    steps = order.documents()
    model = model_of(SHAPES[work.shape], work.method)
    predicted = predicted_gib(model, make_feed(work, steps, settings), settings, work.method)
    net = make_net(model, settings, work.method)
    del model
    feed = make_feed(work, steps, settings)
    optim, passes = make_optimizer(net, settings, feed.total_steps), make_passes(net, settings)
    clock = Clock()

    class Watch:
        def after(self, step: Any) -> None:
            clock.end_step()
            clock.note(step.loss, step.gradient_norm)

    loaded = time.time() - BEGAN
    clock.begin()
    fit(net, {"sft": (Sft(), 1.0)}, feed, optim, [Watch()], passes=passes)
    found = summary(work, steps, clock, order.warmup, four_bit=settings["precision"] == "nf4")
    refused = getattr(passes, "refused", None)
    return found | {"load_seconds": loaded, "graph_refused": refused, "predicted_gib": predicted}


if __name__ == "__main__":
    order = asked()
    sys.exit(say(lambda: train(order), BEGAN))
