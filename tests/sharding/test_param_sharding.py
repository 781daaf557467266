"""Meshes, rules and layouts; no device is needed for any of it but the last lines' one."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from florence_jax.cli.train import main
from florence_jax.sharding import (
    MeshShape,
    Rule,
    RuleError,
    Rules,
    data_share,
    load_rules,
    make_layout,
    make_mesh,
    parse_mesh,
)
from tests.sharding.golden_table import GOLDEN, MESHES, abstract_mesh, layout_of, lines

SHAPES = {"table": (61, 16), "a/kernel": (16, 6), "a/bias": (6,)}


def rules(*table):
    return Rules("mine", tuple(Rule(*row) for row in table))


def test_a_mesh_is_named_by_its_axes():
    shape = parse_mesh("data=-1, tensor=2")
    assert shape == MeshShape(data=-1, tensor=2)
    assert shape.resolved(8) == MeshShape(data=4, tensor=2)
    assert str(shape.resolved(8)) == "data=4,tensor=2"
    assert MeshShape(dcn_data=2, fsdp=-1).resolved(8).fsdp == 4


@pytest.mark.parametrize("text", ["rows=2", "data", "data=x", "data=2,data=2", "", "data=0"])
def test_a_mesh_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="mesh"):
        parse_mesh(text)


def test_a_mesh_for_another_number_of_devices_is_refused():
    with pytest.raises(ValueError, match="6 devices, and there are 8"):
        MeshShape(data=3, tensor=2).resolved(8)
    with pytest.raises(ValueError, match="multiple of 3 devices"):
        MeshShape(data=-1, tensor=3).resolved(8)
    with pytest.raises(ValueError, match="at most one"):
        MeshShape(data=-1, fsdp=-1)


def test_the_first_rule_that_matches_decides():
    table = rules((".*/kernel", P("fsdp")), (".*", P()))
    layout = make_layout(table, SHAPES, abstract_mesh({"fsdp": 2}))
    assert layout.specs == {"table": P(), "a/kernel": P("fsdp"), "a/bias": P()}


def test_a_parameter_without_a_rule_and_a_rule_without_a_parameter_are_named():
    with pytest.raises(RuleError, match=r"2 parameters match no rule: table, a/bias") as error:
        make_layout(rules((".*/kernel", P()), ("b/.*", P())), SHAPES, abstract_mesh({}))
    assert "'b/.*' decides for no parameter" in str(error.value)
    # A rule that another one hides is as useless as one that matches nothing.
    with pytest.raises(RuleError, match=r"'table' decides for no parameter"):
        make_layout(rules((".*", P()), ("table", P())), SHAPES, abstract_mesh({}))


def test_an_unknown_or_doubled_axis_is_refused():
    with pytest.raises(RuleError, match="names model: axes are"):
        Rule(".*", P("model"))
    with pytest.raises(RuleError, match="twice"):
        Rule(".*", P("fsdp", "fsdp"))
    with pytest.raises(RuleError, match="not a regular expression"):
        Rule("(", P())


def test_what_does_not_divide_is_whole_and_reported():
    table = rules((".*", P("fsdp")))
    layout = make_layout(table, SHAPES, abstract_mesh({"fsdp": 4}))
    assert layout.specs == {"table": P(), "a/kernel": P("fsdp"), "a/bias": P()}
    assert [str(one).split(":")[0] for one in layout.replicated] == ["table", "a/bias"]
    assert "dimension 0 of 61 is whole on every device: fsdp would divide it into 4" in str(
        layout.replicated[0]
    )


def test_an_odd_vocabulary_is_filled_up_and_stored_as_it_is():
    table = rules(("table", P("tensor", "fsdp"), True), (".*", P()))
    layout = make_layout(table, SHAPES, abstract_mesh({"fsdp": 2, "tensor": 4}))
    assert layout.replicated == ()
    assert layout.shape("table") == (64, 16)
    assert layout.sharding("table").shard_shape((64, 16)) == (16, 8)
    # In its true shape another dimension is divided as often.
    assert layout.true_sharding("table").shard_shape((61, 16)) == (61, 2)
    assert layout.bytes_per_device() == 4 * (16 * 8 + 16 * 6 + 6)


def test_several_axes_divide_one_dimension():
    table = rules(("a/kernel", P(("data", "fsdp"))), (".*", P()))
    layout = make_layout(table, SHAPES, abstract_mesh({"data": 2, "fsdp": 4}))
    assert layout.sharding("a/kernel").shard_shape((16, 6)) == (2, 6)


def test_a_table_is_read_from_a_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'rules = [\n  ["table", ["tensor", "fsdp"], "pad"],\n'
        '  [".*/kernel", [["data", "fsdp"], ""]],\n  [".*", []],\n]\n'
    )
    found = load_rules(file)
    assert found.name == str(file)
    assert found.table == (
        Rule("table", P("tensor", "fsdp"), True),
        Rule(".*/kernel", P(("data", "fsdp"), None)),
        Rule(".*", P()),
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("rules = [", "not TOML"),
        ("table = []", "expected one list"),
        ('rules = [["a"]]', "is not"),
        ('rules = [["a", [1]]]', "no axis"),
        ('rules = [["a", ["model"]]]', "names model"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, problem):
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(RuleError, match=problem):
        load_rules(file)


def test_neither_a_preset_nor_a_file_is_refused(tmp_path):
    with pytest.raises(RuleError, match="neither a preset"):
        load_rules("zero3")
    with pytest.raises(RuleError, match="No such file"):
        load_rules(tmp_path / "none.toml")


@pytest.mark.parametrize("preset", MESHES)
def test_every_parameter_lies_where_the_golden_table_says(preset):
    """`python -m tests.sharding.golden_table` writes it anew: read the difference."""
    assert "\n".join(lines(preset)) + "\n" == (GOLDEN / f"{preset}.txt").read_text()


@pytest.mark.parametrize("size", ["base", "large"])
def test_fsdp_over_256_devices_leaves_little_whole(size):
    layout = layout_of(size, "fsdp")
    total = sum(math.prod(shape) for shape in layout.shapes.values())
    whole = sum(math.prod(shape) for path, shape in layout.shapes.items() if not layout.specs[path])
    unintended = {one.path for one in layout.replicated}
    assert sum(math.prod(layout.shapes[path]) for path in unintended) < 0.02 * total
    # Vectors are whole by the table, and are little too.
    assert whole < 0.02 * total
    # In bytes, a device holds its 256th of the rest and no more.
    assert layout.bytes_per_device() < 4 * (whole + (total - whole) / 256) * 1.001


def test_a_mesh_of_one_device_has_auto_axes_and_brings_whole_batches():
    mesh = make_mesh("data=-1", jax.devices()[:1])
    assert mesh.shape == {"data": 1, "fsdp": 1, "tensor": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert data_share(mesh) == (0, 1)


def test_the_program_takes_mesh_and_rules_as_flags(capsys):
    flags = [
        *("--directory", "x", "--steps", "1", "--data.image-size", "64", "64"),
        *("--model.architecture", "tiny", "--model.processor", "bytes"),
        *("--data.train", '[{"kind": "jsonl", "path": "a"}]'),
    ]
    assert main([*flags, "--mesh", "rows=2"]) == 1
    assert "'rows=2' is not AXIS=SIZE" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "sent"), [("bfloat16", "bf16"), ("float32", "f32")])
def test_matrices_are_cast_before_they_are_gathered(dtype, sent):
    """The program asks for it, and for gradients that are summed and cut before they are cast.

    XLA:CPU gathers no bfloat16: `tests/benchmarks/test_tpu_estimate.py` compiles it for a TPU.
    """
    mesh = abstract_mesh({"fsdp": 2})
    table = rules(("table|.*/kernel", P(None, "fsdp")), (".*", P("fsdp")))
    layout = make_layout(table, SHAPES, mesh)

    def update(params):
        def loss(params):
            whole = layout.gather_for_compute(params, dtype)
            assert whole["a/kernel"].dtype == dtype
            # Norms and biases are added in float32.
            assert whole["a/bias"].dtype == jnp.float32
            return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in whole.values())

        return jax.grad(loss)(params)

    params = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.sharding(path))
        for path, shape in SHAPES.items()
    }
    found = jax.eval_shape(update, params)
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}
    text = jax.jit(update).trace(params).lower(lowering_platforms=("tpu",)).as_text()
    asked = re.findall(r"sharding_constraint.*: tensor<61x16x(\w+)>", text)
    # The part, the whole; of the gradient the whole, the part.
    assert asked == [sent] * (4 if dtype == "bfloat16" else 3)
