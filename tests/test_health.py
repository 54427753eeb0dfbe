"""Numbers that turn non-finite: the seed that they are in is frozen and named, and no other seed notices."""

import collections
import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Position, StepCounter, Walk
from flax import struct
from support import arrays, assert_same_bits, by_cost, level_1_jit, quick_jit
from test_run import RewardTurnsNaN

from purejaxppo import A2C, Config, init, make_train, run_experiment, update_step
from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.envs.base import BaseEnv
from purejaxppo.errors import UsageError
from purejaxppo.health import CAUSES, cause_of_failure, finite, freeze
from purejaxppo.rundir.metrics import read_metrics
from purejaxppo.train import train_updates
from purejaxppo.types import Failure

SEEDS, UPDATES, STEPS = 4, 5, 16
KEYS = jax.random.split(jax.random.key(0), SEEDS)
NEVER = -1

# What a fault puts in the place of a number. Rewards of 3e38 are finite, but not the sum of two.
VALUES = (jnp.nan, jnp.inf, -jnp.inf, 3e38)


class Fused(NamedTuple):
    """The state of a walk, and in how many steps what goes wrong."""

    walk: Position
    fuse: jax.Array  # int32, 0 or less is never
    place: jax.Array  # int32, 0 is the observation, 1 the reward
    value: jax.Array  # int32, which of VALUES


@dataclasses.dataclass(frozen=True)
class FaultyWalk(Walk, BaseEnv):
    """A walk that does nothing wrong until its state is told to, and then from that step on."""

    def begin_anew(self, key, state):
        """Where every generation begins new episodes, what goes wrong goes with them."""
        begun, obs = self.reset(key)
        return state._replace(walk=begun.walk), obs

    def reset(self, key):
        walk, obs = super().reset(key)
        return Fused(walk, *jnp.asarray([NEVER, 0, 0])), obs

    def step(self, key, state, action):
        walk, obs, reward, terminated, truncated = super().step(key, state.walk, action)
        armed, value = state.fuse > 0, jnp.asarray(VALUES)[state.value]
        now = state.fuse == 1
        obs = jnp.where(now & (state.place == 0), obs.at[1].set(value), obs)
        reward = jnp.where(now & (state.place == 1), value, reward)
        state = state._replace(walk=walk, fuse=jnp.where(state.fuse > 1, state.fuse - 1, state.fuse))
        return state, obs, reward, terminated & ~armed, truncated & ~armed


class Faulty(struct.PyTreeNode):
    """An algorithm of which one parameter turns non-finite when its state says so."""

    algo: object
    published = {}

    def init(self, params):
        return self.algo.init(params), jnp.asarray(NEVER), jnp.asarray(0)

    def update(self, key, policy, params, state, *given):
        return self.spoilt(state, *self.algo.update(key, policy, params, state[0], *given))

    def spoilt(self, state, params, inner, metrics):
        _, fuse, value = state
        leaves, tree = jax.tree.flatten(params)
        leaves[-1] = leaves[-1].at[0].set(jnp.where(fuse == 1, jnp.asarray(VALUES)[value], leaves[-1][0]))
        return jax.tree.unflatten(tree, leaves), (inner, jnp.where(fuse > 1, fuse - 1, fuse), value), metrics


class FaultyStrategy(Faulty):
    """One that evolves members."""

    evolves = True
    envs_per_member = 1

    def ask(self, key, mean, state, num_members):
        return self.algo.ask(key, mean, state[0], num_members)

    def tell(self, mean, state, *given):
        return self.spoilt(state, *self.algo.tell(mean, state[0], *given))


def at(update, step=7):
    """The fuse of a fault in this update, counted from 1, in this step of its rollout."""
    return (update - 1) * STEPS + step


def environment_fault(place, value, update, step=7):
    """One environment's observation (0) or reward (1) becomes VALUES[value]."""

    def arm(state):
        env = state.rollout.env
        told = zip(env[1:], (at(update, step), place, value), strict=True)
        env = Fused(env.walk, *(x.at[0].set(number) for x, number in told))
        return state.replace(rollout=state.rollout._replace(env=env))

    return arm


def parameter_fault(value, update):
    """One of the policy's new parameters becomes VALUES[value]."""

    def arm(state):
        inner, *_ = state.algorithm
        return state.replace(algorithm=(inner, jnp.asarray(update), jnp.asarray(value)))

    return arm


