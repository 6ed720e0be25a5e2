"""What the steps hand on to each other, and what they build from a recipe: settings, net, feed, optimiser, plan."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from burnish.core import Objective
from burnish.data.feed import Feed, total_steps
from burnish.data.render import Chat, Rendered
from burnish.data.split import Guarded
from burnish.errors import RecipeError
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.load import empty_model, load_model, on_device
from burnish.model.net import Net
from burnish.recipe import Recipe
from burnish.train import memory
from burnish.train.optim import Optim, auto_batch_size, auto_learning_rate

TASK = "main"  # the name of the one task; several tasks are several names in one step


@dataclass(frozen=True)
class Chosen:
    """Step 1. source: the model's folder or hub id. key: all that the model and the data files are."""

    source: str
    config: Any
    tokenizer: Any
    objective: Objective
    key: str


@dataclass(frozen=True)
class Tokenized:
    """Step 3. system: the system prompt of conversations that bring none."""

    chat: Chat
    system: str
    train: Rendered
    validation: Rendered
    test: Rendered


@dataclass(frozen=True)
class Trained:
    """Step 7: the net with its best weights."""

    net: Net
    report: dict[str, Any]
    key: str


def settle(recipe: Recipe, chosen: Chosen, tokenized: Tokenized) -> memory.Settings:
    """Every setting that the recipe leaves to us, from the size of the data, the model and the machine."""
    device = memory.device_of_choice()
    wanted = recipe.train
    rows = len(tokenized.train.groups)
    batch = auto_batch_size(rows) if wanted.batch_size == "auto" else wanted.batch_size
    steps = total_steps(rows, batch, wanted.epochs, wanted.max_steps)
    hidden = chosen.config.get_text_config().hidden_size
    rate = (
        auto_learning_rate(hidden, recipe.adapter.method, steps)
        if wanted.learning_rate == "auto"
        else wanted.learning_rate
    )
    return memory.Settings(
        batch_size=batch,
        micro_tokens=memory.micro_tokens_of_choice(wanted.micro_tokens, device, wanted.max_length),
        epochs=wanted.epochs,
        steps=steps,
        learning_rate=rate,
        precision=memory.precision_of_choice(wanted.precision, device),
        device=str(device),
    )


def load_net(recipe: Recipe, chosen: Chosen, settings: memory.Settings) -> Net:
    """The model on its device, made trainable: frozen weights in the precision of the run, trained ones always in float32."""
    half = settings.precision == "bf16" and recipe.adapter.method != "full"
    dtype = torch.bfloat16 if half else torch.float32
    device = torch.device(settings.device)
    model = on_device(
        lambda: load_model(chosen.source, dtype=dtype, trust_remote_code=recipe.trust_remote_code), device
    )
    return Net(adapt(model, recipe.adapter, recipe.freeze), precision=settings.precision)


@contextlib.contextmanager
def base_of(recipe: Recipe, chosen: Chosen, net: Net) -> Iterator[Net]:
    """The model as it was before tuning: an adapter switched off is exactly that; full weights are loaded anew."""
    if hasattr(net.model, "disable_adapter"):
        with net.model.disable_adapter():
            yield net
        return
    base = on_device(
        lambda: load_model(chosen.source, dtype=torch.float32, trust_remote_code=recipe.trust_remote_code), net.device
    )
    yield Net(base, precision=net.precision)


def make_feed(recipe: Recipe, tokenized: Tokenized, settings: memory.Settings) -> Feed:
    return Feed(
        tokenized.train.groups,
        task=TASK,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        row_tokens=recipe.train.max_length,
        micro_tokens=settings.micro_tokens,
        seed=recipe.train.seed,
        max_steps=recipe.train.max_steps,
    )


def make_optimizer(recipe: Recipe, net: Net, settings: memory.Settings) -> Optim:
    return Optim(
        trained_parameters(net.model),
        learning_rate=settings.learning_rate,
        total=settings.steps,
        warmup=recipe.train.warmup,
        weight_decay=recipe.train.weight_decay,
        clip=recipe.train.clip,
    )


def plan_of(recipe: Recipe, chosen: Chosen, tokenized: Tokenized, settings: memory.Settings) -> memory.Plan:
    """The plan, from the model's shape on the meta device: no weight is loaded."""
    shape = adapt(empty_model(chosen.config), recipe.adapter, recipe.freeze)
    train, held_out = tokenized.train, (tokenized.validation, tokenized.test)
    looks = recipe.train.validations + 1
    asked = [min(len(held_out[0].rows), recipe.train.validation_items) * looks, 2 * len(held_out[1].rows)]
    answer = train.trained / max(train.sequences, 1)
    question = train.tokens / max(train.sequences, 1) - answer
    work = memory.Workload(
        rows=len(train.groups),
        tokens=train.tokens,
        trained=train.trained,
        longest=max(train.lengths),
        generated=int(sum(asked) * answer),
        prompted=int(sum(asked) * (2 * question + answer)),
    )
    return memory.make_plan(recipe, chosen.config, shape, work, settings)


def labels_of(recipe: Recipe, guarded: Guarded) -> list[str]:
    """The labels of a classification, from the recipe or from the training rows; none for other tasks."""
    if recipe.task.kind != "classify":
        return []
    return recipe.task.labels or sorted({row.answer_text() for row in guarded.train})


def read_schema(schema: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """The JSON schema of `task.schema`, from its file where it names one."""
    if not isinstance(schema, str):
        return schema
    try:
        found = json.loads(Path(schema).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"the schema cannot be read: {error}", where="task.schema", expected="a file with a JSON schema"
        ) from error
    if not isinstance(found, dict):
        raise RecipeError("the schema is no object", where=schema, expected='such as {"type": "object", ...}')
    return found
