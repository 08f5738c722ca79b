"""JSON answers field by field."""

import json

import pytest

from vlmpeft.evaluation.metrics import Answer, JsonFields, load_schema, schema_violations
from vlmpeft.runtime.errors import UserError

SCHEMA = {
    "type": "object",
    "required": ["color"],
    "properties": {
        "color": {"enum": ["red", "green", "blue"]},
        "count": {"type": ["integer", "null"]},
        "size": {"$ref": "#/$defs/size"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "rusty"]}},
    },
    "$defs": {
        "size": {
            "type": "object",
            "properties": {"mm": {"type": "number"}, "note": {"type": "string"}},
        }
    },
}


def score(generated, *references):
    return JsonFields(schema=SCHEMA).score_item(Answer(generated, references))


def report(*pairs):
    """compute() over (generated, reference or references) pairs."""
    metric = JsonFields(schema=SCHEMA)
    answers = [Answer(g, r if isinstance(r, tuple) else (r,)) for g, r in pairs]
    metric.prepare([answer.references for answer in answers])
    metric.update(answers)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    ("generated", "expected", "f1"),
    [
        ('{"color": "red", "count": 1}', '{"count":1.0,"color":" red "}', 1),
        ('{"count": true}', '{"count": 1}', 0),
        ('{"count": 0}', '{"count": false}', 0),
        ('{"count": null}', '{"count": null}', 1),
        ("{}", '{"count": null}', 0),
        ("{}", "{}", 1),
        ('{"color": "red"}', "{}", 0),
        ('{"size": {"mm": 3, "note": "x"}}', '{"size": {"mm": 3, "note": "y"}}', 1 / 2),
        ('{"size": {}}', '{"size": {}}', 1),
        ('{"tags": ["old", "new"]}', '{"tags": ["new", "old"]}', 1),
        ('{"tags": ["new", "new"]}', '{"tags": ["new"]}', 0),
        ('{"other": [{"a": 1, "b": [2]}]}', '{"other": [{"b": [2.0], "a": 1}]}', 1),
        ('{"color": "red", "count": 1, "extra": 0}', '{"color": "red", "count": 1}', 4 / 5),
        ('{"color": "red", "count": 2}', '{"color": "red", "count": 1}', 1 / 2),
        ('{"color": "r\\u00e9d"}', '{"color": "r\u00e9d"}', 1),
        ('"red"', '{"color": "red"}', 0),
    ],
)
def test_an_item_is_f1_over_pairs(generated, expected, f1):
    """By hand: 2 x hits / (fields answered + fields expected)."""
    assert score(generated, expected) == pytest.approx(f1)


@pytest.mark.parametrize(
    "generated",
    [
        '```json\n{"color": "red"}\n```',
        'It is {"color": "red"}',
        '{"color": NaN}',
        "",
        '{"color": ',
    ],
)
def test_only_json_and_nothing_else_parses(generated):
    rates = report((generated, '{"color": "red"}'))
    assert rates["parse_rate"] == rates["schema_rate"] == rates[""] == 0
    assert report((' \n{"color": "red"} ', '{"color": "red"}'))["parse_rate"] == 1


def test_the_best_reference_counts_in_every_number():
    rates = report(('{"color": "blue"}', ('{"color": "red", "count": 1}', '{"color": "blue"}')))
    assert rates[""] == rates["exact"] == rates["f1.color"] == 1
    assert "f1.count" not in rates


def test_a_truncated_object_counts_as_none():
    metric = JsonFields(schema=SCHEMA)
    whole = '{"color": "red"}'
    metric.update([Answer(whole, (whole,), finished=False), Answer(whole, (whole,))])
    rates = {name: value.item() for name, value in metric.compute().items()}
    assert rates["truncated"] == rates["parse_rate"] == rates[""] == rates["recall.color"] == 0.5
    assert rates["precision.color"] == 1


def test_rates_by_hand():
    rates = report(
        ('{"color": "red", "count": 1}', '{"color": "red", "count": 1}'),
        ('{"color": "pink", "count": null}', '{"color": "red", "count": 2}'),
        ('{"count": null, "tags": ["new", "shiny"]}', '{"color": "blue", "tags": ["new"]}'),
        ("[1]", '{"count": null}'),
    )
    assert rates[""] == pytest.approx((1 + 0 + 0 + 0) / 4)
    assert rates["exact"] == 1 / 4
    assert rates["parse_rate"] == 1
    assert rates["schema_rate"] == 1 / 4
    assert rates["null_rate"] == 1 / 6
    assert rates["oov_rate"] == 2 / 4
    assert rates["precision.color"] == 1 / 2
    assert rates["recall.color"] == 1 / 3
    assert rates["f1.color"] == pytest.approx(2 / 5)
    assert rates["f1"] == pytest.approx((2 / 5 + rates["f1.count"] + 0) / 3)


