"""Two processes under gloo: the same weights and vectors as one, though the losses compare the tracks of a batch."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kit_core import interrupt
from kit_io.ragged import RaggedPack
from yandex_artists import cli
from yandex_artists import embed as embedding
from yandex_artists import train as training
from yandex_artists.batches import Frames
from yandex_artists.config import Config, MemberConfig, ModelConfig
from yandex_artists.model import build_model

PROGRAM = Path(__file__).with_name("yandex_artists_ranks_program.py")
HANG_SECONDS = 600

# Sums of float32 in another order, some 30 steps of Adam; found were 1.3e-6 at most.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}

PAIRS = """# A preset.
[data]
n_folds = 2
fold = 0
[fabric]
accelerator = "cpu"
accumulate = 2
[[members]]
name = "map"
views = "bootstrap"
draws = 2
[members.model]
architecture = "mean-map"
standardise = "data"
landmarks = 24
out = 6
correction = 8
dropout = 0.0
[[members.stages]]
loss = "pairs"
batching = "artists"
batch = 4
epochs = 2
crop = 9
learning_rate = 1e-3
keep = "best"
clip = 1.0
[members.stages.augment]
bootstrap = true
noise = 0.1
splice = 0.5
"""
MORE = """# A preset.
[data]
n_folds = 2
fold = 1
[fabric]
accelerator = "cpu"
[[members]]
name = "transformer"
views = "rolling"
window = 20
hop = 9
[members.model]
architecture = "transformer"
standardise = "track"
channels = 8
layers = 1
heads = 2
ff = 8
out = 6
dropout = 0.0
[[members.stages]]
loss = "arcface"
batching = "tracks"
batch = 33
epochs = 2
crop = 9
learning_rate = 1e-3
margin_from = 0.5
schedule = "one-cycle"
keep = "last"
ema = 0.9
[[members.stages]]
loss = "nt-xent"
batching = "groups"
batch = 5
epochs = 1
crop = 9
learning_rate = 1e-3
schedule = "cyclic"
cycle = 2
keep = "average"
[[members.stages]]
loss = "roadmap"
batching = "groups"
batch = 5
epochs = 2
crop = 9
learning_rate = 1e-3
keep = "best"
"""
NORMED = PAIRS.replace('"mean-map"', '"set"').replace("dropout = 0.0", "dropout = 0.2\nchannels = 8\nheads = 2\nff = 8")


@pytest.fixture(scope="module", autouse=True)
def presets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("presets")
    for name, text in (("pairs", PAIRS), ("more", MORE), ("normed", NORMED)):
        (folder / f"{name}.toml").write_text(text)
    (folder / "naive.toml").write_text('# A preset.\nmethod = "naive"\n[data]\nn_folds = 2\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "PRESETS", folder)
        patch.setattr("kit_core.atomic._sync", lambda path: None)
        yield folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artists") / "sample"
    assert cli.main(["sample", "--out", str(folder), "--artists", "45", "--channels", "16"]) == 0
    return folder


def program(presets: Path, *words: str, start: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the program in processes of its own; it must end by itself."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"YANDEX_ARTISTS_PRESETS": str(presets), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)


def tensors(run: Path, kind: str) -> dict[str, torch.Tensor]:
    """What a run keeps: `models`, or the out-of-fold `vectors`."""
    return {
        f"{path.relative_to(run)} {name}": tensor
        for path in sorted((run / kind).rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_alike(found: Path, wanted: Path) -> None:
    for kind in ("models", "vectors"):
        mine, ones = tensors(found, kind), tensors(wanted, kind)
        assert mine.keys() == ones.keys()
        assert len(mine) > 2
        for name in mine:
            numbers = [mine[name], ones[name]]
            # Softmax forgets the bias of keys: Adam turns the rounding of its gradient, which is 0, into steps.
            if name.endswith("in_proj_bias"):
                numbers = [bias.view(3, -1)[[0, 2]] for bias in numbers]
            torch.testing.assert_close(*numbers, **TOLERANCE, msg=lambda text, name=name: f"{name} {text}")
    scores = [json.loads((run / "summary.json").read_text())["score"] for run in (found, wanted)]
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)  # a gallery of some 100 tracks: one pair may change places


@pytest.mark.slow
def test_what_one_process_began_two_end_as_one_would(
    sample: Path, presets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pair losses with drawn triplets, augmentation by other tracks, accumulation, bootstrapped views."""
    words = ("train", "pairs", "--data", str(sample), "--run")
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    assert cli.main([*words, str(one)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_asked", lambda fabric, step: True)  # after the first epoch
        assert cli.main([*words, str(mixed)]) == 75
    done = program(presets, *words, str(mixed), "--resume", "--fabric.devices", "2")
    assert (done.returncode, done.stdout.count("nDCG@100")) == (0, 1), done.stderr
    assert_alike(mixed, one)
    epochs = [json.loads(line) for line in (mixed / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs if "epoch" in line] == [0, 1, 2]  # rank 0 alone writes


@pytest.mark.parametrize("views", ["whole", "rolling", "bootstrap"])
def test_ranks_embed_each_view_once_and_draw_as_one(views: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small batches; what the ranks found is added up here, as the real reduction does."""
    monkeypatch.setattr(embedding, "TRACKS_PER_BATCH", 4)
    generator = np.random.default_rng(0)
    items = [generator.normal(size=(length, 5)).astype(np.float32) for length in generator.integers(3, 12, 30)]
    pack = RaggedPack.from_items(items)
    encoder = build_model(ModelConfig(architecture="set", layers=1, heads=1, ff=8, out=0), 5, 0)
    member = MemberConfig(views=views, window=4, hop=2, draws=3)
    cpu = torch.device("cpu")
    of = Frames(pack, cpu), np.arange(30), pack.lengths, member, 7, cpu
    alone = embedding.embed(encoder, *of)
    fabrics = [SimpleNamespace(global_rank=rank, world_size=3, all_reduce=own) for rank in range(3)]
    parts = [embedding.embed(encoder, *of, fabric) for fabric in fabrics]
    assert all(np.abs(part).max() > 0 for part in parts)
    np.testing.assert_allclose(np.sum(parts, axis=0), alone, rtol=1e-5, atol=1e-6)


def own(values: torch.Tensor, reduce_op: str) -> torch.Tensor:
    assert reduce_op == "sum"
    return values


@pytest.mark.slow
def test_every_loss_is_that_of_the_whole_batch(sample: Path, presets: Path, tmp_path: Path) -> None:
    """ArcFace with uneven shares and a moving average, NT-Xent with averaged minima, ROADMAP; torchrun starts three."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--")
    one, three = tmp_path / "one", tmp_path / "three"
    words = ("train", "more", "--data", str(sample), "--run")
    assert cli.main([*words, str(one)]) == 0
    done = program(presets, *words, str(three), start=torchrun)
    assert (done.returncode, done.stdout.count("nDCG@100")) == (0, 1), done.stderr
    assert_alike(three, one)


@pytest.mark.slow
def test_a_resume_with_as_many_is_exact_and_batch_statistics_are_a_ranks_own(
    sample: Path, presets: Path, tmp_path: Path
) -> None:
    words = ("train", "normed", "--data", str(sample), "--fabric.devices", "2", "--run")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert program(presets, *words, str(whole)).returncode == 0
    script = f"""
import runpy, sys
from yandex_artists import train
train.stop_asked = lambda fabric, step: True
sys.argv[0] = {str(PROGRAM)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--")
    stopping = tmp_path / "stopping.py"
    stopping.write_text(script)
    environment = os.environ | {"YANDEX_ARTISTS_PRESETS": str(presets), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, str(stopping), *words, str(broken)]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)
    assert "stopped after epoch 1" in stopped.stderr
    assert not (broken / "summary.json").exists()
    assert program(presets, *words, str(broken), "--resume").returncode == 0
    mine, wanted = tensors(broken, "models"), tensors(whole, "models")
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[name], wanted[name]) for name in mine)
    assert np.isfinite(json.loads((broken / "summary.json").read_text())["score"])


def test_methods_without_a_network_are_refused(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "naive", "--data", str(sample), "--run", str(run)]
    assert cli.main([*words, "--fabric.devices", "2"]) == 2
    assert "fabric.devices: found 2, expected 1: `naive` is no network" in capsys.readouterr().err
    assert Config(method="networks").fabric.devices == 1
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):  # as torchrun would, which the configuration cannot see
        monkeypatch.setenv(name, value)
    assert cli.main(words) == 2
    assert "naive: works in one process, but 2 were started" in capsys.readouterr().err
    assert not run.exists()
    interrupt.withdraw()
