"""Class paths of version 0.1 that a config or an adapter may hold still mean the same classes."""

import json

import pytest

import vlmpeft
from vlmpeft.runtime.registry import METRICS, STRATEGIES, resolve, saved_class
from vlmpeft.training.saved_config import read_saved_config

HELD = [
    "vlmpeft.strategies.fixed.Frozen",
    "vlmpeft.strategies.fixed.Full",
    "vlmpeft.strategies.lora.LoRA",
    "vlmpeft.strategies.lora.DoRA",
    "vlmpeft.strategies.adalora.AdaLoRA",
    "vlmpeft.strategies.vera.VeRA",
    "vlmpeft.strategies.ia3.IA3",
    "vlmpeft.strategies.bottleneck.BottleneckAdapter",
    "vlmpeft.strategies.prompt.PromptTuning",
    "vlmpeft.strategies.prefix.PrefixTuning",
    "vlmpeft.strategies.selected.BitFit",
    "vlmpeft.strategies.selected.LayerNormTuning",
    "vlmpeft.strategies.selected.LastLayers",
    "vlmpeft.strategies.dense.Dense",
    "vlmpeft.merging.merged.Merged",
    "vlmpeft.strategies.peft_any.Peft",
    "vlmpeft.metrics.text.ExactMatch",
    "vlmpeft.metrics.text.TokenF1",
    "vlmpeft.metrics.text.Contains",
    "vlmpeft.metrics.ngrams.Bleu",
    "vlmpeft.metrics.ngrams.RougeL",
    "vlmpeft.metrics.ngrams.CiderD",
    "vlmpeft.metrics.vqa.VqaAccuracy",
    "vlmpeft.metrics.vqa.Anls",
    "vlmpeft.metrics.vqa.RelaxedAccuracy",
    "vlmpeft.metrics.vqa.NumericError",
    "vlmpeft.metrics.likelihood.Perplexity",
    "vlmpeft.metrics.likelihood.ChoiceAccuracy",
    "vlmpeft.metrics.chance.ChanceCorrected",
    "vlmpeft.metrics.json_fields.JsonFields",
    "vlmpeft.metrics.ExactMatch",
]


@pytest.mark.parametrize("path", HELD)
def test_a_class_path_of_version_0_1_is_the_same_class(path):
    names = METRICS if "metrics" in path else STRATEGIES
    short = path.rpartition(".")[2]
    assert resolve(path, names) is resolve(short, names)
    assert resolve(path, names).__name__ == short


def test_an_adapter_that_names_a_moved_class_is_read():
    path = "vlmpeft.merging.merged.Merged"
    found = saved_class(path, STRATEGIES, vlmpeft.Strategy, "--x")
    assert found is resolve("Merged", STRATEGIES)


def test_the_config_of_a_run_of_version_0_1_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "model:\n"
        "  plan: {language: {class_path: vlmpeft.merging.merged.Merged, init_args: {}}}\n"
        "  metrics: [{class_path: vlmpeft.metrics.text.ExactMatch}, vlmpeft.metrics.vqa.Anls]\n"
    )
    model = read_saved_config(path, scoring=True)["model"]
    assert model["plan"]["language"]["class_path"] == STRATEGIES["Merged"]
    assert model["metrics"] == [{"class_path": METRICS["ExactMatch"]}, METRICS["Anls"]]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_named_config_may_spell_a_strategy_as_version_0_1_did(name):
    """jsonargparse imports the path itself."""
    from vlmpeft.cli.read_plan import read_plan

    (old,) = (path for path in HELD if path.rpartition(".")[2] == name)
    extra = {"adapters": ["nowhere"]} if name == "Merged" else {}
    entry = json.dumps({"class_path": old, "init_args": extra})
    planned = read_plan([f"--model.plan.language={entry}"])
    assert [type(s).__name__ for s in planned.plan.of("language")] == [name]
