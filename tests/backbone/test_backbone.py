"""Every kind of file gives a backbone the same weights, and what does not fit is said."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import florence_jax as fj
from florence_jax import config as configs
from florence_jax.backbone import load
from florence_jax.backbone.backbone import backbone_shapes
from florence_jax.backbone.config import PRESETS, BackboneConfig
from florence_jax.backbone.load import read_label_names
from florence_jax.backbone.save import convert_to_timm
from florence_jax.backbone.timm_config import to_timm
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.cli.main import main
from florence_jax.conversion import from_torch
from tests.backbone.timm_reference import DATA, STORED, stored_images
from tests.checkpoint.generated import tiny_tensors, write_directory
from tests.sharding.subprocesses import run_lines
from tests.training.images.small import TINY as ONE_STAGE

# timm's own counts, with 1000 classes but for Florence-2's towers.
PARAMETERS = {
    "davit_tiny": 28_360_168,
    "davit_small": 49_745_896,
    "davit_base": 87_954_408,
    "davit_large": 196_811_752,
    "davit_huge": 348_922_856,
    "davit_giant": 1_406_470_120,
    "davit_base_fl": 90_370_048,
    "davit_huge_fl": 360_636_416,
}


def assert_same_params(ours, theirs):
    ours, theirs = dict(flatten(ours)), dict(flatten(theirs))
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


@functools.cache
def stored(name, **options):
    return fj.load_backbone(DATA / name, **options)


def test_presets_have_timms_number_of_parameters():
    assert PARAMETERS.keys() == PRESETS.keys()
    for name, expected in PARAMETERS.items():
        shapes = backbone_shapes(PRESETS[name])
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == expected, name


@pytest.mark.parametrize("name", STORED)
def test_a_saved_backbone_is_the_file_that_timm_wrote(name, tmp_path):
    convert_to_timm(DATA / name, tmp_path / "once")
    theirs = load_file(DATA / name / "model.safetensors")
    ours = load_file(tmp_path / "once" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].tobytes() == array.tobytes(), key
    settings, written = (
        json.loads((directory / "config.json").read_text())
        for directory in (DATA / name, tmp_path / "once")
    )
    for key in ("architecture", "num_classes", "num_features"):
        assert written[key] == settings[key]
    assert fj.load_backbone(tmp_path / "once")[0].config == stored(name)[0].config
    backbone, params = fj.load_backbone(tmp_path / "once")
    fj.save_backbone(tmp_path / "twice", backbone.config, params)
    for file in ("model.safetensors", "config.json"):
        once, twice = ((tmp_path / run / file).read_bytes() for run in ("once", "twice"))
        assert once == twice


def original_names(tensors):
    """timm's tensors under the names of the original repository."""
    for name, array in tensors.items():
        name = name.replace("stem.", "stages.0.downsample.")
        name = name.replace("head.fc", "head").replace("head.norm", "norms")
        parts = name.split(".")
        if "downsample" in parts:
            inner = "proj" if parts[3] == "conv" else parts[3]
            name = ".".join(["patch_embeds", parts[1], inner, *parts[4:]])
        elif "blocks" in parts:
            name = ".".join(["main_blocks", parts[1], *parts[3:]])
            name = name.replace("cpe1", "cpe.0").replace("cpe2", "cpe.1")
        yield name, array


def test_the_original_repositorys_checkpoint(tmp_path):
    backbone, params = stored("paper")
    tensors = dict(original_names(load_file(DATA / "paper" / "model.safetensors")))
    assert {"main_blocks.2.1.0.cpe.1.proj.weight", "norms.bias"} <= tensors.keys()
    state = {f"module.{name}": torch.tensor(array) for name, array in tensors.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "original.pth")
    again, loaded = fj.load_backbone(tmp_path / "original.pth", config=backbone.config)
    assert again == backbone
    assert_same_params(loaded, params)
    # The file alone does not say how wide its heads are.
    with pytest.raises(fj.CheckpointError, match=r"no published DaViT: pass config=BackboneConfig"):
        fj.load_backbone(tmp_path / "original.pth")


@pytest.mark.parametrize("name", ["davit_tiny", "davit_base_fl"])
def test_sizes_are_read_off_the_tensors(name, tmp_path):
    full = PRESETS[name]
    heads = (1, 2, 2, 2)
    sizes = {"embed_dims": (32, 64, 64, 64), "depths": (1, 1, 2, 1)}
    sizes |= {"num_heads": heads, "num_groups": heads}
    config = dataclasses.replace(full, vision=dataclasses.replace(full.vision, **sizes))
    rng = np.random.default_rng(1)
    shapes = backbone_shapes(config)
    params = unflatten({path: np.float32(rng.normal(size=shapes[path])) for path in shapes})
    fj.save_backbone(tmp_path / "saved", config, params)
    again, loaded = fj.load_backbone(tmp_path / "saved" / "model.safetensors")
    assert again.config.vision == config.vision
    assert_same_params(loaded, params)


