"""The try-out before a real run: whatever would fail after an hour fails here, in seconds, and says why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from burnish.core import Batch, Group, pack
from burnish.data.render import Chat
from burnish.errors import SmokeError
from burnish.model.adapt import trained_parameters
from burnish.model.net import Net
from burnish.model.regularise import undisturbed
from burnish.train.checkpoint import random_state, set_random_state
from burnish.train.ladder import Ladder, is_out_of_memory, release
from burnish.train.loop import Tasks, backward
from burnish.train.optim import Optim

MEMORY_ROWS = 2  # rows to learn by heart
MEMORY_TOKENS = 256  # and how many tokens they may have together, so that it takes seconds
MEMORY_STEPS = 40
LEARNT = 0.05  # share of the first loss that counts as learnt by heart
# Nats a token; a logit of 30 in bf16 is itself only known to 0.125.
AGREEMENT = {"fp32": 1e-3, "bf16": 0.15, "nf4": 0.15, "fp8": 0.2}


@dataclass(frozen=True)
class SmokeReport:
    """What the try-out saw. mask: one rendered row, its trained tokens marked."""

    longest_tokens: int
    first_loss: float
    learnt_loss: float
    learnt_steps: int
    head_difference: float
    mask: str

    @property
    def summary(self) -> str:
        learnt = f"{self.first_loss:.2f} to {self.learnt_loss:.2f} in {self.learnt_steps} steps"
        how = (
            "learnt by heart"
            if self.learnt_loss <= max(LEARNT * self.first_loss, 0.02)
            else "tried, as far as so few weights learn"
        )
        return f"longest batch of {self.longest_tokens} tokens fits; {MEMORY_ROWS} rows {how}, {learnt}; export loads"


def smoke(
    net: Net,
    tasks: Tasks,
    groups: Mapping[str, Sequence[Group]],
    chats: Mapping[str, Chat],
    longest: Sequence[Batch],
    rate: float,
    export: Callable[[Any, Path], None],
    ladder: Ladder | None = None,
    by_heart: Tasks | None = None,
    enough: float = LEARNT,
) -> SmokeReport:
    """Try every part of the run once; the weights are as they were when it returns.

    groups, chats: of each task, by its name. longest: the micro-batches of a step of the longest rows. rate: the run's learning rate.
    export: saves the trained part into a folder and reads it back. ladder: what to give up where the longest do not fit. by_heart: by what
    rows are learnt by heart, where not by the tasks themselves. enough: the share of the first loss that they must come down to.
    Raises SmokeError naming the part that failed.
    """
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained_parameters(net).items()}
    random = random_state()
    try:
        difference = max(_head_difference(net, tasks, task, rows) for task, rows in groups.items())
        tokens = _longest_step(net, tasks, longest, ladder)
        release()  # the moments of an optimiser that is done with: it refers to itself, so they would stay until Python looks
        first, last, steps = _learn_by_heart(net, by_heart or tasks, groups, _optimizer(net, rate * 2, ladder), enough)
        with tempfile.TemporaryDirectory() as folder:
            export(net.model, Path(folder))
    finally:
        with torch.no_grad():
            for name, parameter in trained_parameters(net).items():
                parameter.copy_(before[name])
        net.zero_grad(set_to_none=True)
        set_random_state(random)
        release()
    masks = [chats[task].show(_shortest(rows)[0][0]) for task, rows in groups.items()]
    return SmokeReport(tokens, first, last, steps, difference, "\n".join(masks))


def _head_difference(net: Net, tasks: Tasks, task: str, groups: Sequence[Group]) -> float:
    """The mean difference between our log-probabilities of what a row teaches and those from the model's own logits."""
    group = _shortest(groups)[0]
    batch = pack(group_of_one(group), row_tokens=len(group[0]), task=task).to(net.device)
    net.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # for one short row nothing is compiled
        scored = {"score", "token_score"} & tasks[task][0].needs
        differences = _of_scores(net, batch, frozenset(scored)) if scored else _of_tokens(net, batch)
    difference = float(differences.abs().mean())
    if not difference <= AGREEMENT[net.precision]:
        raise SmokeError(
            f"log-probabilities differ by {difference:.2g} from the model's own logits",
            where="loss head",
            expected="a decoder whose logits are its head's output; this model does something more",
        )
    return difference


def _of_tokens(net: Net, batch: Batch) -> torch.Tensor:
    """(N,) for the trained tokens."""
    ours = net(batch, frozenset({"logp"})).logp
    with net.autocast():
        logits = net.model(input_ids=batch.ids, use_cache=False).logits[
            :, -batch.ids.shape[1] :
        ]  # but for learnt tokens
    theirs = logits.float().log_softmax(-1)[:, :-1].gather(-1, batch.ids[:, 1:, None])[..., 0]
    assert ours is not None
    return (ours[:, 1:] - theirs)[batch.weight[:, 1:] != 0]


