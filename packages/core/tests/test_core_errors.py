import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_core.errors import ConfigError, DataError, KitError, Problems


def test_exit_codes() -> None:
    assert (KitError.exit_code, ConfigError.exit_code, DataError.exit_code) == (1, 2, 3)
    assert issubclass(ConfigError, KitError)
    assert issubclass(DataError, KitError)


def test_no_problem_raises_nothing() -> None:
    problems = Problems("train.csv", "a number", "export it again")
    problems.raise_if_any()
    assert len(problems) == 0


def test_the_whole_message() -> None:
    problems = Problems("train.csv", "a number in column rank", "export the file again")
    problems.add("row 7", "'x'")
    with pytest.raises(DataError) as raised:
        problems.raise_if_any()
    assert str(raised.value).splitlines() == [
        "train.csv: 1 problem",
        "  row 7: found 'x'",
        "  expected: a number in column rank",
        "  do: export the file again",
    ]


@given(st.integers(min_value=1, max_value=300))
def test_five_are_told_and_all_counted(count: int) -> None:
    problems = Problems("f", "e", "r")
    for row in range(count):
        problems.add(f"row {row}", "nothing")
    assert len(problems) == count
    with pytest.raises(DataError, match=f"f: {count} problem") as raised:
        problems.raise_if_any()
    text = str(raised.value)
    assert text.count(": found nothing") == min(count, 5)
    assert (f"... and {count - 5} more" in text) == (count > 5)


def test_memory_stays_flat() -> None:
    problems = Problems("f", "e", "r")
    for row in range(10_000):
        problems.add(f"row {row}", "x" * 100)
    assert sum(len(text) for value in vars(problems).values() if isinstance(value, list) for text in value) < 1000
