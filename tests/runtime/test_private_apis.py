"""Names of other libraries that they may drop with any version: what breaks is said by name."""

import pytest
import torch

from vlmpeft.runtime.private_apis import ALL, BLEU_UPDATE, PrivateName, keep_4bit_as_stored


@pytest.mark.parametrize("private", ALL, ids=lambda p: f"{p.module}.{p.name}")
def test_the_installed_versions_have_every_name(private):
    assert private.get() is not None


@pytest.mark.parametrize(
    ("module", "name"), [("torchmetrics.nowhere", "gone"), ("torchmetrics.functional", "gone")]
)
def test_a_name_that_is_gone_is_said_with_its_library_and_its_use(module, name):
    with pytest.raises(RuntimeError, match=rf"torchmetrics \S+ has no {module}.gone.* for Bleu"):
        PrivateName(module, name, "Bleu").get()


def test_a_replaced_name_is_put_back_after_a_failure():
    original = BLEU_UPDATE.get()
    seen = []
    with pytest.raises(ZeroDivisionError), BLEU_UPDATE.replaced(len):
        _ = seen.append(BLEU_UPDATE.get()) or 1 / 0
    assert seen == [len]
    assert BLEU_UPDATE.get() is original


def test_bitsandbytes_still_has_the_switch_of_its_repacking():
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 64)
    assert hasattr(layer, "support_avx512bf16_for_cpu")
    layer.support_avx512bf16_for_cpu = True
    keep_4bit_as_stored(torch.nn.Sequential(layer))
    assert layer.support_avx512bf16_for_cpu is False
