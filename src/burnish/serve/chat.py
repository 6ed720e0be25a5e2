"""Talk to a tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burnish.data.render import Chat
from burnish.data.rows import Turn, Turns
from burnish.errors import CheckpointError
from burnish.model.load import load_model, load_tokenizer
from burnish.model.sample import Sampler


def refuse_unless_fit(report: dict[str, Any], *, force: bool) -> None:
    """Raise CheckpointError where the verdict is "stop" and nobody forces it: such a model is worse than none."""
    if report["verdict"] == "stop" and not force:
        reasons = " ".join(report["reasons"])
        raise CheckpointError(
            f"the verdict of this run is stop: {reasons}", where=report["name"], hint="--force   uses it all the same"
        )


class Conversation:
    """The tuned model of a run, with its system prompt, and what was said so far."""

    def __init__(self, folder: str | Path, report: dict[str, Any]) -> None:
        import torch

        folder = Path(folder)
        source = next((folder / name for name in ("merged", "adapter") if (folder / name).is_dir()), None)
        if source is None:
            raise CheckpointError(
                "the run has neither merged/ nor adapter/", where=str(folder), hint="burnish run RECIPE   makes them"
            )
        self.tokenizer = load_tokenizer(str(source))
        self.model: Any
        if source.name == "merged":
            self.model = load_model(str(source), dtype=torch.float32)
        else:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(
                load_model(report["model"]["source"], dtype=torch.float32), str(source)
            )
        self.chat = Chat(self.tokenizer, system=report["task"]["system"])
        self.turns: Turns = ()

    def say(self, text: str, *, max_new_tokens: int = 256) -> str:
        """The model's answer to the next thing said; both are remembered."""
        self.turns = (*self.turns, Turn("user", text))
        sampler = Sampler(self.model, self.tokenizer, self.chat.end_ids)
        [[completion]] = sampler.sample([self.chat.prompt(self.turns)], max_new_tokens=max_new_tokens)
        self.turns = (*self.turns, Turn("assistant", completion.text))
        return completion.text

    def answers(self, lines: Iterator[str]) -> Iterator[str]:
        """One answer for each line that is not blank; "/new" forgets what was said."""
        for line in lines:
            if line.strip() == "/new":
                self.turns = ()
            elif line.strip():
                yield self.say(line.strip())
