"""A net whose body is frozen: what it makes of a text never changes, so it is computed once and looked up from then on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from burnish.core import Batch, Group, Outputs, pack
from burnish.data.feed import parts_of
from burnish.model.likelihood import as_fits, evaluating
from burnish.model.net import Net

FEATURE = "feature"  # the stream with the number of a sequence's feature
MOST = 2**24  # numbers that a stream of float32 tells apart


class CachedBody(Net):
    """A net that keeps the hidden state at the last token of sequences it has seen, (d,) each, and applies the score head to that.

    Sequences that `remember` has met carry the stream FEATURE; a batch of them never goes through the body again. Any other batch
    goes the whole way, so an exam of unseen texts, a replay and an export need to know nothing of this. What is kept lies beside the
    model, d numbers a sequence in the precision of the body: 23 MB for 10,000 texts and d = 576 in float32; on request in a file too.
    """

    def __init__(self, model: nn.Module, *, precision: str = "fp32") -> None:
        super().__init__(model, precision=precision)
        self.features: Tensor | None = None  # (N,d)

    def remember(self, groups: Sequence[Group], row_tokens: int, file: Path | None = None) -> None:
        """Compute and keep the feature of every sequence, in place of those kept so far. row_tokens: as in `sequence_logp`.

        The sequences are marked in place, so what is packed from them is looked up. file: where features of these very sequences may lie
        already, and lie afterwards; whoever names it answers for its being of this body.
        """
        seqs = [seq for group in groups for seq in group]
        assert len(seqs) < MOST, f"{len(seqs)} sequences are more than a stream can number"
        for seq in seqs:
            seq.values.pop(FEATURE, None)
        self.features = _read(file, len(seqs), self.device) if file else None
        if self.features is None:
            with evaluating(self):
                self.features = as_fits(lambda tokens: self._computed(groups, row_tokens, tokens), self, row_tokens)
            if file:
                with contextlib.suppress(OSError, SafetensorError):  # no room: then they are computed again next time
                    _write(file, self.features)
        for number, seq in enumerate(seqs):
            seq.values[FEATURE] = float(number)

    @torch.no_grad()
    def _computed(self, groups: Sequence[Group], row_tokens: int, micro_tokens: int) -> Tensor:
        """(N,d) of the sequences in order. Texts of like length are packed together, so that little padding goes through."""
        order = sorted(range(len(groups)), key=lambda number: sum(map(len, groups[number])))
        sizes = [sum(map(len, groups[number])) for number in order]
        places = _starts(groups)
        found: Tensor | None = None
        for part in parts_of(sizes, micro_tokens):
            chosen = order[part]
            batch = pack([groups[number] for number in chosen], row_tokens=row_tokens).to(self.device)
            with self.autocast():
                hidden = self._hidden(batch).flatten(0, 1).index_select(0, batch.last)  # (S,d)
            if found is None:
                found = hidden.new_empty(sum(map(len, groups)), hidden.shape[-1])
            numbers = [places[number] + inside for number in chosen for inside in range(len(groups[number]))]
            found[torch.tensor(numbers, device=found.device)] = hidden
        assert found is not None, "there are no sequences"
        return found

    def forward(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        numbers = batch.values.get(FEATURE)
        if numbers is None or self.features is None or needs != {"score"}:
            return super().forward(batch, needs)
        return Outputs(score=self._score(self.features.index_select(0, numbers.long())))  # (S,d)


def _read(file: Path, count: int, device: torch.device) -> Tensor | None:
    """(count,d) from a file, or None where there is none that holds them whole."""
    try:
        found = load_file(file, device=str(device))[FEATURE]
    except (OSError, KeyError, SafetensorError):
        return None
    return found if len(found) == count else None


def _write(file: Path, features: Tensor) -> None:
    """Whole or not at all."""
    fresh = file.with_suffix(f".{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({FEATURE: features}, fresh)
    fresh.replace(file)


def _starts(groups: Sequence[Group]) -> list[int]:
    """The number of each group's first sequence."""
    starts, count = [], 0
    for group in groups:
        starts.append(count)
        count += len(group)
    return starts
