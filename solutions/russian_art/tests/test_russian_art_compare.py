"""`compare`: paired intervals by the groups of the folds, as kit_metrics computes them, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from kit_metrics import bootstrap_paired_macro_f1, macro_f1
from russian_art import train as training
from russian_art.cli import main
from russian_art.compare import RESAMPLES, compare
from russian_art.config import Config, DataConfig
from russian_art.data import Art, load, write_submission
from russian_art.sample import write_sample
from russian_art.train import train


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> Art:
    folder = tmp_path_factory.mktemp("compare")
    write_sample(folder, images=90, seed=0)
    art = load(folder, "train", size=32, workers=1)
    return dataclasses.replace(art, group=np.arange(len(art)) // 2)


@pytest.fixture(scope="module")
def runs(art: Art, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_plots", lambda *_: None)
        for member in ("pixels", "prior"):
            run_in(folder / member, art, Config(members=(member,), data=DataConfig(folds=3)))  # type: ignore[arg-type]  # both are members
    return folder / "pixels", folder / "prior"


def run_in(path: Path, art: Art, config: Config) -> None:
    hashes = {"train": art.fingerprint}
    with RunFolder.create(path, config=config, preset="x", data_hashes=hashes, seed=0) as run:
        train(config, art, run, {})


def test_two_runs_are_compared_as_kit_metrics_does(runs: tuple[Path, Path], art: Art) -> None:
    found = compare(*runs)
    oof = [load_file(run / "oof.safetensors") for run in runs]
    a, b = (one["probabilities"].argmax(axis=1) for one in oof)
    assert art.label is not None
    expected = bootstrap_paired_macro_f1(art.label, a, b, len(art.labels), art.group, n=RESAMPLES)
    assert (found.difference, *found.interval) == expected
    assert found.score_a == macro_f1(art.label, a, len(art.labels))
    assert found.score_a != found.score_b
    assert (found.n, found.n_groups, found.group_by) == (len(art), len(np.unique(art.group)), art.group_by)
    by_picture = bootstrap_paired_macro_f1(art.label, a, b, len(art.labels), n=RESAMPLES)
    assert found.interval != by_picture[1:]  # groups are resampled, not pictures


def test_a_run_against_itself_differs_by_nothing(runs: tuple[Path, Path]) -> None:
    found = compare(runs[0], runs[0])
    assert (found.difference, found.interval) == (0.0, (0.0, 0.0))


def test_json_and_text(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs[0]), str(runs[1]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(compare(*runs).to_dict()))
    assert main(["compare", str(runs[0]), str(runs[1])]) == 0
    assert "groups resampled (near-duplicates)" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["data", "pictures scored", "groups"])
def test_runs_that_scored_something_else_are_refused(
    what: str, runs: tuple[Path, Path], art: Art, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(training, "write_plots", lambda *_: None)
    config, other = Config(members=("prior",), data=DataConfig(folds=3)), art
    if what == "data":
        other = dataclasses.replace(art, fingerprint="other")
    elif what == "groups":
        other = dataclasses.replace(art, group=np.arange(len(art)) // 3)
    else:
        config = Config(members=("prior",), data=DataConfig(fold=0, folds=3))
    run_in(tmp_path / "other", other, config)
    assert main(["compare", str(runs[0]), str(tmp_path / "other")]) == 3
    assert f"found: other {what}" in capsys.readouterr().err


def test_a_run_without_what_is_needed_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in runs[0].rglob("*"):
        if file.is_file():
            (run / file.relative_to(runs[0])).parent.mkdir(parents=True, exist_ok=True)
            (run / file.relative_to(runs[0])).write_bytes(file.read_bytes())
    arrays = load_file(run / "oof.safetensors")
    del arrays["group"]
    save_file(arrays, run / "oof.safetensors", {"names": "[]"})
    (run / "digests.json").unlink()
    with pytest.raises(DataError, match="train again"):
        compare(run, run)


def test_two_submissions_and_a_truth(tmp_path: Path, art: Art) -> None:
    write_sample(tmp_path, images=90, seed=0)
    truth = tmp_path / "test.csv"
    rows = [line.split("\t") for line in truth.read_text(encoding="utf-8").splitlines()[1:]]
    names, label = [row[0] for row in rows], np.array([int(row[1]) for row in rows])
    a, b = np.where(np.arange(len(label)) % 3, label, 0), np.where(np.arange(len(label)) % 2, label, 0)
    write_submission(tmp_path / "a.csv", names, a)
    write_submission(tmp_path / "b.csv", names, b)
    found = compare(tmp_path / "a.csv", tmp_path / "b.csv", truth)
    expected = bootstrap_paired_macro_f1(label, a, b, len(art.labels), n=RESAMPLES)
    assert (found.difference, *found.interval) == expected
    assert (found.n, found.n_groups, found.group_by) == (len(label), len(label), "picture")
    with pytest.raises(ConfigError, match="--truth"):
        compare(tmp_path / "a.csv", tmp_path / "b.csv")
    with pytest.raises(ConfigError, match="is a folder"):
        compare(tmp_path, tmp_path / "b.csv", truth)
    write_submission(tmp_path / "short.csv", names[1:], b[1:])
    with pytest.raises(DataError, match="no row"):
        compare(tmp_path / "a.csv", tmp_path / "short.csv", truth)
