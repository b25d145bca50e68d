"""Bundles: made from a lock and wheels, installed without an index, refused when anything is not as it was."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kit_cluster import bundle, cli, unpack
from kit_core.errors import ConfigError, DataError
from kit_core.run import hash_file

LOCK = """
[[package]]
name = "tiny"
version = "1.2"
groups = ["main", "art"]
files = [{{file = "tiny-1.2-py3-none-any.whl", hash = "sha256:{tiny}"}}]
markers = {{main = "sys_platform == 'linux'", art = "python_version < '4'"}}

[[package]]
name = "elsewhere"
version = "3"
groups = ["other"]
files = []

[[package]]
name = "member"
version = "0.1"
groups = ["art"]
files = []

[package.source]
type = "directory"
url = "packages/member"
"""

# A build backend that lies in the member itself: what poetry-core does for real ones, without its wheel.
BACKEND = """
import zipfile
from pathlib import Path

def build_editable(folder, settings=None, metadata=None):
    name = "member-0.1-py3-none-any.whl"
    info = "member-0.1.dist-info"
    with zipfile.ZipFile(Path(folder, name), "w") as wheel:
        wheel.writestr("member.pth", str(Path.cwd() / "src"))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: member\\nVersion: 0.1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name

build_wheel = build_editable
"""


def make_wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    """Write a wheel by hand."""
    path = folder / f"{name}-py3-none-any.whl"
    project, version = name.split("-")
    with zipfile.ZipFile(path, "w") as wheel:
        for place, content in files.items():
            wheel.writestr(place, content)
        info = f"{name}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def pip_wheel(folder: Path) -> Path:
    """Pack the pip that runs here into a wheel again."""
    pip = pytest.importorskip("pip")
    package = Path(pip.__file__).parent
    path = folder / f"pip-{pip.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for root in (package, package.parent / f"pip-{pip.__version__}.dist-info"):
            for file in sorted(root.rglob("*")):
                if file.is_file() and file.suffix != ".pyc":
                    wheel.write(file, file.relative_to(package.parent))
    return path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project with a member and a lock, and a folder with all its wheels."""
    root = tmp_path_factory.mktemp("house")
    project, wheels = root / "project", root / "wheels"
    wheels.mkdir()
    tiny = make_wheel(wheels, "tiny-1.2", {"tiny.py": "ANSWER = 42\n"})
    make_wheel(wheels, "poetry_core-2.5", {"poetry_core.py": ""})
    pip_wheel(wheels)
    member = project / "packages" / "member"
    (member / "src").mkdir(parents=True)
    (member / "src" / "member.py").write_text("import tiny\n\nprint('member', tiny.ANSWER)\n")
    (member / "backend.py").write_text(BACKEND)
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (member / "pyproject.toml").write_text(build + '[project]\nname = "member"\nversion = "0.1"\n')
    (project / "runs").mkdir()
    (project / "runs" / "large.bin").write_text("left out")
    (project / "poetry.lock").write_text(LOCK.format(tiny=hash_file(tiny)))
    return project, wheels


@pytest.fixture(scope="module")
def archive(house: tuple[Path, Path]) -> Path:
    project, wheels = house
    model = project.parent / "minilm"
    model.mkdir()
    (model / "weights.bin").write_bytes(b"weights" * 9)
    out = project.parent / "bundle.tar"
    bundle.create(project, out, groups=["art"], models={"minilm": model}, data={}, wheels=wheels)
    return out


def test_a_requirement_has_the_markers_of_the_groups_and_its_hashes(house: tuple[Path, Path]) -> None:
    lock = bundle.read_lock(house[0])
    tiny = lock["package"][0]
    text = bundle.requirement(tiny, ["art"])
    assert text.startswith("tiny==1.2 ; (python_version < '4') or (sys_platform == 'linux') \\\n    --hash=sha256:")
    del tiny["markers"]["art"]
    assert bundle.requirement(tiny, ["art"]).startswith("tiny==1.2 \\\n")
    assert [package["name"] for package in bundle.choose(lock, ["art"])] == ["tiny", "member"]


def test_a_bundle_holds_what_was_asked_for(archive: Path) -> None:
    manifest = unpack.read_manifest(archive)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert names[0] == "bundle.json"
    assert sorted(names[1:]) == sorted(manifest["files"])
    wanted = {"models/minilm/weights.bin", "project/poetry.lock", "wheels/tiny-1.2-py3-none-any.whl", "install.py"}
    assert wanted <= set(names)
    assert not [name for name in names if "large.bin" in name]
    assert manifest["members"] == ["packages/member"]


