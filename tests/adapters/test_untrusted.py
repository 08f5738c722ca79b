"""An adapter, a record, a checkpoint, a base and a data set are data: none of them runs code, whatever it says."""

import json
import os
import shutil
import sys

import pytest
import torch
import yaml

from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits, base_dir
from vlmpeft.strategies import LoRA
from vlmpeft.strategies.plan import Plan, attach

from ..cli.test_cli import run
from ..conftest import llava, write_json

TINY = BaseSpec(bits=Bits(language="fp32"))
MARK = "it-ran"
# writes a file as soon as it is imported, and again when it is called
PROGRAM = """
import pathlib
def mark(*args, **kwargs):
    pathlib.Path({mark!r}).write_text("ran")
class Strategy:
    def __init__(self, *args, **kwargs):
        mark()
    def from_pretrained(*args, **kwargs):
        mark()
mark()
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An adapter folder as `fit` leaves it."""
    model, processor, components = load_base(TINY)
    attached = attach(Plan(language=LoRA(r=2, targets=("q_proj",))), model, components)
    folder = tmp_path_factory.mktemp("run") / "adapter"
    save_adapter(folder, attached, processor=processor, base=origin(TINY))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, good, pictures):
    """A working directory with an adapter, data, and a program that must never be imported."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    (here / "evil.py").write_text(PROGRAM.format(mark=str(tmp_path / MARK)))
    shutil.copytree(good, here / "adapter")
    for name in "abc":
        shutil.copy(pictures / f"{name}.png", here)
    write_json(here / "data.json", [llava()])
    yield here
    sys.modules.pop("evil", None)


def _strategy(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


def _set_strategy(folder, strategy):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["plan"]["language"] = [strategy]
    path.write_text(json.dumps(manifest))


def _tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _refused(capsys, here, args, *words):
    """The verb ends with exit code 2 and one line, ran nothing, imported nothing and wrote nothing."""
    before, modules = _tree(here), {*sys.modules}
    code, lines = run(capsys, *args)
    assert code == 2, lines
    assert lines[0].startswith("vlmpeft: ")
    for word in words:
        assert word in lines[0]
    assert not (here.parent / MARK).exists()
    assert "evil" not in {*sys.modules} - modules
    assert [name for name in _tree(here) if "__pycache__" not in name] == before
    return lines[0]


SCORING = ("--data.test=data.json", "--data.val=data.json", "--trainer.accelerator=cpu")
VERBS = {
    "test": ("test", "--adapter", "adapter", *SCORING),
    "validate": ("validate", "--adapter", "adapter", *SCORING),
    "predict": ("predict", "--adapter", "adapter", *SCORING),
    "chat": ("chat", "--adapter", "adapter", "--once", "what?"),
    "export peft": ("export", "--adapter", "adapter", "--to", "peft", "--out", "out"),
    "export merged": ("export", "--adapter", "adapter", "--to", "merged", "--out", "out"),
    "export vllm": ("export", "--adapter", "adapter", "--to", "vllm", "--out", "out"),
    "merge": ("merge", "--method=average", "--adapters", "adapter", "adapter", "--out", "out"),
    "merge whole": (
        *("merge", "--method=average", "--adapters", "adapter", "--out", "out"),
        "--to=merged",
    ),
    "fit": ("fit", "--init_adapter=adapter", "--data.train=data.json", "--run_name=x"),
    "plan": (
        "plan",
        "--model.plan.language=Merged",
        "--model.plan.language.init_args.adapters=[adapter]",
    ),
    "estimate": (
        "estimate",
        "--model.plan.language=Merged",
        "--model.plan.language.init_args.adapters=[adapter]",
    ),
}


# -- what a manifest names -------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_calls_what_a_manifest_names(capsys, place, verb):
    _set_strategy(place / "adapter", _strategy("os.system", command=f"touch {place.parent / MARK}"))
    _refused(capsys, place, VERBS[verb], "'os.system'", "--allow_strategy os.system")


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_imports_what_a_manifest_names(capsys, place, verb):
    _set_strategy(place / "adapter", _strategy("evil.Strategy"))
    _refused(capsys, place, VERBS[verb], "'evil.Strategy'", "--allow_strategy evil.Strategy")


HOSTILE = {
    "a function": (_strategy("subprocess.Popen", args=["touch", MARK]), "'subprocess.Popen'"),
    "a builtin": (_strategy("builtins.exec"), "'builtins.exec'"),
    "a class of a library": (_strategy("torch.nn.Linear"), "'torch.nn.Linear'"),
    "the contract itself": (_strategy("vlmpeft.strategies.contract.Strategy"), "abstract"),
    "a name through a module of ours": (
        _strategy("vlmpeft.runtime.registry.importlib.reload"),
        "none of",
    ),
    "a metric": (_strategy("vlmpeft.evaluation.metrics.text.ExactMatch"), "none of vlmpeft's"),
    "a name of ours elsewhere": (_strategy("evil.LoRA"), "none of vlmpeft's"),
    "no text": (_strategy(["evil"]), "manifest.json is of another form"),
    "no path": (_strategy(""), "unknown name"),
    "a typo": (_strategy("LoRa"), "Did you mean LoRA?"),
    "what LoRA does not take": (_strategy("LoRA", evil=1), "evil"),
    "a strategy in a strategy": (
        _strategy("LoRA", targets=_strategy("evil.Strategy")),
        "targets=",
    ),
    "a rank of a billion": (_strategy("LoRA", r=10**9), "r=1000000000"),
    "a text for a rank": (_strategy("LoRA", r="16"), "r='16': it is int"),
    "a PEFT config elsewhere": (_strategy("Peft", config="evil.Strategy"), "no such class in PEFT"),
    "a function as a PEFT config": (
        _strategy("Peft", config="os.system", args={"command": "true"}),
        "no such class in PEFT",
    ),
    "a function that peft imports": (
        _strategy("Peft", config="peft.config.os.system"),
        "no such class in PEFT",
    ),
    "a module that PEFT imports": (
        _strategy(
            "Peft",
            config="peft.LoraConfig",
            args={"r": 2, "megatron_config": {"a": 1}, "megatron_core": "evil"},
        ),
        "megatron_core",
    ),
    "an adapter of adapters that is its own": (
        _strategy("Merged", adapters=["adapter"], rule="average"),
        "adapter",
    ),
}


@pytest.mark.parametrize(("strategy", "word"), HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("verb", ["chat", "merge"])
def test_a_manifest_names_strategies_and_peft_configs_alone(capsys, place, verb, strategy, word):
    _set_strategy(place / "adapter", strategy)
    _refused(capsys, place, VERBS[verb], word)


def test_a_strategy_of_ones_own_loads_once_the_command_line_names_it(place, capsys):
    """--allow_strategy imports it; without that the message says so, and an import by the user's own code counts."""
    (place / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom vlmpeft.strategies import LoRA\n"
        "@dataclass(frozen=True)\nclass MyLoRA(LoRA):\n    pass\n"
    )
    _set_strategy(place / "adapter", _strategy("mine.MyLoRA", r=2, targets=["q_proj"]))
    try:
        _refused(capsys, place, VERBS["test"], "add --allow_strategy mine.MyLoRA")
        code, lines = run(capsys, *VERBS["test"], "--allow_strategy=mine.MyLoRA")
        assert code == 0, lines
        assert run(capsys, *VERBS["chat"])[0] == 0
    finally:
        sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("name", "word"),
    [("os.system", "is not a vlmpeft.Strategy"), ("nowhere.X", "cannot be imported")],
)
@pytest.mark.parametrize("verb", ["test", "chat", "export peft", "merge"])
def test_only_a_strategy_can_be_allowed(capsys, place, verb, name, word):
    _refused(capsys, place, (*VERBS[verb], f"--allow_strategy={name}"), word)


