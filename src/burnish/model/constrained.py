"""Answers that can be nothing but JSON of a schema: at each token what would break it is ruled out.

llguidance keeps the automaton of schema and tokenizer, and says which tokens may come next; here its masks meet transformers'
decoding. Source of the method: Willard and Louf 2023 (arXiv 2307.09702); of JSON schemas in it: Geng et al. 2025 (arXiv 2501.10868).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.errors import RecipeError

# A model that does not know how to go on may else write spaces for ever.
LAYOUT = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]{0,16}"}


@dataclass(frozen=True)
class Constraint:
    """A JSON schema that every answer fits, unless it is cut off. Raises RecipeError for a schema that cannot be held to."""

    schema: Mapping[str, Any]

    @cached_property
    def grammar(self) -> str:
        guidance = _llguidance()
        try:
            grammar: str = guidance.LLMatcher.grammar_from_json_schema(json.dumps(self.schema), defaults=LAYOUT)
            problem = guidance.LLMatcher.validate_grammar(grammar)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise RecipeError(
                f"answers cannot be held to this schema: {problem.splitlines()[0]}",
                where="task.schema",
                expected="a schema that llguidance can compile",
                hint="task: {constrained: false}",
            )
        return grammar

    def masks(self, tokenizer: Any, end_ids: Collection[int], width: int) -> Masks:
        """What transformers' decoding asks before each token. width: tokens of the prompts, padding among them."""
        return Masks(self.grammar, tokenizer, sorted(end_ids), width)


class Masks:
    """A processor of logits: sets those of tokens that would break the grammar to minus infinity. One state for each row."""

    def __init__(self, grammar: str, tokenizer: Any, end_ids: list[int], width: int) -> None:
        self.grammar, self.tokenizer, self.end_ids, self.width = grammar, tokenizer, end_ids, width
        self._rows: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B,T) ids so far, (B,V) logits -> (B,V) logits. Of a row to which nothing can be added only an end token is left."""
        if not self._rows:
            tokens = _tokens(self.tokenizer, tuple(self.end_ids), scores.shape[-1])
            self._rows = [_llguidance().LLMatcher(tokens, self.grammar) for _ in range(len(scores))]
        allowed = np.zeros(tuple(scores.shape), dtype=bool)
        new = input_ids[:, self.width :].tolist()
        for number, (row, written) in enumerate(zip(self._rows, new, strict=True)):
            if written and not row.is_stopped():
                row.consume_token(written[-1])
            if row.is_stopped():
                allowed[number, self.end_ids] = True
            else:
                bits = np.unpackbits(np.frombuffer(row.compute_bitmask(), dtype=np.uint8), bitorder="little")
                allowed[number] = bits[: scores.shape[-1]]
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)


_known: dict[Any, Any] = {}  # the newest alone: to read a vocabulary takes about a second


def _tokens(tokenizer: Any, end_ids: tuple[int, ...], size: int) -> Any:
    from llguidance.hf import from_tokenizer

    key = id(tokenizer), end_ids, size
    if key not in _known:
        _known.clear()
        _known[key] = from_tokenizer(tokenizer, n_vocab=size, eos_token=list(end_ids))
    return _known[key]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RecipeError(
            "llguidance is not installed", where="task.constrained", hint="pip install 'burnish[constrained]'"
        ) from error
    return llguidance
