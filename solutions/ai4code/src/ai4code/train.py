"""From notebooks to a run folder, in order: words → folds → members, fold by fold → weights → report.

Start policy: a run begins from nothing. With `--resume`, (1) models that the stopped run finished are read back,
(2) all others are fitted from the seed, so the result has the same bits as a run that was never stopped.

Several processes (`--fabric.devices 2`) all walk through this file. They share the training of networks, and the
notebooks to answer; each fits the other members for itself, from the same seed.

What a fold leaves in `models/foldK/` is what `infer` needs: the text model and one file a member.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ai4code.blend import fit_weights
from ai4code.boosting import Joint
from ai4code.compare import write_scored
from ai4code.config import Config, DataConfig, Member
from ai4code.data import Notebooks
from ai4code.decode import Placement, average, decode_jointly, mix, spread, true_gaps
from ai4code.features import View, describe
from ai4code.members import FittedMember, count_parameters, fit_joint, fit_member, is_saved, load_member
from ai4code.text import TextModel, fit_text_model
from ai4code.words import word_source
from kit_core.atomic import atomic_path, write_bytes, write_json
from kit_core.console import render_table, say
from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from kit_core.seeding import seed_everything
from kit_metrics.ordering import Orderings, ordering_report
from kit_splits.folds import assert_groups_whole, count_groups, group_folds

TOKENIZER_FILE = "tokenizer.json"
GROUP_BY = "ancestor"
Answers = dict[Member, list[Placement | None]]  # by member, for every notebook; None: not held out


def train(config: Config, notebooks: Notebooks, run: RunFolder) -> dict[str, Any]:
    """Fit every member on every fold asked for, blend them out of fold, and finish the run.

    Args:
        notebooks: a train split, with true orders and ancestors.
        run: an open run folder.

    Returns:
        The summary, as written to `summary.json`: tau with its interval, the whole report, members, weights, seconds.

    Raises:
        ConfigError: fewer families of notebooks than folds, or no true orders.
        DataError: a fold without a notebook to fit that has both code and markdown.
    """
    started = time.monotonic()
    seed_everything(config.seed)
    if notebooks.ancestors is None or notebooks.true_rank is None:
        raise ConfigError("training needs a train split, with train_orders.csv and train_ancestors.csv")
    if config.text.tokenizer is not None:
        write_bytes(run.file(TOKENIZER_FILE), config.text.tokenizer.read_bytes())
    table = describe(notebooks, word_source(config.text.tokenizer), config.text.longest)
    counts = count_groups(notebooks.ancestors, GROUP_BY)
    say(str(counts))
    folds = assign_folds(notebooks.ancestors, config.data)
    _require_examples(notebooks, folds, config.data)
    answers: Answers = {member: [None] * len(notebooks) for member in config.members}
    ranks = _start_ranks(config)

    for fold in folds_to_fit(config.data):
        fitted, held = split_fold(folds, fold, config.data)
        folder = fold_folder(run.path, fold)
        text = _text_model(config, table.counts, table.words.vocabulary, table.rows_of(fitted), folder)
        train_view = View.of(table, text, fitted)
        held_view = train_view.select(held)
        for member in config.members:
            if member == "joint":
                continue
            since = time.monotonic()
            if is_saved(member, folder):
                model = load_member(member, folder, config)
            else:
                model = fit_member(member, train_view, config, _logger(run, member, fold), folder)
                model.save(folder)
            (folder / f"{member}.state").unlink(missing_ok=True)  # also one that a killed process saved the model of
            _keep(answers[member], held, _place(model, held_view, ranks))
            run.log(member=member, fold=fold, seconds=round(time.monotonic() - since, 2))
            say(f"{member}: fold {fold}, {len(fitted)} notebooks fitted, {time.monotonic() - since:.1f} s")

    if "joint" in config.members:
        for fold in folds_to_fit(config.data):
            since = time.monotonic()
            fitted, held = split_fold(folds, fold, config.data)
            folder = fold_folder(run.path, fold)
            view = View.of(table, TextModel.load(folder / "text.safetensors"), fitted)
            # Each notebook's first answer is from models not fitted on it. Those of `fitted` did see the labels of
            # `held`, as usual in stacking; no model that answers for `held` has.
            first = [_first_answer(answers, config, i) for i in range(len(notebooks))]
            if is_saved("joint", folder):
                joint = Joint.load(folder)
            else:
                joint = fit_joint(view, [first[i] for i in fitted], config)
                joint.save(folder)
            _keep(answers["joint"], held, joint.place(view.select(held), [first[i] for i in held]))
            run.log(member="joint", fold=fold, seconds=round(time.monotonic() - since, 2))
            say(f"joint: fold {fold}, {len(fitted)} notebooks fitted, {time.monotonic() - since:.1f} s")

    scored = np.flatnonzero([answer is not None for answer in answers[config.members[0]]])
    weights, blended = _blend(config, notebooks, answers, folds, scored)
    write_json(run.file("weights.json"), dict(zip(config.members, weights.tolist(), strict=True)))
    _write_answers(run.file("oof.parquet"), notebooks, answers, folds, scored)
    first_folder = fold_folder(run.path, folds_to_fit(config.data)[0])
    summary: dict[str, Any] = {
        "metric": "tau",
        "score": None,
        "members": dict(zip(config.members, weights.tolist(), strict=True)),
        "parameters": sum(count_parameters(member, first_folder) for member in config.members),
        "folds": config.data.folds if config.data.fold == "all" else config.data.fold,
        "n": len(scored),
        **vars(counts),
        "selected_on_scored_fold": False,  # fixed numbers of rounds and epochs; weights as `_blend` says
    }
    if len(scored):
        orderings = decoded(notebooks, scored, blended)
        write_scored(run.path, [notebooks.ids[i] for i in scored], folds[scored], orderings)
        report = ordering_report(orderings)
        summary |= {"score": report["tau"], "interval": report["tau_interval"], "report": report}
        if len(config.members) > 1:
            summary["score_of_members"] = {
                member: report_placements(notebooks, scored, [_known(answers[member][i]) for i in scored])["tau"]
                for member in config.members
            }
    summary["seconds"] = round(time.monotonic() - started, 1)
    run.finish(summary)
    return summary


def summary_text(preset: str, summary: dict[str, Any]) -> str:
    """Render the summary of a run: held-out tau with its interval, members with weights, seconds."""
    if summary["score"] is None:
        return f"{preset}: fitted on every notebook in {summary['seconds']} s; no notebook was held out, so no score"
    low, high = summary["interval"]
    lines = [
        f"{preset}: tau {summary['score']:.4f} ({low:.4f} to {high:.4f}, 95 %) on {summary['n']} held-out notebooks, "
        f"{summary['seconds']} s"
    ]
    if len(summary["members"]) > 1:
        scores = summary["score_of_members"]
        rows = [(name, f"{weight:.3f}", f"{scores[name]:.4f}") for name, weight in summary["members"].items()]
        lines.append(render_table(["member", "weight", "tau alone"], rows))
    return "\n".join(lines)


def assign_folds(ancestors: list[str], config: DataConfig) -> np.ndarray:
    """Give each notebook a fold, families whole: int64 [notebooks]."""
    folds = group_folds(ancestors, config.folds, seed=config.seed)
    assert_groups_whole(folds, ancestors)
    return folds


def folds_to_fit(config: DataConfig) -> list[int | None]:
    """Which folds are left out in turn; None stands for leaving nothing out."""
    if config.fold == "all":
        return list(range(config.folds))
    return [None] if config.fold == "none" else [config.fold]


def split_fold(folds: np.ndarray, fold: int | None, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the notebooks to fit on (at most `limit`, drawn by the seed) and those held out."""
    fitted = np.flatnonzero(folds != fold) if fold is not None else np.arange(len(folds))
    if config.limit is not None and config.limit < len(fitted):
        fitted = np.sort(np.random.default_rng(config.seed).permutation(fitted)[: config.limit])
    held = np.flatnonzero(folds == fold) if fold is not None else np.zeros(0, np.int64)
    return fitted, held


