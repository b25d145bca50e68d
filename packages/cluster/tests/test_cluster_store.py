"""The shared store of models: one copy whoever publishes, found by name and hash, every change noticed."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit_cluster import cli
from kit_cluster.store import digest_of, find, models, publish, verify
from kit_core.errors import ConfigError, DataError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "deep" / "tokenizer.json").write_text("{}")
    return folder


def test_a_model_is_found_by_name_and_hash(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    first = publish(store, "tiny", model)
    assert (first.path / "deep" / "tokenizer.json").read_text() == "{}"
    assert publish(store, "tiny", model) == first
    assert find(store, "tiny") == find(store, first.reference) == first
    assert first.digest == digest_of(dict(reversed(first.files.items())))
    (model / "deep" / "tokenizer.json").write_text("[]")
    second = publish(store, "tiny", model)
    assert second.digest != first.digest
    assert find(store, f"tiny@{second.digest[:4]}") == second
    with pytest.raises(ConfigError, match="there are several; say which"):
        find(store, "tiny")
    with pytest.raises(DataError, match=r"no model 'tiny@zz'"):
        find(store, "tiny@zz")
    assert len(models(store)) == 2
    assert cli.main(["model", "path", first.reference, "--store", str(store)]) == 0
    assert capsys.readouterr().out == f"{first.path}\n"
    assert cli.main(["model", "list", "--store", str(store)]) == 0
    assert cli.main(["model", "verify", second.reference, "--store", str(store)]) == 0
    assert cli.main(["model", "publish", "one", str(model / "weights.safetensors"), "--store", str(store)]) == 0


def test_changes_in_the_store_are_noticed(model: Path, tmp_path: Path) -> None:
    published = publish(tmp_path / "store", "tiny", model)
    verify(published)
    (published.path / "weights.safetensors").write_bytes(b"other")
    (published.path / "more.txt").write_text("")
    with pytest.raises(
        DataError, match=r"2 problems(.|\n)*more.txt: found a file that(.|\n)*safetensors: found another"
    ):
        verify(published)
    (published.path / "model.json").write_text("{}")
    with pytest.raises(DataError, match=r"model.json: is damaged"):
        find(tmp_path / "store", "tiny")


def test_bad_names_and_empty_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model name: found '\.\./x'"):
        publish(tmp_path / "store", "../x", tmp_path)
    with pytest.raises(DataError, match="no files"):
        publish(tmp_path / "store", "x", tmp_path / "none")


def test_several_processes_publish_one_model_at_once(model: Path, tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from kit_cluster.store import publish\n"
    program += "print(publish(Path(sys.argv[1]), 'tiny', Path(sys.argv[2])).path)"
    command = [sys.executable, "-c", program, str(tmp_path / "store"), str(model)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [one.communicate(timeout=300) for one in started]
    assert [one.returncode for one in started] == [0, 0, 0], ended
    assert len({out for out, _ in ended}) == 1
    verify(find(tmp_path / "store", "tiny"))
    assert [path.name for path in (tmp_path / "store" / "tiny").iterdir()] == [Path(ended[0][0].strip()).name]
