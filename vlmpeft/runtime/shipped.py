"""Files that come with the package: configs and chat templates."""

from __future__ import annotations

from pathlib import Path


def shipped_configs_dir() -> Path:
    """`configs/` of the installed package, or of the checkout it runs from."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_shipped(relative: str) -> Path | None:
    """The shipped file at `configs/<relative>`, or None."""
    path = shipped_configs_dir() / relative
    return path if path.is_file() else None


def cache_dir() -> Path:
    """Where things that can be computed again are kept: $VLMPEFT_CACHE, else the user's cache folder."""
    import os

    if own := os.environ.get("VLMPEFT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlmpeft"