def _require_examples(notebooks: Notebooks, folds: np.ndarray, config: DataConfig) -> None:
    """DataError unless in every fold some notebook to fit leaves anything to place: before hours of fitting others."""
    both = (notebooks.n_code > 0) & (notebooks.n_markdown > 0)
    for fold in folds_to_fit(config):
        fitted, _ = split_fold(folds, fold, config)
        if not both[fitted].any():
            raise DataError(
                f"fold {fold}: found {len(fitted)} notebooks to fit, none with both code and markdown cells\n"
                "  expected: one or more, to learn from\n  do: give more notebooks, or a higher data.limit"
            )


def fold_folder(run: Path, fold: int | None) -> Path:
    """Where the models of a fold lie."""
    return run / "models" / ("whole" if fold is None else f"fold{fold}")


def report_placements(notebooks: Notebooks, scored: np.ndarray, placements: list[Placement]) -> dict[str, Any]:
    """Judge placements of the scored notebooks by every metric of `kit_metrics.ordering`."""
    return ordering_report(decoded(notebooks, scored, placements))


def decoded(notebooks: Notebooks, scored: np.ndarray, placements: list[Placement]) -> Orderings:
    """Decode placements of the scored notebooks, and set the orders against the true ones.

    The cells go in json order, so a model that says nothing scores what the order as given scores.
    """
    assert notebooks.true_rank is not None
    ranks, types, gap_scores = [], [], []
    for index, placement in zip(scored, placements, strict=True):
        n_code = int(notebooks.n_code[index])
        rank = notebooks.true_rank[notebooks.offsets[index] : notebooks.offsets[index + 1]]
        order = decode_jointly(placement, n_code)
        ranks.append(rank[order])
        types.append(order >= n_code)
        if placement.gap_probability is not None:
            gap_scores.append(placement.gap_probability[np.argsort(rank[n_code:])])
    ancestors = notebooks.ancestors or notebooks.ids
    return Orderings(
        true_rank=np.concatenate(ranks),
        is_markdown=np.concatenate(types),
        offsets=np.concatenate([[0], np.cumsum([len(rank) for rank in ranks])]),
        groups=np.array([ancestors[i] for i in scored]),
        gap_scores=gap_scores if len(gap_scores) == len(ranks) else None,
    )


