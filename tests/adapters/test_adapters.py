"""What is saved is what was trained, and plain PEFT answers the same."""

import json
import resource
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import attach_adapter, load_adapter, load_tensors
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Full, LoRA
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import call, randomize
from ..data.test_encode import Image, talk

FP32 = BaseSpec(bits=Bits(language="fp32"))
RECIPE = Plan(projector=Full(), language=LoRA(targets=("q_proj", "k_proj", "v_proj", "o_proj")))
PLANS = {
    "recipe": RECIPE,
    "every component, unequal ranks": Plan(
        vision=LoRA(r=4, alpha=4), projector=LoRA(r=2), language=LoRA(r=8)
    ),
}


@pytest.fixture
def batch(tiny, pictures):
    image = Image(str(pictures / "a.png"))
    batch = collate([Encoder(tiny[1]).encode(talk((image, "what part?"), "gear"))], 0)
    batch.pop("labels")
    return batch


def _logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def _saved(tmp_path, tiny, plan):
    model, processor, components = tiny
    attached = attach(plan, model, components)
    randomize(attached)
    save_adapter(tmp_path / "adapter", attached, processor=processor, base=origin(FP32))
    return tmp_path / "adapter", attached


def test_a_revision_is_of_the_base_it_was_trained_on_alone(tmp_path, tiny):
    folder, _ = _saved(tmp_path, tiny, Plan(language=LoRA(r=2)))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["base"] |= {"id": "hub/base", "revision": "abc123"}
    path.write_text(json.dumps(manifest))
    adapter = Adapter.read(folder)
    for again in (adapter.trained_base(), adapter.trained_base("hub/base")):
        assert (again.path, again.revision) == ("hub/base", "abc123")
    moved = adapter.trained_base("elsewhere/base")
    assert (moved.path, moved.revision) == ("elsewhere/base", None)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_plain_peft_gives_equal_logits(tmp_path, tiny, batch, plan):
    folder, _ = _saved(tmp_path, tiny, plan)
    ours = _logits(tiny[0], batch)
    base, _, _ = load_base(FP32)
    untouched = _logits(base, batch)
    theirs = _logits(PeftModel.from_pretrained(base, folder), batch)
    assert torch.equal(ours, theirs)
    assert (ours - untouched).abs().max() > 1e-2


def test_plain_peft_adapts_exactly_the_planned_modules(tmp_path, tiny):
    folder, attached = _saved(tmp_path, tiny, RECIPE)
    base, _, _ = load_base(FP32)
    loaded = PeftModel.from_pretrained(base, folder)
    adapted = {
        n.removeprefix("base_model.model.")
        for n, m in loaded.named_modules()
        if hasattr(m, "lora_A")
    }
    planned = {target for a in attached.attachments if a.added for target in a.targets}
    assert adapted == planned != set()
    assert (
        set(json.loads((folder / "adapter_config.json").read_text())["target_modules"]) == planned
    )


@pytest.mark.parametrize(
    "plan", [*PLANS.values(), Plan(projector=Full())], ids=[*PLANS, "projector alone"]
)
def test_save_load_gives_equal_logits(tmp_path, tiny, batch, plan):
    folder, _ = _saved(tmp_path, tiny, plan)
    ours = _logits(tiny[0], batch)
    model, _, components = load_base(FP32)
    load_adapter(folder, model, components)
    assert torch.equal(ours, _logits(model, batch))


def test_what_peft_cannot_carry_has_no_top_level_config(tmp_path, tiny):
    """PEFT cannot save a projector-only full tuning: loading a part would answer wrongly in silence."""
    folder, _ = _saved(tmp_path, tiny, Plan(projector=Full()))
    assert not (folder / "adapter_config.json").exists()
    assert (folder / "adapter.safetensors").is_file()
    assert not (folder / "peft_partial").exists()


def test_every_trained_tensor_is_in_the_manifest_and_the_file(tmp_path, tiny):
    folder, attached = _saved(tmp_path, tiny, RECIPE)
    manifest = json.loads((folder / "manifest.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert manifest["tensors"].keys() == tensors.keys()
    assert len(tensors) == len(attached.trainable()) == 4 + 2 * 16
    assert manifest["base"]["fingerprint"] == origin(FP32)["fingerprint"]


def test_a_save_takes_the_place_of_an_adapter_and_touches_no_neighbour(tmp_path, tiny):
    (tmp_path / "adapter.tmp").mkdir()
    (tmp_path / "adapter.tmp" / "notes").write_text("mine")
    first, attached = _saved(tmp_path, tiny, RECIPE)
    (first / "of the first").touch()
    attached.detach()
    folder, _ = _saved(tmp_path, tiny, RECIPE)
    assert (tmp_path / "adapter.tmp" / "notes").read_text() == "mine"
    assert not (folder / "of the first").exists()
    assert folder.stat().st_mode == (tmp_path / "adapter.tmp").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "adapter.tmp"}


def test_a_save_on_a_full_disk_is_one_line_and_leaves_the_adapter_that_was_there(tmp_path, tiny):
    folder, attached = _saved(tmp_path, tiny, RECIPE)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match="could not be saved"):
            save_adapter(folder, attached, processor=tiny[1], base=origin(FP32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
    assert before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "shape, as listed"])
