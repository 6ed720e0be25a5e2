"""The sizes of a model that its memory and its speed depend on, read from its configuration and its empty parameters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from burnish.model.adapt import layer_of, parameter_count
from burnish.model.adapters import is_adapters
from burnish.model.head import bends

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """Widths are numbers a token, sizes are numbers of parameters; what a number weighs is for others to say.

    mlp: the width of the MLP that a token meets, over all of its experts. copies: how often a token's hidden state is copied for its
    experts, 0 where there are none. ranks: the summed ranks of a layer's adapters. norms: norms of a layer.
    vocabulary: 0 where a score head stands in the place of the vocabulary's.
    matrices: weights of the linear maps under an adapter, which fp8 and nf4 store small; largest: of one such map.
    frozen, trained: all the parameters that are not and are trained, adapters with them. layer: trained in the largest layer, or in the
    largest tensor outside of them. outside: trained outside of the layers. met, met_trained: weights of linear maps in the layers that a
    token is multiplied with, and those of them that are trained. gated: what gate and up alone make of `met`.
    walked: the share of the layers, from the top, that the backward pass walks through. beside: an adapter stands beside frozen weights.
    tied: head and embeddings share their weights. bent: the model caps or scales its logits.
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    heads: int
    mlp: int
    copies: int
    norms: int
    ranks: float
    vocabulary: int
    parameters: int
    frozen: int
    trained: int
    matrices: int
    largest: int
    layer: int
    outside: int
    met: float
    met_trained: float
    gated: float
    walked: float
    beside: bool
    head_trained: bool
    tied: bool
    bent: bool


def shape_of(config: PretrainedConfig, model: nn.Module) -> Shape:
    """The sizes of an adapted model, which may be on the meta device."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    named = dict(model.named_parameters())
    own = {name: p for name, p in named.items() if not is_adapters(name)}
    inside = {name: p for name, p in own.items() if layer_of(name) is not None and p.dim() > 1}
    matrices = [p.numel() for name, p in inside.items() if name.endswith(".base_layer.weight")]
    trained = {name: p for name, p in named.items() if p.requires_grad}
    per_layer: Counter[int] = Counter()
    for name, p in trained.items():
        if (layer := layer_of(name)) is not None:
            per_layer[layer] += p.numel()
    outside = [p.numel() for name, p in trained.items() if layer_of(name) is None]
    met = {name: p.numel() * _share_met(name, text) for name, p in inside.items()}
    mlp, experts = _mlp(text)
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        queries=heads * size,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * size,
        heads=heads,
        mlp=mlp,
        copies=experts,
        norms=sum(
            layer_of(name) == 0 and p.dim() == 1 and "norm" in name and p.numel() == text.hidden_size
            for name, p in own.items()
        )
        or 2,
        ranks=sum(p.shape[0] for name, p in named.items() if "lora_A" in name or "vera_lambda_d" in name)
        / text.num_hidden_layers,
        vocabulary=text.vocab_size if _writes(model) else 0,
        parameters=parameter_count(model),
        frozen=sum(p.numel() for p in named.values() if not p.requires_grad),
        trained=sum(p.numel() for p in trained.values()),
        matrices=sum(matrices),
        largest=max(matrices, default=0),
        layer=max([*per_layer.values(), *outside], default=0),
        outside=sum(outside),
        met=sum(met.values()),
        met_trained=sum(size for name, size in met.items() if inside[name].requires_grad)
        + sum(p.numel() for name, p in trained.items() if is_adapters(name)),
        gated=2.0 * text.hidden_size * mlp * text.num_hidden_layers,
        walked=_share_walked_back(named),
        beside=hasattr(model, "peft_config"),
        head_trained=any("embed" in name or "head" in name for name in trained if not is_adapters(name)),
        tied=bool(getattr(text, "tie_word_embeddings", False)) and _writes(model),
        bent=bends(text),
    )


def _writes(model: Any) -> bool:
    """Whether the model has a vocabulary head; a score head may stand in its place."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_output_embeddings() is not None


def _mlp(text: Any) -> tuple[int, int]:
    """(width of the MLP that a token meets, number of experts it is copied for)."""
    dense = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    dense = max(dense) if isinstance(dense, list | tuple) else dense
    experts = _experts_of(text)
    if not experts:
        return dense, 0
    width = getattr(text, "moe_intermediate_size", None) or dense
    shared = getattr(text, "shared_expert_intermediate_size", None) or 0
    shared += (getattr(text, "n_shared_experts", None) or 0) * width
    chosen = text.num_experts_per_tok
    return chosen * width + shared, chosen


def _experts_of(text: Any) -> int:
    """How many experts a layer has; each family has its own name for it."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    there = next((count for name in names if (count := getattr(text, name, None))), 0)
    return there if there and getattr(text, "num_experts_per_tok", None) else 0


def _share_met(name: str, text: Any) -> float:
    """The share of a weight that one token is multiplied with: all of it, or its experts' part."""
    routed = ".experts." in name
    return text.num_experts_per_tok / _experts_of(text) if routed and _experts_of(text) else 1.0


def _share_walked_back(named: dict[str, nn.Parameter]) -> float:
    """The share of the layers, from the top, down to the lowest with something trained."""
    trained = {name: layer_of(name) for name, p in named.items() if p.requires_grad}
    count = max((number for name in named if (number := layer_of(name)) is not None), default=0) + 1
    lowest = min((number for number in trained.values() if number is not None), default=count)
    below_all = any(layer is None and ("embed" in name or "wte" in name) for name, layer in trained.items())
    return 1.0 if below_all else (count - lowest) / count
