"""Data sets of folders, accuracy, neighbours and linear probes, beside plain computations."""

import json

import numpy as np
import pytest
import scipy.optimize
import torch
from PIL import Image

import florence_jax as fj
from florence_jax.classification.accuracy import top_k_accuracy
from florence_jax.classification.image_folders import read_folders, with_real_labels
from florence_jax.classification.probe import fit_linear_probe, knn_predict, with_probe
from tests.backbone.timm_reference import DATA, stored_images


def write_images(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def test_folders_are_classes_in_the_order_of_their_names(tmp_path):
    write_images(tmp_path, "n02/b.png", "n01/deep/c.jpg", "n01/a.png", "n02/__MACOSX/x.png")
    (tmp_path / "n01" / "notes.txt").write_text("no image")
    found = read_folders(tmp_path)
    assert found.names == ("n01", "n02")
    names = [path.relative_to(tmp_path).as_posix() for path in found.paths]
    assert names == ["n01/a.png", "n01/deep/c.jpg", "n02/b.png"]
    assert found.labels == ((0,), (0,), (1,))
    # A trained model's classes, of which the folder lacks some, and one that it does not know.
    assert read_folders(tmp_path, ["n00", "n01", "n02"]).labels == ((1,), (1,), (2,))
    with pytest.raises(fj.ImageError, match="that the model does not know: n02; it knows 1"):
        read_folders(tmp_path, ["n01"])
    with pytest.raises(fj.ImageError, match="has no folders: expected one for each class"):
        read_folders(tmp_path / "n02" / "__MACOSX")


def test_leftover_folders_are_no_classes_and_names_differ(tmp_path):
    write_images(tmp_path, "n01/a.png", "n02/a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png")
    assert read_folders(tmp_path).names == ("n01", "n02")
    with pytest.raises(fj.ImageError, match="the class name 'n01' occurs twice"):
        read_folders(tmp_path, ["n01", "n02", "n01"])


def test_folders_of_imagenet_v2_are_numbers(tmp_path):
    write_images(tmp_path, "10/a.png", "2/a.png", "0/a.png")
    found = read_folders(tmp_path)
    assert dict(zip((path.parent.name for path in found.paths), found.labels, strict=True)) == {
        "0": (0,),
        "2": (2,),
        "10": (10,),
    }


def test_labels_of_real(tmp_path):
    write_images(tmp_path / "val", *(f"n01/ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2, 3)))
    (tmp_path / "real.json").write_text(json.dumps([[4, 1], [], [0]]))
    found = with_real_labels(read_folders(tmp_path / "val"), tmp_path / "real.json")
    assert found.labels == ((1, 4), (), (0,))
    logits = np.eye(5, dtype=np.float32)[[4, 2, 3]]
    # The image without labels does not count; one of the two others is right.
    assert top_k_accuracy(logits, found.labels, (1,)) == {1: 0.5}
    (tmp_path / "real.json").write_text("[[1]")
    with pytest.raises(fj.ImageError, match=r"real\.json is no ReaL label file"):
        with_real_labels(read_folders(tmp_path / "val"), tmp_path / "real.json")
    (tmp_path / "real.json").write_text("[[1]]")
    with pytest.raises(fj.ImageError, match="from ILSVRC2012_val_00000001 to 1,"):
        with_real_labels(read_folders(tmp_path / "val"), tmp_path / "real.json")


def test_accuracy_is_torchs_top_k():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 8)).astype(np.float32)
    labels = rng.integers(0, 8, 50)
    top = torch.tensor(logits).topk(5).indices.numpy()
    expected = {k: (top[:, :k] == labels[:, None]).any(1).mean() for k in (1, 5)}
    assert top_k_accuracy(logits, labels[:, None].tolist(), (1, 5, 9)) == expected
    with pytest.raises(ValueError, match="50 rows of logits and 1 labels"):
        top_k_accuracy(logits, [[1]])


def test_neighbours_vote():
    rng = np.random.default_rng(0)
    bank, rows = rng.standard_normal((30, 6)), rng.standard_normal((7, 6))
    labels = rng.integers(0, 4, 30)
    found = knn_predict(bank, labels, rows, num_classes=4, k=5, temperature=0.1)
    for row, votes in zip(rows, found, strict=True):
        similarity = bank @ row / np.linalg.norm(bank, axis=1) / np.linalg.norm(row)
        expected = np.zeros(4)
        for one in np.argsort(-similarity)[:5]:
            expected[labels[one]] += np.exp(similarity[one] / 0.1)
        np.testing.assert_allclose(votes, expected, rtol=1e-4)


def test_the_linear_probe_is_the_optimum_that_scipy_finds():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 5)) * [1, 10, 0.1, 3, 0] + [0, 4, 1, 0, 2]
    labels = (vectors[:, 1] > 4).astype(int) + (rng.random(60) < 0.3)
    probe = fit_linear_probe(vectors, labels, num_classes=3, l2=0.05)
    std = np.where(vectors.std(0) > 0, vectors.std(0), 1)
    inputs = (vectors - vectors.mean(0)) / std

    def loss(flat):
        logits = inputs @ flat[:15].reshape(5, 3) + flat[15:]
        log_probs = torch.log_softmax(torch.tensor(logits), 1).numpy()
        return -log_probs[np.arange(60), labels].mean() + 0.025 * np.sum(flat[:15] ** 2)

    best = scipy.optimize.minimize(loss, np.zeros(18), tol=1e-10).x
    expected = inputs @ best[:15].reshape(5, 3) + best[15:]
    found = probe.logits(vectors)
    # The loss does not change with a constant added to all classes.
    found, expected = (one - one.mean(1, keepdims=True) for one in (found, expected))
    np.testing.assert_allclose(found, expected, atol=2e-3)

    backbone, params = fj.load_backbone(DATA / "paper")
    images = stored_images()
    embeddings = np.asarray(backbone.embed(params, images))
    probe = fit_linear_probe(embeddings, np.array([0, 1]), num_classes=2)
    probed, with_head = with_probe(backbone, params, probe)
    np.testing.assert_allclose(
        probed.logits(with_head, images), probe.logits(embeddings), atol=1e-4
    )
