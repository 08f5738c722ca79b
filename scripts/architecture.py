"""The generated blocks of docs/architecture.md: the rooms, their layers and their imports, from the package itself."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

from matrices import markdown

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vlmpeft"
Imports = dict[tuple[str, str], int]


def rooms() -> str:
    """Every folder of the package with what its docstring says: what it is, what goes in, what comes out."""
    header = ["folder", "what it is", "in", "out", "may import"]
    return markdown(header, [[_link(path), *_said(path)] for path in _ordered(_folders())])


def layers() -> str:
    """The contract of pyproject.toml, highest layer first."""
    lines = [f"{number}. `{line}`" for number, line in enumerate(_contract(), 1)]
    return "\n".join(lines)


def diagram() -> str:
    """Mermaid: folder -> folder, with the number of imports; arrows that a longer way implies are left out."""
    counts = imports()
    arrows = [
        f"  {_node(a)} -->|{n}| {b}"
        for (a, b), n in counts.items()
        if not _is_implied(a, b, counts)
    ]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def matrix() -> str:
    """How many imports each folder (row) has of each other (column)."""
    counts = imports()
    importers = [name for name in _names() if any(a == name for a, _ in counts)]
    imported = [name for name in _names() if any(b == name for _, b in counts)]
    rows = [[f"`{a}`", *(str(counts.get((a, b), "")) for b in imported)] for a in importers]
    return markdown(["imports of", *imported], rows)


def imports() -> Imports:
    """(importing folder, imported folder) -> how many pairs of their modules; also those inside functions."""
    names, pairs = _names(), defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in _imported(path):
            other = module.split(".")[1]
            if other != room and room in names and other in names:
                pairs[room, other].add((path, module))
    order = {name: place for place, name in enumerate(names)}
    counts = {pair: len(found) for pair, found in pairs.items()}
    return dict(sorted(counts.items(), key=lambda item: [order[name] for name in item[0]]))


def _imported(path: Path) -> list[str]:
    """Modules of the package that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    ]
    return [module for module in modules if module.startswith("vlmpeft.")]


def _is_implied(a: str, b: str, counts: Imports) -> bool:
    """Whether b is reached from a through another folder."""
    waiting = [second for first, second in counts if first == a and second != b]
    seen = set(waiting)
    while waiting:
        here = waiting.pop()
        if here == b:
            return True
        further = {second for first, second in counts if first == here} - seen
        seen |= further
        waiting += further
    return False


def _node(name: str) -> str:
    """A name as Mermaid takes it: two underscores are bold there."""
    return 'main["main"]' if name == "__main__" else name


def _contract() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["importlinter"]["contracts"][0]["layers"]


def _names() -> list[str]:
    """Folders and modules at the top of the package, highest layer first."""
    return [name.strip() for layer in _contract() for name in layer.split("|")]


def _folders() -> list[Path]:
    return [path.parent for path in PACKAGE.glob("*/**/__init__.py")]


def _ordered(folders: list[Path]) -> list[Path]:
    """By layer, each folder before those inside it."""
    names = _names()

    def key(folder: Path) -> tuple[int, str]:
        parts = folder.relative_to(PACKAGE).parts
        return names.index(parts[0]), "/".join(parts)

    return sorted(folders, key=key)


def _link(folder: Path) -> str:
    name = folder.relative_to(PACKAGE).as_posix()
    return f"[`{name}/`](../vlmpeft/{name})"


def _said(folder: Path) -> list[str]:
    """[what it is, in, out, may import] of a folder's docstring.

    Raises:
        ValueError: a docstring without those lines; the newcomer's map would have a hole.
    """
    path = folder / "__init__.py"
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    found = re.fullmatch(r"(.+?) In: (.+?) Out: (.+?) May import: (.+)", text)
    if not found:
        place = path.relative_to(ROOT)
        raise ValueError(f"{place}: its docstring has no `In: ... Out: ...` and `May import: ...`")
    return [part.rstrip(".").replace("|", r"\|") for part in found.groups()]


BLOCKS = {
    "rooms": rooms,
    "layers": layers,
    "imports": diagram,
    "import_counts": matrix,
}
