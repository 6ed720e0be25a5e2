"""How deep a parameter stands in the model: what rates that fall with depth and gradual unfreezing go by."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from burnish.model.adapt import layer_of, trained_parameters

_BELOW = re.compile(r"embed(?!_out)|\b(?:wte|wpe)\b")  # what stands below the layers; `embed_out` is a head
BELOW, ABOVE = "embeddings", "above the layers"


@dataclass(frozen=True)
class Pace:
    """How a parameter is trained. share: of the run's learning rate. start: the step, counted from 0, at which it is first updated."""

    share: float = 1.0
    start: int = 0


def depth_of(name: str) -> float:
    """-1 for the embeddings, n for layer n, infinity for what stands above the layers: the last norm and a head.

    Embeddings that are tied to the vocabulary's head have but one name, and count as embeddings.
    """
    layer = layer_of(name)
    if layer is not None:
        return layer
    return -1.0 if _BELOW.search(name) else float("inf")


def paces(
    names: Iterable[str], *, layer_decay: float = 1.0, unfreezing: float = 0.0, steps: int = 1
) -> dict[str, Pace]:
    """The pace of each trained parameter by its name.

    layer_decay: the rate of each depth is that of the next one above times this; the topmost that is trained has the whole rate (Howard
    and Ruder 2018, arXiv 1801.06146, 3.2, where it is 1/2.6). Layers that stay frozen in between count as steps down too.
    unfreezing: the share of all `steps` over which depths begin to train, the topmost at once, then one after another downwards at equal
    distances (gradual unfreezing, the same paper, 3.3). Where there are fewer steps than depths, several begin together.
    """
    depths = {name: depth_of(name) for name in names}
    layers = [depth for depth in depths.values() if 0 <= depth < float("inf")]
    top = max(layers, default=-1.0)
    at = {name: min(depth, top + 1) for name, depth in depths.items()}
    order = sorted(set(at.values()), reverse=True)
    highest = order[0] if order else 0.0
    starts = {depth: int(number * unfreezing * steps / max(1, len(order) - 1)) for number, depth in enumerate(order)}
    return {name: Pace(layer_decay ** (highest - depth), starts[depth]) for name, depth in at.items()}


def by_depth(model: nn.Module, pace_of: Mapping[str, Pace], rate: float) -> list[dict[str, Any]]:
    """The table of what is trained at which pace, from the top down: one record a depth. rate: the peak of the run."""
    found: dict[float, list[str]] = defaultdict(list)
    parameters = trained_parameters(model)
    for name in parameters:
        found[depth_of(name)].append(name)
    return [
        {
            "group": ABOVE if depth == float("inf") else f"layer {depth:.0f}" if depth >= 0 else BELOW,
            "parameters": sum(parameters[name].numel() for name in names),
            "learning_rate": rate * pace_of[names[0]].share,
            "first_step": pace_of[names[0]].start + 1,
        }
        for depth, names in sorted(found.items(), reverse=True)
    ]


def as_table(groups: Iterable[Mapping[str, Any]]) -> str:
    """What is trained as lines of text: the groups, their sizes, and where they are there the rates and first steps."""
    lines = []
    for one in groups:
        paced = f"  {one['learning_rate']:.1e}  from step {one['first_step']:,}" if "first_step" in one else ""
        lines.append(
            f"{one['parameters']:>15,}  {one['group']}"
            if not paced
            else f"{one['parameters']:>15,}{paced}  {one['group']}"
        )
    return "\n".join(lines)
