"""Answers of long conversations are found in linear time, where rendering every prefix finds them."""

import random

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches import turns
from vlmpeft.data.batches.encode import read_template
from vlmpeft.data.batches.turns import MovingTurnError, locate

from ..families import qwen_processor

SAY = "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
ASK = "{% if add_generation_prompt %}<assistant>{% endif %}"


def each(before="<{{ m.role }}>", say=SAY, after="<end>\n", start="", end=ASK):
    """A template of a message."""
    return start + "{% for m in messages %}" + before + say + after + "{% endfor %}" + end


TEMPLATES = {
    "plain": each(),
    "bos first": each(before="{% if loop.first %}<bos>{% endif %}<{{ m.role }}>"),
    "end on last": each(after="{% if loop.last %}<end>{% endif %}\n"),
    "rounds": each(before="{% if m.role == 'user' %}[{{ loop.index }}]{% endif %}<{{ m.role }}>"),
    "trimmed": each(say="{{ m.content[0].text|trim }}"),
    "cut": each(say="{{ (m.content[0].text or '')[:4] }}"),
    "length": each(say=SAY + "{{ (m.content[0].text or '')|length }}"),
    "upper": each(say="{{ (m.content[0].text or '')|upper }}"),
    "twice": each(say=SAY + SAY),
    "thinking": each(
        say="{% if loop.last %}" + SAY + "{% else %}{{ (m.content[0].text or '').split('>')[-1] }}"
        "{% endif %}"
    ),
    "numbered pictures": each(
        start="{% set n = namespace(i=0) %}",
        say="{% for p in m.content %}{% if p.type == 'image' %}{% set n.i = n.i + 1 %}<{{ n.i }}>"
        "{% else %}{{ p.text }}{% endif %}{% endfor %}",
    ),
    "system says": each(start="{{ messages[0].content[0].text }} {{ messages|length > 1 }}"),
    "count": each(start="{{ messages|length }}"),
    "prompt by count": each(end=ASK + "{% if messages|length > 16 %}!{% endif %}"),
    "prompt by word": each(
        end="{% if add_generation_prompt %}<assistant>"
        "{% if (messages[-1].content[0].text or '') == 'nut' %}<think>{% endif %}{% endif %}"
    ),
    "prompt grows": each(
        before="<{{ m.role }}>|",
        end=ASK + "{% if add_generation_prompt and messages|length > 16 %}|{% endif %}",
    ),
    "reversed": each().replace("in messages", "in messages[::-1]"),
    "swallows": each(say="{% if m.role == 'assistant' %}" + SAY + "{% endif %}"),
    "alternating": each(
        before="{% if loop.first and m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        "{{ ['<user>', '<assistant>'][loop.index0 % 2] }}"
    ),
}


@pytest.fixture(scope="module")
def processors():
    return {"base": load_processor(BaseSpec()), "qwen": qwen_processor()}


def rendering(template, variables=None):
    """(what renders, list of the numbers of messages it was given)."""
    given = []

    def render(chat, add_generation_prompt):
        given.append(len(chat))
        settings = {"chat_template": template, "add_generation_prompt": add_generation_prompt}
        return render_jinja_template([chat], **settings, **(variables or {}))[0][0]

    return render, given


def conversation(seed, regular=False):
    """(20 to 50 messages, positions of the answers that are learnt)."""
    rng = random.Random(seed)
    chat, learnt = [], []
    if rng.random() < 0.5:
        chat.append(message("system", "be brief."))
    while len(chat) < rng.choice((20, 33, 50)):
        chat.append(message("user", *rng.choice([["what?"]] if regular else QUESTIONS)))
        if not regular and rng.random() < 0.1:
            continue
        if regular or rng.random() < 0.8:
            learnt.append(len(chat))
        chat.append(message("assistant", rng.choice(ANSWERS)))
    return chat, learnt


QUESTIONS = [
    ["what?"],
    ["what?"],
    ["nut"],
    [""],
    [" spaces \n"],
    [None],
    [None, "this?"],
    ["a", None, "b"],
]
ANSWERS = ["nut", "red", " it is red ", "<think>hm</think>red", "what?", "a <end>\n b"]


def message(role, *parts):
    content = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
    return {"role": role, "content": content}


def found(template, chat, learnt, variables=None):
    """What is located, or that the template is refused."""
    try:
        return locate(rendering(template, variables)[0], chat, learnt, with_ends=True)
    except MovingTurnError:
        return None


def by_the_law(monkeypatch, *args):
    with monkeypatch.context() as patch:
        patch.setattr(turns, "EXACT_MESSAGES", 10**9)
        return found(*args)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("seed", range(4))
def test_any_template_is_located_or_refused_as_by_rendering_every_prefix(monkeypatch, name, seed):
    args = (TEMPLATES[name], *conversation(seed, regular=seed == 3))
    assert found(*args) == by_the_law(monkeypatch, *args)


@pytest.mark.parametrize("seed", range(4))
def test_known_templates_are_located_as_by_rendering_every_prefix(monkeypatch, processors, seed):
    for processor in processors.values():
        variables = processor.tokenizer.special_tokens_map
        own = processor.chat_template or processor.tokenizer.chat_template
        for template in (own, read_template("vicuna")):
            args = (template, *conversation(seed), variables)
            located = found(*args)
            assert located == by_the_law(monkeypatch, *args)
            assert located is not None


def test_these_templates_are_refused():
    chat, learnt = conversation(3, regular=True)
    for name in ("end on last", "thinking", "count", "reversed"):
        assert found(TEMPLATES[name], chat, learnt) is None
    for name in (
        "plain",
        "bos first",
        "rounds",
        "trimmed",
        "numbered pictures",
        "swallows",
        "prompt grows",
    ):
        assert found(TEMPLATES[name], chat, learnt) is not None


@pytest.mark.parametrize("name", ["plain", "bos first", "rounds", "trimmed", "numbered pictures"])
def test_twice_the_turns_are_twice_the_work(name):
    work = []
    for turns_ in (512, 1024):
        chat = [message(("user", "assistant")[n % 2], f" text {n}") for n in range(2 * turns_)]
        render, given = rendering(TEMPLATES[name])
        locate(render, chat, range(1, len(chat), 2), with_ends=True)
        work.append(sum(given) / len(chat))
    assert work[1] < 1.1 * work[0] < 60
