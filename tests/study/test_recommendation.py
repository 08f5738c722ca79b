"""Which row a study recommends: chosen on validation alone, told with its test score, its interval and the rows that are as good."""

import numpy as np
import yaml

from vlmpeft.study.report.recommendation import recommend
from vlmpeft.study.report.records import read_study

from .records import make_item, make_record, write_run_items, write_study

# row -> (val, test), the same for every seed but for the items that are wrong
ROWS = {"vision": (0.50, 0.90), "language": (0.80, 0.70), "all": (0.80, 0.71)}
SIZES = {"vision": 100, "language": 100, "all": 300}


def made(tmp_path, rows=ROWS):
    records = []
    for row, (val, test) in rows.items():
        for seed in (0, 1, 2):
            scores = {"base": {s: {"exact_match": 0.1, "loss": 2.0} for s in ("val", "test")}}
            scores["tuned"] = {
                "val": {"exact_match": val, "loss": 1.0},
                "test": {"exact_match": test, "loss": 1.0},
            }
            config = {"model": {"plan": {"language": {"class_path": row}}}, "init_adapter": None}
            records.append(
                make_record(
                    row, seed, score=test, metrics=scores, trainable=SIZES[row], config=config
                )
            )
    base = make_record("base", None, score=0.1)
    folder = write_study(tmp_path, list(rows), [base, *records])
    for record in records:
        right = round(200 * record["metrics"]["tuned"]["test"]["exact_match"])
        order = np.random.default_rng([record["seed"], len(record["row"])]).permutation(200)
        write_run_items(folder, record, [make_item(n, float(order[n] < right)) for n in range(200)])
    return read_study(folder)


def test_row_is_chosen_on_validation_and_of_equals_the_smaller_one(tmp_path):
    (found,) = recommend(made(tmp_path))
    assert found.row == "language"  # vision is better on the test, all is as good on val and larger
    assert found.chosen_on == "val"
    assert np.isclose(found.score.mean, 0.70)
    assert found.low < 0.70 < found.high
    assert found.zero_shot == 0.1


def test_rows_that_were_not_shown_to_differ_are_named(tmp_path):
    (found,) = recommend(made(tmp_path))
    assert found.as_good == ["all"]
    assert found.others["vision"].is_significant
    assert np.isclose(found.others["vision"].difference, 0.20)
    said = "\n".join(found.lines())
    assert "not shown to be worse: all" in said
    assert "vision: 0.900, +0.200" in said


def test_text_is_the_rows_config_with_the_result_on_top(tmp_path):
    (found,) = recommend(made(tmp_path))
    text = found.text("mine")
    assert text.startswith("# Recommended by study mine\n# take language")
    assert yaml.safe_load(text) == {"model": {"plan": {"language": {"class_path": "language"}}}}


def test_nothing_is_recommended_without_a_finished_row(tmp_path):
    folder = write_study(tmp_path, ["a"], [make_record("base", None, score=0.1)], tasks=("format",))
    assert recommend(read_study(folder)) == []
