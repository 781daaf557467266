"""A segmentation network is written and read with its bits, and what does not fit is said."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import florence_jax as fj
from florence_jax.checkpoint.param_tree import flatten
from tests.training.images.small import TWO_STAGES

CONFIG = fj.SegmenterConfig(
    backbone=dataclasses.replace(TWO_STAGES, feature_norms=True),
    num_classes=3,
    hidden_dim=8,
    pool_sizes=(1, 2),
    auxiliary_dim=4,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    params = fj.Segmenter(config=CONFIG).init(jax.random.key(0))
    directory = tmp_path_factory.mktemp("segmenter") / "saved"
    fj.save_segmenter(directory, CONFIG, params, label_names=("a", "b", "c"))
    return directory, params


def changed(directory, to, change):
    """A copy of a directory with other tensors."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    to.mkdir()
    save_file(tensors, to / "model.safetensors")
    (to / "config.json").write_bytes((directory / "config.json").read_bytes())
    return to


def test_a_network_keeps_its_bits_and_sizes(saved):
    directory, params = saved
    segmenter, again = fj.load_segmenter(directory)
    assert segmenter == fj.Segmenter(config=CONFIG)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    settings = json.loads((directory / "config.json").read_text())
    assert settings["label_names"] == ["a", "b", "c"]
    assert settings["backbone"]["architecture"] == "davit_tiny"
    names = load_file(directory / "model.safetensors").keys()
    assert {
        "backbone.stem.conv.weight",
        "backbone.norms.0.weight",
        "decode_head.fpn_bottleneck.batch_norm.running_mean",
        "auxiliary_head.classifier.bias",
    } <= names
    with pytest.raises(fj.CheckpointError, match="overwrite"):
        fj.save_segmenter(directory, CONFIG, params)


def test_counts_of_torch_s_batch_norms_are_no_parameters(saved, tmp_path):
    name = "decode_head.fpn_bottleneck.batch_norm.num_batches_tracked"
    copy = changed(saved[0], tmp_path / "copy", lambda t: t.update({name: np.array(7)}))
    jax.tree.map(np.testing.assert_array_equal, fj.load_segmenter(copy)[1], saved[1])


def test_another_number_of_classes_leaves_out_the_last_layers(saved):
    with pytest.warns(UserWarning, match="has last layers of 3 classes: they are left out, and th"):
        segmenter, params = fj.load_segmenter(saved[0], num_classes=5)
    assert segmenter.config.num_classes == 5
    stored, found = dict(flatten(saved[1])), dict(flatten(params))
    fresh = {path for path in found if found[path].shape != stored[path].shape}
    assert {path.rpartition("/")[0] for path in fresh} == {
        "decode_head/classifier/conv",
        "auxiliary_head/classifier/conv",
    }
    for path in found.keys() - fresh:
        np.testing.assert_array_equal(found[path], stored[path])
    assert np.asarray(found["decode_head/classifier/conv/kernel"]).std() > 0


def test_what_is_missing_or_wrong_is_said(saved, tmp_path):
    directory = saved[0]

    def without_head(tensors):
        for name in [name for name in tensors if name.startswith("decode_head.")]:
            del tensors[name]

    with pytest.raises(fj.CheckpointError, match="has no tensors of a decode_head: it is a backb"):
        fj.load_segmenter(changed(directory, tmp_path / "headless", without_head))
    one = "decode_head.fpn_bottleneck.conv.weight"
    other = changed(directory, tmp_path / "renamed", lambda t: t.update({"fpn": t.pop(one)}))
    with pytest.raises(fj.CheckpointError) as caught:
        fj.load_segmenter(other)
    assert "missing tensors (1):\n    decode_head.fpn_bottleneck.conv.weight" in str(caught.value)
    assert "unexpected tensors (1):\n    fpn" in str(caught.value)
    small = changed(directory, tmp_path / "small", lambda t: t.update({one: t[one][:-1].copy()}))
    with pytest.raises(fj.CheckpointError, match=r"is \[7, 16, 3, 3\], expected \[8, 16, 3, 3\]"):
        fj.load_segmenter(small)
    backbone = dataclasses.replace(CONFIG.backbone, feature_norms=False)
    tower = fj.Backbone(config=backbone).init(jax.random.key(0))
    fj.save_backbone(tmp_path / "tower", backbone, tower)
    with pytest.raises(fj.CheckpointError, match="holds no segmentation network: expected a conf"):
        fj.load_segmenter(tmp_path / "tower")
    settings = json.loads((other / "config.json").read_text())
    del settings["pool_sizes"]
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(fj.CheckpointError, match=r"config\.json lacks pool_sizes"):
        fj.load_segmenter(other)
