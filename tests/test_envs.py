"""Every registered environment keeps the promises of `types.Env`, and trains."""

import contextlib
import dataclasses
import functools
import os
import subprocess
import sys
from typing import Any

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import StepCounter, Walk
from support import by_cost, quick_jit

from purejaxppo import PPO, Config, init, make_train, update_step
from purejaxppo.distributions import Categorical, DiagonalGaussian, FactoredCategorical
from purejaxppo.envs.base import BaseEnv, adapt
from purejaxppo.envs.check import check_env
from purejaxppo.envs.gymnax import GymnaxEnv
from purejaxppo.envs.registry import _params, env_names, make_env
from purejaxppo.errors import UsageError
from purejaxppo.networks.heads import masked
from purejaxppo.rollout import begin_episodes, rollout
from purejaxppo.spaces import Box, Discrete, MultiDiscrete, describe

KEY = jax.random.key(0)
BATCH, STEPS = 3, 20
NEEDS_DOWNLOAD = {"MNISTBandit-bsuite"}
BROADCASTS = {"Swimmer-misc"}  # its own code relies on implicit rank promotion
PLAYABLE = [name for name in env_names() if name not in NEEDS_DOWNLOAD]
QUICK = ("CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "Breakout-MinAtar")


def random_policy(space, obs, hidden, start):
    """Actions that owe nothing to the observation."""
    batch_shape = jax.tree.leaves(obs)[0].shape[:1]
    if isinstance(space, Discrete):
        mask = obs.get("action_mask") if isinstance(obs, dict) else None
        return Categorical(masked(jnp.zeros((*batch_shape, space.n)), mask)), hidden
    if isinstance(space, MultiDiscrete):
        return FactoredCategorical.of([jnp.zeros((*batch_shape, n)) for n in space.nvec]), hidden
    return DiagonalGaussian(*jnp.zeros((2, *batch_shape, *space.shape))), hidden


def avals(tree):
    """(shape, type, weakly typed) of each leaf of abstract values."""
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", by_cost(PLAYABLE, QUICK, [name for name in PLAYABLE if "MinAtar" not in name]))
def test_environment_keeps_the_protocol(name):
    """Shapes and types stay as reset gave them, none weak; 20 random steps of a batch are finite, with sane flags."""
    with jax.numpy_rank_promotion("allow" if name in BROADCASTS else "raise"):
        check_types(make_env(name))
        check_play(make_env(name))


def check_types(env):
    """What reset and step return, abstractly."""
    kind = jnp.float32 if isinstance(env.action_space, Box) else jnp.int32
    action = jnp.zeros(env.action_space.shape, kind)
    state, obs = jax.eval_shape(env.reset, KEY)
    next_state, next_obs, reward, terminated, truncated = jax.eval_shape(env.step, KEY, state, action)
    assert jax.tree.structure(next_state) == jax.tree.structure(state)
    assert avals(next_state) == avals(state)
    assert not any(weak for *_, weak in avals((state, obs, next_obs, reward, terminated, truncated)))
    check_env(env, "this one")
    assert avals(obs) == avals(next_obs)
    assert (reward.shape, reward.dtype) == ((), jnp.float32)
    assert (terminated.shape, terminated.dtype) == (truncated.shape, truncated.dtype) == ((), jnp.bool_)


def check_play(env):
    """A rollout of random actions, with resets."""

    def play(key):
        episodes = begin_episodes(key, env, BATCH)
        return rollout(key, env, functools.partial(random_policy, env.action_space), episodes, STEPS)

    after, transitions, sums = quick_jit(play)(KEY)
    assert transitions.obs.shape == transitions.next_obs.shape == (STEPS, BATCH, *env.observation_space.shape)
    for x in (transitions.obs, transitions.next_obs, transitions.reward, after.obs):
        assert np.all(np.isfinite(x))
    assert not np.any(transitions.terminated & transitions.truncated)
    done = np.asarray(transitions.terminated | transitions.truncated)
    assert sums.episodes == np.sum(done)
    np.testing.assert_array_equal(transitions.obs[1:][~done[:-1]], transitions.next_obs[:-1][~done[:-1]])


KINDS = {
    "vector, discrete": "CartPole-v1",
    "vector, box": "PointRobot-misc",
    "image": "Breakout-MinAtar",
    "one-hot": "FrozenLake-misc",
    "matrix": "Catch-bsuite",
}


@pytest.mark.parametrize("kind", by_cost(KINDS, ["vector, box"], ["image"]))
def test_one_update_is_finite_with_each_kind_of_space(kind):
    """PPO with both normalisers, on observations of ranks 1 to 3 and on both kinds of action."""
    env = make_env(KINDS[kind])
    rank = {"image": 3, "matrix": 2}.get(kind, 1)
    assert len(env.observation_space.shape) == rank
    assert isinstance(env.action_space, Box if kind == "vector, box" else Discrete)
    options = {"normalize_observations": True, "normalize_rewards": True, "hidden_sizes": (8,)}
    config = Config(env=env, algo=PPO(), num_envs=2, num_steps=16, num_minibatches=1, num_epochs=2, **options)
    before = quick_jit(init)(config, KEY)
    after, metrics = quick_jit(update_step)(config, before)
    for name, value in metrics.items():
        assert np.isfinite(value) or (name.startswith("episode_") and metrics["episodes"] == 0), name
    for part in ("policy", "critic"):
        old, new = (jax.flatten_util.ravel_pytree(getattr(state, part))[0] for state in (before, after))
        assert np.all(np.isfinite(new))
        assert np.any(new != old)


def test_one_hot_observations():
    """FrozenLake's position is one of 16."""
    env = make_env("FrozenLake-misc")
    _, obs = env.reset(KEY)
    assert obs.dtype == bool
    np.testing.assert_array_equal(obs, np.eye(16)[0])


WALL = -1.2


def test_the_continuous_mountain_car_is_gymnasiums_and_stops_at_the_left_wall():
    """500 random states, half of them near the wall, with a random action each; gymnax's own car goes on pushing."""
    rng, original = np.random.default_rng(0), gymnasium.make("MountainCarContinuous-v0", disable_env_checker=True)
    original.reset()
    env, (theirs, params) = make_env("MountainCarContinuous-v0"), gymnax.make("MountainCarContinuous-v0")
    position = np.where(rng.random(500) < 0.5, rng.uniform(WALL, 0.4, 500), rng.uniform(WALL, WALL + 0.05, 500))
    starts = np.stack([position, rng.uniform(-0.07, 0.07, 500)], axis=1).astype(np.float32)
    actions = rng.uniform(-1, 1, (500, 1)).astype(np.float32)
    _, state = theirs.reset_env(KEY, params)
    states = jax.vmap(lambda x: state.replace(position=x[0], velocity=x[1], time=jnp.int32(0)))(starts)
    _, obs, reward, terminated, _ = jax.vmap(env.step, (None, 0, 0))(KEY, states, actions)
    expected = []
    for start, action in zip(starts, actions, strict=True):
        original.unwrapped.state = start.astype(np.float64)
        expected.append(original.step(action)[:3])
    for ours, original_ones in zip((obs, reward, terminated), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(ours, np.asarray(original_ones), rtol=1e-4, atol=1e-5)
    stopped = (obs[:, 0] == np.float32(WALL)) & (obs[:, 1] == 0)
    assert stopped.sum() > 30
    own = jax.vmap(lambda state, action: theirs.step_env(KEY, state, action, params)[0])(states, actions)
    assert (own[stopped, 1] < 0).all(), "gymnax stops its car now: envs/gymnax.py need not do it any more"


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("Asterix", "Freeway", "Seaquest", "SpaceInvaders")]


@pytest.mark.parametrize("name", ["Breakout", *SLOW])
def test_minatar_observations_are_kept_as_bool(name):
    """Over 100 random steps they are gymnax's own numbers, which are all 0 or 1."""
    env, (theirs, params) = make_env(f"{name}-MinAtar"), gymnax.make(f"{name}-MinAtar")

    @quick_jit
    def play(key):
        def step(state, key):
            action_key, step_key = jax.random.split(key)
            action = jax.random.randint(action_key, (), 0, env.action_space.n)
            kept = env.step(step_key, state, action)
            return kept[0], (kept[1], theirs.step_env(step_key, state, action, params)[0])

        return jax.lax.scan(step, env.reset(key)[0], jax.random.split(key, 100))[1]

    kept, original = play(KEY)
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, original)