@pytest.mark.slow
def test_a_bundle_installs_itself_without_an_index_and_without_this_project(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as tar:
        script = tar.extractfile("install.py")
        assert script is not None
        (tmp_path / "install.py").write_bytes(script.read())
    out = tmp_path / "there"
    command = [sys.executable, "-I", str(tmp_path / "install.py"), str(archive), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shell = f". {out}/environment.sh && python -c 'import member' && echo $HF_HUB_OFFLINE $TRANSFORMERS_OFFLINE"
    shown = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=tmp_path)
    assert shown.stdout == "member 42\n1 1\n", shown.stderr
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "installed already" in again.stdout
    assert (out / "models" / "minilm" / "weights.bin").exists()


def rewritten(archive: Path, out: Path, **changes: Any) -> Path:
    """Copy a bundle with a changed manifest that fits its own hash."""
    with tarfile.open(archive) as old, tarfile.open(out, "w") as new:
        for info in old:
            file = old.extractfile(info)
            assert file is not None
            content = file.read()
            if info.name == "bundle.json":
                manifest = json.loads(content)
                for name, value in changes.items():
                    manifest["machine"][name] = value
                manifest["sha256"] = unpack.digest_of(manifest)
                content = json.dumps(manifest).encode()
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return out


def test_another_python_or_platform_is_refused_before_anything_is_written(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = rewritten(archive, tmp_path / "other.tar", python="3.99", machine="vax")
    assert cli.main(["install", str(other), "--out", str(tmp_path / "there")]) == 3
    told = capsys.readouterr().err
    assert "made for another machine" in told
    assert f"python: it is for 3.99, this is {sys.version_info.major}.{sys.version_info.minor}" in told
    assert "machine: it is for vax" in told
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"weightsweights", b"weightsweighty", "models/minilm/weights.bin: another content"),
        (b'"groups"', b'"grouqs"', "bundle.json is changed"),
    ],
)
def test_a_changed_byte_is_named_and_nothing_stays(
    old: bytes, new: bytes, told: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.tar"
    content = archive.read_bytes()
    assert content.count(old)
    copy.write_bytes(content.replace(old, new, 1))
    assert cli.main(["install", str(copy), "--out", str(tmp_path / "there")]) == 3
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy.tar"]


def test_other_archives_and_taken_places_are_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"no tar")
    with pytest.raises(unpack.BundleError, match="cannot be read as a bundle"):
        unpack.install(tmp_path / "no.tar", tmp_path / "there")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(__file__, "a.py")
    with pytest.raises(unpack.BundleError, match=r"its first file is not bundle\.json"):
        unpack.install(tmp_path / "other.tar", tmp_path / "there")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(unpack.BundleError, match="is not empty and holds no part of this bundle"):
        unpack.install(archive, tmp_path / "taken")


def test_an_installation_killed_right_after_unpacking_goes_on(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "there"
    unpack._unpack(archive, unpack.read_manifest(archive), out)  # and no more
    monkeypatch.setattr(unpack, "_make_environment", lambda *_: None)  # takes seconds
    unpack.install(archive, out, log=lambda _: None)
    assert json.loads((out / unpack.INSTALLED).read_text())["complete"]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_cannot_be_bundled_is_told(house: tuple[Path, Path], tmp_path: Path) -> None:
    project, wheels = house
    more: dict[str, Any] = {"models": {}, "data": {}, "wheels": wheels}
    with pytest.raises(ConfigError, match="group: found nobody; the lock knows art, main, other"):
        bundle.create(project, tmp_path / "b.tar", groups=["nobody"], **more)
    with pytest.raises(DataError, match=r"poetry\.lock: absent"):
        bundle.create(tmp_path, tmp_path / "b.tar", groups=[], **more)
    with pytest.raises(DataError, match="it was to become 'x' of the bundle"):
        bundle.create(project, tmp_path / "b.tar", groups=[], **more | {"models": {"x": tmp_path / "none"}})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="pip could not fetch the wheels"):
        bundle.create(project, tmp_path / "b.tar", groups=["art"], **more | {"wheels": tmp_path / "empty"})
    with pytest.raises(ConfigError, match=r"--model: found 'x', expected NAME=PATH"):
        cli._named("model", ["x"])
    assert not (tmp_path / "b.tar").exists()