def huge_critic(state):
    """Finite parameters whose V is infinite: 8 features of 1, times 1e38."""
    torso, head = (state.critic["params"][name] for name in ("Torso_0", "Dense_0"))
    torso = jax.tree.map(lambda x: jnp.full_like(x, 100.0 if x.ndim == 1 else 0.0), torso)
    head = jax.tree.map(lambda x: jnp.full_like(x, 1e38), head)
    return state.replace(critic={"params": {"Torso_0": torso, "Dense_0": head}})


def large_critic(state):
    """V = 8e30: V and the advantages are finite, but no square of them."""
    state = huge_critic(state)
    return state.replace(critic=jax.tree.map(lambda x: jnp.where(x == 1e38, 1e30, x), state.critic))


class Fault(NamedTuple):
    """How a seed is made sick before update `before`, and what must be found in update `found`."""

    arm: object
    before: int
    found: int
    cause: str


FAULTS = {
    "observation NaN": Fault(environment_fault(0, 0, 2), 1, 2, "observation"),
    "observation inf in the last step": Fault(environment_fault(0, 1, 3, STEPS), 1, 3, "observation"),
    "reward NaN in the first step": Fault(environment_fault(1, 0, 2, 1), 1, 2, "reward"),
    "reward -inf": Fault(environment_fault(1, 2, 1), 1, 1, "reward"),
    "parameter NaN": Fault(parameter_fault(0, 3), 1, 3, "parameters"),
    "parameter inf": Fault(parameter_fault(1, 1), 1, 1, "parameters"),
    "advantage inf, of finite rewards": Fault(environment_fault(1, 3, 2), 1, 2, "advantage"),
    "advantage NaN, of an infinite V": Fault(huge_critic, 4, 4, "advantage"),
    "loss inf, of finite advantages": Fault(large_critic, 3, 3, "loss"),
    "variance inf, of finite observations": Fault(environment_fault(0, 3, 2), 1, 2, "observation statistics"),
}
# algorithm: continuous actions, normalised observations and rewards
KINDS = {
    "reinforce": (False, False),
    "a2c": (True, True),
    "a2c-tr": (False, False),
    "npg": (True, False),
    "trpo": (False, True),
    "ppo": (True, False),
    "ppo-penalty": (False, True),
    "cem": (True, False),
    "cma-es": (False, True),
}
EVOLUTION = ("cem", "cma-es")  # without critic and advantages; what normalises observations, normalises no rewards
AS_USERS_GET_IT = ("a2c",)  # compiled with all fusions, which takes four times as long
# normalised rewards are clipped, and so do not overflow; and only what is normalised has statistics
ONLY_IF_NORMALISED = {"advantage inf, of finite rewards": False, "variance inf, of finite observations": True}
OF_CRITICS = {x for x, fault in FAULTS.items() if fault.cause in ("advantage", "loss")}
CASES = [
    (name, x)
    for name in KINDS
    for x in FAULTS
    if ONLY_IF_NORMALISED.get(x, KINDS[name][1]) == KINDS[name][1] and not (name in EVOLUTION and x in OF_CRITICS)
]
Record = collections.namedtuple("Record", "obs next_obs reward advantage value value_target")


@functools.cache
def config_of(name):
    continuous, normalized = KINDS[name]
    env, algo, common = FaultyWalk(continuous=continuous), ALGORITHMS[name](), {"hidden_sizes": (8,)}
    common |= {"num_envs": 2, "num_steps": STEPS, "total_steps": UPDATES * 2 * STEPS}
    common |= {"normalize_observations": normalized}
    if name in EVOLUTION:
        return Config(env=env, algo=FaultyStrategy(algo), **common)
    adam = {"num_epochs": 1, "num_minibatches": 2, "normalize_rewards": normalized}
    return Config(env=env, algo=Faulty(algo), **common, **adam)


@functools.cache
def compiled(name):
    """The states of all seeds before training, and the program that makes one update."""
    config = config_of(name)
    start = quick_jit(jax.vmap(functools.partial(init, config)))(KEYS)
    jit = level_1_jit if name in AS_USERS_GET_IT else quick_jit
    return start, jit(jax.vmap(functools.partial(update_step, config)))


def one(tree, seed):
    """A seed's state, as JAX's arrays."""
    return jax.tree.map(lambda x: x[seed], tree)


