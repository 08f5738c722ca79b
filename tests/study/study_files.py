"""Study files for tests."""

import yaml

from vlmpeft.study.study_file import read_study_file

SMALL = {
    "base": "tiny",
    "set": {"model.base.bits.language": "fp32"},
    "tasks": ["format"],
    "rows": {"lora": {"set": {"model.plan.language": "LoRA"}}},
}


def study(folder, name="s", **changes):
    """The study of SMALL with some keys changed, read from a file."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
    return read_study_file(path)
