"""Checkpoints that were damaged, made by newer code or by an enemy: refused by name, never run, never followed."""

import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# What a run says to people; no verb computes with it.
FOR_PEOPLE = {"DONE", ".lock", "metrics.jsonl"}


class Bomb:
    """An object that pickles as a call which makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def payloads(marker: Path, folder: Path) -> Iterator[bytes]:
    """A bare pickle, and the zip that `torch.save` makes with that pickle in it."""
    yield pickle.dumps(Bomb(marker))
    path = folder / "payload.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state": Bomb(marker), "epoch": 1}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    yield path.read_bytes()


def files_of(run: Path) -> list[Path]:
    """The files of a run that code reads, sorted."""
    return [path for path in sorted(run.rglob("*")) if path.is_file() and path.name not in FOR_PEOPLE]


@pytest.fixture(scope="session")
def unfinished_of(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Make a run that was killed between two epochs, once for each case: the first one found that has a state file."""
    made: dict[str, Path] = {}

    def make(whole: Any) -> Path:
        case = whole.case
        if case.module not in made:
            finished = {path.relative_to(whole.run) for path in files_of(whole.run)}
            changes = whole.ran["train"].changes
            for at in range(changes // 8, changes, max(1, changes // 16)):  # the first one found is far from the end
                run = tmp_path_factory.mktemp(f"{case.module}-unfinished") / "run"
                argv = case.argv("train", whole.prepared, run)
                launch(module=case.module, argv=argv, watched=str(run), kill_at_change=at)
                if states_of(run, finished):
                    break
            made[case.module] = run
        return made[case.module]

    return make


def states_of(run: Path, finished: set[Path]) -> list[Path]:
    """The files of an unfinished run that a finished one no longer has."""
    return [path for path in files_of(run) if path.relative_to(run) not in finished and path.suffix != ".tmp"]


def infer(case: Any, whole: Any, run: Path, answers: Path, launch: Callable[..., Any]) -> Any:
    """Answer with a run; what came out is complete or not there."""
    answers.unlink(missing_ok=True)
    ran = launch(module=case.module, argv=case.argv("infer", whole.prepared, answers, run))
    assert ran.code in (0, 3), ran.log
    assert "Traceback" not in ran.log, ran.log
    assert answers.exists() == (ran.code == 0)
    return ran


@pytest.mark.parametrize("files", ["largest", pytest.param("all", marks=pytest.mark.slow)])
def test_a_flipped_byte_anywhere_in_a_run_is_refused_by_name(
    case: Any, files: str, whole: Any, launch: Callable[..., Any], tmp_path: Path
) -> None:
    run, answers = tmp_path / "run", tmp_path / "answers.csv"
    shutil.copytree(whole.run, run)
    places = random.Random(case.module)
    chosen = [file for file in files_of(run) if file.parent.name != "plots"]
    assert len(chosen) >= 4
    if files == "largest":
        chosen = sorted(chosen, key=lambda file: file.stat().st_size)[-1:]
    for file in chosen:
        content = file.read_bytes()
        at = places.randrange(len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << places.randrange(8)
        file.write_bytes(bytes(flipped))
        ran = infer(case, whole, run, answers, launch)
        assert ran.code == 3, f"byte {at} of {file.relative_to(run)} was flipped, and nobody noticed"
        assert file.name in ran.log, ran.log
        file.write_bytes(content)
    assert infer(case, whole, run, answers, launch).code == 0


@pytest.mark.slow  # a training is stopped and another one goes on, for each of them
@pytest.mark.parametrize("at", [0.0, 0.5, 0.97])
def test_a_damaged_state_is_refused_by_name_or_gives_the_same_bits(
    case: Any,
    at: float,
    whole: Any,
    unfinished_of: Callable[[Any], Path],
    launch: Callable[..., Any],
    outputs: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unfinished_of(whole), run)
    states = states_of(run, {path.relative_to(whole.run) for path in files_of(whole.run)})
    if not states:
        pytest.skip("this training keeps no state between epochs")
    for state in states:
        content = bytearray(state.read_bytes())
        content[int(at * len(content))] ^= 0x10
        state.write_bytes(bytes(content))
    ran = launch(module=case.module, argv=(*case.argv("train", whole.prepared, run), "--resume"))
    assert "Traceback" not in ran.log, ran.log
    if ran.code == 0:
        found, expected = outputs(run), outputs(whole.run)
        assert {**found, "metrics.jsonl": ""} == {**expected, "metrics.jsonl": ""}, "a damaged state was taken"
    else:
        assert ran.code == 3, ran.log
        assert any(state.name in ran.log or f"{state.stem}.safetensors" in ran.log for state in states), ran.log


def test_a_run_of_newer_code_is_refused_by_name(
    case: Any, whole: Any, launch: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole.run, run)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    manifest["format_version"] += 1
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    ran = infer(case, whole, run, tmp_path / "answers.csv", launch)
    assert ran.code == 3
    assert "manifest.json" in ran.log
    assert "format_version" in ran.log
    resumed = launch(module=case.module, argv=(*case.argv("train", whole.prepared, run), "--resume"))
    assert resumed.code == 3, resumed.log
    assert "manifest.json" in resumed.log


def test_prepared_data_of_newer_code_are_refused_by_name(
    case: Any, whole: Any, launch: Callable[..., Any], tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(whole.prepared, prepared)
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    manifest["format_version"] = int(manifest["format_version"]) + 1
    (prepared / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    answers = tmp_path / "answers.csv"
    ran = launch(module=case.module, argv=case.argv("infer", prepared, answers, whole.run))
    assert ran.code == 3, ran.log
    assert "manifest.json" in ran.log
    assert not answers.exists()


@pytest.mark.slow  # every file of a run in turn, twice
def test_a_pickle_in_place_of_any_file_of_a_run_is_never_run(
    case: Any,
    whole: Any,
    unfinished_of: Callable[[Any], Path],
    launch: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """An enemy would also take the digests away."""
    marker, run = tmp_path / "executed", tmp_path / "run"
    shutil.copytree(whole.run, run)
    (run / "digests.json").unlink()
    for payload in payloads(marker, tmp_path):
        for file in files_of(run):
            content = file.read_bytes()
            file.write_bytes(payload)
            infer(case, whole, run, tmp_path / "answers.csv", launch)
            assert not marker.exists(), file
            file.write_bytes(content)

        stopped = tmp_path / "stopped"
        shutil.copytree(unfinished_of(whole), stopped)
        for state in states_of(stopped, {path.relative_to(whole.run) for path in files_of(whole.run)}):
            state.write_bytes(payload)
        ran = launch(module=case.module, argv=(*case.argv("train", whole.prepared, stopped), "--resume"))
        assert ran.code in (0, 3), ran.log
        assert "Traceback" not in ran.log, ran.log
        assert not marker.exists()
        shutil.rmtree(stopped)