@pytest.mark.parametrize("path", ["LoRA", "vlmpeft.LoRA", "vlmpeft.strategies.lora.LoRA"])
def test_names_of_version_0_1_load(capsys, place, path):
    _set_strategy(place / "adapter", _strategy(path, r=2, targets=["q_proj"]))
    _put_config(place, {"model": {"plan": {"language": {"class_path": path}}}})
    code, lines = run(capsys, "test", "--adapter", "adapter")
    assert code == 0, lines


# -- what the config.yaml beside an adapter, or of a run to be resumed, names -------------------------

CONFIG = {"data": {"test": "data.json", "val": "data.json"}, "trainer": {"accelerator": "cpu"}}
CONFIGS = {
    "strategy": {"model": {"plan": {"language": {"class_path": "evil.Strategy"}}}},
    "strategy, short": {"model": {"plan": {"language": "evil.Strategy"}}},
    "strategy in a list": {"model": {"plan": {"language": [{"class_path": "evil.Strategy"}]}}},
    "metric": {"model": {"metrics": ["evil.Strategy"]}},
    "metric, long": {"model": {"metrics": [{"class_path": "evil.Strategy"}]}},
    "metric in a metric": {
        "model": {
            "metrics": [{"class_path": "ChanceCorrected", "init_args": {"metric": "evil.Strategy"}}]
        }
    },
    "trainer.strategy": {"trainer": {"strategy": {"class_path": "evil.Strategy"}}},
    "trainer.strategy, short": {"trainer": {"strategy": "evil.Strategy"}},
    "other file": {"trainer": "evil.yaml"},
    "other file of a plan": {"model": {"plan": "evil.yaml"}},
    "appended": {"trainer": {"callbacks+": {"class_path": "evil.Strategy"}}},
    "dotted": {"trainer.callbacks": [{"class_path": "evil.Strategy"}]},
    "verb": {"test": {"trainer": {"callbacks": [{"class_path": "evil.Strategy"}]}}},
}


