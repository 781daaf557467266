"""4-connected parts of a mask by flooding: slow, and too simple to be wrong."""

import numpy as np


def labelled(mask):
    """int[H, W]: 0 outside the mask, each part with a number from 1."""
    labels = np.zeros(mask.shape, int)
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        label, stack = labels.max() + 1, [start]
        while stack:
            y, x = stack.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if inside and mask[y, x] and not labels[y, x]:
                labels[y, x] = label
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return labels


def main_parts(mask, share):
    """The mask without parts that are smaller than `share` of it."""
    labels = labelled(mask)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    return (counts >= share * mask.sum())[labels]
