"""`florence-jax data check` reads every layout as the trainer does."""

import io
import json
import tarfile

import pytest

from florence_jax.training.data.sources import open_data
from florence_jax.training.data_check.sources import open_splits
from tests.datasets.layouts import (
    cvat,
    label_studio,
    labelme,
    picture,
    rectangle,
    shape,
    voc,
    yolo,
)
from tests.training.data_check.test_check import check


def labelme_set(root):
    for number, split in enumerate(("train", "valid")):
        labelme(root / split, [shape("cat", "rectangle", [[8, 4], [24, 12]])])
        picture(root / split / "a.jpg", number)
    return root


def label_studio_set(root):
    for number, split in enumerate(("train", "valid")):
        task = label_studio(root / split, [rectangle("cat", 10, 10, 20, 20)])
        picture(root / split / "a.jpg", number)
        (root / split / "export.json").write_text(json.dumps([task]))
    return root


def cvat_set(root):
    for number, split in enumerate(("train", "valid")):
        cvat(root / split, '<box label="cat" xtl="8" ytl="4" xbr="24" ybr="12"/>')
        picture(root / split / "images" / "a.jpg", number)
    return root


def webdataset_set(root):
    line = {"prefix": "<OD>", "suffix": "cat<loc_1><loc_2><loc_30><loc_40>"}
    for number, split in enumerate(("train", "valid")):
        picture(root / split / "a.jpg", number)
        with tarfile.open(root / split / "a.tar", "w") as archive:
            archive.add(root / split / "a.jpg", "a.jpg")
            content = json.dumps(line).encode()
            info = tarfile.TarInfo("a.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        (root / split / "a.jpg").unlink()
    return root


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (voc, "voc"),
        (yolo, "yolo"),
        (labelme_set, "labelme"),
        (label_studio_set, "label_studio"),
        (cvat_set, "cvat"),
        (webdataset_set, "webdataset"),
    ],
)
def test_the_check_counts_what_the_trainer_opens(tmp_path, make, kind):
    root = make(tmp_path / "set")
    opened = open_data(directory=str(root))
    counts = [len(source) for _, source, _ in opened.train]
    counts += [len(source) for source in opened.valid.values()]
    assert [split.layout for split in open_splits(str(root))] == [kind, kind]
    _, report = check(tmp_path, root)
    assert [split["rows"] for split in report["splits"]] == counts
    assert all(split["objects"] for split in report["splits"])
    assert not [
        fault
        for split in report["splits"]
        for fault in split["faults"]
        if fault["kind"] not in ("class", "unlisted class", "leak")
    ]


def test_a_broken_file_of_a_layout_is_a_row_of_the_report(tmp_path):
    root = voc(tmp_path / "set")
    (root / "Annotations" / "1.xml").write_text("<annotation>")
    status, report = check(tmp_path, root)
    train = report["splits"][0]
    faults = [fault for fault in train["faults"] if fault["kind"] == "row"]
    assert (status, train["rows"], len(faults)) == (1, 2, 1)
    assert "1.xml is not XML" in faults[0]["text"]
