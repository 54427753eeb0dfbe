"""Frame stacking, action repeat, clipping and scaling, step by step against what their definitions say."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import quick_jit
from test_host import CLOCK, SMALL, Always, found_by_workers  # noqa: F401

from purejaxppo import UsageError, init, make_train, preset
from purejaxppo.agent import Agent
from purejaxppo.envs.base import adapt
from purejaxppo.envs.check import check_env
from purejaxppo.envs.registry import make_env
from purejaxppo.envs.wrappers import FrameStack, is_valid, wrapped
from purejaxppo.rollout import begin_episodes, rollout
from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from purejaxppo.train import learning_batch
from purejaxppo.types import Transition

PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1)]


class Alternating:
    """Pays the action's number; the mask forbids action 2 from the second state on, and then the first one of two."""

    def __init__(self, factors):
        self.action_space = MultiDiscrete(factors) if len(factors) > 1 else Discrete(*factors)
        self.observation_space = {"x": Box(-1.0, 9.0, ()), "action_mask": MultiBinary(sum(factors))}
        self.masks = np.ones((3, sum(factors)), bool)
        self.masks[1:, 2] = self.masks[2:, 0] = False

    def _seen(self, step):
        return {"x": jnp.asarray(step, jnp.float32), "action_mask": jnp.asarray(self.masks)[jnp.minimum(step, 2)]}

    def reset(self, key):
        return jnp.zeros((), jnp.int32), self._seen(0)

    def step(self, key, state, action):
        never = jnp.zeros((), bool)
        return state + 1, self._seen(state + 1), 1.0 + jnp.sum(action, dtype=jnp.float32), never, never


@pytest.mark.parametrize(
    ("factors", "action", "steps"),
    [((4,), 2, 1), ((4,), 0, 2), ((4,), 3, 4), ((3, 2), (2, 1), 1), ((3, 2), (0, 1), 2), ((3, 2), (1, 1), 4)],
)
def test_an_action_is_repeated_only_while_its_mask_allows_it(factors, action, steps):
    env = wrapped(adapt(Alternating(factors)), 1, 4)
    check_env(env, "alternating")
    state, _ = env.reset(jax.random.key(0))
    state, _, reward, *_ = env.step(jax.random.key(1), state, jnp.asarray(action))
    assert (int(state), float(reward)) == (steps, steps * (1.0 + np.sum(action)))


def test_a_mask_that_allows_nothing_allows_all_as_the_policy_takes_it():
    space, masks = MultiDiscrete((2, 2)), {"some": [1, 1, 0, 0], "one": [1, 0, 0, 0], "none": [0, 0, 0, 0]}
    allowed = {
        name: [bool(is_valid(space, {"action_mask": np.asarray(mask, bool)}, np.asarray(action))) for action in PAIRS]
        for name, mask in masks.items()
    }
    assert allowed == {"some": [True] * 4, "one": [True, True, False, False], "none": [True] * 4}
    assert is_valid(Discrete(2), {"action_mask": np.zeros(2, bool)}, np.asarray(1))


def test_what_a_mask_forbids_no_environment_on_the_host_is_told():
    """Action 1 is valid in even steps: in the second half of a repetition it is not, and then nothing happens."""
    with make_env("gymnasium/host_environments:Dice-v0,mask=info") as dice:
        env = wrapped(dice, 1, 2)

        @jax.jit
        def played(key):
            state, seen = jax.vmap(env.reset)(key[None])
            masks = [seen["action_mask"]]
            for action in (1, 0, 0):
                state, seen, *_ = jax.vmap(env.step)(key[None], state, jnp.asarray([action]))
                masks.append(seen["action_mask"])
            return jnp.stack(masks)

        masks = played(jax.random.key(0))
    assert masks[:, 0, 1].tolist() == [True, False, False, False]  # after steps 0, 1, 3 and 5


class Line(NamedTuple):
    start: jax.Array
    steps: jax.Array