def test_a_backbone_is_no_florence():
    with pytest.raises(fj.ConfigError, match="this is davit_tiny; load it with load_backbone or"):
        fj.load(DATA / "paper")


def test_random_weights_are_those_of_a_seed():
    first, again, other = (
        fj.load_backbone("davit_tiny", config=ONE_STAGE, pretrained=False, seed=seed)[1]
        for seed in (1, 1, 2)
    )
    assert_same_params(first, again)
    kernel = "vision_tower/stages/0/embed/conv/kernel"
    assert not np.array_equal(dict(flatten(first))[kernel], dict(flatten(other))[kernel])


def test_the_tower_of_a_florence(tmp_path):
    model, params = fj.load("shapes")
    backbone, tower = fj.load_backbone("shapes")
    assert backbone.config.vision == model.config.vision
    assert_same_params(tower["vision_tower"], params["vision_tower"])
    images = stored_images()
    expected = jax.jit(lambda params: model.bind(params).vision_tower(images))(params)
    np.testing.assert_array_equal(backbone.features(tower, images)[-1], expected)
    assert backbone.config.image.size == (192, 192)
    with pytest.raises(fj.ConfigError, match="timm has no DaViT with these patches"):
        convert_to_timm("shapes", tmp_path / "timm")


def test_a_florence_in_our_own_format_to_timm_and_back(tmp_path):
    tiny = configs.tiny()
    vision = dataclasses.replace(tiny.vision, num_groups=tiny.vision.num_heads)
    config = dataclasses.replace(tiny, vision=vision).to_hf("original")
    write_directory(tmp_path / "torch", tiny_tensors(), config)
    backbone, tower = fj.load_backbone(tmp_path / "torch")
    from_torch(tmp_path / "torch", tmp_path / "ours")
    assert_same_params(fj.load_backbone(tmp_path / "ours")[1], tower)
    arguments = ["convert", str(tmp_path / "ours"), str(tmp_path / "timm"), "--naming", "timm"]
    assert main([*arguments, "--quiet"]) == 0
    settings = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert settings["architecture"] == "davit_base_fl"
    again, loaded = fj.load_backbone(tmp_path / "timm")
    assert again.config == backbone.config
    assert_same_params(loaded, tower)
    assert main([*arguments, "--vocab-size", "9"]) == 2


def test_another_number_of_classes_drops_the_classifier():
    images = stored_images()
    backbone, params = stored("paper")
    with pytest.warns(UserWarning, match="has a classifier of 5 classes: it is left out"):
        other, changed = fj.load_backbone(DATA / "paper", num_classes=3)
    assert other.logits(changed, images).shape == (2, 3)
    np.testing.assert_array_equal(other.embed(changed, images), backbone.embed(params, images))
    headless, rest = fj.load_backbone(DATA / "paper", num_classes=0)
    assert headless.config.num_classes == 0
    assert "fc" not in rest["head"]


def test_names_of_classes_are_read(tmp_path):
    assert read_label_names(DATA / "paper") == ()
    assert read_label_names(DATA / "paper" / "model.safetensors") == ()
    names = ["ant", "bee", "cat", "dog", "eel"]
    settings = json.loads((DATA / "paper" / "config.json").read_text())
    for content in (
        settings | {"label_names": names},
        settings | {"pretrained_cfg": settings["pretrained_cfg"] | {"label_names": names}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert read_label_names(tmp_path) == tuple(names)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"label_names": {"0": "ant"}}))
    with pytest.raises(fj.ConfigError, match=r"label_names is .* expected a list of texts"):
        read_label_names(tmp_path)


