"""The ten guards, each asked about made-up evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from burnish.data.dedup import Match
from burnish.data.rows import Conversation, Turn
from burnish.guards import Evidence, check_all, every_guard
from burnish.recipe import make_recipe
from burnish.tuning.space import recipe_with

GIB = 2**30
RECIPE = make_recipe({"data": {"train": "rows.jsonl"}})
DROPPING = make_recipe({"data": {"train": "rows.jsonl"}, "guards": {"leakage": {"action": "drop"}}})
PLAN = {
    "memory": {"total": 2 * GIB},
    "memory_available": 8 * GIB,
    "seconds": 60,
    "micro_tokens": 1024,
    "device": "cpu",
    "fits": True,
    "would_fit": "",
}
TRAINING = {
    "best_step": 20,
    "curve": [{"step": step, "loss": 1.0} for step in range(1, 31)],
    "validations": [{"step": step, "loss": 1.2, "metric": 0.5} for step in (0, 10, 20, 30)],
    "stopped": "ran to its end",
    "peak_memory_bytes": GIB,
}
EVALUATION = {
    "metric": "accuracy",
    "n": 100,
    "base": 0.4,
    "tuned": 0.6,
    "delta": 0.2,
    "ci95": [0.1, 0.3],
    "p_value": 0.01,
}
GOOD = Evidence(
    RECIPE,
    rows={"train": 400, "validation": 50, "test": 50},
    read=510,
    dropped={"exact duplicate": 10},
    test_hash="abc",
    tokens={"trained": 5000, "all": 20000, "truncated": 0, "sequences": 400, "ended": 400},
    plan=PLAN,
    training=TRAINING,
    evaluation=EVALUATION,
)


TUNED = make_recipe(
    {
        "data": {"train": "rows.jsonl"},
        "train": {"epochs": 2, "learning_rate": 0.002},
        "tuned_by": {
            "study": "runs/rows-tune",
            "trials": 20,
            "rows": 300,
            "metric": "accuracy",
            "default": 0.5,
            "best": 0.6,
            "values": {"train.epochs": 2.0, "train.learning_rate": 0.002, "adapter.rank": 16},
        },
    }
)


def curve(loss=lambda step: 1.0, norm=lambda step: 0.5):
    return [{"step": step, "loss": loss(step), "gradient_norm": norm(step)} for step in range(1, 31)]


def looks(*losses):
    """Validations at the steps 0, 10, 20 and 30, whose metric rises as the loss falls."""
    return [{"step": 10 * number, "loss": loss, "metric": 1 / (1 + loss)} for number, loss in enumerate(losses)]


def row(file, line):
    return Conversation(file=file, line=line, turns=(Turn("user", f"q{line}"), Turn("assistant", "a")))


def match(kind, line=1):
    return Match(kind, 1.0, row("train.jsonl", line), row("test.jsonl", line))


def verdict_on(number, evidence=GOOD, **changes):
    guard = next(guard for guard in every_guard() if guard.number == number)
    return guard.check(replace(evidence, **changes))


def test_the_ten_are_numbered_and_each_names_its_mistake():
    guards = every_guard()
    assert [guard.number for guard in guards] == list(range(1, 11))
    assert len({guard.mistake for guard in guards}) == 10


def test_good_evidence_passes_the_eight_that_are_asked():
    statuses = {record["n"]: record["status"] for record in check_all(GOOD)}
    assert [number for number, status in statuses.items() if status == "not_run"] == [4, 9]
    assert {status for number, status in statuses.items() if number not in (4, 9)} == {"pass"}


def test_without_evidence_no_guard_passes():
    assert {record["status"] for record in check_all(Evidence(RECIPE))} == {"not_run"}


BAD = [
    (1, "warn", {"rows": {"train": 20, "validation": 50, "test": 50}}),
    (1, "warn", {"labels": {"rare": 2, "common": 398}}),
    (1, "warn", {"noted": {"conflicting labels": 2}}),
    (1, "warn", {"dropped": {"empty": 200}}),
    (2, "fail", {"tokens": GOOD.tokens | {"trained": 0}}),
    (2, "warn", {"tokens": GOOD.tokens | {"trained": 0, "ended": 0, "labelled": 400, "truncated": 20}}),
    (2, "fail", {"tokens": GOOD.tokens | {"ended": 399}}),
    (2, "warn", {"tokens": GOOD.tokens | {"truncated": 20, "ended": 380}}),
    (2, "warn", {"noted": {"secret (key)": 1}}),
    (2, "warn", {"noted": {"personal data (mail)": 3}}),
    (3, "fail", {"training": TRAINING | {"best_step": 0}}),
    (3, "warn", {"training": TRAINING | {"validations": [{"step": 20, "loss": 2.5, "metric": 0.5}]}}),
    (3, "not_run", {"training": TRAINING | {"validations": []}}),
    (5, "warn", {"training": TRAINING | {"curve": curve(loss=lambda step: 1 + step / 30)}}),
    (5, "warn", {"training": TRAINING | {"curve": curve(norm=lambda step: 2.0)}}),
    (5, "warn", {"training": TRAINING | {"learning_rate": 0.1}, "usual_rate": 1e-3}),
    (5, "warn", {"training": TRAINING | {"learning_rate": 1e-5}, "usual_rate": 1e-3}),
    (5, "warn", {"training": TRAINING | {"best_step": 10, "validations": looks(2.0, 1.0, 1.2, 1.4)}}),
    (5, "warn", {"training": TRAINING | {"best_step": 30, "validations": looks(2.0, 1.5, 1.2, 1.0)}}),
    (5, "warn", {"recipe": TUNED, "rows": {"train": 4000, "validation": 50, "test": 50}}),
    (5, "warn", {"recipe": recipe_with(TUNED, {"train.epochs": 9})}),
    (5, "warn", {"recipe": TUNED, "training": TRAINING | {"curve": curve(loss=lambda step: 1 + step / 30)}}),
    (6, "fail", {"rows": {"train": 400, "validation": 0, "test": 50}}),
    (6, "fail", {"rows": {"train": 400, "validation": 50, "test": 0}}),
    (6, "warn", {"rows": {"train": 400, "validation": 50, "test": 10}}),
    (7, "fail", {"matches": [match("exact")]}),
    (7, "fail", {"matches": [match("13-gram")]}),
    (7, "fail", {"matches": [match("minhash")]}),
    (8, "warn", {"plan": PLAN | {"fits": False, "would_fit": "--set adapter.rank=4"}}),
    (8, "warn", {"training": TRAINING | {"ladder": ["step 3: less (train.micro_tokens=512)"]}}),
    (10, "fail", {"evaluation": EVALUATION | {"ci95": [-0.3, -0.1], "delta": -0.2}}),
]


@pytest.mark.parametrize(("number", "status", "changes"), BAD)
def test_bad_evidence_is_seen(number, status, changes):
    assert verdict_on(number, **changes).status == status


@pytest.mark.parametrize(("number", "status", "changes"), BAD)
def test_whatever_does_not_pass_says_what_to_do(number, status, changes):
    assert verdict_on(number, **changes).fix


@pytest.mark.parametrize("number", range(1, 11))
def test_a_guard_that_has_nothing_to_judge_says_what_to_do(number):
    assert verdict_on(number, Evidence(RECIPE)).fix


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6, 7, 8, 10])
def test_a_guard_that_passes_shows_its_numbers_and_asks_for_nothing(number):
    verdict = verdict_on(number)
    assert verdict.evidence
    assert verdict.fix == ""


def test_a_leak_that_was_dropped_from_train_passes_and_is_counted():
    verdict = verdict_on(7, recipe=DROPPING, matches=[match("exact"), match("minhash", line=2)])
    assert verdict.status == "pass"
    assert verdict.evidence["leaked_held_out_rows"] == 2


def test_rows_that_are_only_alike_are_told_and_pass():
    verdict = verdict_on(7, matches=[match("near")])
    assert (verdict.status, verdict.evidence["near"]) == ("pass", 1)


def test_a_held_out_row_that_leaks_twice_counts_once():
    twice = [match("exact"), replace(match("13-gram"), train=row("train.jsonl", 9))]
    assert verdict_on(7, matches=twice).evidence["leaked_held_out_rows"] == 1


def test_values_of_a_study_pass_and_name_it():
    verdict = verdict_on(5, recipe=TUNED)
    assert verdict.status == "pass"
    assert verdict.evidence | {"study": "runs/rows-tune", "trials": 20, "best": 0.6, "default": 0.5} == verdict.evidence


def test_a_value_that_was_changed_after_the_study_is_named():
    assert "train.epochs" in verdict_on(5, recipe=recipe_with(TUNED, {"train.epochs": 9})).found


def test_a_gradient_that_is_always_clipped_is_no_matter_while_the_loss_falls():
    falling = TRAINING | {"curve": curve(loss=lambda step: 2 - step / 30, norm=lambda step: 2.0)}
    verdict = verdict_on(5, training=falling)
    assert (verdict.status, verdict.evidence["clipped_share"]) == ("pass", 1.0)


def test_a_rate_near_the_usual_one_passes():
    assert verdict_on(5, training=TRAINING | {"learning_rate": 5e-3}, usual_rate=1e-3).status == "pass"


def test_a_limit_of_the_recipe_decides_what_is_small():
    modest = make_recipe({"data": {"train": "rows.jsonl"}, "guards": {"min_rows": 10}})
    few = {"train": 20, "validation": 50, "test": 50}
    assert verdict_on(1, recipe=modest, rows=few, read=120).status == "pass"


def test_a_gap_is_measured_around_the_best_step_only():
    late = [{"step": step, "loss": 1.0 if step <= 20 else 0.01} for step in range(1, 31)]
    assert verdict_on(3, training=TRAINING | {"curve": late}).evidence["gap"] == pytest.approx(0.2)


def test_a_gain_that_holds_zero_is_an_evaluation_all_the_same():
    assert verdict_on(10, evaluation=EVALUATION | {"ci95": [-0.1, 0.3]}).status == "pass"


def test_texts_with_labels_have_no_tokens_to_train_and_no_end_to_learn():
    labelled = replace(GOOD, tokens=GOOD.tokens | {"trained": 0, "ended": 0, "labelled": 400})
    verdict = next(guard for guard in every_guard() if guard.number == 2).check(labelled)
    assert (verdict.status, verdict.found) == ("pass", "0 texts were mended; 400 texts have a label to learn")