def _text_model(config: Config, counts: Any, vocabulary: Any, rows: np.ndarray, folder: Path) -> TextModel:
    """Fit the text model of a fold, or read back the one that a stopped run left."""
    path = folder / "text.safetensors"
    if path.exists():
        return TextModel.load(path)
    readers: set[Member] = {"position", "ranker", "mlp"}
    text = fit_text_model(
        counts,
        vocabulary,
        rows,
        use_idf=config.text.weighting == "tf-idf",
        sublinear=config.text.weighting == "tf-idf",
        components=config.text.components if config.reads_singular or readers & set(config.members) else 0,
        seed=config.seed,
    )
    text.save(path)
    return text


def _blend(
    config: Config, notebooks: Notebooks, answers: Answers, folds: np.ndarray, scored: np.ndarray
) -> tuple[np.ndarray, list[Placement]]:
    """Find the weights, and the blended answers for the scored notebooks.

    The weights to keep come from all scored notebooks. The answers that are reported use, for each fold, weights found
    on the other folds, so that no notebook helps to choose the weights of its own score. Of a single fold there are no
    others: its members count alike, as they do with `blend.weights` equal.
    """
    count = len(config.members)
    if count == 1:
        return np.ones(1), [_known(answers[config.members[0]][i]) for i in scored]
    present = np.unique(folds[scored])
    spread_out = {
        member: {
            int(i): spread(_known(answers[member][i]), int(notebooks.n_code[i]), config.blend.position_error)
            for i in scored
        }
        for member in config.members
    }

    def weights_on(chosen: np.ndarray) -> np.ndarray:
        true = [_true_gaps(notebooks, int(i)) for i in chosen]
        members = [[spread_out[member][int(i)] for i in chosen] for member in config.members]
        return fit_weights(members, true, config.blend.rounds)

    fitted = config.blend.weights == "fitted" and len(present) > 1
    weights = weights_on(scored) if fitted else np.full(count, 1 / count)
    blended: dict[int, Placement] = {}
    for fold in present:
        inside = scored[folds[scored] == fold]
        chosen = weights_on(scored[folds[scored] != fold]) if fitted else weights
        for i in inside.tolist():
            blended[i] = mix([spread_out[member][i] for member in config.members], chosen.tolist())
    return weights, [blended[int(i)] for i in scored]