def _put_config(here, extra):
    config = json.loads(json.dumps(CONFIG))
    for key, value in extra.items():
        config[key] = (config.get(key) or {}) | value if isinstance(value, dict) else value
    (here / "config.yaml").write_text(yaml.safe_dump(config))
    (here / "evil.yaml").write_text("callbacks: {class_path: evil.Strategy}\n")


@pytest.mark.parametrize("extra", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("verb", ["test", "resume"])
def test_a_config_that_was_found_names_no_code(capsys, place, verb, extra):
    _put_config(place, extra)
    args = ("fit", "--resume", ".") if verb == "resume" else (verb, "--adapter", "adapter")
    _refused(capsys, place, args, "config.yaml")


@pytest.mark.parametrize("key", ["callbacks", "plugins"])
def test_what_a_trainer_was_told_to_call_is_no_part_of_scoring(capsys, place, key):
    _put_config(place, {"trainer": {key: {"class_path": "evil.Strategy"}}})
    code, lines = run(capsys, "test", "--adapter", "adapter")
    assert code == 0, lines
    assert not (place.parent / MARK).exists()
    _refused(capsys, place, ("fit", "--resume", "."), f"trainer.{key}", "add --config config.yaml")


def test_yaml_that_unpacks_to_gigabytes_is_refused(capsys, place):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (place / "config.yaml").write_text("\n".join(lines))
    _refused(capsys, place, ("test", "--adapter", "adapter"), "YAML aliases")


# -- checkpoints and records ---------------------------------------------------------------------------


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_is_plain_data(capsys, place):
    _put_config(place, {"data": {"train": "data.json", "val": "data.json"}})
    (place / "checkpoints").mkdir()
    torch.save({"global_step": _Touch(place.parent / MARK)}, place / "checkpoints" / "last.ckpt")
    _refused(capsys, place, ("fit", "--resume", "."), "checkpoint")


@pytest.mark.parametrize("content", ['{"status"', "[]", "{}", "null", '"done"', "[" * 100_000])
def test_a_broken_record_is_one_line(capsys, place, content):
    _put_config(place, {"data": {"train": "data.json"}})
    (place / "result.json").write_text(content)
    _refused(capsys, place, ("fit", "--resume", "."), "result.json")


def test_weights_are_never_unpickled(capsys, place):
    weights = next((place / "adapter").glob("*.safetensors"))
    weights.unlink()
    torch.save(_Touch(place.parent / MARK), place / "adapter" / "adapter_model.bin")
    for verb in ("test", "chat", "export peft", "merge"):
        _refused(capsys, place, VERBS[verb], "a pickle")


# -- a base, or an adapter's processor, with code of its own -------------------------------------------

BASE_VERBS = {
    "test": ("test", "--model.base.path=base", *SCORING),
    "fit": ("fit", "--model.base.path=base", "--data.train=data.json", "--run_name=x"),
    "plan": ("plan", "--model.base.path=base"),
    "estimate": ("estimate", "--model.base.path=base", "--model.plan.language=LoRA"),
    "chat": ("chat", "--base", "base", "--once", "what?"),
    "data check": ("data", "check", "--model.base.path=base", "--data.train=data.json"),
    "export": ("export", "--adapter=adapter", "--base=base", "--to=merged", "--out=out"),
    "merge": ("merge", "--method=average", "--adapters", "adapter", "--base=base", "--out=out"),
}
BRINGS = {
    "config.json": {"auto_map": {"AutoConfig": "evil.Strategy", "AutoModel": "evil.Strategy"}},
    "generation_config.json": {"custom_generate": "evil"},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Strategy", "evil.Strategy"]}},
    "processor_config.json": {"auto_map": {"AutoProcessor": "evil.Strategy"}},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "evil.Strategy"}},
}


