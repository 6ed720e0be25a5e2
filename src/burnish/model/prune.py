"""A smaller model cut from a larger one: fewer layers, narrower MLPs. What comes out is a plain transformers model with another config."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burnish.core import Group, pack
from burnish.errors import ModelError, RecipeError
from burnish.model.likelihood import evaluating
from burnish.model.load import Head, load_model, quiet
from burnish.model.net import Net

CALIBRATION = 32  # rows that a model is watched on
AGREEMENT = 1e-3  # what the logits of the written model may differ by


def keep_evenly(layers: int, count: int) -> list[int]:
    """`count` of the layers, the first and the last among them, at even distances."""
    return [0] if count == 1 else [round(place * (layers - 1) / (count - 1)) for place in range(count)]


def keep_by_similarity(model: Any, groups: Sequence[Group], count: int) -> list[int]:
    """The `count` layers that change the hidden state most: 1 - cos(what goes in, what comes out), averaged over all tokens.

    Source: Men et al. 2024, "ShortGPT" (arXiv 2403.03853), eq. 1.
    """
    layers = layers_of(model)
    changes: list[list[Tensor]] = [[] for _ in layers]

    def watch(number: int, given: tuple[Any, ...], options: dict[str, Any], made: Any) -> None:
        before = given[0] if given else options["hidden_states"]
        after = made[0] if isinstance(made, tuple) else made
        changes[number].append(1 - torch.cosine_similarity(before.float(), after.float(), dim=-1).flatten())

    hooks = [
        layer.register_forward_hook(
            lambda layer, given, options, made, n=n: watch(n, given, options, made), with_kwargs=True
        )
        for n, layer in enumerate(layers)
    ]
    real = _read(model, groups, hooks)
    influence = [float(torch.cat(one)[real].mean()) for one in changes]
    return sorted(sorted(range(len(layers)), key=lambda n: influence[n], reverse=True)[:count])


def cut_depth(model: Any, keep: Sequence[int]) -> Any:
    """The model with these layers alone, in this order; the model that was given is used up."""
    decoder, layers = model.get_decoder(), layers_of(model)
    decoder.layers = nn.ModuleList(layers[n] for n in keep)
    for number, layer in enumerate(decoder.layers):
        for part in layer.modules():  # a cache goes by it
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    for config in {id(one): one for one in (model.config.get_text_config(), decoder.config)}.values():
        cut_config(config, keep, len(layers))
    return model


def cut_config(config: Any, keep: Sequence[int], layers: int) -> None:
    """Change a configuration of so many layers into that of the kept ones; lists with an entry for each layer are cut as well."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == layers and not isinstance(value[0], dict):
            setattr(config, name, [value[n] for n in keep])
    if named := getattr(config, "mlp_only_layers", None):
        config.mlp_only_layers = [place for place, n in enumerate(keep) if n in named]
    config.num_hidden_layers = len(keep)


def cut_width(model: Any, groups: Sequence[Group], share: float) -> Any:
    """The model with a share of each MLP's channels: those of the largest mean activation. The model that was given is used up.

    Source: Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation" (arXiv 2407.14679), section 2.2.
    """
    mlps = [_mlp_of(layer) for layer in layers_of(model)]
    sums: list[list[Tensor]] = [[] for _ in mlps]
    hooks = [
        mlp.down_proj.register_forward_pre_hook(
            lambda part, given, n=n: sums[n].append(given[0].float().abs().flatten(0, 1))
        )
        for n, mlp in enumerate(mlps)
    ]
    real = _read(model, groups, hooks)
    width = max(8, round(mlps[0].down_proj.in_features * share / 8) * 8)  # a multiple of 8 suits every kernel
    for mlp, seen in zip(mlps, sums, strict=True):
        kept = torch.cat(seen)[real].mean(0).topk(min(width, mlp.down_proj.in_features)).indices.sort().values
        mlp.gate_proj, mlp.up_proj = (_rows(part, kept) for part in (mlp.gate_proj, mlp.up_proj))
        mlp.down_proj = _columns(mlp.down_proj, kept)
        mlp.intermediate_size = len(kept)
    for config in (model.config.get_text_config(), model.get_decoder().config):
        config.intermediate_size = len(kept)
    return model


