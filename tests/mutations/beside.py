"""Which tests are beside a source file: what an edit of the file has to be caught by."""

from __future__ import annotations

from pathlib import Path

DEFAULTS = "tests/test_defaults.py"
"""Beside every default, wherever it is."""

BESIDE: dict[str, tuple[str, ...]] = {
    "cli/many_values": ("cli/test_verify_layout",),
    "cli/places": ("cli/test_checkpoint", "cli/test_generate"),
    "cli/predecessor_settings": ("cli/test_import", "cli/test_import_published"),
    "cli/train": ("transformer/test_launch",),
    "core/checkpoint/disk": ("core/checkpoint/test_verify", "core/checkpoint/test_save"),
    "core/checkpoint/elsewhere": ("transformer/config/test_start",),
    "core/checkpoint/search": (
        "core/checkpoint/test_reader",
        "core/checkpoint/test_verify",
        "core/checkpoint/test_nearby",
        "transformer/config/test_start",
    ),
    "core/checkpoint/share": ("core/checkpoint/test_save", "core/trainer/test_saving"),
    "core/checkpoint/staging": ("core/checkpoint/test_checkpointer", "core/checkpoint/test_save"),
    "core/config/config_file": ("core/config/test_base",),
    "core/config/explain": ("core/config/test_base", "transformer/config/test_problems"),
    "core/config/fields": ("core/config/test_base", "core/config/test_template_text"),
    "core/config/reading": ("core/config/test_base", "transformer/config/test_first_version"),
    "core/config/patterns": ("core/optimizer/test_groups", "transformer/config/test_problems"),
    "core/config/plain_words": ("core/config/test_base",),
    "core/data/config": ("core/data/test_mixture", "core/data/test_blended", "transformer/config/test_problems"),
    "core/data/documents": ("core/data/test_memory_map", "core/data/test_open_files", "core/data/test_megatron"),
    "core/data/formats": ("core/data/test_megatron", "core/data/test_memory_map"),
    "core/data/memory_map_meta": ("core/data/test_memory_map_builder", "core/data/test_memory_map"),
    "core/data/packed": ("core/data/test_read_ahead",),
    "core/data/read_ahead": ("core/data/test_loader",),
    "core/data/reader": ("core/data/test_loader", "core/data/test_read_ahead"),
    "core/data/types": ("core/data/test_loader", "core/data/test_device_copy"),
    "core/data/worker": ("core/data/test_loader",),
    "core/errors": ("core/config/test_base", "core/runner/test_outcome", "cli/test_main"),
    "core/logging/metrics_files": ("core/logging/test_sinks", "transformer/data/test_readers"),
    "core/logging/config": ("core/logging/test_setup", "transformer/config/test_problems"),
    "core/nn/attention": ("core/nn/test_attention_projections",),
    "core/nn/attention_core": ("core/nn/test_attention_maker",),
    "core/nn/attention_fused": ("core/nn/test_attention_maker",),
    "core/nn/attention_kernels": ("core/nn/test_attention_maker",),
    "core/nn/attention_maker": ("core/nn/test_attention_fused",),
    "core/nn/config": ("transformer/config/test_root", "transformer/config/test_problems"),
    "core/nn/key_query_norm": ("core/nn/test_attention",),
    "core/nn/place": ("core/nn/test_linear", "core/nn/test_attention_projections", "core/nn/test_dropout"),
    "core/nn/rotary": ("core/nn/test_rotary_scaling", "core/nn/test_rotary_against_transformers"),
    "core/optimizer/config": ("core/optimizer/test_optimizer", "transformer/config/test_problems"),
    "core/optimizer/patterns": ("core/optimizer/test_groups", "transformer/config/test_problems"),
    "core/pipeline/engine": ("core/pipeline/test_toy_schedules",),
    "core/pipeline/end": ("core/pipeline/test_loss",),
    "core/optimizer/optimizer": ("core/optimizer/test_precision",),
    "core/optimizer/shard": ("core/optimizer/test_ownership", "core/optimizer/test_rule"),
    "core/pipeline/actions": ("core/pipeline/test_draw", "core/pipeline/test_simulate", "core/pipeline/test_lowering"),
    "core/profiler/config": ("core/profiler/test_profiler", "transformer/config/test_problems"),
    "core/runner/command": ("core/runner/test_main",),
    "core/runner/config": ("core/runner/test_main", "transformer/config/test_problems"),
    "core/runner/elastic": ("core/runner/test_main", "core/runner/test_torchrun"),
    "core/storage/json_values": ("core/checkpoint/test_manifest", "core/checkpoint/test_resume"),
    "core/topology/base_store": ("core/topology/test_rendezvous", "core/checkpoint/test_communicator"),
    "core/trainer/builtin_hooks": ("core/trainer/test_whole_run",),
    "core/trainer/config": ("core/trainer/test_origin", "transformer/config/test_problems"),
    "core/trainer/differences": ("core/trainer/test_origin", "core/trainer/test_trainer"),
    "core/trainer/hooks": ("core/trainer/test_trainer",),
    "core/trainer/profiling": ("core/trainer/test_whole_run",),
    "core/trainer/trainer": (
        "core/trainer/test_durations",
        "core/trainer/test_longer_runs",
        "core/trainer/test_saving",
    ),
    "core/trainer/run": ("core/trainer/test_whole_run",),
    "core/topology/gate": ("core/topology/test_watch", "core/trainer/test_leaving"),
    "core/topology/waits": ("core/topology/test_watch",),
    "core/topology/watch": ("core/trainer/test_leaving",),
    "core/training/loading": ("core/training/test_data",),
    "core/training/recipe": ("core/training/test_learner", "transformer/test_recipe"),
    "core/verify/world": ("core/verify/test_layouts",),
    "transformer/config/architecture": ("transformer/config/test_root", "transformer/config/test_problems"),
    "transformer/config/checks": ("transformer/config/test_problems",),
    "transformer/config/data": ("transformer/config/test_problems", "transformer/config/test_root"),
    "transformer/config/former": ("transformer/config/test_problems", "transformer/config/test_root"),
    "transformer/config/training": ("transformer/config/test_root", "transformer/config/test_problems"),
    "transformer/data/end_token": ("transformer/data/test_tokenizer",),
    "transformer/data/left_out": ("transformer/data/test_readers",),
    "transformer/data/plain_text": ("transformer/data/test_tokenizer",),
    "transformer/data/shards": ("transformer/data/test_tokenize",),
    "transformer/data/source": ("transformer/data/test_load", "transformer/data/test_prepare"),
    "transformer/flops": ("transformer/test_model",),
    "transformer/hf/families/gemma": ("transformer/hf/test_family", "transformer/hf/test_logits"),
    "transformer/hf/families/gpt": ("transformer/hf/test_family", "transformer/hf/test_logits"),
    "transformer/hf/families/llama": ("transformer/hf/test_family", "transformer/hf/test_logits"),
    "transformer/hf/families/olmo": ("transformer/hf/test_family", "transformer/hf/test_logits"),
    "transformer/hf/families/shared": ("transformer/hf/test_family", "transformer/hf/test_logits"),
    "transformer/hf/choose": ("transformer/hf/test_published",),
    "transformer/hf/family": ("transformer/hf/test_choose",),
    "transformer/hf/fields": ("transformer/hf/test_family", "transformer/hf/test_choose"),
    "transformer/hf/inert": ("transformer/hf/test_family", "transformer/hf/test_choose"),
    "transformer/hf/layer_types": ("transformer/hf/test_family", "transformer/hf/test_choose"),
    "transformer/hf/precision": ("transformer/hf/test_importer", "transformer/hf/test_exporter"),
    "transformer/hf/rope": ("transformer/hf/test_family", "transformer/hf/test_choose"),
    "transformer/hf/settings": ("transformer/hf/test_family", "transformer/hf/test_choose"),
    "transformer/hf/starting": ("transformer/hf/test_importer", "cli/test_hf"),
    "transformer/hf/tensors": ("transformer/hf/test_family", "transformer/hf/test_logits"),
    "transformer/inference/module": ("transformer/test_inference", "transformer/test_learned_positions"),
    "transformer/stored_model": (
        "transformer/test_kept_tokenizer",
        "transformer/test_inference",
        "transformer/hf/test_exporter",
    ),
    "transformer/io": ("transformer/test_model", "transformer/data/test_batch"),
    "transformer/layers/block": ("transformer/test_model",),
    "transformer/layers/embedding": ("transformer/test_model",),
    "transformer/layers/head": ("transformer/test_model", "transformer/test_losses"),
    "transformer/layers/parts": (
        *("transformer/test_model", "transformer/plan/test_model", "transformer/plan/test_parameters"),
    ),
    "transformer/losses": ("transformer/test_model", "transformer/plan/test_family"),
    "transformer/plan/parts": ("transformer/plan/test_model", "transformer/plan/test_parameters"),
    "transformer/train": (
        "transformer/test_kept_tokenizer",
        "transformer/test_launch",
        "transformer/config/test_resume_rules",
    ),
}
"""Where there is no test of the same name, or others beside it; names without `tests/`, `src/scaling/` and `.py`."""


def files_beside(path: str, root: Path) -> tuple[str, ...]:
    """Return the test files of `src/scaling/x/y.py`: its own and those of the table, else all of `tests/x`."""
    name = path.removeprefix("src/scaling/").removesuffix(".py")
    folder, _, own = name.rpartition("/")
    mirror = f"tests/{folder}/test_{own}.py"
    named = tuple(f"tests/{test}.py" for test in BESIDE.get(name, ()))
    if (root / mirror).exists():
        return (mirror, *named)
    return named or tuple(sorted(str(test.relative_to(root)) for test in (root / "tests" / folder).glob("test_*.py")))
