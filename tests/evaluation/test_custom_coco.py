"""One's own COCO file: written as people write it, it is judged as COCO's own; or refused first."""

import json
import re

import pytest

from florence_jax.cli.main import main
from florence_jax.evaluation.datasets.dataset import LayoutError
from florence_jax.evaluation.run import plan_evaluation, score_rows
from tests.datasets.habits import ANSWERS, HABITS, SCENES, SIDE, base, pixels, written
from tests.shared_data import needs_shared, shared_path


def mean_precision(path, root=SCENES):
    """mAP of the shipped model's recorded answers."""
    planned = plan_evaluation("own", path, image_root=root)
    rows = []
    for item in planned.items:
        found = ANSWERS[item.image.name.rpartition("/")[2]]
        answer = {
            "bboxes": [pixels(bins) for _, bins in found],
            "labels": [label for label, _ in found],
        }
        row = {"id": item.id, **item.extra, "width": SIDE, "height": SIDE}
        rows.append(row | {"answers": [{"result": {"<OD>": answer}}]})
    (part,) = score_rows(planned, rows, model="m", settings={}).parts
    return part.outcome


@pytest.mark.parametrize("habit", HABITS)
def test_every_habit_is_judged_as_coco_has_it(tmp_path, habit):
    outcome = mean_precision(written(tmp_path / "own.json", habit))
    assert outcome.value == pytest.approx(100)
    assert outcome.each == [1.0] * 3


@needs_shared
@pytest.mark.parametrize(
    "name",
    ["base", "ids_all_0", "ids_from_0", "no_area", "orphan_annotation", "shares", "underscores"],
)
def test_files_from_the_field(name):
    path = shared_path("..", "field", "eval", f"{name}.json")
    assert mean_precision(path).value == pytest.approx(100)


@needs_shared
def test_a_category_that_is_not_listed_is_named():
    path = shared_path("..", "field", "eval", "category_missing.json")
    with pytest.raises(LayoutError, match=r"the category_id 1 of annotations\[6\] .* is not among"):
        plan_evaluation("own", path)


def test_labels_of_several_words_with_underscores(tmp_path):
    content = base()
    content["categories"][0]["name"] = "traffic_light"
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    circles = {
        name: [("Traffic Light" if label == "circle" else label, box) for label, box in found]
        for name, found in ANSWERS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ANSWERS, "000201.png", circles["000201.png"])
        assert mean_precision(path).value == pytest.approx(100)


@pytest.mark.parametrize(
    ("habit", "note"),
    [
        ("two categories of one name", "2 categories are called 'word' and count as one"),
        ("orphans", "1 annotations are of images that the file does not list .* image_id 777"),
    ],
)
def test_what_was_joined_or_left_out_is_said(tmp_path, capsys, habit, note):
    path = written(tmp_path / "own.json", habit)
    command = ["evaluate", "own", "--data", str(path), "--image-root", SCENES, "--dry-run"]
    assert main(command) == 0
    assert re.search(rf"^note: .*own.json: {note}", capsys.readouterr().err, re.MULTILINE)


def two_images_of_one_id(content):
    content["images"][1]["id"] = 1


def mixed_ids(content):
    content["images"][1]["id"] = "1"


def two_names_of_one_id(content):
    content["categories"].append({"id": 1, "name": "dog"})


def mixed_units(content):
    content["annotations"][3]["bbox"] = [0.1, 0.2, 0.3, 0.4]


def another_shape(content):
    content["images"][2] |= {"width": 100}


def change(key, value):
    def mutate(content):
        content["annotations"][2][key] = value

    return mutate


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (two_images_of_one_id, "two images have the id 1, '000200.png' and '000201.png'"),
        (mixed_ids, "two images have the id '1', '000200.png' and '000201.png'"),
        (two_names_of_one_id, "two categories have the id 1, 'circle' and 'dog'"),
        (mixed_units, r"annotations\[3\] .* shares of the image's sides, and .* are pixels"),
        (another_shape, "'000202.png' is 192 x 192 pixels as shown .* the file says 100 x 192"),
        (change("bbox", ["1", 2, 3, 4]), r"the bbox of annotations\[2\] \(id 3\) .* expected four"),
        (change("bbox", [1, 2, float("nan"), 4]), r"bbox of annotations\[2\] .* finite numbers"),
        (change("bbox", [1, 2, 10**400, 4]), r"bbox of annotations\[2\] .* finite numbers"),
        (change("bbox", None), "neither a `bbox` nor a `segmentation`"),
        (change("iscrowd", "yes"), "iscrowd of annotations.* 'yes', expected 0 or 1"),
        (change("category_id", None), "has no `category_id`, and objects need names"),
        (change("image_id", [1]), r"image_id of annotations\[2\] .* is \[1\], expected a number"),
        (lambda content: content.pop("categories"), "not among the categories .no categories"),
        (lambda content: content["annotations"].clear(), "holds no box of an image"),
        (lambda content: content.pop("images"), "there is no `images`, but annotations"),
    ],
)
def test_what_means_two_things_is_refused_before_a_model_is_loaded(tmp_path, mutate, message):
    content = base()
    mutate(content)
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LayoutError, match=message):
        plan_evaluation("own", path, image_root=SCENES)


