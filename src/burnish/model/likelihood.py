"""How likely a model finds given sequences: packed like training, and only the tokens asked about meet the vocabulary head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from burnish.core import Group, Seq, by_sequence
from burnish.data.feed import micro_batches
from burnish.model.net import Net

Result = TypeVar("Result")
GPU_TOKENS = 16384  # tokens in a micro-batch on a GPU at the least: fewer leave it waiting for the host


@dataclass(frozen=True)
class OptionScores:
    """What a model gives the O options of one prompt. logp: (O,) summed log-probability in nats. tokens: (O,) their tokens."""

    logp: np.ndarray
    tokens: np.ndarray

    @property
    def choice(self) -> int:
        """The likeliest option as it stands, which favours short ones."""
        return int(self.logp.argmax())

    @property
    def normalised_choice(self) -> int:
        """The option that is likeliest for each of its tokens, so that length alone neither helps nor hurts."""
        return int((self.logp / self.tokens).argmax())


def option_logp(
    net: Net,
    prompts: Sequence[list[int]],
    options: Sequence[Sequence[list[int]]],
    *,
    row_tokens: int,
    micro_tokens: int | None = None,
) -> list[OptionScores]:
    """The scores of each prompt's options, every option read right after its prompt.

    prompts: N lists of token ids, none empty, since an option's first token is predicted from the prompt's last. options: for each
    prompt its options' token ids; their numbers may differ, none is empty. row_tokens, micro_tokens: as in `sequence_logp`.
    """
    assert all(prompts), "a prompt has no tokens"
    assert all(option for answers in options for option in answers), "an option has no tokens"
    pairs = [(prompt, option) for prompt, answers in zip(prompts, options, strict=True) for option in answers]
    groups = [[Seq(prompt + option, [0.0] * len(prompt) + [1.0] * len(option))] for prompt, option in pairs]
    logp, tokens = sequence_logp(net, groups, row_tokens=row_tokens, micro_tokens=micro_tokens)
    ends = np.cumsum([len(answers) for answers in options], dtype=int)
    parts = zip(np.split(logp, ends)[:-1], np.split(tokens, ends)[:-1], strict=True)
    return [OptionScores(*scores) for scores in parts]


@torch.no_grad()
def sequence_logp(
    net: Net, groups: Sequence[Group], *, row_tokens: int, micro_tokens: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(S,) summed log-probability in nats of the tokens with a weight of each sequence, in order, and (S,) how many those are.

    row_tokens: length of a packed row. micro_tokens: tokens that go through the net at once; by default a row's on the CPU, and many
    more on a GPU. It bounds memory and changes no result; where the GPU has no room for it, it is halved down to a row's.
    """
    tokens = np.array([float(seq.trained) for group in groups for seq in group])
    with evaluating(net):
        found = as_fits(lambda micro: _sums(net, groups, row_tokens, micro), net, row_tokens, micro_tokens)
    return found, tokens


def as_fits(work: Callable[[int], Result], net: Net, row_tokens: int, micro_tokens: int | None = None) -> Result:
    """What `work` returns for as many tokens at once as fit: from `micro_tokens` down by halves, to a row's at the least."""
    if micro_tokens is None:
        micro_tokens = max(row_tokens, GPU_TOKENS) if net.device.type == "cuda" else row_tokens
    while True:
        try:
            return work(micro_tokens)
        except torch.OutOfMemoryError:
            if micro_tokens <= row_tokens:
                raise
        micro_tokens //= 2  # out of the handler, whose traceback holds on to the tensors that did not fit


def _sums(net: Net, groups: Sequence[Group], row_tokens: int, micro_tokens: int) -> np.ndarray:
    """(S,) sums, brought to the host all at once so that no batch waits for the one before it."""
    sums: list[Tensor] = []
    for batch in micro_batches(groups, "evaluate", row_tokens=row_tokens, micro_tokens=micro_tokens):
        batch = batch.to(net.device)
        logp = net(batch, frozenset({"logp"})).logp
        sums.append(by_sequence(logp, batch))  # logp is 0 where the weight is
    return torch.cat(sums).double().cpu().numpy() if sums else np.zeros(0)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout, and afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
