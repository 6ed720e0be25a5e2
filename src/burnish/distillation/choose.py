"""Find the teacher that a recipe names, and what the objective becomes with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from burnish.core import Objective
from burnish.errors import ModelError, RecipeError
from burnish.folder import key_of
from burnish.model.adapt import parameter_count
from burnish.model.load import Head, empty_model, load_config, load_tokenizer
from burnish.model.net import Net
from burnish.model.teacher import (
    Place,
    find_teacher,
    head_of_teacher,
    is_endpoint,
    load_teacher,
    same_vocabulary,
)
from burnish.objectives.distill import Distill
from burnish.objectives.sft import Sft
from burnish.recipe import Recipe
from burnish.train.memory import device_of_choice

# Kinds of score heads that nobody learns from, and what they do.
NO_TEACHERS = {"regress": "says numbers", "tag": "tags words"}


@dataclass(frozen=True)
class Guide:
    """The teacher of a run. place: where it lies; None for an endpoint. head: its labels, where it scores. key: all that it is.

    same: whether it reads the student's very tokens.
    """

    name: str
    place: Place | None
    tokenizer: Any
    head: Head | None
    same: bool
    key: str

    def load(self, recipe: Recipe) -> Net:
        assert self.place is not None
        return load_teacher(
            self.place, device=device_of_choice(), trust_remote_code=recipe.trust_remote_code, head=self.head
        )

    def parameters(self, recipe: Recipe) -> int:
        """How many it has, from its configuration alone; 0 for an endpoint."""
        if self.place is None:
            return 0
        config = load_config(self.place.source, trust_remote_code=recipe.trust_remote_code)
        return parameter_count(empty_model(config, self.head))


def student_is_cut(recipe: Recipe) -> bool:
    wanted = recipe.distill.student
    return bool(recipe.distill.teacher) and bool(wanted.layers or wanted.keep or wanted.mlp)


def source_of_student(recipe: Recipe) -> str | None:
    """The model that the student is cut from; None where it is a model of its own."""
    if not student_is_cut(recipe):
        return None
    if is_endpoint(recipe.distill.teacher):
        raise RecipeError(
            "no student can be cut from an endpoint", where="distill.student", expected="a teacher on this machine"
        )
    place = find_teacher(recipe.distill.teacher)
    if place.adapter:
        raise RecipeError(
            "the teacher is an adapter, and a student is cut from whole weights",
            where="distill.teacher",
            expected="a run with merged/",
            hint="burnish export RUN --to FOLDER --kind merged",
        )
    return place.source


def find_guide(recipe: Recipe, tokenizer: Any) -> Guide | None:
    """The teacher that the recipe names. Raises a BurnishError where it cannot teach this student in the way that is asked."""
    distill = recipe.distill
    if not distill.teacher:
        if recipe.objective == "distill":
            raise RecipeError(
                "there is nobody to learn from",
                where="distill.teacher",
                hint="burnish distill RECIPE --teacher NAME_OR_URL",
            )
        return None
    if recipe.tasks:
        raise RecipeError(
            "a teacher stands beside several tasks",
            where="distill.teacher",
            expected="one task",
            hint="a recipe of one task for each teacher",
        )
    if recipe.loss and (distill.on != "answers" or recipe.objective == "distill"):
        raise RecipeError(
            f"{', '.join(recipe.loss)} would change nothing: the loss is the divergence from the teacher",
            where="loss",
            expected="no options of the loss, but distill.divergence, temperature and alpha",
            hint="--set loss={}   or --on answers, which keeps the loss",
        )
    if recipe.objective not in ("sft", "classify", "distill"):
        raise RecipeError(
            f"the objective {recipe.objective} has no teacher", where="objective", expected="sft or classify"
        )
    if is_endpoint(distill.teacher):
        return _endpoint_guide(recipe)
    place = find_teacher(distill.teacher)
    head = head_of_teacher(place)
    theirs = load_tokenizer(place.tokenizer, trust_remote_code=recipe.trust_remote_code)
    files = [one for folder in (place.source, place.adapter) if folder for one in sorted(Path(folder).glob("*"))]
    made_of = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    guide = Guide(
        distill.teacher, place, theirs, head, same_vocabulary(tokenizer, theirs), key_of(asdict(place), made_of)
    )
    _check_kinds(recipe, guide)
    return guide


def _endpoint_guide(recipe: Recipe) -> Guide:
    distill = recipe.distill
    if recipe.objective == "classify" or distill.on == "samples":
        scores = recipe.objective == "classify"
        raise RecipeError(
            f"no endpoint {'scores classes' if scores else 'judges the samples of a student'}",
            where="distill.teacher",
            expected="a model on this machine, or a student that learns from what the endpoint writes",
            hint="--set objective=sft --on answers   lets it write the labels" if scores else "--on answers",
        )
    if not distill.endpoint_model:
        raise RecipeError(
            "the endpoint has to be told which model to ask",
            where="distill.endpoint_model",
            hint="--set distill.endpoint_model=NAME",
        )
    if distill.on == "probabilities" and (distill.temperature != 1 or distill.divergence != "forward_kl"):
        raise RecipeError(
            "an endpoint gives its probabilities at temperature 1, and only the likeliest",
            where="distill",
            expected="temperature 1 and forward_kl",
        )
    return Guide(distill.teacher, None, None, None, False, key_of(distill.teacher, distill.endpoint_model))


def _check_kinds(recipe: Recipe, guide: Guide) -> None:
    distill, scores = recipe.distill, recipe.objective == "classify"
    if guide.head is not None and guide.head.kind in NO_TEACHERS:
        raise ModelError(
            f"the teacher {NO_TEACHERS[guide.head.kind]}",
            where=distill.teacher,
            expected="a teacher that writes, or that scores labels",
        )
    if scores != (guide.head is not None):
        does = ("writes", "scores labels") if scores else ("scores labels", "writes")
        raise ModelError(
            f"the teacher {does[0]}, and the student {does[1]}",
            where=distill.teacher,
            expected="a teacher and a student of one kind",
            hint=f"--set objective={'sft' if scores else 'classify'}",
        )
    if guide.head is not None and guide.head.frame != recipe.task.frame:
        raise RecipeError(
            f"the teacher reads texts in the frame {guide.head.frame}, and the student in {recipe.task.frame}",
            where="task.frame",
            expected="one frame for both, since they read the same tokens",
            hint=f"--set task.frame={guide.head.frame}",
        )
    if scores and distill.on != "probabilities":
        raise RecipeError(
            f"scores are no {distill.on}", where="distill.on", expected="probabilities, with objective: classify"
        )
    if not guide.same and (scores or distill.on == "samples" or distill.top_k):
        raise ModelError(
            "the teacher has another vocabulary than the student",
            where=distill.teacher,
            expected="the same tokenizer, or text alone, or probabilities of aligned spans (no top_k)",
            hint="--on answers   or --on probabilities",
        )
    stored = distill.on == "probabilities" and (distill.top_k or not guide.same)
    if stored and distill.divergence != "forward_kl":
        raise RecipeError(
            f"{distill.divergence} needs all that the teacher thinks", where="distill.divergence", expected="forward_kl"
        )
    if stored and not guide.same and distill.temperature != 1:
        raise RecipeError("spans have no temperature", where="distill.temperature", expected="1")


def taught(objective: Objective, recipe: Recipe, guide: Guide | None) -> Objective:
    """The objective of a recipe with a teacher: the same where the teacher only writes."""
    distill, plain = recipe.distill, cast(Any, Sft())
    if guide is None:
        return objective
    if distill.on == "answers":
        return plain if recipe.objective == "distill" else objective
    source: Any = "live"
    if recipe.objective == "classify":
        source = "scores"
    elif distill.on == "probabilities" and distill.top_k:
        source = "top"
    elif not guide.same:
        source = "spans"
    alpha = 0.0 if distill.on == "samples" else distill.alpha  # there it is a share of the rows
    return cast(Any, Distill(distill.divergence, distill.beta, distill.temperature, alpha, source))


def by_heart(objective: Objective) -> Objective:
    """What the try-out learns by heart: a divergence from a teacher need not come near zero."""
    from burnish.objectives.classify import Classify

    if not isinstance(objective, Distill):
        return objective
    return cast(Any, Classify() if objective.source == "scores" else Sft())
