"""A teacher on this machine: found by name, loaded once, frozen; and what it writes down of its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.core import Divergence, Group, pack
from burnish.errors import ModelError
from burnish.model.adapters import merge
from burnish.model.likelihood import evaluating
from burnish.model.load import Head, find_model, load_config, load_model, on_device, quiet
from burnish.model.net import Net, Teacher
from burnish.model.saved import head_in, read_json


@dataclass(frozen=True)
class Place:
    """Where a teacher lies. source: a folder or hub id. adapter: the folder of an adapter on top of it."""

    source: str
    adapter: str = ""

    @property
    def tokenizer(self) -> str:
        return self.adapter or self.source


def is_endpoint(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def find_teacher(name: str) -> Place:
    """A model's name, its folder, the folder of an adapter, or that of a run, whose merged model is taken before its adapter.

    Raises ModelError that says what would work.
    """
    folder = Path(name).expanduser()
    if (folder / "merged" / "config.json").is_file():
        return Place(str(folder / "merged"))
    for one in (folder / "adapter", folder):
        if (one / "adapter_config.json").is_file():
            said = read_json(one / "adapter_config.json")
            if said.get("peft_type") in ("PROMPT_TUNING", "PREFIX_TUNING"):
                raise ModelError(
                    "what it learnt are tokens before the others, and a teacher reads the student's rows as they are",
                    where=name,
                    expected="a model of another method",
                )
            return Place(find_model(said["base_model_name_or_path"]), str(one))
    if (folder / "report.json").is_file():
        raise ModelError(
            "the run has neither merged/ nor adapter/",
            where=name,
            hint="burnish run RECIPE   makes them, or goes on to them",
        )
    if not folder.exists() and "/" in name and (folder.parent.is_dir() or name.startswith("runs/")):
        # Else a misspelt run would be looked for on the hub.
        raise ModelError(
            "there is no such run or model",
            where=name,
            expected="the folder of a run, or a model",
            hint="burnish runs   lists them",
        )
    return Place(find_model(name))


def head_of_teacher(place: Place) -> Head | None:
    """The score head of a teacher; None for one that writes, whatever it scores beside that. Raises ModelError for a damaged file."""
    if place.adapter:
        head = head_in(Path(place.adapter), {})
    else:
        config = load_config(place.source)
        named = {"id2label": config.id2label, "pad_token_id": config.get_text_config().pad_token_id}
        head = head_in(Path(place.source), config.to_dict() | named)
    return head if head and not head.beside else None


def load_teacher(
    place: Place, *, device: torch.device, trust_remote_code: bool = False, head: Head | None = None
) -> Net:
    """The frozen net, an adapter added into its weights, as `dtype_of_deployed` has them."""
    dtype = dtype_of_deployed(device)

    def make() -> Any:
        model: Any = load_model(place.source, dtype=dtype, trust_remote_code=trust_remote_code, head=head)
        if place.adapter:
            from peft import PeftModel

            with quiet():
                model = merge(PeftModel.from_pretrained(model, place.adapter))
        return model.to(device)

    return frozen_net(on_device(make, device))


def dtype_of_deployed(device: torch.device) -> torch.dtype:
    """What a model that is only read has its weights in: bf16 on an accelerator, float32 on the CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def frozen_net(model: Any) -> Net:
    """A net that only answers."""
    bf16 = next(model.parameters()).dtype == torch.bfloat16
    return Net(model.eval().requires_grad_(False), precision="bf16" if bf16 else "fp32")


def as_teacher(net: Net, divergence: Divergence, labels: Sequence[str], head: Head | None) -> Teacher:
    """The teacher as a net takes it, its scores in the order of the student's labels. Raises ModelError where it lacks a label."""
    if head is None:
        return Teacher(net, divergence)
    if missing := [label for label in labels if label not in head.labels]:
        raise ModelError(
            f"the teacher does not know the label {missing[0]!r}",
            where="distill.teacher",
            expected=f"a teacher of the same labels; it has {len(head.labels)}, and the data {len(labels)}",
        )
    return Teacher(net, divergence, tuple(head.labels.index(label) for label in labels))


def same_vocabulary(one: Any, other: Any) -> bool:
    """Whether two tokenizers give every token the same number."""
    return bool(one.get_vocab() == other.get_vocab())


@torch.no_grad()
def write_top_k(
    net: Net, groups: Sequence[Group], k: int, temperature: float
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """(T,k) ids and (T,k) shares of the teacher's likeliest tokens before each token of each sequence; 0 where nothing is trained."""
    head = net.language_model.get_output_embeddings()
    k = min(k, head.weight.shape[0])
    found = []
    with evaluating(net):
        for group in groups:
            streams = []
            for seq in group:
                batch = pack([[seq]], row_tokens=len(seq)).to(net.device)
                ids, shares = np.zeros((len(seq), k), np.float32), np.zeros((len(seq), k), np.float32)
                ids[:] = np.arange(k)
                kept = batch.trained.cpu().numpy()
                if len(kept):
                    with net.autocast():
                        states = net._hidden(batch).flatten(0, 1)[batch.trained - 1]
                        top = (net.logits(states) / temperature).softmax(-1).topk(k)
                    ids[kept], shares[kept] = top.indices.cpu().numpy(), top.values.cpu().numpy()
                streams.append((ids, shares))
            found.append(streams)
    return found


@torch.no_grad()
def token_logp(net: Net, ids: Sequence[int], weight: Sequence[float]) -> np.ndarray:
    """(T,) log p of each token with a weight, 0 elsewhere."""
    from burnish.core import Seq

    batch = pack([[Seq(list(ids), list(weight))]], row_tokens=len(ids)).to(net.device)
    with evaluating(net):
        logp = net(batch, frozenset({"logp"})).logp
    assert logp is not None
    return logp[0, : len(ids)].cpu().numpy()  # type: ignore[no-any-return]
