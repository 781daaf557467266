import pytest

from florence_jax.checkpoint.param_tree import flatten
from florence_jax.config import base, tiny
from florence_jax.model import abstract_params
from florence_jax.training.optimizer import RuleError, assign_param_groups

CONFIG = tiny()
PATHS = [path for path, _ in flatten(abstract_params(CONFIG))]


def test_the_first_rule_that_matches_decides():
    rules = (("vision_tower/stages/0/.*", 0.0), ("vision_tower/.*", 0.1), (".*", 1.0))
    param_groups = assign_param_groups(PATHS, rules, CONFIG)
    assert param_groups["vision_tower/stages/0/embed/conv/kernel"].rate == 0.0
    assert param_groups["vision_tower/stages/1/embed/conv/kernel"].rate == 0.1
    assert param_groups["shared/embedding"].rate == 1.0
    assert param_groups.keys() == set(PATHS)
    frozen = {path for path, group in param_groups.items() if not group.trains}
    assert {path for path in frozen if path != "projector/temporal_positions"} == {
        path for path in PATHS if path.startswith("vision_tower/stages/0/")
    }


def test_the_references_constant_table_never_trains():
    assert not assign_param_groups(PATHS, ((".*", 1.0),), CONFIG)[
        "projector/temporal_positions"
    ].trains


def test_norms_biases_and_positions_are_not_decayed():
    param_groups = assign_param_groups(PATHS, ((".*", 1.0),), CONFIG)
    decayed = {path for path, group in param_groups.items() if group.decayed}
    assert {path.rpartition("/")[2] for path in decayed} == {"kernel", "embedding"}
    assert decayed == {path for path in PATHS if path.endswith(("/kernel", "/embedding"))}


def test_layer_decay_falls_from_the_decoders_top_to_the_pixels():
    config = base()
    paths = [path for path, _ in flatten(abstract_params(config))]
    param_groups = assign_param_groups(paths, ((".*", 1.0),), config, layer_decay=0.5)
    rate = {path: group.rate for path, group in param_groups.items()}
    # Twelve DaViT blocks, the projector, six encoder and six decoder layers.
    assert rate["decoder/layers/5/fc1/kernel"] == 1.0
    assert rate["decoder/layers/0/fc1/kernel"] == 0.5**5
    assert rate["encoder/layers/5/fc1/kernel"] == 0.5**6
    assert rate["shared/embedding"] == rate["projector/proj/kernel"] == 0.5**12
    assert rate["vision_tower/stages/3/blocks/0/channel/mlp/fc1/kernel"] == 0.5**13
    assert rate["vision_tower/stages/0/embed/conv/kernel"] == 0.5**25


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("decoder/.*", 1.0),), "match no rule"),
        (((".*", 1.0), ("decoder/.*", 0.0)), "'decoder/.\\*' decides for no parameter"),
        (((".*", 0.0),), "nothing is left to train"),
        ((("(", 1.0),), "not a regular expression"),
    ],
)
def test_rules_that_do_not_say_one_thing_of_everything_are_refused(rules, message):
    with pytest.raises(RuleError, match=message):
        assign_param_groups(PATHS, rules, CONFIG)
