"""`check` and `evaluate` against the organisers' script, written down plainly, on everything that it accepts."""

from pathlib import Path

import numpy as np
import pytest

from kit_core.errors import DataError
from yandex_artists.cli import main
from yandex_artists.data import check_submission, line_warnings, submission_warnings
from yandex_artists.evaluate import evaluate_submission

IDS = np.arange(1000, 1104)
ARTISTS = {int(i): int(i) % 17 for i in IDS}


def judge(text: str) -> float:
    """The mean nDCG@100 of the organisers' script."""
    answers: dict[int, list[int]] = {}
    for line in text.splitlines():
        query, listed = line.rstrip().split("\t", 1)
        answers[int(query)] = [int(part) for part in listed.split(" ") if int(part) != int(query)][:100]
    scores = []
    for query, artist in ARTISTS.items():
        others = sum(other == artist for other in ARTISTS.values()) - 1
        gain = sum(1 / np.log2(i + 2) for i, found in enumerate(answers.get(query, [])) if ARTISTS[found] == artist)
        scores.append(gain / sum(1 / np.log2(i + 2) for i in range(min(100, others))))
    return float(np.mean(scores))


def lines_of(changes: dict[int, list[int]], more: str = "") -> str:
    rng = np.random.default_rng(0)
    lists = {int(i): rng.permutation(IDS[i != IDS])[:100].tolist() for i in IDS} | changes
    return "".join(f"{query}\t{' '.join(map(str, ids))}\n" for query, ids in lists.items() if ids) + more


def listed(*ids: int) -> str:
    return " ".join(map(str, ids))


ODD = {
    "99 ids": (lines_of({1000: list(range(1001, 1100))}), 1),
    "120 ids": (lines_of({1000: [*range(1001, 1104), *range(1001, 1018)]}), 2),
    "itself": (lines_of({1000: list(range(1000, 1101))}), 1),
    "itself at the end": (lines_of({1000: [*range(1001, 1101), 1000]}), 1),
    "an id five times": (lines_of({1000: [1017] * 5 + list(range(1001, 1096))}), 1),
    "no line": (lines_of({1000: []}), 1),
    "unknown behind the hundredth": (lines_of({1000: [*range(1001, 1100), 1000, 1103, 99999]}), 1),
    "a query twice": (lines_of({}, f"1000\t{listed(*range(1103, 1003, -1))}\n"), 1),
    "an unknown query": (lines_of({}, f"77\t{listed(5, 6, *range(1001, 1099))}\n"), 1),
    "no line feed at the end": (lines_of({}).rstrip("\n"), 0),
    "Windows line ends": (lines_of({}).replace("\n", "\r\n"), 0),
    "spaces at the end": (lines_of({}).replace("\n", "  \n"), 0),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_the_judge_accepts_is_accepted_and_scored_as_by_the_judge(kind: str, tmp_path: Path):
    text, warnings = ODD[kind]
    path, truth = tmp_path / "submission.txt", tmp_path / "truth.tsv"
    path.write_bytes(text.encode())
    truth.write_text("trackid\tartistid\n" + "".join(f"{i}\t{artist}\n" for i, artist in ARTISTS.items()))
    rows = check_submission(path, IDS.tolist())
    assert len(submission_warnings(rows) + line_warnings(path, IDS.tolist())) == warnings
    assert evaluate_submission(path, truth)["ndcg@100"] == pytest.approx(judge(text), abs=1e-12)


@pytest.mark.parametrize(
    "line",
    ["1000\t1001 99999", "1000 1001", "1000\t", "1000\t1001  1002", "1000\t1001\t1002", "query\tids", "1000\t1.5"],
)
def test_what_the_judge_fails_on_is_refused(line: str, tmp_path: Path):
    path = tmp_path / "submission.txt"
    path.write_text(lines_of({1000: []}, line + "\n"))
    with pytest.raises((ValueError, KeyError)):
        judge(path.read_text())
    with pytest.raises(DataError, match=r"submission\.txt"):
        check_submission(path, IDS.tolist())


def test_check_warns_on_stderr_and_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, data = tmp_path / "submission.txt", tmp_path / "data"
    (data / "test_features").mkdir(parents=True)
    (data / "test_meta.tsv").write_text(
        "trackid\tarchive_features_path\n" + "".join(f"{i}\t0/0/{i}.npy\n" for i in IDS)
    )
    command = ["check", "--submission", str(path), "--data", str(data)]
    path.write_text(lines_of({}))
    assert main(command) == 0
    assert capsys.readouterr() == (f"{path}: valid, 104 tracks\n", "")
    path.write_text(lines_of({1000: []}, f"77\t{listed(1001)}\n"))
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{path}: valid, 104 tracks\n"
    assert [line.split(": ")[0] for line in printed.err.splitlines()] == ["warning", "warning"]
    path.write_text(lines_of({1000: [5]}))
    assert main(command) == 3
    assert "the id 5, which the data does not hold" in capsys.readouterr().err
