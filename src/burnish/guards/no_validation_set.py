"""Mistake 6, no validation set: nobody sees whether the model generalises until it is too late."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict, not_reached

FEW = 30  # rows of a held-out split under which an interval says little


class NoValidationSet:
    number, mistake = 6, "no validation set"

    def check(self, evidence: Evidence) -> Verdict:
        """Fails where there is no validation or test split; warns where one is too small to see a change.

        The test split is locked: its hash stands in the evidence, and another one would be another test.
        """
        if not evidence.rows:
            return not_reached("no data was split")
        held_out = {split: evidence.rows.get(split, 0) for split in ("validation", "test")}
        numbers = {
            **held_out,
            "test_sha256": evidence.test_hash,
            "grouped_by": evidence.recipe.data.group_by or "equal and near-equal rows",
        }
        for split, count in held_out.items():
            if not count:
                return Verdict("fail", f"there is no {split} split", numbers, f"--set data.{split}=0.1")
        smallest = min(held_out.values())
        if smallest < FEW:
            return Verdict(
                "warn",
                f"{smallest} held-out rows show only large changes",
                numbers,
                "--set data.test=0.2   or more rows",
            )
        found = f"{held_out['validation']} rows to validate on and {held_out['test']} locked for the test"
        return Verdict("pass", found, numbers)


GUARD = NoValidationSet()
