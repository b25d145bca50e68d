"""Training and inference from end to end: presets, folds, resumption, repeatability, and runs that are refused."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ai4code import cli
from ai4code import train as training
from ai4code.compare import SCORED_FILE
from ai4code.config import (
    BlendConfig,
    Config,
    DataConfig,
    EncoderConfig,
    NotebookConfig,
    SamplingConfig,
    TextConfig,
    TransformerConfig,
)
from ai4code.data import Notebooks, load
from ai4code.decode import Placement, spread
from ai4code.infer import FittedRun, predict_orders
from ai4code.train import assign_folds, report_placements, split_fold
from kit_core.config import load_preset, preset_names
from kit_core.errors import ConfigError, DataError
from kit_ensemble.selection import greedy_selection
from kit_metrics.bootstrap import bootstrap_ratio
from kit_metrics.ordering import kendall_tau_pooled

BLEND = Config(members=("position", "mlp", "gaps", "joint"))
Train = Callable[..., dict[str, Any]]
Small = Callable[..., Config]
Trained = Callable[..., tuple[Path, dict[str, Any]]]


def models(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted((path / "models").rglob("*.*"))}


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "seconds"}


@pytest.fixture(scope="module")
def blend(trained: Trained) -> tuple[Path, dict[str, Any]]:
    return trained(BLEND)


# --- presets ---------------------------------------------------------------------------------------------------------


# Trained with the same members and the same start of their encoder in test_ai4code_leaks.py and test_ai4code_infer.py.
TRAINED_ELSEWHERE = {
    "cached-listwise", "diffusion", "twin", "singular-listwise", "listwise", "listwise-minilm", "pointwise",
    "pointwise-codebert", "pairwise",
}  # fmt: skip


@pytest.mark.parametrize("preset", sorted(set(preset_names(cli.PRESETS)) - TRAINED_ELSEWHERE))
def test_presets_train_and_infer(preset: str, notebooks: Notebooks, data: Path, trained: Trained) -> None:
    config = load_preset(Config, cli.PRESETS, preset)
    path, summary = trained(config) if "joint" in config.members else trained(config, fold=0)
    assert list(summary["members"]) == list(config.members)
    assert sum(summary["members"].values()) == pytest.approx(1.0)
    assert (summary["parameters"] > 0) == (set(config.members) - {"as-given", "middle", "similarity"} != set())
    assert summary["n"] == pq.read_table(path / SCORED_FILE).num_rows
    assert -1 <= summary["score"] <= 1
    unseen = load(data, "test", workers=1)  # of an unknown order, as `predict` and `infer` meet them
    orders = list(predict_orders([FittedRun.open(path)], unseen))
    assert [sorted(order) for order in orders] == [sorted(unseen.cells(i)) for i in range(len(unseen))]


def test_presets_that_are_trained_elsewhere_have_one_member_each(small: Small) -> None:
    members = {preset: small(load_preset(Config, cli.PRESETS, preset)).members for preset in TRAINED_ELSEWHERE}
    assert all(len(found) == 1 for found in members.values())
    assert set().union(*members.values()) == {
        "listwise", "diffusion", "twin", "singular-listwise", "text-listwise", "pointwise", "pairwise",
    }  # fmt: skip


def test_rules_score_what_their_orders_score(
    notebooks: Notebooks, tmp_path: Path, small: Small, run_training: Train
) -> None:
    summary = run_training(small(Config(members=("as-given",))), notebooks, tmp_path / "run")
    everything = np.arange(len(notebooks))
    orders = [Placement(np.full(int(notebooks.n_markdown[i]), float(notebooks.n_code[i]))) for i in everything]
    assert summary["score"] == report_placements(notebooks, everything, orders)["tau"]


def test_the_interval_resamples_families(blend: tuple[Path, dict[str, Any]], notebooks: Notebooks) -> None:
    path, summary = blend
    table = pq.read_table(path / SCORED_FILE).to_pydict()
    assert table["ancestor_id"] == notebooks.ancestors
    lengths = np.array(table["n_cells"])
    assert lengths.tolist() == notebooks.lengths.tolist()

    def interval(groups: Any) -> list[float]:
        pairs = lengths * (lengths - 1)
        found = bootstrap_ratio(
            table["inversions"], pairs, groups, transform=lambda lost: 1 - 4 * lost, limits=(-1.0, 1.0)
        )
        return list(found)

    assert summary["interval"] == interval(table["ancestor_id"])
    assert summary["interval"] != interval(table["id"])
    assert summary["score"] == kendall_tau_pooled(table["inversions"], lengths)


def test_the_blend_of_out_of_fold_answers_by_hand(trained: Trained, notebooks: Notebooks) -> None:
    """Weights by greedy selection on the other folds, from what the run stored of each member's answers."""
    config = Config(members=("middle", "similarity", "position", "gaps"))
    path, summary = trained(config, folds=3)
    rows = pq.read_table(path / "oof.parquet").to_pylist()
    scored = pq.read_table(path / SCORED_FILE).to_pylist()
    answers: dict[str, list[np.ndarray]] = {}
    for member in config.members:
        answers[member], alone = [], []
        for i, id_ in enumerate(notebooks.ids):
            kept = [row for row in rows if row["member"] == member and row["id"] == id_]
            n_code = int(notebooks.n_code[i])
            known = kept[0]["gaps"] is not None
            gaps = np.array([row["gaps"] for row in kept], np.float64) if known else None
            alone.append(Placement(np.array([row["position"] for row in kept], np.float64), gaps))
            mass = spread(alone[-1], n_code, config.blend.position_error).gap_probability
            assert mass is not None
            assert mass.shape == (notebooks.n_markdown[i], n_code + 1)
            answers[member].append(mass)
        tau = report_placements(notebooks, np.arange(len(notebooks)), alone)["tau"]
        assert summary["score_of_members"][member] == pytest.approx(tau, abs=1e-9)

    def truth(i: int) -> np.ndarray:
        assert notebooks.true_rank is not None
        rank = notebooks.true_rank[notebooks.offsets[i] : notebooks.offsets[i + 1]]
        code, markdown = rank[: notebooks.n_code[i]], rank[notebooks.n_code[i] :]
        return np.array([(code < cell).sum() for cell in markdown])

    def weights_on(chosen: list[int]) -> np.ndarray:
        def score(weights: np.ndarray) -> float:
            lost = []
            for i in chosen:
                mean = sum(w * answers[m][i] for m, w in zip(config.members, weights, strict=True))
                median = (np.cumsum(mean, axis=1).astype(np.float32) < 0.5).sum(axis=1)
                lost += np.abs(median - truth(i)).tolist()
            return -float(np.mean(lost))

        return greedy_selection(len(config.members), score, rounds=config.blend.rounds)[0]

    everything = list(range(len(notebooks)))
    np.testing.assert_allclose(list(summary["members"].values()), weights_on(everything), atol=1e-6)
    assert json.loads((path / "weights.json").read_text()) == summary["members"]
    folds = [row["fold"] for row in scored]
    for fold in range(3):
        assert not np.allclose(weights_on(everything), weights_on([i for i in everything if folds[i] == fold]))
    placements = []
    for i in everything:
        weights = weights_on([other for other in everything if folds[other] != folds[i]])
        gaps = np.average([answers[member][i] for member in config.members], axis=0, weights=weights)
        placements.append(Placement(gaps @ np.arange(gaps.shape[1]), gaps))
    report = report_placements(notebooks, np.arange(len(notebooks)), placements)
    assert report["tau"] == pytest.approx(summary["score"], abs=1e-9)


