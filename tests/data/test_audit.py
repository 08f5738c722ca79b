"""`data check` finds what would stop or mislead a run, and says where."""

import json
from dataclasses import replace

import pytest
from PIL import Image as Pillow

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.audit.audit import audit, brief_audit
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.data.batches.token_view import check_labels, view_tokens
from vlmpeft.data.datamodule import VLMData
from vlmpeft.runtime.errors import UserError

from ..conftest import call, llava, write_json

SCHEMA = {
    "type": "object",
    "properties": {"item": {"enum": ["gear", "nut"]}},
    "required": ["item"],
}


@pytest.fixture
def noise(tmp_path):
    """Five different pictures 0.png .. 4.png, and 0 again in half its size as copy.jpg."""
    for n in range(5):
        picture = Pillow.effect_noise((16, 16), 90 + n).resize((256, 256)).convert("RGB")
        picture.save(tmp_path / f"{n}.png")
        if n == 0:
            picture.resize((128, 128)).save(tmp_path / "copy.jpg")
    return tmp_path


def prepared(folder, train, val=None, **settings):
    data = VLMData(
        train=write_json(folder / "train.json", train),
        val=write_json(folder / "val.json", val) if val else None,
        on_error="skip",
        over_length="drop",
        **settings,
    )
    data.prepare(load_processor(BaseSpec()))
    return data


def found(data, schema=None):
    """level: text -> examples."""
    return {f"{f.level}: {f.text}": f.examples for f in audit(data, schema).findings}


def test_clean_data_has_no_findings(noise):
    data = prepared(noise, [llava(image="0.png"), llava(image="1.png")], [llava(image="2.png")])
    assert found(data) == {}


def test_pictures_and_conversations_in_two_splits_are_found(noise):
    same = noise / "elsewhere.png"
    same.write_bytes((noise / "1.png").read_bytes())
    train = [llava("a?", image="0.png"), llava("b?", image="1.png")]
    val = [llava("c?", image="elsewhere.png"), llava("a?", image="0.png")]
    findings = found(prepared(noise, train, val))
    assert "warning: 2 images of val are also in train" in findings
    assert "warning: 1 conversations of val are also in train" in findings


def test_a_picture_saved_again_in_another_size_is_found(noise):
    data = prepared(noise, [llava(image="0.png"), llava(image="1.png")], [llava(image="copy.jpg")])
    (text,) = found(data)
    assert text == "warning: 1 groups of pictures look (nearly) the same, in several splits"


def test_contradictions_and_repeats_are_found(noise):
    train = [llava(answer="nut", image="0.png"), llava(answer="gear", image="0.png")]
    train += [llava(answer="bolt", image="1.png")] * 3
    findings = found(prepared(noise, train))
    assert "warning: train: 1 questions about the same pictures have different answers" in findings
    assert "warning: train: 2 conversations repeat an earlier one" in findings


def test_broken_and_overlong_records_are_errors_that_name_them(noise):
    train = [
        llava(image="0.png"),
        llava(image="gone.png"),
        llava(answer="gear " * 90, image="1.png"),
    ]
    findings = found(prepared(noise, train, max_length=64))
    broken = next(v for k, v in findings.items() if k.startswith("error: 1 records cannot"))
    assert "record 1" in broken[0]
    assert "gone.png" in broken[0]
    assert "error: 1 conversations are longer than data.max_length=64" in findings


def test_targets_that_violate_the_schema_are_errors(noise):
    train = [
        llava(answer=answer, image=f"{n}.png")
        for n, answer in enumerate(('{"item": "gear"}', '{"item": "cog"}', "gear"))
    ]
    findings = found(prepared(noise, train), SCHEMA)
    (examples,) = [v for k, v in findings.items() if "2 answers violate the JSON Schema" in k]
    assert "cog" in examples[0]
    assert "not valid JSON" in examples[1]


