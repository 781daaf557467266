"""One COCO file in the many ways that people write it: all of them mean the same."""

import copy
import itertools
import json
from urllib.parse import quote

import florence_jax

SCENES = florence_jax.__path__[0] + "/assets/shapes/scenes/test"
SIDE = 192
# What the shipped model answers to <OD> on its scenes, in bins: the truth of a right evaluation.
ANSWERS = {
    "000200.png": [
        ("word", (463, 13, 835, 135)),
        ("heart", (674, 229, 906, 427)),
        ("cross", (744, 356, 888, 515)),
        ("cross", (296, 760, 458, 919)),
    ],
    "000201.png": [
        ("triangle", (263, 57, 588, 390)),
        ("word", (679, 70, 901, 182)),
        ("circle", (322, 440, 677, 799)),
        ("circle", (713, 580, 885, 736)),
        ("triangle", (382, 546, 528, 690)),
    ],
    "000202.png": [
        ("star", (132, 49, 414, 312)),
        ("word", (411, 278, 638, 393)),
        ("square", (768, 507, 908, 656)),
        ("moon", (187, 492, 390, 731)),
        ("square", (497, 755, 656, 919)),
    ],
}


def pixels(bins):
    return [(bin + 0.5) * SIDE / 1000 for bin in bins]


def base():
    """The file as COCO has it."""
    names = sorted({label for found in ANSWERS.values() for label, _ in found})
    numbers = {name: number for number, name in enumerate(names, start=1)}
    images, annotations = [], []
    for number, (file, found) in enumerate(ANSWERS.items(), start=1):
        images.append({"id": number, "file_name": file, "width": SIDE, "height": SIDE})
        for label, bins in found:
            x0, y0, x1, y1 = pixels(bins)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def each(change):
    """A habit that changes every annotation."""

    def habit(content):
        for index, annotation in enumerate(content["annotations"]):
            change(annotation, index)

    return habit


def per_picture(content):
    for _, found in itertools.groupby(content["annotations"], key=lambda a: a["image_id"]):
        for number, annotation in enumerate(found, start=1):
            annotation["id"] = number


def shares(annotation, _):
    annotation["bbox"] = [number / SIDE for number in annotation["bbox"]]


def two_categories_of_one_name(content):
    """As Roboflow's export has, with the name of the project as a category of its own."""
    content["categories"].append({"id": 99, "name": "word", "supercategory": "word"})
    for annotation in content["annotations"][::2]:
        if annotation["category_id"] == 8:
            annotation["category_id"] = 99


def ids_as_text(content):
    for image in content["images"]:
        image["id"] = str(image["id"])
    for category in content["categories"]:
        category["id"] = str(category["id"])


def image_ids_of_letters(content):
    for entry, key in [(image, "id") for image in content["images"]] + [
        (annotation, "image_id") for annotation in content["annotations"]
    ]:
        entry[key] = f"picture {entry[key]}"


def without_sizes(content):
    for image in content["images"]:
        del image["width"], image["height"]


def shares_without_sizes(content):
    each(shares)(content)
    without_sizes(content)


def twice_the_size(content):
    """Annotated on larger pictures than those that are asked."""
    for image in content["images"]:
        image["width"], image["height"] = 2 * SIDE, 2 * SIDE
    for annotation in content["annotations"]:
        annotation["bbox"] = [2 * number for number in annotation["bbox"]]
        annotation["area"] *= 4


def rectangle(annotation):
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def polygons_alone(annotation, _):
    annotation["segmentation"] = [rectangle(annotation)]
    del annotation["bbox"]


def flat_polygon(annotation, _):
    annotation |= {"segmentation": rectangle(annotation), "bbox": []}


def file_names(form):
    def habit(content):
        for image in content["images"]:
            image["file_name"] = form(image["file_name"])

    return habit


def orphan(content):
    content["annotations"].append({**content["annotations"][0], "id": 9999, "image_id": 777})


def other_spellings(content):
    for category in content["categories"]:
        category["name"] = f" {category['name'].upper()} "


HABITS = {
    "as COCO has it": lambda content: None,
    "ids from 0": each(lambda annotation, index: annotation.update(id=index)),
    "all ids 0": each(lambda annotation, _: annotation.update(id=0)),
    "ids per picture": per_picture,
    "no ids": each(lambda annotation, _: annotation.pop("id")),
    "null ids": each(lambda annotation, _: annotation.update(id=None)),
    "ids as text": ids_as_text,
    "image ids of letters": image_ids_of_letters,
    "image ids as floats": each(lambda a, _: a.update(image_id=float(a["image_id"]))),
    "shares": each(shares),
    "shares without sizes": shares_without_sizes,
    "sizes missing": without_sizes,
    "larger pictures": twice_the_size,
    "no area": each(lambda annotation, _: annotation.pop("area")),
    "area 0": each(lambda annotation, _: annotation.update(area=0)),
    "no iscrowd": each(lambda annotation, _: annotation.pop("iscrowd")),
    "iscrowd as text": each(lambda annotation, _: annotation.update(iscrowd="0")),
    "iscrowd false": each(lambda annotation, _: annotation.update(iscrowd=False)),
    "no segmentation": each(lambda annotation, _: annotation.pop("segmentation")),
    "polygons alone": each(polygons_alone),
    "flat polygons alone": each(flat_polygon),
    "two categories of one name": two_categories_of_one_name,
    "other spellings": other_spellings,
    "folders in names": file_names(lambda name: f"images/val/{name}"),
    "a Windows path": file_names(lambda name: f"C:\\pictures\\{name}"),
    "percent-encoding": file_names(lambda name: quote(name).replace(".", "%2E")),
    "orphans": orphan,
}


def written(path, habit):
    """The file of a habit at `path`."""
    content = copy.deepcopy(base())
    HABITS[habit](content)
    path.write_text(json.dumps(content))
    return path