def test_macro_f1_is_scikit_learn_s_example():
    """f1_score's docstring: [0, 1, 2, 0, 1, 2] against [0, 2, 1, 0, 0, 1], average="macro": 0.26..."""
    names = "red", "green", "blue"
    pairs = zip([0, 2, 1, 0, 0, 1], [0, 1, 2, 0, 1, 2], strict=True)
    rates = report(*(tuple(json.dumps({"color": names[i]}) for i in pair) for pair in pairs))
    assert rates["macro_f1.color"] == pytest.approx(4 / 15)
    assert rates["f1.color"] == pytest.approx(2 / 6)


def test_macro_f1_of_a_list_counts_its_elements_and_skips_values_never_expected():
    """By hand: new is 2/(2+1), rusty 0; old occurs in no reference."""
    rates = report(
        ('{"tags": ["new", "old"]}', '{"tags": ["new", "rusty"]}'),
        ('{"tags": ["new"]}', '{"tags": []}'),
    )
    assert rates["macro_f1.tags"] == pytest.approx((2 / 3 + 0) / 2)
    assert "macro_f1.color" not in rates


def test_fields_beyond_the_schema_count_in_the_headline_only():
    rates = report(('{"color": "red", "zip": 1}', '{"color": "red", "zip": 2}'))
    assert rates[""] == 1 / 2
    assert not [name for name in rates if name.endswith(".zip")]


def test_fields_are_found_through_references_and_combinations():
    tree = {
        "properties": {
            "name": {"type": "string"},
            "parent": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
            "kind": {"oneOf": [{"const": "leaf"}, {"enum": ["root"]}]},
            "maybe": {"type": ["object", "null"], "properties": {"x": True}},
        },
        "allOf": [{"properties": {"more": {}}}],
    }
    metric = JsonFields(schema=tree)
    found = {".".join(path): field.enum for path, field in metric.fields.items()}
    assert found == {
        "name": (),
        "parent": (),
        "parent.name": (),
        "parent.parent": (),
        "parent.kind": ("leaf", "root"),
        "parent.maybe.x": (),
        "parent.maybe": (),
        "parent.more": (),
        "kind": ("leaf", "root"),
        "maybe.x": (),
        "maybe": (),
        "more": (),
    }


def test_references_that_are_no_objects_are_counted_and_shown():
    with pytest.raises(UserError, match=r"2 of 3 references are no JSON object, first 'red'"):
        JsonFields(schema=SCHEMA).prepare([("red",), ('{"color": 1}', "[1]")])
    with pytest.raises(UserError, match="'red' is no JSON object"):
        score("{}", "red")


def test_a_schema_comes_from_its_file_and_identity_holds_its_content(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    metric = JsonFields(schema=str(path))
    assert metric.identity() == JsonFields(schema=SCHEMA).identity()
    assert metric.identity()["init_args"] == {"schema": SCHEMA}
    assert metric.score('{"color": "red"}', '{"color": "red"}') == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[1]", "no object"),
        ('{"type": "thing"}', "broken at"),
        ('{"properties": {"a": {"$ref": "#/$defs/none"}}}', "leads nowhere"),
        ('{"properties": {"a": {"$ref": "https://example.org/a.json"}}}', "leads nowhere"),
    ],
)
def test_a_broken_schema_is_named_with_its_reason(tmp_path, content, reason):
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        load_schema(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "violation"),
    [
        ('{"color": "red"}', None),
        ('{"count": 1}', "$: 'color' is a required property"),
        ('{"color": "pink"}', "$.color: 'pink' is not one of ['red', 'green', 'blue']"),
        ('{"color": "red", "size": {"mm": "3"}}', "$.size.mm: '3' is not of type 'number'"),
        ("red", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_the_first_violation_in_one_line(text, violation):
    assert schema_violations(text, SCHEMA) == violation


def test_a_violation_stays_one_short_line():
    long = schema_violations(json.dumps({"color": "x\n" * 5_000}), SCHEMA)
    assert long is not None
    assert "\n" not in long
    assert len(long) <= 300
