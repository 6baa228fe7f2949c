"""The contract's comparisons catch historic bugs: a bug that survives them fails this suite."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from scaling.core.pipeline import build
from scaling.core.topology import placement
from tests.contract.dense import dense_run
from tests.contract.finetuning import METHODS, finetuned
from tests.contract.layouts import LayoutCase
from tests.contract.models import config_of, recipe, without_dropout
from tests.contract.runs import Job, Reference, Run
from tests.mutations.bugs import BUGS, Bug
from tests.mutations.finetuning_bugs import FINETUNING_BUGS
from tests.mutations.mutate import mutated
from tests.mutations.speed_bugs import SPEED_BUGS
from tests.mutations.worlds import Trial, run_trials, symptoms


def name_of(bug: Bug | None) -> str:
    return "" if bug is None else bug.name


STEPS = 2  # a bias that is zero at first acts in the second


def job(name: str, model: str, layout: LayoutCase | None, *, dropout: bool, record: bool = False) -> Job:
    make = finetuned if model in METHODS else config_of if dropout else without_dropout
    config = make(model) if layout is None else make(model, layout.settings, layout.optimizer)
    return Job(name, recipe(config), config.topology, STEPS, record)


def plain_runs(bugs: Sequence[Bug], directories: pytest.TempPathFactory) -> dict[str, Reference]:
    """Return the runs of a plain program, which no bug of the engine can touch."""
    found = {}
    for model in sorted({bug.model for bug in bugs if bug.has_plain_program}):
        config = without_dropout(model)
        found[model] = dense_run(config, recipe(config), directories.mktemp(model), steps=STEPS)
    return found


def runs_alone(bugs: Sequence[Bug], directories: pytest.TempPathFactory) -> dict[tuple[str, str], Reference]:
    """Return the runs of a single process, which has the bug too, as a user's would; by model and the bug's name."""
    bugs = [bug for bug in bugs if not bug.has_plain_program]
    wanted: list[tuple[str, bool, Bug | None]] = [
        *((model, dropout, None) for model, dropout in dict.fromkeys((bug.model, bug.dropout) for bug in bugs)),
        *((bug.model, bug.dropout, bug) for bug in bugs),
    ]
    trials = [
        Trial(bug, job("reference", model, None, dropout=dropout, record=True), directories.mktemp("alone"))
        for model, dropout, bug in wanted
    ]
    found: dict[tuple[str, str], Reference] = {}
    for (model, _, _), trial, (run,) in zip(wanted, trials, run_trials(trials), strict=True):
        assert isinstance(run, Run), run
        found[model, name_of(trial.bug)] = Reference(trial.job.recipe, trial.directory, run)
    return found


@pytest.mark.parametrize("bug", [*BUGS, *SPEED_BUGS, *FINETUNING_BUGS], ids=name_of)
def test_the_bug_fits_the_code(bug: Bug) -> None:
    with mutated(bug.target, bug.edits):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("bugs", [(*BUGS, *SPEED_BUGS), FINETUNING_BUGS], ids=["training", "fine-tuning"])
def test_every_bug_is_caught(
    bugs: Sequence[Bug], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a bug the same comparisons, in the same layouts, find nothing."""
    plain, alone = plain_runs(bugs, tmp_path_factory), runs_alone(bugs, tmp_path_factory)
    controls = {(bug.model, str(bug.layout), bug.dropout): bug for bug in bugs}
    attempts: list[tuple[Bug | None, Bug]] = [
        *((None, bug) for bug in controls.values()),
        *((bug, bug) for bug in bugs),
    ]
    caught: dict[str, list[str]] = {}
    for size in sorted({bug.layout.world_size for bug in bugs}):
        trials, references = [], []
        for number, (bug, of) in enumerate(attempts):
            if of.layout.world_size == size:
                references.append(plain[of.model] if of.has_plain_program else alone[of.model, name_of(bug)])
                one = job(f"{number}", of.model, of.layout, dropout=of.dropout)
                trials.append(Trial(bug, one, references[-1].directory))
        for trial, reference, runs in zip(trials, references, run_trials(trials), strict=True):
            found = symptoms(reference, trial.job.name, runs)
            if trial.bug is None:
                assert not found, (trial.job.topology, found)
            else:
                caught[trial.bug.name] = found
    total = sum(map(bool, caught.values()))
    with capsys.disabled():
        print(
            "",
            *(
                f"{'caught' if caught[bug.name] else 'MISSED':8}{bug.name}: {', '.join(caught[bug.name])}"
                for bug in bugs
            ),
            f"{total}/{len(bugs)} caught",
            sep="\n",
        )
    assert total == len(bugs)
    assert len(bugs) >= 15


def test_a_mutation_that_no_longer_fits_the_code_is_an_error() -> None:
    target = "scaling.core.topology.placement:tied"
    with pytest.raises(LookupError, match="exactly once"), mutated(target, [("never", "")]):
        pass


def test_a_mutation_ends_with_its_context() -> None:
    original = placement.tied
    with mutated("scaling.core.topology.placement:tied", [("gradient_in_parts=True", "gradient_in_parts=False")]):
        assert placement.tied is not original
        assert vars(build)["tied"] is placement.tied
    assert vars(build)["tied"] is placement.tied is original
