"""Mistake 2, no preprocessing: what is trained is not what the file seems to say."""

from __future__ import annotations

from burnish.guards import Evidence, Verdict, not_reached

PERSONAL = ("secret", "personal data")


class NoPreprocessing:
    number, mistake = 2, "no preprocessing"

    def check(self, evidence: Evidence) -> Verdict:
        """Judges the token ids that will be trained: answers only, end token among them, hardly any cut, nothing private.

        Texts with labels for a score head have no answers to write, so only what was cut and what is private counts.
        """
        tokens = evidence.tokens
        if tokens is None:
            return not_reached("no data was tokenized")
        limit = evidence.recipe.guards.max_truncated
        cut = tokens["truncated"] / max(tokens["sequences"], 1)
        private = {reason: count for reason, count in evidence.noted.items() if reason.startswith(PERSONAL)}
        numbers = {
            "trained_tokens": tokens["trained"],
            "tokens": tokens["all"],
            "end_token_trained": tokens["ended"],
            "sequences": tokens["sequences"],
            "truncated": tokens["truncated"],
            "changed": dict(evidence.changed),
            "dropped": dict(evidence.dropped),
            "personal_or_secret": private,
        }
        labelled = tokens.get("labelled", 0)
        if not labelled and tokens["trained"] == 0:
            return Verdict("fail", "no token at all is trained", numbers, "burnish data check FILE   shows the mask")
        if tokens["ended"] + labelled < tokens["sequences"] - tokens["truncated"]:
            missing = tokens["sequences"] - tokens["ended"] - labelled
            return Verdict(
                "fail",
                f"{missing} answers teach no end token, so the model would not stop",
                numbers,
                "give the model a chat template",
            )
        if cut > limit:
            fix = f"--set train.max_length={2 * evidence.recipe.train.max_length}"
            return Verdict("warn", f"{cut:.1%} of the sequences are cut off at max_length", numbers, fix)
        if private:
            return Verdict(
                "warn",
                f"{sum(private.values())} findings of personal data or secrets",
                numbers,
                "--set data.redact=true",
            )
        share = tokens["trained"] / tokens["all"]
        learnt = (
            f"{labelled} texts have a label to learn"
            if labelled
            else f"{share:.0%} of the tokens are trained, the end token among them"
        )
        return Verdict("pass", f"{sum(evidence.changed.values())} texts were mended; {learnt}", numbers)


GUARD = NoPreprocessing()
