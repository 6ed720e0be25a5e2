"""The one batch: what a feed makes, a net reads and an objective sums over.

Every technique is a sum over groups of sequences, computed from a few named outputs of the net and a few named per-token
streams. Shapes: R rows, T tokens a row, S sequences, G groups. A row packs one or more whole sequences; a group is what an
objective compares (one answer, a pair, a ranking).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Atom = Literal["seq", "group", "step"]
# A row's length is a multiple of it (of the second above 1024 tokens): few shapes are quick.
GRAIN, LONG_GRAIN = 64, 256
LEAST_LONGEST = 128  # tokens that an attention kernel takes at once: to say that sequences are shorter tells it nothing


@dataclass
class Seq:
    """One tokenized sequence, not yet a tensor.

    ids: T token ids. weight: T floats, weight[t] scales the loss of predicting ids[t]; 0 is not trained.
    y: class (-1 for none), grade, or 1/0 for chosen/rejected. tokens, values: streams, T long (or (T,K)) and scalar. where: "file:line" it
    came from.
    lost: trained tokens that were cut off its end.
    """

    ids: list[int]
    weight: list[float]
    y: float = 0.0
    tokens: dict[str, Any] = field(default_factory=dict)  # lists of T floats, or arrays
    values: dict[str, float] = field(default_factory=dict)
    where: str = ""
    lost: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        """Tokens that are learnt; the first has nothing to be predicted from."""
        return sum(weight != 0 for weight in self.weight[1:])


Group = list[Seq]


@dataclass(frozen=True)
class Batch:
    """R rows of T tokens that hold S sequences in G groups: one micro-batch."""

    task: str
    ids: Tensor  # (R,T) int64
    pos: Tensor  # (R,T) int64, restarts at each sequence: that is what keeps packed sequences apart
    seq: Tensor  # (R,T) int64, -1 on padding
    weight: Tensor  # (R,T) float32
    trained: Tensor  # (N,) int64, flat index of each token with a weight
    edges: Tensor  # (E,) int32, flat index where each sequence begins, padding among them, and where the last ends
    last: Tensor  # (S,) int64, flat index of a sequence's last token
    group: Tensor  # (S,) int64, non-decreasing
    y: Tensor  # (S,) float32
    tokens: dict[str, Tensor]  # streams, (R,T) or (R,T,K)
    values: dict[str, Tensor]  # streams, (S,)
    where: tuple[str, ...]  # S places, to name the rows of a bad step
    longest: int = 0  # a power of two that no sequence is longer than, of 128 at the least

    @property
    def sequences(self) -> int:
        return self.last.numel()

    @property
    def groups(self) -> int:
        return int(self.group[-1]) + 1 if self.sequences else 0

    @property
    def real_tokens(self) -> int:
        return int((self.seq >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """The same on a device. What goes to a GPU goes from pinned memory, so that the host does not wait for it."""

        def move(x: Tensor) -> Tensor:
            far = device.type == "cuda" and x.device.type == "cpu"
            return x.pin_memory().to(device, non_blocking=True) if far else x.to(device)

        return self.each(move)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch of changed tensors, streams among them."""
        own: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        streams: dict[str, Any] = {
            name: {key: change(x) for key, x in getattr(self, name).items()} for name in ("tokens", "values")
        }
        return replace(self, **own, **streams)


@dataclass(frozen=True)
class Outputs:
    """What an objective may ask of a net by name in `needs`; None where it did not.

    logp: (R,T) float32, log p(ids[t] | ids[<t]) within the sequence; 0 where the weight is 0.
    score: (S,C) float32, what the score head makes of each sequence's last token.
    token_score: (R,T,C) float32, what the score head makes of each token.
    mean_logp: (R,T) float32, log p averaged over the vocabulary, where logp stands.
    soft_logp: (R,T) float32, sum_k q_k log p(k) over the streams `teacher_ids` and `teacher_shares` (R,T,K), the rest as one event.
    divergence: (R,T) float32, from the distribution of a teacher that reads the same batch.
    teacher_score: (S,C) float32, the teacher's scores of the same classes.
    """

    logp: Tensor | None = None
    score: Tensor | None = None
    token_score: Tensor | None = None
    mean_logp: Tensor | None = None
    soft_logp: Tensor | None = None
    divergence: Tensor | None = None
    teacher_score: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """sum: () the summed loss of a micro-batch, never a mean. stats: name -> (sum, count), so that they too add up."""

    sum: Tensor
    stats: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(Protocol):
    """A way of learning. A file of `objectives/` holds one; the loop knows only this.

    rows: the kinds of `data.rows.Row` it learns from. needs: outputs of the net. reads: streams that the feed must supply.
    atom: what may not be split over micro-batches.
    """

    rows: frozenset[str]
    needs: frozenset[str]
    reads: frozenset[str]
    atom: Atom

    def count(self, batch: Batch) -> Tensor:
        """() float32: what the step's summed loss is divided by, added up over all micro-batches of the step first."""

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        """The summed loss of one micro-batch."""


