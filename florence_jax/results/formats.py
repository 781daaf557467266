"""Output formats: which there are, which answers each can hold, and where files go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from florence_jax.processing import TASKS, task_of

# Formats of one file, and those of one file for each image with its suffix.
FILES = ("jsonl", "csv", "coco")
SIDECARS = {"yolo": ".txt", "voc": ".xml", "txt": ".txt"}
# Blocks of --output-dir; the other formats are made of them when the last one is there.
BLOCKS = ("jsonl", "parquet")
FORMATS = (*FILES, *SIDECARS, "parquet")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where rows are written, and in which format.

    Attributes:
        kind: one of `FORMATS`.
        inputs: the images, lists and data files as the user named them; no output replaces one.
        file: the file of one-file formats; "-" is standard output.
        directory: the directory of a run in blocks; None if rows go to `file` or to sidecars.
        sidecar_dir: the directory of sidecars; None for beside the images, or `directory`.
        save_images: the directory of drawn answers; None for none.
        overwrite: replace existing files.
        min_score: leave out boxes and outlines with a lower score.
        quiet: print nothing about what is skipped and written.

    Raises:
        ValueError: names options that do not go together.
    """

    kind: str
    inputs: tuple[str, ...]
    file: str = "-"
    directory: Path | None = None
    sidecar_dir: Path | None = None
    save_images: Path | None = None
    overwrite: bool = False
    min_score: float | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.sidecar_dir is not None and self.kind not in SIDECARS:
            raise ValueError(
                f"--sidecar-dir belongs to --format {', '.join(SIDECARS)}, and --format is "
                f"{self.kind}: leave it out"
            )
        if self.directory is None:
            self._check_file()
        elif self.file != "-":
            raise ValueError(
                "--output and --output-dir are two ways to write the answers: give one"
            )
        elif self.overwrite and self.kind not in SIDECARS:
            raise ValueError(
                "--overwrite belongs to --output: a run goes on in its directory, and another one "
                "needs another --output-dir"
            )

    def _check_file(self) -> None:
        if self.kind not in (*FILES, *SIDECARS):
            raise ValueError(f"--format {self.kind} belongs to --output-dir: give both")
        if self.kind in SIDECARS and self.file != "-":
            raise ValueError(
                f"--output is one file, and --format {self.kind} writes one for each image: leave "
                "it out, or name a folder for them (--sidecar-dir DIR)"
            )


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
                f"--format txt holds a text for each image, and the answer to {prompt!r} is "
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
