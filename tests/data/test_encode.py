"""Labels are exactly the answers and their end tokens, for every turn and however often text repeats."""

import copy

import pytest
import torch
from PIL import Image as Pillow

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches.collate import collate, collate_prompts
from vlmpeft.data.batches.encode import IGNORE, Encoded, Encoder
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.runtime.errors import UserError

from ..families import qwen_processor


@pytest.fixture(scope="module")
def processor():
    return load_processor(BaseSpec())


@pytest.fixture(scope="module", name="qwen_processor")
def _qwen_processor():
    return qwen_processor()


def talk(*turns, system=None):
    """Conversation of user and assistant turns; a user turn is text or (images..., text)."""
    messages = [Message("system", (system,))] if system else []
    for number, turn in enumerate(turns):
        parts = turn if isinstance(turn, tuple) else (turn,)
        messages.append(Message("assistant" if number % 2 else "user", parts))
    return Conversation("talk", tuple(messages), "test record 0")


def supervised(processor, encoded):
    """The supervised text, turn by turn."""
    decode = processor.tokenizer.decode
    return [decode(encoded.labels[start:end]) for start, end in encoded.turns]


def test_every_answer_and_its_end_token_is_supervised_and_nothing_else(processor, pictures):
    image = Image(str(pictures / "a.png"))
    encoded = Encoder(processor).encode(talk((image, "what part?"), "gear", "what colour?", "red"))
    assert supervised(processor, encoded) == ["gear<|end|>", "red<|end|>"]
    inside = {i for start, end in encoded.turns for i in range(start, end)}
    assert {i for i, label in enumerate(encoded.labels.tolist()) if label != IGNORE} == inside
    assert not (encoded.labels == processor.image_token_id).any()


def test_an_answer_repeated_in_the_question_is_not_supervised_there(processor):
    encoded = Encoder(processor).encode(talk("repeat: red red", "red red", "red red", "red red"))
    assert supervised(processor, encoded) == ["red red<|end|>", "red red<|end|>"]
    assert encoded.turns[0][0] > 3


def test_system_prompt_is_not_supervised(processor):
    encoded = Encoder(processor).encode(talk("hi", "nut", system="answer briefly."))
    assert supervised(processor, encoded) == ["nut<|end|>"]
    assert "answer briefly" in processor.tokenizer.decode(encoded.input_ids)


def test_spans_survive_image_expansion_in_several_turns(qwen_processor, tmp_path):
    """Image tokens differ with the picture's size: 2 pictures before, 1 between two answers."""
    paths = []
    for name, size in {"a": (56, 56), "b": (112, 56), "c": (56, 112)}.items():
        Pillow.new("RGB", size, "red").save(tmp_path / f"{name}.png")
        paths.append(Image(str(tmp_path / f"{name}.png")))
    conversation = talk((paths[0], paths[1], "compare"), "same", ("now ", paths[2]), "other")
    encoded = Encoder(qwen_processor).encode(conversation)
    assert supervised(qwen_processor, encoded) == ["same<|im_end|>", "other<|im_end|>"]
    image_tokens = (encoded.input_ids == qwen_processor.image_token_id).sum().item()
    assert (
        image_tokens
        == 4 + 8 + 8
        == encoded.model_inputs["image_grid_thw"].prod(-1).sum().item() // 4
    )


