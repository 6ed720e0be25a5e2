"""Make a model trainable: an adapter beside its weights, or the weights themselves, less what is frozen."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import nn

from burnish.errors import ModelError, RecipeError
from burnish.methods import METHODS
from burnish.model.adapters import MARK, MARKS, is_adapters, with_adapter
from burnish.model.load import head_of
from burnish.recipe import Adapter, Freeze

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def adapt(model: PreTrainedModel, adapter: Adapter, freeze: Freeze) -> nn.Module:
    """The model with only the wanted parameters requiring gradients; a `PeftModel` around it where an adapter is put on.

    Raises RecipeError for layers, modules, targets or sizes that the model does not have.
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
        if METHODS[adapter.method].prompts and (frozen or freeze.modules):
            raise RecipeError(
                f"the method {adapter.method} trains no layer, so none can be frozen",
                where="freeze",
                expected="no freeze beside it",
                hint="--set freeze.layers='' --set freeze.modules=[]",
            )
        trained = with_adapter(model, adapter, _pattern_of(frozen, freeze.modules, head_of(model) is not None))
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        raise RecipeError("nothing is left to train", where="freeze", hint="freeze: {layers: ''}")
    return trained


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


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that training changes: what a checkpoint holds."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_count(model: nn.Module) -> int:
    """The model's own parameters, those stored in few bits too: neither an adapter's, nor the copy of a head that PEFT trains for it."""
    from burnish.model.frozen import FrozenLinear

    stored = (part for part in model.modules() if isinstance(part, FrozenLinear))
    plain = sum(p.numel() for name, p in model.named_parameters() if not is_adapters(name))
    return plain + sum(part.in_features * part.out_features for part in stored)


def trained_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The table of what is trained: one record for each kind of module, its layers and its number of parameters."""
    sizes: Counter[str] = Counter()
    layers: dict[str, set[int]] = {}
    for name, parameter in trained_parameters(model).items():
        found = _LAYER.search(name)
        kind = name[found.end() :] if found else name.removeprefix("base_model.model.")
        kind = kind.replace(".modules_to_save.default", "")
        kind = MARK.sub(lambda mark: f" ({MARKS[mark[1]]})", kind, count=1).removesuffix(".weight").strip()
        sizes[kind] += parameter.numel()
        layers.setdefault(kind, set()).update({int(found[1])} if found else ())
    return [{"group": _with_layers(kind, layers[kind]), "parameters": size} for kind, size in sizes.items()]


def _with_layers(kind: str, layers: set[int]) -> str:
    return f"layers {min(layers)}-{max(layers)}: {kind}" if layers else kind
