"""Talk to a tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burnish.data.render import Chat
from burnish.data.rows import Turn, Turns
from burnish.model.load import load_tokenizer
from burnish.model.sample import Sampler
from burnish.serve.export import load_run


class Conversation:
    """The tuned model of a run, with its system prompt, and what was said so far."""

    def __init__(self, folder: str | Path, report: dict[str, Any]) -> None:
        folder = Path(folder)
        self.model = load_run(folder, report)
        self.tokenizer = load_tokenizer(str(folder / "adapter" if (folder / "adapter").is_dir() else folder / "merged"))
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
