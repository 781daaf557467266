import dataclasses

import pytest

from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import (
    SettingsError,
    describe,
    differences,
    load_settings,
    to_tree,
)
from florence_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run.

    Attributes:
        steps: how many updates,
            all told.
        files: what to read.
    """

    steps: int
    files: tuple[str, ...] = ()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)


def test_words_override_the_recipe_and_the_recipe_the_defaults(tmp_path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text("steps: 7\nfiles: [a, b]\noptimizer: {learning_rate: 1e-3, name: lion}\n")
    run = load_settings(Run, recipe, ["optimizer.learning_rate=1e-4", "files=[c]"])
    assert run == Run(
        steps=7, files=("c",), optimizer=OptimizerConfig(learning_rate=1e-4, name="lion")
    )


def test_a_recipe_may_be_python(tmp_path):
    recipe = tmp_path / "run.py"
    recipe.write_text(
        "from tests.training.test_config_loader import Run\n"
        "config = Run(steps=3 * 7, files=('x',))\n"
    )
    assert load_settings(Run, recipe, ["steps=8"]) == Run(steps=8, files=("x",))


def test_settings_survive_being_written_down():
    run = Run(steps=3, optimizer=OptimizerConfig(rules=(("a.*", 0.0), (".*", 1.0))))
    assert (
        load_settings(Run, None, [f"{key}={value}" for key, value in to_tree(run).items()]) == run
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=many"], "steps: .*integer.*'many'"),
        (
            ["steps=1", "optimizer.lr=1"],
            r"unknown settings: optimizer\.lr; there are: steps, files",
        ),
        (["steps=1", "optimizer.name=sgd"], r"optimizer\.name.*'adamw'"),
        (["steps=1", "optimizer.b1=2"], "b1 must be within"),
        ([], "steps must be set: steps="),
        (["steps"], "is not key=value"),
        (["steps=[1"], "cannot be read"),
        (["steps=1", "steps.x=1"], "steps is 1, which has no fields"),
        (["steps=true"], "steps must be no truth value, got True"),
        (["steps=1", "optimizer.learning_rate=yes"], r"optimizer\.learning_rate must be no truth"),
        (["steps=1", "optimizer.rules=[['.*', no]]"], r"optimizer\.rules must be no truth value"),
        (["steps=1", "optimizer.clip_norm=1e-46"], r"optimizer\.clip_norm must be positive"),
        (["steps=1" + "0" * 5000], "the value cannot be read"),
        (["steps=2024-13-45"], "the value cannot be read"),
        (["steps=!!float x"], "the value cannot be read"),
        (["steps=!!bool x"], "the value cannot be read"),
        (["steps=!!timestamp x"], "the value cannot be read"),
        (["steps=" + "[" * 5000], "the value cannot be read"),
    ],
)
def test_what_does_not_fit_is_named(words, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(Run, None, words)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", None, "No such file"),
        ("a.yaml", "[", "is not YAML"),
        ("a.yaml", "3", "must be a mapping"),
        ("a.yaml", "steps: 2024-13-45", "is not YAML"),
        ("a.yaml", "optimizer: {clip_norm: true}", r"optimizer\.clip_norm must be no truth value"),
        ("a.py", "x = 1", "must define `config`"),
        ("a.py", "x = 1\nimport absent_module", r"a\.py, line 2: ModuleNotFoundError: No module"),
        ("a.py", "x = (", r"a\.py: SyntaxError: .* line 1"),
        ("b.py", None, "there is no such file"),
        ("a.toml", "x = 1", r"expected a \.yaml or \.py"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_settings(Run, tmp_path / name, ["steps=1"])


def test_every_field_is_described():
    fields = {name: (default, meaning) for name, default, _, meaning in describe(Run)}
    assert fields["steps"] == ("(required)", "how many updates, all told.")
    assert fields["files"] == ((), "what to read.")
    assert fields["optimizer.clip_norm"][0] == 1.0
    assert all(meaning for _, meaning in fields.values())


def test_differences_name_the_fields():
    old = to_tree(Run(steps=1))
    new = to_tree(Run(steps=1, optimizer=OptimizerConfig(clip_norm=2.0)))
    assert differences(old, new) == ["optimizer.clip_norm was 1.0 and is 2.0"]


def test_differences_name_the_fields_of_a_list_s_items():
    old = {"train": [{"path": "a", "weight": 1.0}, {"path": "b"}]}
    new = {"train": [{"path": "a", "weight": 2.0}, {"path": "b"}]}
    assert differences(old, new) == ["train[0].weight was 1.0 and is 2.0"]
    assert differences(old, {"train": []}) == [f"train was {old['train']!r} and is []"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluation.metric=mAP", "evaluation.metric 'mAP' is not measured: expected loss, nll"),
        ("evaluation.metric=los", r"is not measured.*\(did you mean loss\?\)"),
        ("evaluation.num_beams=100000", r"num_beams must be within \[1, 1024\], got 100000"),
        ("data.workers=100000", r"data.workers must be within \[0, 1024\], got 100000"),
        ("lora.rank=99999999999", r"lora.rank must be within \[0, 65536\]"),
    ],
)
def test_what_would_end_a_run_later_is_refused_at_once(word, message):
    words = ["directory=a", "steps=1", "model.start=shapes", "data.train=[{kind: jsonl, path: a}]"]
    load_settings(TrainConfig, None, words)
    with pytest.raises(SettingsError, match=message):
        load_settings(TrainConfig, None, [*words, word])
