"""What several tasks are together: one list of rows, one head that is wide enough, one sum of losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from burnish import distillation
from burnish.core import Batch, Loss, Objective, Outputs
from burnish.data.augment import augment, is_generated
from burnish.data.dedup import Match
from burnish.data.ledger import Ledger
from burnish.data.render import Chat, render_rows
from burnish.data.render import joined as joined_rendered
from burnish.data.split import Guarded
from burnish.data.together import SPLITS, named
from burnish.data.together import joined as joined_rows
from burnish.errors import RecipeError, RowError
from burnish.evaluate.runner import Exam, Sitting, check_answerable
from burnish.evaluate.tasks import alone_of, held_against
from burnish.folder import Run
from burnish.guards import Evidence
from burnish.heads import SCORED, check_kind, fitted, label_counts, labels_of, span_of
from burnish.objectives import make_objective
from burnish.parts import TASK, Chosen, Tokenized, chat_of, make_exams, read_schema, shares
from burnish.recipe import Recipe
from burnish.rewriter import rewriter
from burnish.scoring import scorer_for


def objective_of(recipe: Recipe) -> Objective:
    """What a task's recipe wants to be learnt. Raises RecipeError where the task cannot learn so."""
    objective = make_objective(recipe.objective, recipe.loss)
    check_kind(recipe, objective)
    return objective


def check_alone(recipe: Recipe, task: Recipe) -> None:
    """Raise RecipeError where a task of several, or one with a teacher, is of a kind that a run has for itself."""
    beside = "beside other tasks" if recipe.tasks else "with a teacher" if recipe.distill.teacher else ""
    if beside and task.task.kind in set(SCORED) - {"classify"}:
        raise RecipeError(
            f"the task is to {task.task.kind}",
            where="task.kind",
            expected=f"{beside} one of: chat, generate, classify, extract",
            hint="burnish run   on a recipe of its own",
        )
    if recipe.tasks and task.task.frame != "plain":
        raise RecipeError(
            f"the texts stand in the frame {task.task.frame}",
            where="task.frame",
            expected=f"plain {beside}",
            hint="frame: plain",
        )
    if recipe.tasks and task.task.constrained:
        raise RecipeError(
            "answers are held to a schema",
            where="task.constrained",
            expected=f"false {beside}",
            hint="constrained: false",
        )


def files_of(recipe: Recipe) -> list[str]:
    """The files of a task's recipe. Raises RecipeError where its metric or its schema is none."""
    splits = [getattr(recipe.data, split) for split in ("train", "validation", "test")]
    schema = recipe.task.json_schema
    scorer_for(recipe.task.kind, recipe.task.metric, schema=read_schema(schema), labels=recipe.task.labels)
    return [name for names in splits if isinstance(names, list) for name in names] + (
        [schema] if isinstance(schema, str) else []
    )


def augmented(guarded: Guarded, recipe: Recipe, chosen: Chosen, ledger: Ledger) -> Guarded:
    """The rows with those that each task's recipe has generated in its training rows, none of them near a held-out row of any task."""
    parts = {}
    for name, one in recipe.each.items():
        with named(recipe, name):
            apart = replace(guarded.tasks[name], validation=guarded.validation, test=guarded.test)
            labelled, ask = one.task.kind == "classify", rewriter(one, chosen)
            made = augment(apart, one.data.augment, ledger, seed=one.train.seed, labelled=labelled, ask=ask)
            parts[name] = replace(guarded.tasks[name], train=made.train)
    train = [row for part in parts.values() for row in part.train]
    return replace(guarded, train=train, parts=parts if guarded.parts else {})


def place_of(task: str, split: str) -> str:
    """Under which name the rows of a task are kept."""
    return split if task == TASK else f"{task}/{split}"


