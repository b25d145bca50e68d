"""Words, n-grams, counts, TF-IDF: each beside a slow version or scikit-learn's."""

import unicodedata
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from ai4code.data import Notebooks
from ai4code.text import (
    TextModel,
    Words,
    analyze,
    character_counts,
    count_matrix,
    fit_text_model,
    split_words,
    unit_rows,
    word_ngrams,
)

UNHURRIED = settings(deadline=None)
# Letters of each case and none, a caseless script, digits of several kinds, blanks of several kinds, marks.
ALPHABET = "abzABZéÉñÑßωΩдДžŽ中日a٣²½019__..-(\n\t \u00a0\u3000\u0301😀'"
TEXTS = [
    "",
    "   \n",
    "x = read_csv('a.csv')  # Read the CSV",
    "plotModelHistory(model, model_history)",
    "Größe der ÄHNLICHEN Wörter größe",
    "中文 words 中文",
    "!!!",
    "one one one two two three one two",
]


def slow_words(text: str) -> list[str]:
    """Runs of letters and digits, cut between a small letter or digit and a capital, lower-cased one by one."""
    words = []
    for is_word, run in groupby(text, key=lambda c: unicodedata.category(c)[0] in "LN"):
        if not is_word:
            continue
        word = ""
        for c in run:
            ends_small = word and (unicodedata.category(word[-1]) == "Ll" or unicodedata.category(word[-1])[0] == "N")
            if ends_small and unicodedata.category(c) == "Lu":
                words.append(word)
                word = ""
            word += c
        words.append(word)
    return ["".join(c.lower() for c in word) for word in words]


