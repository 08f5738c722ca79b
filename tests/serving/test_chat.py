"""Chat gives the model what scoring gives it, switches adapters without a trace, and takes bad input in one line."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import load_adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.batches.collate import collate_prompts
from vlmpeft.data.datamodule import VLMData
from vlmpeft.evaluation.decoding import Limits, WholePrompts
from vlmpeft.runtime.errors import UserError
from vlmpeft.serving.adapter_switch import AdapterSwitch, keep_adapters
from vlmpeft.serving.chat import Chat
from vlmpeft.serving.streaming import Stream
from vlmpeft.serving.terminal import Terminal
from vlmpeft.strategies import BottleneckAdapter, Full, LoRA, PromptTuning
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import call, llava, randomize, write_json
from ..data.test_encode import Image, talk
from ..families import qwen_processor
from ..strategies.test_strategies import batch, logits  # noqa: F401  a fixture

BASE = BaseSpec(bits=Bits(language="fp32"))
PLANS = {
    "a": Plan(projector=Full(), language=LoRA(r=4, init="pissa")),
    "b": Plan(vision=BottleneckAdapter(), language=PromptTuning(n=3)),
}
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def folders(tiny, tmp_path):
    """Adapters a and b of the base; b has a template, a picture size and limits of its own."""
    model, processor, components = tiny
    more = {
        "chat_template": TEMPLATE,
        "max_pixels": 1000,
        "decoding": {"max_new_tokens": 3, "end_ids": [1]},
    }
    saved = {}
    for name, plan in PLANS.items():
        attached = attach(plan, model, components)
        randomize(attached)
        own = more if name == "b" else {}
        base = origin(BASE)
        saved[name] = str(
            save_adapter(tmp_path / name, attached, processor=processor, base=base, **own)
        )
        attached.detach()
    return saved


def keep(folders):
    read = [(name, Adapter.read(folder)) for name, folder in folders.items()]
    return keep_adapters(read, origin(BASE))


@pytest.fixture
def chat(tiny, folders):
    model, processor, components = tiny
    adapters = keep(folders)
    return Chat(AdapterSwitch(model, components, adapters), processor)


@pytest.fixture
def large(tmp_path):
    """A picture above b's max_pixels, and not of one colour."""
    Pillow.linear_gradient("L").resize((96, 48)).convert("RGB").save(tmp_path / "large.png")
    return str(tmp_path / "large.png")


def test_back_and_forth_between_adapters_is_bit_equal_to_fresh_loads(chat, tiny, folders, batch):  # noqa: F811
    model, _, components = tiny
    names, before = list(dict(model.named_modules())), model.state_dict()
    fresh = {None: logits(model, batch)}
    for name, folder in folders.items():
        attached = load_adapter(folder, model, components)
        fresh[name] = logits(model, batch)
        attached.detach()
    assert len({float(values.sum()) for values in fresh.values()}) == 3
    for name in ("a", "b", None, "a", "a", None, "b", None):
        chat.use(name)
        assert torch.equal(logits(model, batch), fresh[name]), name
    assert list(dict(model.named_modules())) == names
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_switching_needs_no_file(chat, folders, tmp_path):
    for name in folders:
        (tmp_path / name).rename(tmp_path / f"gone {name}")
    chat.use("a")
    chat.use("b")
    assert chat.switch.active.name == "b"
    assert chat.manner("b").encoder.template == TEMPLATE


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_model_is_given_what_scoring_gives_it(chat, large, tmp_path, name):
    """Two turns, the first with a picture: by chat's history, and by the data module with a and b's settings."""
    turns = ("what part is it?", "gear", "and what\ncolour?", "red")
    record = llava(turns[0], turns[1], image=large)
    record["conversations"] += [
        {"from": role, "value": text}
        for role, text in zip(("human", "gpt"), turns[2:], strict=True)
    ]
    more = {"max_pixels": 1000, "chat_template": TEMPLATE} if name == "b" else {}
    data = VLMData(val=write_json(tmp_path / "val.json", [record]), train=None, **more)
    data.prepare(chat.processor, splits=("val",))
    scored = [collate_prompts([encoded], 0) for _, encoded in data.dataset("val")]
    chat.use(name)
    chat.show(large)
    asked = [chat.prompt(turns[0])]
    chat.history = (chat._asked(turns[0]), talk("", turns[1]).messages[1])
    chat._is_shown = True
    asked.append(chat.prompt(turns[2]))
    for theirs, (_, encoded) in zip(scored, asked, strict=True):
        ours = collate_prompts([encoded], 0)
        assert ours.keys() == theirs.keys() >= {"input_ids", "pixel_values"}
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    start = chat.processor.tokenizer.decode(asked[1][1].input_ids[:3])
    assert start.startswith("[user" if name == "b" else "<|user|>")


def test_a_picture_size_of_one_adapter_is_not_another_s(chat, folders, large):
    """Qwen-VL's image processor holds the limit itself; adapters share it."""
    for folder in folders.values():
        (Path(folder) / "chat_template.jinja").unlink()
    adapters = keep(folders)
    chat = Chat(AdapterSwitch(chat.switch.model, {}, adapters), qwen_processor())
    sizes = []
    for name in ("a", "b", "a"):
        encoder = chat.manner(name).encoder
        encoded = encoder.encode(talk((Image(large), "what?"), "that"))
        sizes.append(encoded.model_inputs["image_grid_thw"].prod().item())
    assert sizes[0] == sizes[2] > sizes[1]


