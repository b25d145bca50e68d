"""Inference by hand: every stored model answers by itself, NumPy averages, and `infer` and `predict` say the same."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightgbm as lgb
import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from ai4code import cli
from ai4code.config import AugmentConfig, BlendConfig, Config, MlpConfig, NotebookConfig, TextConfig, TransformerConfig
from ai4code.data import Notebooks, load
from ai4code.decode import Placement, decode_jointly
from ai4code.encoder import cell_vectors
from ai4code.features import View, describe
from ai4code.infer import FittedRun, place_with_runs, predict_orders
from ai4code.model import build_model
from ai4code.network import NotebookNet
from ai4code.relations import relation_block
from ai4code.sequences import Item, make_batch, make_items, whole
from ai4code.submission import read_orders
from ai4code.text import TextModel
from ai4code.text_models import (
    CellEncoder,
    Example,
    SeedNet,
    SequenceNet,
    TextNotebookNet,
    cell_tokens,
    context_cells,
    fewest_inversions,
    sequence_batch,
)
from ai4code.train import assign_folds, fold_folder
from ai4code.words import word_source

Trained = Callable[..., tuple[Path, dict[str, Any]]]
EQUAL = BlendConfig(weights="equal")
CLASSICAL = Config(
    members=("as-given", "middle", "similarity", "position", "ranker", "mlp", "gaps", "joint"),
    text=TextConfig(character_share=0.3),
    blend=EQUAL,
)
NETWORKS = Config(
    members=(
        "listwise",
        "singular-listwise",
        "twin",
        "diffusion",
        "pointwise",
        "pairwise",
        "text-listwise",
        "seed-listwise",
        "joint",
    ),
    joint_reads=("singular-listwise", "listwise"),
    blend=EQUAL,
)
RUNS = {"classical": CLASSICAL, "networks": NETWORKS}
CASES = [(name, member) for name, config in RUNS.items() for member in config.members]


@dataclass(frozen=True)
class Answer:
    """What a model says of the markdown cells of one notebook: where, how likely each gap is, and who is first."""

    position: np.ndarray
    gaps: np.ndarray | None = None
    before: np.ndarray | None = None


ByHand = Callable[[str, str], list[list[Answer]]]


# --- stored models, each by itself -----------------------------------------------------------------------------------


def stored(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        ((entry, text),) = file.metadata().items()
        header = json.loads(text)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return tensors, json.loads(header["header"]) if entry == "kit_train" else header


def booster(path: Path) -> lgb.Booster:
    return lgb.Booster(model_file=str(path))


def sigmoid(values: Any) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(values, np.float64))))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def distribution(gaps: np.ndarray, before: np.ndarray | None = None) -> Answer:
    return Answer(gaps @ np.arange(gaps.shape[1]), gaps, before)


def among_code(code: np.ndarray, markdown: np.ndarray) -> np.ndarray:
    """Places of markdown scores among those of the code cells; a fraction keeps their order in a gap, ties as given."""
    order = sorted(range(len(markdown)), key=lambda cell: markdown[cell])
    return np.array(
        [
            sum(markdown[cell] > one for one in code) + (order.index(cell) / len(markdown) - 0.5) * 0.98
            for cell in range(len(markdown))
        ]
    )


def notebook_config(settings: dict[str, Any]) -> NotebookConfig:
    return NotebookConfig(**{**settings, "augment": AugmentConfig(**settings["augment"])})


def network_of(path: Path, build: Callable[[dict[str, Any]], torch.nn.Module]) -> tuple[Any, dict[str, Any]]:
    tensors, header = stored(path)
    network = build(header)
    network.load_state_dict(tensors)
    return network.eval(), header


def last_answer(network: Any, item: Item, *told: torch.Tensor) -> Answer:
    answer = network(make_batch([whole(item)]), *told)[-1]
    gaps = softmax(answer.gap_logits[0].double().numpy())
    return distribution(gaps, sigmoid(answer.before_logits[0].double().numpy()))


def denoised(network: Any, item: Item, places: torch.Tensor, level: float) -> np.ndarray:
    """Mean of the distribution over gaps, on the axis −1..1."""
    position = last_answer(network, item, places[None].float(), torch.tensor([level])).position
    return np.asarray(2.0 * position / item.n_code - 1.0)


def drawn_by_ddim(network: Any, item: Item, steps: int, number: int) -> np.ndarray:
    """One answer of the diffusion model, −1..1 (Song et al. 2020, without fresh noise)."""

    def share_of(level: float) -> float:
        angle = [math.cos((one + 0.008) / 1.008 * math.pi / 2) ** 2 for one in (level, 0.0)]
        return float(np.clip(angle[0] / angle[1], 1e-5, 1.0))

    generator = torch.Generator().manual_seed(1_000_003 * number + item.n_cells)
    places = torch.randn(item.n_cells - item.n_code, generator=generator).double().numpy().clip(-3, 3)
    for level, following in pairwise(np.linspace(1.0, 0.0, steps + 1)):
        clean = denoised(network, item, torch.from_numpy(places), float(level)).clip(-1, 1)
        noise = (places - math.sqrt(share_of(level)) * clean) / math.sqrt(1 - share_of(level))
        places = (math.sqrt(share_of(following)) * clean + math.sqrt(1 - share_of(following)) * noise).clip(-3, 3)
    return clean


def of_sequences(folder: Path, member: str, view: View, items: list[Item]) -> Iterator[Answer]:
    tensors, header = stored(folder / f"{member}.safetensors")
    config = TransformerConfig(**header["config"])
    network = SequenceNet(CellEncoder(header["encoder"]), config.contexts + 1)
    network.load_state_dict(tensors)
    network.eval()
    tokenizer = Tokenizer.from_file(str(folder / f"{member}.tokenizer.json"))
    limit = max(config.markdown_tokens, config.code_tokens, config.shared_tokens)
    tokens = cell_tokens(tokenizer, view.table.notebooks, limit)

    def logit(item: Item, markdown: int, code: np.ndarray) -> float:
        inputs = sequence_batch(
            [Example(item, markdown, code)], tokens, network.encoder.marks, config, torch.device("cpu")
        )
        return float(network(*inputs)[0])

    for item in items:
        cells, markdown = context_cells(item.n_code, config.contexts), range(item.n_code, item.n_cells)
        if member == "pointwise":
            yield Answer(sigmoid([logit(item, cell, cells) for cell in markdown]) * item.n_code)
        else:
            before = sigmoid([[logit(item, cell, np.array([code])) for code in cells] for cell in markdown])
            yield Answer(fewest_inversions(before, cells, item.n_code))


def of_text_listwise(folder: Path, member: str, view: View, items: list[Item]) -> Iterator[Answer]:
    kind = TextNotebookNet if member == "text-listwise" else SeedNet
    network, header = network_of(
        folder / f"{member}.safetensors",
        lambda header: kind(CellEncoder(header["encoder"]), notebook_config(header["config"]), header["limits"]),
    )
    tokenizer = Tokenizer.from_file(str(folder / f"{member}.tokenizer.json"))
    network.tokens = cell_tokens(tokenizer, view.table.notebooks, max(header["limits"]))
    for item in items:
        if member == "text-listwise":
            yield last_answer(network, item)
        else:
            late = -network(make_batch([whole(item)]))[0].double().numpy()
            yield Answer(among_code(late[: item.n_code], late[item.n_code :]))


def of_network(folder: Path, member: str, config: Config, items: list[Item]) -> Iterator[Answer]:
    network, _ = network_of(
        folder / f"{member}.safetensors",
        lambda header: NotebookNet(notebook_config(header["config"]), header["dim"], header["guided"]),
    )
    for item in items:
        n_markdown = item.n_cells - item.n_code
        if member == "twin":
            places = denoised(network, item, torch.zeros(n_markdown), 1.0)
            yield Answer((places + 1) / 2 * item.n_code)
        elif member == "diffusion":
            steps, samples = config.sampling.steps, config.sampling.samples
            drawn = [drawn_by_ddim(network, item, steps, number) for number in range(samples)]
            yield Answer((np.median(drawn, axis=0) + 1) / 2 * item.n_code)
        else:
            yield last_answer(network, item)


class StoredFold:
    """The stored models of one fold of a run, and their answers for some notebooks."""

    def __init__(self, run: Path, fold: int, notebooks: Notebooks) -> None:
        self.config, self.folder, self.notebooks = FittedRun.open(run).config, fold_folder(run, fold), notebooks
        self.table = describe(notebooks, word_source(None), self.config.text.longest)
        self.view = View.of(self.table, TextModel.load(self.folder / "text.safetensors"))
        self.sizes = list(zip(notebooks.n_code.tolist(), notebooks.n_markdown.tolist(), strict=True))
        self.known: dict[str, list[Answer]] = {}

    @torch.inference_mode()
    def answers(self, member: str) -> list[Answer]:
        """Answer all notebooks by the stored model of a member."""
        if member not in self.known:
            match member:
                case "as-given":
                    self.known[member] = [Answer(np.full(m, float(c))) for c, m in self.sizes]
                case "middle":
                    self.known[member] = [Answer(np.full(m, float(c // 2))) for c, m in self.sizes]
                case "similarity":
                    self.known[member] = list(self._similar())
                case "position" | "ranker" | "mlp":
                    self.known[member] = list(self._of_cells(member))
                case "gaps" | "joint":
                    self.known[member] = list(self._of_pairs(member))
                case "pointwise" | "pairwise":
                    self.known[member] = list(of_sequences(self.folder, member, self.view, self._items(None)))
                case "text-listwise" | "seed-listwise":
                    self.known[member] = list(of_text_listwise(self.folder, member, self.view, self._items(None)))
                case _:
                    kind = "singular" if member == "singular-listwise" else self.config.encoder.vectors
                    vectors = cell_vectors(self.view, replace(self.config.encoder, vectors=kind))
                    self.known[member] = list(of_network(self.folder, member, self.config, self._items(vectors)))
        return self.known[member]

    def _items(self, vectors: np.ndarray | None) -> list[Item]:
        return make_items(self.view, vectors)

    def _rows(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the code cells and of the markdown cells of a notebook."""
        rows = np.arange(*self.notebooks.offsets[index : index + 2])
        return rows[: self.sizes[index][0]], rows[self.sizes[index][0] :]

    def _similar(self) -> Iterator[Answer]:
        share, letters = self.config.text.character_share, TextModel.load(self.folder / "characters.safetensors")
        of_words = self.view.tfidf.toarray()
        of_letters = letters.transform(*self.table.characters).toarray()
        for index in range(len(self.sizes)):
            code, markdown = self._rows(index)
            cosine = (1 - share) * of_words[markdown] @ of_words[code].T
            cosine += share * of_letters[markdown] @ of_letters[code].T
            yield Answer(cosine.argmax(axis=1).astype(float))

    def _of_cells(self, member: str) -> Iterator[Answer]:
        if member == "ranker":
            scores = np.asarray(booster(self.folder / "ranker.txt").predict(self.view.cell_features))
            for index in range(len(self.sizes)):
                yield Answer(among_code(*(scores[rows] for rows in self._rows(index))))
            return
        features = self.view.markdown_features
        if member == "position":
            shares = np.asarray(booster(self.folder / "position.txt").predict(features))
        else:
            network, _ = network_of(
                self.folder / "mlp.safetensors",
                lambda header: build_model(MlpConfig(**header["config"]), header["n_features"]),
            )
            shares = network(torch.from_numpy(features)).double().numpy()
        number = np.cumsum(self.notebooks.is_markdown) - 1  # of a cell among all markdown cells
        for index, (n_code, _) in enumerate(self.sizes):
            yield Answer(np.clip(shares[number[self._rows(index)[1]]], 0.0, 1.0) * n_code)

    def _of_pairs(self, member: str) -> Iterator[Answer]:
        model = booster(self.folder / f"{member}.txt")
        for index, (n_code, n_markdown) in enumerate(self.sizes):
            block = self.view.gap_block(index)
            if member == "joint":
                mean = np.mean([self.answers(name)[index].gaps for name in self.config.joint_reads], axis=0)
                block = np.concatenate([block, relation_block(self.view, index, mean)], axis=-1)
            scores = np.asarray(model.predict(block.reshape(n_markdown * (n_code + 1), -1))).reshape(n_markdown, -1)
            yield distribution(scores / scores.sum(axis=1, keepdims=True))


