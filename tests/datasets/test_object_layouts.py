"""Boxes of every layout, against the supervision library where it reads it, else by hand."""

import json
import math
import warnings

import numpy as np
import pytest

from florence_jax.datasets.cvat import read_cvat
from florence_jax.datasets.label_studio import read_label_studio
from florence_jax.datasets.labelme import read_labelme
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.datasets.voc import read_voc
from florence_jax.datasets.yolo import read_yolo
from tests.datasets.layouts import (
    SIZE,
    cvat,
    label_studio,
    labelme,
    picture,
    rectangle,
    shape,
    voc,
    voc_xml,
    yolo,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about OpenCV, which it does without
    import supervision as sv


def boxes(found):
    """{file name: [(label, corners)]}."""
    read = found.read()
    result = {image.file_name: [] for image in read.images}
    for one in read.objects:
        result[read.images[one.image].file_name].append((one.label, one.box))
    return result


def of_supervision(dataset):
    result = {}
    for path, _, found in dataset:
        names = [dataset.classes[number] for number in found.class_id]
        result[path.rpartition("/")[2]] = list(zip(names, found.xyxy.tolist(), strict=True))
    return result


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, found in actual.items():
        assert [label for label, _ in found] == [label for label, _ in expected[name]]
        for (_, one), (_, other) in zip(found, expected[name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)  # supervision's are float32


def test_voc_is_read_as_supervision_does(tmp_path):
    root = voc(tmp_path / "VOC2012")
    images, annotations = root / "JPEGImages", root / "Annotations"
    dataset = sv.DetectionDataset.from_pascal_voc(str(images), str(annotations))
    same(boxes(read_voc(root, "", None)), of_supervision(dataset))


def test_voc_splits_are_lists_of_names(tmp_path):
    root = voc(tmp_path)
    assert list(boxes(read_voc(root, "train", None))) == ["0.jpg", "1.jpg"]
    assert list(boxes(read_voc(root, "val", None))) == ["2.jpg", "3.jpg"]
    with pytest.raises(DatasetError, match=r"no list ImageSets/Main/test.txt of the split 'test'"):
        read_voc(root, "test", None)


def test_voc_beside_its_images_and_counted_from_0(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    picture(tmp_path / "alone.png")
    (tmp_path / "a.xml").write_text(voc_xml("a.jpg", [("cat", (0, 3, 20.5, 18))]))
    (tmp_path / "b.xml").write_text(voc_xml("b.png", [("dog", (30, 35, 5, 4))], (0, 0)))
    found = read_voc(tmp_path, "", None)
    assert boxes(found) == {
        # Its own name is not there, and that of the .xml is.
        "a.png": [("cat", (0, 3, 20.5, 18))],
        "b.png": [("dog", (5, 4, 30, 35))],
    }
    assert any("count from 0 and not from 1" in note for note in found.notes)
    assert any("1 images have no .xml" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "0.xml is not XML"),
        ("", "0.xml is not XML"),
        (
            '<!DOCTYPE a [<!ENTITY b "b"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
            "declares the XML entity 'b', which no annotation needs",
        ),
        ("<annotation><object><name>cat</name></object></annotation>", "has no <bndbox>"),
        (voc_xml("0.jpg", [("cat", ("x", 1, 2, 3))]), "xmin of 0.xml, object 1 is 'x'"),
        (voc_xml("0.jpg", [("", (1, 1, 2, 3))]), "object 1 has no <name>"),
    ],
)
def test_a_voc_file_that_cannot_be_read_is_kept_as_a_broken_row(tmp_path, text, message):
    root = voc(tmp_path)
    (root / "Annotations" / "0.xml").write_text(text)
    found = read_voc(root, "train", None)
    (broken,) = found.broken
    assert message in broken
    assert list(boxes(found)) == ["1.jpg"]


def test_yolo_is_read_as_supervision_does(tmp_path):
    root = yolo(tmp_path)
    for split, key in (("train", "train"), ("valid", "val")):
        images, labels = (root / split / part for part in ("images", "labels"))
        dataset = sv.DetectionDataset.from_yolo(str(images), str(labels), str(root / "data.yaml"))
        found = read_yolo(root / "data.yaml", key, None)
        same(boxes(found), of_supervision(dataset))
        assert "1 images have no file of labels" in found.notes[0]


def test_yolo_polygons_are_outlines(tmp_path):
    read = read_yolo(yolo(tmp_path) / "data.yaml", "train", None).read(outlines=True)
    (bird,) = (one for one in read.objects if one.label == "bird")
    np.testing.assert_allclose(bird.outline.polygons[0], [8, 4, 40, 4, 40, 24, 16, 28])
    np.testing.assert_allclose(bird.box, [8, 4, 40, 28])


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nnames: {0: cat, 1: dog, 2: bird}\n",
        "path: sets\ntrain: [images/train]\nnames: [cat, dog, bird]\n",
        "path: ../elsewhere\ntrain: sets/images/train\nnames: [cat, dog, bird]\n",
        "train: list.txt\nnames: [cat, dog, bird]\n",
    ],
)
def test_yolo_places_of_images(tmp_path, yaml):
    sets = tmp_path / ("sets" if "sets" in yaml else ".")
    picture(sets / "images" / "train" / "a.jpg")
    (sets / "labels" / "train").mkdir(parents=True)
    (sets / "labels" / "train" / "a.txt").write_text("2 0.5 0.5 1 1")
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml)
    found = read_yolo(tmp_path / "data.yaml", "train", None)
    assert boxes(found) == {"a.jpg": [("bird", (0, 0, *SIZE))]}


