"""A small study with everything that a table has to show, written by the writers that runs use."""

import numpy as np

from vlmpeft.study.report.records import Row

from .records import failed_record, make_item, make_record, write_run_items, write_study

ITEMS = 120
ROWS = (
    Row("lora_v", "LoRA, vision", "LoRA", {"method": "LoRA", "component": "vision"}),
    Row("lora_l", "LoRA, language", "LoRA", {"method": "LoRA", "component": "language"}),
    Row(
        "prompt_v",
        "prompts, vision",
        "prompt tuning",
        {"method": "prompt", "component": "vision"},
        {"gauge": "vision has 4 patches, 8 prompts are more"},
    ),
    Row("prompt_l", "prompts, language", "prompt tuning", {"method": "prompt", "component": "language"}),
    Row("full", "full fine-tuning"),
)  # fmt: skip
# task -> row -> chance that an answer is right
SKILL = {
    "format": {"lora_v": 0.3, "lora_l": 0.9, "prompt_l": 0.88, "prompt_v": 0.2, "full": 0.97},
    "gauge": {"lora_v": 0.7, "lora_l": 0.6, "prompt_l": 0.3, "full": 0.95},
}
SIZES = {"lora_v": 36_864, "lora_l": 32_768, "prompt_v": 768, "prompt_l": 1024, "full": 1_450_816}


def scores_of(task, row, seed):
    """Which of a run's items are right."""
    generator = np.random.default_rng([sum(map(ord, task + row)), seed])
    return [float(one) for one in generator.random(ITEMS) < SKILL[task][row]]


def tuned_record(task, row, seed):
    """The record of a finished run."""
    mean = float(np.mean(scores_of(task, row, seed)))
    split = {
        "exact_match": mean,
        "exact_match_chance_corrected": 1.25 * mean - 0.25,
        "loss": 3 - mean,
    }
    before = {"exact_match": 0.05, "exact_match_chance_corrected": -0.1875, "loss": 9.0}
    kept = {"exact_match": 0.9 - 0.01 * seed}
    strategies = [
        {
            "name": "Full" if row == "full" else "LoRA",
            "trainable": SIZES[row],
            "learning_rate": 3e-3,
        }
    ]
    return make_record(
        row,
        seed,
        task,
        score=mean,
        metrics={
            "base": {"val": before, "test": before, "retention": {"exact_match": 0.98}},
            "tuned": {"val": split, "test": split, "retention": kept},
        },
        controls={"blank": {"exact_match": 0.25}},
        search={"tried": 3, "on": "val", "chosen": {"learning_rate": 3e-3}},
        trainable=SIZES[row],
        total=1_450_816,
        components={"language": {"strategies": strategies}},
        supervised_tokens=6000,
        data={"test": {"sha256": f"{task}-test", "conversations": ITEMS}},
        identity={"plan": {"language": row}, "seed": seed},
    )  # fmt: skip


def base_record(task):
    """The record of the untouched base."""
    before = {"exact_match": 0.05, "exact_match_chance_corrected": -0.1875, "loss": 9.0}
    scores = {"val": before, "test": before, "retention": {"exact_match": 0.98}}
    return make_record(
        "base",
        None,
        task,
        score=0,
        metrics={"base": scores, "tuned": scores},
        trainable=0,
        total=1_450_816,
        data={"test": {"sha256": f"{task}-test", "conversations": ITEMS}},
    )


def items_of(task, row, seed):
    """A run's items, two to a picture."""
    return [
        make_item(number, score, image=[f"images/{number // 2}.png"])
        for number, score in enumerate(scores_of(task, row, seed))
    ]


def write_made_study(folder, rows=ROWS, **info):
    """Two tasks, five rows, three seeds; one run failed, one is missing, one cell cannot be run."""
    records = [base_record(task) for task in SKILL]
    records += [
        tuned_record(task, row, seed)
        for task, skills in SKILL.items()
        for row in skills
        for seed in range(3)
        if (task, row, seed) not in (("gauge", "lora_v", 2), ("gauge", "prompt_l", 1))
    ]
    records.append(
        failed_record("lora_v", 2, "CUDA out of memory:\n tried to allocate 2 GiB", "gauge")
    )
    given = {"title": "Where to adapt", "name": "made", "reference": "lora_l", "full": "full"}
    write_study(folder, rows, records, **(given | info))
    for record in records:
        if record["status"] == "done" and record["seed"] is not None:
            write_run_items(folder, record, items_of(record["task"], record["row"], record["seed"]))
    return folder
