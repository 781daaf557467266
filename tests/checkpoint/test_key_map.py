"""The key table covers every published tensor, exactly, in both directions."""

import json

import numpy as np
import pytest

from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.key_map import NAMINGS, RULES, ignored, match_name, match_path
from florence_jax.config import PRESETS
from florence_jax.model import abstract_params
from tests.shared_data import needs_shared, shared_path

SIZES = ("base", "large", "large_4k")
FILE = {"original": "original", "native": "native_hf"}
WITHOUT_A_LEAF = {"encoder/embed_tokens", "decoder/embed_tokens", "lm_head/embedding"}


def published(naming, size):
    path = shared_path("checkpoint_keys", f"{FILE[naming]}_{size}.json")
    return {name: tuple(shape) for name, shape in json.loads(path.read_text())["tensors"].items()}


@needs_shared
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_published_tensor_has_exactly_one_parameter_of_the_right_shape(naming, size):
    config = PRESETS[size.replace("_", "-")]()
    expected = {path: leaf.shape for path, leaf in flatten(abstract_params(config))}
    filled = set()
    for name, shape in published(naming, size).items():
        match = match_name(name, naming)
        assert match is not None, name
        assert match.name(naming) == name
        assert match_path(match.path) == match
        assert match.path not in filled, name
        filled.add(match.path)
        transform = match.rule.transform(naming)
        ours = transform.shape_to_ours(shape)
        assert transform.shape_to_torch(ours) == shape
        if match.path in expected and match.path != "shared/embedding":
            assert ours == expected[match.path], name
    surplus = WITHOUT_A_LEAF | ({"final_logits_bias"} if naming == "original" else set())
    assert filled - set(expected) == surplus
    assert set(expected) <= filled


@needs_shared
@pytest.mark.parametrize("size", ["base", "large"])
def test_the_table_pairs_the_two_namings_as_the_published_map_does(size):
    path = shared_path("checkpoint_keys", f"map_original_to_native_{size}.json")
    for original, native in json.loads(path.read_text()).items():
        match = match_name(original, "original")
        assert match is not None
        assert match.name("native") == native
        if native is not None:
            assert match_name(native, "native") == match


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.ours)
def test_transforms_are_views_with_an_exact_inverse(rule):
    for naming in NAMINGS:
        transform = rule.transform(naming)
        shape = (1,) * transform.leading_one + tuple(range(2, 2 + len(transform.axes)))
        torch_array = np.arange(np.prod(shape)).reshape(shape)
        ours = transform.to_ours(torch_array)
        assert np.shares_memory(ours, torch_array)
        assert ours.shape == transform.shape_to_ours(shape)
        np.testing.assert_array_equal(transform.to_torch(ours), torch_array)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.encoder.layers.00.fc1.weight",  # would alias layer 0
        "language_model.model.encoder.layers.{}.fc1.weight",  # the placeholder itself
        "language_model.model.encoder.layers.0.fc1.weight.0",
        "language_model.model.encoder.layers.-1.fc1.weight",
        "model.language_model.encoder.layers.0.fc1.weight",  # the other naming
        "",
    ],
)
def test_a_name_matches_exactly_or_not_at_all(name):
    assert match_name(name, "original") is None


def test_the_classifier_head_is_ignored_with_a_reason():
    found = ignored("vision_tower.head.weight", "original")
    assert found is not None
    assert "never read" in found.reason
    assert match_name("vision_tower.head.weight", "original") is None
