"""A trial is set up as a run is: with its teacher, the student that is cut from it, and a loss that knows the labels."""

from __future__ import annotations

import burnish
from burnish.folder import Run
from burnish.guards import Evidence
from burnish.model.features import CachedBody
from burnish.progress import Progress
from burnish.recipe import make_recipe
from burnish.train.hooks import StopSignal
from burnish.tuning.space import recipe_with
from burnish.tuning.trial import gather, run_trial
from tiny_runs import asked_and_answered, questions, recipe_of, write_rows

FEW = {"epochs": 1, "max_steps": 4, "learning_rate": 0.003}


def test_a_trial_with_a_teacher_trains_the_student_that_is_cut_from_it(model_folder, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", asked_and_answered())
    burnish.run(recipe_of(model_folder(), file, train=FEW), out=tmp_path / "teacher", quiet=True)
    distill = {"teacher": str(tmp_path / "teacher"), "student": {"layers": 2}}
    values = recipe_of(model_folder(), file, train=FEW, objective="distill", distill=distill)
    recipe = make_recipe(values | {"adapter": {"method": "full"}})
    material = gather(Run(tmp_path / "study", Progress(quiet=True), Evidence(recipe), "study"), recipe)
    outcome = run_trial(tmp_path / "trial", recipe, material, changed={}, stop=StopSignal())
    net = outcome.trained.net
    assert net.language_model.config.num_hidden_layers == 2
    assert net.teacher is not None
    assert outcome.trained.report["steps"] == 4


def test_the_test_of_rates_takes_a_loss_that_weighs_classes(model_folder, tmp_path):
    labels = ("green", "green", "red")
    rows = [{"text": f"{labels[n % 3]} {q}", "label": labels[n % 3]} for n, q in enumerate(questions(90))]
    file, task = write_rows(tmp_path / "rows.jsonl", rows), {"kind": "classify", "goal": "Say the colour."}
    values = recipe_of(model_folder(), file, task=task, objective="classify", loss={"class_weights": "balanced"})
    found = burnish.lr_range(values, steps=20, out=tmp_path / "range", quiet=True)
    assert found["usual"] > 0
    assert (tmp_path / "range" / "lr-range.json").is_file()


def test_a_trial_learns_by_the_loss_that_its_values_name(model_folder, tmp_path):
    rows = [{"text": f"{'green' if n % 2 else 'red'} {q}", "label": "ab"[n % 2]} for n, q in enumerate(questions(60))]
    file, task = write_rows(tmp_path / "rows.jsonl", rows), {"kind": "classify", "goal": "Say the colour."}
    values = recipe_of(model_folder(), file, task=task, objective="classify", train=FEW)
    plain, smooth = (make_recipe(values | {"loss": loss}) for loss in ({}, {"label_smoothing": 0.5}))
    material = gather(Run(tmp_path / "study", Progress(quiet=True), Evidence(plain), "study"), plain)
    losses = []
    for name, recipe, changed in (("plain", plain, {}), ("smooth", smooth, {"loss.label_smoothing": 0.5})):
        outcome = run_trial(tmp_path / name, recipe, material, changed=changed, stop=StopSignal())
        losses.append(outcome.trained.report["curve"][-1]["loss"])
    assert losses[0] != losses[1]


def test_trials_of_a_head_compute_the_features_of_the_frozen_body_once(model_folder, tmp_path, monkeypatch):
    rows = [{"text": f"{'green' if n % 2 else 'red'} {q}", "label": "ab"[n % 2]} for n, q in enumerate(questions(60))]
    file, task = write_rows(tmp_path / "rows.jsonl", rows), {"kind": "classify", "goal": "Say the colour."}
    values = recipe_of(model_folder(), file, task=task, objective="classify", train=FEW)
    recipe = make_recipe(
        {key: value for key, value in values.items() if key != "adapter"} | {"adapter": {"method": "head"}}
    )
    cut = {"train.max_length": 16}
    material = gather(Run(tmp_path / "study", Progress(quiet=True), Evidence(recipe), "study"), recipe)
    passes, compute = [], CachedBody._computed
    monkeypatch.setattr(CachedBody, "_computed", lambda *asked: passes.append(1) or compute(*asked))
    for name, changed in (("first", {}), ("cut", cut), ("second", {})):
        own = recipe_with(recipe, changed)
        outcome = run_trial(tmp_path / name, own, material, changed=changed, stop=StopSignal())
        assert outcome.trained.report["steps"] == 4
    assert passes == [1, 1]  # once for each length at which texts are cut
    assert not list((tmp_path / "first" / "steps").glob("features*"))
