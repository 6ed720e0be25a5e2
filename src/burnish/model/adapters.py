"""PEFT's configuration of each method, and the model with such an adapter on it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.errors import RecipeError
from burnish.methods import METHODS
from burnish.model.load import Head, head_of, quiet
from burnish.recipe import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How PEFT's names of an adapter's parameters begin, by what they are called in the table of what is trained.
MARKS = {
    "lora_": "lora",
    "ia3_": "ia3",
    "oft_": "oft",
    "vera_": "vera",
    "ln_tuning_": "layernorm",
    "prompt_encoder": "virtual tokens",
}
MARK = re.compile(rf"(?:^|\.)({'|'.join(MARKS)})\w*(?:\.\w+)?(?:\.embedding)?")
FIXED_SEED = (
    0  # of starts that are computed from the weights by a randomised decomposition, so that they can be computed again
)


def is_adapters(name: str) -> bool:
    """Whether a parameter, by its name in a `PeftModel`, was put there by PEFT: an adapter's, or the copy of a head that it trains."""
    return MARK.search(name) is not None or ".modules_to_save." in name


def with_adapter(model: PreTrainedModel, adapter: Adapter, excluded: str | None) -> nn.Module:
    """A `PeftModel` of which the adapter alone is trained, in float32. excluded: names of modules that stay as they are, as an expression.

    Raises RecipeError for targets and sizes that the model does not have.
    """
    from peft import get_peft_model

    method = METHODS[adapter.method]
    head = head_of(model)
    if method.prompts and head:
        raise RecipeError(
            f"{adapter.method} tuning puts tokens before a text to write on, and this objective scores texts",
            where="adapter.method",
            expected="an objective that writes, or another method",
            hint="--set adapter.method=lora   or --set objective=sft",
        )
    config = _config_of(model, adapter, excluded)
    config.task_type = _task_type(head)
    if not method.prompts:
        # Of a head in the vocabulary's place PEFT trains and saves it as it is; of one beside it PEFT must be told.
        config.modules_to_save = ["score"] if head and head.beside else None
    try:
        with quiet(), torch.random.fork_rng(enabled=adapter.method == "pissa"):
            if adapter.method == "pissa":
                torch.manual_seed(FIXED_SEED)
            adapted: Any = get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).split(". ")[0]
        raise RecipeError(f"no adapter can be made: {reason}", where="adapter.targets and freeze") from error
    _in_float32(adapted)
    if method.starts:
        from burnish.model.starts import keep_start

        keep_start(adapted, from_loss=adapter.method == "loftq")
    return adapted


def _config_of(model: PreTrainedModel, adapter: Adapter, excluded: str | None) -> Any:
    peft: Any = importlib.import_module("peft")  # whose annotations know fewer values than it takes

    name = adapter.method
    if METHODS[name].prompts:
        return _prompt_config(model, adapter)
    if name == "layernorm":
        norms = sorted({name.rsplit(".", 1)[-1] for name, part in model.named_modules() if _is_norm(part)})
        targets = norms if adapter.targets == ["all-norms"] else _checked(model, adapter, norms)
        return peft.LNTuningConfig(target_modules=targets, exclude_modules=excluded)
    linear = {name.rsplit(".", 1)[-1] for name, part in _linear_layers(model, None)}
    everywhere = adapter.targets == ["all-linear"]
    targets = [] if everywhere else _checked(model, adapter, linear)
    if name == "ia3":
        targets = targets or sorted(linear)
        inner = [one for one in targets if not _in_attention(model, one)]
        return peft.IA3Config(target_modules=targets, feedforward_modules=inner, exclude_modules=excluded)
    wanted: Any = "all-linear" if everywhere else targets
    if name == "oft":
        _check_block(model, adapter, excluded)
        return peft.OFTConfig(oft_block_size=adapter.block, target_modules=wanted, exclude_modules=excluded)
    assert adapter.rank is not None
    if name == "vera":  # the only one to which PEFT cannot say what to leave out
        chosen = [full for full, _ in _linear_layers(model, excluded) if everywhere or _ends(full, targets)]
        return peft.VeraConfig(r=adapter.rank, vera_dropout=adapter.dropout or 0.0, target_modules=chosen)
    return _lora_config(model, adapter, wanted, excluded)


def _lora_config(model: PreTrainedModel, adapter: Adapter, targets: Any, excluded: str | None) -> Any:
    peft: Any = importlib.import_module("peft")
    from burnish.model.lora import LoraLinear  # which imports PEFT

    assert adapter.rank is not None
    assert adapter.alpha is not None
    narrowest = min(min(part.in_features, part.out_features) for _, part in _linear_layers(model, None))
    if adapter.rank > narrowest:
        raise RecipeError(
            f"the rank {adapter.rank} is above the smallest matrix",
            where="adapter.rank",
            expected=f"at most {narrowest}",
        )
    empty = any(parameter.is_meta for parameter in model.parameters())  # only its sizes are asked for
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout or 0.0,
        target_modules=targets,
        exclude_modules=excluded,
        use_rslora=adapter.method == "rslora",
        use_dora=adapter.method == "dora",
        init_lora_weights="pissa_niter_16" if adapter.method == "pissa" and not empty else True,
    )
    config._register_custom_module({nn.Linear: LoraLinear})  # PEFT's own way in for a layer class; no file says so
    return config


