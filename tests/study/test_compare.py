"""Two sides: what they are, what differs between them, and which conditions fail."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from vlmpeft.runtime.errors import UserError
from vlmpeft.study.report.compare import compare_sides
from vlmpeft.study.report.gate import read_conditions
from vlmpeft.study.report.sides import read_side
from vlmpeft.study.report.verdicts import verdict

from .made_runs import an_item, made_row, write_run


def _answers(right, kinds=("part", "count"), **other):
    """One item for each of `right`; the pictures have two items each."""
    return [
        an_item(
            f"i{n:03}",
            generated="gear" if is_right else "nut",
            fields={"kind": kinds[n % len(kinds)]},
            image=[f"{n // 2}.png"],
            **other,
        )
        for n, is_right in enumerate(right)
    ]


@pytest.fixture
def sides(tmp_path):
    """Right and wrong answers of two runs -> the two sides."""

    def make(a, b, **options):
        return [
            read_side(str(write_run(tmp_path / name, _answers(right), **options)))
            for name, right in (("a", a), ("b", b))
        ]

    return make


def test_means_groups_and_counts_are_those_of_the_items(sides):
    source = np.random.default_rng(0)
    a, b = source.random(200) < 0.8, source.random(200) < 0.5
    found = compare_sides(*sides(a, b))
    one = found.metrics["exact_match"]
    assert one.means == pytest.approx((a.mean(), b.mean()))
    assert (one.num_items, one.num_clusters) == (200, 100)
    assert found.group_by == "kind"
    count = found.groups["exact_match[count]"]
    assert count.means == pytest.approx((a[1::2].mean(), b[1::2].mean()))
    assert count.num_items == 100
    assert (found.num_worse, found.num_better) == ((a & ~b).sum(), (b & ~a).sum())
    assert one.is_significant
    assert verdict(one) == "worse"


def test_p_of_a_group_is_that_of_its_items_times_the_size_of_the_family(sides):
    a = np.ones(40, bool)
    b = a.copy()
    b[1:17:2] = False  # 8 counts, in 8 pictures
    found = compare_sides(*sides(a, b)).groups["exact_match[count]"]
    assert found.p == pytest.approx(stats.binomtest(0, 8).pvalue)
    assert found.p_holm == pytest.approx(2 * found.p)


def test_the_items_that_got_worse_come_with_both_answers(sides):
    a, b = [1, 1, 1, 0], [1, 0, 1, 1]
    (worse,) = compare_sides(*sides(a, b)).worse
    assert (worse.id, worse.images) == ("i001", ("0.png",))
    assert (worse.expected, worse.answer_a, worse.answer_b) == ("gear", "gear", "nut")
    assert worse.change == -1


def test_over_seeds_the_worst_change_is_first_and_shows_an_answer_that_is_wrong(tmp_path):
    study = tmp_path / "study"
    for row, rights in {"a": [[1, 1, 1], [1, 1, 1]], "b": [[1, 0, 0], [1, 1, 0]]}.items():
        for seed, right in enumerate(rights):
            folder = study / "runs/tiny/made" / row / f"seed{seed}"
            write_run(folder, _answers(right), seed=seed, row=row)
    a, b = (read_side(f"{study}:{row}") for row in "ab")
    assert len(a.runs) == 2
    found = compare_sides(a, b)
    assert [(w.id, w.change) for w in found.worse] == [("i002", -1.0), ("i001", -0.5)]
    assert all(w.answer_b == "nut" for w in found.worse)
    assert found.metrics["exact_match"].is_paired
    with pytest.raises(UserError, match=r"no finished run of row 'c'.*a, b"):
        read_side(f"{study}:c")


def test_a_row_of_several_tasks_needs_the_task(tmp_path):
    for task in ("format", "style"):
        write_run(tmp_path / "runs/tiny" / task / "a/seed0", _answers([1, 0]), row="a", task=task)
    with pytest.raises(UserError, match=rf"{tmp_path}:a:format:tiny, {tmp_path}:a:style:tiny"):
        read_side(f"{tmp_path}:a")
    assert read_side(f"{tmp_path}:a:style").runs[0].task == "style"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[:3], r"1 \(i003\) only in .*a;"),
        (lambda items: [i | {"id": i["id"] + "x"} for i in items], r"4 \(i000, i001, i002, \.\.\."),
        (
            lambda i: [i[0] | {"expected": "bolt"}, *i[1:]],
            r"1 \(i000\) with other expected answers",
        ),
        (lambda i: [*i[:3], i[3] | {"references": ["gear", "cog"]}], r"1 \(i003\) with other expe"),
    ],
)
def test_other_items_are_refused_with_their_number_and_names(tmp_path, change, message):
    items = _answers([1, 0, 1, 1])
    a, b = write_run(tmp_path / "a", items), write_run(tmp_path / "b", change(items))
    with pytest.raises(UserError, match=message) as caught:
        compare_sides(read_side(str(a)), read_side(str(b)))
    assert "--data" in str(caught.value)


def test_a_question_that_is_put_otherwise_is_the_same_item(tmp_path):
    items = _answers([1, 0, 1, 1])
    others = [item | {"prompt": "name it."} for item in items]
    a, b = write_run(tmp_path / "a", items), write_run(tmp_path / "b", others)
    assert compare_sides(read_side(str(a)), read_side(str(b))).metrics["exact_match"].p == 1


def test_a_metric_where_less_is_more_gets_worse_upwards(tmp_path):
    runs = [
        write_run(tmp_path / name, [an_item(f"i{n}", scores={"numeric_error": value + n % 2}) for n in range(60)])
        for name, value in (("a", 1.0), ("b", 2.0))
    ]  # fmt: skip
    found = compare_sides(*(read_side(str(run)) for run in runs))
    assert verdict(found.metrics["numeric_error"]) == "worse"
    assert (found.num_worse, found.worse[0].change) == (60, 1.0)


def test_words_for_a_difference():
    source = np.random.default_rng(1)
    base = source.random((5, 400))

    def said(shift, noise, margin=0.01, metric="exact_match"):
        other = base + shift + noise * source.normal(size=base.shape)
        rows = (made_row(m, metric=metric) for m in (base, other))
        from vlmpeft.study.report.statistics import compare_rows

        return verdict(compare_rows(*rows, metric, margin=margin))

    assert said(0.1, 0.1) == "better"
    assert said(-0.1, 0.1) == "worse"
    assert said(0.004, 0.01) == "better, by less than 0.01"
    assert said(0, 0.02) == "equivalent within 0.01"
    assert said(0, 1.0).startswith("no difference shown; 0.")
    assert said(0.1, 0.1, metric="mine") == "higher"
    assert said(0.1, 0.1, metric="perplexity") == "worse"


def test_every_shipped_metric_has_its_direction():
    from vlmpeft.runtime.registry import METRICS, resolve
    from vlmpeft.study.report.verdicts import direction

    classes = [resolve(name, METRICS) for name in METRICS if name != "ChanceCorrected"]
    assert len(classes) > 10
    for cls in classes:
        assert direction(cls.name) == (1 if cls.higher_is_better else -1), cls.name
    assert direction("exact_match_chance_corrected") == 1


# -- conditions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("exact_match < -0.01", True),
        ("exact_match<-.3", True),
        ("exact_match < -0.5", False),
        ("exact_match > 0", False),
        ("exact_match >= -1e0", True),
        ("exact_match.low < -0.5", True),
        ("exact_match.high < -0.5", False),
        ("exact_match[count] < 0", True),
        ("exact_match[part].high <= 0", True),
    ],
)
def test_a_condition_is_about_the_difference_or_an_end_of_its_interval(sides, text, holds):
    b = np.arange(40) % 5 > 1  # 40 % worse
    named = compare_sides(*sides(np.ones(40), b)).named()
    (condition,) = read_conditions([text])
    assert condition.holds(named) is holds


@pytest.mark.parametrize(
    "text",
    ["exact_match", "exact_match < ", "< 0.1", "exact_match == 1", "exact_match < nan", "a < b",
     "exact_match < 0.1 or 1 < 2", "__import__('os') < 1 < 2", "exact_match < 1_0", "", "exact_match < -"],
)  # fmt: skip
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(UserError, match="METRIC < NUMBER"):
        read_conditions([text])


def test_several_conditions_are_read_from_one_word_or_many():
    found = read_conditions(["a < -1, b.low > 2", "c <= 3"])
    assert [str(one) for one in found] == ["a < -1", "b.low > 2", "c <= 3"]
    assert [one.name for one in read_conditions(["f1[red, blue] < 0"])] == ["f1[red, blue]"]


def test_a_condition_on_what_is_not_there_is_no_pass(sides):
    named = compare_sides(*sides(np.ones(40), np.ones(40))).named()
    with pytest.raises(UserError, match="Did you mean exact_match"):
        read_conditions(["exact_mtch < 0"])[0].holds(named)


def test_a_condition_on_an_unknown_interval_is_no_pass(tmp_path):
    items = [item | {"image": ["one.png"]} for item in _answers([1, 0, 1])]
    side = read_side(str(write_run(tmp_path / "a", items)))
    named = compare_sides(side, side).named()
    assert math.isnan(named["exact_match"].low)
    with pytest.raises(UserError, match="one cluster"):
        read_conditions(["exact_match.low < -0.01"])[0].holds(named)


# -- sides -----------------------------------------------------------------------------------------


def test_an_adapter_stands_for_the_run_that_it_is_in(tmp_path):
    run = write_run(tmp_path / "a", _answers([1, 0]))
    (run / "adapter").mkdir()
    (run / "adapter/manifest.json").write_text("{}")
    assert read_side(str(run / "adapter")).runs == read_side(str(run)).runs


def test_what_is_no_side_is_one_line_with_the_next_move(tmp_path):
    write_run(tmp_path / "failed", _answers([1]), status="failed")
    write_run(tmp_path / "empty", _answers([1]))
    (tmp_path / "empty/items.jsonl.gz").unlink()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/manifest.json").write_text("{}")
    for text, message in {
        "nowhere": "does not exist; give a run folder",
        "base": "give --data",
        str(tmp_path): "of a study give a row",
        str(tmp_path / "bare"): "is not in a run folder.*--data",
        str(tmp_path / "failed"): "not finished",
        str(tmp_path / "empty"): "items .* cannot be read",
    }.items():
        with pytest.raises(UserError, match=message):
            read_side(text)


# -- JSON fields -----------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string"}, "n": {"type": "integer"}, "at": {"type": "object"}},
}  # fmt: skip
EXPECTED = {"colour": "red", "n": 1, "at": {"x": 2}}
ANSWERS = [
    EXPECTED,
    EXPECTED | {"n": 2},
    {"colour": " red ", "at": {"x": 2.0}},
    {"n": True, "more": 1},
    "no JSON",
]


def test_the_share_of_right_fields_is_the_metrics_own_recall():
    from vlmpeft.cli.compare import json_field_scores
    from vlmpeft.evaluation.metrics import Answer, JsonFields

    texts = [answer if isinstance(answer, str) else json.dumps(answer) for answer in ANSWERS]
    schema = json.loads(json.dumps(SCHEMA))
    schema["properties"]["at"]["properties"] = {"x": {"type": "number"}}
    metric = JsonFields(schema=schema)
    metric.update([Answer(text, (json.dumps(EXPECTED),)) for text in texts])
    metric.update([Answer(texts[0], (json.dumps(EXPECTED),), finished=False)])
    recall = {k[7:]: float(v) for k, v in metric.compute().items() if k.startswith("recall.")}
    items = [
        an_item("i", generated=text, expected=json.dumps(EXPECTED), scores={"json_fields": 0.0})
        for text in [*texts, texts[0]]
    ]
    items[-1]["finish_reason"] = "length"
    found = [json_field_scores(item) for item in items]
    assert set(recall) == {"colour", "n", "at.x"}
    for name, value in recall.items():
        assert np.mean([one[f"json_fields.{name}"] for one in found]) == pytest.approx(value)


def test_fields_are_compared_where_the_metric_is_there(tmp_path):
    from vlmpeft.cli.compare import json_field_scores

    def items(colour):
        answers = [json.dumps(EXPECTED | ({"colour": colour} if n % 2 else {})) for n in range(40)]
        return [
            an_item(f"i{n}", generated=text, expected=json.dumps(EXPECTED), scores={"json_fields": 1})
            for n, text in enumerate(answers)
        ]  # fmt: skip

    a, b = (
        read_side(str(write_run(tmp_path / name, items(colour))))
        for name, colour in (("a", "red"), ("b", "blue"))
    )
    found = compare_sides(a, b, fields=json_field_scores).fields
    assert list(found) == ["json_fields.colour", "json_fields.n", "json_fields.at.x"]
    assert found["json_fields.colour"].difference == -0.5
    assert verdict(found["json_fields.colour"]) == "worse"
    assert found["json_fields.n"].difference == 0
    assert not compare_sides(*(read_side(s.name) for s in (a, b))).fields
