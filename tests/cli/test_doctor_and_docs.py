import json
import re
from dataclasses import fields

from vlmpeft.__main__ import VERBS, main
from vlmpeft.data.workbench.source import SOURCE
from vlmpeft.runtime.records import read_record
from vlmpeft.runtime.registry import STRATEGIES, resolve

from ..conftest import ROOT, call, llava, vlmpeft, write_json


def test_doctor_reports_versions_and_takes_a_step(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"transformers +5\.", out)
    assert re.search(r"tiny step +loss \d+\.\d+, 60 of 60 trainable tensors got a gradient", out)


def test_every_command_in_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    verbs = set(re.findall(r"python -m vlmpeft (\w+)", text))
    assert verbs <= VERBS.keys()
    assert {"fit", "test", "plan"} <= verbs
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ {4}make (\w+)", text, re.MULTILINE)) <= targets
    for config in re.findall(r"([\w/]+\.yaml)", text):
        assert config == "config.yaml" or list(
            (ROOT / "configs").rglob(config.rsplit("/", 1)[-1])
        ), config


def test_readme_python_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    metric = next(block for block in blocks if "TextMetric" in block)
    scope = {}
    exec(compile(metric, "README.md", "exec"), scope)
    assert scope["FirstWord"]().score("red nut", "red gear") == 1


def test_readme_strategy_trains_is_saved_and_loads_again(tmp_path, pictures, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    source = next(block for block in blocks if "class ScaleOutputs" in block)
    assert source.count("\n") <= 35
    (tmp_path / "mine.py").write_text(source)
    data = write_json(tmp_path / "d.json", [llava(answer="nut"), llava(image="b.png")])
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    arguments = [f"--data.train={data}", f"--data.val={data}", f"--data.image_dir={pictures}"]
    arguments += [
        "--model.plan.language=mine.ScaleOutputs",
        "--run_name=r",
        "--trainer.max_epochs=4",
    ]
    done = vlmpeft("fit", *arguments, cwd=tmp_path, env=env, check=0)
    assert "validate --adapter runs/r/adapter --config runs/r/config.yaml" in done.stdout
    tuned = read_record(tmp_path / "runs" / "r")["metrics"]["tuned"]["val"]
    again = ["validate", "--adapter", "runs/r/adapter"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert call(*again) == 2
    assert "add --config runs/r/config.yaml" in capsys.readouterr().err
    assert call(*again, "--allow_strategy=mine.ScaleOutputs") == 0
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert scores == {f"val/{name}": value for name, value in tuned.items()}
    assert tuned["loss"] < read_record(tmp_path / "runs" / "r")["metrics"]["base"]["val"]["loss"]


def test_every_strategy_has_a_card_with_its_knobs():
    cards = {path.stem: path.read_text() for path in (ROOT / "docs" / "strategies").glob("*.md")}
    assert cards.keys() == STRATEGIES.keys()
    for name, path in STRATEGIES.items():
        row = next(line for line in cards[name].splitlines() if line.startswith("| knobs |"))
        if "as of" not in row:
            assert all(f.name in row for f in fields(resolve(name, STRATEGIES))), (name, path)


def test_the_embedded_base_s_card_says_what_was_measured():
    scores = json.loads((ROOT / "vlmpeft/base/tiny/scores.json").read_text())
    card = (ROOT / "vlmpeft/base/tiny/README.md").read_text()
    assert scores.keys() == SOURCE.keys()
    assert min(scores[kind] for kind in ("name", "colour", "count")) >= 0.95
    assert scores["yes_no"] >= 0.9
    assert scores["describe"] >= 0.85
    assert all(f"| {kind} | {value:.1%} |" in card for kind, value in scores.items())
    size = sum(path.stat().st_size for path in (ROOT / "vlmpeft/base/tiny").iterdir())
    assert size < 10_000_000
