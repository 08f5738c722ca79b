"""A small study with everything that a table has to show, written by the writers that runs use."""

import numpy as np

from vlmpeft.study.report.info import Row

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
RATES = (1e-3, 3e-3, 1e-2)
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
        search=search_of(task, row),
        config=config_of(row),
        decoding={"max_new_tokens": 15, "greedy": True},
        trainable=SIZES[row],
        total=1_450_816,
        components={"language": {"strategies": strategies}},
        supervised_tokens=6000,
        data={"test": {"sha256": f"{task}-test", "conversations": ITEMS}},
        identity={"plan": {"language": row}, "seed": seed},
    )  # fmt: skip


def config_of(row):
    """What a run was configured as."""
    kind, init = ("Full", {}) if row == "full" else ("LoRA", {"r": 4, "rslora": row == "lora_v"})
    if row.startswith("prompt"):
        kind, init = "PromptTuning", {"n": 8}
    strategy = {"class_path": f"vlmpeft.{kind}", "init_args": init | {"learning_rate": 3e-3}}
    component = "vision" if row.endswith("_v") else "language"
    plan = {"vision": {"class_path": "vlmpeft.Frozen", "init_args": {}}} | {component: strategy}
    base = {"path": "tiny", "bits": {"language": "nf4"}}
    return {
        "model": {"base": base, "plan": plan, "weight_decay": 0.0},
        "data": {"batch_size": 16, "train": "/home/me/train.json"},
        "trainer": {"max_steps": 100},
        "seed_everything": 0,
    }


def search_of(task, row):
    """What a search for a learning rate left."""
    key = "model.plan.language.init_args.learning_rate"
    candidates = [
        {
            "settings": {key: rate},
            "scores": [SKILL[task][row] - 10 * abs(rate - 3e-3)],
            "losses": [1.0],
        }
        for rate in RATES
    ]
    return {"tried": 3, "on": "val", "chosen": {key: 3e-3}, "at_edge": [], "candidates": candidates}


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
