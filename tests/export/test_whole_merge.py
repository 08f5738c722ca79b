"""Adapters merged into a copy of their base's files, tensor by tensor."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base, meta_model
from vlmpeft.base.spec import BaseSpec, Bits, base_dir
from vlmpeft.export import patch_files as patching
from vlmpeft.export import tensor_locations as places
from vlmpeft.merging import ties
from vlmpeft.merging.averaging import linear
from vlmpeft.merging.merger import Merger
from vlmpeft.merging.operands import read_operand
from vlmpeft.runtime.errors import GateFailed
from vlmpeft.strategies import BitFit, BottleneckAdapter, DoRA, Full, LayerNormTuning, LoRA
from vlmpeft.strategies.low_rank import dense
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import call, randomize
from ..families import FAMILIES

TINY = Path(base_dir("tiny"))
PLANS = {
    "a": Plan(language=LoRA(r=4), projector=Full()),
    "b": Plan(vision=LoRA(r=2), language=[DoRA(r=2, targets=("q_proj",)), LayerNormTuning()]),
    "c": Plan(language=LoRA(r=3, rslora=True), projector=BitFit()),
    "bottleneck": Plan(language=BottleneckAdapter()),
}


def current_name(name):
    """The model's own names, which transformers loads as well as those of the hub, that the embedded base has."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


