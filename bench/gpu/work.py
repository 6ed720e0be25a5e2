"""What every arm trains on: shapes of real models, the documents of each step, and the least time that a step can take.

Both sides of a comparison import this file, so that they get the same weights and the same documents in the same steps.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

RATE = 798e12  # bf16 FLOP/s: an 8192^3 product of random data on one H100 80GB HBM3
BANDWIDTH = 3.0e12  # bytes/s: a copy within the memory of the same card, bytes read and written
LORA_RANK, LORA_ALPHA = 16, 16
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LABEL_NONE = -100  # what PyTorch's cross-entropy passes over


@dataclass(frozen=True)
class Shape:
    """A Llama of a given size. `theta`: the base of the rotary positions."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool
    theta: float = 500000.0

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden)]
        return [*attention, (self.hidden, self.mlp), (self.hidden, self.mlp), (self.mlp, self.hidden)]

    @property
    def weights(self) -> int:
        """Weights of all linear layers, without embedding and vocabulary head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def head(self) -> int:
        return self.hidden * self.vocabulary


SHAPES = {
    "smollm2-135m": Shape(576, 30, 9, 3, 64, 1536, 49152, True, 100000.0),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 64, 8192, 128256, True),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 128, 14336, 128256, False),
    "llama-2-13b": Shape(5120, 40, 40, 40, 128, 13824, 32000, False, 10000.0),
    "tiny": Shape(64, 2, 4, 2, 16, 128, 49152, True),  # to try the programs on a CPU
}


@dataclass(frozen=True)
class Document:
    """ids: token ids. prompt: how many of them, from the front, are not trained."""

    ids: list[int]
    prompt: int

    @property
    def trained(self) -> int:
        """Tokens that are predicted and learnt; the first has nothing to be predicted from."""
        return len(self.ids) - max(self.prompt, 1)

    @property
    def labels(self) -> list[int]:
        return [LABEL_NONE] * self.prompt + self.ids[self.prompt :]


@dataclass(frozen=True)
class Work:
    """What is trained, whichever program does it.

    documents: of one optimiser step. length: of a dense document. ceiling: GiB of memory that an arm should keep to.
    """

    name: str
    title: str
    shape: str
    kind: Literal["dense", "packs", "rows"]
    documents: int
    length: int = 2048
    method: Literal["lora", "full"] = "lora"
    ceiling: float | None = None

    def tiny(self) -> Work:
        return replace(self, shape="tiny", length=64, documents=min(self.documents, 4))


WORKS = {
    work.name: work
    for work in (
        Work("8b-dense", "Llama-3.1-8B, LoRA, dense rows of 2048 tokens", "llama-3.1-8b", "dense", 4),
        Work("8b-18gib", "The same within 18 GiB", "llama-3.1-8b", "dense", 4, ceiling=18.0),
        Work("8b-nf4", "Llama-3.1-8B, LoRA on a 4-bit base, dense rows", "llama-3.1-8b", "dense", 4),
        Work("8b-packs", "Llama-3.1-8B, LoRA, documents of unequal length", "llama-3.1-8b", "packs", 12),
        Work("1b-dense", "Llama-3.2-1B, LoRA, dense rows of 2048 tokens", "llama-3.2-1b", "dense", 8),
        Work("1b-packs", "Llama-3.2-1B, LoRA, documents of unequal length", "llama-3.2-1b", "packs", 24),
        Work("135m-rows", "SmolLM2-135M, LoRA, short rows of BANKING77", "smollm2-135m", "rows", 64),
        Work("1b-full", "Llama-3.2-1B, all weights, dense rows", "llama-3.2-1b", "dense", 8, method="full"),
        Work("13b", "Llama-2-13B, LoRA, dense rows of 2048 tokens", "llama-2-13b", "dense", 4),
    )
}


# Documents ----------------------------------------------------------------------------------------------------------------------------


def documents_of(
    work: Work, steps: int, *, rows: Path | None = None, tokenizer: Path | None = None
) -> list[list[Document]]:
    """The documents of each step, the same for every arm. `rows`, `tokenizer`: BANKING77's train.csv and a tokenizer.json, for "rows"."""
    # Two generators, so that to ask for more steps changes none of the first.
    lengths, ids = random.Random(f"{work.name}/lengths"), random.Random(f"{work.name}/ids")
    count = steps * work.documents
    if work.kind == "rows" and rows and tokenizer and rows.is_file():
        found = _real_rows(rows, tokenizer)
        ids.shuffle(found)
        documents = [found[index % len(found)] for index in range(count)]
    else:
        documents = [_random_document(ids, length, work.kind != "dense") for length in _lengths(work, lengths, count)]
    return [documents[first : first + work.documents] for first in range(0, count, work.documents)]


