"""Settings of rows: dotted keys, and what is not the same in all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; a class stands under the key of what it fills.

    >>> flat({"plan": {"language": {"class_path": "vlmpeft.LoRA", "init_args": {"r": 4}}}})
    {'plan.language': 'LoRA', 'plan.language.r': 4}
    """
    return dict(_flat(settings, prefix))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and "class_path" in value:
        yield key, str(value["class_path"]).removeprefix("vlmpeft.")
        yield from _flat(value.get("init_args") or {}, key)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{number}]")
    else:
        yield key, value


def split_common(
    settings: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what is the same in all of them, what each has beside that).

    >>> split_common([{"r": 4, "bits": "nf4"}, {"r": 8, "bits": "nf4"}])
    ({'bits': 'nf4'}, [{'r': 4}, {'r': 8}])
    """
    if not settings:
        return {}, []
    first, *others = settings
    common = {
        key: value
        for key, value in first.items()
        if all(key in other and _same(other[key], value) for other in others)
    }
    return common, [{k: v for k, v in one.items() if k not in common} for one in settings]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def written(value: Any) -> str:
    """A value of a setting on one line.

    >>> written(["q_proj", "v_proj"]), written(None), written("nf4"), written(3e-3)
    ('[q_proj, v_proj]', 'null', 'nf4', '0.003')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return json.dumps(value, ensure_ascii=False, default=str)
