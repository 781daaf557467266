"""The update, on the smallest model that has every kind of layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from florence_jax.model import Model
from florence_jax.training.lora import init_factors, merge
from florence_jax.training.optimizer import (
    assign_param_groups,
    build_optimizer,
    learning_rate_schedule,
)
from florence_jax.training.settings import LoraConfig, OptimizerConfig
from florence_jax.training.state import new_state, not_finite
from florence_jax.training.step import (
    LossFn,
    _branched_or_selected,
    build_evaluation,
    build_step,
)
from tests.training.small import CONFIG, small_batch, small_params

# Dropout and drop-path off, so that what is compared is a function of the weights alone.
QUIET = dataclasses.replace(
    CONFIG,
    vision=dataclasses.replace(CONFIG.vision, drop_path_rate=0.0),
    text=dataclasses.replace(
        CONFIG.text, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0
    ),
)
OBJECTIVE = LossFn(model=Model(config=QUIET))


# Everything at once, so that one compiled program serves most tests.
DEFAULT = OptimizerConfig(
    learning_rate=1e-2,
    warmup_steps=4,
    weight_decay=0.01,
    ema_decay=0.9,
    rules=((r".*/conv1/.*", 0.0), (r"decoder/.*", 0.5), (r".*", 1.0)),
)


@functools.cache
def prepared(config=DEFAULT, objective=OBJECTIVE):
    flat = small_params()
    param_groups = assign_param_groups(flat, config.rules, CONFIG, layer_decay=config.layer_decay)
    trainable = {path: leaf for path, leaf in flat.items() if param_groups[path].trains}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    schedule = learning_rate_schedule(config, 100)
    optimizer = build_optimizer(config, schedule, {path: param_groups[path] for path in trainable})
    state = new_state(trainable, frozen, optimizer, with_ema=config.ema_decay > 0)
    step = build_step(objective, optimizer, schedule, seed=0, ema_decay=config.ema_decay)
    return state, jax.jit(step)


def assert_close(actual, expected, tolerance):
    # Against the largest entry of the whole tree: some leaves, as a key's bias, are zero in theory.
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * largest),
        actual,
        expected,
    )


def test_micro_batches_of_unequal_lengths_make_the_same_update_as_one_batch():
    # A mean of means would weigh the short micro-batch's tokens more.
    micro = small_batch(micro=2, rows=2)
    tokens = (np.asarray(micro.labels) != -100).sum((1, 2))
    assert tokens[0] != tokens[1]
    whole = jax.tree.map(lambda leaf: leaf.reshape(1, 4, *leaf.shape[2:]), micro)
    state, step = prepared()
    once, metrics_once = step(state, whole)
    twice, metrics_twice = step(state, micro)
    np.testing.assert_allclose(metrics_twice.loss, metrics_once.loss, rtol=1e-6)
    np.testing.assert_allclose(metrics_twice.grad_norm, metrics_once.grad_norm, rtol=1e-5)
    assert metrics_once.tokens == metrics_twice.tokens == tokens.sum()
    # Adam's first moments are the gradient itself, scaled; its update divides the size away.
    first, second = (optax.tree.get(moved.opt_state, "mu") for moved in (once, twice))
    assert_close(second, first, 1e-6)


def test_a_row_without_labels_weighs_nothing():
    state, step = prepared()
    batch = small_batch(rows=4)
    batch.labels[0, 1] = -100
    noise = batch._replace(images=batch.images.copy(), input_ids=batch.input_ids.copy())
    noise.images[0, 1] = 7
    noise.input_ids[0, 1] = 9
    first, metrics = step(state, batch)
    second, _ = step(state, noise)
    assert metrics.examples == 3
    jax.tree.map(np.testing.assert_array_equal, first.trainable, second.trainable)


def test_what_is_frozen_does_not_move_and_has_no_optimizer_state():
    state, step = prepared()
    after, metrics = step(state, small_batch())
    frozen = {path for path in small_params() if "/conv1/" in path}
    assert set(after.frozen) == frozen | {"projector/temporal_positions"}
    jax.tree.map(np.testing.assert_array_equal, after.frozen, dict(state.frozen))
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(
        leaf.size for leaf in after.trainable.values()
    )
    # Adam's first update is the learning rate itself, up to the denominator's epsilon.
    assert metrics.learning_rate == np.float32(1e-2 / 4)
    for path, rate in (("decoder/layers/0/fc1/bias", 0.5), ("encoder/layers/0/fc1/bias", 1.0)):
        change = np.abs(after.trainable[path] - state.trainable[path]).max()
        np.testing.assert_allclose(change, rate * 1e-2 / 4, rtol=1e-3)


def test_it_learns_by_heart_and_its_average_lags_behind():
    state, step = prepared()
    batch = small_batch()
    losses = []
    for _ in range(80):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.1 < losses[0]
    evaluate = jax.jit(build_evaluation(OBJECTIVE))
    now = evaluate({**state.frozen, **state.trainable}, batch)
    average = evaluate({**state.frozen, **state.ema}, batch)
    assert now.loss < average.loss < losses[0] * now.tokens
    assert now.correct == now.tokens


def test_dropout_is_a_function_of_seed_and_step():
    # Few gradients compile in a third of the time, and draw no other masks.
    config = dataclasses.replace(DEFAULT, rules=((r"decoder/.*/fc2/.*", 1.0), (r".*", 0.0)))
    state, step = prepared(config, LossFn(model=Model(config=CONFIG)))
    batch = small_batch()
    first, metrics = step(state, batch)
    again, same = step(state, batch)
    _, later = step(dataclasses.replace(state, step=state.step + 1), batch)
    assert metrics.loss == same.loss != later.loss
    jax.tree.map(np.testing.assert_array_equal, first.trainable, again.trainable)


def test_after_a_loss_that_is_not_finite_nothing_changes_any_more():
    state, step = prepared()
    good, _ = step(state, small_batch())
    path = "decoder/layers/0/fc1/kernel"
    sick = dict(good.frozen) | {
        "projector/temporal_positions": np.full((100, 8), np.nan, np.float32)
    }
    failed, metrics = step(dataclasses.replace(good, frozen=sick), small_batch())
    assert not np.isfinite(metrics.loss)
    assert failed.failed_at == 1
    np.testing.assert_array_equal(failed.trainable[path], good.trainable[path])
    later, _ = step(dataclasses.replace(failed, frozen=good.frozen), small_batch())
    assert later.failed_at == 1
    jax.tree.map(np.testing.assert_array_equal, later.trainable, good.trainable)
    jax.tree.map(np.testing.assert_array_equal, later.opt_state, good.opt_state)


def test_an_update_that_is_not_finite_is_not_applied():
    # Loss and gradient are fine; the moments are such that Adam divides its way to infinity.
    state, step = prepared()
    good, _ = step(state, small_batch())
    path = "decoder/layers/0/fc1/kernel"

    def with_moments(mu, nu):
        def moments(keys, leaf):
            names = [str(getattr(key, "name", getattr(key, "key", ""))) for key in keys]
            if path not in names or ("mu" not in names and "nu" not in names):
                return leaf
            return jnp.full_like(leaf, mu if "mu" in names else nu)

        changed = jax.tree_util.tree_map_with_path(moments, good.opt_state)
        return dataclasses.replace(good, opt_state=changed)

    for mu, nu in ((3e38, 0.0), (-3e38, 0.0), (1.0, -1.0)):
        before = with_moments(mu, nu)
        after, metrics = step(before, small_batch())
        assert np.isfinite([metrics.loss, metrics.grad_norm]).all()
        assert (after.failed_at, after.step) == (1, 1)
        for name in ("trainable", "opt_state", "ema"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert step(with_moments(1.0, 1.0), small_batch())[0].failed_at == -1


def test_a_state_that_is_not_finite_is_named():
    state, _ = prepared()
    assert not_finite(state) == []
    path = "decoder/layers/0/fc1/bias"
    sick = dict(state.trainable) | {path: np.full(state.trainable[path].shape, np.inf, np.float32)}
    assert not_finite(dataclasses.replace(state, trainable=sick)) == [f"trainable.{path}"]


@pytest.mark.parametrize(("platform", "selects"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_only_a_cpu_branches_on_whether_a_step_was_good(platform, selects):
    # A branch makes the host wait on a GPU, and a selection costs a CPU the state once more.
    def kept(good, x):
        return _branched_or_selected(good, lambda state, more: state + more, x, x)

    traced = jax.jit(kept).trace(True, jnp.ones(3))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.select" in text) is selects
    assert kept(True, jnp.ones(3)).tolist() == [2.0] * 3
    assert kept(False, jnp.ones(3)).tolist() == [1.0] * 3


def test_adapters_start_at_the_base_and_merge_into_it():
    lora = LoraConfig(rank=2, alpha=8.0)
    flat = small_params()
    factors = init_factors(lora, {p: leaf.shape for p, leaf in flat.items()}, jax.random.key(0))
    batch = jax.tree.map(lambda leaf: leaf[0], small_batch())
    loss = jax.jit(LossFn(model=Model(config=QUIET), lora=lora))
    plain = loss(flat, batch, None).loss
    assert loss({**flat, **factors}, batch, None).loss == plain

    draw = np.random.default_rng(0)
    moved = {
        p: jnp.asarray(0.1 * draw.normal(size=f.shape), jnp.float32) for p, f in factors.items()
    }
    adapted = loss({**flat, **moved}, batch, None).loss
    assert abs(adapted - plain) > 1e-2
    np.testing.assert_allclose(loss(merge(flat, moved, lora), batch, None).loss, adapted, rtol=1e-5)


def test_dropout_of_adapters_is_each_tokens_own():
    lora = LoraConfig(rank=2, dropout=0.5, targets=".*/fc1/kernel")
    flat = small_params()
    factors = init_factors(lora, {p: leaf.shape for p, leaf in flat.items()}, jax.random.key(0))
    factors = {path: jnp.ones_like(leaf) for path, leaf in factors.items()}
    loss = jax.jit(LossFn(model=Model(config=QUIET), lora=lora))
    batch = jax.tree.map(lambda leaf: leaf[0], small_batch())
    one, other = jax.random.split(jax.random.key(1))
    losses = [float(loss({**flat, **factors}, batch, key).loss) for key in (one, other, one)]
    assert losses[0] == losses[2] != losses[1]
    assert float(loss({**flat, **factors}, batch, None).loss) not in losses


@pytest.mark.parametrize("targets", ["nothing", ".*/conv1/kernel", "shared/embedding"])
def test_adapters_belong_on_linear_kernels_alone(targets):
    with pytest.raises(ValueError, match=r"lora\.targets"):
        init_factors(
            LoraConfig(rank=2, targets=targets),
            {p: leaf.shape for p, leaf in small_params().items()},
            jax.random.key(0),
        )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("lion", "float32"),
        ("adafactor", "float32"),
        ("adamw", "bfloat16"),
        ("lion", "bfloat16"),
    ],
)
def test_the_other_optimizers_lower_the_loss(name, dtype):
    # Of a regression: to the optimizer a model is a dict of gradients.
    config = OptimizerConfig(
        name=name, learning_rate=3e-2, warmup_steps=2, schedule="constant", moment_dtype=dtype
    )
    draw = np.random.default_rng(0)
    inputs, wanted = draw.normal(size=(64, 256)), draw.normal(size=(64, 160))
    params = {"fc1/kernel": jnp.asarray(0.1 * draw.normal(size=(256, 160)), jnp.float32)}
    params["fc1/bias"] = jnp.zeros(160)
    param_groups = assign_param_groups(params, ((".*", 1.0),), CONFIG)
    optimizer = build_optimizer(config, learning_rate_schedule(config, 60), param_groups)

    def loss(params):
        return jnp.square(inputs @ params["fc1/kernel"] + params["fc1/bias"] - wanted).mean()

    @jax.jit
    def update(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before, state = loss(params), optimizer.init(params)
    moments = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == (256, 160)]
    # Both moments of AdamW, the one of Lion, none of Adafactor, which keeps rows and columns.
    kept = {"adamw": [dtype, "float32"], "lion": [dtype], "adafactor": []}
    assert moments == kept[name]
    for _ in range(60):
        params, state = update(params, state)
    assert loss(params) < 0.5 * before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_the_other_optimizers_lower_a_models_loss(name):
    state, step = prepared(OptimizerConfig(name=name, learning_rate=3e-3, warmup_steps=2))
    batch = small_batch()
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.7 * losses[0]


def test_a_first_moment_in_bfloat16_takes_nearly_the_same_steps():
    """Against optax's own AdamW in float32; one rounding of the moment a step."""
    config = OptimizerConfig(learning_rate=1e-2, schedule="constant", clip_norm=0.0)
    config = dataclasses.replace(config, moment_dtype="bfloat16")
    params = {"fc1/kernel": jnp.ones((8, 8))}
    groups = assign_param_groups(params, ((".*", 1.0),), CONFIG)
    ours = build_optimizer(config, learning_rate_schedule(config, 10), groups)
    theirs = optax.adamw(1e-2, weight_decay=0.0)
    state, other = ours.init(params), theirs.init(params)
    for step in range(10):
        gradient = {"fc1/kernel": jnp.cos(jnp.arange(64.0) + step).reshape(8, 8)}
        moved, state = ours.update(gradient, state, params)
        expected, other = theirs.update(gradient, other, params)
        np.testing.assert_allclose(
            moved["fc1/kernel"], expected["fc1/kernel"], rtol=2**-7, atol=1e-2 * 2**-7
        )


