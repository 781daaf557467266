"""Tell the layouts of annotation files in JSON apart by their content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kind_of_json(content: Any) -> str | None:
    """The layout of a JSON value: coco, vqa, docvqa, labelme, label_studio; None for another."""
    if isinstance(content, Mapping):
        if "images" in content and "annotations" in content:
            return "coco"
        if "shapes" in content and "imagePath" in content:
            return "labelme"
        if isinstance(content.get("questions"), list):
            return "vqa"
        if isinstance(content.get("data"), list):
            return "docvqa"
        return None
    if not isinstance(content, list):
        return None
    first = next((one for one in content if isinstance(one, Mapping)), {})
    if "data" in first and ("annotations" in first or "completions" in first):
        return "label_studio"
    if "question" in first:
        return "vqa"
    return "label_studio" if _is_min_export(first) else None


def _is_min_export(task: Mapping[str, Any]) -> bool:
    """Label Studio's JSON-MIN has the task's data and its labels side by side in one object."""
    return "annotation_id" in task or any(
        isinstance(value, list)
        and any(isinstance(one, Mapping) and "original_width" in one for one in value)
        for value in task.values()
    )
