"""The net: a batch in, the named outputs that an objective asks for out, for every decoder that transformers knows."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from burnish.core import Batch, Divergence, Outputs
from burnish.model import attention, prompts, soft
from burnish.model.head import head_logp, logit_curve
from burnish.model.regularise import noisy_embeddings

OF_TOKENS = frozenset({"logp", "mean_logp", "soft_logp", "divergence"})  # outputs of the vocabulary head
OF_TEACHER = frozenset({"divergence", "teacher_score"})  # those for which a teacher reads the batch too


@dataclass(frozen=True)
class Teacher:
    """A frozen net that reads every batch beside the student. labels: its number of each of the student's labels, for score heads."""

    net: Net
    divergence: Divergence
    labels: tuple[int, ...] = ()


class Net(nn.Module):
    """A language model, or a `PeftModel` around one, that reads packed batches.

    What keeps packed sequences apart are position ids that restart, or the edges between sequences where attention goes by them. An
    all-ones mask over the row would silently switch the former off, so none is handed on. Only tokens with a weight ever meet the
    vocabulary head.
    """

    model: Any  # a transformers model, or a `PeftModel` around one

    def __init__(self, model: nn.Module, *, precision: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self._by_sequence = attention.use(self.language_model)
        # Nats a token in bf16 and after the base lost digits, where measured.
        self.rounding: tuple[float, float] | None = None
        self.neftune = 0.0  # alpha of the noise on embeddings in training
        self.teacher: Teacher | None = None  # whom `divergence` and `teacher_score` are measured against
        self.temperature = 1.0  # of `soft_logp`
        self.offload = False  # keep what layers leave for the backward pass in the host's memory
        # One kernel for all sequences; not where learnt tokens stand before each.
        self.by_edges = attention.by_edges(self.language_model, self.device, precision) and not prompts.learnt_tokens(
            model
        )

    @property
    def language_model(self) -> Any:
        """The transformers model inside, with the adapter's layers in it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        unknown = needs - OF_TOKENS - {"score", "token_score", "teacher_score"}
        assert not unknown, f"no net gives {unknown}"
        with self.autocast():
            hidden = self._hidden(batch)  # (R,T,d)
            of_tokens = self._of_tokens(hidden, batch, needs & OF_TOKENS)
        return Outputs(
            **of_tokens,
            score=self._score(hidden.flatten(0, 1).index_select(0, batch.last)) if "score" in needs else None,
            token_score=self._score(hidden) if "token_score" in needs else None,
            teacher_score=self._teacher_score(batch) if "teacher_score" in needs else None,
        )

    def _hidden(self, batch: Batch) -> Tensor:
        """(R,T,d) what the decoder makes of each token."""
        decoder = self.language_model.get_decoder()
        edges = {"cu_seq_lens_q": batch.edges, "max_length_q": batch.longest}
        told: dict[str, Any] = edges if self.by_edges or self._by_sequence else {}
        if self.by_edges:
            # A mask that is there already: transformers would look for sequences to mask, and wait for the GPU.
            told |= {"attention_mask": torch.ones(1, 1, 1, 1, device=batch.ids.device)}
        with contextlib.ExitStack() as around:
            if self.neftune and self.model.training:
                around.enter_context(noisy_embeddings(self.language_model.get_input_embeddings(), batch, self.neftune))
            if self.by_edges:
                around.enter_context(attention.packed(decoder))
            if self.offload:
                around.enter_context(self._kept_by_the_host())
            if not torch.is_grad_enabled():
                # Nothing is compiled for an exam: its shapes would each cost more than they save.
                around.enter_context(torch.compiler.set_stance("force_eager"))
            if prompts.learnt_tokens(self.model):
                embeddings = self.language_model.get_input_embeddings()(batch.ids)
                return prompts.hidden_states(self.model, embeddings, batch)
            out = decoder(input_ids=batch.ids, position_ids=batch.pos, use_cache=False, **told)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _kept_by_the_host(self) -> contextlib.AbstractContextManager[Any]:
        """What the backward pass will want lies in the host's memory until then, but for the weights."""
        own = {x.data_ptr() for x in [*self.model.parameters(), *self.model.buffers()]}

        def keep(x: Tensor) -> Tensor | tuple[torch.device, Tensor]:
            if not x.is_cuda or x.data_ptr() in own:
                return x
            far = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            return x.device, far.copy_(x, non_blocking=True)

        def fetch(kept: Tensor | tuple[torch.device, Tensor]) -> Tensor:
            return kept if isinstance(kept, Tensor) else kept[1].to(kept[0], non_blocking=True)

        return torch.autograd.graph.saved_tensors_hooks(keep, fetch)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 products of float32 weights. Weights that are bf16 already need no casting, and the casting costs time."""
        enabled = self.precision != "fp32" and self.language_model.dtype != torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16) if enabled else contextlib.nullcontext()

    def _score(self, hidden: Tensor) -> Tensor:
        """(...,d) -> (...,C) float32: the score head, on the last token of each sequence (which has seen all of it) or on all."""
        head = self.language_model.score
        scores: Tensor = head(hidden.to(head.weight.dtype))
        return scores.float()

    def _of_tokens(self, hidden: Tensor, batch: Batch, needs: frozenset[str]) -> dict[str, Tensor]:
        """(R,T,d) -> (R,T) of each output of the vocabulary head where the weight is not 0, and 0 elsewhere.

        logp is log p(ids[t] | ids[<t]).
        """
        if not needs:
            return {}
        # (N,); a place past the end is one of a padded list, and lands in a slot that is cut off
        places = batch.trained
        kept = places.clamp_max(batch.ids.numel() - 1)
        sources = hidden.flatten(0, 1).index_select(0, places - 1)  # (N,d)
        targets = batch.ids.flatten()[kept]  # (N,)
        language_model = self.language_model
        head, config = language_model.get_output_embeddings(), language_model.config.get_text_config()
        if needs == {"logp"}:
            found = {"logp": head_logp(head, config, sources, targets)}
        else:
            measures = {name: self._measure(name, batch, kept, targets) for name in sorted(needs)}
            found = dict(zip(measures, soft.head_measures(head, config, sources, list(measures.values())), strict=True))
        spread = {name: x.new_zeros(batch.ids.numel() + 1).scatter(0, places, x) for name, x in found.items()}
        return {name: x[:-1].view_as(batch.ids) for name, x in spread.items()}

    def _measure(self, name: str, batch: Batch, places: Tensor, targets: Tensor) -> soft.Measure:
        """What an output takes of each trained token's logits. places, targets: (N,) where the tokens stand, and which they are."""
        if name == "logp":
            return soft.target_logp(targets)
        if name == "mean_logp":
            return soft.mean_logp()
        if name == "soft_logp":
            ids, shares = (batch.tokens[stream].flatten(0, 1)[places] for stream in ("teacher_ids", "teacher_shares"))
            return soft.soft_logp(ids.long(), shares, self.temperature)
        assert self.teacher is not None, "there is no teacher to part from"
        net = self.teacher.net
        with torch.no_grad(), net.autocast():
            hidden = net._hidden(batch).flatten(0, 1).index_select(0, places - 1)
        return soft.from_teacher(self.teacher.divergence, hidden, net.logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """(N,d) -> (N,V) float32: all logits of some states, where there are few of them."""
        model = self.language_model
        head = model.get_output_embeddings()
        return logit_curve(model.config.get_text_config())(head(hidden.to(head.weight.dtype)).float())

    @torch.no_grad()
    def _teacher_score(self, batch: Batch) -> Tensor:
        """(S,C) float32: the teacher's scores, in the order of the student's labels."""
        assert self.teacher is not None, "there is no teacher to part from"
        score = self.teacher.net(batch, frozenset({"score"})).score
        assert score is not None
        return score[:, list(self.teacher.labels)] if self.teacher.labels else score
