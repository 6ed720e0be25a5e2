"""Mistake 4, catastrophic forgetting: the new task is learnt at the cost of what the model could do."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict


class CatastrophicForgetting:
    number, mistake = 4, "catastrophic forgetting"

    def check(self, evidence: Evidence) -> Verdict:
        return Verdict(
            "not_run",
            "no general test suite was run before and after",
            fix="try the tuned model on other work with burnish chat",
        )


GUARD = CatastrophicForgetting()
