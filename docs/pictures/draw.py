"""Draw every picture of the documentation out of the library's own plans.

    python3 -m docs.pictures.draw [FOLDER]

Writes `docs/pictures/*.svg`, or into another folder. The same library draws the same bytes; a test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.pictures.batches import global_batch, packing
from docs.pictures.layers import sequence_parallel, tensor_parallel
from docs.pictures.memory import activation_memory, zero
from docs.pictures.pipelines import layers_of_stages, messages, schedules
from scaling.core import Layout, draw_layout

FOLDER = Path(__file__).parent


def mixed() -> str:
    """Draw two stages, two copies and two parts of each layer, on two hosts."""
    return draw_layout(Layout(pipe=2, data=2, model=2), ranks_per_host=4, title="Eight processes on two hosts")


def cluster() -> str:
    """Draw a layout of which most is left out."""
    layout = Layout(pipe=4, data=32, model=8)
    return draw_layout(layout, ranks_per_host=8, title="1024 GPUs, eight in each host", most_shown=3)


PICTURES: Mapping[str, Callable[[], str]] = {
    "activation_memory": activation_memory,
    "cluster": cluster,
    "global_batch": global_batch,
    "layers_of_stages": layers_of_stages,
    "messages": messages,
    "mixed": mixed,
    "packing": packing,
    "schedules": schedules,
    "sequence_parallel": sequence_parallel,
    "tensor_parallel": tensor_parallel,
    "zero": zero,
}
"""What draws each file."""


def main(folder: Path = FOLDER) -> None:
    """Write all pictures into a folder."""
    for name, drawn in PICTURES.items():
        (folder / f"{name}.svg").write_text(drawn(), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
