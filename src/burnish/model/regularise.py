"""Noise that keeps a model from learning its rows by heart: on the embeddings (NEFTune), and dropout within its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from burnish.core import Batch, by_sequence
from burnish.errors import RecipeError

# What configurations call the dropout of attention, of what is added to the residual stream, and of the hidden states.
DROPOUTS = (
    "attention_dropout",
    "attn_pdrop",
    "attention_probs_dropout_prob",
    "resid_pdrop",
    "residual_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "embd_pdrop",
    "activation_dropout",
    "dropout",
)


@contextlib.contextmanager
def noisy_embeddings(embedding: nn.Module, batch: Batch, alpha: float) -> Iterator[None]:
    """Within the block the embedding adds noise to each real token: uniform in -1..1, times alpha / sqrt(L d).

    L: tokens of the token's own sequence, not of the row that it is packed into. d: width of an embedding. NEFTune, Jain et al. 2023
    (arXiv 2310.05914). The numbers come from torch's generator of the device, whose state a checkpoint keeps and a recording carries on.
    """

    def add(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        scale = alpha / (_lengths(batch) * out.shape[-1]).sqrt()  # (R,T)
        scale = torch.where(batch.seq >= 0, scale, 0.0).to(out.dtype)
        return out + torch.empty_like(out).uniform_(-1, 1) * scale[..., None]

    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _lengths(batch: Batch) -> Tensor:
    """(R,T) float32: tokens of the sequence that each token belongs to; 1 on padding."""
    lengths = by_sequence(torch.ones_like(batch.weight), batch)  # (S,)
    padded = torch.cat([lengths, lengths.new_ones(1)])
    return padded[batch.seq % len(padded)]


def drops(config: Any, share: float | None) -> bool:
    """Whether a model's own layers drop anything in training, once `set_dropout` has set the share."""
    return bool(share) if share is not None else any(getattr(config, name, None) for name in DROPOUTS)


def set_dropout(model: Any, share: float | None) -> None:
    """Set every dropout of a transformers model's own layers; None leaves them as its configuration has them.

    Only training drops anything. To be called before an adapter is put on, whose dropout is its own. Raises RecipeError where the
    model has none.
    """
    if share is None:
        return
    config = model.config.get_text_config()
    known = [name for name in DROPOUTS if getattr(config, name, None) is not None]
    if not known and share:
        raise RecipeError(
            f"a model of the kind {config.model_type} has no dropout of its own",
            where="train.dropout",
            expected=f"one of these in its configuration: {', '.join(DROPOUTS)}",
            hint="adapter: {dropout: 0.1}   drops in the adapter instead",
        )
    for name in known:
        setattr(config, name, share)
    for part, name in _dropouts(model):
        setattr(part, name, share)


def _dropouts(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """(module, attribute) of every share of dropout in a model: torch's modules, and numbers that a layer hands to its attention."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            yield part, "p"
        else:
            for name, value in list(vars(part).items()):
                if ("dropout" in name or name.endswith("pdrop")) and type(value) in (int, float):
                    yield part, name


@contextlib.contextmanager
def undisturbed(net: Any) -> Iterator[None]:
    """Within the block a net in training adds no noise and drops nothing: for a try-out that asks whether it can learn at all."""
    config = net.language_model.config.get_text_config()
    places = [(net, "neftune"), *((config, name) for name in DROPOUTS if getattr(config, name, None)), *_dropouts(net)]
    before = [(part, name, getattr(part, name)) for part, name in places]
    try:
        for part, name, share in before:
            if share:
                setattr(part, name, 0.0)
        yield
    finally:
        for part, name, share in before:
            if share:
                setattr(part, name, share)
