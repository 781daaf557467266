"""A recipe, flags on top of it, and the config that a run saved."""

import dataclasses
import json

import pytest

from florence_jax.training.checked import did_you_mean
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import (
    SettingsError,
    differences,
    from_tree,
    load_config,
    to_tree,
)
from florence_jax.training.data.sources import CocoConfig, JsonlConfig
from florence_jax.training.settings import OptimizerConfig
from tests.training.runs import a_config

FLAGS = [
    *("--directory", "a", "--steps", "1", "--model.start", "shapes"),
    *("--data.train", '[{"kind": "jsonl", "path": "a"}]'),
]


def test_flags_override_the_recipe_and_the_recipe_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import dataclasses\n"
        "from florence_jax.training.optimizer import OptimizerConfig\n"
        "from tests.training.runs import a_config\n"
        "config = dataclasses.replace(\n"
        "    a_config('run', steps=3 * 7), optimizer=OptimizerConfig(name='lion', b1=0.8)\n"
        ")\n"
    )
    assert load_config(recipe).optimizer == OptimizerConfig(name="lion", b1=0.8)
    config = load_config(
        recipe,
        [
            *("--optimizer.b1=0.7", "--optimizer.rules", "a.*", "0", ".*", "1.5"),
            *("--data.image-size", "32", "48", "--logging.no-tensorboard", "--model.revision", "x"),
            *("--model.revision", "None", "--data.max_prompt", "9"),
        ],
    )
    assert config.steps == 21
    assert config.optimizer == OptimizerConfig(
        name="lion", b1=0.7, rules=(("a.*", 0.0), (".*", 1.5))
    )
    assert (config.data.image_size, config.data.max_prompt) == ((32, 48), 9)
    assert (config.logging.tensorboard, config.model.revision) == (False, None)
    assert config.model.architecture == a_config("run").model.architecture