@dataclass(frozen=True)
class Divergence:
    """How far the student's distribution Q is from the teacher's P, both at a temperature, in nats.

    forward_kl: KL(P|Q), covers all that the teacher may say. reverse_kl: KL(Q|P), keeps to what it would say (MiniLLM, Gu et al. 2023,
    arXiv 2306.08543). jsd: beta KL(P|M) + (1 - beta) KL(Q|M) with M = beta P + (1 - beta) Q (GKD, Agarwal et al. 2023, arXiv 2306.13649,
    eq. 1), which leans to the former for a small beta and to the latter for a large one.
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(n,V), (n,V) logits -> (n,). A vocabulary that was only padded further is cut to the shorter one."""
        width = min(student.shape[-1], teacher.shape[-1])
        log_q, log_p = (log_softmax(logits[:, :width] / self.temperature) for logits in (student, teacher))
        if self.kind == "forward_kl":
            return _kl(log_p, log_q)
        if self.kind == "reverse_kl":
            return _kl(log_q, log_p)
        mix = torch.tensor([self.beta, 1 - self.beta], device=log_q.device).log()
        middle = torch.logaddexp(log_p + mix[0], log_q + mix[1])
        return self.beta * _kl(log_p, middle) + (1 - self.beta) * _kl(log_q, middle)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def log_softmax(logits: Tensor) -> Tensor:
    """As torch's own, which is less exact on the CPU over a wide vocabulary."""
    return logits - logits.logsumexp(-1, keepdim=True)


def pack(groups: Sequence[Group], *, row_tokens: int, task: str = "", pad: int = 0) -> Batch:
    """Lay the sequences of whole groups end to end into rows of at most `row_tokens` tokens, in order.

    A sequence longer than `row_tokens` gets a row of its own, and the rows grow to it: cutting is `render`'s to decide.
    """
    rows: list[list[tuple[int, Seq]]] = []
    room = 0
    for number, group in enumerate(groups):
        for seq in group:
            if not rows or len(seq) > room:
                rows.append([])
                room = row_tokens
            rows[-1].append((number, seq))
            room -= len(seq)
    return _as_batch(rows, task, pad)


def _as_batch(rows: list[list[tuple[int, Seq]]], task: str, pad: int) -> Batch:
    length = _rounded(max((sum(len(seq) for _, seq in row) for row in rows), default=0))
    shape = (len(rows), length)
    ids, pos, seq_of = (torch.full(shape, fill, dtype=torch.int64) for fill in (pad, 0, -1))
    weight = torch.zeros(shape)
    placed = [(number, seq) for row in rows for number, seq in row]
    streams = {name: torch.zeros(*shape, *np.shape(x)[1:]) for _, seq in placed for name, x in seq.tokens.items()}
    longest = max([1, *(len(seq) for _, seq in placed)])
    edges: list[int] = [0]
    last: list[int] = []
    for r, row in enumerate(rows):
        seqs = [seq for _, seq in row]
        lengths = [len(seq) for seq in seqs]
        end = sum(lengths)
        ids[r, :end] = torch.tensor(list(chain.from_iterable(seq.ids for seq in seqs)))
        pos[r] = torch.tensor(list(chain.from_iterable(map(range, [*lengths, length - end]))))
        seq_of[r, :end] = torch.arange(len(last), len(last) + len(seqs)).repeat_interleave(torch.tensor(lengths))
        # The first token of a sequence has no predictor.
        weight[r, :end] = torch.tensor(list(chain.from_iterable([0.0, *seq.weight[1:]] for seq in seqs)))
        for name in streams:
            whole = np.concatenate([np.asarray(seq.tokens[name], dtype=np.float32) for seq in seqs])
            streams[name][r, :end] = torch.from_numpy(whole)
        ends = [r * length + edge for edge in accumulate(lengths)]
        edges += ends
        last += [edge - 1 for edge in ends]
        if end < length:
            # Padding is sequences of its own, none longer than the real ones: nobody sees them, and they cost little.
            edges += [*range(r * length + end + longest, (r + 1) * length, longest), (r + 1) * length]
    return Batch(
        task=task,
        ids=ids,
        pos=pos,
        seq=seq_of,
        weight=weight,
        trained=weight.flatten().nonzero()[:, 0],
        edges=torch.tensor(edges, dtype=torch.int32),
        last=torch.tensor(last, dtype=torch.int64),
        group=torch.tensor([number for number, _ in placed], dtype=torch.int64),
        y=torch.tensor([seq.y for _, seq in placed]),
        tokens=streams,
        values={
            name: torch.tensor([seq.values[name] for _, seq in placed])
            for name in (placed[0][1].values if placed else ())
        },
        where=tuple(seq.where for _, seq in placed),
        longest=max(LEAST_LONGEST, 1 << (longest - 1).bit_length()),
    )


def _rounded(length: int) -> int:
    grain = GRAIN if length <= 1024 else LONG_GRAIN
    return -(-length // grain) * grain


def by_sequence(per_token: Tensor, batch: Batch) -> Tensor:
    """(R,T) -> (S,) sums over each sequence; padding is left out."""
    sums = per_token.new_zeros(batch.sequences + 1)
    return sums.index_add(0, batch.seq.flatten() % (batch.sequences + 1), per_token.flatten())[: batch.sequences]
