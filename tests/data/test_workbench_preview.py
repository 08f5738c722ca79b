import numpy as np
from PIL import Image

from vlmpeft.data.workbench.preview import COLUMNS, ROWS, draw_preview

from ..conftest import ROOT


def test_the_committed_picture_is_what_the_verb_draws():
    """Up to how a version of Pillow draws letters."""
    with Image.open(ROOT / "docs" / "workbench.png") as committed:
        shown, drawn = (np.asarray(p.convert("RGB"), float) for p in (committed, draw_preview()))
    assert shown.shape == drawn.shape
    assert np.abs(shown - drawn).mean() < 1
    assert (ROOT / "docs" / "workbench.png").stat().st_size < 300_000


def test_other_seeds_show_other_scenes():
    one, two = (np.asarray(draw_preview(seed), float) for seed in (0, 1))
    height = min(one.shape[0], two.shape[0])
    assert np.abs(one[:height] - two[:height]).mean() > 5
    assert len(ROWS) * COLUMNS == 35
