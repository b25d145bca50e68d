"""Every kind of damaged data and submission: exit code 3 or a quarantine, helpful words, nothing half written."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kit_core.errors import ConfigError
from kit_core.testing import refused
from russian_art.data import check_submission, load, prepare, read_submission, splits_in, write_submission

SIZE = 32
NAMES = [f"{i:032x}.jpg" for i in range(6)]
LABEL_CSV = "label_name\tlabel_id\nЖивопись/Пейзаж\t0\nГрафика/Пейзаж \t1\nДПИ/Мозаика\t2\n"
TRAIN_CSV = "image_name\tlabel_id\n" + "".join(f"{name}\t{i % 3}\n" for i, name in enumerate(NAMES))


def image(seed: int, kind: str = "JPEG", **options: object) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((64, 48)).save(stream, kind, **options)
    return stream.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that announce a picture of this size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    root = tmp_path / "official"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for i, name in enumerate(NAMES):
            (root / split / name).write_bytes(image(i + 50 * (split == "test")))
    (root / "train.csv").write_text(TRAIN_CSV, encoding="utf-8")
    (root / "label_to_id.csv").write_text(LABEL_CSV, encoding="utf-8")
    return root


def zipped(root: Path) -> Path:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, file.relative_to(root).as_posix())
    return target


def refused_everywhere(path: Path, *words: str) -> None:
    """By the reader and by prepare, which leaves nothing behind, from the folder and from a zip."""
    out = path.parent / "packed"
    for form in (path, zipped(path)):
        refused(lambda form=form: load(form, size=SIZE, workers=1), *words)  # type: ignore[misc]  # a default binds the loop's value
        refused(lambda form=form: prepare(form, out, size=SIZE, workers=1), *words)  # type: ignore[misc]  # the same
        assert not out.exists()


# --- images that are none

BROKEN: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "no bytes at all"),
    "truncated": (image(1)[:400], "a damaged image"),
    "text": (b"Lorem ipsum\n", "text, not an image"),
    "web page": (b"<html><body>403</body></html>", "a web page"),
    "200 megapixels": (huge_png(20_000, 10_000), "an image of 200,000,000 pixels"),
    "121 megapixels": (huge_png(11_000, 11_000), "an image of 11,000 x 11,000 pixels, above the limit of 100,000,000"),
    "pdf": (b"%PDF-1.4\n", "a PDF document"),
    "header only": (image(1)[:20], "the first bytes of an image"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("packed", [False, True])
def test_broken_train_files_are_quarantined(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, packed: bool
):
    content, reason = BROKEN[kind]
    (official / "train" / NAMES[2]).write_bytes(content)
    prepare(official, tmp_path / "out", size=SIZE, workers=1)
    shown = capsys.readouterr().err
    assert "1 train file(s) give no picture and are left out of training" in shown
    assert f"{NAMES[2]}: {reason}" in shown
    art = load(tmp_path / "out" if packed else official, size=SIZE)
    assert art.names == [name for name in NAMES if name != NAMES[2]]
    assert len(art.pixels) == 5
    assert art.label is not None
    assert art.label.tolist() == [0, 1, 0, 1, 2]
    assert list(art.broken) == [NAMES[2]]
    assert reason in art.broken[NAMES[2]]
    quarantine = (tmp_path / "out/train/quarantine.csv").read_text(encoding="utf-8").splitlines()
    assert quarantine[0] == "image_name\treason"
    assert quarantine[1].startswith(f"{NAMES[2]}\t{reason}")


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_test_files_get_a_white_picture_and_a_row(official: Path, tmp_path: Path, kind: str):
    content, reason = BROKEN[kind]
    (official / "test" / NAMES[2]).write_bytes(content)
    art = load(official, "test", size=SIZE)
    assert art.names == art.all_names == NAMES
    assert (art.pixels[2] == 255).all()
    assert reason in art.broken[NAMES[2]]
    write_submission(tmp_path / "s.csv", art.all_names, art.completed([1] * 6, fallback=0))
    assert check_submission(tmp_path / "s.csv", art, art.labels).tolist() == [1, 1, 0, 1, 1, 1]


def test_a_whole_picture_under_a_wrong_name_is_read(official: Path):
    for i, kind in enumerate(("WEBP", "PNG", "GIF", "BMP", "TIFF")):
        (official / "test" / NAMES[i]).write_bytes(image(i, kind))
    animated = io.BytesIO()
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    (official / "test" / NAMES[5]).write_bytes(animated.getvalue())
    art = load(official, "test", size=SIZE)
    assert not art.broken
    assert (art.pixels[5] == (255, 0, 0)).all()  # the first frame


def test_damaged_members_of_a_zip(official: Path, tmp_path: Path):
    archive = zipped(official)
    raw = bytearray(archive.read_bytes())
    for split in (b"train", b"test"):
        start = raw.index(split + b"/" + NAMES[3].encode()) + 200
        raw[start] ^= 0xFF
    archive.write_bytes(raw)
    train, test = load(archive, size=SIZE), load(archive, "test", size=SIZE)
    assert "CRC" in train.broken[NAMES[3]]
    assert NAMES[3] not in train.names
    assert NAMES[3] in test.names
    assert "CRC" in test.broken[NAMES[3]]


def test_not_one_picture(official: Path):
    for i, name in enumerate(NAMES):
        (official / "train" / name).write_bytes(b"x" * i)
    refused_everywhere(official, "6 problems", f"{NAMES[0]}: found no bytes at all", "and 1 more")


def test_junk_is_no_test_file(official: Path):
    for junk in (".DS_Store", "Thumbs.db", "._x.jpg"):
        (official / "test" / junk).write_bytes(b"junk")
    (official / "__MACOSX/test").mkdir(parents=True)
    (official / "__MACOSX/test/a.jpg").write_bytes(b"junk")
    for form in (official, zipped(official)):
        art = load(form, "test", size=SIZE)
        assert art.names == NAMES
        assert not art.broken


# --- tables

Change = Callable[[str], str | bytes]
TABLE_FAULTS: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "train.csv with commas": (
        "train.csv",
        lambda t: t.replace("\t", ","),
        ("header: found image_name,label_id", r"separated by ',': write the file with '\t' instead"),
    ),
    "train.csv with semicolons": ("train.csv", lambda t: t.replace("\t", ";"), (r"separated by ';'",)),
    "label_to_id.csv with commas": ("label_to_id.csv", lambda t: t.replace("\t", ","), ("separated by ','",)),
    "label_to_id.csv in cp1251": (
        "label_to_id.csv",
        lambda t: t.encode("cp1251"),
        ("label_to_id.csv", "line 2", "bytes that are no UTF-8", "save the file as UTF-8"),
    ),
    "train.csv in UTF-16": ("train.csv", lambda t: t.encode("utf-16"), ("train.csv", "UTF-16 text")),
    "train.csv with a NUL": ("train.csv", lambda t: t.replace("0\n", "0\0\n", 1), ("a NUL character",)),
    "empty train.csv": ("train.csv", lambda t: "", ("header: found nothing",)),
    "train.csv without rows": ("train.csv", lambda t: t.splitlines()[0] + "\n", ("a file, but no row",)),
    "a third column": ("train.csv", lambda t: t.replace("\t0\n", "\t0\tx\n", 1), ("line 2: found 3 values",)),
    "another header": ("train.csv", lambda t: t.replace("image_name", "name"), ("header: found 'name",)),
    "an id outside of the list": (
        "train.csv",
        lambda t: t.replace("\t2\n", "\t35\n", 1),
        ("line 4", NAMES[2], "the label id '35'", "a label id 0 .. 2"),
    ),
    "a negative id": ("train.csv", lambda t: t.replace("\t2\n", "\t-1\n", 1), ("the label id '-1'",)),
    "an id that is no number": ("train.csv", lambda t: t.replace("\t2\n", "\t2.0\n", 1), ("the label id '2.0'",)),
    "an Arabic digit": ("train.csv", lambda t: t.replace("\t2\n", "\t٢\n", 1), ("the label id",)),
    "an endless id": ("train.csv", lambda t: t.replace("\t2\n", "\t" + "9" * 5000 + "\n", 1), ("the label id '999",)),
    "a doubled name": (
        "train.csv",
        lambda t: t + f"{NAMES[1]}\t2\n",
        ("line 8", f"{NAMES[1]} a second time"),
    ),
    "an empty name": ("train.csv", lambda t: t + "\t2\n", ("line 8: found an empty image_name",)),
    "a row without file": (
        "train.csv",
        lambda t: t + "ff.jpg\t2\n",
        ("ff.jpg: found a row, but no such file", "complete or clean the folder"),
    ),
    "files without rows": (
        "train.csv",
        lambda t: "".join(t.splitlines(keepends=True)[:3]),
        ("4 problems", f"train/{NAMES[2]}: found a file, but no row"),
    ),
    "a doubled label id": (
        "label_to_id.csv",
        lambda t: t.replace("\t2", "\t1"),
        ("line 4: found the id 1 a second time",),
    ),
    "a gap among label ids": ("label_to_id.csv", lambda t: t.replace("\t2", "\t3"), ("the id '3', not one of 0 .. 2",)),
    "a doubled label": (
        "label_to_id.csv",
        lambda t: t.replace("ДПИ/Мозаика", " Графика / Пейзаж"),
        ("line 4", "a second time"),
    ),
    "a label without genre": (
        "label_to_id.csv",
        lambda t: t.replace("ДПИ/Мозаика", "ДПИ"),
        ("the name 'ДПИ'", "Top/Genre"),
    ),
    "no labels": ("label_to_id.csv", lambda t: t.splitlines()[0], ("no rows",)),
}


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_tables(official: Path, fault: str):
    file, change, words = TABLE_FAULTS[fault]
    changed = change((official / file).read_text(encoding="utf-8"))
    (official / file).write_bytes(changed.encode() if isinstance(changed, str) else changed)
    refused_everywhere(official, *words)


def test_no_label_list(official: Path):
    (official / "label_to_id.csv").unlink()
    refused_everywhere(official, "no label_to_id.csv", "organisers' baseline")
    assert len(load(official, "test", size=SIZE).labels) == 0  # a run knows its labels


# --- layout


def test_nothing_there(tmp_path: Path):
    refused(lambda: load(tmp_path / "none"), "none", "check the spelling")
    refused(lambda: load(tmp_path), "no images", "an empty folder", "test/")
    (tmp_path / "train").mkdir()
    refused(lambda: splits_in(tmp_path), "no images")


def test_an_empty_test_folder(official: Path, tmp_path: Path):
    for name in NAMES:
        (official / "test" / name).unlink()
    for form in (official, zipped(official)):
        assert splits_in(form) == ("train",)
        refused(lambda form=form: load(form, "test"), "no test images", "is it empty?")  # type: ignore[misc]  # a default binds the loop's value
    (official / "test" / ".DS_Store").write_bytes(b"junk")
    refused(lambda: load(official / "test"), "no images")
    prepare(official, tmp_path / "out", size=SIZE, workers=1)
    refused(lambda: load(tmp_path / "out", "test"), "no test images")


def test_no_train_table(official: Path):
    (official / "train.csv").unlink()
    refused(lambda: load(official, "train", size=SIZE), "no train images", "train.csv")


def test_images_in_folders_of_their_own(official: Path):
    (official / "train/album").mkdir()
    (official / "train/album" / NAMES[0]).write_bytes(image(0))
    refused_everywhere(official, f"member train/album/{NAMES[0]}", "a file in a folder of its own")


@pytest.mark.parametrize(
    "member", ["../evil.jpg", "/etc/evil.jpg", "C:evil.jpg", "train\\evil.jpg", "train/../../evil.jpg"]
)
def test_unsafe_members(official: Path, tmp_path: Path, member: str):
    archive = zipped(official)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(member, image(0))
    refused(lambda: load(archive), "do not unpack this archive")
    refused(lambda: prepare(archive, tmp_path / "out", size=SIZE, workers=1), "do not unpack this archive")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.parent.rglob("evil.jpg"))


def test_a_truncated_zip(official: Path):
    archive = zipped(official)
    archive.write_bytes(archive.read_bytes()[:-100])
    refused(lambda: load(archive), "expected: a whole zip file", "download it again")


# --- prepared folders


def test_damaged_prepared_folders(official: Path, tmp_path: Path):
    out = tmp_path / "out"

    def fresh() -> None:
        prepare(official, out, size=SIZE, workers=1)

    def cut(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-50])

    def edit_manifest(**changes: object) -> None:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        (out / "manifest.json").write_text(json.dumps(manifest | changes), encoding="utf-8")

    def edit_aspect(text: str) -> None:
        file = out / "train/images.csv"
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        lines[1][lines[0].index("aspect")] = text
        file.write_text("\n".join("\t".join(line) for line in lines) + "\n", encoding="utf-8")

    damages: list[tuple[Callable[[], object], str]] = [
        (lambda: cut(out / "train/pixels.npy"), "pixels.npy: damaged"),
        (lambda: (out / "train/pixels.npy").unlink(), "pixels.npy: damaged"),
        (lambda: cut(out / "train/images.csv"), "images.csv"),
        (lambda: edit_aspect("0"), "images.csv: damaged"),
        (lambda: edit_aspect("wide"), "images.csv: damaged"),
        (lambda: (out / "label_to_id.csv").unlink(), "label_to_id.csv: damaged"),
        (lambda: cut(out / "manifest.json"), "manifest.json: damaged"),
        (lambda: edit_manifest(size="32"), "manifest.json: damaged"),
        (lambda: edit_manifest(size=64), "pixels.npy: damaged"),
        (lambda: edit_manifest(format_version=99), "found format_version 99, expected 2"),
        (lambda: edit_manifest(splits={}), "manifest.json: damaged"),
    ]
    for damage, words in damages:
        fresh()
        damage()
        refused(lambda: load(out), words)
    fresh()
    assert len(load(out)) == len(NAMES)


def test_prepare_never_touches_what_is_not_its_own(official: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.doc\)"):
        prepare(official, out, size=SIZE, workers=1)
    assert [p.name for p in out.iterdir()] == ["thesis.doc"]
    with pytest.raises(ConfigError, match="inside the data folder"):
        prepare(official, official / "train", size=SIZE, workers=1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        prepare(official, tmp_path / "file", size=SIZE, workers=1)
    with pytest.raises(ConfigError, match="expected at least 1"):
        prepare(official, tmp_path / "new", size=SIZE, workers=0)
    with pytest.raises(ConfigError, match="size: found 8, expected 32"):
        prepare(official, tmp_path / "new", size=8, workers=1)
    prepare(official, tmp_path / "new", size=SIZE, workers=1)
    with pytest.raises(ConfigError, match="already prepared"):
        prepare(tmp_path / "new", tmp_path / "newer", size=SIZE, workers=1)


# --- submissions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_name\tlabel_id\na.jpg\t1\n", ("b.jpg: found no row", "2 rows, one for each file")),
        ("image_name\tlabel_id\na.jpg\t1\nb.jpg\t0\nc.jpg\t0\n", ("c.jpg: found a row for a file that",)),
        ("image_name\tlabel_id\na.jpg\t1\nb.jpg\t0\na.jpg\t1\n", ("line 4: found a.jpg a second time",)),
        ("image_name\tlabel_id\na.jpg\t1\nb.jpg\t3\n", ("line 3 (b.jpg): found the label id '3'",)),
        ("image_name\tlabel_id\na.jpg\t1\nb.jpg\t-1\n", ("the label id '-1'",)),
        ("image_name\tlabel_id\ntest/a.jpg\t1\ntest/b.jpg\t0\n", ("a.jpg: found no row", "without folder")),
        ("image_name,label_id\na.jpg,1\nb.jpg,0\n", ("separated by ','",)),
        ("", ("header: found nothing",)),
    ],
)
def test_submissions_that_the_judge_would_misread(tmp_path: Path, text: str, words: tuple[str, ...]):
    file = tmp_path / "submission.csv"
    file.write_text(text)
    refused(lambda: check_submission(file, ["a.jpg", "b.jpg"], 3), "submission.csv", *words)


def test_no_submission(tmp_path: Path):
    refused(lambda: read_submission(tmp_path / "none.csv", 3), "none.csv", "check path")