def _of_scores(net: Net, batch: Batch, needs: frozenset[str]) -> torch.Tensor:
    """(C,) for the labels of a batch of one sequence, (T,C) for its tokens. Beside bf16 weights the head is float32, which plain
    transformers must be told. A single score has no log-probability, and stands for itself."""
    length = int(batch.last) + 1
    outputs = net(batch, needs)
    ours = outputs.score[0] if outputs.score is not None else outputs.token_score[0, :length]
    with torch.autocast(net.device.type, torch.bfloat16, enabled=net.precision != "fp32"):
        ids, inner = batch.ids[:, :length], net.language_model
        if inner.get_output_embeddings() is None:
            theirs = net.model(input_ids=ids, use_cache=False).logits.float()[0]
        else:  # a head beside the vocabulary's
            hidden = net.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
            theirs = inner.score(hidden[0, -1].to(inner.score.weight.dtype)).float()
    return ours - theirs if ours.shape[-1] == 1 else ours.log_softmax(-1) - theirs.log_softmax(-1)


def group_of_one(group: Group) -> list[Group]:
    """The first sequence of a group as a batch of its own."""
    return [group[:1]]


def _longest_step(net: Net, tasks: Tasks, longest: Sequence[Batch], ladder: Ladder | None) -> int:
    """One step that changes nothing at the size that needs the most memory, with Adam's moments there; the tokens that fitted."""
    net.train()
    while True:
        tokens = max(batch.ids.numel() for batch in longest)
        try:
            _step_without_change(net, tasks, longest, ladder)
            return tokens
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if ladder is None:
                raise SmokeError(
                    f"a micro-batch of {tokens} tokens does not fit into memory",
                    where="longest batch",
                    hint=f"--set train.micro_tokens={tokens // 2}   or --set train.max_length={tokens // 2}",
                ) from error
        net.zero_grad(set_to_none=True)
        release()
        ladder.down("the try-out", tokens)
        longest = ladder.feed.hardest()


def _step_without_change(net: Net, tasks: Tasks, longest: Sequence[Batch], ladder: Ladder | None) -> None:
    optim = _optimizer(net, 0.0, ladder)
    for _ in range(2 if net.device.type == "cuda" else 1):  # the moments come with the first step
        loss, _, norm = backward(net, tasks, longest, optim)
        _check_gradient(loss, norm, longest)
        optim.step()
        optim.zero_grad()


def _check_gradient(loss: float, norm: float, longest: Sequence[Batch]) -> None:
    if not torch.isfinite(torch.tensor([loss, norm])).all():
        places = ", ".join(longest[0].where[:5])
        raise SmokeError(
            f"the loss is {loss} and the gradient's norm {norm}",
            where=f"longest batch, rows {places}",
            expected="finite numbers",
        )
    if norm == 0:
        raise SmokeError(
            "no gradient reaches the trained parameters",
            where="longest batch",
            hint="freeze: {layers: '', modules: []}",
        )


def _learn_by_heart(
    net: Net, tasks: Tasks, groups: Mapping[str, Sequence[Group]], optim: Optim, enough: float
) -> tuple[float, float, int]:
    """Train on a few rows of each task until this share of their loss is left at the most: (first loss, last loss, steps)."""
    chosen = {task: _shortest(rows)[:MEMORY_ROWS] for task, rows in groups.items()}
    batch = [pack(rows, row_tokens=MEMORY_TOKENS, task=task) for task, rows in chosen.items()]
    losses: list[float] = []
    net.train()
    for _ in range(MEMORY_STEPS):
        optim.zero_grad()
        with undisturbed(net):
            loss, _, _ = backward(net, tasks, batch, optim)
        losses.append(loss)
        if loss <= max(enough * losses[0], 0.02):
            return losses[0], loss, len(losses)
        optim.step()
    raise SmokeError(
        f"the loss of {sum(map(len, chosen.values()))} rows fell from {losses[0]:.2f} only to {losses[-1]:.2f} in {MEMORY_STEPS} steps",
        where=f"learning {', '.join(place for part in batch for place in part.where)} by heart",
        expected=f"under {enough * losses[0]:.2f}; a model that cannot learn two rows cannot learn a file",
        hint="--set train.learning_rate=auto   and look at the rows with burnish data check",
    )


def _shortest(groups: Sequence[Group]) -> list[Group]:
    """Groups from the shortest on."""
    return sorted(filter(None, groups), key=lambda group: sum(len(seq) for seq in group))


def _optimizer(net: Net, rate: float, ladder: Ladder | None) -> Optim:
    kinds: Any = {"kind": ladder.settings.optimizer, "in_backward": ladder.settings.in_backward} if ladder else {}
    total = 10 * MEMORY_STEPS
    return Optim(trained_parameters(net), learning_rate=rate, total=total, warmup=0.0, weight_decay=0.0, **kinds)
