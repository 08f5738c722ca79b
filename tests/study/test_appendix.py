"""An appendix says how the numbers came to be; expected values come from the records by other ways."""

import json
import re

import pytest

from vlmpeft.runtime.records import write_json
from vlmpeft.runtime.registry import STRATEGIES
from vlmpeft.study.report.appendix.sections import make_appendix
from vlmpeft.study.report.bibliography import PAPERS, bibtex, citations, citations_of_bits
from vlmpeft.study.report.document import Heading
from vlmpeft.study.report.formats.markdown import markdown
from vlmpeft.study.report.records import read_study

from .made_study import write_made_study
from .records import failed_record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_made_study(tmp_path_factory.mktemp("study") / "made")
    search = folder / "search" / "tiny" / "format" / "lora_l" / "learning_rate=0.1"
    write_json(search / "seed0" / "result.json", failed_record("lora_l", 0, "nan"))
    done = json.loads((folder / "runs/tiny/format/lora_l/seed0/result.json").read_text())
    seconds = {"seconds": {"fit": 3600.0}}
    write_json(search / "seed1" / "result.json", done | seconds)
    return folder


@pytest.fixture(scope="module")
def sections(folder):
    """Heading -> what stands under it, as Markdown."""
    found, name = {"": []}, ""
    for part in make_appendix(read_study(folder)):
        if isinstance(part, Heading):
            found[name := part.text] = []
        else:
            found[name].append(part)
    return {name: markdown(parts) for name, parts in found.items()}


def cells(text):
    """The cells of a Markdown table's rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_settings_are_the_common_ones_and_each_row_s_plan(sections):
    assert "trainer.max_steps: 100" in sections["Settings"]
    rows = {row[0]: row[1:] for row in cells(sections["Settings"])}
    assert rows["LoRA, vision"][:2] == [
        "format, gauge",
        "LoRA, r 4, rslora true, learning_rate 0.003",
    ]
    assert rows["full fine-tuning"][3] == "Full, learning_rate 0.003"
    assert "train.json" not in sections["Settings"]


def test_the_search_has_its_bounds_and_every_candidate(sections):
    assert "learning_rate: 0.001, 0.003, 0.01\n" in sections["Search for settings"]
    row = next(
        r for r in cells(sections["Search for settings"]) if r[:2] == ["LoRA, language", "gauge"]
    )
    # skill 0.6, less 10 a unit of rate away from 0.003
    assert row[2:] == ["0.001: 0.580; 0.003: 0.600; 0.01: 0.530", "learning_rate 0.003"]


def test_hours_are_the_sum_of_all_seconds_with_the_search_and_failed_runs_counted(folder, sections):
    records = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    seconds = sum(sum((record.get("seconds") or {}).values()) for record in records)
    done = sum(record["status"] == "done" for record in records)
    assert cells(sections["Runs and hours"])[-1] == [
        "all", "", str(done), str(len(records) - done), f"{seconds / 3600:.3f}",
    ]  # fmt: skip
    assert ["LoRA, language", "search", "1", "1", "1.000"] in cells(sections["Runs and hours"])
    assert "lora_v on gauge, seed 2: CUDA out of memory" in sections["Failed runs"]


def test_data_prompts_versions_and_records_are_there(folder, sections):
    assert ["format", "test", "120", "format-test"] in cells(sections["Data"])
    assert "expected: gear" in sections["An example of each task"]
    assert "gauge: max_new_tokens 15, greedy true" in sections["Decoding"]
    assert ["torch", "2.13.0", "27"] in cells(sections["Software and hardware"])
    listed = re.findall(r"^\w{12}  (runs/\S+)$", sections["Records"], re.MULTILINE)
    assert {*listed} == {
        p.parent.relative_to(folder).as_posix() for p in (folder / "runs").rglob("result.json")
    }


def test_references_are_of_the_strategies_used_and_no_others(sections):
    keys = re.findall(r"^@\w+\{(\w+),$", sections["References"], re.MULTILINE)
    assert keys == ["hu2022lora", "jia2022vpt", "kalajdzievski2023rslora", "lester2021prompt"]


def test_every_strategy_has_its_paper():
    own = {"Frozen", "Full", "LastLayers", "Dense", "Peft"}  # none, or the user's config says which
    for name in STRATEGIES.keys() - own:
        knobs = {"BottleneckAdapter": {"style": "houlsby"}, "Merged": {"rule": "ties"}}.get(
            name, {}
        )
        assert list(citations("language", name, knobs)), name
    assert list(citations("vision", "PromptTuning", {})) == ["jia2022vpt"]
    everything = {"rslora": True, "init": "loftq", "lora_plus_ratio": 16.0}
    assert [*citations("language", "LoRA", everything)] == [
        "hu2022lora", "kalajdzievski2023rslora", "li2024loftq", "hayou2024loraplus",
    ]  # fmt: skip
    assert [*citations("language", "Merged", {"rule": "dare_ties"})] == [
        "yu2024dare",
        "yadav2023ties",
    ]
    assert [*citations_of_bits(["auto", "nf4", "int8"])] == [
        "dettmers2023qlora",
        "dettmers2022llmint8",
    ]


def test_the_papers_are_those_that_the_cards_name(folder):
    from ..conftest import ROOT

    cards = "".join(path.read_text() for path in (ROOT / "docs" / "strategies").glob("*.md"))
    pages = cards + (ROOT / "docs" / "merging.md").read_text()
    named = {*re.findall(r"arXiv:(\d{4}\.\d{5})", pages)} | {
        *re.findall(r"OLoRA arXiv:(\S+);", pages)
    }
    known = {paper.arxiv for paper in PAPERS.values()}
    assert len(known) == len(PAPERS)
    # what no card names: quantization; what has no entry: P-Tuning v2, which a prefix in every layer is like
    assert known - named == {"2305.14314", "2208.07339"}
    assert named - known == {"2110.07602"}


def test_bibtex_has_balanced_braces_and_each_entry_once():
    text = bibtex([*PAPERS, *PAPERS])
    assert text.count("{") == text.count("}")
    assert len(re.findall(r"^@", text, re.MULTILINE)) == len(PAPERS)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 78