def _lengths(work: Work, draw: random.Random, count: int) -> list[int]:
    """Lognormal with sigma 1: a few long documents among many short ones, as answers of people and machines are."""
    if work.kind == "dense":
        return [work.length] * count
    median, least, most = (384, 32, 4096) if work.kind == "packs" else (48, 16, 256)
    if work.shape == "tiny":
        median, least, most = 24, 8, 96
    return [min(most, max(least, round(median * draw.lognormvariate(0, 1)))) for _ in range(count)]


def _random_document(draw: random.Random, length: int, prompted: bool) -> Document:
    """Random ids: what a token is changes no time, but zeros would, since a card runs faster on them."""
    return Document([draw.randrange(10, 32000) for _ in range(length)], round(0.6 * length) if prompted else 0)


def _real_rows(rows: Path, tokenizer: Path) -> list[Document]:
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    documents = []
    with rows.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            question = encoder.encode(f"{row['text'].strip()}\n", add_special_tokens=False).ids
            documents.append(
                Document(question + encoder.encode(row["category"], add_special_tokens=False).ids, len(question))
            )
    return documents


# Floors -------------------------------------------------------------------------------------------------------------------------------


def model_flops(shape: Shape, documents: Sequence[Document], method: str = "lora") -> float:
    """FLOP of the model itself in a step: frozen weights take 4 for each weight and token, trained ones 6; no recompute is counted.

    The vocabulary head counts for trained tokens alone, and attention for the tokens of the same document that come before.
    """
    passes = 6 if method == "full" else 4
    tokens = sum(len(document.ids) for document in documents)
    trained = sum(document.trained for document in documents)
    squares = sum(len(document.ids) ** 2 for document in documents)
    attention = 7 * squares * shape.heads * shape.head_dim * shape.layers
    return float(passes * (shape.weights * tokens + shape.head * trained) + attention)


def least_seconds(
    shape: Shape, documents: Sequence[Document], method: str = "lora", *, four_bit: bool = False
) -> float:
    """The floor of a step on one H100: all of its products at the measured rate, with the adapter's, and what must move besides.

    All weights: an optimiser that moves 22 bytes a parameter. Four bits: two passes that unpack the base at 2.5 bytes a weight.
    """
    flops = model_flops(shape, documents, method)
    moved = 0.0
    if method == "full":
        moved += 22.0 * (shape.weights + shape.head * (1 if shape.tied else 2))
    else:
        sides = sum(inputs + outputs for inputs, outputs in shape.linears) * shape.layers
        flops += 6.0 * LORA_RANK * sides * sum(len(document.ids) for document in documents)
    if four_bit:
        moved += 2 * 2.5 * shape.weights
    return flops / RATE + moved / BANDWIDTH


# Weights ------------------------------------------------------------------------------------------------------------------------------


def random_model(shape: Shape, device: str, dtype: Any) -> Any:
    """A Llama of this shape with weights from N(0, 0.02), made where it will run; the same ones for the same kind of device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.mlp,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(
        torch.bfloat16
    )  # drawn in bf16, whatever they become, so that every arm has the very same numbers
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02, generator=draw)
    return model.to(dtype)


def write_model(name: str, folder: Path, tokenizer: Path, device: str) -> None:
    """The model as files, in bf16 and with a tokenizer, for programs that only read folders. A folder that is whole stays."""
    import shutil

    import torch

    if is_written(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    random_model(SHAPES[name], device, torch.bfloat16).save_pretrained(folder)
    for file in tokenizer.parent.glob("tokenizer*"):
        shutil.copy(file, folder)
    (folder / "whole").touch()


def is_written(folder: Path) -> bool:
    return (folder / "whole").exists()
