"""Mistake 8, hardware limits: a run that does not fit, or that nobody will wait for."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict, not_reached

GIB = 2**30


class HardwareLimits:
    number, mistake = 8, "hardware limits"

    def check(self, evidence: Evidence) -> Verdict:
        """Holds the memory that was predicted against what there is, and against what the run took and gave up."""
        plan, training = evidence.plan, evidence.training or {}
        if plan is None:
            return not_reached("nothing was planned")
        peak, given_up = training.get("peak_memory_bytes"), training.get("ladder") or []
        needed, available = plan["memory"]["total"], plan["memory_available"]
        numbers = {
            "predicted_gib": round(needed / GIB, 2),
            "available_gib": round(available / GIB, 2),
            "limit_gib": plan.get("memory_limit"),
            "measured_gib": round(peak / GIB, 2) if peak else None,
            "predicted_seconds": plan["seconds"],
            "longest_batch_tokens": plan["micro_tokens"],
            "device": plan["device"],
            "given_up": given_up,
        }
        if given_up:
            found = f"the memory was not enough, and the run went on with less: {'; '.join(given_up)}"
            return Verdict("warn", found, numbers, "put what stands in brackets into the recipe")
        if not plan["fits"]:
            return Verdict(
                "warn",
                f"{needed / GIB:.1f} GiB were predicted and {available / GIB:.1f} are there",
                numbers,
                plan["would_fit"],
            )
        found = f"{needed / GIB:.1f} of {available / GIB:.1f} GiB were predicted"
        return Verdict("pass", f"{found}; the peak was {peak / GIB:.1f}" if peak else found, numbers)


GUARD = HardwareLimits()
