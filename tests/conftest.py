"""Tiny real models and data for every test; no network, no mocks."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """A cache of the session's own: the user's is neither read nor written."""
    os.environ["VLMPEFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _tiny_once():
    return load_base(BaseSpec(bits=Bits(language="fp32")))


@pytest.fixture
def tiny(_tiny_once):
    """(model, processor, components) of the embedded base in fp32, a copy of its own."""
    return copy.deepcopy(_tiny_once)


@pytest.fixture
def tiny_nf4():
    """The same with its language model in NF4."""
    return load_base(BaseSpec())


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of three small PNG pictures: a.png, b.png, c.png."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate("abc"):
        Image.new("RGB", (64, 64), (80 * number, 40, 200 - 80 * number)).save(
            folder / f"{name}.png"
        )
    return folder


def llava(question="what part is it?", answer="gear", image="a.png", **extra):
    """One LLaVA-format record."""
    record = {
        "conversations": [
            {"from": "human", "value": ("<image>\n" if image else "") + question},
            {"from": "gpt", "value": answer},
        ]
    }
    return record | ({"image": image} if image else {}) | extra


def write_json(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def vlmpeft(*args, cwd, timeout=300, check=None, env=None):
    """Run `python -m vlmpeft ARGS` as a user would; returns the completed process."""
    done = subprocess.run(
        [sys.executable, "-m", "vlmpeft", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
    )
    if check is not None:
        assert done.returncode == check, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def call(*args):
    """Run a verb in this process; returns its exit code."""
    from vlmpeft.__main__ import main

    saved, sys.argv = sys.argv, ["vlmpeft"]
    try:
        return main([str(arg) for arg in args])
    finally:
        sys.argv = saved


def randomize(attached, scale=0.05):
    """Give zero-initialised trainables values, so that tests of them are not vacuous."""
    with torch.no_grad():
        for parameter in attached.trainable().values():
            parameter.add_(scale * torch.randn_like(parameter))
