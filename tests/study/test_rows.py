"""Patterns become rows, rows become cells, and a cell is the command that one would have typed."""

import itertools
import json
from dataclasses import replace

import pytest

from vlmpeft.cli.run_parser import PlanCLI
from vlmpeft.cli.run_resolver import RunResolver
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import BitFit, Frozen, Full, LayerNormTuning, LoRA
from vlmpeft.strategies.plan import Plan
from vlmpeft.study.candidates import candidates_of
from vlmpeft.study.cells import cells_of
from vlmpeft.study.info import study_info
from vlmpeft.study.outline import outline
from vlmpeft.study.resolving import resolve_study
from vlmpeft.study.rows import count_runs, expand_rows
from vlmpeft.study.selection import select
from vlmpeft.study.spec import Search
from vlmpeft.study.study_file import find_study, read_study_file

from ..conftest import ROOT
from .study_files import study

TARGETS = {"qv": ["q_proj", "v_proj"], "attention": ["q_proj", "k_proj", "v_proj", "o_proj"]}
GRID = {
    "{targets}_r{r}": {
        "title": "{targets}, rank {r}",
        "group": "{targets}",
        "grid": {"targets": TARGETS},
        "zip": {"r": [4, 16], "alpha": [8, 32]},
        "set": {
            "model.plan.language": "LoRA",
            "model.plan.language.init_args": {
                "targets": "{targets}",
                "r": "{r}",
                "alpha": "{alpha}",
            },
        },
    }
}


def names(spec):
    return [row.name for row in expand_rows(spec)]


def test_a_grid_is_every_combination_and_a_zip_goes_together(tmp_path):
    rows = expand_rows(study(tmp_path, rows=GRID))
    expected = list(itertools.product(TARGETS, [(4, 8), (16, 32)]))
    assert len(rows) == 4
    for row, (label, (r, alpha)) in zip(rows, expected, strict=True):
        assert row.name == f"{label}_r{r}"
        assert (row.title, row.group) == (f"{label}, rank {r}", label)
        assert row.variables == {"targets": label, "r": r, "alpha": alpha}
        settings = row.settings["model.plan.language.init_args"]
        assert settings == {"targets": TARGETS[label], "r": r, "alpha": alpha}


def test_a_variable_that_the_name_leaves_out_stands_at_its_end_unless_it_has_one_value(tmp_path):
    spec = study(
        tmp_path,
        rows={"a": {}, "b": {"grid": {"x": [1, 2]}, "set": {"trainer.max_epochs": "{x}"}}},
        set={"trainer.max_steps": "{steps}", "model.base.bits.language": "{bits}"},
        grid={"steps": [5], "bits": ["fp32", "nf4"]},
    )
    assert names(spec) == ["a-fp32", "a-nf4", "b-1-fp32", "b-1-nf4", "b-2-fp32", "b-2-nf4"]
    assert expand_rows(spec)[1].common == {
        "trainer.max_steps": 5,
        "model.base.bits.language": "nf4",
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"{x}": {}}, "unknown variable {x}"),
        (
            {"{y}": {"grid": {"x": [1]}, "set": {"a": "{x}"}}},
            "unknown variable {y}. There is: x.",
        ),
        ({"a{x}": {"grid": {"x": [1, 2]}}}, "grid.x: no setting says {x}"),
        ({"a{x}": {"zip": {"x": [1, 2]}}}, "zip: no setting says {x}"),
        ({"a": {"grid": {"x": {"p": [1]}}, "set": {"a": "b {x}"}}}, "let it stand alone"),
        (
            {"a{x}": {"grid": {"x": [1, "1"]}, "set": {"a": "{x}"}}},
            "rows 'a1' and 'a1' have one name",
        ),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(tmp_path, rows, message):
    with pytest.raises(UserError) as caught:
        names(study(tmp_path, rows=rows))
    assert message in str(caught.value)


def test_double_braces_are_braces(tmp_path):
    rows = {"a": {"set": {"data.prompt": "Describe {{category}}."}}}
    (row,) = expand_rows(study(tmp_path, rows=rows))
    assert row.settings == {"data.prompt": "Describe {category}."}


