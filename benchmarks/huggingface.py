"""Measure the memory of importing and exporting a model of Hugging Face whose largest tensor is 1 GiB.

    python3 benchmarks/huggingface.py [--family llama] [--layers 1] [--dir DIR] [--json FILE]

Makes a folder of random weights, imports it, saves it anew as a run of 2 x 2 x 2 with ZeRO would, exports that, and
compares both folders bit by bit. Each step has a process of its own, which reports how far its resident memory rose
above that of an interpreter with torch loaded. In llama the largest tensor is the embedding; in gpt_neox and gpt2 it is
query, key and value in one, by heads and transposed.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from reporting import begin, parser, publish

GIB = 2**30
WIDE = 9472
"""Of float32, three square matrices of this many rows have 1 GiB."""
PIECE = 16 * 2**20

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "vocab_size": 131072,
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": WIDE,
        "intermediate_size": WIDE // 2,
        "num_attention_heads": 74,
        "vocab_size": 1000,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": WIDE,
        "n_head": 74,
        "n_inner": WIDE // 2,
        "n_positions": 1024,
        "vocab_size": 1000,
    },
}
LAYERS = {"llama": "num_hidden_layers", "gpt_neox": "num_hidden_layers", "gpt2": "n_layer"}


def resident(line: str) -> int:
    """Return VmRSS (now) or VmHWM (at most) of this process, in bytes."""
    found = re.search(rf"^{line}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def measured(action: Callable[..., Any], pipe: Connection, *arguments: Any) -> None:
    """Run an action and send how far memory rose, and how long it took."""
    before, started = resident("VmRSS"), time.perf_counter()
    action(*arguments)
    pipe.send({"mib_over_torch": (resident("VmHWM") - before) // 2**20, "seconds": time.perf_counter() - started})


def alone(action: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Run an action in a process of its own, which has loaded nothing but torch."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measured, args=(action, there, *arguments))
    process.start()
    there.close()
    found: dict[str, Any] = here.recv()
    process.join()
    return found


def make(folder: Path, family: str, layers: int) -> None:
    """Write random weights, piece by piece."""
    from scaling.core import PlainTensor, write_plain
    from scaling.transformer.config.architecture import TransformerArchitectureConfig
    from scaling.transformer.config.model_plan import plan_of
    from scaling.transformer.hf.choose import family_of

    config = CONFIGS[family] | {"model_type": family, LAYERS[family]: layers}
    found = family_of(config)
    plan = plan_of(TransformerArchitectureConfig.from_dict(found.section(config)))

    def values(count: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32).view(torch.float32)

    def pieces(size: int) -> Iterator[Callable[[], torch.Tensor]]:
        for start in range(0, size, PIECE):
            yield partial(values, min(PIECE, size - start))

    tensors = [
        PlainTensor(theirs.name, torch.float32, theirs.shape, pieces(torch.Size(theirs.shape).numel()))
        for theirs in found.tensors(plan)
    ]
    assert abs(max(tensor.bytes for tensor in tensors) - GIB) < GIB / 100
    folder.mkdir()
    write_plain(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))


def take_in(folder: Path, target: Path) -> None:
    from scaling.transformer.hf.importer import import_model

    import_model(folder, target)


def spread(source: Path, target: Path) -> None:
    """Save a checkpoint as a run of 2 x 2 x 2 with ZeRO would: halves of matrices, and a state in parts of them."""
    from scaling.core import Box, Checkpointer, CheckpointReader, LazyTensor, save_pieces

    stored = Checkpointer(None).find(source).require()

    def halves(shape: tuple[int, ...], dim: int) -> list[Box]:
        size = shape[dim]
        starts = [(0, size // 2), (size // 2, size - size // 2)]
        return [
            Box(
                tuple(start if index == dim else 0 for index in range(len(shape))),
                tuple(length if index == dim else other for index, other in enumerate(shape)),
            )
            for start, length in starts
        ]

    def cut(shape: tuple[int, ...], name: str) -> list[Box]:
        rows = not re.search(r"\.dense(_out)?\.weight", name)  # the others are cut into columns
        parts = halves(shape, 0 if rows else 1)
        return [small for part in parts for small in part.cut(PIECE)]

    with CheckpointReader(stored) as reader:
        tensors = []
        for name, entry in stored.manifest.tensors.items():
            boxes = cut(entry.shape, name)
            tensors.append(
                LazyTensor(name, entry.shape, torch.float32, [(box, partial(reader.read, name, box)) for box in boxes])
            )
        state = "optimizer.exp_avg.layers.1.input_layernorm.weight"
        shape = stored.manifest.tensors["layers.1.input_layernorm.weight"].shape
        tensors.append(
            LazyTensor(
                state, shape, torch.float32, [(box, partial(torch.zeros, box.shape)) for box in halves(shape, 0)]
            )
        )
        save_pieces(target, 1, tensors, scalars=stored.manifest.scalars, information={})


def write_out(source: Path, target: Path) -> None:
    from scaling.core import Checkpointer
    from scaling.transformer.hf.exporter import export_model

    export_model(Checkpointer(None).find(source, weights_only=True).require(), target)


def same(a: Path, b: Path) -> bool:
    """Compare the tensors of two folders bit by bit."""
    from scaling.core import Box, open_plain

    for file in sorted(b.glob("*.safetensors")):
        with open_plain(a / "model.safetensors") as first, open_plain(file) as second:
            for name, slot in second.slots.items():
                for box in Box((0,) * len(slot.shape), slot.shape).cut(PIECE):
                    pair = [torch.empty(box.shape) for _ in range(2)]
                    for opened, values in zip((first, second), pair, strict=True):
                        opened.read_into(name, box, values)
                    if not torch.equal(*(values.view(torch.int32) for values in pair)):
                        return False
    return True


def main() -> None:
    arguments = parser(__doc__, layers=1)
    arguments.add_argument("--family", choices=CONFIGS, default="llama")
    arguments.add_argument("--dir", type=Path, help="a folder with room for three times the model; default: temporary")
    options = arguments.parse_args()
    report = begin()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        alone(make, folder / "model", options.family, options.layers)
        report["model_gib"] = round((folder / "model" / "model.safetensors").stat().st_size / GIB, 2)
        report["import"] = alone(take_in, folder / "model", folder / "imported")
        alone(spread, folder / "imported", folder / "spread")
        report["export"] = alone(write_out, folder / "spread", folder / "exported")
        report["bit_identical"] = same(folder / "model", folder / "exported")
    publish(report, options.json)


if __name__ == "__main__":
    main()
