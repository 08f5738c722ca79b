"""Plain PEFT answers with what was written as the adapter does here, or nothing is written."""

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmpeft.evaluation.equivalence import TOLERANCE
from vlmpeft.export.reload import load_in_peft
from vlmpeft.export.to_peft import AdapterExport
from vlmpeft.runtime.errors import GateFailed

from ..exports import FP32, export, exported, line, questions, report_of, saved  # noqa: F401  fixtures

# ruff: noqa: F811  fixtures are imported

WEIGHTS = "adapter_model.safetensors"
TOO_FAR = "max |delta logits|"


@pytest.mark.parametrize(
    ("name", "to", "args", "reference"),
    [
        ("recipe", "peft", (), "attached, as trained"),
        ("nf4", "peft", (), "attached, as trained"),
        ("dora", "peft", (), "attached, as trained"),
        ("mixed", "peft", (), "attached, as trained"),
        ("lora", "vllm", (), "attached, as trained"),
        (
            "recipe",
            "vllm",
            ("--projector", "svd:16"),
            "attached, projector as LoRA of rank 16",
        ),
    ],
)
def test_what_was_written_is_in_plain_peft_what_is_attached_here(
    exported, name, to, args, reference
):
    out = exported(name, to, *args)
    report = report_of(out)
    gate, rows = report["gate"], {row["route"]: row for row in report["routes"]}
    assert (gate["reference"], gate["exported"]) == (reference, "loaded by plain PEFT")
    assert gate["passed"]
    assert gate["max_logit"] < 1e-3 < 0.1 < gate["effect_of_adapter"]["max_logit"]
    assert gate["text_agreement"] == 1
    assert [route for route, row in rows.items() if row["written"]] == ["loaded by plain PEFT"]
    changed = report["projector"]["change"]["max_logit"] if args else 0
    assert rows["loaded by plain PEFT"]["max_logit"] == pytest.approx(changed, abs=1e-3)
    assert rows["no adapter, as trained"]["max_logit"] > 0.1
    card = (out / "README.md").read_text()
    assert "`loaded by plain PEFT` is this folder" in card
    assert "| no adapter, as trained |" in card


def test_the_coarsest_width_of_the_base_says_what_passes(exported):
    """A tower in bf16 beside a language model in fp32."""
    assert report_of(exported("bf16 tower", "peft"))["gate"]["tolerance"] == TOLERANCE["bf16"]
    assert report_of(exported("lora", "vllm"))["gate"]["tolerance"] == TOLERANCE["fp32"]


def _with_alpha_times(factor):
    def damage(folder):
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        patterns = {target: factor * alpha for target, alpha in config["alpha_pattern"].items()}
        changed = {"lora_alpha": factor * config["lora_alpha"], "alpha_pattern": patterns}
        path.write_text(json.dumps(config | changed))

    return damage


def _with_another_base_name(folder):
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace("model.language_model.", "model.language."))


def _with_tensors(change):
    def damage(folder):
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return damage


def _scaled(tensors):
    return {n: t * 3 if n.endswith("q_proj.lora_B.weight") else t for n, t in tensors.items()}


def _renamed(tensors):
    return {n.replace("layers.0.mlp.down_proj", "down_proj"): t for n, t in tensors.items()}


def _with_one_more(tensors):
    return tensors | {"base_model.model.model.other.lora_A.weight": torch.zeros(2, 2)}


def _with_another_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text("well: " + path.read_text())


@pytest.fixture
def tamper(monkeypatch):
    """Let every export damage what it has just written."""
    write = AdapterExport._write_config

    def use(damage):
        def tampered(folder, config):
            write(folder, config)
            damage(folder)

        monkeypatch.setattr(AdapterExport, "_write_config", staticmethod(tampered))

    return use


@pytest.mark.parametrize(
    ("name", "args", "damage", "message"),
    [
        pytest.param("recipe", (), _with_alpha_times(2), TOO_FAR, marks=pytest.mark.slow),
        ("nf4", (), _with_alpha_times(2), TOO_FAR),
        pytest.param("mixed", (), _with_tensors(_scaled), TOO_FAR, marks=pytest.mark.slow),
        ("recipe", ("--projector", "svd:8"), _with_alpha_times(2), "projector as LoRA of rank 8"),
        ("lora", (), _with_tensors(_with_one_more), "without 1 of its tensors, e.g. base_model"),
        ("dora", (), _with_another_template, "encodes samples otherwise"),
    ],
)
def test_the_gate_stops_a_folder_that_plain_peft_reads_otherwise(
    tmp_path, saved, questions, capsys, tamper, name, args, damage, message
):
    tamper(damage)
    before = Counter(path.name for path in tmp_path.iterdir())
    assert export(saved(name), "peft", tmp_path / "out", *questions, *args) == 4
    said = line(capsys)
    assert message in said
    assert "nothing was written" in said
    assert Counter(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_with_tensors(_renamed), "Found missing adapter keys"),
        (_with_another_base_name, "Target modules"),
    ],
)
def test_what_plain_peft_cannot_load_fails_the_gate_by_its_reason(
    tmp_path, exported, damage, message
):
    folder = shutil.copytree(exported("dora", "peft"), tmp_path / "out")
    load_in_peft(folder, FP32, torch.device("cpu"))
    damage(folder)
    with pytest.raises(GateFailed, match=f"plain PEFT cannot load what was written: .*{message}"):
        load_in_peft(folder, FP32, torch.device("cpu"))


def test_a_tolerance_of_one_s_own_decides_alone(tmp_path, saved, questions, capsys, tamper):
    tamper(_with_alpha_times(20))
    args = [saved("recipe"), "peft", tmp_path / "out", *questions, "--tolerance", "1000"]
    assert export(*args) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "gate passed: loaded by plain PEFT against attached, as trained" in said
    gate = report_of(tmp_path / "out")["gate"]
    assert gate["max_logit"] > 5e-3
    assert gate["mean_kl"] > gate["effect_of_adapter"]["mean_kl"]