def test_yolo_key_points_are_left_out(tmp_path):
    line = "0 0.5 0.5 0.5 0.5 0.4 0.4 2 0.6 0.6 1\n"
    root = yolo(tmp_path, {"0": line}, "kpt_shape: [2, 3]\n")
    found = read_yolo(root / "data.yaml", "train", None)
    assert boxes(found) == {"0.jpg": [("cat", (20, 10, 60, 30))]}
    assert "key points are left out" in found.notes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.5 0.5 1 1", "line 2 has the class 7, and `names` has 3 classes"),
        ("x 0.5 0.5 1 1", "expected numbers"),
        ("0 0.5 0.5 1", "has 3 numbers behind the class"),
        ("0 40 20 10 10", "expected shares of the image's sides"),
        ("0 nan 0.5 1 1", "expected shares of the image's sides"),
    ],
)
def test_a_yolo_line_that_cannot_be_read_is_kept_as_a_broken_row(tmp_path, line, message):
    root = yolo(tmp_path, {"0": f"0 0.5 0.5 1 1\n{line}\n", "1": "1 0.5 0.5 1 1"})
    found = read_yolo(root / "data.yaml", "train", None)
    (broken,) = found.broken
    assert message in broken
    assert broken.startswith(str(root / "train" / "labels" / "0.txt"))
    assert list(boxes(found)) == ["1.jpg"]


def test_a_yolo_image_without_sides_is_kept_as_a_broken_row(tmp_path):
    root = yolo(tmp_path)
    (root / "train" / "images" / "0.jpg").write_bytes(b"no image")
    (broken,) = read_yolo(root / "data.yaml", "train", None).broken
    assert "2 labels are shares of the sides of an image that cannot be read" in broken


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat\n", "is not YAML"),
        ("train: a\n", "has no `names`"),
        ("names: cat\ntrain: a\n", "`names` is 'cat'"),
        ("names: [cat]\nnc: 2\ntrain: a\n", "`nc` is 2 and `names` has 1"),
        ("names: [cat]\nval: a\n", "no images of the split 'train', it has val"),
        ("names: [cat]\ntrain: absent\n", "names the images 'absent', and there is no"),
        ("names: [cat]\ntrain: empty\n", "holds no image"),
        ("names: [cat]\ntrain: alone\n", "none of the 1 images of train has a file of labels"),
    ],
)
def test_a_yolo_set_that_is_none_is_named(tmp_path, yaml, message):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "alone" / "a.jpg")
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(DatasetError, match=message):
        read_yolo(tmp_path / "data.yaml", "train", None)


def test_labelme_is_read_as_supervision_does(tmp_path):
    labelme(
        tmp_path,
        [
            shape("cat", "rectangle", [[20, 30], [5, 4]]),
            shape("dog", "polygon", [[1, 2], [30, 2], [30, 20.5], [4, 22]]),
        ],
    )
    labelme(tmp_path, [shape("dog", "rectangle", [[0, 0], [80, 40]])], "b")
    dataset = sv.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path))
    expected = of_supervision(dataset)
    found = boxes(read_labelme(tmp_path, "", None))
    # Supervision lists rectangles and polygons in the file's order; here polygons come last.
    same(found, expected)


