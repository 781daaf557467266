"""Every data set in its published layout, with a handful of pictures and all its oddities."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (64, 48)
# x, y, width, height of two objects.
CAR, DOG = [8, 8, 24, 16], [36, 20, 20, 24]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def coco_name(folder, number):
    return f"COCO_{folder}_{number:012d}.jpg"


def coco_captions(root):
    images = []
    for number, split in enumerate(("test", "test", "test", "val", "train", "restval"), start=1):
        name = coco_name("val2014", number)
        write_picture(root / "val2014" / name, number)
        sentences = [{"raw": f"A dog number {number}."}, {"raw": f"One {number} dog, sitting!"}]
        images.append(
            {
                "filepath": "val2014",
                "filename": name,
                "split": split,
                "cocoid": number,
                "sentences": sentences,
            }
        )
    write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def nocaps(root):
    images = [
        {"id": n, "file_name": f"{n:04x}.jpg", "domain": domain, "open_images_id": f"{n:04x}"}
        for n, domain in enumerate(("in-domain", "out-domain"))
    ]
    for image in images:
        write_picture(root / "images" / image["file_name"], image["id"])
    annotations = [
        {"id": 10 * n + k, "image_id": n, "caption": f"A zebra {n} of {k}."}
        for n in (0, 1)
        for k in range(10)
    ]
    write_json(
        root / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations}
    )


def textcaps(root):
    entries = []
    for name in ("00ab", "00cd"):
        write_picture(root / "train_images" / f"{name}.jpg", len(entries))
        texts = [f"A sign of {name} says {k}." for k in range(5)]
        entries += [
            {"image_id": name, "caption_str": text, "reference_strs": texts, "set_name": "val"}
            for text in texts
        ]
    write_json(root / "TextCaps_0.1_val.json", {"dataset_type": "val", "data": entries})


def coco_detection(root):
    images, annotations = [], []
    for number in (7, 9):
        name = f"{number:012d}.jpg"
        write_picture(root / "val2017" / name, number)
        images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for category, box in ((1, CAR), (18, DOG)):
            annotations.append(annotation(len(annotations) + 1, number, category, box))
    annotations.append(annotation(99, 7, 1, [0, 0, 64, 48], iscrowd=1))
    write_json(
        root / "annotations" / "instances_val2017.json",
        {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "car"}, {"id": 18, "name": "dog"}],
        },
    )


def annotation(number, image, category, box, iscrowd=0):
    x, y, w, h = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": w * h,
        "iscrowd": iscrowd,
        "segmentation": {"size": [SIZE[1], SIZE[0]], "counts": [0, SIZE[0] * SIZE[1]]}
        if iscrowd
        else [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }


def flickr30k(root):
    lines = [
        "[/EN#1/people Two men] with [/EN#2/bodyparts hair] in [/EN#9/scene yard] .",
        "[/EN#1/people/other Friends] stand around .",
        "Nothing is marked here .",
    ]
    for seed, name in enumerate(("1000092795", "10002456")):
        write_picture(root / "flickr30k-images" / f"{name}.jpg", seed)
        (root / "Sentences").mkdir(exist_ok=True)
        (root / "Sentences" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(
            "<annotation><filename>x.jpg</filename>"
            "<size><width>64</width><height>48</height><depth>3</depth></size>"
            + xml_object("1", (9, 9, 33, 25))
            + xml_object("1", (37, 21, 57, 45))
            + xml_object("2", (37, 21, 57, 45))
            + "<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object>"
            "</annotation>"
        )
    (root / "test.txt").write_text("1000092795\n10002456\n")


def xml_object(name, corners):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def refcoco(root, name="refcoco", split_by="unc", splits=("val", "testA", "testB")):
    images, annotations, refs = [], [], []
    for number, split in enumerate((*splits, splits[0], "train"), start=1):
        file = coco_name("train2014", number)
        write_picture(root / "train2014" / file, number)
        images.append({"id": number, "file_name": file, "width": SIZE[0], "height": SIZE[1]})
        box = CAR if number % 2 else DOG
        annotations.append(annotation(100 + number, number, 1, box))
        sentences = [
            {"sent_id": 10 * number + k, "sent": f"the thing {k}", "raw": f"The thing {k}!"}
            for k in range(2)
        ]
        refs.append(
            {
                "ref_id": number,
                "ann_id": 100 + number,
                "image_id": number,
                "split": split,
                "sentences": sentences,
                "sent_ids": [10 * number, 10 * number + 1],
                "file_name": f"{file[:-4]}_{number}.jpg",
                "category_id": 1,
            }
        )
    write_json(root / name / "instances.json", {"images": images, "annotations": annotations})
    (root / name / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=0))


def answers(*texts):
    return [{"answer": text, "answer_id": n} for n, text in enumerate(texts, start=1)]


TEN = ["red"] * 6 + ["dark red"] * 4


def vqav2(root):
    questions, annotations = [], []
    for number in (262148000, 262148001, 393225000):
        image = number // 1000
        write_picture(root / "val2014" / coco_name("val2014", image), image)
        questions.append({"question_id": number, "image_id": image, "question": " What colour? "})
        annotations.append({"question_id": number, "image_id": image, "answers": answers(*TEN)})
    write_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(root / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    test = [{"question_id": 1000, "image_id": 1, "question": "What colour?"}]
    write_picture(root / "test2015" / coco_name("test2015", 1), 1)
    write_json(root / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": test})


def textvqa(root):
    write_picture(root / "train_images" / "003a8ae2ef43b901.jpg")
    entry = {
        "question": "what does it say?",
        "image_id": "003a8ae2ef43b901",
        "question_id": 34602,
        "answers": TEN,
    }
    write_json(root / "TextVQA_0.5.1_val.json", {"data": [entry]})


def vizwiz(root):
    name = "VizWiz_val_00000000.jpg"
    write_picture(root / "val" / name)
    people = [{"answer": text, "answer_confidence": "yes"} for text in TEN]
    entry = {"image": name, "question": "What is it?", "answers": people, "answerable": 1}
    write_json(root / "Annotations" / "val.json", [entry])


def docvqa(root):
    write_picture(root / "documents" / "xnbl0037_1.png")
    entry = {
        "questionId": 49153,
        "question": "What is the total?",
        "image": "documents/xnbl0037_1.png",
        "answers": ["$ 1,000", "1,000"],
        "data_split": "val",
    }
    write_json(root / "val_v1.0_withQT.json", {"dataset_name": "docvqa", "data": [entry]})


def own(root):
    """A row of each kind of answer; returns the file."""
    write_picture(root / "pictures" / "a.png")
    box, quad = "<loc_125><loc_166><loc_500><loc_500>", "<loc_0><loc_0><loc_500><loc_0>"
    rows = [
        ("<OD>", f"car{box}"),
        ("<CAPTION>", ["a car", "one car"]),
        ("<CAPTION>", ["a dog", "one dog"]),
        ("<CAPTION_TO_PHRASE_GROUNDING>a car", f"a car{box}"),
        ("<REGION_PROPOSAL>", box),
        ("<OCR_WITH_REGION>", f"STOP{quad}<loc_500><loc_500><loc_0><loc_500>"),
        ("<REFERRING_EXPRESSION_SEGMENTATION>car", f"{quad}<loc_500><loc_500>"),
        (f"<REGION_TO_CATEGORY>{box}", f"car{box}"),
        ("<DocVQA>What is the total?", ["12", "twelve"]),
        ("<OCR>", "STOP"),
    ]
    lines = (
        json.dumps({"image": "pictures/a.png", "prefix": prefix, "suffix": suffix})
        for prefix, suffix in rows
    )
    path = Path(root) / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    return path


# The default split's number of examples, and what writes the data set.
DATA_SETS = {
    "coco-captions": (3, coco_captions),
    "nocaps": (2, nocaps),
    "textcaps": (2, textcaps),
    "coco-detection": (2, coco_detection),
    "flickr30k": (4, flickr30k),
    "refcoco": (4, refcoco),
    "refcoco+": (4, lambda root: refcoco(root, "refcoco+")),
    "refcocog": (4, lambda root: refcoco(root, "refcocog", "umd", ("val", "test"))),
    "refcoco-masks": (4, refcoco),
    "refcoco+-masks": (4, lambda root: refcoco(root, "refcoco+")),
    "refcocog-masks": (4, lambda root: refcoco(root, "refcocog", "umd", ("val", "test"))),
    "vqav2": (3, vqav2),
    "textvqa": (1, textvqa),
    "vizwiz": (1, vizwiz),
    "docvqa": (1, docvqa),
}
