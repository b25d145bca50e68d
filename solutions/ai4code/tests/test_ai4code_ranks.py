"""Several processes under gloo: the weights and out-of-fold answers of one, and what a loss is divided by."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ai4code import cli, neural
from ai4code.config import NotebookConfig
from ai4code.data import load
from ai4code.diffusion import place_loss, unknown
from ai4code.features import View, describe
from ai4code.network import NotebookNet
from ai4code.neural import answerable, fresh_network, gap_loss
from ai4code.sample import write_sample
from ai4code.sequences import Batch, Item, make_batch, make_items, whole
from ai4code.text import analyze, fit_text_model
from ai4code.text_models import listnet_loss
from kit_core.interrupt import Interrupted
from kit_train.ranks import share_of_batch

PROGRAM = Path(__file__).with_name("ai4code_ranks_program.py")
HANG_SECONDS = 900

# Sums of float32 in another order, some 20 steps of Adam, which turns rounding of small gradients into steps.
TOLERANCE = {"rtol": 1e-3, "atol": 2e-4}

SIZES = """width = 16
layers = 1
heads = 2
pair_width = 4
order_epochs = 1
epochs = 1
batch_cells = 150
dropout = 0.0
"""
COMMON = """[data]
folds = 2
fold = 0
[fabric]
accelerator = "cpu"
[transformer]
vocab_size = 300
width = 16
layers = 1
heads = 2
dropout = 0.0
markdown_tokens = 8
code_tokens = 8
contexts = 4
shared_tokens = 16
epochs = 1
masked_epochs = 1
batch_tokens = 300
"""
CELLS = f"""# A preset.
members = ["similarity", "listwise"]
[text]
components = 4
[encoder]
vectors = "singular"
{COMMON}
[listwise]
{SIZES}"""
TEXTS = f"""# A preset.
members = ["pointwise", "pairwise", "text-listwise", "seed-listwise", "twin"]
[text]
components = 4
[encoder]
vectors = "singular"
{COMMON}
[text_listwise]
{SIZES}
[twin]
passes = 1
{SIZES}"""
FOLDER = f"""# A preset.
members = ["mlp", "gaps", "listwise", "diffusion", "text-listwise"]
[text]
components = 4
[encoder]
tokens = 12
{COMMON}start = "folder"
[mlp]
epochs = 1
width = 16
blocks = 1
[gaps]
rounds = 10
leaves = 7
smallest_leaf = 5
[listwise]
{SIZES}
[diffusion]
passes = 1
{SIZES}
[text_listwise]
{SIZES.replace("dropout = 0.0", "dropout = 0.3")}"""


# --- losses of shares ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view(sample: Path) -> View:
    table = describe(load(sample, "train", workers=1), analyze)
    return View.of(table, fit_text_model(table.counts, table.words.vocabulary, np.arange(table.counts.shape[0])))


def of_gaps(network: NotebookNet, batch: Batch) -> Tensor:
    return gap_loss(network(batch, *unknown(batch)), batch, 4.0, 5.0)


def of_places(network: NotebookNet, batch: Batch) -> Tensor:
    return place_loss(network, batch, *unknown(batch), 5.0)


def of_ranks(network: NotebookNet, batch: Batch) -> Tensor:
    """ListNet on something that depends on all weights."""
    answer = network(batch, *unknown(batch))[-1]
    before = answer.before_logits * ~batch.asked_padding[:, None, :]
    scores = torch.cat([torch.tanh(batch.features[:, : batch.width].sum(2)), before.sum(2)], dim=1)
    return listnet_loss(scores, batch)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("n", [1, 4, 7])
@pytest.mark.parametrize("loss_of", [of_gaps, of_places, of_ranks])
def test_the_mean_over_ranks_is_the_loss_of_the_batch(
    loss_of: Callable[[NotebookNet, Batch], Tensor], n: int, size: int, view: View
) -> None:
    items: list[Item] = [item for item in make_items(view, None) if answerable(item)][:n]
    config = NotebookConfig(width=16, layers=1, heads=2, pair_width=4, passes=1, dropout=0.0)
    network = fresh_network(items, config, 0, 0, guided=True)
    batches: list[tuple[Batch, float]] = []
    for rank in range(size):
        part = share_of_batch(np.arange(n), rank, size)
        batches.append((make_batch([whole(items[row]) for row in part.rows.tolist()]), float(part.weight > 0)))

    counts: list[list[Tensor]] = []
    for batch, counted in batches:
        asked: list[Tensor] = []

        def note(count: Tensor, asked: list[Tensor] = asked, counted: float = counted) -> Tensor:
            asked.append(count * counted)
            return torch.ones(())

        loss_of(network, replace(batch, divisor=note))
        counts.append(asked)
    totals = [torch.stack(one).sum().clamp(min=1) / size for one in zip(*counts, strict=True)]
    losses = []
    for batch, counted in batches:
        answers = iter(totals)
        shared = replace(batch, divisor=lambda count, answers=answers: next(answers))
        losses.append(loss_of(network, shared) * counted)
    found = torch.stack(losses).mean()
    wanted = loss_of(network, make_batch([whole(item) for item in items]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    mine = torch.autograd.grad(found, weights, allow_unused=True)
    ones = torch.autograd.grad(wanted, weights, allow_unused=True)
    for one, other in zip(mine, ones, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def presets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("presets")
    for name, text in (("cells", CELLS), ("texts", TEXTS), ("folder", FOLDER)):
        (folder / f"{name}.toml").write_text(text)
    (folder / "trees.toml").write_text('# A preset.\nmembers = ["mlp", "gaps"]\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "PRESETS", folder)
        yield folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "sample"
    write_sample(folder, notebooks=20)
    return folder


def program(presets: Path, *words: str, start: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the program in processes of its own; it must end by itself."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"AI4CODE_PRESETS": str(presets), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)


def answers(run: Path) -> np.ndarray:
    """Out-of-fold positions of all members, in the order of the file."""
    table = pq.read_table(run / "oof.parquet")
    return table["position"].to_numpy()


def losses(run: Path) -> list[float]:
    """Of each epoch."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def assert_alike(found: Path, wanted: Path) -> None:
    files = sorted(path.relative_to(wanted) for path in (wanted / "models").rglob("*.safetensors"))
    assert len(files) > 1
    for path in files:
        mine, ones = load_file(found / path), load_file(wanted / path)
        assert mine.keys() == ones.keys()
        for name in mine:
            if path.stem == "seed-listwise" and name in ("cells.encoder.norm.bias", "leave.bias"):
                continue  # ListNet forgets what is added to all scores, as below
            numbers = [mine[name], ones[name]]
            # Softmax forgets the bias of keys: Adam turns the rounding of its gradient, which is 0, into steps.
            if name.endswith(("in_proj_bias", "attention.enter.bias")):
                numbers = [bias.view(3, -1)[[0, 2]] for bias in numbers]
            torch.testing.assert_close(
                *numbers, **TOLERANCE, msg=lambda text, where=f"{path} {name}": f"{where} {text}"
            )
    np.testing.assert_allclose(answers(found), answers(wanted), rtol=2e-3, atol=5e-3)  # gaps, up to some tens
    scores = [json.loads((run / "summary.json").read_text())["score"] for run in (found, wanted)]
    assert scores[0] == pytest.approx(scores[1], abs=0.01)  # ten notebooks: two cells may change places