def test_a_wrong_tensor_is_an_error_and_nothing_is_loaded(tmp_path, tiny, change):
    folder, attached = _saved(tmp_path, tiny, RECIPE)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["base_model.model.other"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(3, 3)
    if change == "shape, as listed":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["tensors"][name] = [3, 3]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    save_file(tensors, path)
    before = {n: p.clone() for n, p in attached.trainable().items()}
    with pytest.raises(UserError, match=r"does not fit the plan|has shape"):
        load_tensors(Adapter.read(folder), attached)
    assert all(torch.equal(before[n], p) for n, p in attached.trainable().items())


def test_an_adapter_of_another_base_is_refused(tmp_path, tiny):
    folder, _ = _saved(tmp_path, tiny, RECIPE)
    adapter, here = Adapter.read(folder), origin(FP32)
    assert adapter.check_base(here) == "same"
    assert adapter.check_base(origin(BaseSpec())) == "other bits"
    with pytest.raises(UserError, match="belongs to base tiny"):
        adapter.check_base(here | {"fingerprint": "0" * 16})


def test_an_adapter_is_opened_once(tmp_path, tiny):
    """What was read stays as it was when the folder is gone; tensors that were forgotten are read again."""
    model, _, components = tiny
    folder, attached = _saved(tmp_path, tiny, RECIPE)
    before = {name: p.detach().clone() for name, p in attached.trainable().items()}
    attached.detach()
    adapter = Adapter.read(folder)
    assert adapter.tensors is adapter.tensors
    assert adapter.processor is adapter.processor
    folder.rename(tmp_path / "gone")
    assert adapter.plan.to_dict() == RECIPE.to_dict()
    assert adapter.trained_base() == FP32
    loaded = attach_adapter(adapter, model, components).trainable()
    assert before.keys() == loaded.keys()
    assert all(torch.equal(before[name], value) for name, value in loaded.items())
    adapter.forget_tensors()
    with pytest.raises(UserError, match="adapter"):
        _ = adapter.tensors


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("export", ("--to=peft",)),
        pytest.param("export", ("--to=merged",), marks=pytest.mark.slow),
        ("merge", ("--method=average",)),
    ],
)
def test_a_verb_reads_a_manifest_once(tmp_path, tiny, monkeypatch, verb, options):
    """The adapter's own; a folder that was written is another."""
    folder, attached = _saved(tmp_path, tiny, Plan(language=LoRA(r=2, targets=("q_proj",))))
    attached.detach()
    read, read_text = [], Path.read_text

    def counted(path, *args, **kwargs):
        read.append(path)
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", counted)
    given = "--adapters" if verb == "merge" else "--adapter"
    assert call(verb, *options, f"--out={tmp_path / 'out'}", given, folder) == 0
    assert read.count(folder / "manifest.json") == 1


def test_a_broken_adapter_file_is_one_line(tmp_path, tiny):
    folder, _ = _saved(tmp_path, tiny, RECIPE)
    (folder / "adapter_model.safetensors").write_bytes(b"junk")
    model, _, components = load_base(FP32)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError, match="is broken"):
        load_adapter(folder, model, components)
    assert [name for name, _ in model.named_modules()] == names


def test_the_base_is_bitwise_unchanged_by_training_steps(tiny_nf4, pictures):
    from vlmpeft.evaluation.token_loss import supervised_loss

    model, processor, components = tiny_nf4
    attached = attach(Plan(projector=LoRA(), language=LoRA()), model, components)
    trainable = attached.trainable()
    before = {n: p.data.clone() for n, p in model.named_parameters() if n not in trainable}
    image = Image(str(pictures / "a.png"))
    batch = collate([Encoder(processor).encode(talk((image, "what part?"), "gear"))], 0)
    optimizer = torch.optim.AdamW(attached.parameter_groups(), weight_decay=0.1)
    for _ in range(3):
        supervised_loss(model, batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.named_parameters())
    assert len(before) > 50
    assert all(torch.equal(before[n], after[n].data) for n in before)


def test_a_lora_has_plain_peft_s_modules_in_plain_peft_s_places(tiny):
    """Module by module: names and classes below the model."""
    from peft import LoraConfig, get_peft_model

    model, _, components = tiny
    attached = attach(Plan(language=LoRA(r=4)), model, components)
    targets = [target for a in attached.attachments for target in a.targets]
    ours = [(n, type(m)) for n, m in model.named_modules()]
    attached.detach()
    config = LoraConfig(r=4, target_modules=targets, lora_dropout=0.05)
    theirs = get_peft_model(model, config).base_model.model
    assert ours == [(n, type(m)) for n, m in theirs.named_modules()]
