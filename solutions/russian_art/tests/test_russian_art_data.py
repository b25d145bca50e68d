"""Reading, packing, groups, folds and submissions on good input (bad input has a file of its own)."""

import csv
import hashlib
import io
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kit_core.errors import ConfigError, DataError
from kit_io.images import decode, squash
from russian_art import data
from russian_art.data import (
    Art,
    Labels,
    check_submission,
    load,
    prepare,
    read_label_ids,
    read_labels,
    read_submission,
    splits_in,
    stratified_folds,
    write_submission,
)

SIZE = 48
LABELS = ("Живопись/Пейзаж", "Графика/Пейзаж", "ДПИ/Мозаика ", "Живопись/Портрет / парный")
SUFFIXES = ("jpg", "webp", "png", "gif", "JPG", "jpeg")


def picture(seed: int, side: int = 90) -> Image.Image:
    """Coarse noise: pictures of two seeds have nothing in common."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side - 20), Image.Resampling.BICUBIC)


def content(seed: int, suffix: str, side: int = 90, **options: object) -> bytes:
    stream = io.BytesIO()
    kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(suffix.lower(), suffix.upper())
    picture(seed, side).save(stream, kind, **options)
    return stream.getvalue()


def label_csv() -> str:
    rows = [f"{name}\t{i}\n" for i, name in enumerate(LABELS)]
    return "label_name\tlabel_id\n" + "".join(rows[::-1])  # the official table is in no order either


def train_csv(rows: dict[str, int]) -> str:
    return "image_name\tlabel_id\n" + "".join(f"{name}\t{label}\n" for name, label in rows.items())


TRAIN = {f"{hashlib.md5(b'%d' % i).hexdigest()}.{SUFFIXES[i % 6]}": i % 4 for i in range(12)}
TEST = [f"{hashlib.md5(b'test %d' % i).hexdigest()}.{SUFFIXES[i]}" for i in range(5)]


def official_files() -> dict[str, bytes]:
    files = {f"train/{name}": content(i, name.rpartition(".")[2]) for i, name in enumerate(TRAIN)}
    files |= {f"test/{name}": content(100 + i, name.rpartition(".")[2]) for i, name in enumerate(TEST)}
    return files | {"train.csv": train_csv(TRAIN).encode(), "label_to_id.csv": label_csv().encode()}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data_ in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data_)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data_ in files.items():
            archive.writestr(name, data_)
    return path


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "official", official_files())


def same(first: Art, second: Art) -> None:
    assert (first.split, first.names, first.labels) == (second.split, second.names, second.labels)
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.aspect, second.aspect)
    assert np.array_equal(first.group, second.group)
    assert first.label is second.label is None or np.array_equal(first.label, second.label)  # type: ignore[arg-type]  # of both, none is None here
    assert (first.broken, first.fingerprint) == (second.broken, second.fingerprint)


# --- labels


def test_labels_are_split_at_the_first_slash_and_kept_raw():
    labels = Labels(LABELS)
    assert labels.names[2] == "ДПИ/Мозаика "
    assert labels.tops == ("Живопись", "Графика", "ДПИ")
    assert labels.genres == ("Пейзаж", "Мозаика", "Портрет / парный")
    assert labels.top_of.tolist() == [0, 1, 2, 0]
    assert labels.genre_of.tolist() == [0, 0, 1, 2]
    assert [labels.shown(i) for i in (0, 2)] == ["Живопись/Пейзаж", "ДПИ/Мозаика"]
    assert len(Labels(())) == len(Labels(()).tops) == len(Labels(()).top_of) == 0


# --- the official layout


def test_train_comes_in_the_order_of_the_table_and_test_sorted(official: Path):
    train, test = load(official, size=SIZE), load(official, "test", size=SIZE)
    assert (train.split, test.split) == ("train", "test")
    assert train.names == list(TRAIN)
    assert train.label is not None
    assert train.label.tolist() == list(TRAIN.values())
    assert test.names == sorted(TEST)
    assert test.label is None
    assert train.labels == test.labels == Labels(LABELS)
    assert train.pixels.shape == (12, SIZE, SIZE, 3)
    assert train.size == SIZE
    assert not train.broken
    for art, folder in ((train, "train"), (test, "test")):
        for name, pixels in zip(art.names, art.pixels, strict=True):
            image = decode((official / folder / name).read_bytes(), name=name, target=SIZE)
            assert np.array_equal(pixels, squash(image, SIZE))
        assert art.aspect == pytest.approx([90 / 70] * len(art), rel=1e-5)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda root: write_zip(root / "all.zip", official_files()),
    "zip with a folder around": lambda root: write_zip(
        root / "all.zip", {f"Русское искусство/{k}": v for k, v in official_files().items()}
    ),
    "private_info": lambda root: write_folder(
        root / "a", {k.replace("train.csv", "private_info/train.csv"): v for k, v in official_files().items()}
    ),
    "train.zip beside its tables": lambda root: beside(root / "b"),
    "train.zip with bare images": lambda root: beside(root / "c", bare=True),
    "train.zip alone, tables beside": lambda root: beside(root / "d") / "train.zip",
    "junk of file managers": lambda root: write_folder(
        root / "e",
        official_files() | dict.fromkeys(("train/.DS_Store", "train/Thumbs.db", "__MACOSX/train/._x.jpg"), b"junk"),
    ),
}


def beside(root: Path, *, bare: bool = False) -> Path:
    files = official_files()
    write_folder(root, {name: files[name] for name in files if name.endswith(".csv")})
    images = {name.removeprefix("train/") if bare else name: files[name] for name in files if name.startswith("train/")}
    write_zip(root / "train.zip", images)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(official: Path, tmp_path: Path, layout: str):
    same(load(LAYOUTS[layout](tmp_path), "train", size=SIZE), load(official, "train", size=SIZE))


def test_splits_are_told(official: Path, tmp_path: Path):
    assert splits_in(official) == ("train", "test")
    assert splits_in(beside(tmp_path / "b")) == ("train",)
    prepare(official, tmp_path / "out", size=SIZE, workers=1)
    assert splits_in(tmp_path / "out") == ("train", "test")


def test_images_without_a_table_are_for_predicting(official: Path, tmp_path: Path):
    files = official_files()
    bare = {name.removeprefix("test/"): files[name] for name in files if name.startswith("test/")}
    expected = load(official, "test", size=SIZE)
    # label_to_id.csv beside them, or not
    same(load(write_folder(tmp_path / "a", bare | {"label_to_id.csv": label_csv().encode()}), size=SIZE), expected)
    without = load(write_folder(tmp_path / "b", bare | {"README.md": b"notes"}), size=SIZE)
    assert (without.split, without.names, len(without.labels)) == ("test", expected.names, 0)
    assert np.array_equal(without.pixels, expected.pixels)
    (official / "train.csv").unlink()  # train images without labels, beside test images
    assert splits_in(official) == ("test",)
    assert load(official, size=SIZE).names == expected.names
    only = write_folder(tmp_path / "c", {k: v for k, v in files.items() if k.startswith("train/")})
    assert load(only, size=SIZE).names == sorted(TRAIN)


def test_a_hold_out_in_the_layout_of_train_has_labels(official: Path, tmp_path: Path):
    files = {name: value for name, value in official_files().items() if not name.startswith("test/")}
    assert load(write_folder(tmp_path / "a", files), size=SIZE).label is not None
    bare = {name.removeprefix("train/"): value for name, value in files.items()}
    same(load(write_folder(tmp_path / "b", bare), size=SIZE), load(official, size=SIZE))


def test_cyrillic_names_of_a_russian_zip(tmp_path: Path):
    names = {"XXXXXXX1.jpg": "картина1.jpg", "YYYYY2.png": "ёлки2.png"}
    files = {f"train/{name}": content(i, name[-3:]) for i, name in enumerate(names)}
    raw = write_zip(tmp_path / "a.zip", files | {"label_to_id.csv": label_csv().encode()}).read_bytes()
    raw = raw.replace(b"XXXXXXX", "картина".encode("cp866")).replace(b"YYYYY", "ёлки\u00b7".encode("cp866"))
    (tmp_path / "a.zip").write_bytes(raw)
    (tmp_path / "train.csv").write_text(train_csv({"картина1.jpg": 1, "ёлки·2.png": 0}), encoding="utf-8")
    assert load(tmp_path / "a.zip", size=SIZE).names == ["картина1.jpg", "ёлки·2.png"]
    unicode = write_zip(tmp_path / "b.zip", {"test/картина.jpg": content(1, "jpg")})
    assert load(unicode, size=SIZE).names == ["картина.jpg"]


def test_names_are_compared_in_one_unicode_form(tmp_path: Path):
    composed = "йод.jpg"
    split = unicodedata.normalize("NFD", composed)  # as macOS writes it
    assert split != composed
    files = {f"train/{split}": content(1, "jpg"), "label_to_id.csv": label_csv().encode()}
    root = write_folder(tmp_path / "a", files | {"train.csv": train_csv({composed: 1}).encode()})
    assert load(root, size=SIZE).names == [composed]
    write_submission(tmp_path / "s.csv", [composed], [2])
    assert check_submission(tmp_path / "s.csv", [split], 4).tolist() == [2]


def test_byte_order_mark_and_crlf_do_no_harm(official: Path):
    expected = load(official, size=SIZE)
    for name in ("train.csv", "label_to_id.csv"):
        text = (official / name).read_text(encoding="utf-8")
        (official / name).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    same(load(official, size=SIZE), expected)


# --- the packed form


@pytest.mark.parametrize("workers", [1, 2])
def test_prepared_is_the_same_as_read_directly(
    official: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(data, "IMAGES_PER_PART", 5)
    out = tmp_path / "out"
    done = prepare(official, out, size=SIZE, workers=workers)
    assert done.decoded == 17
    assert done.splits["train"] == {"images": 12, "broken": 0, "groups": 12, "conflicts": 0}
    for split in ("train", "test"):
        same(load(out, split), load(official, split, size=SIZE))  # type: ignore[arg-type]  # the two splits
    assert isinstance(load(out).pixels, np.memmap)
    assert sorted(p.name for p in out.iterdir()) == ["label_to_id.csv", "manifest.json", "test", "train"]
    assert not list(out.rglob(".*"))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    again = prepare(official, out, size=SIZE, workers=workers)
    assert (again.decoded, again.splits) == (0, done.splits)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_the_same_data_has_the_same_fingerprint_from_a_zip(official: Path, tmp_path: Path):
    archive = write_zip(tmp_path / "all.zip", official_files())
    prepare(archive, tmp_path / "out", size=SIZE, workers=1)
    same(load(tmp_path / "out"), load(official, size=SIZE))
    assert load(official, size=SIZE + 1).fingerprint != load(official, size=SIZE).fingerprint


def test_a_stopped_run_goes_on_where_it_was(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "IMAGES_PER_PART", 3)
    out = tmp_path / "out"
    calls = Counter[str]()

    def counted(content: bytes, *, name: str, target: int) -> Image.Image:
        calls["decoded"] += 1
        if calls["decoded"] == 8:
            raise KeyboardInterrupt
        return decode(content, name=name, target=target)

    monkeypatch.setattr(data, "decode", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(official, out, size=SIZE, workers=1)
    with pytest.raises(DataError, match=r"unfinished prepared folder[^$]*run prepare again"):
        load(out)
    changed = official / "train" / list(TRAIN)[4]  # in the second part; its neighbours there are kept
    changed.write_bytes(content(77, changed.suffix[1:]))
    done = prepare(official, out, size=SIZE, workers=1)
    assert done.decoded == 17 - 6 + 1
    same(load(out), load(official, size=SIZE))
    # another size starts anew, whatever is there
    assert prepare(official, out, size=SIZE + 8, workers=1).decoded == 17
    assert load(out).size == SIZE + 8
    # changed data too
    changed.write_bytes(content(78, changed.suffix[1:]))
    assert prepare(official, out, size=SIZE + 8, workers=1).decoded == 17
    same(load(out), load(official, size=SIZE + 8))


def test_a_prepared_folder_has_one_size(official: Path, tmp_path: Path):
    prepare(official, tmp_path / "out", size=SIZE, workers=1)
    assert load(tmp_path / "out", size=SIZE).size == SIZE
    with pytest.raises(ConfigError, match=r"prepared at 48 pixels a side, asked for 64"):
        load(tmp_path / "out", size=64)


def test_data_without_test_replaces_data_with_test(official: Path, tmp_path: Path):
    out = tmp_path / "out"
    prepare(official, out, size=SIZE, workers=1)
    prepare(beside(tmp_path / "b"), out, size=SIZE, workers=1)
    assert splits_in(out) == ("train",)
    assert not (out / "test").exists()


# --- near-duplicates and folds


def test_nearly_the_same_pictures_are_one_group_and_conflicts_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pictures = {
        "a.png": (content(1, "png"), 0),
        "a_small.jpg": (content(1, "jpg", side=60, quality=60), 0),
        "a_again.webp": (content(1, "webp", quality=40), 3),
        "b.png": (content(2, "png"), 1),
        "b_copy.png": (content(2, "png"), 2),
        "c.png": (content(3, "png"), 1),
    }
    files = {f"train/{name}": value for name, (value, _) in pictures.items()}
    files |= {"train.csv": train_csv({name: label for name, (_, label) in pictures.items()}).encode()}
    root = write_folder(tmp_path / "data", files | {"label_to_id.csv": label_csv().encode()})
    done = prepare(root, tmp_path / "out", size=SIZE, workers=1)
    art = load(tmp_path / "out")
    assert art.group.tolist() == [0, 0, 0, 1, 1, 2]
    with (tmp_path / "out/train/conflicts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    told = {(row["image_name"], row["other_image_name"], row["label_id"], row["other_label_id"]) for row in rows}
    assert told == {
        ("a.png", "a_again.webp", "0", "3"),
        ("a_small.jpg", "a_again.webp", "0", "3"),
        ("b.png", "b_copy.png", "1", "2"),
    }
    assert done.splits["train"] == {"images": 6, "broken": 0, "groups": 3, "conflicts": 3}
    assert "3 pair(s) of nearly the same picture have two labels (conflicts.csv; a.png and a_again.webp" in (
        capsys.readouterr().err
    )


def test_the_same_drawing_in_another_color_is_another_picture(tmp_path: Path):
    files = {}
    for name, color in (("red.png", (250, 30, 30)), ("blue.png", (30, 30, 250))):
        image = Image.new("RGB", (90, 90), color)
        image.paste((255, 255, 255), (20, 20, 50, 60))
        stream = io.BytesIO()
        image.save(stream, "PNG")
        files[f"test/{name}"] = stream.getvalue()
    assert load(write_folder(tmp_path, files), size=SIZE).group.tolist() == [0, 1]


def test_folds_keep_groups_whole_and_labels_even():
    rng = np.random.default_rng(0)
    group = np.sort(rng.integers(0, 250, 600))
    label = rng.integers(0, 6, 251)[group]
    folds = stratified_folds(label, group, 5, seed=1)
    assert set(folds.tolist()) == set(range(5))
    assert all(len(set(folds[group == g].tolist())) == 1 for g in set(group.tolist()))
    for number in range(6):
        share = np.bincount(folds[label == number], minlength=5) / np.count_nonzero(label == number)
        assert np.abs(share - 0.2).max() < 0.05
    assert np.array_equal(folds, stratified_folds(label, group, 5, seed=1))
    assert not np.array_equal(folds, stratified_folds(label, group, 5, seed=2))


def test_folds_with_rare_labels_and_impossible_ones():
    label = np.array([0] * 20 + [1] * 2)
    assert set(stratified_folds(label, np.arange(22), 5).tolist()) == set(range(5))
    for folds, groups in ((1, np.arange(22)), (5, np.arange(22) % 4)):
        with pytest.raises(ConfigError, match="folds of"):
            stratified_folds(label, groups, folds)
    with pytest.raises(ConfigError, match="every label has fewer"):
        stratified_folds(np.arange(22), np.arange(22), 5)


# --- submissions


def test_a_submission_has_one_row_for_each_file(official: Path, tmp_path: Path):
    (official / "test" / TEST[1]).write_bytes(b"")
    art = load(official, "test", size=SIZE)
    ids = art.completed([3, 2, 1, 0, 3], fallback=1)
    assert ids[art.names.index(TEST[1])] == 1
    write_submission(tmp_path / "s.csv", art.all_names, ids)
    text = (tmp_path / "s.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "image_name\tlabel_id"
    assert text.count("\n") == len(TEST) + 1
    assert read_submission(tmp_path / "s.csv", art.labels) == dict(zip(art.all_names, ids.tolist(), strict=True))
    assert check_submission(tmp_path / "s.csv", art, art.labels).tolist() == ids.tolist()
    shuffled = list(zip(art.all_names, ids, strict=True))[::-1]
    write_submission(tmp_path / "s.csv", [n for n, _ in shuffled], [i for _, i in shuffled])
    assert check_submission(tmp_path / "s.csv", art, 4).tolist() == ids.tolist()


def test_a_submission_for_a_hold_out_with_a_broken_file_has_a_row_for_it(official: Path):
    broken = list(TRAIN)[3]
    (official / "train" / broken).write_bytes(b"broken")
    art = load(official, size=SIZE)
    assert broken not in art.names
    assert art.all_names == [*art.names, broken]
    assert art.label is not None
    assert art.completed(art.label, fallback=2).tolist() == [*art.label.tolist(), 2]


def test_write_submission_refuses_wrong_arguments(tmp_path: Path):
    with pytest.raises(ValueError, match="twice"):
        write_submission(tmp_path / "s.csv", ["a", "a"], [1, 2])
    with pytest.raises(ValueError, match="zip"):
        write_submission(tmp_path / "s.csv", ["a", "b"], [1])
    assert not list(tmp_path.iterdir())


# --- real data


def shared_data(name: str) -> Path:
    root = next(parent for parent in Path(__file__).resolve().parents if (parent / "poetry.lock").is_file())
    path = root.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    return path


@pytest.mark.data
def test_the_official_tables_are_read_exactly():
    folder = shared_data("official-meta/russian_art")
    assert hashlib.md5((folder / "train.csv").read_bytes()).hexdigest() == "28984c198b3027a1044bb94f40e016e3"
    assert hashlib.md5((folder / "label_to_id.csv").read_bytes()).hexdigest() == "acc8bd61bb4764a36c4a6baa4edc4bce"
    labels = read_labels(folder / "label_to_id.csv")
    rows = read_label_ids(folder / "train.csv", labels=labels)
    assert len(labels) == 35
    assert [labels.names[16][-1], labels.names[30][-1]] == [" ", " "]
    assert sorted(Counter(labels.top_of.tolist()).values()) == [4, 6, 7, 7, 11]
    assert len(rows) == 8615
    assert next(iter(rows.items())) == ("af49360b0b294346b3dbf70602d56e37.jpg", 0)
    tops = Counter(labels.tops[labels.top_of[label]] for label in rows.values())
    assert tops == {"Живопись": 2815, "Графика": 1970, "ДПИ": 1651, "Архитектура": 1449, "Скульптура": 730}
    counts = Counter(rows.values())
    assert max(counts.values()) == 325
    assert sum(counts[i] == 325 for i in range(35)) >= 13
    assert (counts[12], counts[19], counts[18]) == (27, 32, 138)
    suffixes = Counter(name.rpartition(".")[2] for name in rows)
    assert suffixes == {"jpg": 7535, "webp": 833, "jpeg": 163, "png": 61, "gif": 17, "JPG": 6}


@pytest.mark.data
def test_groups_of_the_real_pictures_agree_with_their_sources(tmp_path: Path):
    """groups.csv also joins pieces of one painting, which look different: half of its pairs cannot be found."""
    done = prepare(shared_data("art-mini"), tmp_path / "out", size=128, workers=1)
    art = load(tmp_path / "out", "train")
    assert (len(art), len(art.labels), len(art.labels.tops), art.broken) == (1272, 35, 5, {})
    one = done.agreements["train"]
    assert one.groups_given == 955
    assert one.recall > 0.18, done
    assert one.precision > 0.7, done  # the others are such as one playing card beside another
    assert one.groups_found < 1152, done  # of hashes alone
    assert one.largest_group < 20, done
    folds = stratified_folds(art.label, art.group, 5, seed=139)  # type: ignore[arg-type]  # a train split has labels
    with (shared_data("art-mini") / "groups.csv").open(encoding="utf-8") as file:
        group_of = {row["image_name"]: row["group"] for row in csv.DictReader(file, delimiter="\t")}
    places = {(group_of[name], int(fold)) for name, fold in zip(art.names, folds, strict=True)}
    assert len(places) == 955  # no fold cuts a group of the file