@pytest.mark.slow
def test_what_one_process_began_two_end_as_one_would(
    sample: Path, presets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "cells", "--data", str(sample), "--run")
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    assert cli.main([*words, str(one)]) == 0

    def stop(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        raise Interrupted("stopped as asked")

    save = neural.save_state
    with monkeypatch.context() as patch:
        patch.setattr(neural, "save_state", stop)
        assert cli.main([*words, str(mixed)]) == 75
    done = program(presets, *words, str(mixed), "--resume", "--fabric.devices", "2")
    assert (done.returncode, done.stdout.count("tau")) == (0, 1 + 1), done.stderr  # a line, and a table of members
    assert_alike(mixed, one)
    assert losses(mixed) == pytest.approx(losses(one), rel=1e-4)  # of whole batches, and rank 0 alone writes
    assert len(losses(mixed)) == 2
    for setting, value in (("precision", "bfloat16"), ("accumulate", "99")):
        other = tmp_path / setting
        assert cli.main([*words, str(other), f"--fabric.{setting}", value]) == 0
        assert losses(other) == pytest.approx(losses(one), rel=0.05)
        assert losses(other) != losses(one)


@pytest.mark.slow
def test_text_encoders_are_shared_exactly(sample: Path, presets: Path, tmp_path: Path) -> None:
    """Masked words, sequences and whole notebooks, in three processes that torchrun starts; some shares are empty."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--")
    one, three = tmp_path / "one", tmp_path / "three"
    words = ("train", "texts", "--data", str(sample), "--run")
    assert cli.main([*words, str(one)]) == 0
    done = program(presets, *words, str(three), start=torchrun)
    assert done.returncode == 0, done.stderr
    assert_alike(three, one)


@pytest.mark.slow
def test_members_of_all_kinds_and_a_resume_with_as_many_is_exact(
    sample: Path, presets: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Trees beside networks, a checkpoint with a part that is never asked, dropout, noise, a cache for all."""
    settings = ("--encoder.folder", str(tiny_encoder), "--encoder.cache", str(tmp_path / "cache"))
    words = ("train", "folder", "--data", str(sample), *settings, "--fabric.devices", "2", "--fabric.accumulate", "2")
    whole_run, broken = tmp_path / "whole", tmp_path / "broken"
    done = program(presets, *words, "--run", str(whole_run))
    assert done.returncode == 0, done.stderr
    stopping = tmp_path / "stopping.py"
    stopping.write_text(f"""
import runpy, sys
from ai4code import neural
from kit_core.interrupt import Interrupted
save, calls = neural.save_state, []
def stop(path, state):
    save(path, state)
    calls.append(path)
    if len(calls) == 3:  # the first epoch of the second network
        raise Interrupted("stopped as asked")
neural.save_state = stop
sys.argv[0] = {str(PROGRAM)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
""")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--")
    environment = os.environ | {"AI4CODE_PRESETS": str(presets), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, str(stopping), *words, "--run", str(broken)]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)
    assert "stopped as asked" in stopped.stderr
    assert (broken / "models" / "fold0" / "listwise.safetensors").exists()
    assert not (broken / "models" / "fold0" / "diffusion.safetensors").exists()
    done = program(presets, *words, "--run", str(broken), "--resume")
    assert done.returncode == 0, done.stderr
    files = sorted(path.relative_to(whole_run) for path in (whole_run / "models").rglob("*.*"))
    assert len(files) == 7  # five models, the words, a tokenizer
    assert all((broken / path).read_bytes() == (whole_run / path).read_bytes() for path in files)
    np.testing.assert_array_equal(answers(broken), answers(whole_run))


def test_members_without_shared_work_are_refused(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "trees", "--data", str(sample), "--run", str(run)]
    assert cli.main([*words, "--fabric.devices", "2"]) == 2
    assert "fabric.devices: found 2, expected 1: nothing to share in mlp, gaps" in capsys.readouterr().err
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):  # as torchrun would, which the configuration cannot see
        monkeypatch.setenv(name, value)
    assert cli.main(words) == 2
    assert "trees: works in one process, but 2 were started" in capsys.readouterr().err
    assert not run.exists()
