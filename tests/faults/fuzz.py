"""Give readers hundreds of damaged copies of a good file; runs in a child of the launcher.

The only answers that count as right: the file is taken, or it is refused as bad data (exit code 3) in words. A
traceback, another exit code, a warning, an hour or all of the memory is a finding, told with the number that makes it
again.
"""

import contextlib
import gzip
import importlib
import io
import json
import random
import resource
import shutil
import signal
import tarfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageCms

from kit_core.errors import DataError
from kit_io.images import decode, squash
from kit_io.ragged import RaggedPack, RaggedWriter
from kit_io.source import Source
from kit_io.tables import read_csv
from kit_io.tar import read_tar
from kit_train.state import save_state
from kit_train.weights import save_weights

MOST_BYTES = (
    12 << 30
)  # of address space: torch alone maps several GiB; a reader that asks for more is told as a finding
MOST_SECONDS = 20
SHOWN = 5
# What has broken readers before: numbers out of range, other alphabets' digits, halves of things, names that lead away.
TOKENS = tuple(
    token.encode("utf-8", "surrogatepass")
    for token in (
        "", "0", "-1", "1e999", "nan", "inf", "-0.0", "9" * 30, "9" * 5000, "1_000", "٣", "１", " 1", "0x10", "true",
        "null", '"', '""', ",", ";", "\t", "\n", "\r", "\r\n", "\0", "\ufeff", "\u2028", "\x1c", "\x85", "é", "\ud800",
        "\\ud800", "\\u0000", "[", "]", "{", "}", "[" * 3000, '{"a":' * 3000, "../../x", "/etc/passwd", "C:\\x", "a/b",
        ".", "..", "%s", "\x1b[31m", '{"a": 1, "a": 2}', "A" * 200_000, "(" * 300, "'descr'", "|O", "<U9", ">f8",
        "1" * 400 + "L",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """One kind of file: which one is damaged, and what reads it."""

    file: Path
    read: Callable[[Path], None]  # takes a folder for its output; raises DataError or anything else


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to three small damages."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(DAMAGES)(content, rng)
    return content


def _at(content: bytes, rng: random.Random) -> int:
    # The beginning holds headers and the end tables of contents: both are met more often than their share.
    size = len(content)
    return min(
        size,
        rng.choice(
            (rng.randrange(size + 1), rng.randrange(min(size, 200) + 1), size - rng.randrange(min(size, 100) + 1))
        ),
    )


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\x80"
    at = min(_at(content, rng), len(content) - 1)
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _replace(content: bytes, rng: random.Random) -> bytes:
    at, token = _at(content, rng), rng.choice(TOKENS)
    return content[:at] + token + content[at + rng.choice((0, 1, len(token))) :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    at = _at(content, rng)
    return content[:at] + content[at + rng.choice((1, 2, 7, 100)) :]


def _end(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _noise(content: bytes, rng: random.Random) -> bytes:
    at = _at(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 4, 64))) + content[at:]


def _twice(content: bytes, rng: random.Random) -> bytes:
    first, second = sorted((_at(content, rng), _at(content, rng)))
    return content[:second] + content[first : min(second, first + 10_000)] + content[second:]


def _lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first] = rng.choice((lines[second], b"", lines[first] + lines[second]))
    return b"\n".join(lines)


def _value(content: bytes, rng: random.Random) -> bytes:
    """Put a token in place of one whole value between delimiters."""
    delimiter = rng.choice((b",", b"\t", b'"', b" ", b":", b"\n"))
    parts = content.split(delimiter)
    parts[rng.randrange(len(parts))] = rng.choice(TOKENS)
    return delimiter.join(parts)


def _nothing(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0" * 1000, b"\n", rng.randbytes(300)))


DAMAGES = (*(_flip, _replace, _cut, _noise, _value) * 3, *(_end, _twice, _lines) * 2, _nothing)


def damaged_file(name: str, content: bytes, rng: random.Random) -> bytes:
    """Damage a file as it is or, of a gzipped one, what is in it: else every damage would end at gzip's checksum."""
    if name.endswith((".gz", ".tgz")) and rng.random() < 0.6:
        return gzip.compress(damaged(gzip.decompress(content), rng), 1)
    return damaged(content, rng)


def run(module: str, kind: str, layout: str, work: str, count: int, report: str, **places: str) -> None:
    """Damage `count` copies of the file of a kind, and write what was found to `report`, as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    folder = Path(work)
    chosen = FORMATS[module][kind](Path(layout), folder, {name: Path(place) for name, place in places.items()})
    content = chosen.file.read_bytes()
    outcomes: dict[str, int] = {"taken": 0, "refused": 0}
    findings: list[str] = []
    for number in range(-1, count):
        rng = random.Random(f"{module} {kind} {number}")
        chosen.file.write_bytes(content if number < 0 else damaged_file(chosen.file.name, content, rng))
        outcome = _outcome(chosen, folder / "out")
        if number < 0:
            assert outcome == "taken", f"the undamaged file: {outcome}"
        elif outcome in outcomes:
            outcomes[outcome] += 1
        else:
            findings.append(f"number {number}: {outcome}")
        if len(findings) >= SHOWN:
            break
    chosen.file.write_bytes(content)
    Path(report).write_text(json.dumps({"outcomes": outcomes, "findings": findings}), encoding="utf-8")


def _outcome(chosen: Format, out: Path) -> str:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(MOST_SECONDS)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            chosen.read(out)
    except DataError as error:
        words = str(error)
        if len(words) > 20_000 or any(character in words for character in "\0\x1b"):
            return f"a message of {len(words)} characters, or with terminal codes: {words[:200]!r}"
        return "refused"
    except BaseException:
        return traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
    return "taken"


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"no answer within {MOST_SECONDS} s")


def _command(module: str, *argv: Any) -> None:
    """Run a verb in this process; exit code 3 becomes a DataError again, any other one an error."""
    with contextlib.redirect_stderr(io.StringIO()) as words:
        code = importlib.import_module(f"{module}.cli").main([str(word) for word in argv])
    if code == 3:
        raise DataError(words.getvalue())
    if code != 0:
        raise RuntimeError(f"exit code {code}\n{words.getvalue()[-1200:]}")


def _prepared(module: str, file: str, *flags: str) -> Callable[..., Format]:
    """`prepare` of a layout with this file damaged (a pattern: the first that fits)."""

    def make(layout: Path, work: Path, places: dict[str, Path]) -> Format:
        copy = work / "layout"
        shutil.copytree(layout, copy)
        return Format(
            sorted(copy.glob(file))[0],
            lambda out: _command(module, "prepare", "--data", copy, "--out", out / "prepared", *flags),
        )

    return make


def _zipped(module: str, *flags: str) -> Callable[..., Format]:
    """`prepare` of the whole layout as one zip."""

    def make(layout: Path, work: Path, places: dict[str, Path]) -> Format:
        archive = work / "official.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for path in sorted(layout.rglob("*")):
                if path.is_file():
                    target.write(path, path.relative_to(layout).as_posix())
        return Format(
            archive, lambda out: _command(module, "prepare", "--data", archive, "--out", out / "prepared", *flags)
        )

    return make


def _tarred(module: str, folder: str, *flags: str) -> Callable[..., Format]:
    """`prepare` of a layout whose features are one tar.gz."""

    def make(layout: Path, work: Path, places: dict[str, Path]) -> Format:
        copy = work / "layout"
        shutil.copytree(layout, copy)
        archive = copy / f"{folder}.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=1) as target:
            for path in sorted((copy / folder).rglob("*")):
                if path.is_file():
                    target.add(path, path.relative_to(copy / folder).as_posix())
        shutil.rmtree(copy / folder)
        return Format(
            archive, lambda out: _command(module, "prepare", "--data", copy, "--out", out / "prepared", *flags)
        )

    return make


def _checked(module: str, *flags: str) -> Callable[..., Format]:
    """`check` of a damaged submission."""

    def make(layout: Path, work: Path, places: dict[str, Path]) -> Format:
        file = work / places["submission"].name
        shutil.copyfile(places["submission"], file)
        argv = ("check", "--submission", file, "--data", places["prepared"], *flags)
        return Format(file, lambda out: _command(module, *argv))

    return make


def _loaded(module: str, file: str, verb: tuple[str, ...]) -> Callable[..., Format]:
    """`infer` of an undamaged run on prepared data with this file damaged."""

    def make(layout: Path, work: Path, places: dict[str, Path]) -> Format:
        copy = work / "prepared"
        shutil.copytree(places["prepared"], copy)
        argv = (*verb, "--data", copy)
        submission = work / "submission.csv"
        shutil.copyfile(places["submission"], submission)
        return Format(sorted(copy.glob(file))[0], lambda out: _command(module, *argv, "--submission", submission))

    return make


def _read(function: str, file: str | Callable[[Path], bytes], *, name: str = "file") -> Callable[..., Format]:
    """A function, of a module or of this one, that reads one file by its path; the file is in the layout or is made."""

    def make(layout: Path, work: Path, places: dict[str, Path]) -> Format:
        if isinstance(file, str):
            source = sorted(layout.glob(file))[0]
            target = work / source.name
            target.write_bytes(source.read_bytes())
        else:
            target = work / name
            target.write_bytes(file(layout))
        module, _, word = function.rpartition(".")
        read = getattr(importlib.import_module(module), word) if module else globals()[word]
        return Format(target, lambda out: read(target))

    return make


def _ipynb(layout: Path) -> bytes:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", "words"], "id": "a1"},
        {
            "cell_type": "code",
            "metadata": {},
            "source": "import numpy",
            "outputs": [],
            "execution_count": 1,
            "id": "b2",
        },
    ] * 2
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}).encode()


def _csv(layout: Path) -> bytes:
    return 'id,text\n1,"a ""b"",\nc"\n2,é\n'.encode()


def read_a_csv(path: Path) -> None:
    """kit_io.tables.read_csv of a file."""
    read_csv(path, None, ("id", "text"))


def _zip(layout: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/a.txt", "words " * 50)
        archive.writestr("top/é.csv", "id\n1\n")
        archive.writestr(zipfile.ZipInfo("top/deep/b.bin"), bytes(range(256)))
    return buffer.getvalue()


def read_a_zip(path: Path) -> None:
    """Every member of a zip, as bytes and as text."""
    source = Source.open_source(path)
    for member in source.members():
        source.read(member)
        if member.endswith((".txt", ".csv")):
            source.open_text(member).read()
    source.fingerprint()


def _tar(layout: Path, mode: Literal["w", "w:gz"] = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.txt", "deep/" + "long" * 40 + ".bin", "é.csv"):
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))
    return buffer.getvalue()


def read_a_tar(path: Path) -> None:
    """Every member of a tar."""
    for _ in read_tar(path):
        pass


def _image(kind: str, mode: str) -> Callable[[Path], bytes]:
    def make(layout: Path) -> bytes:
        noise = random.Random(kind).randbytes(24 * 16 * 3)
        image = Image.frombytes("RGB", (24, 16), noise).convert(mode)
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if mode == "RGB" else None
        image.save(buffer, kind, exif=exif, icc_profile=profile)
        return buffer.getvalue()

    return make


def read_an_image(path: Path) -> None:
    """kit_io.images.decode and squash."""
    squash(decode(path.read_bytes(), name=path.name, target=32), 32)


def _pack(file: str) -> Callable[..., Format]:
    """A ragged pack of which one file is damaged: opened, verified, gathered."""

    def make(layout: Path, work: Path, places: dict[str, Path]) -> Format:
        folder = work / "pack"
        with RaggedWriter(folder, dim=3) as writer:
            for length in (2, 0, 5):
                writer.append(np.ones((length, 3), np.float32))

        def read(out: Path) -> None:
            pack = RaggedPack.open(folder)
            pack.verify()
            pack.gather(np.arange(pack.n))

        return Format(folder / file, read)

    return make


def _weights(layout: Path) -> bytes:
    path = layout / "weights.safetensors"
    save_weights(path, {"a": torch.ones(3, 4), "b": torch.zeros(5, dtype=torch.int64)}, {"layers": 2})
    content = path.read_bytes()
    path.unlink()
    return content


def _state(layout: Path) -> bytes:
    path = layout / "state.pt"
    save_state(path, {"network": {"a": torch.ones(30)}, "epoch": 3, "rng": [1, 2.5, "x"]})
    content = path.read_bytes()
    path.unlink()
    return content


ONE = ("--workers", "1")
FORMATS: dict[str, dict[str, Callable[..., Format]]] = {
    "kit_io": {
        "csv": _read("read_a_csv", _csv),
        "zip": _read("read_a_zip", _zip),
        "tar": _read("read_a_tar", _tar),
        "tar.gz": _read("read_a_tar", lambda layout: _tar(layout, "w:gz"), name="file.tar.gz"),
        "png": _read("read_an_image", _image("PNG", "RGB")),
        "palette png": _read("read_an_image", _image("PNG", "P")),
        "jpeg": _read("read_an_image", _image("JPEG", "RGB")),
        "cmyk jpeg": _read("read_an_image", _image("JPEG", "CMYK")),
        "gif": _read("read_an_image", _image("GIF", "P")),
        "webp": _read("read_an_image", _image("WEBP", "RGB")),
        "tiff": _read("read_an_image", _image("TIFF", "RGB")),
        "bmp": _read("read_an_image", _image("BMP", "RGB")),
        "avif": _read("read_an_image", _image("AVIF", "RGB")),
        "pack info": _pack("info.json"),
        "pack offsets": _pack("offsets.npy"),
        "pack values": _pack("values.bin"),
        "weights": _read("kit_train.weights.load_weights", _weights),
        "state": _read("kit_train.state.load_state", _state),
    },
    "ai4code": {
        "notebook": _prepared("ai4code", "train/*.json", *ONE),
        "orders": _prepared("ai4code", "train_orders.csv", *ONE),
        "ancestors": _prepared("ai4code", "train_ancestors.csv", *ONE),
        "zip": _zipped("ai4code", *ONE),
        "submission": _checked("ai4code"),
        "ipynb": _read("ai4code.ipynb.read_ipynb", _ipynb),
        "prepared manifest": _loaded("ai4code", "manifest.json", ("check",)),
        "prepared shard": _loaded("ai4code", "test/shard-*.parquet", ("check",)),
    },
    "ntua_lab": {
        "genres": _prepared("ntua_lab", "fma_genre_spectrograms/train_labels.txt", *ONE),
        "emotions": _prepared("ntua_lab", "multitask_dataset/train_labels.txt", *ONE),
        "spectra": _prepared("ntua_lab", "fma_genre_spectrograms_beat/train/*.npy.gz", *ONE),
        "mapping": _prepared("ntua_lab", "class_mapping.json", *ONE),
        "clips": _prepared("ntua_lab", "clips.csv", *ONE),
        "zip": _zipped("ntua_lab", *ONE),
        "submission": _checked("ntua_lab"),
        "prepared manifest": _loaded("ntua_lab", "manifest.json", ("check",)),
        "prepared clips": _loaded("ntua_lab", "clips.json", ("check",)),
    },
    "russian_art": {
        "labels": _prepared("russian_art", "label_to_id.csv", "--size", "32", *ONE),
        "train table": _prepared("russian_art", "train.csv", "--size", "32", *ONE),
        "image": _prepared("russian_art", "train/*.[jJ]*", "--size", "32", *ONE),
        "zip": _zipped("russian_art", "--size", "32", *ONE),
        "submission": _checked("russian_art"),
        "prepared manifest": _loaded("russian_art", "manifest.json", ("check",)),
    },
    "yandex_artists": {
        "train table": _prepared("yandex_artists", "train_meta.tsv"),
        "test table": _prepared("yandex_artists", "test_meta.tsv"),
        "features": _prepared("yandex_artists", "train_features/**/*.npy"),
        "zip": _zipped("yandex_artists"),
        "tar": _tarred("yandex_artists", "train_features"),
        "submission": _checked("yandex_artists"),
        "truth": _read("yandex_artists.data.read_truth", "test_truth.tsv"),
        "prepared manifest": _loaded("yandex_artists", "manifest.json", ("check",)),
        "prepared table": _loaded("yandex_artists", "test/tracks.tsv", ("check",)),
    },
    "yandex_tagging": {
        "train table": _prepared("yandex_tagging", "train.csv", *ONE),
        "test table": _prepared("yandex_tagging", "test.csv", *ONE),
        "embeddings": _prepared("yandex_tagging", "track_embeddings/*.npy", *ONE),
        "zip": _zipped("yandex_tagging", *ONE),
        "tar": _tarred("yandex_tagging", "track_embeddings", *ONE),
        "submission": _checked("yandex_tagging"),
        "truth": _read("yandex_tagging.data.read_truth", "test_truth.csv"),
        "prepared manifest": _loaded("yandex_tagging", "manifest.json", ("check",)),
        "prepared table": _loaded("yandex_tagging", "test.csv", ("check",)),
    },
}
