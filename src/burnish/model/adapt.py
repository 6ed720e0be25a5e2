"""Make a model trainable: a low-rank adapter on some of its linear layers, or its own weights, less what is frozen."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import nn

from burnish.errors import ModelError, RecipeError
from burnish.model.load import Head, head_of, quiet
from burnish.recipe import Adapter, Freeze

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def adapt(model: PreTrainedModel, adapter: Adapter, freeze: Freeze) -> nn.Module:
    """The model with only the wanted parameters requiring gradients; a `PeftModel` around it for LoRA.

    Raises RecipeError for layers, modules, targets or ranks that the model does not have.
    """
    layers = _layer_count(model)
    frozen = parse_layers(freeze.layers, layers)
    _check_modules(model, freeze.modules)
    if adapter.method == "full":
        model.requires_grad_(True)
        for name, parameter in model.named_parameters(remove_duplicate=False):  # tied weights go by either name
            if _is_frozen(name, frozen, freeze.modules):
                parameter.requires_grad_(False)
        trained: nn.Module = model
    elif adapter.method == "head":
        model.requires_grad_(False)
        model.get_submodule("score").requires_grad_(True)  # only an objective that has one comes here
        trained = model
    else:
        if len(frozen) == layers:
            raise RecipeError(
                "every layer is frozen", where="freeze.layers", expected="some layers left for the adapter"
            )
        trained = _with_lora(model, adapter, frozen, freeze.modules)
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        raise RecipeError("nothing is left to train", where="freeze", hint="freeze: {layers: ''}")
    return trained


def _with_lora(model: PreTrainedModel, adapter: Adapter, frozen: set[int], frozen_modules: list[str]) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    from burnish.model.lora import LoraLinear

    narrowest = min(_linear_sides(model))
    if adapter.rank > narrowest:
        raise RecipeError(
            f"the rank {adapter.rank} is above the smallest matrix",
            where="adapter.rank",
            expected=f"at most {narrowest}",
        )
    everywhere = adapter.targets == ["all-linear"]
    if not everywhere:
        _check_targets(model, adapter.targets)
    head = head_of(model)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules="all-linear" if everywhere else adapter.targets,
        exclude_modules=_pattern_of(frozen, frozen_modules, head is not None),
        # Of one in the vocabulary's place PEFT trains and saves the head as it is; of one beside it PEFT must be told.
        task_type=_task_type(head),
        modules_to_save=["score"] if head and head.beside else None,
    )
    config._register_custom_module({nn.Linear: LoraLinear})  # PEFT's own way in for a layer class; no file says so
    try:
        with quiet():
            return get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).split(". ")[0]
        raise RecipeError(f"no adapter can be made: {reason}", where="adapter.targets and freeze") from error


def _task_type(head: Head | None) -> str:
    """PEFT's name for what the model does."""
    if head is None or head.beside:
        return "CAUSAL_LM"
    return "TOKEN_CLS" if head.kind == "tag" else "SEQ_CLS"


def _check_targets(model: nn.Module, targets: list[str]) -> None:
    """PEFT passes over a target that it does not find, where it finds another."""
    names = [name for name, _ in model.named_modules()]
    for wanted in targets:
        if not any(f".{name}".endswith(f".{wanted}") for name in names):
            known = sorted(
                {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
            )
            raise RecipeError(
                f"no layer is called {wanted}", where="adapter.targets", expected=f"some of {', '.join(known)}"
            )


def parse_layers(text: str, count: int, where: str = "freeze.layers") -> set[int]:
    """ "0-19,25" -> the set of these layer numbers. Raises RecipeError for anything else, or a number of `count` or above."""
    layers: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high >= count:
            raise RecipeError(
                f"found {part!r}",
                where=where,
                expected=f"numbers and ranges from 0 to {count - 1}, such as 0-{count // 2}",
            )
        layers.update(range(low, high + 1))
    return layers


def _pattern_of(layers: set[int], modules: list[str], headed: bool) -> str | None:
    """The frozen layers and modules as the regular expression that PEFT reads; None where nothing is frozen.

    headed: leave the score head out too, which is trained as it is; PEFT does so by itself for a head of texts, not of tokens.
    """
    patterns = [r".*\.(?:layers|h|blocks)\.(?:" + "|".join(map(str, sorted(layers))) + r")\..*"] if layers else []
    patterns += [f".*{re.escape(part)}.*" for part in modules]
    patterns += [r"(?:.*\.)?score"] if headed else []
    return "|".join(patterns) or None


def _is_frozen(name: str, layers: set[int], modules: list[str]) -> bool:
    return layer_of(name) in layers or any(part in name for part in modules)


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter belongs to, or None where it is in none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _check_modules(model: nn.Module, modules: list[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    for wanted in modules:
        if not any(wanted in name for name in names):
            known = sorted({name.rsplit(".", 1)[-1] for name in names if name and not name[-1].isdigit()})
            raise RecipeError(
                f"no module's name has {wanted!r}", where="freeze.modules", expected=f"a part of: {', '.join(known)}"
            )


def _layer_count(model: PreTrainedModel) -> int:
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    if not count:
        raise ModelError(
            "its configuration has no num_hidden_layers", where="model", expected="a causal language model"
        )
    return int(count)


def _linear_sides(model: nn.Module) -> list[int]:
    """The widths of the layers that an adapter may sit on; a score head, narrow as it may be, is none of them."""
    return [
        side
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name != "score"
        for side in (part.in_features, part.out_features)
    ]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that training changes: what a checkpoint holds."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_count(model: nn.Module) -> int:
    """The model's own parameters: neither an adapter's, nor the copy of a head that PEFT trains in place of the first."""
    return sum(p.numel() for name, p in model.named_parameters() if not re.search(r"lora_|modules_to_save", name))


def trained_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The table of what is trained: one record for each kind of module, its layers and its number of parameters."""
    sizes: Counter[str] = Counter()
    layers: dict[str, set[int]] = {}
    for name, parameter in trained_parameters(model).items():
        found = _LAYER.search(name)
        kind = name[found.end() :] if found else name.removeprefix("base_model.model.")
        kind = re.sub(r"\.lora_[AB]\.\w+", " (lora)", kind.replace(".modules_to_save.default", "")).removesuffix(
            ".weight"
        )
        sizes[kind] += parameter.numel()
        layers.setdefault(kind, set()).update({int(found[1])} if found else ())
    return [{"group": _with_layers(kind, layers[kind]), "parameters": size} for kind, size in sizes.items()]


def _with_layers(kind: str, layers: set[int]) -> str:
    return f"layers {min(layers)}-{max(layers)}: {kind}" if layers else kind
