"""Mistake 7, data leakage: a test row that training has seen makes every figure a lie."""

from __future__ import annotations

from burnish.data.split import by_kind
from burnish.guards import Evidence, Verdict, not_reached

SHOWN = 10


class DataLeakage:
    number, mistake = 7, "data leakage"

    def check(self, evidence: Evidence) -> Verdict:
        """Exact, 13-gram and MinHash matches between training and held-out rows; near ones (Jaccard 0.5 to 0.8) are only told.

        Fails on any match that is still in training; passes where the matching training rows were dropped, and says how many.
        Rephrased leaks pass n-grams (arXiv 2311.04850): this guard cannot see those.
        """
        if not evidence.rows:
            return not_reached("no data was split")
        surely = [match for match in evidence.matches if match.kind != "near"]
        near = len(evidence.matches) - len(surely)
        held_out = evidence.rows.get("validation", 0) + evidence.rows.get("test", 0)
        pairs = [f"{match.held_out.where} = {match.train.where} ({match.kind})" for match in surely[:SHOWN]]
        numbers = {
            "compared": held_out,
            "leaked_held_out_rows": len({match.held_out.where for match in surely}),
            "by_kind": by_kind(surely),
            "near": near,
            "pairs": pairs,
        }
        if surely and evidence.recipe.guards.leakage.action == "block":
            first = surely[0]
            found = f"{numbers['leaked_held_out_rows']} held-out rows also stand in train ({numbers['by_kind']})"
            found += f", such as {first.held_out.where} = {first.train.where}"
            return Verdict("fail", found, numbers, "--set guards.leakage.action=drop")
        if surely:
            return Verdict(
                "pass",
                f"{numbers['leaked_held_out_rows']} held-out rows stood in train too ({numbers['by_kind']}); "
                "their training copies were dropped",
                numbers,
            )
        return Verdict("pass", f"none of {held_out} held-out rows stands in train", numbers)


GUARD = DataLeakage()
