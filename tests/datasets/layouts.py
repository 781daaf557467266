"""Data sets in every layout of images with objects, written as their own tools write them."""

import json

import numpy as np
from PIL import Image

SIZE = (80, 40)


def picture(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 255, (*SIZE[::-1], 3), np.uint8)).save(path)


def voc_xml(name, objects, size=SIZE):
    """objects: (label, (xmin, ymin, xmax, ymax))."""
    sides = "<size><width>{}</width><height>{}</height><depth>3</depth></size>".format(*size)
    texts = [
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for label, box in objects
    ]
    return f"<annotation><filename>{name}</filename>{sides}{''.join(texts)}</annotation>"


def voc(root, splits=("train", "val")):
    """VOCdevkit's folders, with two images for each split and one that no split lists."""
    objects = [
        [("cat", (5, 3, 20, 18)), ("dog", (1, 1, 80, 40))],
        [("cat", (10, 10, 12, 30))],
        [],
        [("bird", (30, 5, 60, 35))],
        [("dog", (2, 2, 4, 4))],
    ]
    (root / "Annotations").mkdir(parents=True)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for number, found in enumerate(objects):
        picture(root / "JPEGImages" / f"{number}.jpg", number)
        xml = voc_xml(f"{number}.jpg", found)
        (root / "Annotations" / f"{number}.xml").write_text(xml)
    for number, split in enumerate(splits):
        (lists / f"{split}.txt").write_text(f"{2 * number}\n{2 * number + 1}\n")
        (lists / f"cat_{split}.txt").write_text(f"{2 * number}  1\n{2 * number + 1} -1\n")
    (lists / "trainval.txt").write_text("0\n1\n2\n3\n")
    return root


LINES = {
    "0": "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.1 0.2\n",
    "1": "2 0.1 0.1 0.5 0.1 0.5 0.6 0.2 0.7\n",
    "2": None,
    "3": "",
}


def yolo(root, lines=LINES, settings=""):
    """data.yaml beside the folders of its splits, as Roboflow writes it."""
    for split in ("train", "valid"):
        for number, (name, text) in enumerate(lines.items()):
            picture(root / split / "images" / f"{name}.jpg", number + 10 * (split == "valid"))
            (root / split / "labels").mkdir(parents=True, exist_ok=True)
            if text is not None:
                (root / split / "labels" / f"{name}.txt").write_text(text)
    yaml = "train: ../train/images\nval: ../valid/images\n\nnc: 3\nnames: ['cat', 'dog', 'bird']\n"
    (root / "data.yaml").write_text(yaml + settings)
    return root


def labelme(folder, shapes, name="a", /, **more):
    """One image and its JSON."""
    picture(folder / f"{name}.jpg")
    content = {
        "version": "5.2.1",
        "flags": {},
        "shapes": [{"group_id": None, "flags": {}} | shape for shape in shapes],
        "imagePath": f"{name}.jpg",
        "imageData": None,
        "imageHeight": SIZE[1],
        "imageWidth": SIZE[0],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content | more))
    return path


def shape(label, kind, points, **more):
    return {"label": label, "shape_type": kind, "points": points} | more


def label_studio(folder, results, image="/data/upload/3/0a1b2c3d-a.jpg", name="a.jpg", **more):
    """A task of the export JSON; `results` are (type, value)."""
    picture(folder / name)
    result = [
        {
            "id": str(number),
            "type": kind,
            "value": value,
            "to_name": "image",
            "from_name": "label",
            "original_width": SIZE[0],
            "original_height": SIZE[1],
        }
        for number, (kind, value) in enumerate(results)
    ]
    return {
        "id": 7,
        "annotations": [{"id": 1, "was_cancelled": False, "result": result}],
        "data": {"image": image},
    } | more


def rectangle(label, x, y, width, height, rotation=0):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    return "rectanglelabels", value | {"rectanglelabels": [label]}


def cvat(folder, shapes, name="a.jpg", attributes=""):
    """annotations.xml with one image; `shapes` is XML."""
    picture(folder / "images" / name)
    path = folder / "annotations.xml"
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><job>'
        "<labels><label><name>cat</name></label><label><name>dog</name></label></labels></job>"
        f'</meta><image id="0" name="{name}" width="{SIZE[0]}" height="{SIZE[1]}" {attributes}>'
        f"{shapes}</image></annotations>"
    )
    return path