def test_answers_are_those_of_scoring_and_are_remembered(chat, large):
    chat.use("a")
    chat.show(large)
    pieces = []
    sample = chat.prompt("what part is it?")
    limits = chat.manner("a").limits
    (ids,) = WholePrompts(chat.switch.model, limits).generate([sample])
    answer = chat.ask("what part is it?", pieces.append)
    assert answer.text == chat.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert "".join(pieces) == answer.text
    assert [m.role for m in chat.history] == ["user", "assistant"]
    assert chat.history[0].images[0].label == large
    chat.use("b")
    answer = chat.ask("and now?")
    assert answer.num_tokens <= 3
    assert [len(m.images) for m in chat.history] == [1, 0, 0, 0]
    chat.reset()
    assert [type(part) for part in chat.prompt("again?")[0].conversation.messages[0].parts] == [
        Image,
        str,
    ]


def test_a_picture_is_read_once(chat, large, tmp_path):
    chat.show(large)
    before = chat.prompt("what?")[1].model_inputs["pixel_values"]
    Pillow.new("RGB", (8, 8)).save(large)
    assert torch.equal(chat.prompt("what?")[1].model_inputs["pixel_values"], before)


def test_text_is_shown_as_it_comes_and_never_half_a_character():
    tokenizer = qwen_processor().tokenizer
    text = "a grün 工具 <b> x"
    ids = tokenizer(text)["input_ids"]
    pieces = []
    stream = Stream(tokenizer, pieces.append)
    for value in (torch.tensor([[1, 2, 3]]), *torch.tensor(ids)):
        stream.put(value)
    assert "".join(pieces) == text
    assert len(pieces) > 3
    assert "\ufffd" not in "".join(pieces)
    assert stream.finish(ids) == text == "".join(pieces)


def test_a_conversation_longer_than_the_model_reads_is_refused_and_forgotten(chat):
    chat.use("a")
    with pytest.raises(UserError, match=r"tokens and the model can read 1024; begin anew: /reset"):
        chat.ask("gear " * 1100)
    assert chat.history == ()
    room = chat._within_context(Limits(256, (1,), 0), 1000).max_new_tokens
    assert room == 24


def talked(chat, monkeypatch, capsys, *lines):
    """(stdout, stderr lines) of a conversation of these lines."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    Terminal(chat).run()
    captured = capsys.readouterr()
    return captured.out, captured.err.splitlines()


def test_bad_input_is_one_line_and_ends_nothing(chat, large, monkeypatch, capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    lines = [
        "",
        "/adaptr b",
        "/adapter c",
        "/base b",
        "/image nowhere.png",
        f"/image {tmp_path}/broken.png",
        f"/image {tmp_path}",
        "what is in <image>?",
        f"/image {large}",
        "what part is it?",
        "/adapter b",
        "/quit",
        "not read",
    ]
    out, err = talked(chat, monkeypatch, capsys, *lines)
    expected = [
        "base answers; adapters: a, b",
        "/help lists",
        "an empty line",
        "unknown command '/adaptr'. Did you mean /adapter?",
        "no adapter 'c'. There is: a, b.",
        "/base takes nothing",
        "image nowhere.png does not exist; paths are relative to",
        "broken.png cannot be read",
        "it is a directory",
        "more <image> in the text than images given",
        "large.png goes with the next question",
        "b answers",
    ]
    assert len(err) == len(expected)
    assert all(part in line for part, line in zip(expected, err, strict=True))
    assert out.strip()
    assert [message.role for message in chat.history] == ["user", "assistant"]
    assert chat.switch.active.name == "b"


def test_tensors_that_do_not_fit_leave_the_base_and_say_so(
    chat,
    monkeypatch,
    capsys,
    batch,  # noqa: F811
):
    plain = logits(chat.switch.model, batch)
    chat.use("a")
    chat.switch.kept["b"].adapter.tensors.popitem()
    _, err = talked(chat, monkeypatch, capsys, "/adapter b", "/reset")
    assert err[2].startswith("adapter")
    assert err[2].endswith("; base answers")
    assert err[3:] == ["forgotten", "end of the input: the conversation ends"]
    assert torch.equal(logits(chat.switch.model, batch), plain)


def test_once_prints_the_answer_alone(folders, large, capsys):
    options = ["--bits=fp32", "--adapter", f"json={folders['a']}", f"x={folders['b']}"]
    assert call("chat", *options, "--image", large, "--once", "what part is it?") == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "trained on a base in other bits" not in captured.err
    chat_only = captured.out
    assert call("chat", *options[:3], "--image", large, "--once", "what part is it?") == 0
    assert capsys.readouterr().out != chat_only


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter", "{a}", "{a}"], "two adapters are called 'a'"),
        (["--adapter", "{a}/nothing"], "there is no manifest.json"),
        (["--image", "nowhere.png", "--adapter", "{a}"], "image nowhere.png does not exist"),
        (["--bits", "nf5"], "nf5 is not one of"),
        (["--max_new_tokens", "0"], "'0' is not a number of tokens"),
        (["--adapter", "{other}"], "belongs to base tiny (fingerprint 00), not to"),
        (["--once", " "], "an empty question"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(folders, tmp_path, capsys, options, message):
    other = tmp_path / "b"
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["base"]["fingerprint"] = "00"
    write_json(other / "manifest.json", manifest)
    named = {"a": folders["a"], "other": str(other)}
    args = [option.format(**named) for option in options]
    args += [] if "--once" in args else ["--once", "what?"]
    assert call("chat", *args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line
    assert "--model." not in line
