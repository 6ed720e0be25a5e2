"""The student: cut from the teacher, seated beside it, and what it writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from burnish.core import Divergence, Group, Seq
from burnish.data.feed import Feed
from burnish.data.render import Chat, question_and_answer
from burnish.data.rows import Text
from burnish.distillation.answers import room_for_answers
from burnish.distillation.choose import student_is_cut
from burnish.errors import RecipeError, RowError
from burnish.folder import Run, key_of
from burnish.model.adapt import parse_layers
from burnish.model.load import load_config
from burnish.model.net import OF_TEACHER, Net
from burnish.model.prune import cut_config, keep_evenly, kept_layers, write_student
from burnish.model.sample import Sampler
from burnish.model.teacher import (
    as_teacher,
)
from burnish.recipe import Recipe
from burnish.train.onpolicy import OwnAnswers

if TYPE_CHECKING:
    from burnish.parts import Chosen, Tokenized


def cut_student(run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized) -> Chosen:
    """What was chosen, with the student that is cut from the teacher in its place; kept in the run's folder."""
    if not student_is_cut(recipe):
        return chosen
    wanted, folder = recipe.distill.student, run.folder / "student"
    layers = chosen.config.get_text_config().num_hidden_layers
    keep = sorted(parse_layers(wanted.keep, layers, "distill.student.keep"))
    head = chosen.teacher.head if chosen.teacher else None
    key = key_of(chosen.key, wanted.model_dump())
    kept = run.kept("student", key)
    if kept is None or not (folder / "config.json").is_file():
        cut = write_student(
            chosen.source,
            folder,
            chosen.tokenizer,
            tokenized.train.groups,
            keep=keep,
            layers=wanted.layers,
            by=wanted.by,
            mlp=wanted.mlp,
            head=head,
            trust_remote_code=recipe.trust_remote_code,
        )
        kept = run.keep("student", key, cut)
    run.parts["student"] = kept
    run.progress.say(
        f"  the student has layers {', '.join(map(str, kept['layers']))} of {kept['of_layers']} "
        f"and {kept['parameters']:,} of {kept['of_parameters']:,} parameters"
    )
    config = load_config(str(folder), trust_remote_code=recipe.trust_remote_code)
    return replace(chosen, source=str(folder), config=config, key=key)


def planned_student(recipe: Recipe, chosen: Chosen) -> Chosen:
    """What was chosen, with the configuration of the student that would be cut: a plan loads no weights."""
    if not student_is_cut(recipe):
        return chosen
    wanted, config = recipe.distill.student, type(chosen.config).from_dict(chosen.config.to_dict())
    text = config.get_text_config()
    layers = text.num_hidden_layers
    keep = kept_layers(layers, sorted(parse_layers(wanted.keep, layers, "distill.student.keep")), wanted.layers)
    cut_config(text, keep_evenly(layers, wanted.layers or layers) if keep is None else keep, layers)
    if wanted.mlp:
        text.intermediate_size = max(8, round(text.intermediate_size * wanted.mlp / 8) * 8)
    return replace(chosen, config=config)


def seat_teacher(recipe: Recipe, chosen: Chosen, net: Net, chat: Chat) -> None:
    """Put the teacher beside the student, where the objective asks for one that reads along.

    Raises RecipeError where the texts follow another prompt than the one that its head learnt after.
    """
    distill, guide = recipe.distill, chosen.teacher
    net.temperature = distill.temperature
    if guide is not None and chosen.objective.needs & OF_TEACHER:
        divergence = Divergence(distill.divergence, distill.beta, distill.temperature)
        if guide.head is not None and chat.frame == "chat" and guide.head.system != chat.system:
            raise RecipeError(
                f"the teacher read texts after the prompt {guide.head.system!r}, and the student's is {chat.system!r}",
                where="task.goal",
                expected="the teacher's goal and labels, since both read the same tokens",
            )
        net.teacher = as_teacher(guide.load(recipe), divergence, chat.labels, guide.head)


def feed_of_student(
    run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized, net: Net, feed: Feed, key: str
) -> Feed:
    """The feed, with answers that the student writes itself where the recipe says so."""
    distill, chat = recipe.distill, tokenized.chat
    if chosen.teacher is None or distill.on != "samples":
        return feed
    rows = tokenized.train.rows
    if plain := next((row for row in rows if isinstance(row, Text)), None):
        raise RowError(
            "plain text asks nothing", where=plain.where, expected="rows with a question", hint="--on probabilities"
        )
    prompts = [chat.prompt(question_and_answer(row)[0], getattr(row, "tools", ())) for row in rows]
    room = room_for_answers(recipe, chosen, rows)
    sampler = Sampler(net.model, chosen.tokenizer, chat.end_ids)
    end = max(chat.end_ids, key=lambda token: sum(token in seq.ids for group in feed.groups[:50] for seq in group))

    def write(numbers: Sequence[int]) -> list[Group]:
        # torch's own random state, which a checkpoint keeps, must not depend on whether samples were drawn or read
        with torch.random.fork_rng(devices=[net.device] if net.device.type == "cuda" else []):
            torch.manual_seed(int(key_of(key, list(numbers), recipe.train.seed), 16) % 2**31)
            with net.autocast():
                found = sampler.sample(
                    [prompts[n] for n in numbers], max_new_tokens=room, temperature=distill.sample_temperature
                )
        made = []
        for n, [completion] in zip(numbers, found, strict=True):
            answer = completion.ids + ([end] if completion.stop == "end" else [])
            ids = (prompts[n] + answer)[: chat.max_length]
            weight = [0.0] * len(prompts[n]) + [1.0] * len(answer)
            made.append([Seq(ids, weight[: len(ids)], where=rows[n].where)])
        return made

    folder = run.folder / "samples" / key
    return OwnAnswers(feed, write, every=distill.every, share=distill.alpha, folder=folder)
