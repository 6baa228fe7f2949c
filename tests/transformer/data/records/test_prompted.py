"""Documents that begin with the length of their prompt."""

from __future__ import annotations

import numpy as np
import pytest

from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.prompted import prompted_record


def test_the_completion_counts_and_the_end_that_is_not_stored() -> None:
    made = prompted_record(np.array([2, 5, 6, 7, 8], dtype=np.int32), eos_token_id=0, vocab_size=9)
    assert (made.tokens.tolist(), made.weights.tolist()) == ([5, 6, 7, 8, 0], [0, 0, 1, 1, 1])
    made = prompted_record(np.array([0, 7], dtype=np.int32), eos_token_id=0, vocab_size=9)
    assert (made.tokens.tolist(), made.weights.tolist()) == ([7, 0], [0, 1])
    made = prompted_record(np.array([2, 5, 6, 7]), eos_token_id=0, vocab_size=9, every_token=True)
    assert made.weights.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "the document is empty"),
        ([5, 1, 2], "begins with 5, which is no length of a prompt in its 2 tokens"),
        ([-1, 1], "begins with -1"),
        ([2, 1, 2], "all prompt, 2 tokens"),
        ([1, 2, 99], "token 1 is 99, which is outside the vocabulary of 9"),
    ],
)
def test_what_is_no_such_document_is_refused(document: list[int], reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        prompted_record(np.array(document, dtype=np.int64), eos_token_id=0, vocab_size=9)
