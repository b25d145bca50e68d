"""Own tokenizers on real text (source and docstrings of the standard library), against slow and obvious references."""

import argparse
import csv
import dataclasses
import inspect
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from ai4code import tokenizer as module
from ai4code.data import Notebooks, load
from ai4code.tokenizer import (
    SPECIAL_TOKENS,
    Kind,
    Training,
    load_reference,
    load_tokenizer,
    report_command,
    report_table,
    save_tokenizer,
    token_analyzer,
    tokenizer_report,
    train_command,
    train_tokenizer,
)
from kit_core.errors import ConfigError, DataError
from kit_splits.folds import group_folds

KINDS: tuple[Kind, ...] = get_args(Kind)
UNHURRIED = settings(deadline=None)  # training fixtures and busy machines make the first examples slow
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
TRAINING = Training(kind="bpe", text="joint", vocab_size=600, data="x", folds=5, fold=None, seed=0)


def pack(notebooks: Sequence[tuple[list[str], list[str]]]) -> Notebooks:
    """Notebooks from lists of code and markdown texts; two neighbours share an ancestor."""
    lengths = [len(code) + len(markdown) for code, markdown in notebooks]
    return Notebooks(
        ids=[f"{i:014x}" for i in range(len(notebooks))],
        ancestors=[f"{i // 2:08x}" for i in range(len(notebooks))],
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        n_code=np.array([len(code) for code, _ in notebooks], dtype=np.int64),
        cell_ids=pa.array([f"{i:08x}" for length in lengths for i in range(length)], type=pa.string()),
        sources=pa.array([text for code, markdown in notebooks for text in code + markdown], type=pa.large_string()),
        true_rank=None,
    )


def library_cells() -> list[tuple[list[str], list[str]]]:
    """A notebook for each library module: function bodies as code, their docstrings as markdown."""
    notebooks = []
    for source in (argparse, textwrap, csv, dataclasses, shutil, json, pickle, subprocess):
        functions = [f for _, f in inspect.getmembers(source, inspect.isfunction) if f.__module__ == source.__name__]
        code = [inspect.getsource(function)[:1500] for function in functions]
        markdown = [f"## {f.__name__}\n{inspect.getdoc(f) or ''}" for f in functions] + [source.__doc__ or ""]
        notebooks.append((code, markdown))
    return notebooks


@pytest.fixture(scope="module")
def notebooks() -> Notebooks:
    return pack(library_cells())


@pytest.fixture(scope="module")
def trained(notebooks: Notebooks) -> dict[Kind, Tokenizer]:
    everything = range(len(notebooks))
    return {kind: train_tokenizer(notebooks, everything, kind=kind, vocab_size=600) for kind in KINDS}


# --- special tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_the_first_ids(trained: dict[Kind, Tokenizer], kind: Kind) -> None:
    assert [trained[kind].token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    assert trained[kind].get_vocab_size() == 600


@UNHURRIED
@given(st.lists(st.one_of(st.sampled_from([*SPECIAL_TOKENS, " ", "\n", "[", "]", "[sep]", "##"]), TEXTS)).map("".join))
@example("[SEP]")
@example("[CLS] a [SEP][PAD]b[MASK]\n[CODE][MD] [UNK] ▁[SEP]▁")
def test_no_text_becomes_a_special_token(trained: dict[Kind, Tokenizer], text: str) -> None:
    for kind, tokenizer in trained.items():
        for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), Tokenizer.from_str(tokenizer.to_str())):
            special = {i for i in copy.encode(text).ids if i < len(SPECIAL_TOKENS)}
            assert special <= ({1} if kind == "wordpiece" else set())  # WordPiece: [UNK], for characters it never saw


# --- encoding and decoding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@UNHURRIED
@given(text=TEXTS)
@example(text="  indent\n\n\ttabs\r\n 日本語 😀 e\u0301 \x00 [SEP] ▁ Ġ")
def test_byte_level_kinds_give_every_text_back(trained: dict[Kind, Tokenizer], kind: Kind, text: str) -> None:
    assert trained[kind].decode(trained[kind].encode(text).ids, skip_special_tokens=False) == text


def bert_words(text: str) -> list[str]:
    """BERT's cleaning, lower-casing, accent stripping and splitting at punctuation, for text without Chinese."""
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    plain = "".join(c for c in unicodedata.normalize("NFD", kept) if unicodedata.category(c) != "Mn").lower()
    return re.findall(r"[!-/:-@\[-`{-~]|[^\s!-/:-@\[-`{-~]+", plain)


