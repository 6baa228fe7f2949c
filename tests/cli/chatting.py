"""A model that answers without computing, for a chat: what it is asked it says back, in pieces; and its command."""

from __future__ import annotations

import fcntl
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scaling.cli.main import main
from scaling.core import ConfigError
from scaling.transformer import TransformerInferenceModule
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.generation.defaults import GenerationDefaults

CONTEXT = 200
LONG = "long"
"""A message of this is answered without end."""


class Parrot:
    """Answers `You said: MESSAGE` in two pieces."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(folder / "vocab.json")
        self.context_length = CONTEXT
        self.defaults = GenerationDefaults()
        self.end_token_ids = frozenset((0,))
        self.options: list[dict[str, Any]] = []
        self.closed = 0

    def stream_text(self, prompt: Sequence[int], **options: Any) -> Iterator[str]:
        self.options.append(options)
        text = self.tokenizer.decode(prompt, skip_special_tokens=False)
        message = text.rpartition("<|im_start|>user\n")[2].removesuffix("<|im_end|>\n<|im_start|>assistant\n")
        try:
            yield "You said: "
            while message == LONG:
                time.sleep(0.01)
                yield "la "
            if message == "fail":
                raise ConfigError("that cannot be said")
            yield message
        finally:
            self.closed += 1


def stand_in(folder: Path) -> Parrot:
    """Let the command load the parrot."""
    made = Parrot(folder)
    TransformerInferenceModule.from_checkpoint = lambda *_, **__: made  # type: ignore[method-assign, assignment]
    return made


if __name__ == "__main__":
    if sys.stdin.isatty():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its keys send signals
    stand_in(Path(sys.argv[2]))
    main()
