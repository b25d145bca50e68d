"""kill -9 at any moment of prepare, train and infer: the same command again ends with what an unbroken one makes.

An even seed kills at one of the changes that the verb makes to the file system, an odd one at a moment of the clock;
every third one kills the second attempt too.
"""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SEEDS = 20
IN_EVERY_RUN = 1  # seeds that the default run takes as well


def seeds(how_many: int) -> list[Any]:
    """Seeds as parameters, all but the first few marked as slow."""
    return [pytest.param(seed, marks=() if seed < IN_EVERY_RUN else pytest.mark.slow) for seed in range(how_many)]


@pytest.mark.parametrize("seed", seeds(SEEDS))
def test_a_killed_command_given_again_ends_as_an_unbroken_one(
    case: Any,
    verb: str,
    seed: int,
    whole: Any,
    launch: Callable[..., Any],
    outputs: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    moments = random.Random(f"{case.module} {verb} {seed}")
    target = tmp_path / "place" / whole.target(verb).name
    target.parent.mkdir()
    argv = case.argv(verb, whole.source(verb), target, whole.run)
    again = (*argv, "--resume") if verb == "train" else argv
    usual = whole.ran[verb]

    killed = False
    for attempt in (argv, again) if seed % 3 == 2 else (argv,):
        if seed % 2 == 0:
            ran = launch(
                module=case.module, argv=attempt, watched=str(tmp_path), kill_at_change=moments.randrange(usual.changes)
            )
        else:
            ran = launch(module=case.module, argv=attempt, kill_after_seconds=moments.uniform(0, usual.seconds))
        assert ran.code in (0, -signal.SIGKILL), ran.log
        killed |= ran.code != 0
    assert killed or seed % 2, "it ended before the change that it was to be killed at"

    check_that_only_whole_work_is_taken(case, verb, whole, target, launch, tmp_path)
    ran = launch(module=case.module, argv=again)
    assert ran.code == 0, ran.log
    found, expected = outputs(target), outputs(whole.target(verb))
    if verb == "train":  # of a log, each kill may have taken one line, of work that was saved already
        logged, known = (set(one.pop("metrics.jsonl").split("\n")) for one in (found, expected))
        assert logged <= known
        assert len(known - logged) <= 2
    assert found == expected
    assert [path.name for path in target.parent.iterdir()] == [target.name], "litter beside the target"
    assert not (verb == "infer" and target.read_bytes() != whole.submission.read_bytes())


def test_a_prepare_killed_in_its_first_write_is_given_again(
    case: Any, whole: Any, launch: Callable[..., Any], outputs: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    target = tmp_path / "prepared"
    target.mkdir()
    for name in (*(path.name for path in whole.prepared.iterdir() if path.is_file()), "begun.json", "state.json"):
        (target / f".{name}.0123abcd.tmp").write_text("half")
    ran = launch(module=case.module, argv=case.argv("prepare", whole.sample, target))
    assert ran.code == 0, ran.log
    assert outputs(target) == outputs(whole.prepared)


def check_that_only_whole_work_is_taken(
    case: Any, verb: str, whole: Any, target: Path, launch: Callable[..., Any], tmp_path: Path
) -> None:
    """Give what a killed verb left to the next verb: it is refused as bad data, or it is complete."""
    if verb == "infer":
        assert not target.exists() or target.read_bytes() == whole.submission.read_bytes()
        return
    answers = tmp_path / "answers.csv"
    data, run = (target, whole.run) if verb == "prepare" else (whole.prepared, target)
    ran = launch(module=case.module, argv=case.argv("infer", data, answers, run))
    if ran.code == 0:
        assert answers.read_bytes() == whole.submission.read_bytes()
    else:
        assert ran.code == 3, ran.log
        assert "Traceback" not in ran.log
        assert not answers.exists()