def restored(run: Run, recipe: Recipe, matches: list[dict[str, Any]]) -> Guarded:
    """The guarded rows that an earlier run kept."""
    parts = {
        name: Guarded.restored({split: run.read_rows(place_of(name, split)) for split in SPLITS}, [])
        for name in recipe.each
    }
    whole = joined_rows(parts) if recipe.tasks else next(iter(parts.values()))
    return replace(whole, matches=[Match.restored(match) for match in matches])


def tokenized_rows(run: Run, recipe: Recipe, chosen: Chosen, guarded: Guarded, ledger: Ledger) -> Tokenized:
    """The rows of one task as ids. Raises RowError where none of them teaches anything."""
    chat = chat_of(recipe, chosen, guarded)
    guarded, replies = distillation.ask_teacher(run, recipe, chosen, chat, guarded, ledger)
    train, validation, test = (render_rows(getattr(guarded, split), chat, ledger) for split in SPLITS)
    if not train.groups:
        hint = "burnish data check FILE   shows the mask"
        raise RowError("no token of any row is trained", where="data.train", hint=hint)
    train = distillation.with_streams(recipe, chosen, chat, train, replies)
    return Tokenized(chat, train, validation, test)


def labelled(recipe: Recipe, guarded: Guarded, *, with_generated: bool = True) -> Counter[str]:
    """Training items of each label; with its task's name before it where several tasks have labels."""
    naming = [name for name, one in recipe.each.items() if one.task.kind in ("classify", "multilabel")]
    counts = Counter[str]()
    for name in naming:
        rows = [row for row in guarded.tasks[name].train if with_generated or not is_generated(row)]
        for label, count in label_counts(recipe.each[name].task.kind, rows).items():
            if label:
                counts[f"{name}: {label}" if len(naming) > 1 else label] += count
    return counts


def exams_of(recipe: Recipe, chosen: Chosen, tokenized: Tokenized, guarded: Guarded, start: int) -> dict[str, Exam]:
    """The exams of one task."""
    task = recipe.task
    answered = check_answerable([*tokenized.validation.rows, *tokenized.test.rows])
    told: dict[str, Any] = {"labels": labels_of(recipe, guarded.train), "span": span_of(task.kind, guarded.train)}
    scorer = scorer_for(task.kind, task.metric, schema=read_schema(task.json_schema), **told) if answered else None
    return make_exams(recipe, chosen, tokenized, scorer, start)


class Sliced:
    """An objective on its own part of a head that scores the labels of several tasks, those numbered from `start` to before `stop`."""

    def __init__(self, inner: Objective, start: int, stop: int) -> None:
        self.inner, self.start, self.stop = inner, start, stop
        self.rows, self.needs, self.reads, self.atom = inner.rows, inner.needs, inner.reads, inner.atom

    def count(self, batch: Batch) -> Tensor:
        return self.inner.count(batch)

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        assert outputs.score is not None
        return self.inner.loss(replace(outputs, score=outputs.score[:, self.start : self.stop]), batch)


def by_heart(objective: Objective) -> Objective:
    """What the try-out learns by heart: the objective without what keeps its loss from coming near zero."""
    if isinstance(objective, Sliced):
        return Sliced(by_heart(objective.inner), objective.start, objective.stop)
    plain: Any = distillation.by_heart(objective)
    return replace(plain, label_smoothing=0.0) if getattr(plain, "label_smoothing", 0.0) else plain  # type: ignore[no-any-return]


def joined(parts: Mapping[str, Tokenized]) -> Tokenized:
    """The tokenized rows of several tasks as one, those of each in `parts`; a single task is itself.

    The chat of all is that of the first task that writes, its labels those of every task that scores.
    """
    first = next(iter(parts.values()))
    if len(parts) == 1:
        return first
    writer = next((part.chat for part in parts.values() if not part.chat.labels), first.chat)
    chat = Chat(writer.tokenizer, system=writer.system, max_length=writer.max_length)
    scoring = [name for name, part in parts.items() if part.chat.labels]
    chat.kind = next((part.chat.kind for part in parts.values() if part.chat.labels), "")
    chat.labels = tuple(
        f"{name}: {label}" if len(scoring) > 1 else label for name in scoring for label in parts[name].chat.labels
    )
    rows = (joined_rendered([getattr(part, split) for part in parts.values()]) for split in SPLITS)
    return replace(first, chat=chat, **dict(zip(SPLITS, rows, strict=True)), parts=dict(parts))


