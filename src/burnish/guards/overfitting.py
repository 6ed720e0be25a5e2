"""Mistake 3, overfitting: the training rows are learnt by heart and new ones get worse."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict, not_reached


class Overfitting:
    number, mistake = 3, "overfitting"

    def check(self, evidence: Evidence) -> Verdict:
        """Compares loss on validation with loss in training around the best step, and the metric there with its last value.

        Warns on a wide gap. What is kept is the best step by the metric, so a fall after it costs nothing but time.
        """
        training = evidence.training
        if training is None:
            return not_reached("nothing was trained")
        if not training["validations"]:
            return Verdict("not_run", "nothing was validated during training", fix="--set data.validation=0.1")
        looks = training["validations"]
        best = next(look for look in looks if look["step"] == training["best_step"])
        near = [point["loss"] for point in training["curve"] if best["step"] - 10 < point["step"] <= best["step"]]
        train_loss = sum(near) / len(near) if near else best["loss"]
        gap = best["loss"] - train_loss
        limit = evidence.recipe.guards.max_gap
        numbers = {
            "best_step": best["step"],
            "training_loss": round(train_loss, 4),
            "validation_loss": round(best["loss"], 4),
            "gap": round(gap, 4),
            "best_metric": best["metric"],
            "last_metric": looks[-1]["metric"],
            "validations": len(looks),
            "stopped": training["stopped"],
        }
        if best["step"] == 0:
            return Verdict(
                "fail",
                "validation was best before any training",
                numbers,
                "--set train.learning_rate=1e-4   or look at the data",
            )
        if gap > limit:
            return Verdict(
                "warn",
                f"validation loss is {gap:.2f} above training loss",
                numbers,
                "--set train.epochs=1   or more rows",
            )
        return Verdict(
            "pass", f"validation loss is {gap:+.2f} against training loss at the best step, {best['step']}", numbers
        )


GUARD = Overfitting()
