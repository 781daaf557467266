"""timm's mixup, random erasing, layer-wise decay and moving average, stored for tests without timm.

`python -m tests.training.images.timm_reference` writes `data/` again.
"""

import json
from pathlib import Path

import numpy as np

from tests.backbone.timm_reference import import_timm

DATA = Path(__file__).parent / "data"
VALUES, LAYERS = DATA / "timm.npz", DATA / "layer_decay.json"
SIZE, CLASSES, SHARE, SMOOTHING = (20, 30), 7, 0.3, 0.1
LAYER_DECAY, WEIGHT_DECAY = 0.75, 0.05
EMA_DECAY, EMA_STEPS = 0.9, 4


def _rectangles(draws):
    """bool[N, H, W]: what timm erases with these draws."""
    import torch
    from timm.data import random_erasing

    found = []
    kept = random_erasing.random
    for numbers in draws:
        stand_in = _Attempts(numbers)
        random_erasing.random = stand_in
        image = torch.ones(3, *SIZE)
        random_erasing.RandomErasing(1.0, mode="const", device="cpu")(image)
        found.append(image[0].numpy() == 0)
    random_erasing.random = kept
    return np.stack(found)


class _Attempts:
    """Draws of each attempt in turn: area and aspect, then top and left where these fit."""

    def __init__(self, numbers):
        self.numbers, self.attempt, self.calls = numbers, -1, [0, 0]

    def random(self):
        return 0.0

    def uniform(self, low, high):
        first = self.calls[0] % 2 == 0
        self.attempt += first
        self.calls[0] += 1
        return low + (high - low) * float(self.numbers[self.attempt][0 if first else 1])

    def randint(self, low, high):
        place = 2 + self.calls[1] % 2
        self.calls[1] += 1
        return low + int(float(self.numbers[self.attempt][place]) * (high - low + 1))


def _mixed(images, labels, logits):
    import torch
    from timm.data.mixup import Mixup
    from timm.loss import SoftTargetCrossEntropy

    mixup = Mixup(mixup_alpha=1.0, label_smoothing=SMOOTHING, num_classes=CLASSES)
    mixup._params_per_batch = lambda *_: (SHARE, False)
    pixels, targets = mixup(torch.tensor(np.moveaxis(images, -1, 1)), torch.tensor(labels))
    answers = torch.tensor(logits, requires_grad=True)
    loss = SoftTargetCrossEntropy()(answers, targets)
    loss.backward()
    return {
        "mixed": np.moveaxis(pixels.numpy(), 1, -1),
        "loss": loss.detach().numpy(),
        "gradient": answers.grad.numpy(),
    }


def _layers():
    """Name -> (multiple of the learning rate, weight decay) of timm's davit_tiny."""
    timm = import_timm()
    from timm.optim import param_groups_layer_decay

    sizes = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}
    model = timm.create_model("davit_tiny", depths=(1, 1, 3, 1), num_classes=CLASSES, **sizes)
    names = {id(leaf): name for name, leaf in model.named_parameters()}
    groups = param_groups_layer_decay(model, WEIGHT_DECAY, layer_decay=LAYER_DECAY)
    return {
        names[id(leaf)]: [group["lr_scale"], group["weight_decay"]]
        for group in groups
        for leaf in group["params"]
    }


def _averaged(rows):
    """timm's moving average of one parameter that takes these values."""
    import torch
    from timm.utils import ModelEmaV2

    model = torch.nn.Linear(rows.shape[1], 1, bias=False)
    model.weight.data = torch.tensor(rows[:1])
    average = ModelEmaV2(model, decay=EMA_DECAY)
    for row in rows[1:]:
        model.weight.data = torch.tensor(row[None])
        average.update(model)
    return average.module.weight.detach().numpy()[0]


def inputs():
    """What timm is given, the same on every call."""
    rng = np.random.default_rng(0)
    draws = rng.random((64, 10, 4)).astype(np.float32)
    # Two whose first attempts are higher or wider than the image.
    draws[:2, :3, 0], draws[0, :3, 1], draws[1, :3, 1] = 1.0, 0.0, 1.0
    return {
        "draws": draws,
        "images": rng.normal(size=(6, 4, 5, 3)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, 6),
        "logits": rng.normal(size=(6, CLASSES)).astype(np.float32),
        "rows": rng.normal(size=(EMA_STEPS + 1, 3)).astype(np.float32),
    }


def made():
    """timm's outputs: arrays by name, and the parameter groups."""
    given = inputs()
    layers = _layers()
    arrays = {
        "erased": _rectangles(given["draws"]),
        "average": _averaged(given["rows"]),
        **_mixed(given["images"], given["labels"], given["logits"]),
    }
    return arrays, layers


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    values, groups = made()
    np.savez_compressed(VALUES, **values)
    LAYERS.write_text(json.dumps(groups, indent=0) + "\n")
