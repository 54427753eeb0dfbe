"""`train` as a function: what transformations of JAX it takes, how deep it is, and the joint update by hand."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Walk
from support import arrays, assert_same_bits, by_cost, quick_jit

import purejaxppo
from purejaxppo import A2C, PPO, TRPO, Config, init, make_train, over_runs, update_step
from purejaxppo.advantages import standardize
from purejaxppo.agent import Agent
from purejaxppo.errors import UsageError
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.optimizers import with_moments_of
from purejaxppo.parallel.vmapping import in_lots
from purejaxppo.rollout import rollout
from purejaxppo.train import learning_batch

SMALL = {"num_envs": 4, "num_steps": 4, "hidden_sizes": (4,), "num_minibatches": 2, "num_epochs": 2}
KEY = jax.random.key(3)


@pytest.mark.parametrize("name", by_cost(["run", "env", "net"], ["env"]))
def test_a_vmap_with_a_name_of_ones_own_is_like_any_other(name):
    """No axis of a user's is taken for one of the device mesh."""
    train = make_train(Config(env=Walk(), algo=A2C(), total_steps=16, **SMALL))
    keys = jax.random.split(KEY, 2)
    plain, named = (jax.make_jaxpr(jax.vmap(train, axis_name=axis))(keys) for axis in ("anything", name))
    assert str(named).replace(name, "anything") == str(plain).replace(name, "anything")


@pytest.mark.thorough
def test_gradients_go_through_an_update():
    """Meta-gradients: of a loss after two updates in numbers of the config; backward equals forward."""
    config = Config(env=Walk(continuous=True), algo=PPO(), learning_rate=1e-2, **SMALL)
    start = init(config, KEY)

    def outcome(rate):
        own = config.replace(learning_rate=rate, anneal_learning_rate=False)
        state, _ = jax.lax.scan(lambda state, _: update_step(own, state), start, None, 2)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves((state.policy, state.critic)))

    backward, (_, forward) = quick_jit(lambda x: (jax.grad(outcome)(x), jax.jvp(outcome, (x,), (1.0,))))(1e-2)
    assert np.isfinite(backward)
    assert abs(backward) > 1e-3
    np.testing.assert_allclose(backward, forward, rtol=1e-3)


@pytest.mark.thorough
def test_gradients_go_through_the_whole_of_training_and_forward_ones_through_trpo():
    """In a number on which the first state depends; and in one of a method that works in lots."""
    config = Config(env=Walk(continuous=True), algo=A2C(), total_steps=32, **SMALL)

    def outcome(x):
        return jnp.sum(make_train(config.replace(log_std_init=x))(KEY)[1]["policy_loss"])

    backward, forward = quick_jit(lambda x: (jax.grad(outcome)(x), jax.jacfwd(outcome)(x)))(0.1)
    np.testing.assert_allclose(backward, forward, rtol=1e-4)
    assert abs(backward) > 1e-3
    config = config.replace(algo=TRPO())
    start = init(config, KEY)

    def moved(max_kl):
        return update_step(config.replace(algo=TRPO(max_kl=max_kl)), start)[1]["step_norm"]

    slopes = quick_jit(jax.vmap(jax.jacfwd(moved)))(jnp.array([0.01, 0.02]))
    differences = quick_jit(jax.vmap(lambda x: (moved(1.01 * x) - moved(0.99 * x)) / (0.02 * x)))
    np.testing.assert_allclose(slopes, differences(jnp.array([0.01, 0.02])), rtol=1e-2)


def test_nested_vmaps_go_run_by_run_too():
    jaxpr = jax.make_jaxpr(jax.vmap(jax.vmap(in_lots(jnp.sin, 1))))(jnp.ones((3, 5, 4)))
    assert str(jaxpr).count("scan[") == 2
    many = jax.make_jaxpr(jax.vmap(in_lots(jnp.sin, 2)))(jnp.ones((6, 4)))
    assert "f32[2,4] = sin" in str(many)


def test_a_run_takes_one_number_of_each_kind():
    for config in (Config(gamma=jnp.ones(4)), Config(algo=PPO(clip_eps=jnp.ones((2, 3))))):
        with pytest.raises(UsageError, match=r"has shape \(.*\), and a run has one number; jax.vmap over it"):
            make_train(config)


class Quiet(PPO):
    """A rule that takes steps of its own."""

    def update(self, key, policy, params, state, batch, optimizer):
        moved = jax.tree.map(lambda x: 0.99 * x, params)
        return moved, state, {"policy_loss": jnp.zeros(()), "grad_norm": jnp.zeros(()), "several": jnp.zeros(3)}


def test_what_an_update_rule_must_return_is_told():
    own = Config(env=Walk(), algo=Quiet(), total_steps=64, **SMALL)
    with pytest.raises(UsageError, match=r"Quiet returns no metric value_loss; leave joint_update or shared_torso out"):
        jax.eval_shape(make_train(own.replace(joint_update=True)), KEY)
    _, metrics = jax.eval_shape(make_train(own.replace(eval_interval=2)), KEY)
    assert metrics["several"].shape == (own.num_updates, 3)


@pytest.mark.parametrize("mapped", [False, True])
def test_the_derivative_of_standardised_advantages_that_are_all_equal_is_0(mapped):
    def standardised(scale):
        x = jnp.stack([jnp.ones(4), jnp.arange(4.0)]) * scale
        return jnp.sum(jax.vmap(standardize)(x) if mapped else standardize(x[0]))

    assert abs(quick_jit(jax.grad(standardised))(1.0)) < 1e-5


