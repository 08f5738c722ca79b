"""A study that nothing has run, for tests of what is made of records."""

import shutil

import pytest

from vlmpeft.study.report.layout import make_table
from vlmpeft.study.report.records import read_study

from .made_study import write_made_study


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_made_study(tmp_path_factory.mktemp("study") / "made")


@pytest.fixture
def copied(folder, tmp_path):
    """A study that a test may change."""
    return shutil.copytree(folder, tmp_path / "made")


@pytest.fixture(scope="session")
def table(folder):
    return make_table(read_study(folder))
