"""The loss that a segmentation run minimises, beside `Segmenter.loss`."""

import jax
import numpy as np

from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.segmentation.segmenter import pixel_loss
from florence_jax.training.images.objectives import normalised
from florence_jax.training.images.run import prepare_images
from tests.training.images.small import segment_config, write_masks


def test_the_objective_is_the_segmenter_s_loss(tmp_path):
    """With the running statistics that `Segmenter.loss` returns."""
    data = write_masks(tmp_path / "data", {"train": 4})
    config = segment_config(tmp_path / "run", data, accumulation=1, batch_size=4)
    prepared = prepare_images(config, tmp_path / "files")
    setup = prepared.setup
    params = prepared.first_parameters()
    batch = jax.tree.map(
        lambda leaf: leaf[0], prepared.batches().batch(0)._replace(ids=(), problems=())
    )
    key = jax.random.key(0)
    sums, statistics = jax.jit(setup.objective.and_statistics)(params, batch, key)
    labels = np.where(batch.labels == -100, 255, batch.labels).reshape(batch.images.shape[:3])
    images = normalised(batch.images, setup.objective.image)
    loss, after = jax.jit(setup.objective.model.loss)(unflatten(params), images, labels, key)
    np.testing.assert_allclose(sums.loss / sums.tokens, loss, rtol=1e-6)
    assert len(statistics) == 2 * 7  # two of each batch norm
    for path, leaf in flatten(after):
        if path in statistics:
            # Sums of float32 in two programs, of values of order one.
            np.testing.assert_allclose(statistics[path], leaf, rtol=0, atol=1e-6, err_msg=path)
    # In evaluation, the running statistics and one head.
    plain = jax.jit(lambda p, b: setup.objective(p, b, None))(params, batch)
    logits = setup.objective.model.logits(unflatten(params), images)
    np.testing.assert_allclose(plain.loss / plain.tokens, pixel_loss(logits, labels), rtol=1e-6)