def test_wordpiece_is_the_longest_match_of_bert_words(trained: dict[Kind, Tokenizer], notebooks: Notebooks) -> None:
    tokenizer = trained["wordpiece"]
    vocabulary = tokenizer.get_vocab()
    for text in [*notebooks.texts(0), "Élan naïve_FOO", "x = [SEP]", "тест ##x"]:
        expected = []
        for word in bert_words(text):
            pieces: list[str] = []
            rest = word
            while rest:
                prefix = "##" if pieces else ""
                lengths = (n for n in range(len(rest), 0, -1) if prefix + rest[:n] in vocabulary)
                if (longest := next(lengths, 0)) == 0:
                    pieces = ["[UNK]"]
                    break
                pieces.append(prefix + rest[:longest])
                rest = rest[longest:]
            expected += pieces
        assert tokenizer.encode(text).tokens == expected


def test_unigram_takes_the_most_likely_pieces(trained: dict[Kind, Tokenizer]) -> None:
    model = json.loads(trained["unigram"].to_str())["model"]
    scores = {piece: score for piece, score in model["vocab"] if piece not in SPECIAL_TOKENS}
    for word in ("return", "parser", "ĠdefaultX", "writerow"):
        likelihoods = []
        for cuts in product([False, True], repeat=len(word) - 1):
            pieces, start = [], 0
            for end in [i + 1 for i, cut in enumerate(cuts) if cut] + [len(word)]:
                pieces.append(word[start:end])
                start = end
            likelihoods.append(sum(scores.get(piece, -math.inf) for piece in pieces))
        found = trained["unigram"].encode(word.replace("Ġ", " ")).tokens
        assert "".join(found) == word
        assert sum(scores[piece] for piece in found) == pytest.approx(max(likelihoods))


def test_the_worth_of_a_unigram_piece_is_what_the_next_best_pieces_cost() -> None:
    pieces = ["a", "b", "ab", "ba", "aba", "abab"]
    scores = np.array([-2.0, -3.0, -3.5, -4.0, -4.5, -8.0])
    losses = module._losses(pieces, scores, np.array([9, 9, 4, 0, 2, 10]))
    assert losses[:2].tolist() == [np.inf, np.inf]  # single bytes stay
    assert losses[2:] == pytest.approx(
        [
            4 * (-3.5 - (-2.0 - 3.0)),  # a b
            0,
            2 * (-4.5 - (-3.5 - 2.0)),  # ab a, which beats a ba
            10 * (-8.0 - (-3.5 - 3.5)),  # ab ab: the text gains where the piece goes
        ]
    )


# --- training --------------------------------------------------------------------------------------------------------


