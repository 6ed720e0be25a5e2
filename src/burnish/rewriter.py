"""Who rewrites prompts for `data.augment`: a model behind an endpoint, or the recipe's own model before it is tuned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.data.augment import Ask, Messages
from burnish.endpoint import Answers, Endpoint, Reply
from burnish.errors import BurnishError, EndpointError, RecipeError
from burnish.folder import key_of
from burnish.model.load import cache_folder
from burnish.recipe import Augment, Data, Recipe, Rewriting, Service

if TYPE_CHECKING:
    from burnish.parts import Chosen

LONGEST = 512  # tokens of a rewritten text


def ask_endpoint(settings: Rewriting) -> Ask:
    """A function that asks the endpoint of the settings. Raises EndpointError, or RecipeError where it is not told which model."""
    endpoint = endpoint_of(settings.endpoint, "data.augment.rewrite.endpoint")

    def ask(conversations: Sequence[Messages]) -> list[str | BurnishError]:
        found = endpoint.complete_all(conversations, temperature=settings.temperature)
        return [_text_of(one, endpoint) if isinstance(one, Reply) else one for one in found]

    return ask


def endpoint_of(service: Service, where: str) -> Endpoint:
    if not service.model:
        raise RecipeError(
            "it is not said which model the endpoint is to answer with",
            where=f"{where}.model",
            expected="a name that the endpoint knows",
            hint=f"curl {service.url.rstrip('/')}/models   lists them",
        )
    return Endpoint(**service.model_dump(), answers=_kept(service.url, service.model))


def _text_of(reply: Reply, endpoint: Endpoint) -> str | BurnishError:
    return reply.text.strip() if reply.ended else EndpointError("the answer was cut off", where=endpoint.url)


def _kept(*model: str) -> Answers:
    """The answers of a model, of all runs."""
    return Answers(cache_folder() / "answers" / f"{key_of(*model)}.jsonl")


def rewriter(recipe: Recipe, chosen: Chosen) -> Ask | None:
    """Who rewrites for a recipe; None where nobody need."""
    settings = recipe.data.augment.rewrite
    if not settings.share:
        return None
    return ask_endpoint(settings) if settings.endpoint.url else _ask_model(recipe, chosen)


def asking_nobody(recipe: Recipe) -> Recipe:
    """The recipe for a plan, which asks no model."""

    def unasked(data: Data) -> Data:
        return data.model_copy(update={"augment": unwritten(data.augment)})

    tasks = {name: one.model_copy(update={"data": unasked(one.data)}) for name, one in recipe.tasks.items()}
    return recipe.model_copy(update={"data": unasked(recipe.data), "tasks": tasks})


def unwritten(augment: Augment) -> Augment:
    """Without rewriting: noisy rows stand in for the rewritten ones, as many and about as long."""
    share = augment.noise.share + augment.rewrite.share
    noise, rewrite = augment.noise.model_copy(update={"share": share}), Rewriting()
    return augment.model_copy(update={"noise": noise, "rewrite": rewrite})


def _ask_model(recipe: Recipe, chosen: Chosen) -> Ask:
    """A function that asks the recipe's own model, loaded when there is something to ask.

    Answers are drawn by a seed of the questions that are asked together, and kept, so that they are the same in every run.
    """
    settings, answers = recipe.data.augment.rewrite, _kept(chosen.source)
    files = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(Path(chosen.source).glob("*"))]
    loaded: list[Any] = []

    def ask(conversations: Sequence[Messages]) -> list[str | BurnishError]:
        together = {
            "model": chosen.source,
            "files": files,
            "seed": recipe.train.seed,
            "temperature": settings.temperature,
        }
        together["batch"] = hashlib.sha256(json.dumps([*conversations]).encode()).hexdigest()
        questions = [{**together, "messages": messages} for messages in conversations]
        known = [answers.get(question) for question in questions]
        if None not in known:
            return [answer.text for answer in known if answer]
        if not loaded:
            loaded.append(_load(recipe, chosen))
        found = _generate(loaded[0], conversations, settings, int(key_seed(together)))
        for question, answer in zip(questions, found, strict=True):
            answers.put(question, Reply(answer))
        return [*found]

    return ask


def key_seed(values: Any) -> int:
    """A seed of 32 bits from plain values."""
    return int(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8], 16)


def _load(recipe: Recipe, chosen: Chosen) -> tuple[Any, Any]:
    """The model on its device, and the chat that turns messages into its ids."""
    import torch

    from burnish.data.render import Chat
    from burnish.model.load import load_model, on_device
    from burnish.train.memory import device_of_choice

    device = device_of_choice()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    trusted = recipe.trust_remote_code
    model = on_device(lambda: load_model(chosen.source, dtype=dtype, trust_remote_code=trusted), device)
    return model.eval(), Chat(chosen.tokenizer, max_length=recipe.train.max_length)


def _generate(loaded: tuple[Any, Any], conversations: Sequence[Messages], settings: Rewriting, seed: int) -> list[str]:
    import torch

    from burnish.data.rows import Turn
    from burnish.model.sample import Sampler

    model, chat = loaded
    prompts = [chat.prompt(tuple(Turn(one["role"], one["content"]) for one in said)) for said in conversations]  # type: ignore[arg-type]
    longest = max(len(chat.tokenizer(said[-1]["content"])["input_ids"]) for said in conversations)
    room = min(LONGEST, int(longest * settings.length) + 16)
    sampler = Sampler(model, chat.tokenizer, chat.end_ids)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        found = sampler.sample(prompts, max_new_tokens=room, temperature=settings.temperature)
    return [answers[0].text for answers in found]