def test_runs_are_counted_without_expanding_them(tmp_path):
    spec = study(
        tmp_path,
        rows=GRID | {"x": {"search": False, "seeds": [7]}, "y": {"tasks": ["format"]}},
        tasks=["format", "source"],
        seeds=[0, 1, 2],
        base={"a": "tiny", "b": "tiny"},
        search={"learning_rate": [1, 2], "seeds": [0, 1]},
    )
    cells = list(cells_of(spec, expand_rows(spec)))
    by_hand = sum(len(cell.seeds) + (4 if cell.search else 0) for cell in cells)
    assert count_runs(spec) == by_hand == 2 * (2 * 4 * (3 + 4) + 2 * 1 + (3 + 4))


def test_the_row_wins_over_the_task_the_base_and_the_study(tmp_path):
    spec = study(
        tmp_path,
        set={"k": "study", "l": "study", "m": "study", "n": "study"},
        base={"b": {"l": "base"}},
        tasks={"t": {"m": "task", "n": "task"}},
        rows={"r": {"set": {"n": "row"}}},
        config=["a.yaml", "b.yaml"],
    )
    (cell,) = cells_of(spec, expand_rows(spec))
    last = dict(arg.removeprefix("--").split("=") for arg in cell.args[2:])
    assert cell.args[:2] == ("--config=a.yaml", "--config=b.yaml")
    assert {key: last[key] for key in ("k", "m", "n")} == {"k": "study", "m": "task", "n": "row"}
    assert last["model.base.l"] == "base"


def test_a_row_has_settings_of_its_own_on_a_task(tmp_path):
    on_tasks = {"t": {"k": "{size}"}, "u": None}
    rows = {"r{size}": {"grid": {"size": [4, 8]}, "set": {"k": "row"}, "tasks": on_tasks}}
    spec = study(tmp_path, tasks=["t", "u", "v"], rows=rows)
    found = {(c.row, c.task): c.args[-1] for c in cells_of(spec, expand_rows(spec))}
    assert found == {
        ("r4", "t"): "--k=4",
        ("r8", "t"): "--k=8",
        ("r4", "u"): "--k=row",
        ("r8", "u"): "--k=row",
    }


MIXED = [
    ("--config=lora_r16.yaml",),
    ("--config=lora_r16.yaml", "--model.plan.language=Frozen", "--model.plan.vision=LoRA"),
    (
        "--config=lora_r16.yaml",
        '--model.plan.language={"class_path": "LoRA", "init_args": {"r": 3}}',
    ),
    (
        "--config=lora_r16.yaml",
        "--model.plan.language=Frozen",
        '--model.plan.language=["LoRA", "LayerNormTuning"]',
        "--data.batch_size=3",
    ),
]


def test_resolving_is_parsing_as_fit_does_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolve = RunResolver()
    for args in MIXED:
        found = resolve(args)
        cli = PlanCLI("fit", [arg.replace("=lora", f"={ROOT}/configs/lora") for arg in args])
        assert (found.base, found.plan) == (cli.module.base, cli.module.plan)
        assert found.config["data"]["batch_size"] == cli.data.batch_size
    assert not list(tmp_path.iterdir())


def test_a_list_of_strategies_takes_nothing_over_from_what_the_config_gave_the_component(tmp_path):
    rows = {"a": {"set": {"model.plan.language": ["LoRA", "LayerNormTuning"]}}}
    spec = study(tmp_path, rows=rows, config="lora_r16.yaml")  # LoRA on attention at its own rate
    (cell,) = cells_of(spec, expand_rows(spec))
    assert RunResolver()(cell.args).plan.language == [LoRA(), LayerNormTuning()]


