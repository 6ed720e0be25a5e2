"""Mistake 10, no evaluation after tuning: a lower loss is taken for a better model."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict, not_reached


class NoEvaluation:
    number, mistake = 10, "no evaluation after tuning"

    def check(self, evidence: Evidence) -> Verdict:
        """Passes where base and tuned answered the locked test; whether tuned won is the run's verdict, not this guard's."""
        evaluation = evidence.evaluation
        if evaluation is None:
            return not_reached("base and tuned were not compared")
        numbers = {key: evaluation[key] for key in ("metric", "n", "base", "tuned", "delta", "ci95", "p_value")}
        low, high = evaluation["ci95"]
        gain = f"{evaluation['delta']:+.3f} (95% {low:+.3f} to {high:+.3f})"
        found = f"base and tuned answered the same {evaluation['n']} locked rows: {gain}"
        if high < 0:
            return Verdict(
                "fail", f"tuning made it worse: {found}", numbers, "burnish data check FILE   and a lower learning rate"
            )
        return Verdict("pass", found, numbers)


GUARD = NoEvaluation()
