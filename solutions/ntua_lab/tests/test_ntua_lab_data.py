"""The official layout with all its oddities, and the packed form."""

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kit_core.errors import ConfigError, DataError
from ntua_lab import data as official_data
from ntua_lab.data import clip_id, lab_mapping, load, prepare


def music_mini() -> Path:
    """The real stand-in beside the repository."""
    root = next(folder for folder in Path(__file__).resolve().parents if (folder / "poetry.lock").exists())
    path = root.parent / "shared" / "data" / "music-mini"
    if not path.is_dir():
        pytest.skip("../shared/data/music-mini is absent")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "66082.fused.full.npy.gz",
        "66082.full.fused.npy.gz",
        "66082.beatsync.fused.npy.gz",
        "66082",
        " 66082.fused.full.npy",
    ],
)
def test_every_spelling_names_the_same_clip(text: str) -> None:
    assert clip_id(text) == "66082"


def test_the_labs_mapping() -> None:
    mapping = lab_mapping()
    assert len(mapping) == 20
    assert sorted(raw for raw, name in mapping.items() if name is None) == [
        "Indie-Rock", "International", "Old-Time", "Post-Punk", "Soundtrack",
    ]  # fmt: skip
    assert official_data.classes_of(mapping) == (
        "Blues", "Classical", "Electronic", "Folk", "Hip-Hop", "Jazz", "Metal", "Pop", "Rock", "Trip-Hop",
    )  # fmt: skip
    assert Counter(name for name in mapping.values() if name)["Rock"] == 3


def test_sets_splits_and_answers(whole: Path) -> None:
    clips = load(whole)
    assert len(clips) == 62
    assert [len(clips.where(s, p)) for s in ("genre", "emotion") for p in ("train", "test")] == [30, 10, 16, 6]
    assert clips.classes == official_data.classes_of(lab_mapping())  # one encoder, whatever a split holds
    first = clips.ids.index("1000")
    assert clips.classes[clips.label[first]] == "Rock"
    assert clips.classes[clips.label[clips.ids.index("1001")]] == "Rock"  # Psych-Rock
    assert clips.label[clips.ids.index("1004")] == -1  # Indie-Rock is dropped
    np.testing.assert_allclose(clips.emotion[clips.ids.index("100000001")], [0.3, 0.7, 0.4], atol=1e-6)
    assert np.isnan(clips.emotion[clips.where("emotion", "test")]).all()
    assert len(clips.with_answers("emotion")) == 16
    assert len(clips.with_answers("genre")) == 32


def test_both_versions_are_packed_as_they_are(whole: Path) -> None:
    clips = load(whole)
    for id_, suffix in (("1001", ".npy"), ("5003", ".npy")):
        index = clips.ids.index(id_)
        split = clips.splits[index]
        for version, folder in (("full", "fma_genre_spectrograms"), ("beat", "fma_genre_spectrograms_beat")):
            given = np.load(whole / folder / split / f"{id_}.fused.full{suffix}")
            packed = clips.spectra(index, version)
            assert packed.dtype == np.float32
            np.testing.assert_allclose(packed[:128], given[:128], atol=1 / 32)
            np.testing.assert_allclose(packed[128:], given[128:], atol=1 / 4096)


