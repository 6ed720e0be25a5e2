"""Mistake 1, small or bad data: a model learns no more than its examples show."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict, not_reached


class SmallOrBadData:
    number, mistake = 1, "small or bad data"

    def check(self, evidence: Evidence) -> Verdict:
        """Warns on few rows, on rare labels, on contradicting labels, and where much of what was read had to go."""
        if not evidence.rows:
            return not_reached("no data was read")
        limits = evidence.recipe.guards
        rows = evidence.rows["train"]
        read, dropped = evidence.read - sum(evidence.left_out.values()), sum(evidence.dropped.values())
        rare = {label: count for label, count in evidence.labels.items() if count < limits.min_rows_per_label}
        conflicts = evidence.noted.get("conflicting labels", 0)
        numbers = {
            "training_rows": rows,
            "read": read,
            "dropped": dropped,
            "labels": len(evidence.labels),
            "rare_labels": rare,
            "conflicting_labels": conflicts,
        }
        problems = []
        if rows < limits.min_rows:
            problems.append((f"{rows} training rows are few", f"collect {limits.min_rows - rows} more rows"))
        if rare:
            shown = ", ".join(f"{label} ({count})" for label, count in list(rare.items())[:3])
            problems.append(
                (
                    f"{len(rare)} labels have under {limits.min_rows_per_label} rows: {shown}",
                    "collect more rows of these labels",
                )
            )
        if conflicts:
            problems.append(
                (f"{conflicts} rows give one text two labels", "look for `conflicting labels` in ledger.jsonl")
            )
        if dropped > 0.2 * max(read, 1):
            problems.append((f"{dropped} of {read} rows had to be dropped", "burnish data check FILE   shows why"))
        if problems:
            return Verdict("warn", "; ".join(found for found, _ in problems), numbers, problems[0][1])
        return Verdict("pass", f"{rows} training rows, {dropped} of {read} read were dropped", numbers)


GUARD = SmallOrBadData()