def _prompt_config(model: PreTrainedModel, adapter: Adapter) -> Any:
    peft: Any = importlib.import_module("peft")  # whose annotations know fewer values than it takes

    text = model.config.get_text_config()
    if adapter.method == "prompt":
        return peft.PromptTuningConfig(num_virtual_tokens=adapter.tokens, prompt_tuning_init="SAMPLE_VOCAB")
    # PEFT takes the width of a head for hidden_size / heads; a prefix is keys and values, whose width the configuration says.
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return peft.PrefixTuningConfig(
        num_virtual_tokens=adapter.tokens,
        num_attention_heads=heads,
        token_dim=heads * size,
        num_layers=text.num_hidden_layers,
    )


def _task_type(head: Head | None) -> str:
    """PEFT's name for what the model does."""
    if head is None or head.beside:
        return "CAUSAL_LM"
    return "TOKEN_CLS" if head.kind == "tag" else "SEQ_CLS"


def _checked(model: nn.Module, adapter: Adapter, known: Iterable[str]) -> list[str]:
    """The recipe's targets. Raises RecipeError for one that is not there: PEFT passes over it where it finds another."""
    names = [name for name, _ in model.named_modules()]
    targets, known = adapter.targets or [], set(known)
    for wanted in targets:
        there = any(f".{name}".endswith(f".{wanted}") for name in names)
        if not there or wanted.rsplit(".", 1)[-1] not in known:
            raise RecipeError(
                f"no layer that {adapter.method} can stand on is called {wanted}",
                where="adapter.targets",
                expected=f"some of {', '.join(sorted(known))}",
            )
    return targets


def _check_block(model: PreTrainedModel, adapter: Adapter, excluded: str | None) -> None:
    """Raise RecipeError for a block that does not divide a layer's input: PEFT would quietly take another size for it."""
    block, targets = adapter.block or 1, adapter.targets or []
    for name, part in _linear_layers(model, excluded):
        if (targets == ["all-linear"] or _ends(name, targets)) and part.in_features % block:
            sizes = [part.in_features for _, part in _linear_layers(model, excluded)]
            fitting = [size for size in range(2, min(sizes) + 1) if not any(one % size for one in sizes)]
            raise RecipeError(
                f"the {part.in_features} inputs of {name} are no whole number of blocks of {block}",
                where="adapter.block",
                expected=f"one of {', '.join(map(str, fitting))}",
            )


def _linear_layers(model: nn.Module, excluded: str | None) -> Iterable[tuple[str, nn.Linear]]:
    """The layers that an adapter may stand on: no head, be it the vocabulary's or one that scores, narrow as that may be."""
    embeddings: Any = model
    vocabulary = embeddings.get_output_embeddings()
    for name, part in model.named_modules():
        left_out = part is vocabulary or name == "score" or (excluded and re.fullmatch(excluded, name))
        if isinstance(part, nn.Linear) and not left_out:
            yield name, part


def _ends(name: str, targets: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{wanted}") for wanted in targets)


def _in_attention(model: nn.Module, target: str) -> bool:
    """Whether the layers of this name lie in attention: those IA3 scales by their outputs, those of the MLP by their inputs."""
    parents = [name.rsplit(".", 2)[-2] for name, _ in model.named_modules() if "." in name and _ends(name, [target])]
    return any("attn" in parent or "attention" in parent for parent in parents)


def _is_norm(part: nn.Module) -> bool:
    """Whether a module is a norm, by the name of its class: each family has its own."""
    weight = getattr(part, "weight", None)
    return type(part).__name__.endswith("Norm") and isinstance(weight, Tensor) and weight.dim() == 1


def merge(adapted: Any) -> Any:
    """The transformers model of a `PeftModel` with the adapter in its weights, which `adapted` is no more afterwards."""
    from peft.utils import ModulesToSaveWrapper

    model = adapted.merge_and_unload()
    for name, part in list(model.named_modules()):
        if isinstance(part, ModulesToSaveWrapper):  # PEFT leaves a head wrapped where it is norms that were tuned
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, part.modules_to_save[part.active_adapters[0]])
    return model


def _in_float32(adapted: nn.Module) -> None:
    """Let what is trained be float32 beside a base of 16 bits. PEFT sees to that itself but for norms, whose output must go on in 16."""
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for part in adapted.modules():
        for norm in getattr(part, "ln_tuning_layers", {}).values():
            norm.register_forward_hook(_as_it_came)


def _as_it_came(module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
    return out.to(inputs[0].dtype)
