"""Training and inference from end to end: presets, folds, resumption, repeatability, and runs that are refused."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest

from ai4code import cli
from ai4code import train as training
from ai4code.boosting import Joint
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
    TreesConfig,
)
from ai4code.data import Notebooks, load
from ai4code.decode import Placement, decode_jointly, spread
from ai4code.features import View, describe
from ai4code.infer import FittedRun, place_with_runs, predict_orders
from ai4code.neural import Listwise
from ai4code.sample import write_sample
from ai4code.submission import read_orders
from ai4code.text import TextModel
from ai4code.train import assign_folds, fold_folder, report_placements, split_fold, train
from ai4code.words import word_source
from kit_core.config import load_preset, preset_names
from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder

TREES = TreesConfig(rounds=10, leaves=7, smallest_leaf=5, learning_rate=0.2)
MODEL_FILES = ("position.txt", "ranker.txt", "mlp.safetensors", "gaps.txt", "joint.txt", "text.safetensors")


def small(config: Config, encoder: Path | None = None, **data: Any) -> Config:
    """The same configuration, at a size that takes no time."""
    networks = {
        name: replace(
            getattr(config, name), width=16, layers=1, heads=2, pair_width=4, epochs=1, order_epochs=1, batch_cells=200
        )
        for name in ("listwise", "twin", "diffusion", "text_listwise")
    }
    trees = {
        name: replace(getattr(config, name), rounds=10, leaves=7, smallest_leaf=5)
        for name in ("position", "ranker", "gaps", "joint")
    }
    return replace(
        config,
        data=DataConfig(**({"folds": 2} | data)),
        text=replace(config.text, components=min(config.text.components, 4)),
        mlp=replace(config.mlp, epochs=1, width=16, blocks=1),
        encoder=replace(config.encoder, folder=encoder, tokens=12),
        sampling=SamplingConfig(steps=2, samples=2),
        transformer=replace(
            config.transformer,
            vocab_size=300,
            width=16,
            layers=1,
            heads=2,
            markdown_tokens=8,
            code_tokens=8,
            contexts=4,
            shared_tokens=16,
            epochs=1,
            masked_epochs=min(config.transformer.masked_epochs, 1),
        ),
        **trees,
        **networks,
    )


BLEND = small(Config(members=("position", "mlp", "gaps", "joint")))


def run_training(config: Config, notebooks: Notebooks, path: Path, resume: bool = False) -> dict[str, Any]:
    with RunFolder.create(path, config=config, preset="x", data_hashes={}, seed=config.seed, resume=resume) as run:
        return train(config, notebooks, run)


def models(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted((path / "models").rglob("*.*"))}


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "seconds"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "sample"
    write_sample(folder, notebooks=20)
    return folder


@pytest.fixture(scope="module")
def notebooks(data: Path) -> Notebooks:
    return load(data, "train", workers=1)


@pytest.fixture(scope="module")
def blend(notebooks: Notebooks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("train") / "blend"
    return path, run_training(BLEND, notebooks, path)


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", preset_names(cli.PRESETS))
def test_presets_train_and_infer_gives_back_the_out_of_fold_answers(
    preset: str, notebooks: Notebooks, data: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    config = small(load_preset(Config, cli.PRESETS, preset), tiny_encoder)
    summary = run_training(config, notebooks, tmp_path / "run")
    assert summary["n"] == len(notebooks)
    assert -1 <= summary["score"] <= 1
    assert summary["interval"][0] <= summary["score"] <= summary["interval"][1]
    assert sum(summary["members"].values()) == pytest.approx(1.0)
    assert (summary["parameters"] > 0) == (set(config.members) - {"as-given", "middle", "similarity"} != set())

    run = FittedRun.open(tmp_path / "run")
    assert len(run.folds) == 2
    unseen = load(data, "test", workers=1)  # of an unknown order, as `predict` and `infer` meet them
    for cells, order in zip(map(unseen.cells, range(len(unseen))), predict_orders([run], unseen), strict=True):
        assert sorted(order) == sorted(cells)
    folds = assign_folds(notebooks.ancestors or [], config.data)
    table = pq.read_table(tmp_path / "run" / "oof.parquet").to_pylist()
    for number, fold_models in enumerate(run.folds):
        held = np.flatnonzero(folds == number)
        for member in config.members:
            # One fold's models and one member: what was held out is answered once more.
            alone = replace(run, folds=[fold_models], weights={m: float(m == member) for m in config.members})
            placements = alone.place(notebooks.select(held))
            kept = [row for row in table if row["member"] == member and row["fold"] == number]
            assert len(kept) == notebooks.n_markdown[held].sum()
            found = np.concatenate([placement.position for placement in placements])
            np.testing.assert_allclose(found, [row["position"] for row in kept], atol=1e-3)


def test_rules_score_what_their_orders_score(notebooks: Notebooks, tmp_path: Path) -> None:
    summary = run_training(small(Config(members=("as-given",))), notebooks, tmp_path / "run")
    everything = np.arange(len(notebooks))
    orders = [Placement(np.full(int(notebooks.n_markdown[i]), float(notebooks.n_code[i]))) for i in everything]
    assert summary["score"] == report_placements(notebooks, everything, orders)["tau"]


# --- folds -----------------------------------------------------------------------------------------------------------


def test_no_model_sees_a_family_that_it_answers(
    notebooks: Notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[set[str]] = []
    answered: list[set[str]] = []
    assert notebooks.ancestors is not None
    families = np.array(notebooks.ancestors)

    class Spy:
        def __init__(self, seen: set[str]) -> None:
            self.seen = seen

        def place(self, view: View) -> list[Placement]:
            answered.append(set(families[view.indices]))
            assert not self.seen & answered[-1]
            return [Placement(np.zeros(int(notebooks.n_markdown[i]))) for i in view.indices]

        def save(self, folder: Path) -> None: ...

    def fit(name: str, view: View, config: Config, log: Callable[..., None], folder: Path) -> Spy:
        fitted.append(set(families[view.indices]))
        return Spy(fitted[-1])

    monkeypatch.setattr(training, "fit_member", fit)
    run_training(Config(data=DataConfig(folds=3)), notebooks, tmp_path / "run")
    assert len(fitted) == 3
    assert set().union(*answered) == set(families)


def test_held_out_labels_do_not_change_a_fold(notebooks: Notebooks, tmp_path: Path) -> None:
    """Other true orders in the held-out fold: the same models and the same answers there."""
    config = small(Config(members=("position",)), fold=0)
    folds = assign_folds(notebooks.ancestors or [], config.data)
    _, held = split_fold(folds, 0, config.data)
    assert notebooks.true_rank is not None
    ranks = notebooks.true_rank.copy()
    for i in held:
        cells = slice(notebooks.offsets[i], notebooks.offsets[i + 1])
        ranks[cells] = np.arange(len(ranks[cells]))
    first = run_training(config, notebooks, tmp_path / "a")
    second = run_training(config, replace(notebooks, true_rank=ranks), tmp_path / "b")
    assert models(tmp_path / "a") == models(tmp_path / "b")
    assert pq.read_table(tmp_path / "a" / "oof.parquet").equals(pq.read_table(tmp_path / "b" / "oof.parquet"))
    assert first["score"] != second["score"]


def test_every_family_is_held_out_as_a_whole(
    blend: tuple[Path, dict[str, Any]], notebooks: Notebooks, capsys: pytest.CaptureFixture[str], tmp_path: Path
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


def test_no_fold_left_out(notebooks: Notebooks, tmp_path: Path) -> None:
    summary = run_training(small(Config(members=("position",)), fold="none"), notebooks, tmp_path / "run")
    assert (summary["score"], summary["n"], summary["folds"]) == (None, 0, "none")
    assert [folder.name for folder in (tmp_path / "run" / "models").iterdir()] == ["whole"]
    assert len(list(predict_orders([FittedRun.open(tmp_path / "run")], notebooks))) == len(notebooks)


def test_a_single_fold(notebooks: Notebooks, tmp_path: Path) -> None:
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


def test_blend_weights_for_a_fold_do_not_use_that_fold(
    notebooks: Notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[list[list[int]]] = []

    def spy(members: Any, true_gaps: Any, rounds: int) -> np.ndarray:
        chosen.append([gaps.tolist() for gaps in true_gaps])
        return np.full(len(members), 1 / len(members))

    monkeypatch.setattr(training, "fit_weights", spy)
    config = small(Config(members=("as-given", "middle")), folds=3)
    run_training(config, notebooks, tmp_path / "run")
    folds = assign_folds(notebooks.ancestors or [], config.data)

    def truth(wanted: np.ndarray) -> list[list[int]]:
        return [training._true_gaps(notebooks, int(i)).tolist() for i in np.flatnonzero(wanted)]

    assert chosen == [truth(folds >= 0), *(truth(folds != fold) for fold in range(3))]


def test_no_weights_are_chosen_where_nothing_else_is_held_out_or_none_are_asked_for(
    notebooks: Notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    blend: tuple[Path, dict[str, Any]], notebooks: Notebooks, tmp_path: Path
) -> None:
    path, summary = blend
    again = run_training(BLEND, notebooks, tmp_path / "again")
    assert models(tmp_path / "again") == models(path)
    assert without_seconds(again) == without_seconds(summary)
    assert (tmp_path / "again" / "weights.json").read_bytes() == (path / "weights.json").read_bytes()


@pytest.mark.parametrize(("member", "fold"), [("position", 1), ("gaps", 0), ("joint", 1)])
def test_a_resumed_run_equals_an_unbroken_one(
    member: str,
    fold: int,
    blend: tuple[Path, dict[str, Any]],
    notebooks: Notebooks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
            run_training(BLEND, notebooks, tmp_path / "run")
    kept = models(tmp_path / "run")
    assert 0 < len(kept) < len(models(path))
    with pytest.raises(DataError, match="not finished"):
        FittedRun.open(tmp_path / "run")
    times = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept}

    resumed = run_training(BLEND, notebooks, tmp_path / "run", resume=True)
    assert models(tmp_path / "run") == models(path)
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept} == times  # read back, not fitted
    assert without_seconds(resumed) == without_seconds(summary)


NETWORKS = small(
    Config(
        members=("singular-listwise", "listwise", "joint"),
        joint_reads=("singular-listwise", "listwise"),
        blend=BlendConfig(weights="equal"),
    )
)


@pytest.fixture(scope="module")
def networks(
    notebooks: Notebooks, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("train") / "networks"
    return path, run_training(with_encoder(NETWORKS, tiny_encoder), notebooks, path)


def with_encoder(config: Config, folder: Path) -> Config:
    return replace(config, encoder=replace(config.encoder, folder=folder))


def test_inference_is_the_mean_over_members_folds_and_runs(
    networks: tuple[Path, dict[str, Any]], blend: tuple[Path, dict[str, Any]], tiny_encoder: Path, data: Path
) -> None:
    """Every stored model is loaded by itself, and plain means are taken."""
    test = load(data, "test", workers=1)
    config = with_encoder(NETWORKS, tiny_encoder)
    table = describe(test, word_source(None), config.text.longest)

    def mean(answers: list[list[np.ndarray]]) -> list[np.ndarray]:
        return [np.mean(of_one, axis=0) for of_one in zip(*answers, strict=True)]

    def known(placements: list[Placement]) -> list[np.ndarray]:
        return [placement.gap_probability for placement in placements]  # type: ignore[misc]  # all are known

    def told(probability: list[np.ndarray]) -> list[Placement]:
        return [Placement(p @ np.arange(p.shape[1]), p) for p in probability]

    singular, listwise, joint = [], [], []
    for fold in (0, 1):
        folder = fold_folder(networks[0], fold)
        view = View.of(table, TextModel.load(folder / "text.safetensors"))
        words = replace(config.encoder, vectors="singular")
        singular.append(known(Listwise.load(folder, words, "singular-listwise").place(view)))
        listwise.append(known(Listwise.load(folder, config.encoder).place(view)))
        joint.append(known(Joint.load(folder).place(view, told(mean([singular[-1], listwise[-1]])))))
    members = [mean(answers) for answers in (singular, listwise, joint)]
    first = mean(members)
    run = FittedRun.open(networks[0])
    for found, expected in zip(run.place(test), first, strict=True):
        np.testing.assert_allclose(found.gap_probability, expected, atol=1e-6)
    for part in (*members, singular[0], singular[1]):  # no single part passes for the whole
        assert any(not np.allclose(a, b, atol=1e-4) for a, b in zip(first, part, strict=True))
    for fold in (0, 1):
        alone = mean([singular[fold], listwise[fold], joint[fold]])
        assert any(not np.allclose(a, b, atol=1e-4) for a, b in zip(first, alone, strict=True))

    second = [
        spread(placement, int(test.n_code[i]), BLEND.blend.position_error).gap_probability
        for i, placement in enumerate(FittedRun.open(blend[0]).place(test))
    ]
    both = place_with_runs([run, FittedRun.open(blend[0])], test)
    for found, a, b in zip(both, first, second, strict=True):
        assert b is not None
        np.testing.assert_allclose(found.gap_probability, (a + b) / 2, atol=1e-6)
        assert not np.allclose(a, b, atol=1e-3)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_test_notebooks_cannot_be_trained_on(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_orders\.csv"):
        run_training(BLEND, load(data, "test", workers=1), tmp_path / "run")


@pytest.mark.parametrize("member", ["position", "gaps", "mlp", "text-listwise"])
def test_notebooks_that_leave_nothing_to_place_cannot_be_trained_on(
    member: Any, notebooks: Notebooks, tmp_path: Path
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
    damage: str,
    blend: tuple[Path, dict[str, Any]],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, out = tmp_path / "run", tmp_path / "submission.csv"
    shutil.copytree(blend[0], run)
    DAMAGES[damage](run)
    assert cli.main(["infer", "--run", str(run), "--data", str(data), "--out", str(out)]) == 3
    message = capsys.readouterr().err
    assert str(run) in message
    assert "Traceback" not in message
    assert not out.exists()


# --- the programs ----------------------------------------------------------------------------------------------------


def test_infer_check_and_evaluate(
    blend: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(blend[0]), tmp_path / "submission.csv"
    assert cli.main(["infer", "--run", run, "--run", run, "--data", str(data), "--out", str(out)]) == 0
    assert cli.main(["check", "--submission", str(out), "--data", str(data)]) == 0
    capsys.readouterr()
    both = read_orders(out)
    assert cli.main(["infer", "--run", run, "--data", str(data), "--out", str(tmp_path / "one.csv")]) == 0
    assert read_orders(tmp_path / "one.csv") == both  # a run beside itself says what it says alone
    test = load(data, "test", workers=1)
    placements = FittedRun.open(blend[0]).place(test)
    for index, id_ in enumerate(test.ids):
        cells = test.cells(index)
        assert both[id_] == [cells[i] for i in decode_jointly(placements[index], int(test.n_code[index]))]


@pytest.mark.parametrize("empty", [False, True])
def test_predict_reorders_a_notebook_file(
    empty: bool, blend: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = nbformat.v4
    cells = [
        new.new_code_cell("" if empty else "import pandas as pd"),
        new.new_code_cell("" if empty else "frame = pd.read_csv('a.csv')"),
        new.new_markdown_cell("" if empty else "# Import pandas"),
        new.new_markdown_cell("" if empty else "Read the csv into a frame"),
    ]
    path, out = tmp_path / "mine.ipynb", tmp_path / "ordered.ipynb"
    nbformat.write(new.new_notebook(cells=cells), path)
    before = path.read_bytes()
    assert cli.main(["predict", str(path), "--run", str(blend[0]), "--write", str(out)]) == 0
    assert "look misplaced" in capsys.readouterr().out
    written = nbformat.read(out, as_version=4)
    assert sorted(cell["id"] for cell in written.cells) == sorted(cell["id"] for cell in cells)
    assert [c["source"] for c in written.cells if c["cell_type"] == "code"] == [c["source"] for c in cells[:2]]
    assert path.read_bytes() == before


def test_models_lie_where_infer_looks(blend: tuple[Path, dict[str, Any]]) -> None:
    names = {file.name for file in fold_folder(blend[0], 0).iterdir()}
    assert names == set(MODEL_FILES) - {"ranker.txt"}
