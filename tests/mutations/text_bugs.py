"""What texts and prompts of inference can get wrong, each as an edit of this library's source and what notices it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.mutations.mutate import Edit
from tests.transformer.inference import test_prompts, test_text


@dataclass(frozen=True)
class CheckedBug:
    """What goes wrong, in which function, and a check that must not pass then."""

    name: str
    target: str
    edits: Sequence[Edit]
    check: Callable[[], object]


TEXT_BUGS = (
    CheckedBug(
        "bytes are shown before it is known whether they are text",
        "scaling.transformer.inference.text:_Decoding.push",
        [("self._falls_back and", "False and")],
        test_text.test_bytes_wait_for_those_beside_them,
    ),
    CheckedBug(
        "the middle of a text is decoded as its beginning",
        "scaling.transformer.inference.text:_Decoding.push",
        [("del self._window[:-_KEPT], self._names[:-_KEPT]", "self._window.clear(), self._names.clear()")],
        test_text.test_a_space_is_dropped_at_the_beginning_of_a_text_only,
    ),
    CheckedBug(
        "a stop text hides one that begins before it",
        "scaling.transformer.inference.text:TextStream._take",
        [("opened = end if last", "opened = end if last or ends")],
        lambda: test_text.test_what_may_become_a_stop_text_waits(["abc", "b"], "xabc", ["x", "", "", ""]),
    ),
    CheckedBug(
        "the token that begins a text is there twice",
        "scaling.transformer.inference.prompts:_tokens_of_text",
        [("tokens if tokens[: len(opening)] == opening else ", "")],
        lambda: test_prompts.test_a_tokenizer_that_begins_texts_does_so_once(test_prompts.like_gemma),
    ),
)
