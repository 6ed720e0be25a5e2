"""Prompt and prefix tuning: learnt tokens before each sequence, and the model below them untouched.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691) learns embeddings, prefix tuning (Li and Liang 2021, arXiv 2101.00190) keys and
values of every layer. Both are PEFT's own parameters. PEFT's forward pass knows no packed rows, and its `generate` gives other tokens
than that pass with transformers 5.24, which renamed the cache: so here are two that go by transformers alone.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from burnish.core import Batch, by_sequence


def learnt_tokens(model: Any) -> int:
    """How many learnt tokens a model puts before the others: 0 but for a `PeftModel` of prompt or prefix tuning."""
    told = model.active_peft_config if hasattr(model, "peft_config") else None
    return int(told.num_virtual_tokens) if told is not None and told.is_prompt_learning else 0


def hidden_states(model: Any, embeddings: Tensor, batch: Batch) -> Tensor:
    """(R,T,d) embeddings of a packed batch -> (R,T,d) what the decoder makes of each token after the learnt ones; 0 on padding.

    Each sequence gets a row of its own, filled up on the right with what no token of it sees; those of like length go through together.
    """
    flat = embeddings.flatten(0, 1)  # (R*T,d)
    found = torch.zeros_like(flat)
    lengths = by_sequence(torch.ones_like(batch.weight), batch).long()  # (S,)
    for chosen in _alike(lengths.tolist()):
        own = lengths[chosen]
        steps = torch.arange(int(own.max()), device=flat.device)
        places = (batch.last[chosen] - own + 1)[:, None] + steps  # (s,L)
        inside = steps < own[:, None]
        out = _decoded(model, flat[places.clamp_max(len(flat) - 1)])  # (s,L,d)
        found = found.to(out.dtype).index_copy(0, places[inside], out[inside])
    return found.view_as(embeddings)


def _alike(lengths: list[int]) -> list[list[int]]:
    """The numbers of the sequences, those together whose lengths lie between two powers of two: less than half is filled up."""
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault((length - 1).bit_length(), []).append(number)
    return list(groups.values())


def _decoded(model: Any, rows: Tensor) -> Tensor:
    """(s,L,d) embeddings, a sequence a row -> (s,L,d) hidden states, in the presence of the learnt tokens."""
    decoder, count = model.get_base_model().get_decoder(), learnt_tokens(model)
    if _is_prefix(model):
        places = torch.arange(count, count + rows.shape[1], device=rows.device)[None]
        told = {_cache_name(decoder): model.get_prompt(rows.shape[0])}
        out = decoder(inputs_embeds=rows, position_ids=places, use_cache=False, **told)
    else:
        rows = torch.cat([model.get_prompt(rows.shape[0]).to(rows.dtype), rows], dim=1)
        places = torch.arange(rows.shape[1], device=rows.device)[None]
        out = decoder(inputs_embeds=rows, position_ids=places, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden if _is_prefix(model) else hidden[:, count:]


def generate_after(model: Any, ids: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    """transformers' own `generate` after the learnt tokens. ids, mask: (R,T) padded on the left. Returns (R,T+new) as that does.

    The keys and values of the learnt tokens are a cache that is there already; placeholders stand for them among the ids.
    """
    inner, count = model.get_base_model(), learnt_tokens(model)
    if _is_prefix(model):
        cache = model.get_prompt(ids.shape[0])
    else:
        prompt = model.get_prompt(1).to(inner.dtype)
        cache = getattr(inner.get_decoder()(inputs_embeds=prompt, use_cache=True), _cache_name(inner))
        cache.batch_repeat_interleave(ids.shape[0])
    before = ids.new_full((ids.shape[0], count), settings["generation_config"].pad_token_id)
    told = {
        "input_ids": torch.cat([before, ids], dim=1),
        "attention_mask": torch.cat([torch.ones_like(before), mask], dim=1),
    }
    out: Tensor = inner.generate(**told, **settings, **{_cache_name(inner): cache})
    return out[:, count:]


def _is_prefix(model: Any) -> bool:
    return bool(model.active_peft_config.peft_type == "PREFIX_TUNING")


def _cache_name(module: Any) -> str:
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"  # renamed in 5.24
