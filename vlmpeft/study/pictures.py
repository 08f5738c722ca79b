"""Pictures of scored items, found again in the data that a run's config names."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

from vlmpeft.data.conversation import Image
from vlmpeft.data.digests import Digests
from vlmpeft.data.formats.rows import Columns, Recipe
from vlmpeft.data.images import open_image
from vlmpeft.data.split_reader import SPLITS, SplitReader
from vlmpeft.runtime.errors import UserError
from vlmpeft.study.report.run import Run

SIDE = 160  # pixels of a thumbnail's longer side, about


class DataThumbnails:
    """Thumbnails out of the data sets of runs; each data set is read once.

    What a record names is read as data of a run is: bounded, and nothing in it is imported.
    """

    def __init__(self) -> None:
        self._found: dict[str, Mapping[str, Image] | UserError] = {}
        self._thumbnails: dict[tuple[str, str], str] = {}

    def __call__(self, run: Run, label: str) -> str:
        """The picture of that label as a data URI.

        Args:
            run: whose reported split has it.
            label: as the run's items call it.

        Raises:
            UserError: the data is not there any more, has no such picture, or the picture cannot be read.
        """
        source = _source(run)
        key = json.dumps(source, sort_keys=True, default=str)
        if key not in self._found:
            self._found[key] = _pictures(source)
        pictures = self._found[key]
        if isinstance(pictures, UserError):
            raise pictures
        if label not in pictures:
            raise UserError(f"image {label} is not in the data any more")
        if (key, label) not in self._thumbnails:
            self._thumbnails[key, label] = _thumbnail(pictures[label])
        return self._thumbnails[key, label]


def _source(run: Run) -> dict[str, Any]:
    """What the run's config says of the data that its reported split is from."""
    data = dict((run.record.get("config") or {}).get("data") or {})
    given = data.get(run.split)
    if given is None or isinstance(given, int | float):  # the workbench, or a share of train
        is_share = given is not None
        given, split = data.get("train"), "train" if is_share else run.split
    else:
        split = run.split
    keys = ("image_dir", "allow_outside", "columns", "prompt", "target")
    return {"given": given, "split": split} | {key: data[key] for key in keys if key in data}


def _pictures(source: Mapping[str, Any]) -> Mapping[str, Image] | UserError:
    """Label -> picture of every conversation of a split, or why there are none."""
    given: dict[str, Any] = {**dict.fromkeys(SPLITS), source["split"]: source["given"]}
    try:
        recipe = Recipe(
            Columns(**(source.get("columns") or {})), source.get("prompt"), source.get("target")
        )
        reader = SplitReader(
            given, source.get("image_dir"), recipe, "image", Digests(), lambda error: None,
            allow_outside=source.get("allow_outside", True),
        )  # fmt: skip
        conversations = reader.read(source["split"]).conversations
    except UserError as error:
        return error
    except (TypeError, ValueError, OSError) as error:
        return UserError(f"the data cannot be read: {error}")
    return {image.label: image for c in conversations for image in c.images}


def _thumbnail(image: Image) -> str:
    buffer = io.BytesIO()
    open_image(image, max_pixels=SIDE * SIDE).save(buffer, "JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
