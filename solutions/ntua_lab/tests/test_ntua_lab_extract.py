"""From sound to the official layout, and a song to an answer."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from kit_audio import decode, lab_spectra
from ntua_lab import sample as samples
from ntua_lab.cli import main
from ntua_lab.config import AXES
from ntua_lab.data import load, read_answers
from ntua_lab.extract import extract_folder
from ntua_lab.sample import STYLES, play, write_sample


def tune(style: str, seed: int = 0) -> np.ndarray:
    return play(STYLES[style], 110.0, "major", 0, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    (folder / "live").mkdir()
    soundfile.write(folder / "a.wav", np.concatenate([tune("Rock"), tune("Folk")]), 22_050)
    stereo = np.stack([tune("Classical"), 0.5 * tune("Rock")], axis=1)
    soundfile.write(folder / "live" / "b.flac", stereo, 22_050)
    soundfile.write(folder / "c.ogg", tune("Hip-Hop")[::3], 8_000)
    soundfile.write(folder / "notes.wav.txt", np.zeros(9), 22_050, format="WAV")
    return folder


def test_the_official_layout_out_of_sound(songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "file,split,genre,valence,energy,danceability,artist\n"
        "a.wav,train,Rock,,,,The A\nlive/b.flac,test,Classical,,,,\nc.ogg,train,Hip-Hop,0.2,0.9,0.7,C\n"
    )
    out = tmp_path / "out"
    said = extract_folder(songs, out, labels=labels, clip_seconds=4.0)
    assert "5 genre clips and 1 multitask clips of 3 files" in said
    assert "are sampled below 22050 Hz" in capsys.readouterr().err
    assert (
        (out / "fma_genre_spectrograms/train_labels.txt")
        .read_text()
        .startswith("Id\tGenre\n10000.fused.full.npy.gz\tRock")
    )
    assert "full.fused.npy.gz\tClassical" in (out / "fma_genre_spectrograms/test_labels.txt").read_text()
    assert "beatsync.fused.npy.gz" in (out / "fma_genre_spectrograms_beat/train_labels.txt").read_text()
    assert (
        (out / "multitask_dataset/train_labels.txt")
        .read_text()
        .splitlines()[1]
        .startswith("100000000,0.2000,0.9000,0.7000")
    )
    clips = load(out)
    assert {clips.raw[i] for i in clips.where("genre")} == {"Rock", "Classical", "Hip-Hop"}
    first = clips.ids.index("10000")
    assert clips.artist[first] == "The A"
    assert clips.track[first] == "a.wav"
    expected = lab_spectra(decode(songs / "a.wav").samples[: 4 * 22_050])
    np.testing.assert_allclose(clips.spectra(first, "full")[:128], expected.full[:128], atol=1 / 32)
    np.testing.assert_allclose(clips.spectra(first, "beat")[128:], expected.beat[128:], atol=1 / 4096)
    assert not (out / "scratch").exists()


def test_without_labels_all_is_a_test_part(songs: Path, tmp_path: Path) -> None:
    extract_folder(songs, tmp_path / "out", clip_seconds=6.0)
    clips = load(tmp_path / "out")
    assert set(clips.sets) == {"emotion"}
    assert set(clips.splits) == {"test"}
    assert len(set(clips.track)) == 3


def test_rows_that_name_an_artist_alone_are_a_test_part(songs: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("file,artist\na.wav,A\nlive/b.flac,B\n")
    extract_folder(songs, tmp_path / "out", labels=labels, clip_seconds=6.0)
    clips = load(tmp_path / "out")
    assert set(clips.splits) == {"test"}
    assert {"A", "B"} < set(clips.artist)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(songs: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        extract_folder(songs, tmp_path / str(workers), clip_seconds=6.0, workers=workers)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("1", "2")
    )
    assert first == second


def test_a_song_gets_an_answer(songs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, flags in (("genre", ()), ("emotion", ("--task", "emotion"))):
        train = ["train", "pooled-svm", "--data", str(whole), "--run", str(tmp_path / name), *flags]
        assert main(train) == 0
    runs = ["--run", str(tmp_path / "genre"), "--run", str(tmp_path / "emotion")]
    capsys.readouterr()
    plot = tmp_path / "song.png"
    assert main(["predict", str(songs / "a.wav"), *runs, "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    assert "12.0 s, 1 channels at 22050 Hz, 1 clips" in said
    assert all(word in said for word in ("Rock", "probability", *AXES))
    genres = said[said.index("probability") :].split("\n\n")[0].splitlines()[2:]
    shares = [float(line.split()[1]) for line in genres]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)  # the most likely first
    assert shares[0] > shares[-1]
    assert plot.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "broken.ogg").write_bytes(b"OggS")
    assert main(["predict", str(tmp_path / "broken.ogg"), *runs]) == 3
    soundfile.write(tmp_path / "short.wav", np.ones(9_000) * 0.1, 22_050)
    assert main(["predict", str(tmp_path / "short.wav"), *runs]) == 3
    assert "at least 3 seconds" in capsys.readouterr().err


def test_a_tiny_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "CLIP_SECONDS", 3.0)
    write_sample(tmp_path / "sample", clips=24, seed=1)
    clips = load(tmp_path / "sample")
    assert len(clips.where("genre")) == 16
    assert len(clips.where("emotion")) == 8
    assert clips.classes == ("Classical", "Electronic", "Folk", "Hip-Hop", "Rock")
    truth = read_answers(tmp_path / "sample" / samples.TRUTH)
    assert truth.ids == [clips.ids[i] for i in clips.where("emotion", "test")]
    assert (tmp_path / "sample/songs/rock.flac").exists()


def test_a_sample_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_and_stop(_: Path, folder: Path, **__: object) -> None:
        (folder / "train_labels.txt").write_text("Id")
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "CLIP_SECONDS", 3.0)
    monkeypatch.setattr(samples, "extract_folder", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "sample", clips=24)
    assert not list(tmp_path.iterdir())
