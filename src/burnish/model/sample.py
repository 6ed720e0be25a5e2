"""Let the model answer: many prompts of unequal length at once, with a key-value cache.

transformers' own `generate` decodes everywhere, so that its settings mean what they mean elsewhere. On a GPU a decoding step is
recorded and replayed (`recorded`), and batches are as large as memory allows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from burnish.model.constrained import Constraint
from burnish.model.likelihood import evaluating
from burnish.model.load import quiet
from burnish.model.prompts import generate_after, learnt_tokens
from burnish.model.recorded import Unrecordable, recordable, recorded

CPU_PROMPTS = 16  # prompts at once on the CPU, where more are no faster
GPU_ROWS = 512  # answers at once on a GPU at the most: beyond it a step is no longer a matter of reading the weights
GPU_SHARE = 0.5  # of the free memory that a batch may take by our estimate, which is a rough one
LIKE = 2  # a GPU's batch holds no prompt more than so many times as long as its shortest, as padding is cached and read too
SHORT = 128  # tokens up to which prompts count as alike


@dataclass(frozen=True)
class Completion:
    """ids: the generated tokens, without the end token. stop: why it ended."""

    ids: list[int]
    text: str
    stop: Literal["end", "length"]


@dataclass(frozen=True)
class Sampler:
    """Generates with transformers' own decoding; prompts of like length go through together, padded on the left.

    model: a transformers model or a `PeftModel`. batch_size: prompts at once; None for a few on the CPU, and for what memory allows on
    a GPU. A batch that does not fit after all is halved. constraint: what every answer must fit.
    """

    model: Any
    tokenizer: Any
    end_ids: Collection[int]
    batch_size: int | None = None
    constraint: Constraint | None = None

    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        n: int = 1,
        max_new_tokens: int,
        temperature: float = 0.0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[list[Completion]]:
        """n completions for each prompt, in the order of the prompts. Temperature 0 is greedy decoding.

        Raises torch.OutOfMemoryError where a single prompt does not fit.
        """
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        rows = [index for index in order for _ in range(n)]  # one row for each answer
        found: list[list[Completion]] = [[] for _ in prompts]
        most, record, done = self._most(n), recordable(self.model) and self.constraint is None, 0
        with evaluating(self.model):
            while done < len(rows):
                waiting = [prompts[index] for index in rows[done : done + most]]
                batch = waiting[: self._fitting(waiting, max_new_tokens)]
                try:
                    answers = self._generate(batch, max_new_tokens, temperature, record)
                except torch.OutOfMemoryError:
                    if len(batch) == 1:
                        raise
                    most = len(batch) // 2
                    continue
                except Unrecordable:
                    record = False
                    continue
                for index, ids in zip(rows[done : done + len(batch)], answers, strict=True):
                    found[index].append(self._completion(ids))
                done += len(batch)
                progress(done // n)
        return found

    def _most(self, n: int) -> int:
        """Rows at once, whatever their length."""
        if self.batch_size is not None:
            return self.batch_size * n
        return GPU_ROWS if self._device.type == "cuda" else CPU_PROMPTS * n

    def _fitting(self, prompts: list[list[int]], new: int) -> int:
        """How many of the prompts, from the shortest on, go through together: all but on a GPU that is left to choose."""
        if self.batch_size is not None or self._device.type != "cuda":
            return len(prompts)
        idle = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        room = GPU_SHARE * (torch.cuda.mem_get_info(self._device)[0] + idle)
        return fitting([len(prompt) for prompt in prompts], lambda length: row_bytes(self.model, length, new), room)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], max_new_tokens: int, temperature: float, record: bool
    ) -> list[list[int]]:
        """The new tokens of each prompt, with the end token where there is one. Raises Unrecordable where `record` cannot be."""
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=self._device)
        mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self._device
        )
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            num_return_sequences=1,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=pad,
            disable_compile=not record,
        )
        learnt = learnt_tokens(self.model)
        masks = [self.constraint.masks(self.tokenizer, self.end_ids, width + learnt)] if self.constraint else []
        decoding: contextlib.AbstractContextManager[dict[str, Any]] = contextlib.nullcontext({})
        if record:
            decoding = recorded(self.model, width + max_new_tokens)
        # A layer that training has compiled would be compiled again for every length of the cache.
        with quiet(), torch.compiler.set_stance("force_eager"), decoding as cache:
            if learnt:
                out = generate_after(self.model, ids, mask, generation_config=config, logits_processor=masks)
            else:
                out = self.model.generate(
                    input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=masks, **cache
                )
        answers: list[list[int]] = out[:, width:].tolist()
        return answers

    def _completion(self, ids: list[int]) -> Completion:
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), None)
        kept = ids if end is None else ids[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Completion(kept, text, "length" if end is None else "end")


# What fits -----------------------------------------------------------------------------------------------------------


def fitting(lengths: Sequence[int], bytes_of: Callable[[int], float], room: float) -> int:
    """How many rows of ascending lengths make a batch, one at the least: alike in length, all as dear as the longest of them."""
    count = 1
    alike = max(LIKE * lengths[0], SHORT)
    while count < len(lengths) and lengths[count] <= alike and (count + 1) * bytes_of(lengths[count]) <= room:
        count += 1
    return count


def row_bytes(model: Any, prompt: int, new: int) -> int:
    """About what one more row takes: its keys and values, the widest moment of reading its prompt, and its logits."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    pairs = np.max(getattr(config, "num_key_value_heads", None) or heads)  # some families list them by layer
    head_size = getattr(config, "head_dim", None) or config.hidden_size // np.min(heads)
    inner = np.max(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    cache = 2 * config.num_hidden_layers * pairs * head_size * (prompt + new)
    reading = prompt * (8 * config.hidden_size + 4 * inner)
    mask = 3 * prompt * (prompt + new)  # a byte, and two more where it is added to the products
    logits = 12 * config.vocab_size  # as the model gives them, in float32, and once more while a token is chosen
    return int(model.dtype.itemsize * (cache + reading) + mask + logits)