def test_labelme_shapes(tmp_path):
    path = labelme(
        tmp_path / "labels",
        [
            shape("ball", "circle", [[30, 20], [33, 24]]),
            shape("part", "polygon", [[1, 1], [5, 1], [5, 5]], group_id=3),
            shape("part", "polygon", [[20, 1], [25, 1], [25, 9]], group_id=3),
            shape("mask", "mask", [[2, 3], [10, 12]], mask="..."),
            shape("spot", "point", [[1, 1]]),
            shape("flat", "polygon", [[1, 1], [2, 2]]),
        ],
        imagePath="..\\pictures\\a.jpg",
    )
    picture(tmp_path / "pictures" / "a.jpg")
    (tmp_path / "labels" / "a.jpg").unlink()
    (tmp_path / "labels" / "other.json").write_text("{}")
    found = read_labelme(path.parent, "", None)
    assert found.image_root == tmp_path / "pictures"
    assert boxes(found) == {
        "a.jpg": [("ball", (25, 15, 35, 25)), ("mask", (2, 3, 11, 13)), ("part", (1, 1, 25, 9))]
    }
    assert "1 shapes of the type point are left out, such as a.json, shape 5" in found.notes[0]
    (fault,) = found.faults
    assert (fault.kind, "'flat' has 2 points" in fault.text) == ("shape", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": [{"points": []}]}, "shape 1 has the label None"),
        ({"shapes": [{"label": "a", "points": [[1, "2"]]}]}, "has the points"),
    ],
)
def test_a_labelme_file_that_cannot_be_read_is_kept_as_a_broken_row(tmp_path, change, message):
    labelme(tmp_path, [shape("cat", "rectangle", [[1, 1], [9, 9]])])
    labelme(tmp_path, [], "b", **change)
    found = read_labelme(tmp_path, "", None)
    (broken,) = found.broken
    assert message in broken
    assert list(boxes(found)) == ["a.jpg"]


def test_label_studio_shapes(tmp_path):
    polygon = {"points": [[10, 10], [50, 10], [50, 60]], "polygonlabels": ["dog"]}
    ellipse = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 25, "ellipselabels": ["ball"]}
    results = [
        rectangle("cat", 10, 20, 25, 50),
        rectangle("turned", 50, 50, 10, 20, rotation=90),
        ("polygonlabels", polygon),
        ("ellipselabels", ellipse),
        ("choices", {"choices": ["day"]}),
    ]
    task = label_studio(tmp_path, results)
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]))
    found = read_label_studio(path, "", None)
    # In percent: 80 pixels wide and 40 high. A turn by 90 degrees is about the upper left corner.
    expected = [
        ("cat", (8, 8, 28, 28)),
        ("turned", (40 - 8, 20, 40, 20 + 8)),
        ("dog", (8, 4, 40, 24)),
        ("ball", (32, 10, 48, 30)),
    ]
    same(boxes(found), {"a.jpg": expected})
    assert "1 results of the type choices are left out" in found.notes[0]


def test_label_studio_json_min_is_its_json(tmp_path):
    task = label_studio(tmp_path, [rectangle("cat", 10, 20, 25, 50)])
    (tmp_path / "full.json").write_text(json.dumps([task]))
    labels = [rectangle("cat", 10, 20, 25, 50)[1]]
    labels = [one | {"original_width": SIZE[0], "original_height": SIZE[1]} for one in labels]
    short = {"image": task["data"]["image"], "id": 7, "label": labels, "annotation_id": 1}
    (tmp_path / "min.json").write_text(json.dumps([short]))
    full, minimal = (read_label_studio(tmp_path / f"{n}.json", "", None) for n in ("full", "min"))
    assert boxes(full) == boxes(minimal) == {"a.jpg": [("cat", (8, 8, 28, 28))]}


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/3/0a1b2c3d-a.jpg",
        "/data/local-files/?d=pictures/a.jpg",
        "s3://bucket/pictures/a.jpg",
        "https://example.org/x/a.jpg?token=1",
        "a.jpg",
    ],
)
def test_label_studio_names_of_images(tmp_path, image):
    task = label_studio(tmp_path, [rectangle("cat", 0, 0, 50, 50)], image=image)
    (tmp_path / "export.json").write_text(json.dumps([task]))
    assert list(boxes(read_label_studio(tmp_path / "export.json", "", None))) == ["a.jpg"]