def _true_gaps(notebooks: Notebooks, index: int) -> np.ndarray:
    assert notebooks.true_rank is not None
    rank = notebooks.true_rank[notebooks.offsets[index] : notebooks.offsets[index + 1]]
    return true_gaps(rank, int(notebooks.n_code[index]))


def _start_ranks(config: Config) -> tuple[int, int]:
    """Meet the other processes; returns the number of this one, and how many there are."""
    if not config.shares_work:
        return 0, 1
    from kit_train.fabric import launch  # PyTorch takes seconds to load: only where it is used

    fabric = launch(config.fabric)
    return fabric.global_rank, fabric.world_size


def _place(model: FittedMember, view: View, ranks: tuple[int, int]) -> list[Placement]:
    """Answer the notebooks of a view, each in one of the processes; all of them get all answers."""
    rank, size = ranks
    if size == 1 or len(view.indices) < size:
        return model.place(view)
    from torch import distributed  # as above

    parts: list[Any] = [None] * size
    distributed.all_gather_object(parts, model.place(view.select(view.indices[rank::size])))
    placements: list[Any] = [None] * len(view.indices)
    for other, part in enumerate(parts):
        placements[other::size] = part
    return placements


def _first_answer(answers: Answers, config: Config, index: int) -> Placement:
    """What `joint` reads of a notebook."""
    return average([_known(answers[member][index]) for member in config.joint_reads])


def _keep(answers: list[Placement | None], indices: np.ndarray, placements: list[Placement]) -> None:
    for index, placement in zip(indices, placements, strict=True):
        answers[index] = placement


def _known(placement: Placement | None) -> Placement:
    assert placement is not None, "asked for the answer of a notebook that was not held out"
    return placement


def _logger(run: RunFolder, member: Member, fold: int | None) -> Any:
    return lambda **values: run.log(member=member, fold=fold, **values)


def _write_answers(
    path: Path,
    notebooks: Notebooks,
    answers: Mapping[Member, list[Placement | None]],
    folds: np.ndarray,
    scored: np.ndarray,
) -> None:
    """Keep the out-of-fold answers: a row for every member and markdown cell."""
    columns: dict[str, list[Any]] = {"member": [], "id": [], "cell_id": [], "fold": [], "position": [], "gaps": []}
    for member, placements in answers.items():
        for index in scored.tolist():
            placement = _known(placements[index])
            cells = notebooks.cells(index)[int(notebooks.n_code[index]) :]
            n = len(cells)
            columns["member"] += [member] * n
            columns["id"] += [notebooks.ids[index]] * n
            columns["cell_id"] += cells
            columns["fold"] += [int(folds[index])] * n
            columns["position"] += placement.position.tolist()
            known = placement.gap_probability
            columns["gaps"] += [None] * n if known is None else list(known.astype(np.float32))
    types = [pa.string(), pa.string(), pa.string(), pa.int32(), pa.float32(), pa.list_(pa.float32())]
    schema = pa.schema(list(zip(columns, types, strict=True)))
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary, compression="zstd")
