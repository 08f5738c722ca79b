"""YAML in which no key stands twice, `1e-3` is a number, and `on` and `no` are words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vlmpeft.runtime.errors import UserError

# YAML 1.1 asks for a dot and a sign: 1e-3 would be text
_FLOAT = re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$|^[-+]?\.\d+(?:[eE][-+]?\d+)?$")


class _Loader(yaml.SafeLoader):
    """Safe, and refuses what the plain one takes silently: of two equal keys the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode):
                key = self.construct_object(key_node)
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise UserError(f"line {line}: {key!r} stands there twice; rename one of them")
                seen.add(key)
        return super().construct_mapping(node, deep)


_TAG = "tag:yaml.org,2002:"
# a copy of its own: the plain loader shares the lists
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))


def read_strictly(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: it cannot be read, or has a key twice; with the line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