def test_training_is_the_same_in_another_process(trained: dict[Kind, Tokenizer], tmp_path: Path) -> None:
    (tmp_path / "cells.json").write_text(json.dumps(library_cells()), encoding="utf-8")
    program = f"""
import json, runpy, sys
tests = runpy.run_path({str(Path(__file__))!r})
notebooks = tests["pack"](json.load(open("cells.json", encoding="utf-8")))
train = tests["train_tokenizer"]
print(json.dumps([train(notebooks, range(8), kind=k, vocab_size=600).to_str() for k in tests["KINDS"]]))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert json.loads(told.stdout) == [trained[kind].to_str() for kind in KINDS]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_as_good_as_the_trainer_of_the_library(
    trained: dict[Kind, Tokenizer], notebooks: Notebooks, kind: Kind
) -> None:
    texts = notebooks.sources.to_pylist()
    if kind == "wordpiece":
        peer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        peer.normalizer, peer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    else:
        peer = Tokenizer(models.Unigram())
        peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.UnigramTrainer(
            vocab_size=600,
            special_tokens=list(SPECIAL_TOKENS),
            unk_token="[UNK]",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    peer.train_from_iterator(texts, trainer)
    assert len(token_analyzer(trained[kind])(texts)[0]) <= 1.01 * len(token_analyzer(peer)(texts)[0])


@pytest.mark.parametrize("text", ["code", "markdown"])
def test_only_cells_of_the_type_and_notebooks_asked_count(notebooks: Notebooks, text: Any) -> None:
    cells = library_cells()
    changed = [(code, ["other words"]) if text == "code" else (["other = 1"], markdown) for code, markdown in cells]
    changed[0] = (["nothing"], ["alike"])
    few = [train_tokenizer(n, range(1, 8), kind="bpe", vocab_size=400, text=text) for n in (notebooks, pack(changed))]
    assert few[0].to_str() == few[1].to_str()
    joint = train_tokenizer(notebooks, range(1, 8), kind="bpe", vocab_size=400)
    assert joint.to_str() != few[0].to_str()


def test_of_too_much_text_whole_notebooks_are_drawn(notebooks: Notebooks) -> None:
    sizes = [sum(map(len, notebooks.texts(i))) for i in range(len(notebooks))]
    limit = sum(sizes) // 2
    chosen = []
    for seed in (0, 0, 1, 2):
        cells = module._cells_of(notebooks, range(len(notebooks)), "joint", limit, seed)
        used = set(np.searchsorted(notebooks.offsets, cells, side="right") - 1)
        assert 0 < sum(sizes[i] for i in used) <= limit
        assert len(cells) == sum(notebooks.lengths[i] for i in used)
        chosen.append(used)
    assert chosen[0] == chosen[1]
    assert len(set(map(frozenset, chosen))) > 1


def test_a_vocabulary_without_room_is_refused(notebooks: Notebooks) -> None:
    for kind in KINDS:
        with pytest.raises(ConfigError, match=rf"too small for {kind}.*or more"):
            train_tokenizer(notebooks, [0], kind=kind, vocab_size=20)


def test_nothing_to_train_on_is_told() -> None:
    for kind in KINDS:
        with pytest.raises(DataError, match="no markdown cell with text in 1 notebooks"):
            train_tokenizer(pack([(["x = 1"], [])]), [0], kind=kind, vocab_size=400, text="markdown")
        with pytest.raises(DataError, match="no cell with text in 2 notebooks"):
            train_tokenizer(pack([(["", " \n"], []), (["x"], []), ([], [""])]), [0, 2], kind=kind, vocab_size=400)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_cells_and_little_text_are_enough(kind: Kind) -> None:
    tokenizer = train_tokenizer(pack([(["", "import os"], ["", " \n"])]), [0], kind=kind, vocab_size=5000)
    assert 7 < tokenizer.get_vocab_size() < 400
    assert tokenizer.encode("").ids == []


# --- analyser --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_analyzer_packs_what_encode_gives(
    trained: dict[Kind, Tokenizer], notebooks: Notebooks, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CELLS_A_BATCH", 3)
    texts = ["", *notebooks.texts(1), ""]
    ids, offsets = token_analyzer(trained[kind])(texts)
    assert (ids.dtype, offsets.dtype, len(offsets)) == (np.int32, np.int64, len(texts) + 1)
    for i, text in enumerate(texts):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == trained[kind].encode(text).ids
    nothing = token_analyzer(trained[kind])([])
    assert (nothing[0].tolist(), nothing[1].tolist()) == ([], [0])


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back_here_and_in_the_library(
    trained: dict[Kind, Tokenizer], kind: Kind, tmp_path: Path
) -> None:
    path, training = tmp_path / "t.json", dataclasses.replace(TRAINING, kind=kind, fold=3)
    digest = save_tokenizer(path, trained[kind], training)
    assert save_tokenizer(tmp_path / "again.json", trained[kind], training) == digest
    again, stored = load_tokenizer(path)
    assert stored == training
    assert again.to_str() == trained[kind].to_str()
    assert Tokenizer.from_file(str(path)).encode("def f(x): [SEP]").ids == again.encode("def f(x): [SEP]").ids
    assert digest in path.read_text(encoding="utf-8")


def test_a_changed_tokenizer_is_refused(trained: dict[Kind, Tokenizer], tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    save_tokenizer(path, trained["bpe"], TRAINING)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["merges"].pop()
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)t\.json.*SHA-256.*expected.*do:"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no JSON"),
        (b'{"model": ', "no JSON"),
        (b"\xff\xfe", "not UTF-8, at 0"),
        (b"[]", "no object"),
        (b"{}", 'no "ai4code" under "model"'),
        (b'{"model": []}', 'no "ai4code"'),
        (b'{"model": {"ai4code": {}}}', "SHA-256"),
    ],
)
def test_what_is_no_tokenizer_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)t\.json.*{words}.*expected.*do:"):
        load_tokenizer(path)


def test_no_tokenizer_at_all_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(DataError, match="is a directory"):
        load_tokenizer(tmp_path)


def test_limits_of_a_reference_are_switched_off(trained: dict[Kind, Tokenizer], tmp_path: Path) -> None:
    published = Tokenizer.from_str(trained["wordpiece"].to_str())
    published.enable_truncation(8)
    published.enable_padding(length=8)
    published.add_special_tokens(["[SEP]"])
    published.save(str(tmp_path / "tokenizer.json"))
    reference = load_reference(tmp_path / "tokenizer.json")
    for text in ("x", "word " * 30, "a [SEP] b"):
        assert reference.encode(text).ids == trained["wordpiece"].encode(text).ids


def test_a_bert_vocabulary_is_read_with_its_case(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\nhello\n##s\n", encoding="utf-8")
    assert load_reference(path).encode("Hellos héllo X").tokens == ["hello", "##s", "hello", "[UNK]"]
    path.write_text("[PAD]\n[UNK]\nHello\nhello\n##s\n", encoding="utf-8")
    assert load_reference(path).encode("Hellos hellos").tokens == ["Hello", "##s", "hello", "##s"]


@pytest.mark.parametrize(("name", "content"), [("vocab.txt", "hello\n"), ("t.json", '{"model": {"type": "Odd"}}')])
def test_a_bad_reference_is_told(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)not a usable tokenizer.*found.*expected.*do:"):
        load_reference(tmp_path / name)


# --- report ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("readHTTPLine_2", ["read", "HTTP", "Line", "2"]),
        ("snake_case __init__", ["snake", "case", "init"]),
        ("np.float32(X)", ["np", "float", "32", "X"]),
        ("тест Überblick", ["тест", "Ü", "berblick"]),
        ("## + -", []),
    ],
)
def test_identifier_parts(text: str, parts: list[str]) -> None:
    assert module.IDENTIFIER_PART.findall(text) == parts


def test_report_counts_what_one_counts_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[UNK]", "load", "##er", "_", "my", "data", "=", "the", "file"]), encoding="utf-8")
    notebooks = pack([(["my_loader = data", "data " * 65], ["The file\n\n☃☃ data☃"]), (["my"], ["unused"])])
    report = tokenizer_report(load_reference(path), notebooks, [0])
    assert report["vocabulary"] == 9
    code, markdown = report["code"], report["markdown"]
    assert code["cells"] == 2
    assert code["tokens"] == 6 + 65  # my _ load ##er = data
    assert code["words"] == 3 + 65
    assert code["tokens_per_word"] == pytest.approx(71 / 68)
    assert code["tokens_per_identifier_part"] == pytest.approx((4 + 65) / (3 + 65))  # my load ##er data: my loader data
    assert (code["characters_known"], code["words_known"]) == (1, 1)
    assert (code["over_64"], code["over_128"], code["over_256"]) == (0.5, 0, 0)
    assert markdown["tokens"] == 4  # the file [UNK] [UNK]
    assert markdown["words"] == 4
    assert markdown["characters_known"] == pytest.approx(7 / 14)
    assert markdown["words_known"] == pytest.approx(2 / 4)
    assert "50.00%" in report_table({"tiny": report})


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3))), st.lists(st.integers(0, 12), unique=True, max_size=8))
def test_touching_against_a_double_loop(lengths: list[tuple[int, int]], cuts: list[int]) -> None:
    spans = np.array([(start, start + length) for start, length in lengths], dtype=np.int64).reshape(-1, 2)
    ends = sorted(cuts)[: len(cuts) // 2 * 2]
    others = np.array(ends, dtype=np.int64).reshape(-1, 2)
    expected = [any(a < d and c < b for c, d in others.tolist()) and b > a for a, b in spans.tolist()]
    assert module._touching(spans, others).tolist() == expected


def test_a_type_without_cells_has_no_rates(trained: dict[Kind, Tokenizer]) -> None:
    report = tokenizer_report(trained["bpe"], pack([(["x = 1"], [])]), [0])
    assert report["markdown"]["cells"] == 0
    assert math.isnan(report["markdown"]["tokens_per_word"])
    assert math.isnan(report["markdown"]["over_64"])
    assert report_table({"bpe": report})


def test_byte_level_kinds_know_every_character(trained: dict[Kind, Tokenizer], notebooks: Notebooks) -> None:
    for kind in ("bpe", "unigram"):
        report = tokenizer_report(trained[kind], pack([(["日本語 😀"], ["\x00"])]), [0])
        assert report["code"]["characters_known"] == 1
    assert tokenizer_report(trained["wordpiece"], pack([(["日本語 ok"], ["a"])]), [0])["code"]["words_known"] == 0.5


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library notebooks in the layout of the competition, each two of them of one ancestor."""
    folder = tmp_path_factory.mktemp("official")
    (folder / "train").mkdir()
    orders, ancestors = ["id,cell_order"], ["id,ancestor_id,parent_id"]
    for number, (code, markdown) in enumerate(library_cells()):
        name, cells = f"{number:014x}", [f"{i:08x}" for i in range(len(code) + len(markdown))]
        kinds = ["code"] * len(code) + ["markdown"] * len(markdown)
        document = {
            "cell_type": dict(zip(cells, kinds, strict=True)),
            "source": dict(zip(cells, code + markdown, strict=True)),
        }
        (folder / "train" / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
        orders.append(f"{name},{' '.join(cells)}")
        ancestors.append(f"{name},{number // 2:08x},")
    (folder / "train_orders.csv").write_text("\n".join(orders) + "\n", encoding="utf-8")
    (folder / "train_ancestors.csv").write_text("\n".join(ancestors) + "\n", encoding="utf-8")
    return folder


def test_train_and_report_leave_the_fold_out(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_command(official, tmp_path / "bpe.json", vocab_size=500, fold=1, folds=4)
    tokenizer, training = load_tokenizer(tmp_path / "bpe.json")
    assert (training.kind, training.text, training.fold, training.folds) == ("bpe", "joint", 1, 4)
    notebooks = load(official)
    assert notebooks.ancestors is not None
    others = np.flatnonzero(group_folds(notebooks.ancestors, 4, seed=0) != 1)
    assert tokenizer.to_str() == train_tokenizer(notebooks, others, kind="bpe", vocab_size=500).to_str()
    capsys.readouterr()

    report_command(official, tmp_path / "bpe.json", reference=None)
    left_out = capsys.readouterr().out
    assert "bpe.json" in left_out
    assert "BERT-type reference" in left_out
    assert "2 notebooks of the fold left out, 1" in left_out
    tokenizer.save(str(tmp_path / "peer.json"))
    report_command(official, tmp_path / "bpe.json", reference=tmp_path / "peer.json", limit=1)
    assert "1 notebooks of the fold" in capsys.readouterr().out


def test_without_a_fold_all_notebooks_are_used(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_command(official, tmp_path / "all.json", kind="wordpiece", vocab_size=500, text="markdown")
    report_command(official, tmp_path / "all.json", reference=tmp_path / "all.json", limit=3)
    assert capsys.readouterr().out.splitlines()[-1] == "3 notebooks"
    with pytest.raises(ConfigError, match="limit 0"):
        report_command(official, tmp_path / "all.json", limit=0)


def test_bad_folds_are_refused_before_anything_is_written(official: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fold 5: expected 0 to 4"):
        train_command(official, tmp_path / "t.json", fold=5)
    test = tmp_path / "test_set"
    shutil.copytree(official / "train", test / "test")
    with pytest.raises(ConfigError, match="no ancestors"):
        train_command(test, tmp_path / "t.json", fold=0)
    assert not (tmp_path / "t.json").exists()


@pytest.mark.data
def test_on_the_real_corpus_more_entries_give_shorter_cells() -> None:
    root = next(p for p in Path(__file__).resolve().parents if (p / "poetry.lock").exists())
    archive = root.parent / "shared" / "data" / "ai4code-mini" / "ai4code-mini.zip"
    if not archive.exists():
        pytest.skip(f"the corpus ../shared/data/ai4code-mini is not beside {root.name}")
    notebooks = load(archive)
    train, held_out = np.arange(0, 300), np.arange(300, 400)
    for kind in KINDS:
        small, large = (
            tokenizer_report(train_tokenizer(notebooks, train, kind=kind, vocab_size=size), notebooks, held_out)
            for size in (4096, 8192)
        )
        for text in ("code", "markdown"):
            assert 1 < large[text]["tokens_per_word"] < small[text]["tokens_per_word"] < 5
            assert large[text]["over_256"] <= small[text]["over_256"] < large[text]["over_64"] < 1
            if kind == "wordpiece":
                assert 0.95 < large[text]["words_known"] < 1
            else:
                assert large[text]["characters_known"] == 1
