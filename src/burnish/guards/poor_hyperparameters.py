"""Mistake 5, poor hyperparameters: a rate or a size that was never compared with another, or that the run itself speaks against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from burnish.guards import Evidence, Verdict, not_reached

FAR = 10  # times the usual learning rate, or a part of it
CLIPPED = 0.95  # share of the steps whose gradient was clipped
FALLING = 0.05  # share of the validation loss that went in the last stretch: it would have gone on
FEW_STEPS = 20  # in fewer, the loss of single steps says nothing
OTHER_ROWS = 2  # times the rows of a study, or a part of them, beyond which its values are of another problem


class PoorHyperparameters:
    number, mistake = 5, "poor hyperparameters"

    def check(self, evidence: Evidence) -> Verdict:
        """Passes where the values come from a study and still stand; else looks for what the run measured against them."""
        if evidence.training is None:
            return not_reached("nothing was trained")
        numbers, signs = measured(evidence)
        by = evidence.recipe.tuned_by
        if by is None:
            if signs:
                return Verdict("warn", "; ".join(signs), numbers, "burnish tune RECIPE")
            return Verdict("pass", "nothing in the run speaks against them, and no others were tried", numbers)
        numbers = {
            "study": by.study,
            "trials": by.trials,
            "metric": by.metric,
            "best": by.best,
            "default": by.default,
        } | numbers
        changed = [key for key, value in by.values.items() if _value(evidence, key) not in (value, None, "auto")]
        rows = evidence.rows.get("train", 0)
        if changed:
            told = f"changed since the study that found them: {', '.join(changed)}"
            return Verdict("warn", told, numbers, "burnish tune RECIPE")
        if not by.rows / OTHER_ROWS <= rows <= by.rows * OTHER_ROWS:
            told = f"the study that found them had {by.rows} rows to train on, and this run has {rows}"
            return Verdict("warn", told, numbers, "burnish tune RECIPE")
        if signs:
            return Verdict(
                "warn", f"from a study of {by.trials} trials, but {'; '.join(signs)}", numbers, "burnish tune RECIPE"
            )
        return Verdict(
            "pass", f"the best of a study of {by.trials} trials, judged by {by.metric} on validation", numbers
        )


def measured(evidence: Evidence) -> tuple[dict[str, Any], list[str]]:
    """(numbers, signs): what the run measured of its hyperparameters, and each finding that speaks against them."""
    training: Mapping[str, Any] = evidence.training or {}
    numbers: dict[str, Any] = {}
    signs: list[str] = []
    curve, looks = training.get("curve") or [], training.get("validations") or []
    if len(curve) >= FEW_STEPS:
        fifth = len(curve) // 5
        first, last = (fmean(point["loss"] for point in part) for part in (curve[:fifth], curve[-fifth:]))
        numbers |= {"loss_at_first": round(first, 4), "loss_at_last": round(last, 4)}
        if last > first:
            signs.append(f"the training loss rose from {first:.3f} to {last:.3f}")
        norms = [point["gradient_norm"] for point in curve if "gradient_norm" in point]
        clipped = sum(norm > evidence.recipe.train.clip for norm in norms) / max(len(norms), 1)
        numbers["clipped_share"] = round(clipped, 3)
        if clipped >= CLIPPED and last > 0.9 * first:
            signs.append(f"the gradient was clipped at {clipped:.0%} of the steps, and the loss hardly fell")
    rate, usual = training.get("learning_rate"), evidence.usual_rate
    if rate and usual:
        numbers |= {"learning_rate": rate, "usual_rate": usual}
        if not usual / FAR <= rate <= usual * FAR:
            signs.append(f"the learning rate is {rate:.1e}, where the size of the model suggests {usual:.1e}")
    return numbers, signs + _of_looks(looks, training)


def _of_looks(looks: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> list[str]:
    """What the validations say: best at once and worse ever after, or still getting better at the end."""
    if len(looks) < 3:
        return []
    best, before, last = training["best_step"], looks[-2], looks[-1]
    if best == looks[1]["step"] and len(looks) > 3 and last["loss"] > looks[1]["loss"] * (1 + FALLING):
        return [f"validation was best at the first look, step {best}, and got worse from there"]
    if best == last["step"] and last["loss"] < before["loss"] * (1 - FALLING) and last["metric"] > before["metric"]:
        return ["validation was still getting better when the training ended"]
    return []


def _value(evidence: Evidence, dotted: str) -> Any:
    """What the recipe has for a dotted key; None where it is not there."""
    found: Any = evidence.recipe
    for name in dotted.split("."):
        found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
    return found


GUARD = PoorHyperparameters()
