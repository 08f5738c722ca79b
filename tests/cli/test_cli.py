"""The command line: quick help, one line and exit code 2 for whatever the user got wrong."""

import json
import sys
from dataclasses import replace

import pytest

from vlmpeft.__main__ import main
from vlmpeft.cli.config_files import find_config, run_arguments, with_found_configs
from vlmpeft.runtime.errors import UserError

from ..conftest import ROOT, llava, vlmpeft, write_json
from ..strategies.test_plan import llava_7b_config

CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.parent.name != "studies"
)


def run(capsys, *args):
    """(exit code, last line of stderr) of a command run in this process."""
    saved = sys.argv
    sys.argv = ["vlmpeft"]
    try:
        code = main([str(arg) for arg in args])
    finally:
        sys.argv = saved
    return code, capsys.readouterr().err.strip().splitlines()[-1:]


def test_help_and_import_cost_no_torch():
    import subprocess

    code = "import sys, vlmpeft, vlmpeft.__main__ as m; m.main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "Did you mean fit?"),
        (["fit", "--config", "lora_fpp.yaml"], "Did you mean lora_fp.yaml?"),
        (["fit", "--model.plan.lanuage=LoRA"], "Did you mean model.plan.language?"),
        (["fit", "--model.plan.language=LoRa"], "Did you mean LoRA?"),
        (
            ["fit", "--model.plan.language=LoRA", "--model.plan.language.init_args.rr=4"],
            "LoRA has no 'rr'",
        ),
        (
            ["fit", "--model.plan.language=LoRA", "--model.plan.language.init_args.r=0"],
            "the rank is at least 1",
        ),
        (["fit", "--model.base.bits.language=nf3"], "nf3"),
        (["fit", "--ckpt_path", "x.ckpt"], "give fit --resume"),
        (["fit", "--resume", "nowhere"], "nowhere has no config.yaml"),
        (["test", "--adapter", "nowhere"], "nowhere: there is no manifest.json"),
        (["data", "workbench", "formt", "--out", "x"], "Did you mean format?"),
        (["data", "bench"], "Did you mean workbench?"),
    ],
)
def test_a_mistake_is_one_line_with_the_next_move(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, line = run(capsys, *args)
    assert code == 2
    assert line
    assert message in line[0]
    assert not (tmp_path / "runs").exists()


def test_unknown_key_in_a_config_gets_a_suggestion(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("model:\n  plan:\n    lanuage: {class_path: LoRA}\n")
    code, line = run(capsys, "fit", "--config", "c.yaml")
    assert (code, "lanuage" in line[0], "Did you mean" in line[0]) == (2, True, True)


def test_unknown_strategy_in_a_config_gets_a_suggestion(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("model:\n  plan:\n    language: {class_path: LoRAA}\n")
    code, line = run(capsys, "fit", "--config", "c.yaml")
    assert code == 2
    assert "Did you mean LoRA?" in line[0]


def test_config_is_looked_up_by_path_then_cwd_then_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("lora_r16.yaml") == ROOT / "configs" / "lora_r16.yaml"
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    (tmp_path / "configs" / "deep" / "lora_r16.yaml").touch()
    assert find_config("lora_r16.yaml") == tmp_path / "configs" / "deep" / "lora_r16.yaml"
    (tmp_path / "configs" / "lora_r16.yaml").touch()
    with pytest.raises(UserError, match="ambiguous"):
        find_config("lora_r16.yaml")
    (tmp_path / "lora_r16.yaml").touch()
    assert str(find_config("lora_r16.yaml")) == "lora_r16.yaml"
    assert with_found_configs(["--config=lora_r16.yaml", "--x", "1"]) == [
        "--config",
        "lora_r16.yaml",
        "--x",
        "1",
    ]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config_parses(config, monkeypatch):
    from vlmpeft.cli.run_parser import PlanCLI

    monkeypatch.setattr(sys, "argv", ["vlmpeft"])
    cli = PlanCLI("fit", ["--config", str(ROOT / config), "--trainer.accelerator=cpu"])
    assert cli.module.plan.to_dict()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config_says_how_it_is_run_and_what_comes_out(config):
    header = [line for line in (ROOT / config).read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"python -m vlmpeft fit --config {config.name}" in text
    for word in ("hardware:", "time:", "result:"):
        assert word in text


def test_strategy_list_replaces_what_was_there(monkeypatch, tmp_path):
    """A list is overlaid whole: nothing of the strategy it replaces leaks into its entries."""
    from vlmpeft.cli.run_parser import PlanCLI

    monkeypatch.setattr(sys, "argv", ["vlmpeft"])
    (tmp_path / "d.yaml").write_text(
        "model: {plan: {language: [{class_path: LoRA, init_args: {r: 8}}]}}"
    )
    args = ["--config", str(ROOT / "configs/lora_r16.yaml"), "--config", str(tmp_path / "d.yaml")]
    (lora,) = PlanCLI("fit", run_arguments(args)).module.plan.of("language")
    assert lora.r == 8
    assert lora.targets is None


def test_overrides_reach_the_plan(monkeypatch):
    from vlmpeft.cli.run_parser import PlanCLI

    monkeypatch.setattr(sys, "argv", ["vlmpeft"])
    args = [
        "--config",
        str(ROOT / "configs/lora_r16.yaml"),
        "--model.plan.language.init_args.r=64",
        "--model.plan.language.init_args.targets=[q_proj,v_proj]",
        "--model.base.bits.language=fp32",
    ]
    module = PlanCLI("fit", args).module
    (lora,) = module.plan.of("language")
    assert (lora.r, lora.alpha, lora.targets) == (64, 32, ("q_proj", "v_proj"))
    assert module.base.bits.language == "fp32"


@pytest.mark.parametrize(
    ("strategy", "field"),
    [
        *((name, "targets") for name in ("LoRA", "DoRA", "AdaLoRA", "VeRA", "IA3", "Peft")),
        ("IA3", "feedforward"),
        ("Merged", "adapters"),
    ],
)
def test_a_list_in_yaml_is_the_tuple_that_the_strategy_declares(monkeypatch, strategy, field):
    from vlmpeft.cli.run_parser import PlanCLI

    monkeypatch.setattr(sys, "argv", ["vlmpeft"])
    value = json.dumps({"class_path": strategy, "init_args": {field: ["a", "b"]}})
    args = ["--config", str(ROOT / "configs/lora_r16.yaml"), f"--model.plan.vision={value}"]
    (built,) = PlanCLI("fit", args).module.plan.of("vision")
    assert getattr(built, field) == ("a", "b")


def test_a_strategy_that_nothing_else_imports_is_known_by_its_short_name(tmp_path):
    """jsonargparse knows the classes that are imported; in a process of its own, or another test has done it."""
    merged = "{class_path: Merged, init_args: {adapters: [nowhere]}}"
    done = vlmpeft("plan", "--config=lora_r16.yaml", f"--model.plan.vision={merged}", cwd=tmp_path)
    assert done.returncode == 2
    assert "adapter nowhere: there is no manifest.json" in done.stderr


def test_plan_prints_nothing_but_json_on_stdout(capsys, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(llava_7b_config().to_dict()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vlmpeft"])
    args = [
        "plan",
        "--config",
        str(ROOT / "configs/lora_r16.yaml"),
        "--model.base.path",
        str(tmp_path),
        "--json",
    ]
    assert main(args) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model_type"] == "llava"
    assert plan["trainable"] == 16_777_216 + 20_979_712
    language = plan["components"]["language"]
    assert len(language["strategies"][0]["targets"]) == 4 * 32
    assert (language["bits"], language["width"]) == (4, "nf4")


def test_a_big_base_on_a_cpu_asks_first(capsys, tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "config.json").write_text(json.dumps(llava_7b_config().to_dict()))
    monkeypatch.chdir(tmp_path)
    code, line = run(
        capsys, "fit", "--model.base.path", str(tmp_path), "--model.plan.language=LoRA"
    )
    assert code == 2
    assert "7.1 B parameters" in line[0]
    assert "--yes=true" in line[0]


def test_data_workbench_writes_a_task(tmp_path, monkeypatch):
    from vlmpeft.data.workbench.tasks import TASKS

    monkeypatch.setitem(TASKS, "format", replace(TASKS["format"], val=2, test=2))
    assert main(["data", "workbench", "format,n=4", "--out", str(tmp_path / "w")]) == 0
    assert len(json.loads((tmp_path / "w" / "train.json").read_text())) == 4


def test_data_workbench_needs_somewhere_to_write(capsys, tmp_path):
    for given, told in (([], "--preview FILE.png"), (["--preview", "x.jpg"], "end it with .png")):
        code, line = run(capsys, "data", "workbench", *given)
        assert code == 2
        assert told in line[0]


def test_errors_of_a_fit_leave_no_run_folder(capsys, tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = write_json(tmp_path / "train.json", [llava(image="gone.png")])
    code, line = run(capsys, "fit", "--data.train", train, "--model.plan.language=LoRA")
    assert code == 2
    assert "gone.png does not exist" in line[0]
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


def test_a_plan_with_nothing_to_train_is_refused(capsys, tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = write_json(tmp_path / "train.json", [llava()])
    args = ("fit", "--data.train", train, "--data.image_dir", pictures)
    code, line = run(capsys, *args)
    assert code == 2
    assert "every component of model.plan is Frozen" in line[0]


def test_traceback_free_command_as_a_user_runs_it(tmp_path):
    done = vlmpeft("fit", "--config", "nope.yaml", cwd=tmp_path, check=2)
    assert done.stderr.startswith("vlmpeft: config nope.yaml does not exist.")
    assert done.stdout == ""
