"""The keys that a config may have, read from the sources of the classes behind them: nothing is imported for it.

Importing torch and Lightning takes seconds, and a parser of all keys as long again; a typing mistake is told before that.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

from vlmpeft.runtime.registry import STRATEGIES

# group of keys -> the class whose arguments they are
GROUPS = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "model": "vlmpeft.training.module.VLMModule",
    "model.base": "vlmpeft.base.spec.BaseSpec",
    "model.base.bits": "vlmpeft.base.spec.Bits",
    "model.plan": "vlmpeft.strategies.plan.Plan",
    "data": "vlmpeft.data.datamodule.VLMData",
    "data.columns": "vlmpeft.data.formats.rows.Columns",
    "eval": "vlmpeft.training.settings.Eval",
    "search": "vlmpeft.training.settings.Search",
}
COMPONENTS = ("vision", "projector", "language")


@cache
def keys_of(group: str) -> tuple[str, ...]:
    """The keys of a group, e.g. those of `model.base`."""
    return (*fields_of(GROUPS[group]),)


@cache
def fields_of(path: str) -> dict[str, str]:
    """Argument -> declared type, of a class of this package or of Lightning by its dotted path, inherited ones included."""
    module, _, name = path.rpartition(".")
    return _fields(_classes(module), name)


def strategy_fields(name: str) -> tuple[str, ...]:
    """The options of a strategy by its short name."""
    return (*fields_of(STRATEGIES[name]),)


@cache
def choices_of(path: str) -> tuple[str, ...]:
    """The values of a `Name = Literal[...]` of this package."""
    module, _, name = path.rpartition(".")
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return tuple(
                ast.literal_eval(ast.unparse(node.value).partition("[")[2].rpartition("]")[0])
            )
    raise KeyError(path)


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(module).body if isinstance(node, ast.ClassDef)}


def _tree(module: str) -> ast.Module:
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations, package
    path = Path(spec.submodule_search_locations[0], *rest.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _fields(classes: dict[str, ast.ClassDef], name: str) -> dict[str, str]:
    cls = classes[name]
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            every = [*node.args.args[1:], *node.args.kwonlyargs]
            return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in every}
    inherited = [base.id for base in cls.bases if isinstance(base, ast.Name) and base.id in classes]
    own = {
        node.target.id: ast.unparse(node.annotation)
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {f: kind for base in inherited for f, kind in _fields(classes, base).items()} | own