def arm(state, seed, fault):
    """The states of all seeds, one of them changed."""
    sick = fault(one(state, seed))
    return jax.tree.map(lambda x, new: x.at[seed].set(new), state, sick)


def states_and_metrics(name, seed=None, fault=None):
    """Of all seeds: the state before each update and after the last, and each update's metrics."""
    state, update = compiled(name)
    states, metrics = [], []
    for number in range(1, UPDATES + 1):
        if fault and fault.before == number:
            state = arm(state, seed, fault.arm)
        states.append(state)
        state, measured = update(state)
        metrics.append(measured)
    return [*states, state], metrics


@functools.cache
def healthy(name):
    """The same without a fault."""
    return states_and_metrics(name)


def of(tree, seeds):
    """NumPy's arrays of some seeds; PRNG keys as the words they are made of."""
    return jax.tree.unflatten(jax.tree.structure(tree), [x[seeds] for x in arrays(tree)])


QUICK = ("a2c", "cem")  # for npg and trpo, see what comes after
FEW = [case for case in CASES if case[0] in QUICK]


@pytest.mark.parametrize(("name", "fault"), by_cost(CASES, FEW[::4], FEW))
def test_a_sick_seed_is_frozen_as_it_last_was_and_named_and_the_others_keep_their_bits(name, fault):
    """76 faults, each in a run of its own, in one seed of four."""
    seed, fault = len(name + fault) % SEEDS, FAULTS[fault]
    others = np.delete(np.arange(SEEDS), seed)
    states, metrics = states_and_metrics(name, seed, fault)
    final = of(states[-1], seed)

    assert (int(final.failure.update), int(final.failure.cause)) == (fault.found, 1 + CAUSES.index(fault.cause))
    last_finite = of(states[fault.found - 1], seed)  # before the update that went wrong
    assert_same_bits(final.replace(failure=None), last_finite.replace(failure=None))
    assert int(final.update) == fault.found - 1
    for state in states:
        assert all(np.all(np.isfinite(x)) for x in arrays(state) if x.dtype == np.float32)

    alive = np.stack([measured["alive"] for measured in metrics])
    expected = np.ones((UPDATES, SEEDS))
    expected[fault.found - 1 :, seed] = 0.0
    np.testing.assert_array_equal(alive, expected)
    for measured in metrics[fault.found - 1 :]:
        assert all(np.isnan(x[seed]) for key, x in measured.items() if key != "alive")

    for mine, theirs in zip(states, healthy(name)[0], strict=True):
        assert_same_bits(of(mine, others), of(theirs, others))
    for mine, theirs in zip(metrics, healthy(name)[1], strict=True):
        assert_same_bits(of(mine, others), of(theirs, others))


@pytest.mark.parametrize("name", by_cost(ALGORITHMS, QUICK, ()))
def test_a_run_without_a_fault_fails_nowhere_and_goes_on_learning(name):
    """Nothing is flagged, and what a sick seed is compared with really moves from update to update."""
    states, metrics = healthy(name)
    assert not np.any(states[-1].failure.update)
    assert not np.any(states[-1].failure.cause)
    assert all(np.all(measured["alive"] == 1.0) for measured in metrics)
    np.testing.assert_array_equal(states[-1].update, UPDATES)
    for old, new in itertools.pairwise(states):
        for part in ("policy",) if name in EVOLUTION else ("policy", "critic"):
            pairs = zip(arrays(getattr(old, part)), arrays(getattr(new, part)), strict=True)
            moved = [np.any((a != b).reshape(SEEDS, -1), axis=1) for a, b in pairs]
            np.testing.assert_array_equal(np.any(moved, axis=0), True)


@pytest.mark.parametrize("name", [pytest.param("ppo", marks=pytest.mark.slow), "trpo"])
@pytest.mark.thorough
def test_what_has_failed_once_stays_failed_when_its_cause_is_gone(name):
    """The fuse of a frozen seed is taken out: it stays frozen, first failure and all."""
    states, _ = states_and_metrics(name, 2, FAULTS["reward NaN in the first step"])
    cured = arm(states[-1], 2, environment_fault(1, 0, -5))
    state, metrics = compiled(name)[1](cured)
    assert_same_bits(of(state, 2), of(cured, 2))
    assert (int(state.failure.update[2]), CAUSES[state.failure.cause[2] - 1]) == (2, "reward")
    np.testing.assert_array_equal(metrics["alive"], [1, 1, 0, 1])