def slow_ngrams(text: str, longest: int) -> list[str]:
    words = slow_words(text)
    return [" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)]


def large(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def words_of(words: Words) -> list[list[str]]:
    names = words.vocabulary.to_pylist()
    return [
        [names[code] for code in words.codes[a:b]] for a, b in zip(words.offsets[:-1], words.offsets[1:], strict=True)
    ]


def same_matrix(ours: sp.csr_matrix, names: pa.Array, theirs: sp.csr_matrix, their_names: list[str]) -> None:
    """Equal after the columns are sorted by name."""
    assert sorted(names.to_pylist()) == sorted(their_names)
    mine, other = ours[:, np.argsort(np.array(names.to_pylist()))], theirs[:, np.argsort(np.array(their_names))]
    np.testing.assert_allclose(mine.toarray(), other.toarray(), rtol=1e-5, atol=1e-6)


# --- splitting -------------------------------------------------------------------------------------------------------


@UNHURRIED
@example(["parseHTTP_v2 (x)", "aB1C", "é1É", ""])
@given(st.lists(st.text(ALPHABET, max_size=25), max_size=6))
def test_words_are_split_as_the_slow_reference_does(texts: list[str]) -> None:
    assert words_of(analyze(large(texts))) == [slow_words(text) for text in texts]


def test_identifiers_are_split_at_underscores_and_humps() -> None:
    [found] = split_words(large(["parseHTTP_v2 (x)"])).to_pylist()
    assert found == ["parse", "http", "v2", "x"]


def test_splitting_a_sample(notebooks: Notebooks) -> None:
    assert words_of(analyze(notebooks.sources)) == [slow_words(text) for text in notebooks.sources.to_pylist()]


def test_chunks_share_one_vocabulary(notebooks: Notebooks, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = analyze(notebooks.sources)
    monkeypatch.setattr("ai4code.text.CHUNK_CELLS", 7)
    chunked = analyze(notebooks.sources)
    assert words_of(chunked) == words_of(whole)
    assert len(set(chunked.vocabulary.to_pylist())) == len(chunked.vocabulary)


def test_no_texts_and_texts_without_words() -> None:
    nothing = analyze(large([]))
    assert (len(nothing.codes), nothing.offsets.tolist(), len(nothing.vocabulary)) == (0, [0], 0)
    assert count_matrix(nothing).shape == (0, 0)
    blank = word_ngrams(analyze(large(["", " ", "?!"])), 3)
    assert blank.counts.tolist() == [0, 0, 0]
    assert count_matrix(blank).shape == (3, 0)


# --- n-grams and counts ----------------------------------------------------------------------------------------------


@UNHURRIED
@given(st.lists(st.text("ab ", max_size=12), max_size=5), st.integers(1, 4))
def test_ngrams_never_cross_cells(texts: list[str], longest: int) -> None:
    made = word_ngrams(analyze(large(texts)), longest)
    assert words_of(made) == [slow_ngrams(text, longest) for text in texts]


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_counts_are_those_of_scikit_learn(notebooks: Notebooks, longest: int) -> None:
    texts = notebooks.sources.to_pylist() + TEXTS
    vectorizer = CountVectorizer(analyzer=lambda text: slow_ngrams(text, longest))
    theirs = vectorizer.fit_transform(texts)
    made = word_ngrams(analyze(large(texts)), longest)
    same_matrix(count_matrix(made), made.vocabulary, theirs, vectorizer.get_feature_names_out().tolist())


def test_character_runs_are_those_of_scikit_learn() -> None:
    vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(3, 5), lowercase=False)
    theirs = vectorizer.fit_transform([" ".join(slow_words(text)) for text in TEXTS])
    words = analyze(large(TEXTS))
    counts, runs = character_counts(words, count_matrix(words))
    same_matrix(counts, runs, theirs, vectorizer.get_feature_names_out().tolist())


def test_unit_rows_leave_empty_rows_empty() -> None:
    rows = unit_rows(sp.csr_matrix(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)))
    np.testing.assert_allclose(rows.toarray(), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


# --- the fitted model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sublinear", [True, False])
def test_rows_are_those_of_scikit_learn_fitted_on_the_training_texts(notebooks: Notebooks, sublinear: bool) -> None:
    texts = notebooks.sources.to_pylist() + TEXTS
    train = np.arange(0, len(texts), 2)
    words = analyze(large(texts))
    counts = count_matrix(words)
    model = fit_text_model(counts, words.vocabulary, train, sublinear=sublinear)
    # With the whole vocabulary given, a word of no training text has document frequency 0 there too.
    names = words.vocabulary.to_pylist()
    vectorizer = TfidfVectorizer(analyzer=slow_words, vocabulary=names, sublinear_tf=sublinear, smooth_idf=True)
    vectorizer.fit([texts[i] for i in train])
    same_matrix(model.transform(counts, words.vocabulary), words.vocabulary, vectorizer.transform(texts), names)
    assert set(model.words.to_pylist()) == {word for i in train for word in slow_words(texts[i])}


def test_a_word_that_training_never_saw_weighs_as_one_of_no_document() -> None:
    words = analyze(large(["a b", "a c", "a z"]))
    model = fit_text_model(count_matrix(words), words.vocabulary, np.array([0, 1]), sublinear=False)
    assert model.unseen_idf == pytest.approx(np.log(3) + 1)
    row = model.transform(count_matrix(words), words.vocabulary).toarray()[2]
    a, z = (words.vocabulary.to_pylist().index(name) for name in "az")
    assert row[z] / row[a] == pytest.approx((np.log(3) + 1) / (np.log(3 / 3) + 1))
    assert model.lookup(pa.array(["z", "a"])).tolist() == [-1, 0]


def test_plain_counts_have_no_weights() -> None:
    words = analyze(large(["a a b", "b z"]))
    model = fit_text_model(count_matrix(words), words.vocabulary, np.array([0]), use_idf=False, sublinear=False)
    rows = model.transform(count_matrix(words), words.vocabulary).toarray()
    np.testing.assert_allclose(rows, [[2 / 5**0.5, 1 / 5**0.5, 0], [0, 0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_fitting_never_looks_at_held_out_rows(notebooks: Notebooks) -> None:
    texts = notebooks.sources.to_pylist()
    train = np.arange(len(texts) // 2)
    models = []
    for held_out in (texts[len(train) :], ["other words altogether", *TEXTS]):
        words = analyze(large([*texts[: len(train)], *held_out]))
        models.append(fit_text_model(count_matrix(words), words.vocabulary, train, components=4))
    first, second = models
    assert first.words.equals(second.words)
    assert first.idf.tolist() == second.idf.tolist()
    assert first.components.tolist() == second.components.tolist()
    assert first.unseen_idf == second.unseen_idf


def test_components_are_the_leading_singular_vectors(notebooks: Notebooks) -> None:
    words = analyze(notebooks.sources)
    counts = count_matrix(words)
    model = fit_text_model(counts, words.vocabulary, np.arange(counts.shape[0]), components=3)
    tfidf = model.transform(counts, words.vocabulary)
    coordinates = model.project(tfidf, words.vocabulary)
    exact = np.linalg.svd(tfidf.toarray(), compute_uv=False)[:3]
    assert coordinates.shape == (counts.shape[0], 3)
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=0), exact, rtol=0.02)


def test_unknown_words_count_nothing_in_the_projection() -> None:
    words = analyze(large(["a b c", "a b d", "a c d", "x y"]))
    model = fit_text_model(count_matrix(words), words.vocabulary, np.arange(3), components=2)
    tfidf = model.transform(count_matrix(words), words.vocabulary)
    assert model.project(tfidf, words.vocabulary)[3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("components", [0, 2])
def test_a_model_of_cells_without_words_still_answers(components: int) -> None:
    words = analyze(pa.array(["", "!!!", "one two"]))
    counts = count_matrix(words)
    model = fit_text_model(counts, words.vocabulary, np.arange(2), components=components)
    tfidf = model.transform(counts, words.vocabulary)
    assert np.asarray(tfidf.sum(axis=1)).ravel() == pytest.approx([0.0, 0.0, 2**0.5])
    assert model.project(tfidf, words.vocabulary).shape == (3, 0)


@pytest.mark.parametrize("components", [0, 3])
def test_a_saved_model_comes_back_equal(tmp_path: Path, components: int) -> None:
    words = analyze(large(TEXTS))
    model = fit_text_model(count_matrix(words), words.vocabulary, np.arange(len(TEXTS)), components=components)
    path = tmp_path / "text.safetensors"
    model.save(path)
    again = TextModel.load(path)
    assert again.words.equals(model.words)
    assert again.idf.tolist() == model.idf.tolist()
    assert again.components.tolist() == model.components.tolist()
    assert (again.unseen_idf, again.sublinear) == (model.unseen_idf, model.sublinear)


def test_a_model_of_no_words_comes_back(tmp_path: Path) -> None:
    TextModel.empty().save(tmp_path / "text.safetensors")
    assert len(TextModel.load(tmp_path / "text.safetensors").words) == 0
