"""Own subword tokenizers, trained on the cells of notebooks, and what can be said about one before a model is trained.

    ai4code tokenizer train  --data AI4Code.zip --out bpe.json --kind bpe --vocab-size 8192 --fold 0
    ai4code tokenizer report --data AI4Code.zip --tokenizer bpe.json

Three kinds. `bpe` and `unigram` work on bytes (GPT-2's pre-tokeniser): no text is unknown to them and decoding gives
every text back. `wordpiece` has BERT's normaliser and pre-tokeniser: lower case, no accents, no white space.

Two promises hold for all three.

- The special tokens are entries of the vocabulary but not "added tokens" of the library, which would be looked for in
  the text before anything else. (The library's own switch against that, `encode_special_tokens`, is lost when a
  tokenizer is saved or pickled, and does not keep a Unigram model from finding "[SEP]" in its vocabulary.) All three
  pre-tokenisers part brackets from letters, so that no text of a user can become the token [SEP].
- The same notebooks give the same tokenizer, in every process. The library's trainers keep words in randomly seeded
  hash maps. That is harmless for BPE; a WordPiece vocabulary gets its first ids, which break ties later, from that
  order, so they are handed over in ours; the library's Unigram scores differ from run to run in the second decimal, so
  Unigram is trained here, with the library's model for the segmentation.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ai4code.data import Notebooks, fingerprint, load
from kit_core.atomic import write_json
from kit_core.config import config_from_dict
from kit_core.console import progress, render_table, say
from kit_core.errors import ConfigError, DataError
from kit_splits.folds import group_folds

Kind = Literal["bpe", "wordpiece", "unigram"]
Text = Literal["joint", "code", "markdown"]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Analyzer = Callable[[Sequence[str]], tuple[Int32, Int64]]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[CODE]", "[MD]")  # their ids are 0 to 6
UNKNOWN = "[UNK]"
BERT_VOCABULARY = 30_522  # entries of bert-base-uncased
LENGTHS = (64, 128, 256)  # tokens a cell that the common AI4Code models leave room for
TRAINING_KEY = "ai4code"  # inside "model": readers of tokenizer.json pass over keys there that they do not know

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # the 256 characters that stand for bytes
CHARACTER_COVERAGE = 0.9995  # of the characters of the text; the rest is [UNK]. SentencePiece's default
MAX_CHARACTERS = 300_000_000  # twelve times the mini corpus; keeps time and memory of the full data within bounds
CELLS_A_BATCH = 4_096

# Parts of identifiers and words: readHTTPLine_2 -> read, HTTP, Line, 2.
IDENTIFIER_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W_0-9A-Za-z]+")


@dataclass(frozen=True)
class Training:
    """What a tokenizer was trained on, stored with it.

    kind, text: the arguments of `train_tokenizer`. vocab_size: entries, the special ones included.
    data: `fingerprint` of the data. folds, fold, seed: all folds but `fold` were used; None: all notebooks were.
    """

    kind: Kind
    text: Text
    vocab_size: int
    data: str
    folds: int
    fold: int | None
    seed: int


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_tokenizer(
    notebooks: Notebooks,
    indices: Sequence[int] | Int64,
    *,
    kind: Kind,
    vocab_size: int,
    text: Text = "joint",
    seed: int = 0,
    max_characters: int = MAX_CHARACTERS,
) -> Tokenizer:
    """Train a tokenizer on the cells of the notebooks at `indices`; equal arguments give an equal tokenizer.

    text: "joint" is both types of cells. Of notebooks with more than `max_characters` in all, as many are used as fit,
    drawn by `seed`. Little text gives fewer than `vocab_size` entries.

    Raises:
        ConfigError: `vocab_size` leaves no room beside the special tokens and single characters.
        DataError: no text to train on.
    """
    cells = _cells_of(notebooks, indices, text, max_characters, seed)
    if not any("".join(batch).strip() for batch in _batches(notebooks, cells)):
        raise DataError(
            f"tokenizer: nothing to train on\n  found: no {'cell' if text == 'joint' else text + ' cell'} "
            f"with text in {len(indices)} notebooks\n  expected: at least one\n  do: give other data or another --text"
        )
    if kind == "wordpiece":
        return _train_wordpiece(notebooks, cells, vocab_size)
    _require_room(kind, vocab_size, len(BYTES))
    return (_train_bpe if kind == "bpe" else _train_unigram)(notebooks, cells, vocab_size)


def _cells_of(
    notebooks: Notebooks, indices: Sequence[int] | Int64, text: Text, max_characters: int | None, seed: int
) -> Int64:
    """Indices of the cells of that type, in the order of the notebooks, which are thinned out to `max_characters`."""
    wanted = np.zeros(len(notebooks), dtype=bool)
    wanted[np.asarray(indices, dtype=np.int64)] = True
    chosen = _of_type(notebooks, text)
    if max_characters is not None:
        characters = np.asarray(pc.fill_null(pc.utf8_length(notebooks.sources), 0), dtype=np.int64) * chosen
        totals = np.concatenate([[0], np.cumsum(characters)])
        per_notebook = totals[notebooks.offsets[1:]] - totals[notebooks.offsets[:-1]]
        drawn = np.random.default_rng(seed).permutation(np.flatnonzero(wanted))
        wanted[drawn[np.cumsum(per_notebook[drawn]) > max_characters]] = False
    return np.flatnonzero(chosen & np.repeat(wanted, np.diff(notebooks.offsets)))


def _of_type(notebooks: Notebooks, text: Text) -> Bool:
    if text == "joint":
        return np.ones(int(notebooks.offsets[-1]), dtype=bool)
    return notebooks.is_markdown if text == "markdown" else ~notebooks.is_markdown


def _batches(notebooks: Notebooks, cells: Int64) -> Iterator[list[str]]:
    for start in range(0, len(cells), CELLS_A_BATCH):
        yield notebooks.sources.take(pa.array(cells[start : start + CELLS_A_BATCH])).to_pylist()


def _require_room(kind: Kind, vocab_size: int, characters: int) -> None:
    least = len(SPECIAL_TOKENS) + characters + 1
    if vocab_size < least:
        raise ConfigError(
            f"vocab-size {vocab_size} is too small for {kind}: {len(SPECIAL_TOKENS)} special tokens and {characters} "
            f"single characters come first; give {least} or more"
        )


def _byte_level(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train_bpe(notebooks: Notebooks, cells: Int64, vocab_size: int) -> Tokenizer:
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=BYTES, show_progress=False
    )
    tokenizer.train_from_iterator(_batches(notebooks, cells), trainer)
    return _without_added_tokens(tokenizer)


def _train_wordpiece(notebooks: Notebooks, cells: Int64, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    alphabet = _common_characters(_batches(notebooks, cells), tokenizer.normalizer)
    inner = [
        "##" + character
        for character in alphabet
        if len(tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str("a" + character))) == 1
    ]
    _require_room("wordpiece", vocab_size, len(alphabet) + len(inner))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *inner],  # only so that the "##" characters get their ids in a fixed order
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(notebooks, cells), trainer)
    return _without_added_tokens(tokenizer)


def _common_characters(batches: Iterator[list[str]], normalizer: Any) -> list[str]:
    """The most frequent characters, white space apart, that make up CHARACTER_COVERAGE of the normalised text."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for batch in batches:
        codes = np.frombuffer(normalizer.normalize_str("\n".join(batch)).encode("utf-32-le"), dtype=np.uint32)
        counts += np.bincount(codes, minlength=len(counts))
    counts[[ord(blank) for blank in " \t\n\r"]] = 0
    by_count = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[by_count])
    needed = int(np.searchsorted(covered, CHARACTER_COVERAGE * covered[-1])) + 1
    return sorted(chr(code) for code in by_count[:needed] if counts[code])


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, its special tokens in the vocabulary of the model only: see the head of this file."""
    return Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "added_tokens": []}))


# ---------------------------------------------------------------------------------------------------------------------
# Unigram (Kudo 2018, arXiv 1804.10959): start from too many pieces, estimate, drop the least useful, repeat


UNIGRAM_SEEDS = 2  # candidate pieces for every piece wanted; 3 and 4 gave more tokens on the mini corpus
UNIGRAM_KEPT = 0.75  # share of the pieces that outlives a round; SentencePiece's default
UNIGRAM_STEPS = 2  # estimations a round; SentencePiece's default


def _train_unigram(notebooks: Notebooks, cells: Int64, vocab_size: int) -> Tokenizer:
    """Hard-EM Unigram: candidates from a larger BPE vocabulary, counts from the best segmentation of every word.

    A piece is worth what the log-likelihood of the corpus loses when each of its uses is split into the best other
    pieces; single bytes always stay.
    """
    words, word_counts = _count_words(notebooks, cells)
    candidates = _train_bpe(notebooks, cells, UNIGRAM_SEEDS * vocab_size).get_vocab()
    pieces = sorted(set(candidates) - set(SPECIAL_TOKENS))
    wanted = vocab_size - len(SPECIAL_TOKENS)
    scores = np.full(len(pieces), -np.log(len(pieces)))  # all alike: the first segmentation has the fewest pieces
    while True:
        for _ in range(UNIGRAM_STEPS):
            counts = _piece_counts(pieces, scores, words, word_counts)
            scores = np.log(np.maximum(counts, 0.5) / counts.sum())  # 0.5: unused pieces keep a finite score
        if len(pieces) <= wanted:
            break
        keep = max(wanted, int(UNIGRAM_KEPT * len(pieces)))
        loss = _losses(pieces, scores, counts)
        kept = np.sort(np.argsort(-loss, kind="stable")[:keep])
        pieces, scores = [pieces[i] for i in kept], scores[kept]
    order = np.argsort(-scores, kind="stable")
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + [(pieces[i], round(float(scores[i]), 6)) for i in order]
    return _byte_level(models.Unigram(vocabulary, SPECIAL_TOKENS.index(UNKNOWN), False))


def _count_words(notebooks: Notebooks, cells: Int64) -> tuple[list[str], Int64]:
    """The distinct words of the byte-level pre-tokeniser, sorted, and how often each occurs."""
    whole_words = _byte_level(models.WordLevel(unk_token=UNKNOWN))
    trainer = trainers.WordLevelTrainer(vocab_size=2**31, min_frequency=0, show_progress=False)
    whole_words.train_from_iterator(_batches(notebooks, cells), trainer)
    vocabulary = whole_words.get_vocab()
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    analyze = token_analyzer(whole_words)
    for batch in _batches(notebooks, cells):
        counts += np.bincount(analyze(batch)[0], minlength=len(counts))
    words = sorted(vocabulary)
    return words, counts[[vocabulary[word] for word in words]]


def _piece_counts(pieces: list[str], scores: npt.NDArray[np.float64], words: list[str], word_counts: Int64) -> Int64:
    model = models.Unigram([(UNKNOWN, 0.0), *zip(pieces, scores.tolist(), strict=True)], 0, False)
    ids, offsets = token_analyzer(Tokenizer(model))(words)
    weights = np.repeat(word_counts, np.diff(offsets))
    return np.bincount(ids - 1, weights=weights, minlength=len(pieces)).astype(np.int64)


def _losses(pieces: list[str], scores: npt.NDArray[np.float64], counts: Int64) -> npt.NDArray[np.float64]:
    """Per piece: its count times (its score - the score of the best segmentation into shorter pieces)."""
    score_of = dict(zip(pieces, scores.tolist(), strict=True))
    losses = np.full(len(pieces), np.inf)
    for i, piece in enumerate(pieces):
        length = len(piece)
        if length == 1:
            continue
        best = [0.0] + [-np.inf] * length
        for end in range(1, length + 1):
            for start in range(1 if end == length else 0, end):
                if best[start] > -np.inf and (score := score_of.get(piece[start:end])) is not None:
                    best[end] = max(best[end], best[start] + score)
        losses[i] = counts[i] * (scores[i] - best[length])
    return losses


# ---------------------------------------------------------------------------------------------------------------------
# Encoding


def token_analyzer(tokenizer: Tokenizer) -> Analyzer:
    """A function from texts to (int32 token ids of all texts, int64[texts + 1] offsets), without special tokens added.

    Text i is ids[offsets[i]:offsets[i + 1]]. Runs on all cores unless TOKENIZERS_PARALLELISM=false.
    """

    def analyze(texts: Sequence[str]) -> tuple[Int32, Int64]:
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        parts = [np.zeros(0, dtype=np.int32)]
        for start in range(0, len(texts), CELLS_A_BATCH):
            batch = list(texts[start : start + CELLS_A_BATCH])
            ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
            offsets[start + 1 : start + 1 + len(ids)] = [len(i) for i in ids]
            parts.append(np.fromiter(chain.from_iterable(ids), dtype=np.int32))
        return np.concatenate(parts), np.cumsum(offsets)

    return analyze


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_tokenizer(path: Path, tokenizer: Tokenizer, training: Training) -> str:
    """Write a tokenizer to one JSON file, atomically, and return the SHA-256 that lies in it.

    The file is the library's own `tokenizer.json` with one key more under "model": what it was trained on, and the hash
    of everything else in the file.
    """
    document = json.loads(tokenizer.to_str())
    document["model"][TRAINING_KEY] = asdict(training)
    digest = _digest(document)
    document["model"][TRAINING_KEY]["sha256"] = digest
    write_json(path, document)
    return digest


def load_tokenizer(path: Path) -> tuple[Tokenizer, Training]:
    """Read what `save_tokenizer` wrote.

    Raises:
        DataError: the file is absent, not such a file, or changed since it was written.
    """
    document = _read_json(path)
    model = document.get("model")
    stored = model.get(TRAINING_KEY) if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(stored, dict):
        raise _unusable(path, f'no "{TRAINING_KEY}" under "model"')
    digest = stored.pop("sha256", None)
    if digest != (actual := _digest(document)):
        raise _unusable(path, f"content with the SHA-256 {actual}, but the file names {digest}")
    training = config_from_dict(Training, model.pop(TRAINING_KEY), str(path))
    return Tokenizer.from_str(json.dumps(document)), training


def load_reference(path: Path) -> Tokenizer:
    """Read a foreign tokenizer to compare with: a `tokenizer.json`, or a BERT `vocab.txt` with one entry a line.

    Its own limits (truncation and padding, which published files often carry) are switched off. A `vocab.txt` is taken
    as lower-cased when no entry but the bracketed ones holds a capital.

    Raises:
        DataError: the file is absent or neither of the two.
    """
    if path.suffix == ".txt":
        entries = _read_text(path).splitlines()
        if UNKNOWN not in entries:
            raise _unusable(path, f"{len(entries)} lines, none of them {UNKNOWN}")
        lowercase = not any(entry != entry.lower() for entry in entries if not entry.startswith("["))
        vocabulary = {entry: number for number, entry in enumerate(entries)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer
    document = _read_json(path)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises nothing more specific
        raise _unusable(path, f"a file that the tokenizers library refuses: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a "[SEP]" in a cell counts as text, as it does for the own tokenizers
    return tokenizer


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _unusable(path, f"bytes that are not UTF-8, at {error.start}") from error
    except OSError as error:
        raise _unusable(path, (error.strerror or str(error)).lower()) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise _unusable(path, f"no JSON: {error}") from error
    if not isinstance(document, dict):
        raise _unusable(path, "JSON, but no object")
    return document


def _unusable(path: Path, found: str) -> DataError:
    return DataError(
        f"{path}: not a usable tokenizer\n  found: {found}\n"
        "  expected: a file written by `ai4code tokenizer train` (or, as --reference, a tokenizer.json or vocab.txt)\n"
        "  do: give another file or train the tokenizer again"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Report


def tokenizer_report(tokenizer: Tokenizer, notebooks: Notebooks, indices: Sequence[int] | Int64) -> dict[str, Any]:
    """What a tokenizer makes of the cells of the notebooks at `indices`, code and markdown apart.

    Returns {"vocabulary": entries, "code": {...}, "markdown": {...}} with, for each type,

    cells, words, tokens        counts; words are parted by white space
    tokens_per_word             fertility
    tokens_per_identifier_part  tokens that touch a part (readHTTPLine_2 has four) over parts; below 1 where one token
                                spans several
    characters_known            share of the characters other than white space outside [UNK]
    words_known                 share of the words that no [UNK] touches
    over_64, over_128, over_256 share of the cells with more tokens than that, which a model would cut

    A rate without anything to count is NaN.
    """
    report: dict[str, Any] = {"vocabulary": tokenizer.get_vocab_size()}
    for text in ("code", "markdown"):
        cells = _cells_of(notebooks, indices, text, None, 0)
        report[text] = _rates(tokenizer, _batches(notebooks, cells))
    return report


def _rates(tokenizer: Tokenizer, batches: Iterator[list[str]]) -> dict[str, float]:
    unknown = _unknown_id(tokenizer)
    lengths: list[int] = []
    words = parts = part_tokens = characters = lost_characters = lost_words = 0
    for batch in batches:
        for text, encoding in zip(batch, tokenizer.encode_batch(batch, add_special_tokens=False), strict=True):
            ids = encoding.ids
            lengths.append(len(ids))
            words += len(text.split())
            characters += len("".join(text.split()))
            spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            found = np.array([match.span() for match in IDENTIFIER_PART.finditer(text)], dtype=np.int64).reshape(-1, 2)
            parts += len(found)
            part_tokens += int(np.count_nonzero(_touching(spans, found)))
            if unknown in ids:
                lost = spans[np.array(ids) == unknown]
                word_spans = np.array([match.span() for match in re.finditer(r"\S+", text)], dtype=np.int64)
                lost_words += int(np.count_nonzero(_touching(word_spans, lost)))
                lost_characters += sum(len("".join(text[start:stop].split())) for start, stop in lost.tolist())
    counts = np.array(lengths, dtype=np.int64)
    return {
        "cells": len(counts),
        "words": words,
        "tokens": int(counts.sum()),
        "tokens_per_word": _ratio(int(counts.sum()), words),
        "tokens_per_identifier_part": _ratio(part_tokens, parts),
        "characters_known": 1 - _ratio(lost_characters, characters),
        "words_known": 1 - _ratio(lost_words, words),
        **{f"over_{limit}": _ratio(int(np.count_nonzero(counts > limit)), len(counts)) for limit in LENGTHS},
    }


def _touching(spans: Int64, others: Int64) -> Bool:
    """Which of the spans share a character with one of the `others`, which are disjoint and in order; int64[n, 2]."""
    begun = np.searchsorted(others[:, 0], spans[:, 1], side="left")  # others that start before a span's end
    ended = np.searchsorted(others[:, 1], spans[:, 0], side="right")  # others that end at or before its start
    return (begun > ended) & (spans[:, 1] > spans[:, 0])


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = json.loads(tokenizer.to_str())["model"]
    return model["unk_id"] if model["type"] == "Unigram" else tokenizer.token_to_id(model.get("unk_token") or UNKNOWN)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def report_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The reports of several tokenizers, by name, as one plain table: two rows each, code and markdown."""
    headers = ["tokenizer", "entries", "cells", "tokens/word", "tokens/part", "characters", "words"]
    rows = [
        [
            name,
            report["vocabulary"],
            text,
            f"{rates['tokens_per_word']:.2f}",
            f"{rates['tokens_per_identifier_part']:.2f}",
            f"{rates['characters_known']:.2%}",
            f"{rates['words_known']:.2%}",
            *(f"{rates[f'over_{limit}']:.1%}" for limit in LENGTHS),
        ]
        for name, report in reports.items()
        for text, rates in (("code", report["code"]), ("markdown", report["markdown"]))
    ]
    return render_table(headers + [f"> {limit}" for limit in LENGTHS], rows)


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def train_command(
    data: Path,
    out: Path,
    kind: Kind = "bpe",
    vocab_size: int = 8192,
    text: Text = "joint",
    fold: int | None = None,
    folds: int = 5,
    seed: int = 0,
) -> None:
    """Train a tokenizer on the cells of a data set and write it to one JSON file.

    Args:
        data: The official folder or zip, or a prepared folder.
        out: The file to write.
        kind: Byte-level BPE, BERT's WordPiece, or byte-level Unigram.
        vocab_size: Entries, the special tokens included.
        text: Cells to train on.
        fold: The fold of ancestors to leave out; without it, all notebooks are used.
        folds: Number of folds.
        seed: Of the folds, and of the notebooks drawn where there is more text than needed.
    """
    notebooks = load(data)
    training = Training(kind, text, vocab_size, fingerprint(data), folds, fold, seed)
    indices, _ = _split(notebooks, training)
    say(f"tokenizer: training {kind} on {len(indices)} notebooks")
    tokenizer = train_tokenizer(notebooks, indices, kind=kind, vocab_size=vocab_size, text=text, seed=seed)
    digest = save_tokenizer(out, tokenizer, training)
    say(f"tokenizer: {out}: {tokenizer.get_vocab_size()} entries of {vocab_size} wanted, SHA-256 {digest}")