def test_a_name_has_timm_s_own_preprocessing(tmp_path, monkeypatch):
    """The hub's config.json says crop_pct 0.9, and timm 1.0.31 evaluates the name with 0.95."""
    settings = json.loads((DATA / "paper" / "config.json").read_text())
    settings["pretrained_cfg"] |= {"crop_pct": 0.9, "input_size": [3, 224, 224]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    shutil.copy(DATA / "paper" / "model.safetensors", tmp_path)
    monkeypatch.setattr(load, "resolve_model", lambda source, revision: tmp_path)
    for source, share in (("davit_tiny", 0.95), ("timm/davit_tiny.msft_in1k", 0.9)):
        image = load.find_weights(source).config.image
        assert (image.size, image.crop_pct) == ((224, 224), share)


def test_the_growth_of_drop_path_is_kept():
    vision = dataclasses.replace(configs.tiny().vision, drop_path_per_block=True)
    florence = dataclasses.replace(configs.tiny(), vision=vision)
    for dialect in ("native", "original"):
        assert configs.Florence2Config.from_hf(florence.to_hf(dialect)).vision == vision
    # timm's file tells neither the rate nor how it grows, which change no trained model.
    tiny = dataclasses.replace(PRESETS["davit_tiny"].vision, drop_path_per_block=True)
    assert to_timm(BackboneConfig(vision=tiny))["model_args"] == {}


def test_files_that_do_not_fit(tmp_path):
    tensors = load_file(DATA / "paper" / "model.safetensors")
    shutil.copy(DATA / "paper" / "config.json", tmp_path)

    def refused(match, **changes):
        found = {name: array for name, array in (tensors | changes).items() if array is not None}
        save_file(found, tmp_path / "model.safetensors")
        with pytest.raises(fj.CheckpointError, match=match):
            fj.load_backbone(tmp_path)

    refused(r"missing tensors \(1\):\n    stem.norm.bias", **{"stem.norm.bias": None})
    refused(r"unexpected tensors \(1\):\n    neck.weight", **{"neck.weight": np.zeros(3)})
    refused(
        r"wrong shape \(1\):\n    stem.norm.bias: is \[9\], expected \[8\]",
        **{"stem.norm.bias": np.zeros(9, np.float32)},
    )
    # A head is there as a whole: its norm with scale 1 would give other logits.
    refused(r"missing tensors \(1\):\n    head.fc.bias", **{"head.fc.bias": None})
    norm = {"head.norm.weight": None, "head.norm.bias": None}
    refused(r"missing tensors \(2\):\n    head.norm.bias\n    head.norm.weight", **norm)
    refused("holds no tensors: expected those of a DaViT", **dict.fromkeys(tensors))
    others = {"embeddings.weight": np.zeros(3, np.float32)}
    refused("holds no bare DaViT .* For a Florence-2, pass", **dict.fromkeys(tensors), **others)
    with pytest.raises(fj.CheckpointError, match=r"there is no file .*absent\.safetensors"):
        fj.load_backbone(tmp_path / "absent.safetensors")
    with pytest.raises(fj.ConfigError, match=r"expected a BackboneConfig\(vision=\.\.\.\)"):
        fj.load_backbone(DATA / "paper", config=configs.tiny().vision)
    with pytest.raises(fj.CheckpointError, match="nobody has published weights of davit_giant"):
        fj.load_backbone("davit_giant")
    with pytest.raises(fj.ConfigError, match="'davit_mini' is no known backbone: expected one of"):
        fj.load_backbone("davit_mini", pretrained=False)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_classes": 7}, "has a classifier of 5 classes, and its config says num_classes is 7"),
        ({"num_classes": "5"}, "num_classes is '5', expected an integer from 0"),
        ({"architecture": "resnet50"}, "'resnet50' is no known backbone"),
        ({"architecture": "upernet"}, "holds a segmentation network: load it with load_segmenter"),
        ({"model_args": [1]}, r"timm's model_args is \[1\], expected an object of settings"),
        ({"model_args": {"depths": None}}, "depths is None, expected integers of at least 1"),
        ({"pretrained_cfg": [1]}, r"timm's pretrained_cfg is \[1\], expected an object"),
        (
            {"pretrained_cfg": {"input_size": [3, 9]}},
            r"input_size is \[3, 9\], expected \[channels",
        ),
        ({"pretrained_cfg": {"crop_pct": "x"}}, "crop_pct is 'x', expected a number above 0"),
    ],
)
def test_a_damaged_config_of_timm_s_is_one_sentence(changes, match, tmp_path):
    shutil.copy(DATA / "paper" / "model.safetensors", tmp_path)
    settings = json.loads((DATA / "paper" / "config.json").read_text())
    for name, value in changes.items():
        part = settings.get(name)
        both = isinstance(part, dict) and isinstance(value, dict)
        settings[name] = part | value if both else value
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises((fj.CheckpointError, fj.ConfigError), match=match):
        fj.load_backbone(tmp_path)


def test_configs_that_timm_or_transformers_cannot_express(tmp_path):
    backbone, params = fj.load_backbone(DATA / "paper", feature_norms=True)
    with pytest.raises(fj.ConfigError, match=r"timm has no DaViT with these .* feature_norms=True"):
        fj.save_backbone(tmp_path / "x", backbone.config, params)
    for dialect in ("native", "original"):
        vision = backbone.config.vision
        with pytest.raises(fj.ConfigError, match=r"channel_attn_v2 is False; .* means True"):
            dataclasses.replace(configs.tiny(), vision=vision).to_hf(dialect)


def test_a_mesh_gives_the_logits_of_one_device(compiled_on_disk):
    (found,) = run_lines(
        "backbone", "fsdp=2,tensor=2", "fsdp_tp", cache=compiled_on_disk, devices=4
    )
    assert found["error"] < 2e-6
    assert found["share"] < 0.4