def test_prepare_twice_and_load(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    assert "62 clips" in prepare(whole, out, workers=2)
    before = {path.name: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "complete already" in prepare(whole, out)
    assert before == {path.name: path.stat().st_mtime_ns for path in out.rglob("*")}
    direct, packed = load(whole), load(out)
    assert direct.ids == packed.ids
    assert direct.fingerprint == packed.fingerprint
    np.testing.assert_array_equal(direct.label, packed.label)
    np.testing.assert_array_equal(direct.packs["full"].values, packed.packs["full"].values)


def test_a_stopped_prepare_goes_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "packed"
    read, calls = official_data.read_array, 0

    def read_and_stop(content: bytes, name: str) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 50:
            raise KeyboardInterrupt
        return read(content, name)

    monkeypatch.setattr(official_data, "AT_ONCE", 8)
    monkeypatch.setattr(official_data, "read_array", read_and_stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(whole, out)
    with pytest.raises(DataError, match="prepare"):
        load(out)
    monkeypatch.setattr(official_data, "read_array", read)
    prepare(whole, out)
    prepare(whole, tmp_path / "unbroken")
    for name in ("full/values.bin", "full/info.json", "beat/values.bin", "clips.json", "manifest.json"):
        assert (out / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert not (out / "begun.json").exists()


def test_prepare_writes_over_nothing(whole: Path, official: Path, tmp_path: Path) -> None:
    prepare(whole, tmp_path / "packed")
    (official / "fma_genre_spectrograms/train/1000.fused.full.npy.gz").write_bytes(b"other")
    with pytest.raises(ConfigError, match="data of another source"):
        prepare(official, tmp_path / "packed")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        prepare(whole, tmp_path / "mine")


def test_a_zip_and_the_other_separators(official: Path, tmp_path: Path) -> None:
    lists = official / "fma_genre_spectrograms/train_labels.txt"
    lists.write_text(lists.read_text().replace("\t", ","))
    lists = official / "multitask_dataset/train_labels.txt"
    lists.write_text(lists.read_text().replace(",", "\t"))
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(official.rglob("*.*")):
            zipped.write(file, Path("data", file.relative_to(official)).as_posix())
    clips = load(archive)
    assert len(clips) == 62
    assert clips.ids == load(official).ids


def test_a_part_of_the_folders_will_do(official: Path) -> None:
    shutil.rmtree(official / "multitask_dataset")
    shutil.rmtree(official / "multitask_dataset_beat")
    shutil.rmtree(official / "fma_genre_spectrograms_beat")
    clips = load(official)
    assert set(clips.packs) == {"full"}
    assert len(clips) == 40
    (official / "fma_genre_spectrograms").rename(official / "genre_spectrograms")
    assert len(load(official)) == 40


def test_a_mapping_and_clips_csv_beside_the_data(official: Path) -> None:
    mapping = {"Rock": "loud", "Psych-Rock": "loud", "Electronic": "loud", "Classical": "calm", "Indie-Rock": None}
    (official / "class_mapping.json").write_text(json.dumps(mapping))
    rows = ["id,artist,track,raw"] + [f"{1000 + i},artist {i // 6},track {i // 3}," for i in range(29)]
    (official / "clips.csv").write_text("\n".join(rows) + "\n")
    clips = load(official)
    assert clips.classes == ("calm", "loud")
    assert clips.artist[clips.ids.index("1007")] == "artist 1"
    assert clips.track[clips.ids.index("1007")] == "track 2"
    assert clips.artist[clips.ids.index("1029")] == "1029"  # nothing known: alone


def test_a_test_list_of_other_clips_is_left_aside(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("", "_beat"):
        lists = official / f"fma_genre_spectrograms{suffix}/test_labels.txt"
        lists.write_text(lists.read_text().replace("\n50", "\n90"))
    (official / "clips.csv").write_text("id,raw\n5000,Classical\n")
    clips = load(official)
    assert "10 rows, none for the 10 clips there" in capsys.readouterr().err
    known = clips.label[clips.where("genre", "test")]
    assert (known >= 0).sum() == 1
    assert clips.classes[clips.label[clips.ids.index("5000")]] == "Classical"


@pytest.mark.data
def test_music_mini(tmp_path: Path) -> None:
    prepare(music_mini(), tmp_path / "packed", workers=2)
    clips = load(tmp_path / "packed")
    assert [len(clips.where(s, p)) for s in ("genre", "emotion") for p in ("train", "test")] == [191, 76, 106, 39]
    assert clips.classes == ("Electronic", "Game-Melodic", "Metal", "Orchestral", "SciFi-Score")
    assert len(set(clips.artist)) == 37
    assert len(set(clips.track)) == 197
    assert clips.packs["full"].info is not None
    assert clips.packs["full"].info.max_abs_error == 0.0  # whole dB and 64ths are exact in float16
    genre = clips.with_answers("genre")
    assert len(genre) == 266
    assert len({clips.track[i] for i in genre}) == 162
    assert len({clips.artist[i] for i in genre}) == 35
