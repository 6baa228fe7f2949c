"""Fine-tune a model of Hugging Face with LoRA, the base in float32 and in bfloat16: losses and peak memory.

    python3 benchmarks/finetuning_memory.py MODEL [--steps 20] [--tokens 64] [--rank 8] [--json FILE]

MODEL is a folder with config.json, model.safetensors and tokenizer.json, such as SmolLM2-135M's. It is imported into a
folder that is deleted at the end, and trained on five parts of Python's os.py, one a step, all matrices of the blocks
with LoRA, each type in a process of its own. The peak is that of the whole process, interpreter and torch included.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reporting import begin, parser, publish

RECORDS, CHARACTERS = 5, 4
"""How many parts of the source there are, seen again and again, and how many characters of it for each token."""


def scaling(*arguments: object, module: str = "scaling.cli.main") -> None:
    """Run a command of this checkout."""
    path = str(Path(__file__).parents[1] / "src")
    command = [sys.executable, "-m", module, *map(str, arguments)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=sys.stderr, check=True)


def trained(base: Path, folder: Path, precision: str, *, steps: int, tokens: int, rank: int) -> dict[str, Any]:
    """Return the figures of one fine-tuning."""
    log_dir = folder / precision
    lora = {"rank": rank, "alpha": 2 * rank, "parallel_modules": ["attention", "mlp"]}
    scaling(
        base / "config.yml",
        f"transformer_architecture.precision={precision}",
        f"transformer_architecture.lora_config={json.dumps(lora)}",
        f"transformer_architecture.sequence_length={tokens}",
        f"data.data_prefixes=[{folder / 'records.jsonl'}]",
        "data.record_format=text",
        f"data.records_dir={folder}",
        "data.too_long=cut_right",
        "data.packing=false",
        "topology.device=cpu",
        "topology.gradient_accumulation_steps=1",
        "learning_rate_scheduler={learning_rate: 5.0e-4, learning_rate_warmup_steps: 2}",
        f"trainer.train_iterations={steps}",
        "trainer.save_interval=null",
        f"trainer.save_dir={log_dir / 'checkpoints'}",
        f"logger.log_dir={log_dir}",
        module="scaling.transformer.train",
    )
    lines = [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["training/loss"] for line in lines]
    return {
        "losses": losses,
        "loss_of_first_epoch": statistics.mean(losses[:RECORDS]),
        "loss_of_last_epoch": statistics.mean(losses[-RECORDS:]),
        "peak_mib": max(line["training/peak_memory_bytes"] for line in lines) / 2**20,
        "checkpoint_mib": size_of(log_dir / "checkpoints"),
    }


def size_of(folder: Path) -> float:
    """Return what the files of tensors in a folder hold, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2**20


def main() -> None:
    options = parser(__doc__, steps=20, tokens=64, rank=8)
    options.add_argument("model", type=Path)
    given = options.parse_args()
    report = begin()
    with tempfile.TemporaryDirectory() as name:
        folder, text = Path(name), Path(os.__file__).read_text()
        length = CHARACTERS * given.tokens
        records = [text[start : start + length] for start in range(0, RECORDS * length, length)]
        (folder / "records.jsonl").write_text("".join(json.dumps({"text": record}) + "\n" for record in records))
        scaling("hf", "import", given.model, folder / "base")
        report["base_mib"] = size_of(folder / "base")
        sizes = {"steps": given.steps, "tokens": given.tokens, "rank": given.rank}
        for precision in ("float32", "bfloat16"):
            report[precision] = trained(folder / "base", folder, precision, **sizes)
    publish(report, given.json)


if __name__ == "__main__":
    main()
