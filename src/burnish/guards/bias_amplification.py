"""Mistake 9, bias amplification: tuning makes a model's unequal treatment of people worse."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict


class BiasAmplification:
    number, mistake = 9, "bias amplification"

    def check(self, evidence: Evidence) -> Verdict:
        return Verdict(
            "not_run",
            "no pairs that differ in a group of people were asked",
            fix="swap names and groups in a few prompts with burnish chat",
        )


GUARD = BiasAmplification()
