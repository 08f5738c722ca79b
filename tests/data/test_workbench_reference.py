"""What `workbench:TASK@SHIFT,n=TRAIN` may say."""

from dataclasses import replace

import pytest

from vlmpeft.data.workbench.build import cached_task
from vlmpeft.data.workbench.reference import read_reference
from vlmpeft.data.workbench.tasks import TASKS
from vlmpeft.runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("workbench:format", "format"),
        ("workbench:format@1", "format"),
        ("format@1.0,n=1600", "format"),
        ("workbench:style@0.50", "style@0.5"),
        ("workbench:style@.5,n=400", "style@0.5,n=400"),
        ("workbench:gauge@0", "gauge@0.0"),
        ("workbench:paints,n=800", "paints"),
        ("workbench:paints,n=1600", "paints,n=1600"),
    ],
)
def test_what_means_the_same_has_one_name(text, name):
    assert read_reference(text).name == name
    assert read_reference(name) == read_reference(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workbench:formt", "unknown workbench task 'formt'. Did you mean format?"),
        ("workbench:", "unknown workbench task ''"),
        ("workbench:style@1.5", "style@1.5: the shift '1.5' is not a number from 0 to 1"),
        ("workbench:style@-0.5", "not a number from 0 to 1"),
        ("workbench:style@nan", "not a number from 0 to 1"),
        ("workbench:style@", "the shift '' is not a number"),
        ("workbench:source@0.5", "source has no shift to set; format, format_scene, style, gauge"),
        ("workbench:style,n=0", "n=0 is not a whole number from 1 to 100,000"),
        ("workbench:style,n=1e3", "n=1e3 is not a whole number"),
        ("workbench:style,n=1000000", "is not a whole number from 1 to 100,000"),
        ("workbench:style,m=3", "behind the task may stand n=TRAIN and nothing else"),
        ("workbench:style,n=3,n=4", "and nothing else"),
        ("workbench:style@0.5@0.5", "the shift '0.5@0.5'"),
        ("workbench:../x", "unknown workbench task '../x'"),
    ],
)
def test_anything_else_is_one_line(text, told):
    with pytest.raises(UserError) as error:
        read_reference(text)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_another_size_is_another_folder_of_the_cache(monkeypatch):
    monkeypatch.setitem(TASKS, "paints", replace(TASKS["paints"], val=1, test=1))
    folders = {cached_task(f"workbench:paints,n={number}") for number in (1, 2)}
    assert len(folders) == 2
    assert all((folder / "train.json").is_file() for folder in folders)
