"""Compare the splits of a data set: classes that only one has, images that are in two."""

from __future__ import annotations

from collections.abc import Sequence

from florence_jax.training.data_check.split import Split


def compare_splits(splits: Sequence[Split]) -> None:
    """Add the faults that only several splits together have: classes that differ, images in two."""
    for trained in splits:
        if trained.name == "train" and trained.rows:
            for other in splits:
                if other.name != "train" and other.group == trained.group and other.rows:
                    _compare_classes(trained, other)
    for split in splits:
        listed = [label for label in split.listed if label not in split.classes]
        if listed and split.rows:
            shown = ", ".join(map(repr, listed[:8]))
            text = f"{len(listed)} listed classes have no object: {shown}"
            split.fault("unlisted class", split.path, text)
    for number, split in enumerate(splits):
        for other in splits[number + 1 :]:
            _compare_images(split, other)


def _compare_classes(trained: Split, other: Split) -> None:
    for label, count in other.classes.items():
        if label and label not in trained.classes:
            text = f"{label!r:.60} has {count} objects in {other.name} and none in {trained.name}"
            other.fault("class", other.path, text)
    if trained.listed and other.listed and set(trained.listed) != set(other.listed):
        apart = sorted(set(trained.listed) ^ set(other.listed))
        shown = ", ".join(map(repr, apart[:8]))
        text = f"the class lists of {trained.name} and {other.name} differ in {shown}"
        other.fault("class", other.path, text)


def _compare_images(one: Split, other: Split) -> None:
    if one.name == other.name:
        return
    by_digest = {digest: key for key, digest in one.digests.items()}
    for key, digest in other.digests.items():
        if digest in by_digest:
            text = f"the image {key} of {other.name} is {by_digest[digest]} of {one.name}"
            other.fault("leak", other.path, text)