def starts_of(tokenized: Tokenized) -> dict[str, int]:
    """Where the labels of each task begin in the head of all."""
    starts, width = {}, 0
    for name, part in tokenized.tasks.items():
        starts[name] = width
        width += len(part.chat.labels)
    return starts


def tasks_of(recipe: Recipe, chosen: Chosen, tokenized: Tokenized) -> dict[str, tuple[Objective, float]]:
    """Task -> its objective and 1: its mean loss counts by its part of a step's groups already, which goes by its share."""
    starts, width = starts_of(tokenized), len(tokenized.chat.labels)
    found: dict[str, tuple[Objective, float]] = {}
    for name, objective in chosen.objectives.items():
        part = tokenized.tasks[name]
        own = len(part.chat.labels)
        objective = fitted(objective, part.chat.kind, part.chat.labels, part.train.rows)
        objective = Sliced(objective, starts[name], starts[name] + own) if 0 < own < width else objective
        found[name] = objective, 1.0
    return found


def described(recipe: Recipe, tokenized: Tokenized, seen: Mapping[str, int]) -> dict[str, Any]:
    """What the report says of each task. seen: how many groups of it the run deals."""
    parts, starts = shares(recipe, tokenized), starts_of(tokenized)
    return {
        name: {
            "kind": one.task.kind,
            "goal": one.task.goal,
            "objective": one.objective,
            "system": tokenized.tasks[name].chat.system,
            "weight": recipe.tasks[name].weight,
            "share": round(parts[name], 4),
            "dealt": seen[name],
            "passes": round(seen[name] / len(tokenized.tasks[name].train.groups), 2),
            **{split: len(getattr(tokenized.tasks[name], split).rows) for split in SPLITS},
            **(
                {"labels": list(tokenized.tasks[name].chat.labels), "first_label": starts[name]}
                if tokenized.tasks[name].chat.labels
                else {}
            ),
        }
        for name, one in recipe.each.items()
    }


def against_alone(
    run: Run,
    recipe: Recipe,
    tokenized: Tokenized,
    seen: Mapping[str, int],
    exams: Mapping[str, Exam],
    figures: Mapping[str, Any],
    key: str,
    sit_alone: Callable[[Run, Recipe, str, dict[str, Exam]], Sitting],
) -> dict[str, Any]:
    """The figures of each task beside those of a model tuned on it alone: the same rows, as often as they came in the mix.

    seen: task -> how many rows that is. sit_alone: trains such a model in a run's folder and lets it sit its exam; it goes on there
    where it stopped.
    """
    found: dict[str, Any] = {}
    for name, one in recipe.each.items():
        if name not in figures:  # it has no test rows
            continue
        rows, part = seen[name], tokenized.tasks[name]
        kept = run.kept(f"alone-{name}", key)
        if kept is None:
            budget = {"epochs": rows / len(part.train.groups), "max_steps": None}
            one = one.model_copy(update={"train": recipe.train.model_copy(update=budget)})
            sub = Run(run.folder / "alone" / name, run.progress, Evidence(one), f"{run.name}-{name}")
            run.progress.say(f"  {name} alone, on {rows} rows, to see whether the other tasks help it or hurt it")
            own = {split: alone_of(exam, name) for split, exam in exams.items()}
            sitting = sit_alone(sub, one, name, own)
            scores = [score[own["test"].item_metric] for score in sitting.scores]
            clusters = [item.cluster for item in own["test"].items]
            told = held_against(figures[name]["scores"], scores, clusters, recipe.train.seed)
            kept = run.keep(f"alone-{name}", key, told | {"rows": rows, "folder": f"alone/{name}"})
        found[name] = figures[name] | {"against_alone": kept}
    return found