def test_sources_and_sizes_are_json():
    text = dataclasses.asdict(a_config("run").model.architecture)
    flags = [
        *("--model.start", "", "--model.processor", "bytes"),
        *("--model.architecture", json.dumps(text)),
        *("--data.valid", '[{"kind": "coco", "path": "b.json", "tasks": ["<OD>"], "weight": 2}]'),
    ]
    config = load_config(None, [*FLAGS, *flags])
    assert config.data.train == (JsonlConfig(path="a"),)
    assert config.data.valid == (CocoConfig(path="b.json", weight=2.0),)
    assert config.model.architecture == a_config("run").model.architecture
    assert load_config(None, [*FLAGS, *flags[:4], "--model.architecture", "tiny"])
    assert load_config(None, [*FLAGS, "--model.architecture", "None"]).model.architecture is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "many"], "--steps"),
        (["--optimizer.lr", "1"], "Unrecognized options: --optimizer.lr"),
        (["--optimizer.learning-rat", "1"], "--optimizer.learning-rate FLOAT"),
        (["steps=9"], "Unrecognized options: steps=9"),
        (["--optimizer.name", "sgd"], "'adamw'"),
        (["--optimizer.learning-rate", "yes"], "--optimizer.learning-rate"),
        (["--steps", "1" + "0" * 5000], "--steps"),
        (["--data.train", "["], "is not JSON"),
        (["--data.train", "[" * 100_000], "nested too deeply"),
        (["--data.train", "a.jsonl"], "expected tuple[SourceConfig, ...]"),
        (["--data.train", '[{"kind": "jsonl", "pth": "a"}]'], "[0].pth (did you mean path?)"),
        (["--data.train", '[{"kind": "json"}]'], "(did you mean jsonl?)"),
        (["--data.train", '[{"kind": "jsonl", "path": true}]'], "[0].path: expected str, got True"),
        (
            ["--data.valid", '[{"kind": "coco", "order": "randm"}]'],
            "(did you mean random?)",
        ),
        (["--model.architecture", '{"visoin": 1}'], "(did you mean vision?)"),
    ],
)
def test_a_flag_that_does_not_fit_is_named(flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        load_config(None, [*FLAGS, *flags])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in " ".join(" ".join(line.strip("│ ") for line in lines).split())


def test_what_no_recipe_and_no_flag_sets_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        load_config(None, ["--steps", "1"])
    assert "--directory" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="name training data"):
        load_config(None, [*FLAGS, "--data.train", "[]"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.py", "x = 1", "must define `config`"),
        ("a.py", "x = 1\nimport absent_module", r"a\.py, line 2: ModuleNotFoundError: No module"),
        ("a.py", "x = (", r"a\.py: SyntaxError: .* line 1"),
        ("b.py", None, "there is no such file"),
        ("a.toml", "x = 1", r"expected a \.py file, or the config\.json of a run"),
        ("a.json", "3", "expected TrainConfig, got 3"),
        ("a.json", "{", r"a\.json is not JSON"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_config(tmp_path / name, ["--steps", "1"])


def test_a_saved_config_has_every_field_and_no_other():
    with pytest.raises(SettingsError) as raised:
        from_tree(TrainConfig, {"stps": 3})
    lines = str(raised.value).splitlines()
    assert lines[0] == "unknown setting stps (did you mean steps?)"
    assert {"directory is missing", "steps is missing", "lora is missing"} <= set(lines)


def test_a_config_survives_being_saved_and_is_a_recipe(tmp_path):
    config = a_config(tmp_path / "run")
    assert from_tree(TrainConfig, to_tree(config)) == config
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(to_tree(config)))
    assert load_config(saved, ["--steps", "9"]) == dataclasses.replace(config, steps=9)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.clip_norm", True, "optimizer.clip_norm: expected float, got True"),
        ("optimizer.clip_norm", -1, "optimizer.clip_norm must be positive, got -1.0"),
        ("optimizer.rules", [[".*"]], "optimizer.rules[0]: expected tuple[str, float], got ['.*']"),
        ("optimizer.name", "adm", "got 'adm' (did you mean adamw?)"),
        ("steps", 1.5, "steps: expected int | None, got 1.5"),
        ("steps", 10**400, "steps must be"),
        ("loss.z_loss", 10**400, "loss.z_loss: expected float"),
        ("model.architecture.text.d_model", "a", "model.architecture.text.d_model: expected int"),
        ("model.architecture.text.d_model", 0, "d_model is 0, expected an integer"),
        ("data.train", {}, "data.train: expected tuple[SourceConfig, ...], got {}"),
        ("data.more", 1, "unknown setting data.more"),
    ],
)
def test_a_saved_config_is_read_strictly(path, value, message, tmp_path):
    tree = to_tree(a_config(tmp_path / "run"))
    *parents, last = path.split(".")
    inner = tree
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    with pytest.raises(SettingsError) as raised:
        from_tree(TrainConfig, tree)
    assert message in str(raised.value)
    del inner[last]
    if path != "data.more":
        with pytest.raises(SettingsError, match=f"{path} is missing"):
            from_tree(TrainConfig, tree)


def test_differences_name_the_fields():
    old = to_tree(OptimizerConfig())
    new = to_tree(OptimizerConfig(clip_norm=2.0))
    assert differences({"optimizer": old}, {"optimizer": new}) == [
        "optimizer.clip_norm was 1.0 and is 2.0"
    ]


def test_differences_name_the_fields_of_a_list_s_items():
    old = {"train": [{"path": "a", "weight": 1.0}, {"path": "b"}]}
    new = {"train": [{"path": "a", "weight": 2.0}, {"path": "b"}]}
    assert differences(old, new) == ["train[0].weight was 1.0 and is 2.0"]
    assert differences(old, {"train": []}) == [f"train was {old['train']!r} and is []"]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--evaluation.metric", "mAP", "evaluation.metric 'mAP' is not measured: expected loss"),
        ("--evaluation.metric", "los", r"is not measured.*\(did you mean loss\?\)"),
        ("--evaluation.num-beams", "100000", r"num_beams must be within \[1, 1024\], got 100000"),
        ("--data.workers", "100000", r"data.workers must be within \[0, 1024\], got 100000"),
        ("--lora.rank", "99999999999", r"lora.rank must be within \[0, 65536\]"),
    ],
)
def test_what_would_end_a_run_later_is_refused_at_once(flag, value, message):
    load_config(None, FLAGS)
    with pytest.raises(SettingsError, match=message):
        load_config(None, [*FLAGS, flag, value])


def test_a_near_miss_names_what_was_meant():
    assert did_you_mean("los", ["loss", "nll"]) == " (did you mean loss?)"
    assert did_you_mean("zzz", ["steps", "data"]) == ""
