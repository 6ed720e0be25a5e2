"""Mistake 5, poor hyperparameters: a rate or a size that was never compared with another."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict


class PoorHyperparameters:
    number, mistake = 5, "poor hyperparameters"

    def check(self, evidence: Evidence) -> Verdict:
        return Verdict(
            "not_run",
            "no other settings were tried",
            fix="--set train.learning_rate=... --out runs/ANOTHER   then burnish runs compares them",
        )


GUARD = PoorHyperparameters()
