"""Which peers can run which layout, and how: a table, for nothing of a peer is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LAYOUTS = ("one", "data", "tensor", "pipe")
MODELS: dict[str, dict[str, Any]] = {
    "toy": {"vocabulary": 512, "hidden": 64, "layers": 2, "heads": 2, "intermediate": 176, "sequence": 32},
    "small": {"vocabulary": 8192, "hidden": 256, "layers": 4, "heads": 4, "intermediate": 688, "sequence": 256},
    "large": {"vocabulary": 8192, "hidden": 768, "layers": 6, "heads": 12, "intermediate": 2048, "sequence": 512},
}
SEQUENCES = 4
"""Of one optimizer step, of all ranks."""


@dataclass(frozen=True)
class Peer:
    """One way of another library to train the model."""

    name: str
    builder: str
    layouts: tuple[str, ...]
    environment: str | None
    """Of `peers.environments`. None: this interpreter, for plain PyTorch."""
    arguments: dict[str, Any] = field(default_factory=dict)


PEERS = (
    Peer("pytorch_eager", "pytorch.whole", ("one", "data"), None, {"compiled": False}),
    Peer("pytorch_compiled", "pytorch.whole", ("one", "data"), None, {"compiled": True}),
    Peer("pytorch_zero", "pytorch.whole", ("data",), None, {"compiled": True, "sharded": True}),
    Peer("pytorch_dtensor_eager", "pytorch.tensor_parallel", ("tensor",), None, {"compiled": False}),
    Peer("pytorch_dtensor_compiled", "pytorch.tensor_parallel", ("tensor",), None, {"compiled": True}),
    Peer("pytorch_pipelining_eager", "pytorch.pipeline", ("pipe",), None, {"compiled": False}),
    Peer("pytorch_pipelining_compiled", "pytorch.pipeline", ("pipe",), None, {"compiled": True}),
    Peer("transformers", "huggingface.by_hand", ("one", "data"), "transformers"),
    Peer("transformers_trainer", "huggingface.by_trainer", ("one", "data"), "transformers"),
    Peer("torchtitan", "titan.step", ("one", "data", "tensor"), "torchtitan"),
    Peer("litgpt", "lit.step", ("one", "data"), "litgpt"),
    Peer("olmo_core", "olmo.step", ("one", "data"), "ai2-olmo-core"),
    Peer("deepspeed_zero", "deep_speed.sharded", ("data",), "deepspeed"),
    Peer("deepspeed_pipeline", "deep_speed.pipeline", ("pipe",), "deepspeed"),
    Peer("megatron_core", "megatron_lm.step", LAYOUTS, "megatron-core"),
)


def chosen(layout: str, names: str | None) -> list[Peer]:
    """Return the peers of a layout: all, or those whose names (or what their names begin with) are listed."""
    fitting = [peer for peer in PEERS if layout in peer.layouts]
    if names is None:
        return fitting
    wanted = [name for name in names.split(",") if name]
    for name in wanted:
        if not any(peer.name.startswith(name) for peer in fitting):
            known = ", ".join(peer.name for peer in fitting)
            raise SystemExit(f"--peers names {name!r}, which does not run in the layout {layout}; it may name {known}")
    return [peer for peer in fitting if any(peer.name.startswith(name) for name in wanted)]


def world_size(layout: str) -> int:
    return 1 if layout == "one" else 2


def job(layout: str, size: str) -> dict[str, Any]:
    """Return the arguments of `peers.common.Job`."""
    return {
        "layout": layout,
        "sequences": SEQUENCES,
        "micro_batches": 4 if layout == "pipe" else 1,
        "first_blocks": FIRST_BLOCKS.get(size, MODELS[size]["layers"] // 2),
        **MODELS[size],
    }


INTERLEAVED = {
    "pipe_schedule": "interleaved_1f1b",
    "pipe_chunks_per_rank": 2,
    "pipe_partition_method": "simulated",
}
"""Two stages on each rank halve the time that ranks wait; torch.distributed.pipelining stays at 1F1B, as the others."""

FIRST_BLOCKS = {"small": 3, "large": 4}
"""Blocks on the first stage of torch.distributed.pipelining, by the simulator: the head weighs as much as some."""


def ours(layout: str, size: str, overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configuration of each of our sides."""
    model, plan = MODELS[size], job(layout, size)
    topology = {
        "data_parallel_size": 2 if layout == "data" else 1,
        "model_parallel_size": 2 if layout == "tensor" else 1,
        "pipe_parallel_size": 2 if layout == "pipe" else 1,
        "global_batch_size": plan["sequences"],
        "gradient_accumulation_steps": plan["micro_batches"],
        **(INTERLEAVED if layout == "pipe" else {}),
        **overrides.get("topology", {}),
    }
    config: dict[str, Any] = {
        **overrides,
        "topology": topology,
        "optimizer": {"zero": True, **overrides.get("optimizer", {})},
        "trainer": {"seed": 1},
        "transformer_architecture": {
            "vocab_size": model["vocabulary"], "hidden_size": model["hidden"], "num_layers": model["layers"],
            "num_attention_heads": model["heads"], "sequence_length": model["sequence"], "mlp_type": "swiglu",
            "mlp_factor": model["intermediate"] / model["hidden"], "mlp_bias": False, "attention_bias": False,
            "norm_type": "rms", "weight_tying": False, "reset_attention_mask": False, "precision": "float32",
        },
    }  # fmt: skip
    if layout != "tensor":
        return {"scaling": config}
    return {
        "scaling": config,
        "scaling_sequence_parallel": config | {"topology": topology | {"sequence_parallel": True}},
    }
