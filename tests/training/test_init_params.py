import dataclasses
import re

import jax
import numpy as np

from florence_jax.checkpoint.param_tree import flatten
from florence_jax.model import Model
from florence_jax.training.pretrained import scratch_parameters
from tests.training.small import CONFIG


def test_neighbouring_places_start_alike_and_everything_else_as_it_was():
    config = dataclasses.replace(
        CONFIG,
        text=dataclasses.replace(
            CONFIG.text, vocab_size=1100, d_model=192, max_position_embeddings=64
        ),
    )
    random = dict(flatten(Model(config=config).init(jax.random.key(0))))
    ids = list(range(50, 1050))
    ordered = scratch_parameters(random, ids, (4, 12), jax.random.key(1))
    changed = {path for path in random if not np.array_equal(random[path], ordered[path])}
    depthwise = {path for path in random if re.search(r"/conv[12]/kernel", path)}
    assert len(depthwise) == 4
    kernels = {path for path in random if path.endswith("/kernel")} - depthwise
    branches = {path for path in kernels if re.search(r"attn/proj|vision_tower/.*/fc2", path)}
    assert len(branches) == 4
    places = {
        *("shared/embedding", "encoder/positions"),
        *("projector/row_positions", "projector/column_positions"),
    }
    assert changed == kernels | places
    for path in kernels:
        scale = float(np.std(ordered[path])) * np.prod(ordered[path].shape[:-1]) ** 0.5
        if path in branches:
            scale *= len(branches) ** 0.5
        # Of 72 numbers at least, so three standard deviations of their own.
        assert abs(scale - 1) < 3 / (2 * ordered[path].size) ** 0.5, (path, scale)
    table, before = np.asarray(ordered["shared/embedding"]), np.asarray(random["shared/embedding"])
    others = [*range(50), *range(1050, 1100)]
    np.testing.assert_array_equal(table[others], before[others])

    rows = rows_of_locations = table[ids]
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(before[ids], axis=1).mean(), rtol=0.05)
    alike = (rows / lengths[:, None]) @ (rows / lengths[:, None]).T
    for apart, least, most in ((1, 0.8, 1.0), (10, 0.4, 0.8), (300, -0.5, 0.5)):
        near = np.diagonal(alike, apart)
        assert least < near.min(), (apart, near.min())
        assert near.max() < most, (apart, near.max())
    # Each place is most like itself: no two are one.
    assert (alike.argmax(1) == np.arange(1000)).all()

    # A row and a column at the same share of their sides are one place: (0 + 0.5) / 4 and
    # (1 + 0.5) / 12.
    rows, columns = (
        np.asarray(ordered[f"projector/{axis}_positions"]) for axis in ("row", "column")
    )
    np.testing.assert_array_equal(rows[0], columns[1])
    assert not np.allclose(rows[1], columns[1], atol=0.1)

    # Keys are queries, and values are drawn by themselves.
    for part in ("encoder/layers/0/self_attn", "decoder/layers/0/cross_attn"):
        query, key, value = (ordered[f"{part}/{name}_proj/kernel"] for name in "qkv")
        np.testing.assert_array_equal(key, query)
        assert not np.allclose(value, query, atol=0.01)
    # The cell at row 2 of 4 and column 5 of 12 is most like the locations of both, of all
    # locations: (2 + 0.5) / 4 and (5 + 0.5) / 12 of 1,000.
    cell = np.asarray(ordered["encoder/positions"])[3 + 2 * 12 + 5]
    likeness = rows_of_locations @ cell
    peaks = {458, 625}
    for peak in peaks:
        assert likeness[peak - 1 : peak + 2].max() > 0.6 * likeness.max()
    apart = [place for place in range(1000) if min(abs(place - peak) for peak in peaks) > 100]
    assert likeness[apart].max() < 0.6 * likeness.max()