DEFERRED = """
import sys
import jax
from purejaxppo.envs.registry import make_env
make_env("Pong-misc")
assert not {"seaborn", "matplotlib.pyplot", "pandas"} & {*sys.modules}
import gymnax
pong, params = gymnax.make("Pong-misc")
image = pong.render(pong.reset(jax.random.key(0), params)[1], params)
import matplotlib.pyplot, seaborn
assert image.figure is matplotlib.pyplot.gcf() and callable(seaborn.color_palette)
"""


@pytest.mark.slow
def test_what_gymnax_draws_with_is_imported_when_it_draws():
    """Seconds of each start; and neither gymnax nor whoever imports the same afterwards is left with less."""
    subprocess.run([sys.executable, "-c", DEFERRED], check=True, timeout=120, env=os.environ | {"MPLBACKEND": "agg"})


def test_missing_download_is_a_usage_error(monkeypatch):
    """MNISTBandit, whose data cannot be fetched here, says so in one line."""
    from gymnax.utils import load_mnist

    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr(load_mnist, "load_mnist", unreachable)
    make_env.cache_clear()
    with pytest.raises(UsageError) as caught:
        make_train(Config(env="MNISTBandit-bsuite"))
    assert "env = 'MNISTBandit-bsuite'" in str(caught.value)
    assert "no network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_parameters_of_a_class_are_a_usage_error():
    with pytest.raises(UsageError, match=r"env = 'CartPole-v1' cannot be made \(.*foo"):
        GymnaxEnv("CartPole-v1", foo=1)