# --- folds -----------------------------------------------------------------------------------------------------------


def test_every_family_is_held_out_as_a_whole(
    blend: tuple[Path, dict[str, Any]],
    notebooks: Notebooks,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    run_training: Train,
) -> None:
    assert notebooks.ancestors is not None
    sizes = Counter(notebooks.ancestors)
    assert max(sizes.values()) > 1  # else there is nothing to cut
    path, summary = blend
    table = pq.read_table(path / SCORED_FILE).to_pydict()
    assert sorted(table["id"]) == sorted(notebooks.ids)
    folds_of: dict[str, set[int]] = {}
    for id_, fold in zip(table["id"], table["fold"], strict=True):
        folds_of.setdefault(notebooks.ancestors[notebooks.ids.index(id_)], set()).add(fold)
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert set().union(*folds_of.values()) == {0, 1}
    counts = {"group_by": "ancestor", "n_groups": len(sizes), "largest_group": max(sizes.values())}
    assert {name: summary[name] for name in counts} == counts
    run_training(Config(members=("middle",)), notebooks, tmp_path / "run")
    assert f"groups: {len(sizes)} by ancestor, the largest of {max(sizes.values())}" in capsys.readouterr().err


def test_no_fold_left_out(notebooks: Notebooks, tmp_path: Path, small: Small, run_training: Train) -> None:
    summary = run_training(small(Config(members=("position",)), fold="none"), notebooks, tmp_path / "run")
    assert (summary["score"], summary["n"], summary["folds"]) == (None, 0, "none")
    assert [folder.name for folder in (tmp_path / "run" / "models").iterdir()] == ["whole"]
    assert len(list(predict_orders([FittedRun.open(tmp_path / "run")], notebooks))) == len(notebooks)


