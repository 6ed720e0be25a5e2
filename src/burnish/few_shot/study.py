"""The study: for each k and seed the same rows for every method, each method through the steps of a run, and what it then answers.

A run that is there is not done again, so a study that was stopped goes on, and one with more methods or seeds does only those.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish import pipeline
from burnish.data.render import Chat, system_prompt
from burnish.data.rows import Row
from burnish.distillation import cut_student
from burnish.errors import RecipeError
from burnish.evaluate.runner import Exam, Sitting, make_items
from burnish.few_shot.prepare import (
    IN_CONTEXT,
    Study,
    adapter_of,
    check_numbers,
    objective_of,
    prepare_study,
    recipe_of,
    write_draw,
)
from burnish.few_shot.shots import Shots, choose_shots, with_shots
from burnish.folder import Run, files_key, key_of
from burnish.guards import Evidence
from burnish.model.adapt import trained_parameters
from burnish.model.load import load_model, on_device
from burnish.model.net import Net
from burnish.model.sample import Sampler
from burnish.parts import check_head, read_schema
from burnish.progress import Progress, as_time
from burnish.recipe import Adapter, Recipe
from burnish.scoring import scorer_for
from burnish.train import memory
from burnish.train.hooks import StopSignal

Result = dict[str, Any]


def run_study(
    recipe: Recipe, folder: Path, ks: Sequence[int], seeds: Sequence[int], methods: Sequence[str], progress: Progress
) -> list[Result]:
    """One result for each method, k and seed. Whatever cannot work is refused before the first of them begins.

    Raises RecipeError for a k below 1 or above the size of a class, for one class only, for a method that the recipe does not have, and
    for held-out rows without answers.
    """
    ks, seeds, methods = sorted(set(ks)), sorted(set(seeds)), list(dict.fromkeys(methods))
    check_numbers(ks, seeds)
    tuned = {method: adapter_of(recipe, method) for method in methods if method != IN_CONTEXT}
    if not methods:
        raise RecipeError("no method is named", where="--methods", expected=f"some of {IN_CONTEXT}, lora, head, ...")
    stop = StopSignal()
    with stop.watching():
        study = prepare_study(recipe, folder, progress, stop)
        for method, adapter in tuned.items():
            if adapter.method == "head":
                check_head(recipe_of(study, method, adapter, seeds[0], ""), objective_of(study, adapter))
        draws = {(k, seed): write_draw(study, k, seed) for k in ks for seed in seeds}
        results: list[Result] = []
        for (k, seed), drawn in draws.items():
            for method in methods:
                progress.begin(len(results) + 1, method)
                results.append(
                    in_context(study, k, seed)
                    if method == IN_CONTEXT
                    else tune(study, method, tuned[method], k, seed, *drawn)
                )
                progress.say(line_of(results[-1]))
    return results


def tune(study: Study, method: str, adapter: Adapter, k: int, seed: int, file: str, rows: int) -> Result:
    """Steps 1 to 7 of a run, then its answers to the validation and the test rows."""
    recipe, name = recipe_of(study, method, adapter, seed, file, rows), f"{method}-k{k}-s{seed}"
    key = key_of(study.chosen.key, pipeline.learnt(recipe), files_key([file, *study.files.values()]))
    run = Run(study.folder / "runs" / name, Progress(quiet=True), Evidence(recipe), name)
    if found := run.kept("fewshot", key):
        return found
    study.progress.say(f"  {name}: {rows} rows, {recipe.train.epochs:g} epochs at the most")
    chosen = pipeline.choose(run, recipe)
    guarded = pipeline.clean(run, recipe, chosen)
    tokenized = pipeline.tokenize(run, recipe, chosen, guarded)
    chosen = cut_student(run, recipe, chosen, tokenized)
    settings = pipeline.decide(run, recipe, chosen, tokenized)
    tried = pipeline.try_out(run, recipe, chosen, tokenized, settings)
    exams = pipeline.define_metric(run, recipe, chosen, tokenized, guarded)
    with timed(run, key) as spent:
        trained = pipeline.train(run, recipe, chosen, tokenized, tried, exams, study.stop)
    found = {
        "method": method,
        "k": k,
        "seed": seed,
        "rows": len(tokenized.train.rows),
        "answers_by": "writing" if recipe.objective == "sft" else "scoring",
        "trained_parameters": sum(p.numel() for p in trained_parameters(trained.net.model).values()),
        "steps": trained.report["steps"],
        "learning_rate": trained.report["learning_rate"],
        "train_seconds": round(spent["seconds"], 2),
        "note": "",
    }
    found |= answers(study, exams["validation"], exams["test"], trained.net, tokenized.chat)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # dozens of runs: what they answered is what is kept
    run.forget("train")
    return run.keep("fewshot", key, found)


@contextlib.contextmanager
def timed(run: Run, key: str) -> Iterator[Result]:
    """The seconds of training, those before a stop among them."""
    spent = run.kept("fewshot seconds", key) or {"seconds": 0.0}
    began = time.perf_counter()
    try:
        yield spent
    finally:
        spent["seconds"] += time.perf_counter() - began
        run.keep("fewshot seconds", key, spent)


def in_context(study: Study, k: int, seed: int) -> Result:
    """The untuned model, which reads the examples before each question."""
    recipe, name = study.recipe, f"{IN_CONTEXT}-k{k}-s{seed}"
    tokenizer = study.chosen.tokenizer
    chat = Chat(tokenizer, system=system_prompt(recipe.task.goal, study.labels), max_length=recipe.train.max_length)
    longest = max((len(tokenizer(row.answer_text())["input_ids"]) for row in study.rows.train), default=1)
    answer = recipe.task.max_new_tokens or min(512, longest * 5 // 4 + 8)
    held_out = [*study.rows.validation, *study.rows.test]
    question = max(len(chat.render(row)[0].ids) for row in held_out)
    room = recipe.train.max_length - max(question, answer)
    shots = choose_shots(study.rows.train, k, seed, chat, room, by_label=study.by_label)
    key = key_of(
        study.chosen.key,
        recipe.task.model_dump(mode="json"),
        recipe.train.max_length,
        recipe.train.precision,
        [row.as_json() for row in shots.rows],
        files_key(list(study.files.values())),
    )
    about = {"k": k, "rows": shots.drawn, "note": shots.note}
    # Under the hash of the prompt, not of k: where more examples do not fit, the prompt is that of a smaller k.
    run = Run(study.folder / "runs" / f"{IN_CONTEXT}-{key}", Progress(quiet=True), Evidence(recipe), name)
    if found := run.kept("fewshot", key):
        return found | about
    study.progress.say(f"  {name}: {len(shots.rows)} examples in the prompt")
    exams = [shots_exam(study, shots, getattr(study.rows, split), chat, answer) for split in ("validation", "test")]
    found = {
        "method": IN_CONTEXT,
        "seed": seed,
        "shots": len(shots.rows),
        "answers_by": "writing",
        "trained_parameters": 0,
        "steps": 0,
        "learning_rate": 0.0,
        "train_seconds": 0.0,
    }
    found |= answers(study, exams[0], exams[1], untuned(study), chat)
    return run.keep("fewshot", key, found) | about


def shots_exam(study: Study, shots: Shots, rows: Sequence[Row], chat: Chat, answer: int) -> Exam:
    """The ordinary exam, of questions that have the examples before them."""
    task, length = study.recipe.task, study.recipe.train.max_length
    scorer = scorer_for(task.kind, task.metric, schema=read_schema(task.json_schema), labels=study.labels)
    asked = [with_shots(row, shots.rows) for row in rows]
    return Exam(make_items(asked, chat, study.recipe.data.group_by), scorer, answer, length)


def untuned(study: Study) -> Net:
    """The model as it came, on its device."""
    recipe, device = study.recipe, memory.device_of_choice()
    precision = "fp32" if memory.precision_of_choice(recipe.train.precision, device) == "fp32" else "bf16"
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    load = lambda: load_model(study.chosen.source, dtype=dtype, trust_remote_code=recipe.trust_remote_code)  # noqa: E731
    return Net(on_device(load, device), precision=precision)


def answers(study: Study, validation: Exam, test: Exam, net: Net, chat: Chat) -> Result:
    """What a model answers, as the score of each item in order, and how long a test answer takes."""
    sampler = Sampler(net.model, chat.tokenizer, chat.end_ids)

    def sit(exam: Exam) -> Sitting:
        return exam.sit(net, sampler, lambda done: study.progress.update(f"{done} of {len(exam.items)} answers"))

    seen = sit(validation)
    began = time.perf_counter()
    proven = sit(test)
    seconds = (time.perf_counter() - began) / len(test.items)
    figure = test.item_metric
    scores = {name: [score[figure] for score in one.scores] for name, one in (("validation", seen), ("test", proven))}
    return {
        "metric": figure,
        **scores,
        "figures": test.figures(proven),
        "clusters": {"validation": [i.cluster for i in validation.items], "test": [i.cluster for i in test.items]},
        "answer_seconds": round(seconds, 5),
    }


def line_of(result: Result) -> str:
    means = {split: float(np.mean(result[split])) for split in ("validation", "test")}
    note = f" ({result['note']})" if result["note"] else ""
    return (
        f"✓ {result['method']:<10} k {result['k']:<4} seed {result['seed']}: {result['metric']} "
        f"{means['validation']:.3f} on validation, {means['test']:.3f} on test; "
        f"{as_time(result['train_seconds'])} of training, {1000 * result['answer_seconds']:.0f} ms an answer{note}"
    )
