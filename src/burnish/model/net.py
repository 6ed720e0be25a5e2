"""The net: a batch in, the named outputs that an objective asks for out, for every decoder that transformers knows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from burnish.core import Batch, Outputs
from burnish.model import attention

HEAD_ROWS = 256  # tokens whose logits exist at once: 256 x 49152 float32 are 48 MiB


class Net(nn.Module):
    """A language model, or a `PeftModel` around one, that reads packed batches.

    No attention mask is handed on: position ids that restart are what keeps packed sequences apart, and an all-ones mask
    would silently switch that off. Only tokens with a weight ever meet the vocabulary head.
    """

    model: Any  # a transformers model, or a `PeftModel` around one

    def __init__(self, model: nn.Module, *, precision: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self._by_sequence = attention.use(self.language_model)

    @property
    def language_model(self) -> Any:
        """The transformers model inside, with the adapter's layers in it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        unknown = needs - {"logp"}
        assert not unknown, f"no net gives {unknown}"
        with self.autocast():
            decoder = self.language_model.get_decoder()
            packed = {"cu_seq_lens_q": attention.boundaries(batch.pos)} if self._by_sequence else {}
            out = decoder(input_ids=batch.ids, position_ids=batch.pos, use_cache=False, **packed)
            hidden = out.last_hidden_state  # (R,T,d)
        return Outputs(logp=self._logp(hidden, batch) if "logp" in needs else None)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 products of float32 weights. Weights that are bf16 already need no casting, and the casting costs time."""
        enabled = self.precision == "bf16" and self.language_model.dtype != torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16) if enabled else contextlib.nullcontext()

    def _logp(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(R,T,d) -> (R,T) log p(ids[t] | ids[<t]) where the weight is not 0, and 0 elsewhere."""
        wanted = (batch.weight[:, 1:] != 0).flatten().nonzero()[:, 0]  # (N,)
        sources = hidden[:, :-1].flatten(0, 1)[wanted]  # (N,d)
        targets = batch.ids[:, 1:].flatten()[wanted]  # (N,)
        logp = self._head_logp(sources, targets)
        rows, length = batch.ids.shape
        spread = logp.new_zeros(rows * (length - 1)).index_put((wanted,), logp).view(rows, length - 1)
        return F.pad(spread, (1, 0))

    def _head_logp(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(N,d), (N,) -> (N,) float32, in chunks of HEAD_ROWS so that the logits of a step never exist at once."""
        head = self.language_model.get_output_embeddings()
        bend = _logit_curve(self.language_model.config.get_text_config())
        chunks = range(0, len(targets), HEAD_ROWS)
        if type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
            parts = [
                _FrozenHead.apply(hidden[i : i + HEAD_ROWS], head.weight, head.bias, targets[i : i + HEAD_ROWS], bend)
                for i in chunks
            ]
        else:
            parts = [
                checkpoint(
                    _logp_of, head, bend, hidden[i : i + HEAD_ROWS], targets[i : i + HEAD_ROWS], use_reentrant=False
                )
                for i in chunks
            ]
        return torch.cat(parts) if parts else hidden.sum(-1).float() * 0


def _logp_of(head: nn.Module, bend: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    weight = getattr(head, "weight", None)
    logits = bend(head(hidden if weight is None else hidden.to(weight.dtype)).float())
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)  # log_softmax on the CPU is less exact


class _FrozenHead(torch.autograd.Function):
    """log p of the targets under a head that is not trained, with the gradient taken while the logits are at hand.

    d log p_i / d h_i depends on token i alone, so it is known in the forward pass whatever the loss will be: two products
    over the vocabulary instead of the three of recomputation, and nothing of size N x V is kept.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, bend: Callable[[Tensor], Tensor]
    ) -> Tensor:
        raw = F.linear(hidden.to(weight.dtype), weight, bias).float()  # (N,V)
        logits = bend(raw)
        # By hand, with one exponential: log_softmax on the CPU is off by 1e-5 over a wide vocabulary, and gradients show it.
        peak = logits.amax(-1, keepdim=True)  # (N,1)
        chosen = (logits.gather(-1, targets[:, None]) - peak)[:, 0]
        powers = logits.sub_(peak).exp_()  # in place: raw is needed again only where bend made a tensor of its own
        total = powers.sum(-1, keepdim=True)
        logp = chosen - total[:, 0].log()
        if ctx.needs_input_grad[0]:
            slope = powers.div_(total)  # softmax - onehot, in place: the sign is turned where there is less of it
            slope[torch.arange(len(targets), device=slope.device), targets] -= 1
            if bend is not _straight:
                with torch.enable_grad():
                    leaf = raw.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(bend(leaf), leaf, slope)
            ctx.save_for_backward((slope.to(weight.dtype) @ weight).to(hidden.dtype).neg_())
        return logp

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None, None, None


def _straight(logits: Tensor) -> Tensor:
    return logits


def _logit_curve(config: Any) -> Callable[[Tensor], Tensor]:
    """What some families do to their logits: Gemma caps them, Granite divides them, Cohere scales them."""
    if cap := getattr(config, "final_logit_softcapping", None):
        return lambda logits: cap * torch.tanh(logits / cap)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return _straight if scale == 1 else lambda logits: logits * scale
