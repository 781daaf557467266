"""Which of a call's values are of one request, and which are one for each."""

import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.inference.requests import broadcast_requests

BOX = (1.0, 2.0, 3.0, 4.0)
WRITTEN = "<loc_1><loc_2><loc_3><loc_4>"
GROUNDING, CLASSES = "<CAPTION_TO_PHRASE_GROUNDING>", "<OPEN_VOCABULARY_DETECTION>"


def asked(images, prompts, text=None, region=None):
    requests, several = broadcast_requests(images, prompts, text, region)
    return [request.text if region is None else request.region for request in requests], several


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("regions", [[WRITTEN], [None], [BOX], [WRITTEN, None, BOX]])
def test_as_many_regions_as_images_are_one_each(count, regions):
    images, regions = ["a.png"] * count, (regions * count)[:count]
    assert asked(images, "<REGION_TO_OCR>", region=regions) == (regions, True)


@pytest.mark.parametrize("kind", [tuple, list, np.array, jnp.array])
def test_four_numbers_are_one_region(kind):
    (region,), several = asked("a.png", "<REGION_TO_OCR>", region=kind(BOX))
    assert (tuple(region), several) == (BOX, False)
    regions, _ = asked(["a.png", "b.png"], "<REGION_TO_OCR>", region=kind(BOX))
    assert [tuple(region) for region in regions] == [BOX, BOX]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_texts_as_images_are_one_each(count):
    texts = [f"a cat {number}" for number in range(count)]
    assert asked(["a.png"] * count, GROUNDING, texts) == (texts, True)
    assert asked("a.png", [GROUNDING] * count, texts) == (texts, True)


@pytest.mark.parametrize("images", ["a.png", ["a.png"]])
def test_several_texts_about_one_image_are_the_classes_of_one_request(images):
    assert asked(images, CLASSES, ["cat", "dog"])[0] == [["cat", "dog"]]
    assert asked(images, CLASSES, [["cat"], ["dog"]])[0] == [["cat"], ["dog"]]
