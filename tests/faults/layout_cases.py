"""Group C: resuming in other layouts, with another configuration, and with other data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scaling.transformer.data.tokenizer import train_tokenizer
from tests.faults.engine import Scene, Settings, layout, make_source, texts
from tests.faults.matrix import Case, End, Refuse, Survive, differences

LAYOUTS: Mapping[str, Settings] = {
    "1 rank": layout(),
    "2 ranks, tensor-parallel": layout(model=2),
    "2 ranks, pipeline-parallel": layout(pipe=2),
    "4 ranks, data-parallel": layout(data=4),
    "4 ranks, tensor- and data-parallel": layout(data=2, model=2, sequence_parallel=True),
    "4 ranks, pipeline- and tensor-parallel, ZeRO off": {**layout(pipe=2, model=2), "optimizer.zero": False},
}
ROUNDING = 1e-10
"""Deviation from the undisturbed run after two more steps in another layout, in float64."""


def cases() -> Iterator[Case]:
    """Yield the 16 cases."""
    for name, settings in LAYOUTS.items():
        yield Case("C", f"resume on {name}", Survive(within=ROUNDING), partial(other_layout, settings))
    yield Case(
        "C",
        "other architecture",
        Refuse(2, r"transformer_architecture\.hidden_size: 32, but 16 in the checkpoint"),
        partial(changed, {"transformer_architecture.hidden_size": 32}),
    )
    yield Case(
        "C",
        "other vocabulary",
        Refuse(2, r"transformer_architecture\.vocab_size: 304, but 300 in the checkpoint"),
        partial(changed, {"transformer_architecture.vocab_size": 304}),
    )
    yield Case("C", "other tokenizer", Refuse(2, "was made with a tokenizer of SHA-256"), other_tokenizer)
    yield Case(
        "C",
        "other seed",
        Refuse(2, r"trainer\.seed: 43, but 42 in the checkpoint"),
        partial(changed, {"trainer.seed": 43}),
    )
    yield Case("C", "other learning rate", Survive(), other_learning_rate)
    yield Case("C", "other batch size", Survive(), other_batch_size)
    fingerprint = r"fingerprints\.data: .*, but .* in the checkpoint"
    other = [text.replace("counts", "adds") for text in texts()]
    yield Case("C", "other data set", Refuse(2, fingerprint), partial(other_data, other))
    yield Case("C", "shorter data set", Refuse(2, fingerprint), partial(other_data, texts(40)))
    yield Case(
        "C",
        "ranks with different configurations",
        Refuse(2, "the processes do not share one configuration"),
        divergent_ranks,
    )
    yield Case(
        "C",
        "unknown key",
        Refuse(2, r"trainer\.train_iteration: .*did you mean train_iterations"),
        partial(changed, {"trainer.train_iteration": 9}),
    )


def other_layout(settings: Settings, scene: Scene) -> End:
    """What is loaded is bitwise what was saved, and two more steps come to the same up to rounding."""
    scene.use(scene.wide)
    scene.resume_from(4)
    end = scene.finish(settings)
    found = differences(end.loaded or {}, scene.undisturbed_at(4)) if end.status == 0 else []
    scene.require(not found, f"loaded other than saved: {found}")
    return end


STEP_4: Settings = {"trainer.train_iterations": 4, "trainer.save_interval": None}


def load(save_dir: Path, step: int) -> dict[str, Any]:
    """Return the settings that start from a checkpoint of another folder and save nothing."""
    return {"trainer.load_dir": str(save_dir / f"global_step{step}"), "trainer.save_dir": None}


def changed(settings: Settings, scene: Scene) -> End:
    """Resume with other settings."""
    scene.resume_from(4)
    scene.watch()
    return scene.run(settings)


def other_tokenizer(scene: Scene) -> End:
    """The data keep the digest of the tokenizer they were made with."""
    scene.resume_from(4)
    path = scene.folder / "other.json"
    train_tokenizer(["something else entirely"] * 5, 300).save(path)
    scene.watch()
    return scene.run({"transformer_architecture.vocab_file": str(path)})


def other_learning_rate(scene: Scene) -> End:
    """A changed schedule is listed and holds from here on: changed and changed back, nothing is different."""
    scene.resume_from(4)
    logs = scene.folder / "logs"
    change = {"learning_rate_scheduler.learning_rate": 0.5, "logger.log_dir": str(logs)}
    end = scene.run(change, STEP_4, {"trainer.train_iterations": 5, "trainer.save_dir": None}, load(scene.save_dir, 4))
    scene.require(end.status == 0, end.message)
    listed = (logs / "rank_0.log").read_text()
    wanted = "resuming with another setting: training_groups.0.learning_rate_scheduler.learning_rate: 0.01"
    scene.require(wanted in listed, f"the change is not listed: {listed}")
    same = scene.undisturbed_at(4)
    loaded = end.loaded or {}
    scene.require(not differences(loaded, same), f"loaded other than saved: {differences(loaded, same)}")
    scene.require(bool(differences(end.state or {}, scene.undisturbed_at(5))), "the new rate has no effect")
    return scene.finish()


def other_batch_size(scene: Scene) -> End:
    """The position counts samples: two steps of 4 are one of 8, none repeated, none left out."""
    scene.resume_from(4)
    doubled = {"topology.global_batch_size": 8, "topology.micro_batch_size": 2, "trainer.train_iterations": 5}
    end = scene.run(doubled)
    scene.require(end.status == 0, end.message)
    same = scene.undisturbed_at(4)
    loaded = end.loaded or {}
    scene.require(not differences(loaded, same), f"loaded other than saved: {differences(loaded, same)}")
    position = {name: (end.state or {})[name] for name in ("step", "consumed_samples")}
    scene.require(position == {"step": 5, "consumed_samples": 24}, f"the position is {position}")
    shutil.rmtree(scene.step(5))
    return scene.finish()


def other_data(documents: list[str], scene: Scene) -> End:
    """Data at the same place that are not the same; tokenized with the same tokenizer."""
    scene.resume_from(4)
    source = make_source(scene.folder / "data", documents, tokenizer=scene.source.tokenizer)
    scene.watch()
    return scene.run({"data.data_prefixes": [str(source.prefix)]})


def divergent_ranks(scene: Scene) -> End:
    """One rank has read another file: all of them notice before the first collective."""
    scene.resume_from(4)
    scene.watch()
    return scene.run(changes={1: {"learning_rate_scheduler.learning_rate": 0.5}})