# --- averages --------------------------------------------------------------------------------------------------------


def spread_evenly(answer: Answer, n_code: int, error: float) -> np.ndarray:
    """The distribution over gaps of an answer; a bare position is the median of a Laplace law around it."""
    if answer.gaps is not None:
        return answer.gaps
    width = error * (n_code + 1)

    def below(x: float, position: float) -> float:
        z = (x - position) / width
        return 0.5 * math.exp(z) if z < 0 else 1.0 - 0.5 * math.exp(-z)

    rows = []
    for position in answer.position:
        cdf = [below(gap + 0.5, position) for gap in range(n_code)] + [1.0]
        rows.append(np.diff([0.0, *cdf]))
    return np.array(rows).reshape(-1, n_code + 1)


def mean_of_folds(answers: list[Answer]) -> Answer:
    """Of several folds: mean distribution, or median position where there is none."""
    if answers[0].gaps is None:
        return Answer(np.median([answer.position for answer in answers], axis=0))
    before = None if answers[0].before is None else np.mean([answer.before for answer in answers], axis=0)
    return distribution(np.mean([answer.gaps for answer in answers], axis=0), before)


def blended(answers: list[Answer], weights: list[float], n_code: int, error: float) -> Answer:
    """Weighted mean of the distributions of several members or runs."""
    gaps = np.average([spread_evenly(answer, n_code, error) for answer in answers], axis=0, weights=weights)
    known = [(a.before, w) for a, w in zip(answers, weights, strict=True) if a.before is not None and w > 0]
    before = np.average([b for b, _ in known], axis=0, weights=[w for _, w in known]) if known else None
    return distribution(gaps, before)


