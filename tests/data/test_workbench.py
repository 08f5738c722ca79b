import itertools
import json
import random
from dataclasses import replace

from PIL import Image

from vlmpeft.data.workbench.build import build_task
from vlmpeft.data.workbench.format import BAYS, ITEMS, KEYS, PAINTS, House
from vlmpeft.data.workbench.scene import COLOURS, NAMES, PLACES, SPLITS, Part, Scene, draw_scene
from vlmpeft.data.workbench.source import (
    SOURCE,
    ask_describe,
    ask_record,
    ask_told,
    ask_yes_no,
)
from vlmpeft.data.workbench.tasks import SHIFTED, TASKS


def _scenes(split, number=400):
    from vlmpeft.data.workbench.scene import random_scene

    rng = random.Random(f"test {split}")
    return [random_scene(rng, split) for _ in range(number)]


def test_no_layout_is_in_two_splits():
    signatures = {
        split: {scene.signature for scene in _scenes(split)} for split in ("train", "val", "test")
    }
    assert not signatures["train"] & signatures["test"]
    assert not signatures["train"] & signatures["val"]
    assert not signatures["val"] & signatures["test"]


def test_same_seed_same_files(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "format", replace(TASKS["format"], val=3, test=3))
    for name in ("one", "two"):
        build_task("format,n=12", tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 3 + 18
    assert all(
        (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files
    )
    with Image.open(tmp_path / "one" / "images" / "train-0.png") as picture:
        assert picture.size == (64, 64)


def test_yes_no_is_balanced_and_half_of_the_false_claims_are_hard():
    rng = random.Random(0)
    answers, hard, false = [], 0, 0
    for scene in _scenes("train", 2000):
        question = ask_yes_no(scene, rng)
        answers.append(question.answer)
        if question.answer == "no":
            claim = question.prompt.rstrip("?").split()[-1]
            false += 1
            hard += claim in scene.signature.replace("|", " ").split()
    assert 0.47 < answers.count("yes") / len(answers) < 0.53
    assert hard / false > 0.45


def test_answers_are_true_of_the_scene():
    red_gear, blue_nut = Part("gear", "red"), Part("nut", "blue")
    scene = Scene((red_gear, None, blue_nut, red_gear))
    rng, truths = random.Random(0), set()
    for _ in range(300):
        for ask, _ in SOURCE.values():
            if (question := ask(scene, rng)) and question.about_picture:
                truths.add((question.prompt, question.answer))
    truths = dict(truths)
    assert truths["how many gears are there?"] == "2"
    assert truths["how many parts are there?"] == "3"
    assert truths["what part is at the top right?"] == "nothing"
    assert truths["what colour is the part at the bottom left?"] == "blue"
    assert truths["where is the blue nut?"] == "bottom left"
    assert "where is the red gear?" not in truths
    assert truths["where is the nut?"] == truths["where is the blue part?"] == "bottom left"
    assert truths["is the part at the top left blue?"] == "no"
    assert truths["is the part at the bottom left red? look first."] == "blue, so no."
    assert truths["is the part at the bottom left a nut? look first."] == "nut, so yes."
    assert truths["is each part red?"] == "yes, no, no, yes."
    assert truths["is each part a nut?"] == "no, no, yes, no."
    expected = (
        "a red gear at the top left, a blue nut at the bottom left, a red gear at the bottom right."
    )
    assert truths["describe the picture."] == expected


def test_what_is_told_is_what_would_be_shown():
    rng, kinds = random.Random(0), set()
    for scene in _scenes("train", 300):
        if question := ask_told(scene, rng):
            description = ask_describe(scene, rng).answer
            assert question.prompt.startswith(description)
            assert not question.about_picture
            kinds.add(question.prompt.removeprefix(description).split()[0])
    assert kinds == {"what", "how", "where", "is"}


def test_records_hold_what_was_asked_for():
    rng = random.Random(0)
    for scene in _scenes("train", 300):
        question = ask_record(scene, rng)
        place, _, wanted = question.prompt.removeprefix("the part at the ").partition(" as json: ")
        part = dict(scene.occupied())[place]
        values = {"name": part.name, "colour": part.colour, "place": place}
        keys = dict(entry.split(" is its ") for entry in wanted.split(", "))
        assert json.loads(question.answer) == {key: values[what] for key, what in keys.items()}


def test_a_word_is_the_same_tokens_wherever_it_stands():
    from vlmpeft.base.loading import load_processor
    from vlmpeft.base.spec import BaseSpec

    tokenizer = load_processor(BaseSpec()).tokenizer
    for word in (*NAMES, *COLOURS, *PLACES, *ITEMS.values(), *PAINTS.values()):
        (alone,) = tokenizer([word]).input_ids
        for text in (
            f"repeat: {word}",
            f'{{"{word}": 1}}',
            f"where is the {word}?",
            f"x is {word}, y",
        ):
            (ids,) = tokenizer([text]).input_ids
            spans = [ids[i : i + len(alone)] for i in range(len(ids))]
            assert alone in spans, (word, text)
    assert all(len(tokenizer(word).input_ids) == 1 for word in (*NAMES, *COLOURS, *PLACES))


def test_format_answers_are_json_in_the_house_vocabulary():
    rng = random.Random(0)
    for scene in _scenes("train", 50):
        for ask in TASKS["format"].questions.values():
            record = json.loads(ask(scene, rng).answer)
            assert record.keys() <= {"bay", "item", "paint", "count"}
    assert PAINTS.keys() == COLOURS.keys()
    assert ITEMS.keys() == set(NAMES)


def test_empty_places_differ_from_occupied_ones_in_the_picture():
    empty = draw_scene(Scene((Part("gear", "red"), None, None, None)))
    full = draw_scene(Scene((Part("gear", "red"), Part("nut", "blue"), None, None)))
    left, right = (0, 0, 32, 32), (32, 0, 64, 32)
    assert empty.crop(left).tobytes() == full.crop(left).tobytes()
    assert empty.crop(right).tobytes() != full.crop(right).tobytes()
    assert len(PLACES) == 4


def test_the_first_training_conversations_are_the_same_however_many_there_are(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(TASKS, "style", replace(TASKS["style"], val=2, test=2))
    for number in (3, 6):
        build_task(f"style,n={number}", tmp_path / str(number))
    few, many = (
        {name: json.loads((tmp_path / n / f"{name}.json").read_text()) for name in SPLITS}
        for n in ("3", "6")
    )
    assert len(many["train"]) == 6
    assert few["train"] == many["train"][:3]
    assert (few["val"], few["test"]) == (many["val"], many["test"])


def test_words_that_are_new_at_a_shift_are_new_at_every_larger_one():
    shifts = [i / 10 for i in range(11)]
    for field, old in {"bays": BAYS, "items": ITEMS, "paints": PAINTS, "keys": KEYS}.items():
        words = [getattr(House.at(shift), field) for shift in shifts]
        new = [{word for word, said in one.items() if word != said} for one in words]
        assert all(a <= b for a, b in itertools.pairwise(new))
        assert new[0] == set()
        assert words[-1] == old
        assert all(len({*one.values()}) == len(one) for one in words)


def test_format_at_no_shift_says_what_the_source_task_would():
    rng = random.Random(0)
    for scene in _scenes("train", 30):
        record = json.loads(SHIFTED["format"](0.0).questions["part"](scene, rng).answer)
        part = dict(scene.occupied())[record["place"]]
        assert record == {"place": record["place"], "name": part.name, "colour": part.colour}


def test_kinds_are_asked_in_turns_where_no_weights_are_given():
    for name in ("source_pictures", "style", "gauge"):
        task = TASKS[name]
        kinds = [
            task.example(random.Random(index), "val", index)[0].kind
            for index in range(2 * len(task.questions))
        ]
        assert kinds == [*task.questions] * 2
