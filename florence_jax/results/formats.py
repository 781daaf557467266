"""Which formats there are, and which tasks' answers each of them can hold."""

from __future__ import annotations

from collections.abc import Sequence

from florence_jax.processing import TASKS, task_of

# Formats of one file, and those of one file for each picture with its suffix.
FILES = ("jsonl", "csv", "coco")
SIDECARS = {"yolo": ".txt", "voc": ".xml", "txt": ".txt"}
# Blocks of --output-dir; the other formats are made of them when the last one is there.
BLOCKS = ("jsonl", "parquet")
FORMATS = (*FILES, *SIDECARS, "parquet")


def check_tasks(kind: str, prompts: Sequence[str]) -> None:
    """Refuse prompts whose answers a format cannot hold; needs no model.

    Raises:
        ValueError: names the format and the prompt.
    """
    if kind in ("jsonl", "csv", "parquet"):
        return
    for prompt in prompts:
        task = TASKS.get(task_of(prompt))
        answer = "pure_text" if task is None else task.answer
        if kind == "txt" and answer != "pure_text":
            raise ValueError(
                f"--format txt holds a text for each picture, and the answer to {prompt!r} is "
                "boxes or outlines: use jsonl, csv, coco, yolo or voc"
            )
        if kind != "txt" and answer == "pure_text":
            raise ValueError(
                f"--format {kind} holds boxes and outlines, and the answer to {prompt!r} is text: "
                "use jsonl, csv or txt"
            )
        if kind == "yolo" and answer == "ocr":
            raise ValueError(
                f"--format yolo holds classes of objects, and the answer to {prompt!r} is words "
                "that are read: use jsonl, csv, coco or voc"
            )
    tasks = list(dict.fromkeys(task_of(prompt) for prompt in prompts))
    if len(tasks) > 1 or (kind in SIDECARS and len(prompts) > 1):
        raise ValueError(
            f"--format {kind} holds the answer to one --task, and {len(prompts)} were given "
            f"({', '.join(prompts)}), which would write one file: run them one by one into "
            "different places, or use jsonl or csv"
        )