def copy_base(folder, dtype=torch.float32, names=lambda name: name, shards=1):
    """The embedded base in another type, under other names, in several files."""
    shutil.copytree(TINY, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(tensors)
    files = {}
    for i in range(shards):
        part = {names(key): tensors[key].to(dtype) for key in keys[i::shards]}
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    for part in ("text_config", "vision_config"):
        config.get(part, {}).pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def write_adapters(root, base, names=PLANS, width="fp32"):
    spec = BaseSpec(base, Bits(width, width, width))
    model, processor, components = load_base(spec)
    torch.manual_seed(0)
    for name in names:
        attached = attach(PLANS[name], model, components)
        randomize(attached)
        ends = {"max_new_tokens": 4, "end_ids": [processor.tokenizer.eos_token_id]}
        save_adapter(root / name, attached, processor=processor, base=origin(spec), decoding=ends)
        attached.detach()
    return {name: str(root / name) for name in names}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return write_adapters(tmp_path_factory.mktemp("adapters"), "tiny")


def weights(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    return dict(model.named_parameters())


def deltas(folder, base="tiny", width="fp32"):
    """Parameter -> dense dW of an adapter."""
    model, _, components = load_base(BaseSpec(base, Bits(width, width, width)))
    found = read_operand(Adapter.read(folder), model, components).deltas
    return {name: dense(delta).double() for name, delta in found.items()}


def stacked(folders, **kwargs):
    """(names with shapes, (T, D) task vectors over the whole model)."""
    parts = [deltas(folder, **kwargs) for folder in folders]
    shapes = {name: delta.shape for part in parts for name, delta in part.items()}
    rows = [
        torch.cat([part.get(n, torch.zeros(s)).flatten() for n, s in shapes.items()])
        for part in parts
    ]
    return shapes, torch.stack(rows).float()


def assert_is_base_plus(found, base, shapes, vector, **tolerance):
    sizes = [shape.numel() for shape in shapes.values()]
    merged = dict(zip(shapes, vector.split(sizes), strict=True))
    for name, weight in base.items():
        if name in merged:
            expected = weight.float() + merged[name].view(weight.shape)
            torch.testing.assert_close(found[name].float(), expected, **tolerance)
            assert not torch.equal(found[name], weight), name
        else:
            assert torch.equal(found[name], weight), name


def merge(out, folders, *options):
    return call("merge", "--adapters", *folders, "--to", "merged", "--out", out, *options)


def test_ties_over_the_whole_model_is_added_to_the_weights(adapters, tmp_path, capsys):
    """LoRA, DoRA, norms, biases, a full projector; loaded by transformers alone, beside the published rule on one vector."""
    folders = [adapters[name] for name in "abc"]
    assert merge(tmp_path / "out", folders, "--method", "ties", "--density", "0.3", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    shapes, task_vectors = stacked(folders)
    vector = ties(task_vectors, density=0.3)
    found = weights(tmp_path / "out")
    assert_is_base_plus(found, weights(TINY), shapes, vector, rtol=1e-5, atol=1e-6)
    assert report["gate"]["max_logit"] < 1e-3
    assert report["gate"]["tensors_read_back"] == len(shapes)
    assert json.loads((tmp_path / "out/merge.json").read_text())["gate"] == report["gate"]


def test_other_names_and_shards_stay_and_the_rest_is_the_base_s_byte_for_byte(tmp_path):
    """Another form of the weights that lies beside them, as in Mistral's repositories, does not."""
    base = copy_base(tmp_path / "base", names=current_name, shards=3)
    save_file({"layers.0.wq": torch.ones(2)}, Path(base) / "consolidated.safetensors")
    folders = [*write_adapters(tmp_path, base, ("a", "c")).values()]
    assert merge(tmp_path / "out", folders, "--method", "linear", "--weights", "0.5", "2") == 0
    shapes, task_vectors = stacked(folders, base=base)
    vector = linear(task_vectors, weights=[0.5, 2.0])
    found = weights(tmp_path / "out")
    assert_is_base_plus(found, weights(base), shapes, vector, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "out/consolidated.safetensors").exists()
    for path in Path(base).glob("model-*.safetensors"):
        assert load_file(path).keys() == load_file(tmp_path / "out" / path.name).keys()
        assert path.stat().st_size == (tmp_path / "out" / path.name).stat().st_size


def test_what_a_16_bit_type_loses_of_dw_is_said(tmp_path, capsys):
    base = copy_base(tmp_path / "base", torch.bfloat16)
    folders = [*write_adapters(tmp_path, base, ("a", "c"), "bf16").values()]
    assert (
        merge(tmp_path / "out", folders, "--method", "linear", "--gate", "weights", "--json") == 0
    )
    report = json.loads(capsys.readouterr().out)
    shapes, task_vectors = stacked(folders, base=base, width="bf16")
    vector = linear(task_vectors)
    was, now = weights(base), weights(tmp_path / "out")
    assert {weight.dtype for weight in now.values()} == {torch.bfloat16}
    change = torch.cat([(now[n].double() - was[n].double()).flatten() for n in shapes])
    lost = ((change - vector.double()).norm() / vector.double().norm()).item()
    assert report["lost_in_rounding"] == pytest.approx(lost, rel=1e-3)
    assert 1e-4 < lost < 0.5
    assert "max_logit" not in report["gate"]


def test_a_rank_that_is_named_is_kept_to(adapters, tmp_path):
    folders = [adapters["a"], adapters["c"]]
    assert merge(tmp_path / "out", folders, "--method", "linear", "--rank", "2") == 0
    was, now = weights(TINY), weights(tmp_path / "out")
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.linalg.matrix_rank((now[name] - was[name]).detach(), rtol=1e-4) == 2


@pytest.mark.parametrize("off", [-4, 4])
def test_a_tensor_written_beside_its_place_stops_the_merge(
    adapters, tmp_path, monkeypatch, capsys, off
):
    right = patching._write

    def wrong(folder, place, values):
        moved = places.Place(place.file, place.key, place.start + off, place.dtype, place.shape)
        right(folder, moved, values)

    monkeypatch.setattr(patching, "_write", wrong)
    assert merge(tmp_path / "out", [adapters["c"]], "--method", "linear") == 4
    assert "was not written as it was meant" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_byte_that_nothing_was_merged_into_is_the_base_s(tmp_path):
    shutil.copytree(TINY, tmp_path / "copy")
    spec = BaseSpec()
    patched = patching.Patched(places=places.find_places(spec, meta_model(spec)))
    key = sorted(patched.places)[3]
    place = patched.places.pop(key)
    size = place.stop - place.start
    header = sum(p.stop - p.start for p in patched.places.values())
    whole = (TINY / "model.safetensors").stat().st_size
    assert patching.check_untouched(spec, tmp_path / "copy", patched) == whole - header >= size
    with (tmp_path / "copy/model.safetensors").open("r+b") as file:
        file.seek(place.stop - 1)
        last = file.read(1)
        file.seek(place.stop - 1)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(GateFailed, match="differs from the base"):
        patching.check_untouched(spec, tmp_path / "copy", patched)


def test_a_checkpoint_that_answers_otherwise_stops_the_merge(
    adapters, tmp_path, monkeypatch, capsys
):
    right = Merger.stream
    monkeypatch.setattr(
        Merger, "stream", lambda self, recipe: ((n, 1.2 * dense(d)) for n, d in right(self, recipe))
    )
    assert merge(tmp_path / "out", [adapters["c"]], "--method", "linear") == 4
    assert "|delta logits|" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["bottleneck"], [], "BottleneckAdapter on language"),
        (["a"], ["--to", "adapter", "--gate", "weights"], "--gate weights has no effect"),
        (["a", "c"], ["--weights", "1"], "2 adapters need as many weights"),
    ],
)
def test_what_cannot_be_merged_this_way_is_refused_by_name(
    adapters, tmp_path, capsys, names, options, said
):
    folders = [adapters[name] for name in names]
    assert merge(tmp_path / "out", folders, "--method", "linear", *options) == 2
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def change(base):
    """Other weights in the same folder."""
    path = Path(base) / "model-00001-of-00001.safetensors"
    tensors = {name: tensor + 0.01 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_another_base_is_refused_and_so_is_one_that_has_changed(adapters, tmp_path, capsys):
    base, out = copy_base(tmp_path / "base"), tmp_path / "out"
    own = write_adapters(tmp_path, base, ("c",))["c"]
    change(base)
    assert merge(out, [adapters["c"]], "--method", "linear", "--base", base) == 2
    assert "dW of different bases" in capsys.readouterr().err
    assert merge(out, [own], "--method", "linear", "--gate", "weights") == 2
    assert "its files have changed since" in capsys.readouterr().err
    assert not out.exists()


def test_a_mismatch_that_is_allowed_goes_into_the_base_of_the_merge(adapters, tmp_path, capsys):
    base, out = copy_base(tmp_path / "base"), tmp_path / "out"
    change(base)
    own = write_adapters(tmp_path, base, ("c",))["c"]
    options = ["--method", "linear", "--allow_base_mismatch", "--limit", "2", "--json"]
    assert merge(out, [own, adapters["c"]], *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["adapter"] for one in report["mismatches"]] == [adapters["c"]]
    name = "model.vision_tower.embeddings.position_embedding.weight"
    assert torch.equal(weights(out)[name], weights(base)[name])


def test_a_tied_weight_stored_once_has_a_place_and_stored_twice_has_none(tmp_path):
    """Changing one of two copies would be another model."""
    spec = BaseSpec()
    model = meta_model(spec)
    model.lm_head.weight = model.get_input_embeddings().weight
    name = "model.language_model.embed_tokens.weight"
    assert name not in places.find_places(spec, model)
    shutil.copytree(TINY, tmp_path / "once")
    tensors = load_file(tmp_path / "once/model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, tmp_path / "once/model.safetensors", metadata={"format": "pt"})
    found = places.find_places(BaseSpec(str(tmp_path / "once")), model)
    assert found[name].shape == model.lm_head.weight.shape


def test_fused_experts_have_no_place_and_their_neighbours_do(tmp_path):
    FAMILIES["qwen3_vl_moe"].save(tmp_path / "base")
    spec = BaseSpec(str(tmp_path / "base"), Bits("fp32", "fp32", "fp32"))
    model = meta_model(spec)
    found = places.find_places(spec, model)
    missing = {name for name, _ in model.named_parameters()} - found.keys()
    assert missing
    assert all("experts" in name for name in missing)