@pytest.mark.thorough
def test_every_seed_may_fail_in_its_own_update_and_of_its_own_cause():
    """Four faults in one batch; each seed ends as it does where it is the only sick one."""
    names = ["observation NaN", "parameter NaN", "reward -inf", "parameter inf"]
    state, update = compiled("npg")
    for seed, name in enumerate(names):
        state = arm(state, seed, FAULTS[name].arm)
    for _ in range(UPDATES):
        state, _ = update(state)
    np.testing.assert_array_equal(state.failure.update, [FAULTS[name].found for name in names])
    assert [CAUSES[cause - 1] for cause in state.failure.cause] == [FAULTS[name].cause for name in names]
    for seed, name in enumerate(names):
        alone, _ = states_and_metrics("npg", seed, FAULTS[name])
        assert_same_bits(of(state, seed), of(alone[-1], seed))


@pytest.mark.thorough
def test_a_fault_amid_a_compiled_scan_is_found_in_its_update():
    """All of training in one call: the seed is frozen before update 3, the others end as in single updates."""
    fault = FAULTS["observation inf in the last step"]
    train = level_1_jit(jax.vmap(lambda state: train_updates(config_of("a2c"), state, UPDATES)))
    state, metrics = train(arm(compiled("a2c")[0], 1, fault.arm))
    single, _ = states_and_metrics("a2c", 1, fault)
    assert_same_bits(state, single[-1])
    expected = np.ones((SEEDS, UPDATES))
    expected[1, fault.found - 1 :] = 0.0
    np.testing.assert_array_equal(metrics["alive"], expected)


@pytest.mark.parametrize(
    "fault",
    [
        "observation NaN",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("parameter NaN", "reward NaN in the first step")),
    ],
)
@pytest.mark.thorough
def test_a_run_alone_is_frozen_too(fault):
    """Not vmapped, it is frozen by a branch: it ends as it was before its fault, and without one goes on."""
    fault = FAULTS[fault]
    start = one(compiled("ppo")[0], 0)
    update = quick_jit(functools.partial(update_step, config_of("ppo")))
    train = quick_jit(functools.partial(train_updates, config_of("ppo"), num_updates=UPDATES))
    states = [fault.arm(start)]
    for _ in range(fault.found - 1):
        states.append(update(states[-1])[0])
    final, metrics = train(states[0])
    assert_same_bits(final.replace(failure=None), states[-1].replace(failure=None))
    assert (int(final.failure.update), int(final.failure.cause)) == (fault.found, 1 + CAUSES.index(fault.cause))
    np.testing.assert_array_equal(metrics["alive"], np.arange(1, UPDATES + 1) < fault.found)
    well, _ = train(start)
    assert int(well.update) == UPDATES
    assert int(well.failure.update) == 0


@pytest.mark.thorough
def test_runs_are_frozen_one_by_one_however_they_are_vmapped():
    """Seeds alone, seeds of settings, settings of seeds; and where only some arrays have an axis of runs."""
    old, new, cause = compiled("a2c")[0], states_and_metrics("a2c")[0][-1], jnp.asarray([0, 3, 0, 1], jnp.int32)
    pairs = zip(arrays(old), arrays(new), strict=True)
    leaves = [np.where(np.reshape(cause == 0, (-1,) + (1,) * (a.ndim - 1)), b, a) for a, b in pairs]
    expected = jax.tree.unflatten(jax.tree.structure(new), leaves).replace(failure=None)

    def chosen(old, new, cause):
        return freeze(old, new, {}, cause)[0].replace(failure=None)

    def grid(tree):
        return jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), tree)

    assert_same_bits(jax.vmap(chosen)(old, new, cause), expected)
    assert_same_bits(jax.vmap(jax.vmap(chosen))(grid(old), grid(new), grid(cause)), grid(expected))
    shared = jax.vmap(chosen, in_axes=(None, 0, 0))(one(old, 2), new, cause)
    assert_same_bits(one(shared, 1), one(old, 2).replace(failure=None))
    assert_same_bits(one(shared, 2), one(new, 2).replace(failure=None))


def found(metrics, state, **parts):
    """The number of the cause that is found where all else is finite."""
    record = Record(*[parts.get(name, np.zeros(3)) for name in Record._fields])
    return cause_of_failure(record, record, metrics, state)


METRICS = dict.fromkeys(("policy_loss", "value_loss", "grad_norm", "value_grad_norm"), np.ones(()))


