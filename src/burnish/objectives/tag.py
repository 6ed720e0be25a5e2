"""Token tagging: a head on the decoder names the tag of each word."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from burnish.core import Batch, Outputs
from burnish.objectives.classify import Classify


@dataclass(frozen=True)
class Tag(Classify):
    """The cross-entropy between the scores of a word and its tag, at one token of each word.

    Groups of one sequence. The stream `tag` holds the number of the tag plus one at the token that stands for its word, and 0
    elsewhere. Options, weights and count are those of `classify`, with words in place of sequences.

    Source: Devlin et al. 2018 (arXiv 1810.04805), section 5.3, which classifies a word by one of its pieces. Relatives: `classify`.
    """

    rows = frozenset({"tagged"})
    needs = frozenset({"token_score"})
    reads: frozenset[str] = frozenset({"tag"})

    def wanted(self, batch: Batch) -> Tensor:
        return batch.tokens["tag"].flatten().long() - 1  # (R*T,)

    def scores(self, outputs: Outputs) -> Tensor:
        assert outputs.token_score is not None
        return outputs.token_score.flatten(0, 1)  # (R*T,C)


OBJECTIVE = Tag