def write_student(
    source: str,
    folder: Path,
    tokenizer: Any,
    groups: Sequence[Group],
    *,
    keep: Sequence[int] | None,
    layers: int | None,
    by: Literal["even", "similarity"],
    mlp: float | None,
    head: Head | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Cut a student from the model in `source` and write it to `folder`; returns what was kept.

    keep: the numbers of the layers; or layers: how many. mlp: the share of the MLP channels. groups: rendered rows, to be watched on.
    What was written is read back and must say the same, so that a family whose configuration hides a trait of its layers fails here.
    Raises RecipeError for layers that the model does not have, ModelError for a family that cannot be cut so.
    """
    model: Any = load_model(source, dtype=torch.float32, trust_remote_code=trust_remote_code, head=head)
    count = len(layers_of(model))
    kept = kept_layers(count, keep, layers)
    watched = list(groups)[:CALIBRATION]
    if kept is None:
        assert layers is not None
        kept = keep_by_similarity(model, watched, layers) if by == "similarity" else keep_evenly(count, layers)
    before = sum(parameter.numel() for parameter in model.parameters())
    if mlp is not None and mlp < 1:
        cut_width(model, watched, mlp)
    cut_depth(model, kept)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _check_written(model, folder, watched, head, trust_remote_code)
    return {
        "layers": kept,
        "of_layers": count,
        "mlp": int(model.config.get_text_config().intermediate_size),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "of_parameters": before,
    }


def kept_layers(count: int, keep: Sequence[int] | None, layers: int | None) -> list[int] | None:
    """The layers that are named, or all where nothing is said; None where `layers` says how many, and the rule is still to choose."""
    wanted = len(keep) if keep else layers
    if wanted is not None and not 1 <= wanted <= count:
        raise RecipeError(
            f"{wanted} layers are to be kept of {count}", where="distill.student", expected=f"1 to {count} layers"
        )
    if keep:
        return list(keep)
    return None if layers is not None else list(range(count))


def layers_of(model: Any) -> Any:
    """The decoder's layers. Raises ModelError where they are no list of that name."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            "its layers cannot be cut", where=model.config.model_type, expected="a decoder with a list of layers"
        )
    return layers


def _read(model: Any, groups: Sequence[Group], hooks: Sequence[Any]) -> Tensor:
    """Let the model read the rows one by one while hooks look on; (tokens,) which of what they saw is no padding."""
    net, real = Net(model), []
    try:
        with torch.no_grad(), evaluating(model):
            for group in groups:
                batch = pack([group], row_tokens=sum(map(len, group)))
                real.append(batch.seq.flatten() >= 0)
                net._hidden(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not real:
        raise RecipeError(
            "there are no rows to watch the teacher on", where="distill.student", expected="training rows"
        )
    return torch.cat(real)


def _mlp_of(layer: Any) -> Any:
    mlp = getattr(layer, "mlp", None)
    if not all(type(getattr(mlp, name, None)) is nn.Linear for name in ("gate_proj", "up_proj", "down_proj")):
        raise ModelError(
            f"the MLP of {type(layer).__name__} cannot be narrowed",
            where="distill.student.mlp",
            expected="linear layers gate_proj, up_proj and down_proj",
            hint="distill: {student: {layers: N}}   cuts layers alone",
        )
    return mlp


def _rows(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    return _linear(layer.weight[kept], None if layer.bias is None else layer.bias[kept])


def _columns(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    return _linear(layer.weight[:, kept], layer.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype, device="meta")
    new.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone())
    return new


def _check_written(model: Any, folder: Path, groups: Sequence[Group], head: Head | None, trust: bool) -> None:
    ids = torch.tensor([groups[0][0].ids[:64]])
    again: Any = load_model(str(folder), dtype=torch.float32, trust_remote_code=trust, head=copy.copy(head))
    with torch.no_grad(), evaluating(model), evaluating(again):
        ours, theirs = (one(input_ids=ids, use_cache=False).logits for one in (model, again))
    if not float((ours - theirs).abs().max()) <= AGREEMENT * max(1.0, float(ours.abs().max())):
        raise ModelError(
            "the student that was written says something else when it is read again",
            where=str(folder),
            expected="a family whose configuration describes each layer",
            hint="a separate student: --set model=NAME, without distill.student",
        )
