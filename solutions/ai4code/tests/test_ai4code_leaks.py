"""No fold knows what it is scored on: held-out labels and texts change no stored model and no blend of that fold."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ai4code.compare import SCORED_FILE
from ai4code.config import BlendConfig, Config, EncoderConfig, TextConfig, TransformerConfig
from ai4code.data import Notebooks
from ai4code.train import assign_folds, fold_folder

Train = Callable[..., dict[str, Any]]
Small = Callable[..., Config]

# Which files each kind of member leaves in the folder of a fold; the text model of the fold is every member's.
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "classical": {
        "as-given": (),
        "middle": (),
        "similarity": ("characters.safetensors",),
        "position": ("position.txt",),
        "ranker": ("ranker.txt",),
        "mlp": ("mlp.safetensors",),
        "gaps": ("gaps.txt",),
    },
    "frozen encoder": {
        "listwise": ("listwise.safetensors",),
        "singular-listwise": ("singular-listwise.safetensors",),
        "twin": ("twin.safetensors",),
        "diffusion": ("diffusion.safetensors",),
    },
    "singular vectors": {"twin": ("twin.safetensors",)},
    "own encoder": {
        name: (f"{name}.safetensors", f"{name}.tokenizer.json")
        for name in ("pointwise", "pairwise", "text-listwise", "seed-listwise")
    },
    "masked words": {"pairwise": ("pairwise.safetensors", "pairwise.tokenizer.json")},
    "fine-tuned encoder": {
        name: (f"{name}.safetensors", f"{name}.tokenizer.json") for name in ("pointwise", "text-listwise")
    },
}
SETTINGS: dict[str, dict[str, Any]] = {
    "classical": {"text": TextConfig(character_share=0.3)},
    "singular vectors": {"encoder": EncoderConfig(vectors="singular")},
    "masked words": {"transformer": TransformerConfig(masked_epochs=1, tokenizer="wordpiece")},
    "fine-tuned encoder": {"transformer": TransformerConfig(start="folder", masked_epochs=1)},
}
CASES = [(kind, member) for kind, members in FILES.items() for member in members]


def config_of(kind: str) -> Config:
    members: Any = tuple(FILES[kind])
    return Config(members=members, blend=BlendConfig(weights="equal"), **SETTINGS.get(kind, {}))


def held_out(notebooks: Notebooks, config: Config, fold: int = 0) -> np.ndarray:
    return np.flatnonzero(assign_folds(notebooks.ancestors or [], config.data) == fold)


@pytest.fixture(scope="module")
def ordered(notebooks: Notebooks, small: Small) -> Notebooks:
    """The sample with fold 0 last.

    Words are numbered as they first appear. Only behind all the others can held-out texts change without renumbering
    the words of the rest, which would change the rounding of sums over words.
    """
    config = small(Config())
    folds = assign_folds(notebooks.ancestors or [], config.data)
    found = notebooks.select(np.argsort(folds == 0, kind="stable"))
    assert held_out(found, config).tolist() == np.flatnonzero(np.sort(folds == 0)).tolist()
    return found


def altered(notebooks: Notebooks, held: np.ndarray) -> Notebooks:
    """The same notebooks, but those held out have other texts in all cells and another true order of theirs."""
    assert notebooks.true_rank is not None
    ranks, texts = notebooks.true_rank.copy(), notebooks.sources.to_pylist()
    for i in held:
        start, stop = notebooks.offsets[i : i + 2].tolist()
        ranks[start:stop] = np.arange(stop - start)
        texts[start:stop] = [f"new words {row} of {texts[row][::-1]}" for row in range(start, stop)]
    assert (ranks != notebooks.true_rank).any()
    return replace(notebooks, true_rank=ranks, sources=pa.array(texts, notebooks.sources.type))


@pytest.fixture(scope="module")
def runs(
    ordered: Notebooks, small: Small, run_training: Train, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """Train the members of a kind twice, with fold 0 left out: on the sample, and with its held-out part altered."""

    @cache
    def run(kind: str) -> tuple[Path, Path]:
        config, folder = small(config_of(kind), fold=0), tmp_path_factory.mktemp("leaks")
        run_training(config, ordered, folder / "a")
        run_training(config, altered(ordered, held_out(ordered, config)), folder / "b")
        return folder / "a", folder / "b"

    return run


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "member"), CASES)
def test_held_out_notebooks_change_no_byte_of_a_fold_s_models(
    kind: str, member: str, runs: Callable[[str], tuple[Path, Path]]
) -> None:
    first, second = (fold_folder(run, 0) for run in runs(kind))
    for name in ("text.safetensors", *FILES[kind][member]):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("kind", FILES)
def test_all_files_of_a_fold_are_compared(kind: str, runs: Callable[[str], tuple[Path, Path]]) -> None:
    named = {"text.safetensors"}.union(*FILES[kind].values())
    assert {file.name for file in fold_folder(runs(kind)[0], 0).iterdir()} == named


def test_the_answers_do_change_with_the_held_out_texts(runs: Callable[[str], tuple[Path, Path]]) -> None:
    """Else the texts were not altered in a way that a model could notice."""
    tables = [pq.read_table(run / "oof.parquet").to_pylist() for run in runs("classical")]
    for member in ("similarity", "position", "ranker", "mlp", "gaps"):
        positions = [[row["position"] for row in table if row["member"] == member] for table in tables]
        assert positions[0] != positions[1], member


def test_joint_learns_nothing_from_held_out_notebooks(
    ordered: Notebooks, small: Small, run_training: Train, tmp_path: Path
) -> None:
    """Its first answers come from models of the other folds; with these as they were, its fold 0 must be as it was."""
    config = small(Config(members=("gaps", "joint")))
    run_training(config, ordered, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "DONE").unlink()
    first, second = ([fold_folder(tmp_path / name, fold) for fold in (0, 1)] for name in ("a", "b"))
    for fold in (0, 1):
        (second[fold] / "joint.txt").unlink()
    run_training(config, altered(ordered, held_out(ordered, config)), tmp_path / "b", resume=True)
    assert (first[0] / "gaps.txt").read_bytes() == (second[0] / "gaps.txt").read_bytes()  # read back, not fitted again
    assert (first[0] / "joint.txt").read_bytes() == (second[0] / "joint.txt").read_bytes()
    assert (first[1] / "joint.txt").read_bytes() != (second[1] / "joint.txt").read_bytes()  # which did learn from them


def test_joint_reads_answers_of_models_that_were_not_fitted_on_the_notebook(
    notebooks: Notebooks, small: Small, run_training: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Out-of-fold answers, as they are stored, and not those of the fold's own `gaps`."""
    from ai4code import train as training

    config = small(Config(members=("gaps", "joint")))
    given: list[tuple[np.ndarray, list[Any]]] = []
    fit_joint = training.fit_joint

    def recording(view: Any, first: Any, config: Config) -> Any:
        given.append((view.indices, list(first)))
        return fit_joint(view, first, config)

    monkeypatch.setattr(training, "fit_joint", recording)
    run_training(config, notebooks, tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "oof.parquet").to_pylist()
    folds = assign_folds(notebooks.ancestors or [], config.data)
    for fold, (indices, first) in enumerate(given):
        assert indices.tolist() == np.flatnonzero(folds != fold).tolist()
        for index, placement in zip(indices, first, strict=True):
            stored = [row["position"] for row in rows if (row["member"], row["id"]) == ("gaps", notebooks.ids[index])]
            np.testing.assert_allclose(placement.position, stored, rtol=1e-6)
    assert len(given) == 2


