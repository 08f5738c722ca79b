"""Both sides of `compare --data`: their adapters answer one file and are scored by the same metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.manifest import MANIFEST, find_manifest, read_manifest
from vlmpeft.cli.config_files import names_of
from vlmpeft.cli.lightning_verbs import VLMCLI
from vlmpeft.evaluation.scoring import score_loader
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.study.report.records import BASE_ROW
from vlmpeft.study.report.run import Run, scores_of
from vlmpeft.study.report.sides import ADAPTER, Side, find_runs
from vlmpeft.training.saved_config import read_saved_config

_SPLITS = ("train", "val", "test", "retention", "split_by")
_OWN = ("chat_template", "prompt", "max_length")  # how an adapter is asked


@dataclass(frozen=True)
class Candidate:
    """What answers: an adapter, or the base under the other side's.

    Args:
        adapter: its folder; None is the base.
        config: the keys of its run; {} if there are none beside it.
        seed: of its run.
    """

    adapter: Path | None
    config: dict[str, Any]
    seed: int | None


def score_sides(settings: SimpleNamespace) -> tuple[Side, Side]:
    """Let both sides answer the file of --data.

    What is expected and how it is scored (metrics, columns, target, groups) is as in A's run, how an adapter is asked (chat
    template, prompt, picture size, answer length) as in its own. The base is asked as the other side is.

    Args:
        settings: the options of the verb (see `verbs.compare`).

    Raises:
        UserError: sides without an adapter, data that cannot be read.
    """
    quiet_libraries()
    allowed = names_of(settings.allow_strategy)
    sides = [_candidates(text, allowed) for text in (settings.a, settings.b)]
    adapters = [one for side in sides for one in side if one.adapter]
    if not adapters:
        raise UserError("compare: both sides are the base; give an adapter as one of them")
    shared = next((one.config for one in adapters if one.config), {})
    scored = [
        [_score(one, adapters[0], shared, settings) for one in side] for side in sides
    ]  # (run, items)
    a, b = (
        Side(text, tuple(run for run, _ in side), tuple(tuple(items) for _, items in side))
        for text, side in zip((settings.a, settings.b), scored, strict=True)
    )
    return a, b


def _candidates(text: str, allowed: list[str]) -> list[Candidate]:
    if text == BASE_ROW:
        return [Candidate(None, {}, None)]
    if (Path(text) / MANIFEST).is_file():
        return [_candidate(Path(text), allowed)]
    runs = find_runs(text)
    return [
        Candidate(None, {}, None)
        if run.row == BASE_ROW
        else _candidate(run.folder / ADAPTER, allowed)
        for run in runs
    ]


def _candidate(adapter: Path, allowed: list[str]) -> Candidate:
    find_manifest(adapter)
    path = adapter.parent / "config.yaml"
    config = read_saved_config(path, True, allowed) if path.is_file() else {}
    return Candidate(adapter, config, int(config.get("seed_everything") or 0))


def _score(
    one: Candidate, like: Candidate, shared: dict[str, Any], settings: SimpleNamespace
) -> tuple[Run, list[dict[str, Any]]]:
    """The run that a scoring would have left, and its items."""
    config = _keys(one if one.adapter else like, shared, settings)
    scoring = _Scoring(list(_arguments(config, one, settings)), None if one.adapter else like)
    scores, items = scoring.found
    record = {
        "status": "done",
        "seed": one.seed,
        "row": BASE_ROW if one.adapter is None else None,
        "primary": scoring.module.metrics[0].name,
        "metrics": {"tuned": {"test": scores}},
        "config": config,
    }
    return Run(one.adapter or Path(BASE_ROW), record).with_items(scores_of(items)), items


def _keys(one: Candidate, shared: dict[str, Any], settings: SimpleNamespace) -> dict[str, Any]:
    """The keys of a run that scores one adapter on the file."""
    assert one.adapter is not None
    own = one.config
    base = (own.get("model") or {}).get("base") or _trained_base(one.adapter)
    metrics = (shared.get("model") or {}).get("metrics")
    asked = {key: value for key, value in (own.get("data") or {}).items() if key in _OWN}
    read = {
        key: value
        for key, value in (shared.get("data") or {}).items()
        if key not in _SPLITS and (key not in _OWN or (key == "prompt" and key not in asked))
    }
    data = read | asked | {"train": None, "test": settings.data}
    data |= {"image_dir": settings.image_dir} if settings.image_dir else {}
    return {
        "model": {"base": base} | ({"metrics": metrics} if metrics else {}),
        "data": data,
        "eval": {
            "batch_size": (own.get("eval") or {}).get("batch_size", 64),
            "limit": settings.limit,
        },
        "trainer": own.get("trainer") or {},
    }


def _trained_base(adapter: Path) -> dict[str, Any]:
    base = read_manifest(adapter)["base"]
    bits = {name: base["bits"][name] for name in ("vision", "projector", "language")}
    return {"path": base["id"], "bits": bits}


def _arguments(config: dict[str, Any], one: Candidate, settings: SimpleNamespace) -> Iterator[str]:
    yield f"--config={json.dumps(config, default=str)}"
    if one.adapter:
        yield f"--adapter={one.adapter}"
    if settings.allow_strategy:
        yield f"--allow_strategy={settings.allow_strategy}"


class _Scoring(VLMCLI):
    """The verb `test`, which keeps scores and items.

    Args:
        args: of the verb.
        like: whose limits the base answers by, if it is the base that answers.
    """

    def __init__(self, args: list[str], like: Candidate | None):
        self.like = Adapter.read(like.adapter) if like and like.adapter else None
        super().__init__("test", args)

    def test(self, **_: Any) -> None:
        if self.like:
            self.data.max_pixels = self.like.manifest.max_pixels
        self._prepare_scoring("test")
        if self.like:
            self.module.set_scorer(self.data, self.like.manifest.decoding)
        self.found = score_loader(
            self.module.scorer,
            self.module.model,
            self.data.scoring_loader("test"),
            self.trainer.strategy.root_device,
            self.module.autocast(),
        )
