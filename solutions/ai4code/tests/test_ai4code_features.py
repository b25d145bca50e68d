"""Features: widths, hand-made examples, and no leak from the json order of markdown cells, for every member."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ai4code.baseline import Rule, Similarity
from ai4code.boosting import Gaps, Joint, Position, Ranker
from ai4code.config import Config, MlpConfig, PairsConfig, TextConfig, TreesConfig
from ai4code.data import Notebooks
from ai4code.decode import Placement, decode
from ai4code.features import (
    CELL_FEATURES,
    GAP_FEATURES,
    View,
    describe,
    split_identifiers,
)
from ai4code.members import FittedMember, load_member
from ai4code.mlp import Mlp
from ai4code.relations import RELATION_FEATURES, relation_block
from ai4code.similarity import SIMILARITIES, similarity_maps
from ai4code.structure import (
    CODE_FEATURES,
    MARKDOWN_FEATURES,
    Heading,
    code_features,
    defined_names,
    heading,
    markdown_features,
    precedes,
)
from ai4code.text import TextModel, analyze, fit_text_model, unit_rows

COMPONENTS = 4
TREES = TreesConfig(rounds=20, leaves=7, smallest_leaf=5, learning_rate=0.2)
MEMBERS = ("as-given", "middle", "similarity", "position", "ranker", "mlp", "gaps", "joint")


def packed(*cells: tuple[list[str], list[str]], ranks: list[list[int]] | None = None) -> Notebooks:
    """Notebooks of (code texts, markdown texts), cells named by their place."""
    lengths = [len(code) + len(markdown) for code, markdown in cells]
    return Notebooks(
        ids=[f"n{i}" for i in range(len(cells))],
        ancestors=[f"a{i}" for i in range(len(cells))],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        n_code=np.array([len(code) for code, _ in cells], np.int64),
        cell_ids=pa.array([f"c{i}" for length in lengths for i in range(length)], pa.string()),
        sources=pa.array([text for code, markdown in cells for text in code + markdown], pa.large_string()),
        true_rank=None if ranks is None else np.concatenate([np.array(rank, np.int64) for rank in ranks]),
    )


def view_of(notebooks: Notebooks, text: TextModel | None = None) -> View:
    table = describe(notebooks, analyze)
    rows = np.arange(table.counts.shape[0])
    return View.of(table, text or fit_text_model(table.counts, table.words.vocabulary, rows))


@pytest.fixture(scope="module")
def view(notebooks: Notebooks) -> View:
    table = describe(notebooks, analyze)
    rows = np.arange(table.counts.shape[0])
    return View.of(table, fit_text_model(table.counts, table.words.vocabulary, rows, components=COMPONENTS))


@pytest.fixture(scope="module")
def fitted(view: View) -> dict[str, Any]:
    pairs = PairsConfig()
    gaps = Gaps.fit(view, TREES, pairs, 0)
    models: dict[str, FittedMember] = {
        "as-given": Rule.fit("as-given"),
        "middle": Rule.fit("middle"),
        "similarity": Similarity.fit(view, TextConfig(character_share=0.3)),
        "position": Position.fit(view, TREES, 0),
        "ranker": Ranker.fit(view, TREES, 0),
        "mlp": Mlp.fit(view, MlpConfig(width=16, blocks=1, epochs=1), 0),
        "gaps": gaps,
    }
    return models | {"joint": Joint.fit(view, gaps.place(view), TREES, pairs, 0)}


def answers(fitted: dict[str, Any], member: str, view: View) -> list[Placement]:
    if member == "joint":
        return list(fitted["joint"].place(view, fitted["gaps"].place(view)))
    return list(fitted[member].place(view))


# --- widths and hand-made examples -----------------------------------------------------------------------------------


def test_widths_are_those_of_the_names(view: View) -> None:
    assert view.cell_features.shape == (len(view.rows), len(CELL_FEATURES) + COMPONENTS)
    assert view.cell_features.dtype == np.float32
    for index in view.indices.tolist():
        shape = (int(view.table.notebooks.n_markdown[index]), view.n_code(index) + 1)
        block = view.gap_block(index)
        assert block.shape == (*shape, len(GAP_FEATURES))
        assert np.isfinite(block).all()
        relations = relation_block(view, index, np.full(shape, 1 / shape[1]))
        assert relations.shape == (*shape, len(RELATION_FEATURES))
        assert np.isfinite(relations).all()
    assert np.isfinite(view.cell_features).all()


@pytest.mark.parametrize("names", [CELL_FEATURES, GAP_FEATURES, RELATION_FEATURES, MARKDOWN_FEATURES, CODE_FEATURES])
def test_names_are_unique(names: tuple[str, ...]) -> None:
    assert len(set(names)) == len(names)


def test_single_cells_have_the_widths_of_their_names() -> None:
    assert markdown_features("").shape == (len(MARKDOWN_FEATURES),)
    assert code_features("").shape == (len(CODE_FEATURES),)
    found = markdown_features("## 2.3 Load `data`:\n\n- a\n- b\n\n# Next:").tolist()
    named = dict(zip(MARKDOWN_FEATURES, found, strict=True))
    assert (named["heading_level"], named["headings"], named["number_1"], named["number_2"]) == (2, 2, 2, 3)
    assert (named["number_depth"], named["backticks"], named["bullets"], named["lines"]) == (2, 2, 2, 6)
    assert (named["says_load"], named["says_plot"], named["ends_with_colon"], named["one_line"]) == (1, 0, 1, 0)


def plain_similarities(
    tfidf: np.ndarray, used: np.ndarray, defined: np.ndarray, start: int, n_code: int, stop: int
) -> np.ndarray:
    """The five similarities by whole dense tables and loops, as their definitions read."""
    cells, code = tfidf[start:stop], tfidf[start : start + n_code]
    holders = np.maximum((code != 0).sum(axis=0), 1)
    names, code_names = used[start:stop], used[start : start + n_code]
    names = names / np.maximum((code_names != 0).sum(axis=0), 1)
    names = unit_rows(sp.csr_matrix(names)).toarray()
    first_words, first_bound = np.zeros_like(code), np.zeros_like(code_names)
    for table, kept in ((code, first_words), (defined[start : start + n_code], first_bound)):
        for column in range(table.shape[1]):
            rows = np.flatnonzero(table[:, column])
            if len(rows):
                kept[rows[0], column] = table[rows[0], column]
    return np.stack(
        [
            cells @ code.T,
            cells @ first_words.T,
            (cells / holders) @ code.T,
            names @ names[:n_code].T,
            names @ first_bound.T,
        ]
    )


@pytest.mark.parametrize("dense_numbers", [20_000_000, 12, 1])
def test_similarities_equal_their_definitions(dense_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ai4code.similarity.DENSE_NUMBERS", dense_numbers)
    rng = np.random.default_rng(0)
    for n_code, n_markdown in ((1, 0), (1, 3), (4, 3), (7, 1), (6, 9)):
        start, stop = 2, 2 + n_code + n_markdown
        tfidf = rng.random((stop + 2, 15)) * (rng.random((stop + 2, 15)) < 0.4)
        tfidf = unit_rows(sp.csr_matrix(tfidf.astype(np.float32))).toarray()
        used = (rng.random((stop + 2, 12)) < 0.3).astype(np.float32)
        defined = used * (rng.random(used.shape) < 0.5)
        expected = plain_similarities(tfidf, used, defined, start, n_code, stop)
        tables = [sp.csr_matrix(table) for table in (tfidf, used, defined)]
        for first in (0, n_code):
            found = similarity_maps(*tables, start, n_code, stop, first)
            assert found == pytest.approx(expected[:, first:], abs=2e-5)


def test_a_bound_name_that_the_text_does_not_hold_counts_nothing() -> None:
    nothing = sp.csr_matrix(np.zeros((2, 3), np.float32))
    bound = sp.csr_matrix(np.array([[0, 1, 0], [0, 0, 0]], np.float32))
    assert similarity_maps(nothing, nothing, bound, 0, 1, 2).tolist() == [[[0.0], [0.0]]] * 5


def test_similarities_of_a_hand_made_notebook() -> None:
    notebook = packed((["alpha = 1", "alpha + beta", "gamma = alpha"], ["the alpha", "beta", "gamma", "nothing else"]))
    view = view_of(notebook)
    found = similarity_maps(view.tfidf, view.table.used, view.table.defined, 0, 3, 7, first=3)
    maps = dict(zip(SIMILARITIES, found, strict=True))
    assert (maps["words"][0] > 0).all()  # every code cell says alpha,
    assert np.flatnonzero(maps["new_words"][0]).tolist() == [0]  # the first one first,
    assert np.flatnonzero(maps["new_names"][0]).tolist() == [0]  # and there it is bound
    assert np.flatnonzero(maps["new_names"][1]).tolist() == []  # beta is used, never bound
    assert np.flatnonzero(maps["names"][1]).tolist() == [1]
    assert np.flatnonzero(maps["new_names"][2]).tolist() == [2]
    assert maps["rare_words"][0] == pytest.approx(maps["words"][0] / 3, abs=1e-5)  # three code cells hold it
    assert all((maps[kind][3] == 0).all() for kind in SIMILARITIES)


def test_true_gaps_by_hand() -> None:
    # m0 c0 c1 m1 c2 m2, with the markdown shown as m2, m0, m1; then a notebook without code.
    notebooks = packed((["a", "b", "c"], ["m2", "m0", "m1"]), ([], ["x", "y"]), ranks=[[1, 2, 4, 5, 0, 3], [1, 0]])
    assert view_of(notebooks).true_gap.tolist() == [0, 1, 2, 3, 0, 2, 0, 0]
    assert view_of(notebooks).select(np.array([1])).true_gap.tolist() == [0, 0]


def test_true_gaps_need_true_orders() -> None:
    with pytest.raises(ValueError, match="no true order"):
        _ = view_of(packed((["a"], ["b"]))).true_gap


def test_identifiers_keep_case_and_underscores() -> None:
    assert split_identifiers(pa.array(["a_B.c(Dé)"], pa.large_string())).to_pylist() == [["a_B", "c", "D"]]


# --- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "level", "number"),
    [
        ("# Title", 1, ()),
        ("\n\n### 2.3 Model\ntext", 3, (2, 3)),
        ("###### deep", 6, ()),
        ("## Step 4: go", 2, (4,)),
        ("**1.** bold", 0, (1,)),
        ("## **2** bold", 2, (2,)),
        ("1.2.3.4 too deep", 0, (1, 2, 3)),
        ("## 2019 was a year", 2, ()),
        ("text with 3 in it", 0, ()),
        ("#no blank", 1, ()),
        ("", 0, ()),
        ("   \n ", 0, ()),
    ],
)
def test_headings(text: str, level: int, number: tuple[int, ...]) -> None:
    assert heading(text) == Heading(level, number)


def test_which_numbers_must_stand_in_order() -> None:
    assert precedes(Heading(1, (1,)), Heading(2, (1, 1)))
    assert precedes(Heading(1, (2,)), Heading(1, (10,)))
    assert not precedes(Heading(1, (2,)), Heading(1, (2,)))
    assert not precedes(Heading(1, (1,)), Heading(0, (2,)))  # a list beside a heading
    assert not precedes(Heading(1, ()), Heading(1, (2,)))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a = b = 1\nc, (d, *e) = f()", {"a", "b", "c", "d", "e"}),
        ("def f(x):\n    y = x\nclass K: pass\nasync def g(): pass", {"f", "y", "K", "g"}),
        ("import numpy as np, os.path\nfrom a.b import c as d, e", {"np", "os", "d", "e"}),
        ("for i in r:\n    pass\nwith o() as h:\n    k += 1", {"i", "h", "k"}),
        ("r = [q for q in z]\nlambda u: u\nx.y = d[k] = 2", {"r"}),  # q and u end with their expression
        ("try:\n    a = 1\nexcept E:\n    b = 2\nelse:\n    c: int = 3\nfinally:\n    d = 4", {"a", "b", "c", "d"}),
        ("while p:\n    if q:\n        t = 1\n    else:\n        u = 2", {"t", "u"}),
        ("%matplotlib inline\n!pip install x\nv = 1", {"v"}),
        ("print 'python 2'\nold, young = 1, 2\ndef f(x): pass\nimport pandas as pd", {"old", "young", "f", "pd"}),
        ("x = = 1\nif y == 2: pass", {"x"}),
        ("x = 1\0", {"x"}),
        ("'\\d'\nx = 1", {"x"}),  # a bad escape, about which the parser would warn
        ("", set()),
        ("(" * 5000, set()),
    ],
)
def test_names_that_a_cell_binds(source: str, names: set[str]) -> None:
    assert defined_names(source) == names


# --- what no model may know ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", MEMBERS)
def test_shuffled_markdown_gets_the_same_answers_shuffled(member: str, view: View, fitted: dict[str, Any]) -> None:
    notebooks = view.table.notebooks
    rng = np.random.default_rng(0)
    new_places = []
    for start, stop, n_code in zip(notebooks.offsets[:-1], notebooks.offsets[1:], notebooks.n_code, strict=True):
        markdown = rng.permutation(np.arange(start + n_code, stop))
        new_places.append(np.concatenate([np.arange(start, start + n_code), markdown]))
    new_place = np.concatenate(new_places)
    shuffled = Notebooks(
        notebooks.ids,
        None,
        notebooks.offsets,
        notebooks.n_code,
        notebooks.cell_ids.take(pa.array(new_place)),
        notebooks.sources.take(pa.array(new_place)),
        None,
    )
    before, after = answers(fitted, member, view), answers(fitted, member, view_of(shuffled, view.text))
    for index, (first, second) in enumerate(zip(before, after, strict=True)):
        start, n_code = int(notebooks.offsets[index]), int(notebooks.n_code[index])
        moved = new_place[start + n_code : notebooks.offsets[index + 1]] - start - n_code
        texts = notebooks.texts(index)[n_code:]
        twins = np.array([texts.count(text) > 1 for text in texts])[moved]  # equal cells may be told apart by place
        expected, found = first.position[moved], second.position
        if member == "ranker":  # ranks of equal scores fall back on the order given
            expected, found = np.rint(expected), np.rint(found)
        np.testing.assert_allclose(found[~twins], expected[~twins], atol=1e-4)
        if first.gap_probability is not None:
            assert second.gap_probability is not None
            np.testing.assert_allclose(second.gap_probability[~twins], first.gap_probability[moved][~twins], atol=1e-4)


@pytest.mark.parametrize("member", MEMBERS)
def test_odd_notebooks_are_answered(member: str, view: View, fitted: dict[str, Any]) -> None:
    cases = [
        (["a = 1", "b"], []),
        ([], ["# one", "two"]),
        (["", " \n"], ["", "\t"]),
        (["x"], ["y"]),
        ([""], [""]),
        (["same"] * 3, ["same"] * 3),
        ([], []),
    ]
    for notebooks in (packed(*cases), packed(cases[2]), packed(cases[0]), packed(cases[1]), packed(cases[4])):
        placements = answers(fitted, member, view_of(notebooks, view.text))
        assert len(placements) == len(notebooks)
        for index, placement in enumerate(placements):
            n_code = int(notebooks.n_code[index])
            assert placement.position.shape == (notebooks.n_markdown[index],)
            assert ((placement.position >= -0.5) & (placement.position <= n_code + 0.5)).all()
            assert sorted(decode(placement, n_code)) == list(range(notebooks.lengths[index]))


@pytest.mark.parametrize("member", [name for name in MEMBERS if name not in ("as-given", "middle", "joint")])
def test_saved_members_answer_as_before(member: str, view: View, fitted: dict[str, Any], tmp_path: Path) -> None:
    config = Config(text=TextConfig(character_share=0.3))
    fitted[member].save(tmp_path)
    again = load_member(member, tmp_path, config)  # type: ignore[arg-type]  # a parameter is a plain string
    for first, second in zip(answers(fitted, member, view), again.place(view), strict=True):
        assert first.position.tolist() == second.position.tolist()


def test_models_are_fitted_with_odd_notebooks_among_the_others(notebooks: Notebooks) -> None:
    odd = packed((["a = 1"], []), ([], ["# one"]), (["", "b"], ["", "c"]), ranks=[[0], [0], [1, 2, 0, 3]])
    some = notebooks.select(np.arange(6))
    assert some.true_rank is not None
    assert odd.true_rank is not None
    joined = Notebooks(
        [*some.ids, *odd.ids],
        None,
        np.concatenate([some.offsets, some.offsets[-1] + odd.offsets[1:]]),
        np.concatenate([some.n_code, odd.n_code]),
        pa.concat_arrays([some.cell_ids, odd.cell_ids]),
        pa.concat_arrays([some.sources, odd.sources]),
        np.concatenate([some.true_rank, odd.true_rank]),
    )
    view = view_of(joined)
    gaps = Gaps.fit(view, TREES, PairsConfig(), 0)
    first = gaps.place(view)
    models = (gaps, Position.fit(view, TREES, 0), Ranker.fit(view, TREES, 0))
    for placements in [model.place(view) for model in models]:
        assert len(placements) == len(joined)
    joint = Joint.fit(view, first, TREES, PairsConfig(), 0)
    for at_once, apart in zip(joint.place_after(view, gaps), joint.place(view, first), strict=True):
        assert at_once.gap_probability is not None
        assert apart.gap_probability is not None
        assert np.array_equal(at_once.gap_probability, apart.gap_probability)
    assert len(Mlp.fit(view, MlpConfig(width=8, blocks=1, epochs=1), 0).place(view)) == len(joined)


def test_a_network_of_another_version_is_refused(fitted: dict[str, Any], tmp_path: Path) -> None:
    fitted["mlp"].save(tmp_path)
    file = tmp_path / "mlp.safetensors"
    with safe_open(file, framework="numpy") as stored:
        header = json.loads(stored.metadata()["ai4code"])
    save_file(load_file(file), file, {"ai4code": json.dumps(header | {"format_version": "2"})})
    with pytest.raises(ValueError, match="format_version '2', expected '1'"):
        load_member("mlp", tmp_path, Config())
