"""Whole studies on a tiny random model: what they judge by, share, survive and leave behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml

from burnish import api
from burnish.errors import Interrupted, RecipeError, TrainingError
from burnish.evaluate.runner import Exam
from burnish.folder import Run
from burnish.guards import Evidence
from burnish.progress import Progress
from burnish.recipe import load_recipe, make_recipe
from burnish.train.hooks import StopSignal
from burnish.tuning import study as studies
from burnish.tuning.command import claim
from burnish.tuning.report import make_report, render, summary
from burnish.tuning.space import Budget, Choices, Range
from burnish.tuning.storage import open_storage
from burnish.tuning.study import Search, look_of
from burnish.tuning.trial import gather
from tiny_runs import asked_and_answered, recipe_of, write_rows

SPACE = {"train.learning_rate": [1e-5, 0.05, "log"], "adapter.rank": {"choices": [4, 8]}}
GONE = {"host": os.uname().nodename, "pid": 2**22 + 1, "began": "0"}  # no process has so high a number


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    """The plain values of a recipe whose own learning rate is poor, and a space with better ones."""
    rows = write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", asked_and_answered())
    train = {"learning_rate": 0.001, "epochs": 2, "validations": 3, "save_every": 50}
    return recipe_of(model_folder(), rows, train=train, tune={"space": SPACE, "seeds": 2})


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """The folder of a study that ended, which no test may change, and its report."""
    folder = tmp_path_factory.mktemp("studies") / "done"
    return folder, api.tune(recipe, budget=6, out=folder, quiet=True)


@pytest.fixture(scope="module")
def material(recipe, tmp_path_factory):
    loaded = make_recipe(recipe)
    run = Run(tmp_path_factory.mktemp("material"), Progress(quiet=True), Evidence(loaded), "study")
    return loaded, gather(run, loaded)


@pytest.fixture
def search(material, tmp_path):
    """A function that opens the study of this test, as a process does: with a budget, and changes to the recipe."""

    def open_search(budget=4, folder=tmp_path, seconds=None, storage=None, **train):
        loaded, shared = material
        loaded = loaded.model_copy(update={"train": loaded.train.model_copy(update=train)})
        space = {"train.learning_rate": Range(1e-5, 0.05, log=True), "adapter.rank": Choices((4, 8))}
        start = {"train.learning_rate": 0.001, "adapter.rank": 8}
        limit = Budget(None if seconds else budget, seconds)
        return Search(
            "study", folder, loaded, shared, space, start, limit, "key", StopSignal(), Progress(quiet=True), storage
        )

    return open_search


@pytest.fixture
def pretend(monkeypatch):
    """Replace the training of a trial by a function of its recipe: (metric, loss), or an exception to raise."""

    def replace(figures):
        def run_trial(folder, recipe, material, *, judge=None, **rest):
            found = figures(recipe)
            if isinstance(found, BaseException):
                raise found
            metric, loss = found
            look = studies.Validation(1, loss, metric, {}, [], [metric])
            report = {"steps": 1}
            return type(
                "Outcome",
                (),
                {"best": look, "looks": [look], "pruned": "", "trained": type("T", (), {"report": report})},
            )

        monkeypatch.setattr(studies, "run_trial", run_trial)

    return replace


# What a study finds --------------------------------------------------------------------------------------------------


def test_trial_0_is_the_recipe_as_it_stands(done):
    _, report = done
    first = report["trials"][0]
    assert (first["number"], first["default"], first["state"]) == (0, True, "complete")
    assert first["values"] == {"train.learning_rate": 0.001, "adapter.rank": 8}
    assert report["default"] == first
    assert not any(trial["default"] for trial in report["trials"][1:])


def test_the_budget_is_spent_to_the_trial(done):
    _, report = done
    assert sum(report["counts"].values()) == len(report["trials"]) == 6


def test_the_best_trial_is_no_worse_than_the_default_and_its_recipe_is_written(done, recipe):
    folder, report = done
    assert (report["best"]["metric"], -report["best"]["loss"]) > (
        report["default"]["metric"],
        -report["default"]["loss"],
    )
    best = load_recipe(folder / "best.yaml")
    assert best.train.learning_rate == report["best"]["values"]["train.learning_rate"]
    assert best.adapter.rank == report["best"]["values"]["adapter.rank"]
    assert best.tuned_by.values == report["best"]["values"]
    assert (best.tuned_by.trials, best.tuned_by.metric) == (6, "exact_match")
    assert best.train.epochs == recipe["train"]["epochs"]


def test_the_winner_is_trained_with_its_seeds_and_compared_once_on_the_test_rows(done):
    _, report = done
    assert [one["seed"] for one in report["seeds"]] == [0, 1]
    assert report["seeds"][0]["metric"] == report["best"]["metric"]
    assert report["test"]["n"] == 12
    assert report["test"]["tuned"] == report["seeds"][0]["test"]
    assert report["test"]["base_is"] == "the model tuned with the default recipe"
    assert report["test_looks"] == 1
    assert report["spread"]["test"]["n"] == 2


def test_a_run_of_the_best_recipe_passes_guard_5(done, tmp_path):
    folder, _ = done
    report = api.run(folder / "best.yaml", out=tmp_path / "run", quiet=True)
    guard = next(guard for guard in report["guards"] if guard["n"] == 5)
    assert guard["status"] == "pass"
    assert guard["evidence"]["trials"] == 6


@pytest.mark.parametrize(("who", "place"), [("best.yaml", "tuned"), ("recipe.yaml", "base")])
def test_what_a_recipe_comes_to_on_the_test_rows_is_what_a_run_of_it_comes_to(done, tmp_path, who, place):
    folder, report = done
    alone = api.run(folder / who, out=tmp_path / "run", quiet=True)["evaluation"]
    assert report["test"][place] == alone["tuned"]
    assert report["test"]["perplexity"][place] == pytest.approx(alone["perplexity"]["tuned"], rel=1e-3)


def test_the_report_lies_in_the_folder_and_is_told_in_words(done):
    folder, report = done
    assert json.loads((folder / "tune.json").read_text(encoding="utf-8")) == report
    page = (folder / "tune.html").read_text(encoding="utf-8")
    assert page == render(report)
    assert "<script" not in page
    assert "adapter.rank" in page
    told = summary(report)
    assert "best.yaml" in told
    assert "2 seeds" in told


def test_a_study_that_ended_does_nothing_anew(done, recipe, tmp_path):
    folder, report = done
    copied = shutil.copytree(folder, tmp_path / "copied")
    before = (copied / "journal.log").read_bytes()
    again = api.tune(recipe, budget=6, out=copied, quiet=True)
    assert [trial["values"] for trial in again["trials"]] == [trial["values"] for trial in report["trials"]]
    assert again["test"] == report["test"]
    assert again["test_looks"] == 1
    assert (copied / "journal.log").read_bytes().startswith(before)


def test_a_larger_budget_goes_on(done, recipe, tmp_path):
    folder, report = done
    copied = shutil.copytree(folder, tmp_path / "copied")
    more = api.tune(recipe, budget=7, out=copied, quiet=True)
    assert [one["number"] for one in more["trials"]] == list(range(7))
    assert more["trials"][:6] == report["trials"]


def test_checkpoints_stay_only_of_the_best_and_the_default(done):
    folder, report = done
    kept = {path.parent.name for path in (folder / "trials").glob("*/checkpoints")}
    assert kept == {"0000", f"{report['best']['number']:04d}"}


def test_another_recipe_in_the_same_folder_is_refused(done, recipe):
    folder, _ = done
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match="another recipe, or of this one") as caught:
        api.tune(recipe, out=folder, overrides={"train.epochs": 3}, quiet=True)
    assert "--out" in caught.value.hint
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_data_in_the_same_folder_are_refused_before_anything_is_written(recipe, tmp_path):
    file = tmp_path / "rows.jsonl"
    claimed = make_recipe({"model": "a/b", "data": {"train": str(file)}})
    for text, same in (("{}", True), ("{}", True), ("{} ", False)):
        file.write_text(text)
        if same:
            claim(tmp_path / "study", claimed)
            continue
        with pytest.raises(RecipeError, match="a file has changed"):
            claim(tmp_path / "study", claimed)


def test_the_folder_of_a_run_is_not_taken(recipe, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(RecipeError, match="there is a run here"):
        api.tune(recipe, out=tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


# What matters --------------------------------------------------------------------------------------------------------


def test_keys_that_vary_with_the_metric_have_a_share_in_it(search, pretend):
    pretend(lambda recipe: (recipe.train.learning_rate, 1.0))
    opened = search(8)
    opened.run()
    report = make_report(opened, None)
    assert set(report["importance"]) == {"train.learning_rate", "adapter.rank"}
    assert report["unvaried"] == {}
    assert "matters" in summary(report)
    assert "cannot be told" not in summary(report)


def test_where_the_metric_never_varies_no_key_is_said_to_matter(search, pretend):
    pretend(lambda recipe: (0.5, recipe.train.learning_rate))
    opened = search(8)
    opened.run()
    report = make_report(opened, None)
    assert (report["importance"], report["unvaried"]) == ({}, {"exact_match": 0.5})
    for told in (summary(report), render(report)):
        assert "n every complete trial exact_match was 0.500, so which key matters cannot be told" in told
    assert "  matters" not in summary(report)
    assert "How much each key matters" not in render(report)


def test_a_key_that_never_varied_has_no_share(search, pretend):
    full = RuntimeError("CUDA out of memory")
    pretend(lambda recipe: full if recipe.adapter.rank == 4 else (recipe.train.learning_rate, 1.0))
    opened = search(10)
    opened.run()
    report = make_report(opened, None)
    assert (set(report["importance"]), report["unvaried"]) == ({"train.learning_rate"}, {"adapter.rank": 8})
    assert "in every complete trial adapter.rank was 8, so whether that matters cannot be told" in summary(report)


# The test rows -------------------------------------------------------------------------------------------------------


def test_no_trial_sees_a_test_row(search, monkeypatch):
    asked = set()
    sit = Exam.sit

    def watched(self, *given):
        asked.update(item.where for item in self.items)
        return sit(self, *given)

    monkeypatch.setattr(Exam, "sit", watched)
    opened = search(2)
    test = {row.where for row in opened.material.guarded.test}
    opened.run()
    assert asked
    assert test
    assert asked.isdisjoint(test)
    assert opened.material.tokenized.test.rows == []


def test_what_the_trials_share_tells_of_no_test_rows(recipe, tmp_path):
    loaded = make_recipe(recipe)
    run = Run(tmp_path, Progress(quiet=True), Evidence(loaded), "study")
    gather(run, loaded)
    assert "6 questions to validate with; " in run.steps[5]["summary"]


def test_where_the_recipe_as_it_stands_wins_the_test_rows_stay_locked(recipe, tmp_path):
    report = api.tune(recipe, budget=1, seeds=1, out=tmp_path, quiet=True)
    assert report["best"] == report["default"]
    assert (report["test"], report["test_looks"]) == (None, 0)
    assert "nothing that was tried is better" in summary(report)


def test_without_validation_rows_nothing_begins(recipe, tmp_path):
    with pytest.raises(RecipeError, match="no validation rows"):
        api.tune(recipe, out=tmp_path, overrides={"data.validation": 0}, quiet=True)


# Which trial is best -------------------------------------------------------------------------------------------------


def test_equal_metrics_are_ranked_by_the_loss(search, pretend):
    pretend(lambda recipe: (0.5, recipe.train.learning_rate))
    opened = search(6)
    opened.run()
    rates = {trial.number: opened.values_of(trial)["train.learning_rate"] for trial in opened.trials()}
    assert opened.best.number == min(rates, key=rates.get)


def test_a_better_metric_wins_whatever_the_loss(search, pretend):
    pretend(lambda recipe: (recipe.train.learning_rate, recipe.train.learning_rate))
    opened = search(6)
    opened.run()
    rates = {trial.number: opened.values_of(trial)["train.learning_rate"] for trial in opened.trials()}
    assert opened.best.number == max(rates, key=rates.get)


def test_what_is_drawn_depends_on_the_seed_alone(search, pretend, tmp_path):
    pretend(lambda recipe: (recipe.train.learning_rate, 1.0))
    once, twice = search(12, tmp_path / "a"), search(12, tmp_path / "b")
    once.run()
    for budget in (3, 12):  # the second stops on the way
        twice = search(budget, tmp_path / "b")
        twice.run()
    assert [trial.params for trial in once.trials()] == [trial.params for trial in twice.trials()]
    assert len({str(trial.params) for trial in once.trials()}) == 12


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_a_trial_that_fails_says_why_and_the_study_goes_on(search):
    opened = search(3, learning_rate=1e30)  # the default's
    opened.run()
    states = [studies.STATES[trial.state.name] for trial in opened.trials()]
    assert states[0] == "failed"
    assert "complete" in states[1:]
    assert studies.reason_of(opened.trials()[0])
    assert opened.default is None


def test_memory_that_runs_out_fails_the_trial(search, pretend):
    pretend(lambda recipe: RuntimeError("CUDA out of memory") if recipe.adapter.rank == 4 else (0.5, 1.0))
    opened = search(8)
    opened.run()
    failed = [trial for trial in opened.trials() if trial.state.name == "FAIL"]
    assert failed
    assert {opened.values_of(trial)["adapter.rank"] for trial in failed} == {4}
    assert {studies.reason_of(trial) for trial in failed} == {"the memory is not enough"}


def test_figures_that_are_no_numbers_fail_the_trial(search, pretend):
    pretend(lambda recipe: (0.5, math.nan if recipe.adapter.rank == 4 else 1.0))
    opened = search(6)
    opened.run()
    failed = [trial for trial in opened.trials() if trial.state.name == "FAIL"]
    assert {opened.values_of(trial)["adapter.rank"] for trial in failed} == {4}
    assert {trial.user_attrs["result"]["reason"] for trial in failed} == {f"validation: {studies.NONSENSE}"}


def test_where_all_trials_fail_the_study_ends(search, pretend):
    pretend(lambda recipe: TrainingError("the loss is nan"))
    opened = search(50)
    with pytest.raises(TrainingError, match="the loss is nan"):
        opened.run()
    assert len(opened.trials()) == studies.HOPELESS


def test_a_defect_is_no_failed_trial(search, pretend):
    pretend(lambda recipe: ZeroDivisionError())
    opened = search(2)
    with pytest.raises(ZeroDivisionError):
        opened.run()
    assert opened.trials() == []


def test_a_trial_that_falls_behind_ends_early(search):
    opened = search(7, validations=4, epochs=3)
    opened.run()
    pruned = [trial for trial in opened.trials() if trial.state.name == "PRUNED"]
    assert pruned
    for trial in pruned:
        assert "behind the other trials" in studies.reason_of(trial)
        assert len(studies.result_of(trial)["looks"]) < 5
        assert look_of(trial).metric <= look_of(opened.best).metric
    assert opened.default is not None


def test_a_budget_of_time_ends_a_running_trial(search, pretend):
    opened = search(seconds=1e-3)
    opened.run()
    assert len(opened.trials()) == 1
    assert opened.best.number == 0


# Going on ------------------------------------------------------------------------------------------------------------


def test_a_trial_whose_process_died_is_done_again_in_its_folder(search, pretend):
    pretend(lambda recipe: (recipe.train.learning_rate, 1.0))
    first = search(3)
    first._one(first._claim())
    died = first._claim()
    died.set_user_attr("process", GONE)
    second = search(3)
    second.run()
    trials = second.study.get_trials()
    assert trials[1].state.name == "FAIL"
    assert (trials[2].params, trials[2].user_attrs["again"]) == (trials[1].params, 1)
    assert len(second.trials()) == 3
    assert [studies.STATES[trial.state.name] for trial in second.trials()] == ["complete"] * 3


def test_the_default_that_died_is_still_the_default(search, pretend):
    pretend(lambda recipe: (0.5, 1.0))
    search(2)._claim().set_user_attr("process", GONE)
    opened = search(2)
    opened.run()
    assert opened.default.number == 1
    assert opened.recipe_of(opened.default) == opened.recipe


def test_a_trial_that_takes_its_process_along_each_time_is_given_up(search, pretend):
    pretend(lambda recipe: (0.5, 1.0))
    for _ in range(studies.DEATHS):
        search(4)._claim().set_user_attr("process", GONE)
    opened = search(4)
    opened.run()
    failed = [trial for trial in opened.trials() if trial.state.name == "FAIL"]
    assert len(failed) == 1
    assert "its process ended" in studies.reason_of(failed[0])


def test_a_trial_that_runs_elsewhere_is_left_alone(search, pretend):
    pretend(lambda recipe: (0.5, 1.0))
    first = search(3)
    running = first._claim()
    second = search(3)
    second.run()
    assert [trial.number for trial in second.running()] == [running.number]
    assert len(second.trials()) == 3


def test_a_signal_stops_the_study_and_the_trial_goes_on_next_time(search, pretend):
    pretend(lambda recipe: Interrupted("stopped by SIGTERM"))
    opened = search(2)
    with pytest.raises(Interrupted):
        opened.run()
    assert opened.trials() == []
    pretend(lambda recipe: (0.5, 1.0))
    opened = search(2)
    opened.run()
    assert opened.default is not None
    assert len(opened.trials()) == 2


def test_a_database_holds_a_study_too(search, pretend, tmp_path):
    pretend(lambda recipe: (recipe.train.learning_rate, 1.0))
    url = f"sqlite:///{tmp_path}/studies.db"
    search(2, storage=url).run()
    opened = search(4, storage=url)
    opened.run()
    assert len(opened.trials()) == 4
    assert opened.default.number == 0


@pytest.mark.parametrize("storage", ["nothing://here", "sqlite:////nowhere/at/all/studies.db"])
def test_a_storage_that_cannot_be_opened_says_so(search, storage):
    with pytest.raises(RecipeError, match="--storage"):
        search(storage=storage)


# Processes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(recipe, tmp_path):
    """A function that types the command in a shell of its own: the process."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    words = [sys.executable, "-m", "burnish", "tune", "recipe.yaml", "--out", "study", "--seeds", "1", "-q", "--budget"]
    source = {"PYTHONPATH": str(Path(api.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    started = []

    def begin(budget):
        started.append(subprocess.Popen([*words, str(budget)], cwd=tmp_path, env=os.environ | source))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_share_one_study(start, recipe, tmp_path):
    both = [start(4), start(4)]
    assert [process.wait(300) for process in both] == [0, 0]
    report = json.loads((tmp_path / "study" / "tune.json").read_text(encoding="utf-8"))
    assert len(report["trials"]) == 4
    assert [trial["number"] for trial in report["trials"] if trial["default"]] == [0]
    assert len({json.dumps(trial["values"]) for trial in report["trials"]}) == 4
    assert report["seeds"]


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on(start, recipe, tmp_path):
    killed = start(3)
    wait_for(tmp_path / "study" / "trials" / "0001" / "steps")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    report = api.tune(recipe | {"tune": {"space": SPACE}}, budget=3, seeds=1, out=tmp_path / "study", quiet=True)
    assert sum(report["counts"].values()) == 3
    assert "running" not in report["counts"]
    assert report["trials"][0]["default"]
    assert report["seeds"]
    assert len(optuna.get_all_study_names(open_storage(None, tmp_path / "study"))) == 1