@pytest.fixture
def base(place):
    shutil.copytree(base_dir("tiny"), place / "base")
    shutil.copy(place / "evil.py", place / "base" / "evil.py")
    return place / "base"


def _bring(folder, file, extra):
    path = folder / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | extra))


@pytest.mark.parametrize(
    ("verb", "file"),
    [(verb, "config.json") for verb in BASE_VERBS]
    + [(verb, file) for verb in ("test", "chat", "export") for file in BRINGS],
)
def test_no_verb_runs_code_of_a_base(capsys, place, base, verb, file):
    _bring(base, file, BRINGS[file])
    _refused(capsys, place, BASE_VERBS[verb], file)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("verb", ["export peft", "export merged"])
def test_no_verb_runs_code_of_an_adapters_processor(capsys, place, verb, file):
    shutil.copy(place / "evil.py", place / "adapter" / "evil.py")
    _bring(place / "adapter", file, BRINGS[file])
    _refused(capsys, place, VERBS[verb], file)


OTHER_WAYS = {
    "a kernel": ("config.json", {"attn_implementation": "evil/kernel"}, "kernel"),
    "deep down": ("config.json", {"vision_config": {"auto_map": {"AutoConfig": "evil.X"}}}, "code"),
    "timm": (
        "config.json",
        {"vision_config": {"model_args": {"checkpoint_path": "x.pth"}}},
        "timm",
    ),
    "an adapter": (
        "adapter_config.json",
        {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "evil"},
        "adapter_config.json",
    ),
    "an unknown type": ("config.json", {"model_type": "evil"}, "evil"),
    "no JSON": ("config.json", None, "config.json"),
}


@pytest.mark.parametrize(("file", "extra", "word"), OTHER_WAYS.values(), ids=OTHER_WAYS.keys())
def test_a_base_has_no_other_way_to_run_code(capsys, place, base, file, extra, word):
    _bring(base, file, extra) if extra else (base / file).write_text("{")
    for verb in ("test", "plan", "chat"):
        _refused(capsys, place, BASE_VERBS[verb], word)