def report_command(data: Path, tokenizer: Path, reference: Path | None = None, limit: int | None = None) -> None:
    """Print fertility, coverage and truncation of a tokenizer beside a BERT-type vocabulary.

    Args:
        data: What the tokenizer was trained on, of which only the fold left out is measured, or other data.
        tokenizer: A file written by `ai4code tokenizer train`.
        reference: A tokenizer.json or vocab.txt to compare with; without it, a WordPiece of BERT's size is trained on
            the same notebooks.
        limit: Measure at most so many notebooks.
    """
    own, training = load_tokenizer(tokenizer)
    foreign = None if reference is None else load_reference(reference)
    notebooks = load(data)
    same_data = training.fold is not None and training.data == fingerprint(data)
    everything = np.arange(len(notebooks))
    train, measured = _split(notebooks, training) if same_data else (everything, everything)
    if limit is not None:
        if limit < 1:
            raise ConfigError(f"limit {limit}: give 1 or more notebooks")
        measured = measured[np.unique(np.linspace(0, len(measured) - 1, min(limit, len(measured))).astype(np.int64))]
    if foreign is None:
        say(f"tokenizer: training the reference, a WordPiece of {BERT_VOCABULARY} entries, on {len(train)} notebooks")
        foreign = train_tokenizer(notebooks, train, kind="wordpiece", vocab_size=BERT_VOCABULARY, seed=training.seed)
    names = {tokenizer.name: own, "BERT-type reference" if reference is None else reference.name: foreign}
    reports = {
        name: tokenizer_report(compared, notebooks, measured)
        for name, compared in progress(names.items(), label="measuring tokenizers")
    }
    print(report_table(reports))
    print(f"{len(measured)} notebooks" + (f" of the fold left out, {training.fold}" if same_data else ""))


def _split(notebooks: Notebooks, training: Training) -> tuple[Int64, Int64]:
    """Indices of the notebooks to train on and to measure; the same, all of them, where no fold is left out."""
    if training.fold is None:
        everything = np.arange(len(notebooks))
        return everything, everything
    if notebooks.ancestors is None:
        raise ConfigError("fold: these notebooks have no ancestors to make folds of; leave it out, or give train data")
    if not 0 <= training.fold < training.folds:
        raise ConfigError(f"fold {training.fold}: expected 0 to {training.folds - 1}")
    folds = group_folds(notebooks.ancestors, training.folds, seed=training.seed)
    return np.flatnonzero(folds != training.fold), np.flatnonzero(folds == training.fold)