def test_ids_equal_the_processor_s_own(qwen_processor, pictures):
    image = Image(str(pictures / "a.png"))
    encoded = Encoder(qwen_processor).encode(talk((image, "what?"), "that"))
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "that"}]},
    ]
    text = qwen_processor.apply_chat_template(chat, tokenize=False)
    expected = qwen_processor(
        text=[text], images=[Pillow.open(pictures / "a.png")], return_tensors="pt"
    )
    assert torch.equal(encoded.input_ids, expected["input_ids"][0])
    assert torch.equal(encoded.model_inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(encoded.model_inputs["mm_token_type_ids"], expected["mm_token_type_ids"])


def test_white_space_after_the_end_token_is_not_supervised(qwen_processor):
    encoded = Encoder(qwen_processor).encode(talk("a", "b", "c", "d"))
    assert supervised(qwen_processor, encoded) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_template_without_end_token_is_refused(processor):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }} {% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(UserError, match="end token"):
        Encoder(processor, template).encode(talk("hi", "there"))


def test_shipped_vicuna_template_supervises_the_end_token(processor):
    template = "vicuna"
    encoded = Encoder(processor, template).encode(talk("hi", "there"))
    assert (
        processor.tokenizer.decode(encoded.labels[slice(*encoded.turns[0])]).strip()
        == "there<|end|>"
    )


def test_scoring_one_turn_keeps_the_turns_before_it_as_context(processor):
    encoded = Encoder(processor).encode(talk("one?", "1", "two?", "2", "three?", "3"), only_turn=3)
    assert supervised(processor, encoded) == ["2<|end|>"]
    prompt = processor.tokenizer.decode(encoded.input_ids[: encoded.turns[0][0]])
    assert prompt == "<|user|>one?<|end|><|assistant|>1<|end|><|user|>two?<|end|><|assistant|>"


def test_mixed_batch_pads_ids_and_joins_pixels(processor, pictures):
    encoder = Encoder(processor)
    image = Image(str(pictures / "a.png"))
    samples = [
        encoder.encode(talk((image, "what part is at the top left?"), "gear")),
        encoder.encode(talk("hi", "nut")),
        encoder.encode(talk((image, image, "same?"), "yes")),
    ]
    batch = collate(samples, pad_id=0)
    longest = max(len(sample) for sample in samples)
    assert batch["input_ids"].shape == batch["labels"].shape == (3, longest)
    assert batch["pixel_values"].shape[0] == 3
    assert batch["attention_mask"].sum(-1).tolist() == [len(sample) for sample in samples]
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE).all()
    prompts = collate_prompts(samples, pad_id=0)
    assert prompts["attention_mask"][:, -1].all()
    assert "labels" not in prompts


def test_what_a_template_refuses_and_our_marks_in_a_text_are_one_line(processor):
    refusing = Encoder(processor, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="the chat template refused it: roles must alternate"):
        refusing.encode(talk("hi", "nut"))
    with pytest.raises(UserError, match=r"U\+E0F0"):
        Encoder(processor).encode(talk("a\ue0f1b", "nut"))


def test_another_answer_has_the_token_values_of_the_one_it_replaces():
    """Type 0 before the answer and 1 in it, as PaliGemma reads them; pictures are left alone."""
    pixels = torch.rand(1, 3, 2, 2)
    inputs = {"token_type_ids": torch.tensor([[0, 0, 1, 1, 1]]), "pixel_values": pixels}
    labels = torch.tensor([IGNORE, IGNORE, 7, 8, 0])
    encoded = Encoded(torch.tensor([5, 6, 7, 8, 0]), labels, ((2, 5),), inputs)
    other = encoded.with_answer(2, 5, [9, 3, 4, 0])
    assert other.input_ids.tolist() == [5, 6, 9, 3, 4, 0]
    assert other.labels.tolist() == [IGNORE, IGNORE, 9, 3, 4, 0]
    assert other.turns == ((2, 6),)
    assert other.model_inputs["token_type_ids"].tolist() == [[0, 0, 1, 1, 1, 1]]
    assert torch.equal(other.model_inputs["pixel_values"], pixels)


def test_of_several_named_templates_the_default_is_used(processor):
    several = copy.copy(processor)
    own = Encoder(processor).template
    several.chat_template = {"default": own, "tool_use": "x"}
    assert Encoder(several).template == own
    several.chat_template = {"tool_use": "x"}
    with pytest.raises(UserError, match="no chat template that is named default, but 'tool_use'"):
        Encoder(several)


def test_a_template_that_writes_our_marks_is_refused(processor):
    own = Encoder(processor).template
    with pytest.raises(UserError, match=r"the chat template writes .*U\+E0F0"):
        Encoder(processor, "\ue0f1" + own).encode(talk("hi", "nut"))


def test_long_conversations_are_encoded_as_short_ones(processor, pictures):
    image = Image(str(pictures / "a.png"))
    asked = [(image, "what?") if n in (0, 7) else f"q {n}" for n in range(20)]
    conversation = talk(*(turn for question in asked for turn in (question, " red ")))
    encoder = Encoder(processor)
    encoded, ends = encoder.encode_with_ends(conversation)
    assert len(encoded.turns) == 20
    for turn, (start, end), until in zip(range(1, 40, 2), encoded.turns, ends[1::2], strict=True):
        alone = encoder.encode(conversation, turn)
        assert alone.turns == ((start, end),)
        assert torch.equal(alone.input_ids, encoded.input_ids[:until])
