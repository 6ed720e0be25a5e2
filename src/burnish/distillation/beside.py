"""Teacher and student side by side: quality on the same test rows, and the time that an answer takes each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from burnish.data.classes import Classes
from burnish.data.render import Chat, question_and_answer
from burnish.data.rows import Turns
from burnish.distillation.answers import ask_endpoint, endpoint_of, of_the_teacher
from burnish.distillation.choose import Guide
from burnish.endpoint import Answers, Reply
from burnish.errors import RecipeError
from burnish.evaluate.runner import Exam, Item, Sitting, compare, make_items
from burnish.evaluate.scored import ScoredExam
from burnish.evaluate.timing import promise, summary_of, time_answers, time_in_turn
from burnish.folder import Run
from burnish.methods import METHODS
from burnish.model.adapt import trained_parameters
from burnish.model.adapters import merge
from burnish.model.likelihood import evaluating
from burnish.model.net import Net
from burnish.model.sample import Sampler
from burnish.model.teacher import dtype_of_deployed, frozen_net
from burnish.parts import head_of, load_net, settle
from burnish.recipe import Recipe
from burnish.train.session import load_trained

if TYPE_CHECKING:
    from burnish.parts import Chosen, Tokenized


def beside_teacher(
    run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized, exam: Exam, student_net: Net, student: Sitting
) -> dict[str, Any]:
    """{"distillation": ...}: quality of teacher and student on the same test rows, paired, and the time that an answer takes each.

    Both answer the same prompts on this machine, in turn, one at a time and warm, as they would be deployed: the weights as they are
    exported, in one precision. An endpoint's time holds the network's. {} without a teacher.
    """
    guide = chosen.teacher
    if guide is None:
        return {}
    count = min(recipe.distill.time_prompts, len(exam.items))
    deployed = as_deployed(recipe, chosen, tokenized, student_net)
    answer = answerer(exam, deployed, Sampler(deployed.model, chosen.tokenizer, tokenized.chat.end_ids))
    if guide.place is None:
        teacher, theirs = _endpoint_sits(run, recipe, tokenized, exam, count)
        ours = time_answers(answer, exam.items[:count])
    else:
        chat = _chat_of_teacher(recipe, guide, tokenized)
        net = student_net.teacher.net if student_net.teacher else guide.load(recipe)
        own = replace(exam, items=make_items(tokenized.test.rows, chat, recipe.data.group_by))
        if isinstance(own, ScoredExam):
            own = replace(own, head=replace(own.head, labels=chat.labels))
        sampler = Sampler(net.model, guide.tokenizer, chat.end_ids)
        teacher = own.sit(
            net, sampler, lambda done: run.progress.update(f"the teacher: {done} of {len(own.items)} answers")
        )
        pairs = list(zip(own.items[:count], exam.items[:count], strict=True))
        theirs, ours = time_in_turn(answerer(own, net, sampler), answer, pairs)
    compared = compare(exam, teacher, student, seed=recipe.train.seed)
    quality = {part: compared[part] for part in ("metric", "n", "delta", "ci95", "p_value", "method")}
    told = {"prompts": count, "device": str(deployed.device), "precision": deployed.precision}
    found = {
        "teacher": guide.name,
        "on": recipe.distill.on,
        "quality": quality | {"teacher": compared["base"], "student": compared["tuned"]},
        "seconds": {"teacher": summary_of(theirs), "student": summary_of(ours)}
        | told
        | {"over_the_network": guide.place is None},
        **promise(compared, theirs, ours),
    }
    if "student" in run.parts:
        found["cut"] = run.parts["student"]
    return {"distillation": found}


def as_deployed(recipe: Recipe, chosen: Chosen, tokenized: Tokenized, net: Net) -> Net:
    """The student as it is exported: an adapter added into the weights where it can be, in the precision of a teacher, nothing compiled."""
    dtype = dtype_of_deployed(net.device)
    precision: Any = "bf16" if dtype == torch.bfloat16 else "fp32"
    settings = replace(settle(recipe, chosen, tokenized), precision=precision, compile=False, recompute="none")
    fresh = load_net(recipe, chosen, settings, head_of(recipe, chosen, tokenized.chat))
    load_trained(fresh, {name: one.detach() for name, one in trained_parameters(net.model).items()})
    method = METHODS[recipe.adapter.method]
    model = merge(fresh.model) if method.beside and method.merges else fresh.model
    return frozen_net(model.to(dtype))


def _chat_of_teacher(recipe: Recipe, guide: Guide, tokenized: Tokenized) -> Chat:
    chat = tokenized.chat
    if guide.head is not None:
        how: Any = {"system": chat.system, "max_length": chat.max_length, "frame": chat.frame}
        return Classes(guide.tokenizer, guide.head.labels, **how)
    return Chat(guide.tokenizer, system=chat.system, max_length=chat.max_length)


def answerer(exam: Exam, net: Net, sampler: Sampler) -> Callable[[Item], Any]:
    """What answers one item, as it will be answered in use: by generation to the end token, or by one pass through a score head."""
    if isinstance(exam, ScoredExam):
        return lambda item: scores_of(net, item.prompt)

    def write(item: Item) -> Any:
        with net.autocast():
            return sampler.sample([item.prompt], max_new_tokens=exam.max_new_tokens)

    return write


@torch.inference_mode()
def scores_of(net: Net, ids: Sequence[int]) -> Tensor:
    """(C,) the scores of one text, on the host."""
    with torch.compiler.set_stance("force_eager"), evaluating(net.model), net.autocast():
        model = net.language_model
        given = torch.tensor([list(ids)], device=net.device)
        hidden = model.get_decoder()(input_ids=given, use_cache=False).last_hidden_state[0, -1]
        return model.score(hidden.to(model.score.weight.dtype)).cpu()  # type: ignore[no-any-return]


def _endpoint_sits(
    run: Run, recipe: Recipe, tokenized: Tokenized, exam: Exam, count: int
) -> tuple[Sitting, list[float]]:
    """The endpoint's answers to the test rows, which are kept, and the seconds of some that are asked again for the clock."""
    if exam.scorer is None:
        raise RecipeError("plain text asks nothing", where="data.test", expected="rows with a question")
    asked = [tokenized.chat.with_system(question_and_answer(row)[0]) for row in tokenized.test.rows]
    kept = Answers(run.folder / "teacher" / "answers.jsonl")
    replies = ask_endpoint(recipe, asked, kept, exam.max_new_tokens)
    answers = [reply.text for reply in replies]
    scores = [exam.scorer.score(text, item.reference) for text, item in zip(answers, exam.items, strict=True)]
    nothing = np.zeros(len(answers))
    endpoint = endpoint_of(recipe)  # which knows of nothing that was kept

    def again(turns: Turns) -> Reply:
        return endpoint.complete([turn.as_json() for turn in turns], temperature=0, max_tokens=exam.max_new_tokens)

    with of_the_teacher(recipe):
        seconds = time_answers(again, asked[:count])
    return Sitting(answers, scores, nothing, nothing), seconds