class Steps:
    """Sees start and step in many shapes; pays the step's number; ends at 5 if `start` is even, else is cut off."""

    action_space = Discrete(2)
    observation_space = {
        "number": Box(-1.0, 9.0, ()),
        "vector": Box(np.asarray([-1.0, -2.0]), 9.0, (2,)),
        "matrix": Box(0.0, 9.0, (3, 4)),
        "image": Box(0, 255, (3, 4, 2)),
        "place": Discrete(9),
        "action_mask": MultiBinary(2),
    }

    def observe(self, state):
        return {
            "number": state.steps.astype(jnp.float32),
            "vector": jnp.stack([state.start, state.steps]).astype(jnp.float32),
            "matrix": jnp.full((3, 4), state.steps, jnp.float32),
            "image": jnp.full((3, 4, 2), state.steps, jnp.uint8),
            "place": state.steps,
            "action_mask": jnp.ones(2, bool),
        }

    def reset(self, key):
        state = Line(jax.random.randint(key, (), 1, 1000), jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def step(self, key, state, action):
        state = Line(state.start, state.steps + 1)
        over, even = state.steps >= 5, state.start % 2 == 0
        return state, self.observe(state), state.steps.astype(jnp.float32), over & even, over & ~even


def play(env, num_envs, num_steps):
    @quick_jit
    def played(key):
        begin_key, key = jax.random.split(key)
        episodes = begin_episodes(begin_key, env, num_envs)
        return rollout(
            key, env, lambda obs, hidden, start: (Always(jnp.ones(num_envs, jnp.int32)), hidden), episodes, num_steps
        )[1]

    return jax.device_get(played(jax.random.key(0)))


class Told(Steps):
    """A success is what terminates, told in the step that ends the episode and in no other."""

    tells_success = True

    def step_with_success(self, key, state, action):
        step = self.step(key, state, action)
        return step, step[3] & (state.steps == 4)


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("repeat", [1, 2, 5, 7])
def test_a_success_is_told_through_wrappers(stack, repeat):
    env = wrapped(adapt(Told()), stack, repeat)
    assert env.tells_success
    check_env(env, "told")

    def decide(state, key):
        (state, *_, terminated, truncated), success = env.step_with_success(key, state, jnp.asarray(0))
        return state, (terminated, truncated, success)

    keys = jax.random.split(jax.random.key(1), 6)
    states, _ = jax.vmap(env.reset)(keys)
    _, (terminated, truncated, success) = quick_jit(
        jax.vmap(lambda state: jax.lax.scan(decide, state, keys[: -(-5 // repeat)]))
    )(states)
    np.testing.assert_array_equal(success, terminated)
    assert not np.any(success[:, :-1])
    assert np.all(terminated[:, -1] | truncated[:, -1])
    assert 0 < np.sum(success) < 6


def test_stacked_frames_are_the_last_ones_of_the_episode():
    env, count = wrapped(adapt(Steps()), 3, 1), 3
    check_env(env, "stacked")
    space = env.observation_space
    assert {name: space[name].shape for name in space if isinstance(space[name], Box)} == {
        "number": (3,),
        "vector": (6,),
        "matrix": (3, 4, 3),
        "image": (3, 4, 6),
    }
    np.testing.assert_array_equal(space["vector"].low, [-1, -2] * 3)
    t = play(env, 2, 12)
    start = t.obs["vector"][..., 0]
    assert (start[5] != start[4]).all()  # another episode
    for when, offset in ((t.obs, 0), (t.next_obs, 1)):
        for step in range(12):
            newest = step % 5 + offset
            seen = [max(newest - back, 0) for back in reversed(range(count))]  # the first is there thrice
            np.testing.assert_array_equal(when["number"][step], [seen] * 2)
            np.testing.assert_array_equal(when["vector"][step, :, 1::2], [seen] * 2)
            np.testing.assert_array_equal(when["vector"][step, :, ::2], np.stack([start[step]] * 3, -1))
            np.testing.assert_array_equal(when["matrix"][step], np.broadcast_to(seen, (2, 3, 4, 3)))
            np.testing.assert_array_equal(when["image"][step], np.broadcast_to(np.repeat(seen, 2), (2, 3, 4, 6)))
            np.testing.assert_array_equal(when["place"][step], newest)
    assert t.obs["image"].dtype == np.uint8
    np.testing.assert_array_equal(t.terminated | t.truncated, np.arange(12)[:, None] % 5 == [4, 4])
    np.testing.assert_array_equal(t.terminated[4], start[4] % 2 == 0)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 5, 7)])
def test_frames_of_channel_first_images_are_joined_by_their_channels(shape):
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    stack = FrameStack(adapt(Pictures(shape)), 2)
    with pytest.warns(UserWarning, match="channels first"):
        check_env(Pictures(shape), "pictures")
    assert stack.observation_space.shape == (*shape[1:], 2 * shape[0])
    seen = stack.push(stack.fill(images[0]), images[1])
    np.testing.assert_array_equal(np.moveaxis(seen, -1, 0), np.concatenate(images))


def test_a_stack_that_would_be_taken_for_channels_first_is_refused():
    with pytest.raises(UsageError, match=r"frame_stack = 4 makes .* images \[8, 12, 12\], which look like \[C, H, W\]"):
        FrameStack(adapt(Pictures((8, 12, 3))), 4)


class Pictures(Steps):
    def __init__(self, shape):
        self.observation_space = Box(0.0, 1.0, shape)

    def observe(self, state):
        return jnp.zeros(self.observation_space.shape)


def test_a_repeated_action_stops_at_the_end():
    """Steps 1 + 2, 3 + 4, then 5 alone; the end is reached in the third, and seen as it was."""
    env = wrapped(adapt(Steps()), 1, 2)
    assert env.render_fps == adapt(Steps()).render_fps / 2  # a film has a picture of each decision
    check_env(env, "repeated")
    t = play(env, 2, 6)
    np.testing.assert_array_equal(t.reward, np.asarray([[3, 7, 5] * 2] * 2).T)
    np.testing.assert_array_equal(t.obs["place"][:, 0], [0, 2, 4, 0, 2, 4])
    np.testing.assert_array_equal(t.next_obs["place"][:, 0], [2, 4, 5, 2, 4, 5])
    np.testing.assert_array_equal((t.terminated | t.truncated)[:, 0], [False, False, True] * 2)


def test_both_on_the_host():
    """The Clock, cut off after 7 steps: decisions of 3, 3 and 1 of them, two seen at once."""
    inner = make_env(f"{CLOCK},workers=1")
    t = play(wrapped(inner, 2, 3), 2, 5)
    inner.close()
    np.testing.assert_array_equal(t.reward, np.asarray([[1 + 2 + 3 + 3, 4 + 5 + 6 + 3, 7 + 1, 9, 18]] * 2).T)
    np.testing.assert_array_equal(t.truncated[:, 0], [False, False, True, False, False])
    np.testing.assert_array_equal(t.obs[:, 0, 1::2], [[0, 0], [0, 3], [3, 6], [0, 0], [0, 3]])
    np.testing.assert_array_equal(t.next_obs[:, 0, 1::2], [[0, 3], [3, 6], [6, 7], [0, 3], [3, 6]])
    assert (t.obs[3, :, 0] != t.obs[2, :, 0]).all()


@pytest.mark.thorough
def test_rewards_are_scaled_then_clipped_for_learning_alone():
    config = preset(
        "a2c", Steps(), **SMALL | {"reward_scale": 0.5, "reward_clip": 2.0, "gae_lambda": 1.0, "gamma": 1.0}
    )
    rewards = np.asarray([[3.0, -9.0], [8.0, 1.0]], np.float32)
    state = quick_jit(init)(config, jax.random.key(0))
    obs = jax.tree.map(lambda x: jnp.stack([x] * 2), state.rollout.obs)
    ends = jnp.asarray([[False, False], [True, True]])
    distribution = Uniform()
    action = jnp.zeros((2, 2), jnp.int32)
    t = Transition(obs, action, jnp.asarray(rewards), ends, ~ends & False, obs, distribution)
    batch, *_ = learning_batch(Agent.of(config), state, t)
    learnt = np.asarray([[1.5, -2.0], [2.0, 0.5]])
    np.testing.assert_allclose(batch.value_target, np.asarray([learnt.sum(0), learnt[1]]).ravel(), rtol=1e-5, atol=1e-5)
    config = config.replace(total_steps=16, reward_scale=0.1)
    _, metrics = quick_jit(make_train(config))(jax.random.key(0))
    assert metrics["episode_return"][0] == 15  # as the environment pays


class Uniform(NamedTuple):
    """Of two actions."""

    def log_prob(self, action):
        return jnp.full(action.shape, -np.log(2.0), jnp.float32)


def test_observations_are_clipped_before_they_are_standardised():
    config = preset("a2c", Steps(), total_steps=16, observation_clip=2.5, normalize_observations=True, **SMALL)
    state, _ = quick_jit(make_train(config))(jax.random.key(0))
    seen = np.clip([0, 1, 2, 3, 4, 0, 1, 2], -2.5, 2.5)  # in both environments
    np.testing.assert_allclose(state.observation_statistics["number"].mean, seen.mean(), rtol=1e-5)
    np.testing.assert_allclose(state.observation_statistics["number"].variance, seen.var(), rtol=1e-5)