# --- the blend -------------------------------------------------------------------------------------------------------


def test_blend_weights_for_a_fold_come_from_the_other_folds(
    notebooks: Notebooks, small: Small, run_training: Train, tmp_path: Path
) -> None:
    """In fold 0 the order as given is the true one; in fold 1 all markdown stands in the middle of the code.

    So each fold gets the member that is right in the other one. Weights that had seen both would be the same in both.
    """
    config = small(Config(members=("as-given", "middle")))
    assert notebooks.true_rank is not None
    ranks = notebooks.true_rank.copy()
    first = set(held_out(notebooks, config).tolist())
    for i in range(len(notebooks)):
        start, stop = notebooks.offsets[i : i + 2].tolist()
        code, markdown = int(notebooks.n_code[i]), int(notebooks.n_markdown[i])
        ranks[start:stop] = np.arange(stop - start)
        if i not in first:
            half = code // 2
            ranks[start : start + code] = np.arange(code) + markdown * (np.arange(code) >= half)
            ranks[start + code : stop] = half + np.arange(markdown)
    crafted = replace(notebooks, true_rank=ranks)
    lost: dict[str, dict[int, list[int]]] = {}
    for name, members in (("blend", config.members), ("as-given", ("as-given",)), ("middle", ("middle",))):
        run_training(replace(config, members=members), crafted, tmp_path / name)
        rows = pq.read_table(tmp_path / name / SCORED_FILE).to_pylist()
        lost[name] = {fold: [row["inversions"] for row in rows if row["fold"] == fold] for fold in (0, 1)}
    assert lost["blend"] == {0: lost["middle"][0], 1: lost["as-given"][1]}
    assert sum(lost["as-given"][0]) == sum(lost["middle"][1]) == 0
    assert min(sum(lost["blend"][0]), sum(lost["blend"][1])) > 0


def test_blend_weights_and_orders_of_a_fold_do_not_depend_on_its_labels(
    notebooks: Notebooks, small: Small, run_training: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai4code import train as training

    chosen: list[list[float]] = []
    fit_weights = training.fit_weights

    def recording(members: Any, true_gaps: Any, rounds: int) -> np.ndarray:
        chosen.append(fit_weights(members, true_gaps, rounds).tolist())
        return np.array(chosen[-1])

    monkeypatch.setattr(training, "fit_weights", recording)
    config = small(Config(members=("as-given", "middle", "similarity")), folds=3)
    for name, held in (("a", np.zeros(0, np.int64)), ("b", held_out(notebooks, config))):
        ranks = np.array(notebooks.true_rank)
        for i in held:
            ranks[notebooks.offsets[i] : notebooks.offsets[i + 1]] = np.arange(notebooks.lengths[i])
        run_training(config, replace(notebooks, true_rank=ranks), tmp_path / name)
    before, after = chosen[:4], chosen[4:]  # of all folds, then for each fold
    assert before[1] == after[1]
    assert before[2:] != after[2:]
