"""Let the model answer: many prompts of unequal length at once, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from burnish.model.load import quiet


@dataclass(frozen=True)
class Completion:
    """ids: the generated tokens, without the end token. stop: why it ended."""

    ids: list[int]
    text: str
    stop: Literal["end", "length"]


@dataclass(frozen=True)
class Sampler:
    """Generates with transformers' own decoding; prompts of like length go through together, padded on the left.

    batch_size: prompts at once. model: a transformers model or a `PeftModel`.
    """

    model: Any
    tokenizer: Any
    end_ids: Collection[int]
    batch_size: int = 16

    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        n: int = 1,
        max_new_tokens: int,
        temperature: float = 0.0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[list[Completion]]:
        """n completions for each prompt, in the order of the prompts. Temperature 0 is greedy decoding."""
        found: dict[int, list[Completion]] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            for indices in self._batches(prompts):
                answers = self._generate([prompts[index] for index in indices], n, max_new_tokens, temperature)
                for place, index in enumerate(indices):
                    found[index] = [self._completion(ids) for ids in answers[place * n : (place + 1) * n]]
                progress(len(found))
        finally:
            self.model.train(was_training)
        return [found[index] for index in range(len(prompts))]

    def _batches(self, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], n: int, max_new_tokens: int, temperature: float) -> list[list[int]]:
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        device = next(self.model.parameters()).device
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            num_return_sequences=n,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=pad,
        )
        with quiet():
            out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        answers: list[list[int]] = out[:, width:].tolist()
        return answers

    def _completion(self, ids: list[int]) -> Completion:
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), None)
        kept = ids if end is None else ids[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Completion(kept, text, "length" if end is None else "end")