@pytest.mark.parametrize(
    ("name", "close"), [("cartpole", "CartPole-v1"), ("Cartpole-v0", "CartPole-v1"), ("breakout", "Breakout-MinAtar")]
)
def test_unknown_name_suggests_close_ones(name, close):
    """Whatever the case."""
    with pytest.raises(UsageError, match=f"did you mean .*{close}"):
        make_env(name)


def test_unknown_name_without_close_ones_says_where_to_look():
    """Nothing is near: the list is."""
    with pytest.raises(UsageError, match="purejaxppo envs"):
        make_env("zzz")


def test_names_with_suite_and_of_own_classes():
    """`gymnax/…` is the registered one, `module:Class` an own one, made once."""
    assert make_env("gymnax/CartPole-v1").name == make_env("CartPole-v1").name == "CartPole-v1"
    assert make_env("environments:Walk") == Walk()
    assert make_env("CartPole-v1") is make_env("CartPole-v1")


def test_parameters_may_be_lists_and_words():
    given = _params("x", 'sizes=[3,4],a={"b":[1,2],"C":"D,e"},c="x,y",d=Word,e=True,f=null,g=1e5'.split(","))
    assert given == {
        **{"sizes": [3, 4], "a": {"b": [1, 2], "C": "D,e"}, "c": "x,y"},
        **{"d": "Word", "e": True, "f": None, "g": 1e5},
    }
    assert make_env("environments:StepCounter,limit=3") == StepCounter(3)


ONE, TWO = Box(-1.0, 1.0, (1,)), Discrete(2)


@dataclasses.dataclass(frozen=True)
class Bounded(StepCounter):
    """Any observation or action space."""

    observation_space: Any = ONE
    action_space: Any = TWO


class OfGymnasium(gymnasium.Env):
    pass


