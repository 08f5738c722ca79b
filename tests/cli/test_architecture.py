"""docs/architecture.md against the package: its walks, its rooms, its arrows, and the order of a training step."""

import ast
import functools
import re
import sys

import pytest

from vlmpeft.training import checkpoints, module

from ..conftest import ROOT, call, llava, write_json

sys.path.insert(0, str(ROOT / "scripts"))
import architecture

PAGE = (ROOT / "docs/architecture.md").read_text()
STEP = re.compile(r"^\d+\. `(vlmpeft/[\w/]+\.py)` -> `([\w.]+)`: \S.*\.\]?$")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
WALKS = (
    "A conversation, from JSON to loss",
    "A plan, from YAML to an adapter folder",
    "An adapter, from its folder to a merged checkpoint",
    "A study, from its file to a table",
    "One training step, in order",
)


def steps(section):
    """[(file, function)] of the numbered lines of a section."""
    lines = [line for line in SECTIONS[section].splitlines() if re.match(r"\d+\. ", line)]
    assert all(STEP.match(line) for line in lines), [n for n in lines if not STEP.match(n)]
    return [STEP.match(line).groups() for line in lines]


def defined(path):
    """Names of a file's functions, classes and their methods."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, kinds):
            found.add(node.name)
            found |= {f"{node.name}.{n.name}" for n in ast.walk(node) if isinstance(n, kinds)}
    return found


@pytest.mark.parametrize("walk", WALKS)
def test_every_file_and_function_of_a_walk_exists(walk):
    found = steps(walk)
    assert len(found) >= 8
    missing = [f"{path} {name}" for path, name in found if name not in defined(path)]
    assert missing == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_that_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    paths = set(re.findall(r"`((?:vlmpeft|tests|docs|scripts|configs)/[\w./-]*)`", text))
    made = set(re.findall(r"^New file `(\S+)`", text, re.MULTILINE))  # by who follows the page
    assert paths - made
    assert [path for path in sorted(paths - made) if not (ROOT / path).exists()] == []


def test_every_room_says_what_goes_in_and_what_comes_out():
    """A folder without those lines is an error of `make tables`; one without a docstring, too."""
    rows = architecture.rooms().splitlines()[2:]
    folders = {path.parent for path in (ROOT / "vlmpeft").glob("*/**/*.py")}
    assert len(rows) == len(folders) > 12


def test_arrows_and_the_imports_they_imply_are_the_imports_there_are(tmp_path, monkeypatch):
    """The diagram of a package of three rooms, drawn by hand."""
    package = tmp_path / "vlmpeft"
    sources = {
        "cli/a.py": "from vlmpeft.data.c import X\nfrom vlmpeft.base import b\n",
        "cli/b.py": "def f():\n    import vlmpeft.data.c\n    import vlmpeft.cli.a\n",
        "data/c.py": "from vlmpeft.base.d import Y\nimport json\nfrom vlmpeft import Z\n",
        "base/d.py": "from os import path\n",
    }
    for name, source in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    monkeypatch.setattr(architecture, "PACKAGE", package)
    counts = {("cli", "data"): 2, ("cli", "base"): 1, ("data", "base"): 1}
    assert architecture.imports() == counts
    drawn = ["```mermaid", "graph TD", "  cli -->|2| data", "  data -->|1| base", "```"]
    assert architecture.diagram().splitlines() == drawn


def test_the_page_s_order_of_a_training_step_is_the_order(tmp_path, pictures, monkeypatch):
    """Of a window of two batches: what finishes when, watched in a real run."""
    finished = []

    def watch(owner, name):
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            result = function(*args, **kwargs)
            finished.append(function.__qualname__)
            return result

        monkeypatch.setattr(owner, name, watched)

    order = [name for _, name in steps("One training step, in order")]
    for name in order:
        owner, _, method = name.rpartition(".")
        holders = [getattr(m, owner) for m in (module, checkpoints) if hasattr(m, owner or "-")]
        watch(holders[0] if holders else module, method)
    data = write_json(tmp_path / "d.json", [llava(), llava("what else?", "a nut", "b.png")])
    arguments = [f"--data.train={data}", f"--data.image_dir={pictures}", "--run_name=r"]
    arguments += ["--model.plan.language=LoRA", f"--runs_dir={tmp_path}"]
    arguments += ["--trainer.accumulate_grad_batches=2"]
    arguments += ["--data.batch_size=1", "--trainer.max_epochs=1", "--eval.select=last"]
    assert call("fit", *arguments) == 0
    at_the_end = ("on_before_optimizer_step", "optimizer_step", "__call__")  # of a window
    first = [name for name in order if not name.endswith(at_the_end)]
    start = finished.index(order[0])
    assert finished[start : start + len(first) + len(order)] == first + order


def test_a_block_that_is_old_is_seen():
    import tables

    old = re.sub(r"\|\d+\| ", "|0| ", PAGE, count=1)
    assert old != PAGE
    assert tables.fill(old) == PAGE