def test_boxes_without_area_are_left_out_of_the_truth_and_counted(tmp_path):
    content = base()
    first = content["annotations"][0]
    for box in ([30, 30, -20, -20], [3, 3, 0, 5], [500, 500, 4, 4]):
        content["annotations"].append({**first, "id": 50, "bbox": box})
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    assert mean_precision(path).value == pytest.approx(100)
    notes = "\n".join(plan_evaluation("own", path, image_root=SCENES).dataset.notes)
    for reason in ("negative width or height", "width or height of 0", "outside of their images"):
        assert re.search(rf"1 of 17 annotations .*{reason} and are left out, such as", notes)


def test_the_command_itself(tmp_path, capsys):
    """The shipped model, asked about its own answers."""
    path = written(tmp_path / "own.json", "ids per picture")
    command = ["evaluate", "own", "--data", str(path), "--image-root", SCENES, "--quiet"]
    command += ["--output", str(tmp_path / "out"), "--model", "shapes", "--workers", "0"]
    assert main([*command, "--batch-size", "3"]) == 0
    assert re.search(r"mAP +100.00", capsys.readouterr().out)


def as_corners(box):
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (as_corners, "would fit as corners"),
        (lambda box: [edge / SIDE for edge in as_corners(box)], "would fit as corners"),
        (lambda box: [edge * 1000 / SIDE for edge in box], "lie outside of their images"),
    ],
)
def test_boxes_that_are_not_pixels_of_x_y_width_height_are_refused(tmp_path, change, said):
    content = base()
    for annotation in content["annotations"]:
        annotation["bbox"] = change(annotation["bbox"])
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LayoutError, match=said):
        plan_evaluation("own", path, image_root=SCENES)


def test_percent_and_repeats_are_said(tmp_path):
    content = base()
    for annotation in content["annotations"]:
        annotation["bbox"] = [edge * 100 / SIDE for edge in annotation["bbox"]]
    content["annotations"].append(content["annotations"][0])
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    notes = " ".join(plan_evaluation("own", path, image_root=SCENES).dataset.notes)
    assert "boxes in percent" in notes
    assert "1 of 15 annotations repeat" in notes


def test_names_that_are_addresses_are_found_by_their_ends(tmp_path):
    content = base()
    for image in content["images"]:
        image["file_name"] = f"https://host/a%20b/{image['file_name']}?alt=media"
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    assert mean_precision(path).value == pytest.approx(100)


def test_ids_of_no_image_are_named(tmp_path):
    content = base()
    for image in content["images"]:
        image["id"] = f"{image['id']:012d}"
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LayoutError, match=r"all 14 annotations .* such as '000000000001'"):
        plan_evaluation("own", path, image_root=SCENES)


def test_a_wrong_folder_of_pictures_is_said_before_the_model(tmp_path, capsys):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(base()))
    arguments = ["evaluate", "own", "--data", str(path), "--model", "no/model"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "none of the 3 images is there" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["just words", "", "car<loc_1><loc_2><loc_3>"])
def test_truths_without_a_place_are_no_figure_of_minus_100(tmp_path, suffix):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": "a.png", "prefix": "<OD>", "suffix": suffix}))
    with pytest.raises(LayoutError, match="no suffix of the 1 rows of <OD> holds a place"):
        plan_evaluation("own", path)


@pytest.mark.parametrize("location", ["<loc_1000>", "<loc_007>", "<loc_-1>", "<loc_1.5>"])
def test_locations_that_are_no_tokens_are_refused(tmp_path, location):
    path = tmp_path / "rows.jsonl"
    suffix = f"car{location}<loc_2><loc_300><loc_400>"
    path.write_text(json.dumps({"image": "a.png", "prefix": "<OD>", "suffix": suffix}))
    with pytest.raises(LayoutError, match=f"{location}, which is no token"):
        plan_evaluation("own", path)
