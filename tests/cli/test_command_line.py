"""Every verb's options are its function's parameters; what is mistyped is told before torch is imported."""

import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from vlmpeft.__main__ import VERBS, main
from vlmpeft.cli import verbs
from vlmpeft.cli.command_line import Verb, is_list, split_options
from vlmpeft.cli.config_files import run_arguments
from vlmpeft.cli.known_keys import GROUPS, choices_of, fields_of, strategy_fields
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.registry import STRATEGIES, resolve

from ..conftest import ROOT

TYPED = {**verbs.VERBS, **{f"data {name}": verb for name, verb in verbs.DATA.items()}}


# -- keys read from sources ------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*GROUPS.values(), *(v.knobs for v in TYPED.values() if v.knobs)])
def test_the_keys_of_a_class_are_its_arguments(path):
    cls = resolve(path, {})
    assert [*fields_of(path)] == [*inspect.signature(cls).parameters]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_options_of_a_strategy_are_its_fields(name):
    assert [*strategy_fields(name)] == [f.name for f in fields(resolve(name, STRATEGIES))]


def test_the_rules_of_a_merge_are_those_there_are():
    from vlmpeft.merging.rule_table import RULES

    assert {*choices_of("vlmpeft.merging.rule_table.RuleName")} == {*RULES}


# -- before torch ----------------------------------------------------------------------------------

MISTAKES = [
    (["fit", "--trainer.max_epoch=3"], "Did you mean trainer.max_epochs?"),
    (["fit", "--trainer.max_epoch", "3"], "unknown argument --trainer.max_epoch."),
    (["test", "--model.base.bits.lang=nf4"], "Did you mean model.base.bits.language?"),
    (["fit", "--data.trian=x.json"], "Did you mean data.train?"),
    (["fit", "--data.train=nowhere.json"], "data file nowhere.json does not exist"),
    (["fit", "--data.train=[{path: nowhere.json}]"], "data file nowhere.json does not exist"),
    (["fit", "--data.train=workbench:styl"], "Did you mean style?"),
    (["fit", "--data.retention=workbench:source@0.5"], "source has no shift to set"),
    (["fit", "--model.base.path=./nowhere"], "base ./nowhere is not a folder"),
    (["fit", "--model.plan.language=LoRa"], "Did you mean LoRA?"),
    (["fit", "--model.plan.language=[LoRA, {class_path: Ful}]"], "unknown strategy 'Ful'"),
    (["fit", "--model.metrics=[ExactMach]"], "Did you mean ExactMatch?"),
    (["fit", "--config=mine.yaml"], "unknown config key model.plan.lanuage."),
    (["fit", "--config=lora_r16.yaml", "--model.plan.language.init_args.rr=2"], "has no 'rr'"),
    (["fit", "--config=lora_16.yaml"], "Did you mean lora_r16.yaml?"),
    (["fit", "--init_adaptr=x"], "Did you mean init_adapter?"),
    (["fit", "--resume=nowhere"], "nowhere has no config.yaml"),
    (["plan", "--jsn"], "Did you mean json?"),
    (["plan", "--fr=vllm"], "Did you mean for?"),
    (["plan", "--for=vlm"], "Did you mean vllm?"),
    (["estimate", "--gb"], "--gb needs a value"),
    (["estimate", "--gb=0"], "give a number above 0"),
    (["estimate", "--tokns=3"], "Did you mean tokens?"),
    (["test", "--adapter=nowhere"], "there is no manifest.json"),
    (["chat", "--adapters=x"], "Did you mean adapter?"),
    (["chat", "--bits=nf5"], "Did you mean nf4?"),
    (["chat", "--image=nowhere.png"], "nowhere.png does not exist"),
    (["export", "--adapter=nowhere", "--to=peft", "--out=x"], "there is no manifest.json"),
    (["export", "--adapter=nowhere", "--to=pft", "--out=x"], "Did you mean peft?"),
    (["export", "--to=peft", "--out=x"], "adapter"),
    (["merge", "--adapters", "nowhere", "--out=x"], "there is no manifest.json"),
    (["merge", "--methd=ties"], "Did you mean method?"),
    (["merge", "--method=tiez", "--adapters", "x"], "Did you mean ties?"),
    (["data", "check", "--htm=x"], "Did you mean html?"),
    (["data", "check", "--data.train=nowhere.json"], "nowhere.json does not exist"),
    (["data", "workbench", "format"], "out"),
    (["data", "chek"], "Did you mean check?"),
    (["doctor", "--deep"], "unknown argument --deep"),
    (["fot"], "Did you mean fit?"),
]
PROGRAM = """
import contextlib, io, json, sys
from vlmpeft.__main__ import main
told = []
for args in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(args)
    told.append([code, said.getvalue().splitlines()[-1], "torch" in sys.modules, sys.argv[1:] != []])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process of its own says of each mistake: (exit code, line, torch is imported, argv is whole)."""
    folder = tmp_path_factory.mktemp("cwd")
    (folder / "mine.yaml").write_text("model: {plan: {lanuage: LoRA}}\n")
    arguments = json.dumps([args for args, _ in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in folder.iterdir()) == ["mine.yaml"]
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=lambda n: " ".join(MISTAKES[n][0]))
def test_a_mistake_is_told_before_torch_is_imported(told, number):
    code, line, has_torch, has_argv = told[number]
    assert code == 2
    assert line.startswith("vlmpeft: ")
    assert MISTAKES[number][1] in line
    assert not has_torch
    assert has_argv


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TYPED)
def test_help_shows_a_verb_s_own_options_and_no_others(capsys, name):
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    for option in TYPED[name].options():
        assert f"--{option} " in text
    assert "--trainer" not in text
    assert len(text.splitlines()) < 130
    assert len(TYPED[name].options()) > 11 or len(text.splitlines()) < 45


