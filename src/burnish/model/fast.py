"""Speed that leaves the meaning of a recipe alone: decoder layers compiled one by one, activations kept or computed again.

There is one path for every architecture and no model code of ours. transformers' own decoder layer is compiled, once for all layers since
they are alike; what is replaced in it are the linear layers (`lora`, `fp8`, `quantize`), the attention (`attention`) and what comes
after it (`head`). The same net runs eagerly, and a test holds both together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from threading import Thread
from typing import Any

import torch
import torch._dynamo.config
import torch._functorch.config
from torch import nn
from torch.utils.checkpoint import checkpoint

from burnish.model.net import Net
from burnish.model.prompts import learnt_tokens

# Share of the activations of a layer that its compiled backward pass may find kept, between what a compiler keeps for the best speed
# (1) and the layer's input alone (0); the compiler chooses what is cheapest to compute again. From the fastest level to the leanest.
BUDGETS = {"none": 1.0, "elementwise": 0.7, "mlp": 0.2, "all": 0.0, "offload": 0.0}
EAGER = {"elementwise": "none", "mlp": "all"}  # without a compiler, a layer is kept or computed again as a whole


def accelerate(net: Net, *, compile: bool, recompute: str = "none", backend: str = "inductor") -> None:
    """Compile the layers of a net or not, and say what its backward pass computes again. May be called again with something else.

    recompute: none, elementwise, mlp, all (only the inputs of layers are kept) or offload (those in the host's memory).
    """
    level, model = recompute if compile else EAGER.get(recompute, recompute), net.language_model
    if torch._functorch.config.activation_memory_budget != BUDGETS[level]:
        torch._dynamo.reset()  # what was compiled for another level would be taken for this one
        torch._functorch.config.activation_memory_budget = BUDGETS[level]
    if compile:  # floats that are the same in all layers stay as they are: to find that out takes a second compilation
        torch._dynamo.config.specialize_float = len({_floats_of(layer) for layer in decoder_layers(model)}) == 1
    for layer in decoder_layers(model):
        layer._compiled_call_impl = None
        if compile:
            layer.compile(dynamic=True, backend=backend)
            for part in filter(_chooses_by_data, layer.modules()):
                part.forward = torch.compiler.disable(part.forward)
    whole = level in ("all", "offload") and not compile
    _recompute_layers(model, whole, walked=learnt_tokens(net.model) > 0)
    _want_input_gradients(model, compile)
    net.offload = level == "offload"


def _floats_of(layer: nn.Module) -> tuple[tuple[str, str, float], ...]:
    """The numbers that a layer's modules have as attributes, such as the scale of its attention."""
    parts = layer.named_modules()
    return tuple((name, key, x) for name, part in parts for key, x in vars(part).items() if type(x) is float)


def expect_compiling(device: torch.device) -> None:
    """Compile something small in the background, while rows are tokenized: the first of all takes seconds, of imports and processes."""

    def bring_up() -> None:
        with contextlib.suppress(Exception):  # it fails once more where it is needed, and is told there
            from torch._inductor.async_compile import AsyncCompile

            AsyncCompile.use_process_pool()
            torch.compile(torch.cos)(torch.zeros((), device=device, requires_grad=True)).backward()

    Thread(target=bring_up).start()


def _want_input_gradients(model: Any, wanted: bool) -> None:
    """Let what enters the first layer want a gradient where that layer is trained: then all layers are alike, and compiled once.

    Where layers are frozen nothing below the trained ones is walked back, and they are compiled apart.
    """
    first = next(decoder_layers(model))
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()
        model._require_grads_hook = None
    if wanted and any(parameter.requires_grad for parameter in first.parameters()):
        model.enable_input_require_grads()


def decoder_layers(model: Any) -> Iterator[Any]:
    """The layers of a transformers model, by the names of the classes that it does not want split over devices."""
    classes = set(model._no_split_modules or ())
    return (module for module in model.modules() if type(module).__name__ in classes)


def _chooses_by_data(module: nn.Module) -> bool:
    """Whether a module is a set of experts, or an adapter around one: which tokens each gets is known only from the data."""
    known = type(module).__name__.endswith(("Experts", "ParamWrapper"))
    return known and not hasattr(module.forward, "_torchdynamo_disable")


def _recompute_layers(model: Any, whole: bool, *, walked: bool) -> None:
    """transformers' own switch in each layer; a layer's input is what autograd saves then, so that it can be moved to the host.

    What enters the lowest trained layer wants no gradient, so that nothing below is walked back: see `_again`. walked: what enters the
    first layer wants a gradient in any case.
    """
    walked = walked or any(parameter.requires_grad for parameter in model.get_input_embeddings().parameters())
    for layer in decoder_layers(model):
        trained = any(parameter.requires_grad for parameter in layer.parameters())
        layer.gradient_checkpointing = whole and (walked or trained)
        layer._gradient_checkpointing_func = partial(_again, model.get_decoder())
        walked = walked or trained


def _again(decoder: Any, layer: Any, *inputs: Any) -> Any:
    """A layer whose activations are computed again, by the attention that the forward pass had: that holds only while it runs.

    Where the input wants no gradient it is done by the one of torch's two ways that does not need it to; which layer that is moves down
    while layers begin one after another.
    """
    walked = any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)
    config, name = decoder.config, decoder.config._attn_implementation

    def run(*inputs: Any) -> Any:
        before, config._attn_implementation = config._attn_implementation, name
        try:
            return layer(*inputs)
        finally:
            config._attn_implementation = before

    return checkpoint(run, *inputs, use_reentrant=walked)
