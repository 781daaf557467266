"""Visual question answering: VQAv2, TextVQA, VizWiz, DocVQA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item
from florence_jax.evaluation.datasets.dataset import (
    Dataset,
    LayoutError,
    entries,
    find_file,
    find_folder,
    read_json,
    text_of,
    value_of,
)

Entry = dict[str, Any]


def vqav2(root: Path, split: str) -> Dataset:
    """The questions file, the annotations file where the split has one, and COCO's images."""
    where = "Both files are on visualqa.org/download.html, the images on cocodataset.org"
    year = "2014" if split == "val" else "2015"
    base = "val2014" if split == "val" else f"{split}2015"
    images = "val2014" if split == "val" else "test2015"
    path = find_file(root, _below(f"v2_OpenEnded_mscoco_{base}_questions.json"), where)
    folder = find_folder(root, (images, f"images/{images}"), where)
    files, answers = [path], {}
    if split == "val":
        truth = find_file(root, _below(f"v2_mscoco_val{year}_annotations.json"), where)
        files.append(truth)
        for annotation in entries(read_json(truth), "annotations", truth):
            answers[annotation["question_id"]] = value_of(annotation, "answers", truth)

    def name(entry: Entry) -> str:
        return f"COCO_{images}_{value_of(entry, 'image_id', path):012d}.jpg"

    asked = entries(read_json(path), "questions", path)
    given = [entry | {"answers": answers.get(entry.get("question_id"))} for entry in asked]
    return _dataset(given, "question_id", folder, name, files)


def textvqa(root: Path, split: str) -> Dataset:
    """`TextVQA_0.5.1_val.json` and its images in train_images/ (test_images/ for the test)."""
    where = "The file is on textvqa.org/dataset, the images are train_val_images.zip there"
    path = find_file(root, _below(f"TextVQA_0.5.1_{split}.json"), where)
    folder = find_folder(root, ("test_images" if split == "test" else "train_images",), where)

    def name(entry: Entry) -> str:
        return f"{value_of(entry, 'image_id', path)}.jpg"

    return _dataset(entries(read_json(path), "data", path), "question_id", folder, name, [path])


def vizwiz(root: Path, split: str) -> Dataset:
    """`val.json` of the VQA task, and the images in val/."""
    where = "Annotations and images are on vizwiz.org/tasks-and-datasets/vqa"
    path = find_file(root, _below(f"{split}.json"), where)
    folder = find_folder(root, (split, f"images/{split}", "images"), where)
    asked = entries(read_json(path), "questions", path)
    return _dataset(asked, "image", folder, lambda entry: text_of(entry, "image", path), [path])


def docvqa(root: Path, split: str) -> Dataset:
    """`val_v1.0.json` (or `val_v1.0_withQT.json`) and the pages in documents/."""
    where = "Both are task 1 of DocVQA on rrc.cvc.uab.es"
    names = [f"{split}_v1.0_withQT.json", f"{split}_v1.0.json", f"{split}/{split}_v1.0.json"]
    path = find_file(root, [name for one in names for name in _below(one)], where)
    find_folder(path.parent, ("documents", "../documents"), where)
    pages = path.parent if (path.parent / "documents").is_dir() else path.parent.parent
    asked = entries(read_json(path), "data", path)
    return _dataset(asked, "questionId", pages, lambda entry: text_of(entry, "image", path), [path])


def _below(name: str) -> tuple[str, ...]:
    return name, f"annotations/{name}", f"Annotations/{name}", f"questions/{name}"


def _texts(answers: Iterable[Any] | None) -> list[str] | None:
    """Answers as texts: in VQAv2 and VizWiz each is an object around one."""
    if not answers:
        return None
    texts = (answer["answer"] if isinstance(answer, dict) else answer for answer in answers)
    return [str(text) for text in texts]


def _dataset(
    asked: Sequence[Entry],
    number_key: str,
    folder: Path,
    name_of: Callable[[Entry], str],
    files: Sequence[Path],
) -> Dataset:
    """One item per question; `files` are the questions and, if they are apart, the answers."""
    items = []
    for entry in asked:
        name, number = name_of(entry), value_of(entry, number_key, files[0])
        truth, question = _texts(entry.get("answers")), text_of(entry, "question", files[0]).strip()
        extra = {"input": question, "truth": truth, "question_id": number}
        items.append(Item(id=str(number), image=FileBelow(str(folder), name), extra=extra))
    answered = sum(item.extra["truth"] is not None for item in items)
    if answered not in (0, len(items)):
        raise LayoutError(f"{files[-1]} has answers to {answered} of {len(items)} questions")
    # Questions about one image follow each other, so that it is read and encoded once.
    items.sort(key=lambda item: item.image.name)
    return Dataset(items=items, files=files)