def test_every_verb_of_the_usage_is_there():
    from vlmpeft.__main__ import USAGE

    listed = {
        line.split()[0] for line in USAGE.splitlines() if line.startswith("  ") and line[2] != " "
    }
    assert listed - {"python"} == {*VERBS}


def _shape(kind):
    return "list" if is_list(kind) else "switch" if kind is bool else "value"


def test_a_flag_takes_as_many_words_in_every_verb():
    shapes = {}
    for verb in TYPED.values():
        for option, kind in verb.options().items():
            if option not in verb.positional:
                shapes.setdefault(option, set()).add(_shape(kind))
    assert shapes["json"] == {"switch"}
    # chat holds several adapters, merge scores on several files
    assert {option for option, found in shapes.items() if len(found) > 1} == {"adapter", "data"}


def listed(numbers: list[int], names: list[str] | None = None, flag: bool = False) -> None:
    """A verb for the test."""


@pytest.mark.parametrize(
    ("args", "own"),
    [
        (["--numbers", "1", "-2", "--flag"], ['--numbers=["1", "-2"]', "--flag=true"]),
        (["--numbers", "[1,2]", "--flag", "false"], ["--numbers=[1,2]", "--flag=false"]),
        (["--names", "a", "--names", "b", "c"], ['--names=["a", "b", "c"]']),
        (["--names=a"], ['--names=["a"]']),
    ],
)
def test_a_list_takes_the_words_that_follow_and_a_switch_none(args, own):
    assert split_options(Verb("listed", listed), args) == (own, [])


def test_an_option_is_never_shortened():
    with pytest.raises(UserError, match=r"unknown argument --number\. Did you mean numbers\?"):
        split_options(Verb("listed", listed), ["--number", "1"])


def test_a_verb_needs_the_data_that_it_reads_and_no_other(tmp_path, monkeypatch):
    """A test of an adapter whose training data is gone; a plan of a config without any data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.json").write_text("[]")
    args = ["--data.train=gone.json", "--data.val=gone.json", "--data.test=test.json"]
    assert run_arguments(args, splits=("test",)) == args
    assert run_arguments(args, splits=()) == args
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        run_arguments(args)


def test_the_short_option_for_a_config_is_known_everywhere():
    plan = verbs.VERBS["plan"]
    assert split_options(plan, ["-c", "x.yaml", "--json"]) == (
        ["--json=true"],
        ["--config", "x.yaml"],
    )


def test_below_the_command_line_a_setting_is_named_by_its_key():
    """The verb shows it as it is typed: --data.val in a fit, --base in a chat."""
    rooms = [
        p
        for p in (ROOT / "vlmpeft").rglob("*.py")
        if p.relative_to(ROOT / "vlmpeft").parts[0] != "cli"
    ]
    assert len(rooms) > 100
    named = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in rooms
        for line in path.read_text().splitlines()
        if re.search(r"(give|set|take)\b.*--(model|data|trainer|eval)\.", line)
        and ">>>" not in line
    ]
    assert [line for line in named if "__main__" not in line] == []