def test_a_single_fold(notebooks: Notebooks, tmp_path: Path, small: Small, run_training: Train) -> None:
    config = small(Config(members=("position", "similarity")), folds=3, fold=1)
    summary = run_training(config, notebooks, tmp_path / "run")
    assert [folder.name for folder in (tmp_path / "run" / "models").iterdir()] == ["fold1"]
    folds = assign_folds(notebooks.ancestors or [], config.data)
    assert summary["n"] == (folds == 1).sum()
    assert summary["folds"] == 1


def test_a_limit_draws_the_same_notebooks_again() -> None:
    folds = np.arange(40) % 4
    fitted, held = split_fold(folds, 2, DataConfig(limit=7))
    again, _ = split_fold(folds, 2, DataConfig(limit=7))
    assert fitted.tolist() == again.tolist() == sorted(set(fitted.tolist()))
    assert len(fitted) == 7
    assert not set(fitted) & set(held)
    assert len(split_fold(folds, 2, DataConfig(limit=100))[0]) == 30


def test_no_weights_are_chosen_where_nothing_else_is_held_out_or_none_are_asked_for(
    notebooks: Notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Small, run_training: Train
) -> None:
    def never(*arguments: Any) -> np.ndarray:
        raise AssertionError("weights were chosen")

    monkeypatch.setattr(training, "fit_weights", never)
    half = {"as-given": 0.5, "middle": 0.5}
    one_fold = small(Config(members=("as-given", "middle")), fold=1)
    assert run_training(one_fold, notebooks, tmp_path / "one")["members"] == half
    equal = small(Config(members=("as-given", "middle"), blend=BlendConfig(weights="equal")))
    assert run_training(equal, notebooks, tmp_path / "equal")["members"] == half
    assert json.loads((tmp_path / "equal" / "weights.json").read_text()) == half


# --- repeatability and resumption ------------------------------------------------------------------------------------


def test_the_same_settings_give_the_same_bits(
    blend: tuple[Path, dict[str, Any]], notebooks: Notebooks, tmp_path: Path, small: Small, run_training: Train
) -> None:
    path, summary = blend
    again = run_training(small(BLEND), notebooks, tmp_path / "again")
    assert models(tmp_path / "again") == models(path)
    assert without_seconds(again) == without_seconds(summary)
    assert (tmp_path / "again" / "weights.json").read_bytes() == (path / "weights.json").read_bytes()


@pytest.mark.parametrize(("member", "fold"), [("position", 1), ("joint", 1)])
def test_a_resumed_run_equals_an_unbroken_one(
    member: str,
    fold: int,
    blend: tuple[Path, dict[str, Any]],
    notebooks: Notebooks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: Small,
    run_training: Train,
) -> None:
    path, summary = blend
    calls = 0

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def fit(*arguments: Any) -> Any:
            nonlocal calls
            if member == "joint" or arguments[0] == member:
                calls += 1
                if calls == fold + 1:
                    raise KeyboardInterrupt
            return original(*arguments)

        return fit

    name = "fit_joint" if member == "joint" else "fit_member"
    with monkeypatch.context() as patch:
        patch.setattr(training, name, dying(getattr(training, name)))
        with pytest.raises(KeyboardInterrupt):
            run_training(small(BLEND), notebooks, tmp_path / "run")
    kept = models(tmp_path / "run")
    assert 0 < len(kept) < len(models(path))
    with pytest.raises(DataError, match="not finished"):
        FittedRun.open(tmp_path / "run")
    times = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept}

    resumed = run_training(small(BLEND), notebooks, tmp_path / "run", resume=True)
    assert models(tmp_path / "run") == models(path)
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept} == times  # read back, not fitted
    assert without_seconds(resumed) == without_seconds(summary)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_test_notebooks_cannot_be_trained_on(data: Path, tmp_path: Path, small: Small, run_training: Train) -> None:
    with pytest.raises(ConfigError, match=r"train_orders\.csv"):
        run_training(small(BLEND), load(data, "test", workers=1), tmp_path / "run")


