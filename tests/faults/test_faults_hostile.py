"""Data made by an enemy: names that lead away, links, bombs and pickles are refused; never followed, unfolded, run."""

import gzip
import io
import os
import pickle
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FEATURES = {"yandex_artists": "train_features", "yandex_tagging": "track_embeddings"}  # what comes as a tar as well
ARRAYS = {
    "ntua_lab": "fma_genre_spectrograms/train/*.npy.gz",
    "yandex_artists": "train_features/**/*.npy",
    "yandex_tagging": "track_embeddings/*.npy",
}
BOMB_BYTES = 3 << 30


class Bomb:
    """An object that pickles as a call which makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def evil_zip(layout: Path, target: Path, kind: str) -> None:
    """A zip of the layout with one bad member."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(layout.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(layout).as_posix())
        info = zipfile.ZipInfo({"traversal": "train/../../../escaped", "absolute": "/escaped"}.get(kind, "train/evil"))
        if kind == "link":
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, b"/etc/passwd" if kind != "bomb" else bytes(1 << 20))
    if kind == "bomb":  # what a table of contents may announce, without the hours of making it
        content = bytearray(target.read_bytes())
        at = content.rindex(b"PK\x01\x02")
        content[at + 24 : at + 28] = struct.pack("<I", BOMB_BYTES)
        target.write_bytes(bytes(content))


def evil_tar(folder: Path, target: Path, kind: str, marker: Path) -> None:
    """A tar.gz of the features with one bad member."""
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        names = {"traversal": "../escaped.npy", "absolute": "/escaped.npy"}
        info = tarfile.TarInfo(names.get(kind, "evil.npy"))
        if kind in ("link", "hard link"):
            info.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
            info.linkname = "/etc/passwd"
        elif kind == "device":
            info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 5
        archive.addfile(info)
        for path in sorted(folder.rglob("*.npy")):
            archive.add(path, path.relative_to(folder).as_posix())


def check_refused(case: Any, data: Path, launch: Callable[..., Any], place: Path) -> str:
    """`prepare` ends with exit code 3 and leaves nothing; returns what it said."""
    before = {path for path in place.rglob("*") if data not in path.parents}
    ran = launch(module=case.module, argv=case.argv("prepare", data, place / "out"), limit_seconds=60.0)
    assert ran.code == 3, ran.log
    assert "Traceback" not in ran.log, ran.log
    assert {path for path in place.rglob("*") if data not in path.parents} == before
    assert not Path("/escaped").exists()
    log: str = ran.log
    return log


@pytest.mark.parametrize("kind", ["traversal", "absolute", "link", "bomb"])
def test_a_zip_with_a_bad_member_is_refused_as_a_whole(
    case: Any, kind: str, whole: Any, launch: Callable[..., Any], tmp_path: Path
) -> None:
    evil_zip(whole.sample, tmp_path / "official.zip", kind)
    said = check_refused(case, tmp_path / "official.zip", launch, tmp_path)
    words = {"traversal": "..", "absolute": "absolute", "link": "symbolic link", "bomb": "decompression bomb"}
    assert words[kind] in said


@pytest.mark.parametrize("kind", ["traversal", "absolute", "link", "hard link", "device"])
@pytest.mark.parametrize("module", FEATURES)
def test_a_tar_with_a_bad_member_is_refused(
    module: str,
    kind: str,
    cases: tuple[Any, ...],
    whole_of: Callable[[Any], Any],
    launch: Callable[..., Any],
    tmp_path: Path,
) -> None:
    case = next(one for one in cases if one.module == module)
    data = tmp_path / "data"
    shutil.copytree(whole_of(case).sample, data)
    features = data / FEATURES[module]
    evil_tar(features, features.with_name(f"{features.name}.tar.gz"), kind, tmp_path / "executed")
    shutil.rmtree(features)
    said = check_refused(case, data, launch, tmp_path)
    assert {"traversal": "..", "absolute": "absolute", "device": "device"}.get(kind, "a link") in said


def test_a_link_that_leads_out_of_the_data_is_not_followed(
    case: Any, whole: Any, launch: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(whole.sample, data)
    victim = next(path for path in sorted(data.rglob("*")) if path.is_file() and path.parent.parent != data.parent)
    victim.unlink()
    victim.symlink_to("/etc/passwd")
    said = check_refused(case, data, launch, tmp_path)
    assert victim.name in said
    assert "link" in said
    assert "root:" not in said


@pytest.mark.parametrize("module", ARRAYS)
def test_a_pickle_in_place_of_an_array_is_never_run(
    module: str,
    cases: tuple[Any, ...],
    whole_of: Callable[[Any], Any],
    launch: Callable[..., Any],
    tmp_path: Path,
) -> None:
    case, marker = next(one for one in cases if one.module == module), tmp_path / "executed"
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(marker), None], dtype=object), allow_pickle=True)
    for content in (buffer.getvalue(), pickle.dumps(Bomb(marker))):
        data = tmp_path / "data"
        shutil.copytree(whole_of(case).sample, data)
        victim = sorted(data.glob(ARRAYS[module]))[0]
        victim.write_bytes(gzip.compress(content) if victim.suffix == ".gz" else content)
        assert victim.name in check_refused(case, data, launch, tmp_path)
        assert not marker.exists()
        shutil.rmtree(data)


def test_a_gzipped_bomb_is_not_unfolded(
    cases: tuple[Any, ...], whole_of: Callable[[Any], Any], launch: Callable[..., Any], tmp_path: Path
) -> None:
    case = next(one for one in cases if one.module == "ntua_lab")
    data = tmp_path / "data"
    shutil.copytree(whole_of(case).sample, data)
    victim = sorted(data.glob(ARRAYS["ntua_lab"]))[0]
    piece = gzip.compress(bytes(1 << 26), 1)
    victim.write_bytes(piece * (BOMB_BYTES >> 26))  # gzip files after one another are one gzip file
    assert victim.name in check_refused(case, data, launch, tmp_path)
