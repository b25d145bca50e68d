import json

from kit_core.comparison import Comparison

COMPARISON = Comparison(
    metric="macro_f1", a="runs/a", b="runs/b", score_a=0.7143, score_b=0.66, difference=0.0543,
    interval=(-0.0331, 0.077), n=1272, group_by="groups.csv", n_groups=955,
)  # fmt: skip


def test_the_table_shows_scores_difference_interval_and_groups() -> None:
    cells = [line.split("  ") for line in COMPARISON.to_text().splitlines()]
    shown = {line[0].strip(): line[-1].strip() for line in cells}
    assert shown["A: runs/a"] == "0.7143"
    assert shown["A - B"] == "+0.0543"
    assert shown["95 % interval of A - B"] == "-0.0331 to +0.0770"
    assert shown["groups resampled (groups.csv)"] == "955"
    assert COMPARISON.render(as_json=False) == COMPARISON.to_text()


def test_json_holds_every_field_as_plain_values() -> None:
    values = json.loads(COMPARISON.render(as_json=True))
    assert values.pop("interval") == [-0.0331, 0.077]
    assert values == {name: value for name, value in vars(COMPARISON).items() if name != "interval"}