def assert_alike(found: list[Placement], expected: list[Answer]) -> None:
    for placement, answer in zip(found, expected, strict=True):
        np.testing.assert_allclose(placement.position, answer.position, atol=2e-5)
        for one, other in (
            (placement.gap_probability, answer.gaps),
            (placement.markdown_before, answer.before),
        ):
            assert (one is None) == (other is None)
            if other is not None:
                np.testing.assert_allclose(one, other, atol=1e-5)


def differ(one: list[Answer], other: list[Answer]) -> bool:
    return any(not np.allclose(a.position, b.position, atol=1e-3) for a, b in zip(one, other, strict=True))


# --- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unseen(data: Path) -> Notebooks:
    return load(data, "test", workers=1)


@pytest.fixture(scope="module")
def by_hand(trained: Trained, unseen: Notebooks) -> ByHand:
    """Answers of a member of a run for the test notebooks, fold by fold."""
    folds = {name: [StoredFold(trained(config)[0], fold, unseen) for fold in (0, 1)] for name, config in RUNS.items()}
    return lambda name, member: [fold.answers(member) for fold in folds[name]]


@pytest.fixture(scope="module")
def uneven(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, float]]]:
    """The runs with weights that differ from member to member; `gaps`, which `joint` reads, has none."""
    found = {}
    for name, config in RUNS.items():
        path = tmp_path_factory.mktemp("uneven") / name
        shutil.copytree(trained(config)[0], path)
        parts = {member: float(number + 1) for number, member in enumerate(config.members)} | {"gaps": 0.0}
        weights = {member: parts[member] / sum(parts[one] for one in config.members) for member in config.members}
        (path / "weights.json").write_text(json.dumps(weights))
        (path / "digests.json").unlink()  # which would tell that the weights were changed
        found[name] = path, weights
    return found