def test_a_searched_rate_is_every_trained_strategys_also_in_a_list(tmp_path):
    plan = Plan(Frozen(), Full(learning_rate=2e-3), [LoRA(r=4), BitFit(learning_rate=1e-3)])
    args = (
        '--model.plan.projector={"class_path": "Full", "init_args": {"learning_rate": 0.002}}',
        "--model.plan.language=Frozen",
        f"--model.plan.language={json.dumps(plan.to_dict()['language'])}",
    )
    resolve = RunResolver()
    assert resolve(args).plan == plan
    rates = {}
    for key in ("learning_rate", "learning_rate_factor"):
        for candidate in candidates_of(Search({key: (0.5, 3)}), plan):
            found = resolve((*args, *candidate.args)).plan
            (projector,), (lora, bias) = found.of("projector"), found.of("language")
            assert found.of("vision") == [Frozen()]
            assert lora.r == 4
            rates[candidate.label] = [s.learning_rate for s in (projector, lora, bias)]
    assert rates == {
        "learning_rate=0.5": [0.5, 0.5, 0.5],
        "learning_rate=3": [3, 3, 3],
        "learning_rate_factor=0.5": pytest.approx([1e-3, 1e-4, 5e-4]),
        "learning_rate_factor=3": pytest.approx([6e-3, 6e-4, 3e-3]),
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A study of which some cells cannot be, resolved."""
    spec = study(
        tmp_path_factory.mktemp("mixed"),
        base={"whole": {"path": "tiny", "bits.language": "fp32"}, "four": "tiny"},
        set={},
        rows={
            "full": {"group": "other", "set": {"model.plan.language": "Full"}},
            "lora_{r}": {
                "group": "lora",
                "grid": {"r": [4, 999]},
                "set": {"model.plan.language": "LoRA", "model.plan.language.init_args.r": "{r}"},
            },
            "pissa": {
                "set": {
                    "model.plan.language": {"class_path": "LoRA", "init_args": {"init": "pissa"}}
                }
            },
            "bias": {"set": {"model.plan.language": "BitFit"}},
            "nothing": {},
        },
        search={"learning_rate": [1e-3, 3e-3]},
        seeds=[0, 1],
        skip_illegal=True,
    )
    return resolve_study(spec, RunResolver())


def test_what_the_base_or_its_bits_do_not_allow_is_a_dash_with_its_reason(mixed):
    info = study_info(mixed)
    assert info.full == "full"
    assert info.search == {
        "over": {"learning_rate": [1e-3, 3e-3]},
        "seeds": [0],
        "steps": None,
        "on": "val",
        "candidates": 2,
    }
    assert info.row("lora_4").illegal == {}
    assert {*info.row("full").illegal} == {*info.row("pissa").illegal} == {"four"}
    assert "are quantized" in info.row("full").illegal["four"]
    for row, reason in (
        ("lora_999", "r=999 is more than"),
        ("bias", "it has no bias"),
        ("nothing", "nothing to train"),
    ):
        assert {*info.row(row).illegal} == {""}
        assert reason in info.row(row).illegal[""]


def test_without_skip_illegal_the_cell_is_named(tmp_path):
    rows = {"full": {"set": {"model.plan.language": "Full"}}}
    with pytest.raises(UserError, match="row full on task format, base tiny: Full on language"):
        resolve_study(study(tmp_path, rows=rows, set={}), RunResolver())


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["row=lora_*,full", "base=whole"], ["full", "lora_4", "lora_999"]),
        (["group=lora", "base=four"], ["lora_4", "lora_999"]),
        (["row=lora_4", "row=bias", "base=w*"], ["lora_4", "bias"]),
    ],
)
def test_only_is_a_union_within_a_key_and_an_intersection_between_keys(mixed, only, expected):
    chosen = select(mixed, only, "5,6")
    assert [one.cell.row for one in chosen] == expected
    assert {one.cell.seeds for one in chosen} == {(5, 6)}


def test_an_outline_has_the_committed_counts_and_the_runs_that_are_done(tmp_path):
    spec = read_study_file(find_study("ranks"))
    found = resolve_study(replace(spec, rows=spec.rows[1:], full=None), RunResolver())
    cells = select(found, ["row=attention_r16"])
    done = tmp_path / "runs/tiny/format/attention_r16/seed1"
    done.mkdir(parents=True)
    (done / "result.json").write_text('{"status": "done"}')
    (cell,) = outline(found, cells, tmp_path)["cells"]
    record = json.loads((ROOT / "results/format/lora_r16-seed0.json").read_text())
    assert cell["trainable"] == record["trainable"] == 94_464
    tries = len(cell["candidates"]) * len(spec.search.seeds)
    assert cell["runs"] == {"search": tries, "reported": len(spec.seeds), "done": 1}
    assert cell["peak_bytes"] > 4 * record["total"]
    assert cell["command"].startswith("python -m vlmpeft fit --config=lora_r16.yaml ")