def test_pickled_weights_of_a_base_are_never_read(capsys, place, base):
    next(base.glob("*.safetensors")).unlink()
    torch.save(_Touch(place.parent / MARK), base / "pytorch_model.bin")
    for verb in ("test", "chat", "fit"):
        _refused(capsys, place, BASE_VERBS[verb], "base")


def test_auto_map_of_a_known_type_can_be_left_out_of_account(capsys, place, base, monkeypatch):
    _bring(base, "config.json", BRINGS["config.json"])
    monkeypatch.setenv("VLMPEFT_OWN_CODE", "ignore")
    code, lines = run(capsys, *BASE_VERBS["plan"], "--model.plan.language=LoRA")
    assert code == 0, lines
    assert not (place.parent / MARK).exists()


# -- what is printed -----------------------------------------------------------------------------------


def test_names_from_files_do_not_act_on_the_terminal(capsys, place):
    """ESC and BEL of a picture's name and of an adapter's words are shown as their escapes."""
    name = "\x1b]0;owned\x07\x9b31m\u202e.png"
    write_json(place / "bad.json", [llava(image=name)])
    for args in (
        ("fit", "--data.train=bad.json", "--run_name=x"),
        ("test", "--adapter", "adapter", "--data.test=bad.json"),
        ("data", "check", "--data.train=bad.json"),
        ("chat", "--image", name, "--once", "what?"),
        ("test", "--adapter", name),
    ):
        saved = sys.argv
        sys.argv = ["vlmpeft"]
        from vlmpeft.__main__ import main

        main(list(args))
        sys.argv = saved
        printed = "".join(capsys.readouterr())
        assert "\\x1b]0;owned\\x07\\x9b31m\\u202e" in printed, args
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*printed}


# -- data sets and templates that unpack to gigabytes --------------------------------------------------

BOMB = "{{ 'a' * 4000000000 }}"
DATA_VERBS = {
    "fit": ("fit", "--data.train={data}", "--run_name=x"),
    "data check": ("data", "check", "--data.train={data}"),
    "test": ("test", "--adapter=adapter", "--data.test={data}"),
    "validate": ("validate", "--adapter=adapter", "--data.val={data}"),
    "predict": ("predict", "--adapter=adapter", "--data.test={data}"),
    "export": ("export", "--adapter=adapter", "--to=peft", "--out=out", "--data={data}"),
    "merge": (
        *("merge", "--method=task_arithmetic", "--adapters", "adapter", "--out=out"),
        *("--tune=lam", "--data", "{data}"),
    ),
}


@pytest.fixture(scope="module")
def parquet_bomb(tmp_path_factory):
    """A few kB that hold a cell of 140 MB."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path_factory.mktemp("bomb") / "bomb.parquet"
    long = pa.array(["\0" * 140_000_000])
    pq.write_table(pa.table({"question": ["q"], "answer": long}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    return path


@pytest.mark.parametrize("verb", DATA_VERBS)
def test_no_verb_unpacks_a_parquet_bomb(capsys, place, parquet_bomb, verb):
    shutil.copy(parquet_bomb, place)
    args = [arg.replace("{data}", "bomb.parquet") for arg in DATA_VERBS[verb]]
    _refused(capsys, place, args, "bomb.parquet", "are allowed")


@pytest.mark.parametrize("verb", DATA_VERBS)
def test_no_verb_is_filled_by_the_template_of_an_adapter_or_a_base(capsys, place, base, verb):
    (place / "adapter" / "chat_template.jinja").write_text(BOMB)
    (base / "chat_template.jinja").write_text(BOMB)
    args = [arg.replace("{data}", "data.json") for arg in DATA_VERBS[verb]]
    if verb in ("fit", "data check", "test", "validate", "predict"):
        args += ["--model.base.path=base"]
    _refused(capsys, place, args, "the chat template")


def test_no_template_fills_a_chat(capsys, place):
    (place / "adapter" / "chat_template.jinja").write_text(BOMB)
    _refused(capsys, place, VERBS["chat"], "the chat template")
