"""A picture of conflicts is dark where adapters disagree."""

import numpy as np
from PIL import Image

from vlmpeft.merging.conflict_plot import draw_conflicts
from vlmpeft.merging.conflicts import Conflict


def test_a_picture_is_darker_where_adapters_disagree(tmp_path):
    means = []
    for share in (0.0, 0.5, 1.0):
        found = [Conflict("language", layer, 1 - 2 * share, share, (1.0, 1.0)) for layer in (0, 1)]
        draw_conflicts([*found, Conflict("projector", None, 0.0, 0.5, (1.0,))], tmp_path / "c.png")
        means.append(np.asarray(Image.open(tmp_path / "c.png").convert("L"), float).mean())
    assert means == sorted(means, reverse=True)
    assert means[0] > means[2] + 10