def test_one_answer_that_is_not_json_among_many_that_are_is_found(noise):
    train = [llava(f"{n}?", '{"a": 1}', image=f"{n % 5}.png") for n in range(19)]
    train.append(llava("last?", '{"a": 1', image="0.png"))
    assert "error: train: 1 answers are not valid JSON, the others are" in found(
        prepared(noise, train)
    )


def test_numbers_are_those_of_the_data(noise):
    train = [llava("a?", "nut", image="0.png"), llava("b?", "nut", image="0.png")]
    train += [llava("c?", "gear", image=None), llava("d?", "nut", image="1.png")]
    split = audit(prepared(noise, train)).splits["train"]
    assert (split.conversations, split.answers, split.images) == (4, 4, 3)
    assert (split.distinct_images, split.text_only, split.distinct_answers) == (2, 1, 2)
    assert split.commonest[0] == ("nut", 3)
    assert sum(count for _, _, count in split.histogram) == 4
    assert 0 < split.supervised_share < split.image_share < 1


def test_brief_audit_is_one_line_for_clean_data(noise):
    data = prepared(noise, [llava(image="0.png")], [llava(image="1.png")])
    (line,) = brief_audit(data)
    assert line.startswith("data: 1 train, 1 val; ")


def test_tokens_are_shown_with_role_label_and_image_span(noise):
    data = prepared(noise, [llava("what part is it?", "gear", image="0.png")])
    (view,) = view_tokens(data.encoder, data.conversations("train"))
    assert [r.count for r in view.rows if r.is_image] == [16]
    assert {r.role for r in view.rows if r.is_image} == {"user"}
    learnt = [r for r in view.rows if r.is_learnt]
    assert "".join(r.text for r in learnt) == "gear<|end|>"
    assert {r.role for r in learnt} == {"assistant"}
    assert sum(r.count for r in view.rows) == data.measured["train"][0].length


class _Mislabels(Encoder):
    """Supervises one token too many, too few, or none of the right ones."""

    def __init__(self, processor, shift):
        super().__init__(processor)
        self.shift = shift

    def encode(self, conversation, only_turn=None):
        encoded = super().encode(conversation, only_turn)
        start, end = encoded.turns[0]
        labels = encoded.labels.clone()
        if self.shift < 0:  # a token of the question as well
            labels[start + self.shift] = encoded.input_ids[start + self.shift]
        else:  # not the end token
            labels[end - self.shift :] = -100
        return replace(encoded, labels=labels)


@pytest.mark.parametrize(("shift", "reason"), [(-1, "what is supervised is"), (1, "end token")])
def test_wrong_labels_are_noticed(noise, shift, reason):
    data = prepared(noise, [llava("what part is it?", "gear", image="0.png")])
    conversations = data.conversations("train")
    assert check_labels(data.encoder, conversations) == []
    ((_, text),) = check_labels(_Mislabels(data.processor, shift), conversations)
    assert reason in text


def test_check_exits_with_4_and_leaves_the_page_when_something_is_wrong(noise, capsys):
    path = write_json(noise / "d.json", [llava(image="0.png"), llava(image="gone.png")])
    assert call("data", "check", f"--data.train={path}", "--html", noise / "p.html") == 4
    assert "gone.png" in capsys.readouterr().out
    assert "gone.png" in (noise / "p.html").read_text()


def test_check_prints_nothing_but_json_when_asked(noise, capsys):
    path = write_json(noise / "d.json", [llava("<b>&?", image="0.png")])
    assert call("data", "check", "--json", f"--data.train={path}") == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["conversations"] == 1


def test_page_escapes_what_data_says(noise):
    path = write_json(noise / "d.json", [llava("<script>alert(1)</script>", image="0.png")])
    assert call("data", "check", f"--data.train={path}", "--html", noise / "p.html") == 0
    page = (noise / "p.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_answers_that_wait_for_an_annotator_are_refused(noise):
    with pytest.raises(UserError, match=r"1 .*\[ANNOTATE"):
        prepared(noise, [llava(image="0.png"), llava(answer="[ANNOTATE: it]", image="1.png")])