OTHERS = {
    "their own": (gymnasium.make("CartPole-v1"), "env='gymnasium/CartPole-v1'"),
    "a class of theirs": (OfGymnasium, "gymnasium.register.*env='gymnasium/test_envs:OfGymnasium-v0'"),
    "one of theirs": ("test_envs:OfGymnasium", "gymnasium.register.*env='gymnasium/test_envs:OfGymnasium-v0'"),
    "gymnax's": (gymnax.make("CartPole-v1")[0], "pass the name it is registered by, env='gymnax/NAME'"),
    "a class": (StepCounter, r"pass an instance, StepCounter\(\)"),
    "nothing": (3, "has no reset, step, observation_space, action_space"),
    "an empty box": (Bounded(observation_space=Box(-1.0, 1.0, (0,))), r"Box\(-1, 1, \(0,\)\) has nothing in it"),
    "no actions": (Bounded(action_space=Discrete(0)), "has nothing in it"),
    "a shape that is a list": (Bounded(action_space=Box(-1.0, 1.0, [3])), r"a Box of shape \[3\] needs a tuple"),
    "a shape that is a number": (Bounded(observation_space=Box(-1.0, 1.0, 3)), "a Box of shape 3 needs a tuple"),
    "bounds that are NaN": (Bounded(observation_space=Box(np.nan, 1.0, (1,))), "low ≤ high"),
    "bounds that cross": (Bounded(action_space=Box(np.ones(2), np.asarray([2.0, 0.0]), (2,))), "low ≤ high"),
    "bounds of another shape": (Bounded(action_space=Box(-np.ones(3), np.ones(3), (2,))), r"bounds of shapes \(3,\)"),
    "actions that are no number": (Bounded(action_space=Discrete(2.0)), "needs a whole number"),
    "a space of theirs": (Bounded(observation_space=gymnasium.spaces.Box(-1, 1, (1,))), "no purejaxppo Box or Disc"),
    "a mask that is a Box": (
        Bounded(observation_space={"x": Box(0.0, 1.0, (1,)), "action_mask": Box(np.zeros(2), np.ones(2), (2,))}),
        r"must be MultiBinary\(n=2\)",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_environment_says_in_one_line_what_to_pass(kind):
    env, told = OTHERS[kind]
    with pytest.raises(UsageError, match=told) as caught:
        Config(env=env).check()
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("obs", [{"a": jnp.zeros(1)}, (jnp.zeros(1),), [jnp.zeros(1)], None])
def test_an_observation_that_is_no_array_is_shown_beside_its_space(obs):
    class Odd(StepCounter):
        def reset(self, key):
            return super().reset(key)[0], obs

        def step(self, key, state, action):
            state, _, *rest = super().step(key, state, action)
            return state, obs, *rest

    with pytest.raises(UsageError, match=r"reset's obs is .* but its space is Box"):
        Config(env=Odd()).check()


def test_parameters_of_gymnaxs_constructors_are_taken():
    assert make_env("DeepSea-bsuite,size=5").observation_space.shape == (5, 5)
    with pytest.raises(UsageError, match="unexpected keyword argument 'sise'"):
        make_env("DeepSea-bsuite,sise=5")


def test_an_environment_of_ones_own_may_tell_its_successes():
    class Told(StepCounter):
        tells_success = True

        def step_with_success(self, key, state, action):
            return self.step(key, state, action), jnp.asarray(True)

    assert adapt(Told()).tells_success
    assert adapt(Told()).step_with_success(KEY, *StepCounter().reset(KEY))[1]
    assert not adapt(StepCounter()).tells_success

    class Off(Told):
        tells_success = False

    Config(env=Off()).check()
    assert adapt(Off()).step_with_success(KEY, *StepCounter().reset(KEY))[1] == ()


def test_an_environment_without_a_step_is_told_so():
    class Still(BaseEnv):
        observation_space = action_space = Box(-1.0, 1.0, (1,))

        def reset(self, key):
            return (), jnp.zeros(1)

    with pytest.raises(UsageError, match="has no step; see the guide"):
        check_env(Still(), "Still()")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (lambda step: (step, jnp.ones(())), r"success being bool\[\], not float32\[\]"),
        (lambda step: (step, jnp.ones(1, bool)), r"not bool\[1\]"),
        (lambda step: step, "not tuple"),
        (lambda step: step + 1, "step_with_success fails under jax.jit"),
    ],
)
def test_what_tells_no_success_is_refused_in_one_line(told, message):
    class Told(StepCounter):
        tells_success = True

        def step_with_success(self, key, state, action):
            return told(self.step(key, state, action))

    with pytest.raises(UsageError, match=message) as caught:
        Config(env=Told()).check()
    assert "\n" not in str(caught.value)


def test_spaces_are_printed_in_a_few_words():
    space = Box(np.zeros((84, 84, 3)), np.linspace(1, 255, 84 * 84 * 3).reshape(84, 84, 3), (84, 84, 3))
    assert repr(space) == describe(space) == "Box(0, 255, (84, 84, 3))"
    theirs = gymnasium.spaces.Box(np.arange(6, dtype=np.float32), np.full(6, np.inf, np.float32))
    assert describe(theirs) == "Box(0, inf, (6,), float32)"


@pytest.mark.parametrize(("bounds", "warned"), [((100.0, 1000.0), True), ((-0.01, 0.01), True), ((-0.4, 0.4), False)])
def test_bounds_that_a_gaussian_hardly_ever_meets_are_told(bounds, warned):
    config = Config(env=Bounded(action_space=Box(*bounds, (2,))))
    with pytest.warns(UserWarning, match="--action-distribution beta") if warned else contextlib.nullcontext():
        config.check()
    config.replace(action_distribution="beta").check()


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "DeepSea-bsuite", "environments:WithGoal"])
def test_environment_first_made_under_a_trace_can_be_used_later(name):
    """`make_train` may be called while tracing: nothing of that trace stays behind in the environment."""
    make_env.cache_clear()

    def train(key):
        return make_train(Config(env=name, num_envs=2, num_steps=16, total_steps=32))(key)

    first = jax.eval_shape(train, KEY)
    again = jax.eval_shape(train, KEY)
    assert jax.tree.structure(first) == jax.tree.structure(again)
    make_env(name).reset(KEY)
    make_env.cache_clear()