def test_label_studio_annotations_that_count(tmp_path):
    task = label_studio(tmp_path, [rectangle("skipped", 0, 0, 50, 50)])
    others = [
        label_studio(tmp_path, [rectangle(name, 0, 0, 50, 50)])["annotations"][0]
        for name in ("first", "truth")
    ]
    task["annotations"][0]["was_cancelled"] = True
    task["annotations"] += [others[0], others[1] | {"ground_truth": True}]
    waiting = label_studio(tmp_path, [], name="b.jpg", image="b.jpg", annotations=[])
    (tmp_path / "export.json").write_text(json.dumps([task, waiting]))
    found = read_label_studio(tmp_path / "export.json", "", None)
    assert boxes(found) == {"a.jpg": [("truth", (0, 0, 40, 20))]}
    assert "1 further annotations of the same task are left out" in found.notes[0]
    assert "1 tasks without an annotation are left out, such as task 1 (id 7)" in found.notes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"text": "a"}}, "task 0 (id 7) names no image: text"),
        ({"annotations": [{"result": 3}]}, "has the result 3, expected a list"),
    ],
)
def test_a_label_studio_task_that_cannot_be_read_is_a_broken_row(tmp_path, change, message):
    tasks = [label_studio(tmp_path, []) | change, label_studio(tmp_path, [])]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = read_label_studio(tmp_path / "export.json", "", None)
    (broken,) = found.broken
    assert message in broken
    assert list(boxes(found)) == ["a.jpg"]


def test_cvat_shapes(tmp_path):
    path = cvat(
        tmp_path,
        '<box label="cat" xtl="5.5" ytl="4" xbr="20" ybr="18" occluded="0" z_order="0"></box>'
        '<box label="dog" xtl="30" ytl="10" xbr="50" ybr="20" rotation="90.0"></box>'
        '<polygon label="cat" points="1,2;30,2;30,20.5;4,22"></polygon>'
        '<ellipse label="dog" cx="40" cy="20" rx="8" ry="4" rotation="0"></ellipse>'
        '<mask label="cat" left="3" top="5" width="4" height="2" rle="0, 8"></mask>'
        '<points label="dog" points="1,2;3,4"></points><tag label="dog"></tag>',
    )
    found = read_cvat(path, "", None)
    expected = [
        ("cat", (5.5, 4, 20, 18)),
        ("dog", (35, 5, 45, 25)),  # about its centre
        ("cat", (1, 2, 30, 22)),
        ("dog", (32, 16, 48, 24)),
        ("cat", (3, 5, 7, 7)),
    ]
    same(boxes(found), {"a.jpg": expected})
    assert [note.partition(": ")[2] for note in found.notes] == [
        "1 shapes of the type points are left out, such as image 0, points 6",
        "1 shapes of the type tag are left out, such as image 0, tag 7",
    ]


def test_a_turned_cvat_ellipse_has_the_box_of_its_points(tmp_path):
    path = cvat(tmp_path, '<ellipse label="cat" cx="40" cy="20" rx="10" ry="4" rotation="30"/>')
    angles = np.linspace(0, 2 * math.pi, 100_001)
    turn = math.radians(30)
    x = 10 * np.cos(angles) * math.cos(turn) - 4 * np.sin(angles) * math.sin(turn)
    y = 10 * np.cos(angles) * math.sin(turn) + 4 * np.sin(angles) * math.cos(turn)
    expected = (40 + x.min(), 20 + y.min(), 40 + x.max(), 20 + y.max())
    same(boxes(read_cvat(path, "", None)), {"a.jpg": [("cat", expected)]})


def test_cvat_subsets(tmp_path):
    path = cvat(tmp_path, '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/>', "train/a.jpg")
    content = path.read_text().replace('name="train/a.jpg"', 'name="a.jpg" subset="train"')
    path.write_text(content)
    assert list(boxes(read_cvat(path, "train", None))) == ["train/a.jpg"]
    with pytest.raises(DatasetError, match="no image of the subset 'val'"):
        read_cvat(path, "val", None)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ('<box label="cat" xtl="a" ytl="1" xbr="9" ybr="9"/>', "xtl of image 0, box 1 is 'a'"),
        ('<box xtl="1" ytl="1" xbr="9" ybr="9"/>', "box 1 has no label"),
        ('<polygon label="cat" points="1,2;3,4"/>', "has the points '1,2;3,4'"),
        (
            '<mask label="cat" left="0" top="0" width="4" height="2" rle="1, 2"/>',
            "an rle that does not fill 4 x 2",
        ),
        ('<star label="cat"/>', "star 1 is a shape that is not known"),
    ],
)
def test_a_cvat_image_that_cannot_be_read_is_a_broken_row(tmp_path, shapes, message):
    (broken,) = read_cvat(cvat(tmp_path, shapes), "", None).broken
    assert message in broken


def test_cvat_videos_are_refused(tmp_path):
    path = tmp_path / "annotations.xml"
    path.write_text('<annotations><track id="0" label="cat"></track></annotations>')
    with pytest.raises(DatasetError, match="holds tracks of a video: export the task as"):
        read_cvat(path, "", None)
