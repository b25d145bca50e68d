"""What the fault tests share: the five solutions at their smallest, and a launcher that runs, counts and kills."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)  # the same sums each time
# What differs between two runs of the same settings: moments, seconds, host, process.
OF_THE_MOMENT = {"manifest.json", "metrics.jsonl", "summary.json", "digests.json", "DONE", ".lock"}
VERBS = ("prepare", "train", "infer")


@dataclass(frozen=True)
class Case:
    """A solution, and the arguments that make each of its verbs take a second."""

    module: str
    sample: tuple[str, ...]  # empty: written by `write_spectra`, since synthesising music takes a minute
    prepare: tuple[str, ...]
    train: tuple[str, ...]  # preset and flags: a network, whose state is kept between epochs
    infer: tuple[str, ...]

    @property
    def program(self) -> str:
        """The console script."""
        return self.module.replace("_", "-")

    def argv(self, verb: str, data: Path, target: Path, run: Path | None = None) -> tuple[str, ...]:
        """The command line that makes `target` of `data` by a verb."""
        if verb == "prepare":
            return ("prepare", "--data", str(data), "--out", str(target), *self.prepare)
        if verb == "train":
            return ("train", *self.train, "--data", str(data), "--run", str(target))
        return ("infer", "--run", str(run), "--data", str(data), *self.infer, "--out", str(target))


SMALL_SET = ("--members.0.model.layers", "1", "--members.0.model.channels", "16", "--members.0.model.ff", "16")
CASES = (
    Case(
        module="ai4code",
        sample=("--notebooks", "24"),
        prepare=("--workers", "1"),
        train=("mlp", "--mlp.epochs", "3", "--data.folds", "2", "--data.fold", "0"),
        infer=("--split", "test"),
    ),
    Case(
        module="ntua_lab",
        sample=(),
        prepare=("--workers", "1"),
        train=("lstm-beat", "--train.epochs", "3", "--data.folds", "2", "--network.hidden", "16"),
        infer=("--task", "genre", "--split", "test"),
    ),
    Case(
        module="russian_art",
        sample=("--images", "100"),
        prepare=("--workers", "1", "--size", "64"),
        train=("scratch", "--data.folds", "2", "--network.size", "64", "--network.second.epochs", "2"),
        infer=("--split", "test"),
    ),
    Case(
        module="yandex_artists",
        sample=("--artists", "45", "--channels", "16"),
        prepare=(),
        train=("arcface-set-mini", "--data.fold", "0", "--members.0.stages.0.epochs", "3", *SMALL_SET),
        infer=("--split", "test"),
    ),
    Case(
        module="yandex_tagging",
        sample=("--tracks", "80"),
        prepare=("--workers", "1"),
        train=("frames-mini", "--optim.epochs", "3", "--data.n-folds", "3", "--data.fold", "0", "--network.d", "16"),
        infer=("--split", "test"),
    ),
)


@dataclass(frozen=True)
class Ran:
    """How a child ended: see `launcher.Outcome`; `log` is what it wrote."""

    code: int
    seconds: float
    cpu_seconds: float
    changes: int
    timed_out: bool
    log: str


class Launcher:
    """The process of launcher.py; a call runs one child and waits for it."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, **ONE_THREAD}
        command = [sys.executable, str(HERE / "launcher.py")]
        self.folder = folder
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, **order: Any) -> Ran:
        log = self.folder / "log"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"log": str(log), **order}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the launcher ended"
        ran = Ran(**json.loads(answer), log=log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")
        assert not ran.timed_out, f"{order}: no end after {ran.seconds:.0f} s\n{ran.log}"
        return ran

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()  # tidying up so many modules at an ordinary exit takes seconds
        self.process.wait(timeout=60)
        self.process.stdin.close()
        self.process.stdout.close()


@dataclass(frozen=True)
class Whole:
    """What one solution makes where nothing goes wrong; read only."""

    case: Case
    sample: Path
    prepared: Path
    run: Path
    submission: Path
    ran: dict[str, Ran]  # by verb

    def source(self, verb: str) -> Path:
        """The data that a verb is given."""
        return self.sample if verb == "prepare" else self.prepared

    def target(self, verb: str) -> Path:
        """What the verb made."""
        return {"prepare": self.prepared, "train": self.run, "infer": self.submission}[verb]


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """One launcher for all tests of the session."""
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def whole_of(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Whole]:
    """Make sample, prepared data, run and submission of a case, once for each."""
    made: dict[str, Whole] = {}

    def make(case: Case) -> Whole:
        if case.module not in made:
            made[case.module] = _make_whole(case, launch, tmp_path_factory.mktemp(case.module))
        return made[case.module]

    return make


@pytest.fixture
def whole(case: Case, whole_of: Callable[[Case], Whole]) -> Whole:
    """The unbroken course of the case of this test."""
    return whole_of(case)


@pytest.fixture(scope="session")
def cases() -> tuple[Case, ...]:
    """All five."""
    return CASES


@pytest.fixture(scope="session")
def spectra_layout() -> Callable[..., None]:
    """Write the lab's layout of any size; see `write_spectra`."""
    return write_spectra


@pytest.fixture(scope="session")
def outputs() -> Callable[[Path], dict[str, str]]:
    """What a verb promises, as texts by relative name; see `_outputs`."""
    return _outputs


# What takes more than two seconds of a quick machine is left to the slow run, where the rest of its kind stays.
SLOW_PARTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "test_a_killed_command_given_again_ends_as_an_unbroken_one": lambda given: (
        given["verb"] == "train" and given["case"].module in ("russian_art", "yandex_artists")
    ),
    "test_a_full_disk_is_told_and_with_more_room_the_work_goes_on": lambda given: given["verb"] == "train",
    "test_damaged_files_are_taken_or_refused_in_words": lambda given: (
        given["kind"] in ("image", "spectra", "features", "embeddings", "tar", "clips")
        or (given["module"], given["kind"]) == ("yandex_artists", "test table")
    ),
}


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the dearest combinations of a test as slow."""
    for item in items:
        dear = SLOW_PARTS.get(getattr(item, "originalname", ""))
        if dear is not None and dear(getattr(item, "callspec").params):  # noqa: B009 - only functions have one
            item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `case` once for each solution, and one that asks for `verb` once for each verb."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=lambda case: case.program)
    if "verb" in metafunc.fixturenames:
        metafunc.parametrize("verb", VERBS)


def _make_whole(case: Case, launch: Launcher, folder: Path) -> Whole:
    sample = folder / "sample"
    if case.sample:
        ran = launch(module=case.module, argv=("sample", "--out", str(sample), *case.sample))
        assert ran.code == 0, ran.log
    else:
        write_spectra(sample)
    whole = Whole(case, sample, folder / "prepared", folder / "run", folder / "submission.csv", {})
    for verb in VERBS:
        argv = case.argv(verb, whole.source(verb), whole.target(verb), whole.run)
        # A first start fills caches of the machine that later ones find.
        whole.ran[verb] = launch(module=case.module, argv=argv, watched=str(folder))
        assert whole.ran[verb].code == 0, whole.ran[verb].log
    return whole


def _outputs(path: Path) -> dict[str, str]:
    """Return the digest of every file, litter included; of files with moments in them, the fields that must agree."""
    if path.is_file():
        return {path.name: _digest(path)}
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_dir():
            found[name + "/"] = "folder"
        elif name not in OF_THE_MOMENT or not (path / "config.json").exists():  # prepared data have no moments in them
            found[name] = _digest(file)
        elif name == "metrics.jsonl":
            found[name] = "\n".join(sorted(_lines(file)))
        elif name == "summary.json":
            found[name] = json.dumps(_without_seconds(json.loads(file.read_text(encoding="utf-8"))))
        elif name == "digests.json":
            found[name] = json.dumps(sorted(json.loads(file.read_text(encoding="utf-8"))["files"]))
        elif name == "manifest.json":
            manifest = json.loads(file.read_text(encoding="utf-8"))
            found[name] = json.dumps([manifest[key] for key in ("format_version", "seed", "data")])
        else:
            found[name] = "present"
    return found


def _lines(file: Path) -> set[str]:
    """The different lines of a log: one may come twice where a kill fell between it and the state behind it."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {json.dumps(_without_seconds(line)) for line in lines}


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if "second" not in key}
    return value


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_spectra(root: Path, train: int = 24, test: int = 6, copies: int = 1) -> None:
    """Write made-up spectra in the layout of the lab, loud bands telling the genre; `copies` lengthens every clip."""
    genres = ("Rock", "Classical", "Electronic", "Folk")
    for suffix, shortest in (("", 60), ("_beat", 12)):
        rng = np.random.default_rng(0)
        for folder, columns, first in (
            ("fma_genre_spectrograms", "Id\tGenre", 1000),
            ("multitask_dataset", "Id,valence,energy,danceability", 100_000_000),
        ):
            for split, count, start in (("train", train, first), ("test", test, 5 * first)):
                place = root / f"{folder}{suffix}"
                (place / split).mkdir(parents=True)
                rows = [columns]
                for number in range(count):
                    kind = number % len(genres)
                    frames = copies * (shortest + int(rng.integers(10)))
                    content = _gzipped(_spectra(rng, kind, frames))
                    (place / split / f"{start + number}.fused.full.npy.gz").write_bytes(content)
                    known = (f"{start + number}.fused.full.npy.gz", genres[kind])
                    values = (str(start + number), *(f"{0.1 + 0.2 * kind + 0.01 * axis:.3f}" for axis in range(3)))
                    rows.append("\t".join(known) if "\t" in columns else ",".join(values))
                if split == "train" or "\t" in columns:
                    (place / f"{split}_labels.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _spectra(rng: np.random.Generator, kind: int, frames: int) -> np.ndarray:
    mel = -70.0 + 6.0 * rng.standard_normal((128, frames))
    mel[kind * 24 : kind * 24 + 20] += 45.0
    chroma = rng.random((12, frames))
    return np.concatenate([(mel - mel.max()).clip(-80.0), chroma / chroma.max(axis=0)]).astype(np.float32)


def _gzipped(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return gzip.compress(buffer.getvalue(), 1, mtime=0)