def of_run(name: str, weights: dict[str, float], by_hand: ByHand, unseen: Notebooks) -> list[Answer]:
    members = [[mean_of_folds(list(folds)) for folds in zip(*by_hand(name, member), strict=True)] for member in weights]
    error = RUNS[name].blend.position_error
    return [
        blended(list(answers), list(weights.values()), int(unseen.n_code[i]), error)
        for i, answers in enumerate(zip(*members, strict=True))
    ]


# --- one run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "member"), CASES)
def test_a_member_is_the_mean_of_its_fold_models(
    name: str, member: str, trained: Trained, by_hand: ByHand, unseen: Notebooks
) -> None:
    run = FittedRun.open(trained(RUNS[name])[0])
    alone = replace(run, weights={one: float(one == member) for one in run.weights})
    folds = by_hand(name, member)
    expected = [mean_of_folds(list(answers)) for answers in zip(*folds, strict=True)]
    assert_alike(alone.place(unseen), expected)
    if member not in ("as-given", "middle", "similarity"):
        assert differ(expected, folds[0])
        assert differ(expected, folds[1])


@pytest.mark.parametrize("name", RUNS)
def test_out_of_fold_answers_are_those_of_the_model_that_left_the_notebook_out(
    name: str, trained: Trained, notebooks: Notebooks
) -> None:
    path, _ = trained(RUNS[name])
    folds = assign_folds(notebooks.ancestors or [], FittedRun.open(path).config.data)
    rows = pq.read_table(path / "oof.parquet").to_pylist()
    held = [np.flatnonzero(folds == fold) for fold in (0, 1)]
    stored_folds = [StoredFold(path, fold, notebooks.select(held[fold])) for fold in (0, 1)]
    for member in RUNS[name].members:
        answers = [
            dict(zip(held[i].tolist(), fold.answers(member), strict=True)) for i, fold in enumerate(stored_folds)
        ]
        for i, id_ in enumerate(notebooks.ids):
            kept = [row for row in rows if row["member"] == member and row["id"] == id_]
            answer = answers[folds[i]][i]
            assert [row["cell_id"] for row in kept] == notebooks.cells(i)[int(notebooks.n_code[i]) :]
            assert {row["fold"] for row in kept} == {int(folds[i])}
            np.testing.assert_allclose([row["position"] for row in kept], answer.position, atol=1e-4)
            if answer.gaps is not None:
                np.testing.assert_allclose([row["gaps"] for row in kept], answer.gaps, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_weighted_mean_of_its_members(
    name: str,
    uneven: dict[str, tuple[Path, dict[str, float]]],
    by_hand: ByHand,
    unseen: Notebooks,
) -> None:
    path, weights = uneven[name]
    expected = of_run(name, weights, by_hand, unseen)
    assert_alike(FittedRun.open(path).place(unseen), expected)
    assert differ(expected, of_run(name, dict.fromkeys(weights, 1.0), by_hand, unseen))


@pytest.mark.parametrize("name", RUNS)
def test_each_member_was_fitted_with_the_settings_of_its_own(name: str, trained: Trained) -> None:
    path, _ = trained(RUNS[name])
    config, folder = FittedRun.open(path).config, fold_folder(path, 1)
    for member in config.members:
        if (folder / f"{member}.txt").exists():
            trees: Any = getattr(config, member)
            assert booster(folder / f"{member}.txt").num_trees() == trees.rounds, member
        elif (folder / f"{member}.safetensors").exists():
            section = {
                "singular-listwise": "listwise",
                "text-listwise": "text_listwise",
                "seed-listwise": "text_listwise",
                "pointwise": "transformer",
                "pairwise": "transformer",
            }.get(member, member)
            assert stored(folder / f"{member}.safetensors")[1]["config"] == asdict(getattr(config, section)), member


@pytest.mark.parametrize("name", RUNS)
def test_parameters_are_the_leaves_and_weights_of_the_models_of_one_fold(name: str, trained: Trained) -> None:
    path, summary = trained(RUNS[name])
    count = 0
    for file in fold_folder(path, 0).iterdir():
        if file.suffix == ".txt":
            count += sum(tree["num_leaves"] for tree in booster(file).dump_model()["tree_info"])
        elif file.suffix == ".safetensors" and file.stem not in ("text", "characters"):
            count += sum(one.numel() for key, one in stored(file)[0].items() if "standardise" not in key)
    assert summary["parameters"] == count > 0


# --- several runs ----------------------------------------------------------------------------------------------------


def test_infer_writes_the_orders_of_the_mean_of_two_different_runs(
    uneven: dict[str, tuple[Path, dict[str, float]]],
    by_hand: ByHand,
    unseen: Notebooks,
    data: Path,
    tmp_path: Path,
) -> None:
    answers = {name: of_run(name, weights, by_hand, unseen) for name, (_, weights) in uneven.items()}
    both = [
        blended(list(pair), [1.0, 1.0], int(unseen.n_code[i]), 0.17)
        for i, pair in enumerate(zip(*answers.values(), strict=True))
    ]
    assert_alike(place_with_runs([FittedRun.open(path) for path, _ in uneven.values()], unseen), both)
    assert differ(both, answers["classical"])
    assert differ(both, answers["networks"])
    orders: dict[str, dict[str, list[str]]] = {}
    for name, used in (("both", list(uneven)), ("classical", ["classical"]), ("networks", ["networks"])):
        runs = [word for one in used for word in ("--run", str(uneven[one][0]))]
        out = tmp_path / f"{name}.csv"
        assert cli.main(["infer", *runs, "--data", str(data), "--out", str(out)]) == 0
        orders[name] = read_orders(out)
        assert list(orders[name]) == unseen.ids
    for name, expected in {"both": both, **answers}.items():
        for i, id_ in enumerate(unseen.ids):
            placement = Placement(expected[i].position, expected[i].gaps, expected[i].before)
            order = decode_jointly(placement, int(unseen.n_code[i]))
            assert orders[name][id_] == [unseen.cells(i)[cell] for cell in order]
    assert orders["both"] != orders["classical"]
    assert orders["both"] != orders["networks"]


def test_runs_of_another_seed_are_averaged_and_not_replaced(trained: Trained, unseen: Notebooks) -> None:
    """Bare positions of two runs meet as distributions."""
    runs = [FittedRun.open(trained(Config(members=("position",), seed=seed))[0]) for seed in (0, 1)]
    answers = [[Answer(one.position) for one in run.place(unseen)] for run in runs]
    expected = [
        blended(list(pair), [1.0, 1.0], int(unseen.n_code[i]), 0.17)
        for i, pair in enumerate(zip(*answers, strict=True))
    ]
    assert differ(*answers)
    assert_alike(place_with_runs(runs, unseen), expected)


def test_chunks_of_notebooks_change_no_order(
    trained: Trained, unseen: Notebooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [FittedRun.open(trained(Config(members=("position",)))[0])]
    at_once = list(predict_orders(runs, unseen))
    monkeypatch.setattr("ai4code.infer.NOTEBOOKS_PER_CHUNK", 3)
    assert len(unseen) > 3
    assert list(predict_orders(runs, unseen)) == at_once


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_gives_the_order_of_infer_and_prints_it_from_the_first_cell_on(
    uneven: dict[str, tuple[Path, dict[str, float]]],
    unseen: Notebooks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    i = int(unseen.n_markdown.argmax())
    texts = [f"cell {number}\n{text}" for number, text in enumerate(unseen.texts(i))]
    paths = [path for path, _ in uneven.values()]
    named = replace(unseen.select([i]), sources=pa.array(texts, unseen.sources.type))
    (expected,) = predict_orders([FittedRun.open(path) for path in paths], named)
    assert expected != unseen.cells(i)

    is_code = np.arange(len(texts)) < unseen.n_code[i]
    new = nbformat.v4
    cells = [
        new.new_code_cell(text) if c else new.new_markdown_cell(text) for c, text in zip(is_code, texts, strict=True)
    ]
    for cell, name in zip(cells, unseen.cells(i), strict=True):
        cell["id"] = name
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "mine.ipynb")
    runs = [word for path in paths for word in ("--run", str(path))]
    assert cli.main(["predict", str(tmp_path / "mine.ipynb"), *runs, "--write", str(tmp_path / "out.ipynb")]) == 0
    assert [cell["id"] for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells] == expected
    lines = capsys.readouterr().out.splitlines()[: len(texts)]
    assert [unseen.cells(i)[int(line.split("  cell ")[1].split()[0])] for line in lines] == expected
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(texts) + 1))