@pytest.mark.parametrize("bad", VALUES[:3])
def test_each_number_of_an_update_is_looked_at(bad):
    """NaN, inf and -inf, in one number of one array of an update."""
    state = one(compiled("a2c")[0], 0)
    assert found(METRICS, state) == 0
    spoilt = np.asarray([0.0, bad, 0.0])
    causes = ("observation", "observation", "reward", "advantage", "advantage", "advantage")
    for name, cause in zip(Record._fields, causes, strict=True):
        assert found(METRICS, state, **{name: spoilt}) == 1 + CAUSES.index(cause)
    for name, cause in zip(METRICS, ("loss", "loss", "gradient", "gradient"), strict=True):
        assert found(METRICS | {name: np.asarray(bad)}, state) == 1 + CAUSES.index(cause)


def test_each_number_that_is_learnt_is_looked_at():
    """The last number of every array of the policy, the critic and both optimisers' moments."""
    state = one(compiled("ppo-penalty")[0], 0)
    learnt = ("policy", "critic", "algorithm", "critic_optimizer")
    leaves, tree = jax.tree.flatten([getattr(state, part) for part in learnt])

    @quick_jit
    def look(leaves):
        return found(METRICS, state.replace(**dict(zip(learnt, tree.unflatten(leaves), strict=True))))

    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) > 20
    for i in floats:
        spoilt = leaves[i].ravel().at[-1].set(jnp.inf).reshape(leaves[i].shape)
        assert look([*leaves[:i], spoilt, *leaves[i + 1 :]]) == 1 + CAUSES.index("parameters")
    assert look(leaves) == 0


def test_the_first_failure_is_the_one_that_is_told():
    """`freeze` counts updates from 1 and keeps every leaf of the state, keys included, as it was."""
    old = one(compiled("a2c")[0], 0)
    new = old.replace(key=KEYS[1], update=old.update + 1)
    state, metrics = freeze(old, new, {"x": jnp.ones(())}, jnp.asarray(2, jnp.int32))
    assert_same_bits(state, old.replace(failure=Failure(jnp.asarray(1, jnp.int32), jnp.asarray(2, jnp.int32))))
    assert np.isnan(metrics["x"])
    assert metrics["alive"] == 0.0
    state, metrics = freeze(old, new, {"x": jnp.ones(())}, jnp.asarray(0, jnp.int32))
    assert_same_bits(state, new)
    assert (metrics["x"], metrics["alive"]) == (1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class WholeNumbers(StepCounter):
    """Observations of integers, which cannot be anything but finite."""

    def observe(self, steps):
        return steps[None]


def test_observations_of_whole_numbers_are_finite():
    """Nothing of floating point in a tree is finite; and an environment of integers can be trained on."""
    assert finite(jnp.arange(3))
    assert finite(())
    assert not finite((jnp.arange(3), jnp.asarray([1.0, jnp.nan])))
    config = Config(env=WholeNumbers(), num_envs=2, num_steps=4, num_minibatches=1, hidden_sizes=(4,))
    config.check()
    state, metrics = jax.eval_shape(lambda key: update_step(config, init(config, key)), KEYS[0])
    assert metrics["alive"].shape == state.failure.cause.shape == ()


@pytest.mark.thorough
def test_a_seed_that_has_failed_is_evaluated_no_more(tmp_path):
    """Its policy is frozen: what that would play is no result of the update that a row stands for."""
    config = Config(env=RewardTurnsNaN(), algo=A2C(), total_steps=64, num_envs=2, num_steps=8, hidden_sizes=(4,))
    config = config.replace(eval_interval=1, eval_episodes=2, eval_max_steps=5)
    _, metrics = quick_jit(make_train(config))(jax.random.key(0))
    alive = np.asarray(metrics["alive"]) > 0
    assert 0 < alive.sum() < alive.size
    np.testing.assert_array_equal(np.isfinite(metrics["eval_return"]), alive)
    options = {"log_interval": 1, "final_episodes": 2}
    with pytest.raises(UsageError, match="all 2 seeds have turned non-finite"):
        run_experiment(config, seeds=2, out=tmp_path / "run", options=options)
    found = read_metrics(tmp_path / "run" / "metrics.csv", [0, 1])
    np.testing.assert_array_equal(np.isfinite(found.metric("eval_return")), found.metric("alive") > 0)
