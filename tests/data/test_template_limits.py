"""A chat template comes from strangers: it renders what transformers renders, or ends soon with one line."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches.encode import Encoder, read_template
from vlmpeft.data.batches.render import Limits, Renderer
from vlmpeft.runtime.errors import UserError

from ..families import qwen_processor

SECONDS, SPARE_BYTES = 0.5, 2**27
CHAT = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set n = namespace(s='aa') %}{% for i in range(64) %}{% set n.s = n.s OP n.s %}{% endfor %}"
)
SHARED = (
    "{% set n = namespace(l=[1]) %}{% for i in range(40) %}{% set n.l = [n.l, n.l] %}{% endfor %}"
)
BOMBS = {
    "loops": (LOOPS, "0.5 s"),
    "repeat": ("{{ 'a' * 4000000000 }}", "memory"),
    "tilde": (DOUBLED.replace("OP", "~"), "memory"),
    "plus": (DOUBLED.replace("OP", "+"), "memory"),
    "percent": ("{{ '%4000000000d' % 1 }}", "memory"),
    "format": ("{{ '{:4000000000}'.format(1) }}", "memory"),
    "center": ("{{ 'a'|center(4000000000) }}", "memory"),
    "ljust": ("{{ 'a'.ljust(4000000000) }}", "memory"),
    "zfill": ("{{ 'a'.zfill(4000000000) }}", "memory"),
    "lipsum": ("{{ lipsum(n=10**8) }}", "0.5 s|memory"),
    "power": ("{{ 10 ** (10 ** 8) }}", "0.5 s"),
    "replace": ("{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}", "memory"),
    "shared": (SHARED + "{{ n.l|string }}", "0.5 s|memory"),
    "macro": ("{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(0) }}", "RecursionError"),
    "tojson": ("{{ [1]|tojson(indent=1000000000) }}", "memory"),
    "joiner": ("{% set j = joiner('a' * 90000000) %}{{ j() }}{{ j() }}{{ j() }}", "memory"),
    "cycler": ("{% set c = cycler('a' * 90000000) %}{{ c.next() }}{{ c.next() }}", "memory"),
    "text": ("{{ 'a' * 2000000 }}", "more than 1,000,000 characters"),
    "template": ("a" * (2**20 + 1), "1,048,577 characters"),
    "type": ("{{ 1 + 'a' }}", "TypeError"),
    "zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "syntax": ("{% for %}", "refused it: Expected an expression"),
    "escape": ("{{ ''.__class__.__mro__ }}", "refused it: access to attribute"),
    "refusal": ("{{ raise_exception('no\n\x1b[1m' ~ 'x' * 1000000) }}", r"no \\x1b\[1mxxx"),
}


@pytest.fixture(scope="module")
def renderer():
    made = Renderer(Limits(SECONDS, 0, SPARE_BYTES, characters=10**6))
    yield made
    made.close()


@pytest.fixture(scope="module")
def processor():
    return load_processor(BaseSpec())


def text(renderer, template, chat=CHAT):
    return renderer.locate(template, {}, chat).text


def status(renderer, name):
    """KiB of the renderer's process."""
    lines = Path(f"/proc/{renderer._worker._process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_soon_with_one_line_and_the_next_template_is_rendered(renderer, name):
    template, reason = BOMBS[name]
    assert text(renderer, "ready") == "ready"
    started = time.monotonic()
    with pytest.raises(UserError, match=reason) as refused:
        text(renderer, template)
    assert time.monotonic() - started < SECONDS + 5
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 500
    assert text(renderer, "{{ messages[0].content[0].text }}") == "hi"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_template_has_no_more_memory_than_the_limit(renderer):
    text(renderer, "ready")
    before = status(renderer, "VmSize")
    text(renderer, "{% set a = 'a' * (60000000 * messages|length) %}{{ a|length }}")
    assert 50_000 < status(renderer, "VmPeak") - before < SPARE_BYTES / 1024 + 20_000


def test_a_template_that_is_always_too_slow_is_not_tried_for_ever():
    renderer = Renderer(Limits(0.1, 0))
    for _ in range(3):
        with pytest.raises(UserError, match=r"0\.1 s"):
            text(renderer, LOOPS)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"0\.1 s"):
        text(renderer, LOOPS)
    assert time.monotonic() - started < 0.1
    renderer.close()


@pytest.mark.parametrize(
    "said",
    ["plain", " spaces \n", "", "\x00\x1b", "\u2028\u2029", "\ud83d", "\ud83d\ude00", "<b>&'\""],
    ids=ascii,
)
def test_it_renders_what_the_processor_renders(renderer, processor, said):
    chats = [
        [{"role": "system", "content": [{"type": "text", "text": said}]}, *CHAT],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": said}]}],
    ]
    templates = [read_template("vicuna"), "{{ bos_token }}{{ eos_token }}{{ messages|tojson }}"]
    for one in (processor, qwen_processor()):
        variables = one.tokenizer.special_tokens_map
        for template in (Encoder(one).template, *templates):
            for chat in chats:
                expected = one.apply_chat_template(chat, chat_template=template, tokenize=False)
                assert renderer.locate(template, variables, chat).text == expected


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_share_a_process_and_a_fork_has_its_own(renderer):
    def say(word):
        chat = [{"role": "user", "content": [{"type": "text", "text": word}]}]
        return text(renderer, "{{ messages[0].content[0].text }}", chat)

    words = [f"word {n}" for n in range(40)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(say, words)) == words
    mine = renderer._worker._process.pid
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert say("parent") == "parent"
    else:
        is_right = say("child") == "child" and renderer._worker._process.pid != mine
        os._exit(0 if is_right else 1)


def test_the_process_ends_with_the_one_that_started_it():
    code = (
        "from vlmpeft.data.batches.render import Renderer; import os, signal; r = Renderer();"
        "r.locate('', {}, []); print(r._worker._process.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    process, deadline = Path(f"/proc/{run.stdout.strip()}/stat"), time.monotonic() + 5
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(process)


def is_running(stat):
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_modules_in_the_working_directory_and_the_environment_are_not_there(tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    renderer = Renderer()
    assert text(renderer, "ready") == "ready"
    if sys.platform == "linux":
        environment = Path(f"/proc/{renderer._worker._process.pid}/environ").read_bytes()
        assert b"secret" not in environment
    renderer.close()


def test_a_template_file_that_is_no_template_is_one_line(tmp_path):
    (tmp_path / "a.jinja").write_text("a" * (2**20 + 1))
    (tmp_path / "b.jinja").write_bytes(b"\xff\xfe")
    for name, reason in (("a.jinja", "1,048,576 characters"), ("b.jinja", "UTF-8")):
        with pytest.raises(UserError, match=reason):
            read_template(str(tmp_path / name))