def test_predict_reads_a_notebook_without_texts_and_leaves_the_file_alone(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = nbformat.v4
    cells = [new.new_code_cell(""), new.new_code_cell(""), new.new_markdown_cell(""), new.new_markdown_cell("")]
    path, out = tmp_path / "mine.ipynb", tmp_path / "ordered.ipynb"
    nbformat.write(new.new_notebook(cells=cells), path)
    before = path.read_bytes()
    run = str(trained(CLASSICAL)[0])
    assert cli.main(["predict", str(path), "--run", run, "--write", str(out)]) == 0
    assert "look misplaced" in capsys.readouterr().out
    written = nbformat.read(out, as_version=4)
    assert sorted(cell["id"] for cell in written.cells) == sorted(cell["id"] for cell in cells)
    assert path.read_bytes() == before


# --- the program -----------------------------------------------------------------------------------------------------


def test_a_submission_is_valid_and_a_run_beside_itself_says_what_it_says_alone(
    trained: Trained, data: Path, tmp_path: Path
) -> None:
    run = str(trained(CLASSICAL)[0])
    for name, runs in (("one", ["--run", run]), ("two", ["--run", run, "--run", run])):
        out = str(tmp_path / f"{name}.csv")
        assert cli.main(["infer", *runs, "--data", str(data), "--out", out]) == 0
        assert cli.main(["check", "--submission", out, "--data", str(data)]) == 0
    assert read_orders(tmp_path / "one.csv") == read_orders(tmp_path / "two.csv")