def test_adafactor_has_no_first_moment():
    with pytest.raises(ValueError, match=r"optimizer\.moment_dtype is 'bfloat16' and adafactor"):
        OptimizerConfig(name="adafactor", moment_dtype="bfloat16")


def test_the_schedule_rises_and_falls():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    schedule = learning_rate_schedule(config, 20)
    rates = [float(schedule(step)) for step in range(20)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.1 < rates[-1] < 0.12
    with pytest.raises(ValueError, match="warmup_steps is 30 and the run has 20"):
        learning_rate_schedule(OptimizerConfig(warmup_steps=30), 20)


@functools.cache
def loss_and_gradient(remat):
    # With dropout: the second time must draw what the first did.
    batch = jax.tree.map(lambda leaf: leaf[0], small_batch())
    objective = LossFn(model=Model(config=CONFIG), remat=remat)

    def loss(params):
        return objective(params, batch, jax.random.key(1)).loss

    return jax.jit(jax.value_and_grad(loss)).lower(small_params()).compile()


@pytest.mark.parametrize("remat", ["blocks", "dots"])
def test_what_is_computed_again_changes_neither_loss_nor_gradient(remat):
    kept, again = loss_and_gradient("none"), loss_and_gradient(remat)
    (loss, gradient), (same, close) = kept(small_params()), again(small_params())
    assert same == loss
    assert_close(close, gradient, 1e-6)
    recomputed = again.as_text().count("rematted_computation")
    assert recomputed > kept.as_text().count("rematted_computation") == 0


def test_bfloat16_computes_on_float32_master_weights():
    half = LossFn(model=Model(config=QUIET, dtype="bfloat16"))
    config = dataclasses.replace(DEFAULT, rules=((r"vision_tower/.*", 0.0), (r".*", 1.0)))
    state, step = prepared(config, half)
    batch = small_batch()
    after, metrics = step(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.trainable)} == {np.dtype(np.float32)}
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {np.dtype(np.float32)}
    exact = jax.jit(build_evaluation(OBJECTIVE))({**state.frozen, **state.trainable}, batch)
    assert metrics.nll != exact.nll / exact.tokens, "computed in float32"
    np.testing.assert_allclose(metrics.nll, exact.nll / exact.tokens, rtol=2e-2)
    # What bfloat16 weights would round away is kept.
    kernel = after.trainable["encoder/layers/0/fc1/kernel"]
    assert (kernel != kernel.astype(jnp.bfloat16)).mean() > 0.9
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]