@pytest.mark.parametrize("optimizer", by_cost(["adam", "rmsprop"], ["adam"]))
def test_gradients_go_through_updates_of_what_has_no_gradient(optimizer):
    """Rows of an embedding that nothing visits, a norm that nothing limits, and a gradient of zeros."""
    move = MinibatchAdam(1e-2, jnp.inf, 1, 1)
    start = jnp.asarray([1.0, 2.0])
    moments = with_moments_of(optimizer, move.init(start), start)

    def outcome(x, limit, scale):
        loss = lambda params, batch: (scale * x * params[0] ** 2, {})  # noqa: E731
        moved, _, metrics = move.replace(max_grad_norm=limit).minimize(KEY, loss, start, moments, jnp.zeros((1,)))
        return jnp.sum(moved) + metrics["grad_norm"]

    for limit in (jnp.inf, 0.5, jnp.asarray(jnp.inf)):
        for scale in (1.0, 0.0):
            assert np.isfinite(jax.grad(outcome)(1.5, limit, scale))


def test_one_call_of_ppos_loss_is_at_most_14_calls_deep():
    """From `make_train`'s function to the line that clips the ratio; the decorator for precision aside."""
    package, depths = Path(purejaxppo.__file__).parent, []

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_name == "clipped_surrogate":
            frames = []
            while frame:
                frames.append(frame.f_code.co_filename)
                frame = frame.f_back
            depths.append(sum(package in Path(x).parents and Path(x).name != "precision.py" for x in frames))

    train = make_train(Config(env=Walk(), algo=PPO(), total_steps=16, **SMALL))
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        jax.eval_shape(train, KEY)
    finally:
        sys.setprofile(before)
    assert 0 < min(depths) <= max(depths) <= 14


def test_the_joint_update_by_hand():
    """One step of Adam on policy loss + value_coef · ½ (V - target)², its gradient clipped by one norm, in NumPy."""
    one_step = SMALL | {"num_minibatches": 1, "num_epochs": 1}
    config = Config(
        env=Walk(continuous=True),
        algo=PPO(entropy_coef=0.01, normalize_advantages="none"),
        joint_update=True,
        value_coef=0.7,
        max_grad_norm=0.05,
        learning_rate=1e-2,
        value_clip_eps=jnp.inf,
        anneal_learning_rate=False,
        **one_step,
    )
    agent, before = Agent.of(config), init(config, KEY)
    after, metrics = quick_jit(partial(update_step, config))(before)

    @quick_jit
    def collected(state):
        _, rollout_key, _ = jax.random.split(state.key, 3)
        _, transitions, _ = rollout(rollout_key, agent.env, agent.make_policy(state), state.rollout, config.num_steps)
        return learning_batch(agent, state, transitions)[0]

    batch = collected(before)

    def loss(params):
        policy = agent.policy.apply(params[0], batch.obs)
        ratio = jnp.exp(policy.log_prob(batch.action) - batch.log_prob)
        errors = (agent.critic.apply(params[1], batch.obs) - batch.value_target) ** 2
        return -jnp.mean(ratio * batch.advantage) - 0.01 * jnp.mean(policy.entropy()) + 0.7 * 0.5 * jnp.mean(errors)

    gradient = [np.float64(x) for x in arrays(quick_jit(jax.grad(loss))((before.policy, before.critic)))]
    norm = np.sqrt(sum(np.sum(x**2) for x in gradient))
    assert norm > 0.05
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    np.testing.assert_allclose(metrics["value_grad_norm"], norm, rtol=1e-4)
    moved = zip(arrays((before.policy, before.critic)), arrays((after.policy, after.critic)), gradient, strict=True)
    for old, new, g in moved:
        clipped = g * 0.05 / norm  # Adam's first step has m̂ = g, v̂ = g²
        np.testing.assert_allclose(new, old - 1e-2 * clipped / (np.abs(clipped) + 1e-5), rtol=2e-4, atol=2e-5)


def test_what_cannot_be_updated_jointly_is_told():
    with pytest.raises(UsageError, match=r"^joint_update = True is for first-order methods: .*; leave it at False.$"):
        make_train(Config(env=Walk(), algo=TRPO(), joint_update=True, **SMALL))
    config = Config(env=Walk(), algo=PPO(), joint_update=True, **SMALL)
    with pytest.raises(UsageError, match="net must be 1 with shared_torso or joint_update"):
        over_runs(make_train(config), net_shards=2)(jax.random.split(KEY, 1))


def test_over_runs_takes_functions_with_defaults():
    """What is passed counts, not what could be."""
    scaled, keyword = lambda x, scale=2.0: x * scale, partial(lambda x, *, scale: x * scale, scale=2.0)
    x = jnp.arange(4.0)
    for fn in (scaled, keyword):
        assert_same_bits(over_runs(fn)(x), 2.0 * x)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_a_runs_numbers_do_not_depend_on_its_neighbours_whatever_the_keys_are(implementation):
    """Vmapped, keys of RBG would draw from the first one."""
    draw = over_runs(lambda key: jax.random.normal(key, (3,)), jax.devices()[:1])

    def drawn(*seeds):
        return np.asarray(draw(jnp.stack([jax.random.key(seed, impl=implementation) for seed in seeds])))

    np.testing.assert_array_equal(drawn(0, 5), drawn(5, 0)[::-1])
    assert not np.array_equal(drawn(0, 5)[1], drawn(0, 1)[1])
    np.testing.assert_array_equal(drawn(5)[0], jax.random.normal(jax.random.key(5, impl=implementation), (3,)))
