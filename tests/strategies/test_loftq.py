"""LoftQ starts a LoRA from what quantization lost."""

import pytest
import torch

from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import LoRA
from vlmpeft.strategies.deltas import dequantized
from vlmpeft.strategies.plan import Plan, attach


@pytest.mark.parametrize("width", ["nf4", "fp4", "int8"])
def test_the_start_is_the_best_low_rank_part_of_the_loss(tiny, width):
    """Eckart and Young: what is left is the tail of the residual's singular values."""
    whole = dict(tiny[0].named_modules())
    model, _, components = load_base(BaseSpec(bits=Bits(vision=width, language=width)))
    lora = LoRA(r=4, init="loftq", targets=("q_proj", "v_proj"))
    attached = attach(Plan(vision=lora, language=lora), model, components)
    deltas = attached.deltas()
    assert len(deltas) > 6
    for name, delta in deltas.items():
        target = name.removesuffix(".weight")
        weight = whole[target].weight
        residual = weight - dequantized(model.get_submodule(target).base_layer)
        tail = torch.linalg.svdvals(residual)[4:].norm()
        assert (residual - delta).norm() == pytest.approx(float(tail), rel=1e-3)
        assert (residual - delta).norm() < residual.norm()


def test_it_is_refused_where_nothing_is_quantized(tiny):
    with pytest.raises(UserError, match="loftq on language has no effect"):
        attach(Plan(language=LoRA(r=4, init="loftq")), tiny[0], tiny[2])


def test_it_is_refused_without_the_whole_weights(tiny_nf4, tmp_path):
    model, _, components = tiny_nf4
    model.name_or_path = str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not in the base's files"):
        attach(Plan(language=LoRA(r=4, init="loftq")), model, components)


def test_a_refusal_leaves_no_trace(tiny_nf4, tmp_path):
    model, _, components = tiny_nf4
    before = [n for n, _ in model.named_modules()]
    model.name_or_path = str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError):
        attach(Plan(language=LoRA(r=4, init="loftq")), model, components)
    assert [n for n, _ in model.named_modules()] == before