@pytest.mark.parametrize("member", ["position", "gaps", "mlp", "text-listwise"])
def test_notebooks_that_leave_nothing_to_place_cannot_be_trained_on(
    member: Any, notebooks: Notebooks, tmp_path: Path, small: Small, run_training: Train
) -> None:
    """Without its markdown a notebook is in order as it is."""
    code_only = [notebooks.select([i]) for i in range(len(notebooks))]
    rows = np.flatnonzero(~notebooks.is_markdown)
    bare = replace(
        notebooks,
        offsets=np.concatenate([[0], np.cumsum([one.n_code[0] for one in code_only])]),
        cell_ids=notebooks.cell_ids.take(rows),
        sources=notebooks.sources.take(rows),
        true_rank=np.concatenate([np.arange(one.n_code[0]) for one in code_only]),
    )
    with pytest.raises(DataError, match=r"fold 0: found \d+ notebooks to fit, none with both"):
        run_training(small(Config(members=(member,))), bare, tmp_path / "run")


def test_joint_needs_all_folds(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "gaps", "--members", "gaps", "joint", "--data.fold", "0"]
    arguments += ["--data", str(data), "--run", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    assert "data.fold" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_impossible_settings_are_refused() -> None:
    for settings, words in (
        ({"members": ()}, "members"),
        ({"members": ("gaps", "gaps")}, "members"),
        ({"members": ("joint", "gaps")}, "gaps"),
        ({"members": ("gaps", "joint"), "joint_reads": ("listwise",)}, "'listwise' must stand before"),
        ({"members": ("gaps", "joint"), "joint_reads": ()}, "joint_reads: found nothing"),
        ({"members": ("singular-listwise",), "text": TextConfig(components=0)}, "text.components"),
        ({"members": ("gaps", "joint"), "data": DataConfig(fold="none")}, "data.fold"),
        ({"members": ("gaps", "position"), "data": DataConfig(fold="none")}, "blend weights"),
        ({"data": DataConfig(folds=1)}, "data.folds"),
        ({"data": DataConfig(folds=3, fold=3)}, "data.fold"),
        ({"data": DataConfig(limit=0)}, "data.limit"),
        ({"text": TextConfig(longest=0)}, "text.longest"),
        ({"text": TextConfig(character_share=1.5)}, "character_share"),
        (
            {
                "members": ("listwise",),
                "encoder": EncoderConfig(vectors="singular"),
                "text": TextConfig(components=0),
            },
            "text.components",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            Config(**settings)  # type: ignore[arg-type]  # a table of wrong settings


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NotebookConfig(width=100, heads=8), "heads: found 8"),
        (lambda: NotebookConfig(passes=0), "passes"),
        (lambda: TransformerConfig(width=96, heads=5), "heads: found 5"),
        (lambda: SamplingConfig(steps=0), "0 steps"),
        (lambda: SamplingConfig(samples=0), "0 samples"),
        (lambda: BlendConfig(rounds=0), "0 rounds"),
        (lambda: BlendConfig(position_error=0.0), "position_error"),
    ],
)
def test_impossible_sizes_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "no weights": lambda run: (run / "weights.json").unlink(),
    "weights without a member": lambda run: (run / "weights.json").write_text('{"mlp": 1.0}'),
    "weights that are a list": lambda run: (run / "weights.json").write_text("[]"),
    "weights that are no numbers": lambda run: (run / "weights.json").write_text(
        json.dumps(dict.fromkeys(BLEND.members))
    ),
    "weights that are no JSON": lambda run: (run / "weights.json").write_text("{"),
    "no mark of the end": lambda run: (run / "DONE").unlink(),
    "no configuration": lambda run: (run / "config.json").unlink(),
    "no models": lambda run: shutil.rmtree(run / "models"),
    "no fold": lambda run: [shutil.rmtree(folder) for folder in (run / "models").iterdir()],
} | {
    f"{what} {file}": (lambda run, file=file, make=make: make(run / "models" / "fold1" / file))
    for file in ("position.txt", "mlp.safetensors", "gaps.txt", "joint.txt", "text.safetensors")
    for what, make in {
        "absent": Path.unlink,
        "empty": lambda path: path.write_bytes(b""),
        "foreign": lambda path: path.write_bytes(b"\xff\x00 something else \n" * 20),
        "half a": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    }.items()
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_runs_are_refused(
    damage: str, blend: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "submission.csv"
    shutil.copytree(blend[0], run)
    DAMAGES[damage](run)
    assert cli.main(["infer", "--run", str(run), "--data", str(data), "--out", str(out)]) == 3
    message = capsys.readouterr().err
    assert str(run) in message
    assert "Traceback" not in message
    assert not out.exists()
