"""The real command line: from a generated sample to a score, exit codes, prediction, other music."""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from yandex_artists.cli import main
from yandex_artists.data import load


@pytest.fixture(scope="module", autouse=True)
def no_flushing() -> Iterator[None]:
    """Hundreds of files are made here, and no power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit_core.atomic._sync", lambda path: None)
        yield


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artists") / "sample"
    assert main(["sample", "--out", str(folder), "--artists", "45", "--channels", "16"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(sample: Path) -> Path:
    folder = sample.parent / "run"
    assert main(["train", "whitened", "--data", str(sample), "--run", str(folder), "--data.n-folds", "3"]) == 0
    return folder


def test_from_sample_to_score(sample: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prepared, out = tmp_path / "prepared", tmp_path / "submission.txt"
    assert main(["prepare", "--data", str(sample), "--out", str(prepared)]) == 0
    train = ["train", "whitened", "--data", str(prepared), "--run", str(run), "--data.n-folds", "3"]
    assert main([*train, "--resume"]) == 0  # of the prepared data, which are the same
    captured = capsys.readouterr()
    assert "finished already" in captured.err
    assert "galleries of" in captured.out
    assert main(train) == 2  # not empty, no --resume
    assert main(["infer", "--run", str(run), "--data", str(prepared), "--out", str(out)]) == 0
    assert main(["check", "--submission", str(out), "--data", str(sample)]) == 0
    capsys.readouterr()
    truth = str(sample / "test_truth.tsv")
    assert main(["evaluate", "--submission", str(out), "--truth", truth, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ndcg@100"] > 0.3
    assert report["interval"][0] < report["ndcg@100"] < report["interval"][1]
    assert (report["queries"], report["left_out"]) == (report["gallery"], 0)
    assert main(["evaluate", "--submission", str(out), "--truth", truth]) == 0
    assert "gallery, tracks" in capsys.readouterr().out
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:-1]) + "\n")
    assert main(["check", "--submission", str(out), "--data", str(prepared)]) == 0
    assert f"warning: {out}: 1 of {len(lines)} lines are missing" in capsys.readouterr().err
    assert main(["evaluate", "--submission", str(out), "--truth", truth, "--json"]) == 0
    with_a_zero = json.loads(capsys.readouterr().out)
    assert with_a_zero["queries"] == report["queries"]
    assert with_a_zero["ndcg@100"] < report["ndcg@100"]
    out.write_text("\n".join([*lines[:-1], lines[-1] + "7"]) + "\n")  # the last id becomes an unknown one
    assert main(["check", "--submission", str(out), "--data", str(prepared)]) == 3
    assert main(["evaluate", "--submission", str(out), "--truth", truth]) == 3


def test_a_hold_out_in_the_layout_of_the_training_data_is_answered(
    sample: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "submission.txt"
    assert main(["infer", "--run", str(run), "--data", str(sample), "--split", "train", "--out", str(out)]) == 0
    capsys.readouterr()
    truth = str(sample / "train_meta.tsv")
    assert main(["evaluate", "--submission", str(out), "--truth", truth, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left_out"] > 0  # artists with one track, stated
    subsets = [line.split("\t") for line in Path(truth).read_text().splitlines()]
    rows = [[row[0], row[1], "subset" if i == 0 else ("public", "private")[i % 2]] for i, row in enumerate(subsets)]
    (tmp_path / "truth.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    assert main(["evaluate", "--submission", str(out), "--truth", str(tmp_path / "truth.tsv"), "--json"]) == 0
    halves = json.loads(capsys.readouterr().out)["subsets"]
    assert min(halves.values()) < report["ndcg@100"] < max(halves.values())


def test_predict_prints_the_nearest_tracks(sample: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = (sample / "train_meta.tsv").read_text().splitlines()
    track, artist, path = table[5].split("\t")
    file = str(sample / "train_features" / path)
    arguments = ["predict", file, "--run", str(run), "--gallery", str(sample), "--top", "4"]
    assert main([*arguments, "--split", "train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[2].split() == ["1", track, "1.0000", artist]  # itself, since it is in the gallery
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["place", "track", "similarity"]
    np.save(tmp_path / "turned.npy", np.load(file).T)
    assert main(["predict", str(tmp_path / "turned.npy"), *arguments[2:]]) == 3
    assert "is it transposed?" in capsys.readouterr().err
    assert main([*arguments[:-1], "0"]) == 2
    assert main(["predict", str(tmp_path / "absent.npy"), *arguments[2:]]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "naiv", "--data", "x", "--run", "y"], 2, "did you mean 'naive'"),
        (["train", "naive", "--data", "absent", "--run", "y"], 3, "absent"),
        (["train", "naive", "--data", "x", "--run", "y", "--data.fold", "99"], 2, "data.fold"),
        (["infer", "--run", "absent", "--data", "x", "--out", "y"], 3, "x"),
        (["prepare", "--data", "absent", "--out", "y"], 3, "absent"),
        (["clips", "--table", "x.csv", "--features", "absent", "--out", "y"], 2, "absent"),
    ],
)
def test_wrong_use_ends_with_words_and_a_code(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_gallery_below_101_tracks_and_a_baseline_in_an_ensemble_are_refused(
    sample: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = tmp_path / "small"
    small.mkdir()
    lines = (sample / "test_meta.tsv").read_text().splitlines()[:101]
    (small / "test_meta.tsv").write_text("\n".join(lines) + "\n")
    (small / "test_features").symlink_to(sample / "test_features")
    for line in lines[1:]:
        path = line.split("\t")[1]
        (small / "features" / path).parent.mkdir(parents=True, exist_ok=True)
        (small / "features" / path).write_bytes((sample / "test_features" / path).read_bytes())
    (small / "test_features").unlink()
    out = tmp_path / "out.txt"
    assert main(["infer", "--run", str(run), "--data", str(small), "--out", str(out)]) == 3
    assert "found 100 tracks, expected at least 101" in capsys.readouterr().err
    assert main(["infer", "--run", str(run), "--run", str(run), "--data", str(sample), "--out", str(out)]) == 2
    assert "a baseline in an ensemble" in capsys.readouterr().err
    assert not out.exists()


def test_clips_of_other_music_become_the_official_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    folders = [tmp_path / "a", tmp_path / "b"]
    rows = ["id,artist,artist_known,track"]
    for clip in range(10, 40):
        folder = folders[clip % 2]
        folder.mkdir(exist_ok=True)
        stream = io.BytesIO()
        np.save(stream, rng.standard_normal((5, 5 + clip)).astype(np.float32))
        content = stream.getvalue()
        if clip % 3:
            (folder / f"{clip}.fused.full.npy.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{clip}.npy").write_bytes(content)
        rows.append(f'{clip},"Artist {clip % 6}, and band",{int(clip != 11)},{clip // 2}')
    rows += ["99,Nobody,1,0", "98,,1,0"]
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    features = [word for folder in folders for word in ("--features", str(folder))]
    arguments = ["clips", "--table", str(tmp_path / "clips.csv"), *features, "--out"]
    assert main([*arguments, str(tmp_path / "layout")]) == 0
    assert "tracks=29, artists=6, without_features=1, without_artist=2" in capsys.readouterr().out
    tracks = load(tmp_path / "layout", "train")
    assert (len(tracks), tracks.channels) == (29, 5)
    assert main([*arguments, str(tmp_path / "distinct"), "--distinct", "track"]) == 0
    assert len(load(tmp_path / "distinct", "train")) == 15


def test_a_clip_that_comes_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "a"
    folder.mkdir()
    for clip in (1, 2):
        np.save(folder / f"{clip}.npy", np.ones((3, 4), np.float32))
    (tmp_path / "clips.csv").write_text("id,artist\n1,A\n2,B\n1,A\n")
    arguments = ["clips", "--table", str(tmp_path / "clips.csv"), "--features", str(folder)]
    assert main([*arguments, "--out", str(tmp_path / "layout")]) == 3
    assert "row 3: found the id '1' a second time" in capsys.readouterr().err
    assert not (tmp_path / "layout").exists()


@pytest.mark.data
def test_real_music_becomes_the_official_layout(tmp_path: Path):
    root = next((p for p in Path(__file__).resolve().parents if (p / "poetry.lock").exists()), Path("/"))
    music = root.parent / "shared" / "data" / "music-mini"
    if not music.is_dir():
        pytest.skip("needs ../shared/data/music-mini beside the repository")
    folders = sorted(folder for folder in music.glob("*_beat/*") if folder.is_dir())
    features = [word for folder in folders for word in ("--features", str(folder))]
    layout, packed = tmp_path / "layout", tmp_path / "packed"
    assert main(["clips", "--table", str(music / "clips.csv"), *features, "--out", str(layout)]) == 0
    assert main(["prepare", "--data", str(layout), "--out", str(packed)]) == 3  # up to 90 beats
    assert main(["prepare", "--data", str(layout), "--out", str(packed), "--max-frames", "90"]) == 0
    tracks = load(packed, "train")
    assert tracks.channels == 140
    assert len(tracks) > 300
    assert tracks.pack.lengths.max() == 90
