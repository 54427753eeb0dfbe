"""Every suite keeps the promises of `types.Env`, its own time limit included. Suites that are absent are skipped."""

import contextlib
import functools
import importlib.util
import os
import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import by_cost, quick_jit
from test_envs import avals, check_types, random_policy

from purejaxppo import init, preset, update_step
from purejaxppo.cli.run import main
from purejaxppo.envs.registry import SUITES, env_names, make_env
from purejaxppo.errors import UsageError
from purejaxppo.rollout import begin_episodes, rollout

os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported

pytestmark = pytest.mark.filterwarnings("ignore")  # the suites' own
BATCH, STEPS = 3, 500
PACKAGES = {suite: suite for suite in SUITES} | {"playground": "mujoco_playground"}

LIMITS = {  # environment ↦ its time limit: the suite's own, or a shorter one that the suite is given
    "CartPole-v1,max_steps_in_episode=20": 20,
    "brax/reacher,backend=positional": 1000,
    "brax/inverted_pendulum,backend=spring,episode_length=5": 5,
    "playground/CartpoleBalance": 1000,
    "craftax/Craftax-Classic-Symbolic-v1,max_timesteps=100": 100,
    "navix/Navix-Empty-Random-8x8-v0": 100,
    "jumanji/Snake-v1,time_limit=8": 8,
    "pgx/minatar-breakout,max_steps=9": 9,
    "pgx/tic_tac_toe,max_steps=3": 3,
    "gymnasium/CartPole-v1,max_episode_steps=20": 20,
}
SLOW = [
    *(f"brax/{name}" for name in ("ant", "halfcheetah", "hopper", "walker2d", "humanoid", "inverted_double_pendulum")),
    *(f"brax/ant,backend={backend}" for backend in ("spring", "positional", "mjx")),
    *("brax/inverted_pendulum,backend=mjx", "playground/CheetahRun", "playground/HopperHop"),
    *("craftax/Craftax-Symbolic-v1", "navix/Navix-DoorKey-Random-6x6-v0", "navix/Navix-Dynamic-Obstacles-6x6-v0"),
    *("jumanji/Game2048-v1", "jumanji/Maze-v0", "jumanji/PacMan-v1", "jumanji/TSP-v1", "jumanji/Tetris-v0"),
    *("jumanji/JobShop-v0", "jumanji/Minesweeper-v0"),
    *("pgx/2048", "pgx/connect_four", "pgx/minatar-asterix", "pgx/minatar-freeway", "pgx/minatar-space_invaders"),
    *(f"gymnasium/{name}" for name in ("LunarLander-v3", "LunarLander-v3,continuous=true", "BipedalWalker-v3")),
    *(f"gymnasium/{name}-v5" for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "ALE/Breakout")),
]


@pytest.fixture(autouse=True)
def implicit_rank_promotion():
    """Suites rely on it."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def env(request):
    """The environment of a parametrised test, or a skip."""
    return installed(request.param)


def installed(name):
    suite = name.partition("/")[0] if "/" in name else "gymnax"
    if importlib.util.find_spec(PACKAGES[suite]) is None:
        pytest.skip(f"{suite} is not installed: pip install 'purejaxppo[{suite}]'")
    if suite == "gymnasium" and name in SLOW:
        pytest.importorskip("ale_py")
    return make_env(name)


def play(env, key, episodes):
    """Random actions, with resets."""
    return rollout(key, env, functools.partial(random_policy, env.action_space), episodes, STEPS)


def check(env, limit):
    """2 × 500 steps of a batch, by one program; returns the transitions."""
    check_types(env)
    run = quick_jit(functools.partial(play, env))
    begin_key, *keys = jax.random.split(jax.random.key(0), 3)
    episodes, parts = quick_jit(lambda key: begin_episodes(key, env, BATCH))(begin_key), []
    for key in keys:
        before = avals(jax.eval_shape(lambda x: x, episodes))
        episodes, transitions, _ = run(key, episodes)
        assert avals(jax.eval_shape(lambda x: x, episodes)) == before
        parts.append(jax.device_get(transitions))
    assert run._cache_size() == 1  # the second half is no other program
    played = jax.tree.map(lambda *halves: np.concatenate(halves), *parts)

    for values in jax.tree.leaves((played.obs, played.next_obs, played.reward)):
        assert values.dtype in (np.float32, np.uint8, np.bool_)
        assert np.isfinite(values).all()
    done = played.terminated | played.truncated
    for obs, next_obs in zip(jax.tree.leaves(played.obs), jax.tree.leaves(played.next_obs), strict=True):
        np.testing.assert_array_equal(obs[1:][~done[:-1]], next_obs[:-1][~done[:-1]])
    length = np.zeros(BATCH, int)
    for terminated, truncated in zip(played.terminated, played.truncated, strict=True):
        length += 1
        assert (truncated == ((length == limit) & ~terminated)).all()
        length[terminated | truncated] = 0
    return played


def flat(obs, axes=2):
    """All entries of an observation as one vector, [T, B, …] or [B, …]."""
    return np.concatenate([np.reshape(x, (*x.shape[:axes], -1)) for x in jax.tree.leaves(obs)], axis=-1)


@pytest.mark.parametrize(("env", "limit"), LIMITS.items(), indirect=["env"], ids=LIMITS)
def test_an_environment_keeps_the_protocol_and_its_own_time_limit(env, limit):
    played = check(env, limit)
    assert played.truncated.any()
    if limit < STEPS:  # several episodes: they start afresh
        starts = flat(played.obs)[1:][(played.terminated | played.truncated)[:-1]]
        assert len(np.unique(starts, axis=0)) > 1
    _, obs = quick_jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(1), 16))
    assert len(np.unique(flat(obs, 1), axis=0)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("env", SLOW, indirect=True)
def test_others_of_a_suite_do_too(env):
    check(env, getattr(env, "_limit", 100))


JOINT = {"Tetris-v0": (4, 10), "Minesweeper-v0": (10, 10)}


@pytest.mark.parametrize("name", JOINT)
def test_masks_over_combinations_of_actions_are_kept(name):
    """Actions are numbered combinations: those that the mask allows are, in Jumanji's own view, valid."""
    env, sizes = installed(f"jumanji/{name}"), JOINT[name]
    assert env.action_space.n == np.prod(sizes)
    check_types(env)
    state, obs = quick_jit(env.reset)(jax.random.key(0))
    _, own = env._env.reset(jax.random.key(0))
    np.testing.assert_array_equal(obs["action_mask"].reshape(sizes), own.observation.action_mask)
    action = int(np.flatnonzero(obs["action_mask"])[-1])
    _, reached, reward, *_ = quick_jit(env.step)(jax.random.key(1), state, jnp.int32(action))
    _, expected = quick_jit(env._env.step)(state.inner, jnp.asarray(np.unravel_index(action, sizes), jnp.int32))
    assert reward == expected.reward
    np.testing.assert_array_equal(reached["action_mask"].reshape(sizes), expected.observation.action_mask)


SHORTER = {  # the same environment, cut off earlier
    "CartPole-v1": "max_steps_in_episode=3",
    "brax/inverted_pendulum,backend=spring": "episode_length=3",
    "craftax/Craftax-Classic-Symbolic-v1": "max_timesteps=3",
    "navix/Navix-Empty-Random-8x8-v0": "max_steps=3",
    "jumanji/Snake-v1": "time_limit=3",
    "pgx/minatar-breakout": "max_steps=3",
}


@pytest.mark.parametrize("name", SHORTER)
def test_what_a_truncation_returns_is_what_the_step_led_to(name):
    """The same as where nothing is cut off."""
    whole, cut = installed(name), installed(f"{name},{SHORTER[name]}")
    ends = []
    for env in (whole, cut):
        step = quick_jit(env.step)
        state, _ = quick_jit(env.reset)(jax.random.key(3))
        action = jnp.zeros(1) if name.startswith("brax") else jnp.ones((), jnp.int32)
        for i in range(3):
            state, *returned = step(jax.random.key(i), state, action)
        ends.append(returned)
    (obs, reward, terminated, truncated), (cut_obs, cut_reward, cut_terminated, cut_truncated) = ends
    assert [bool(x) for x in (terminated, truncated, cut_terminated, cut_truncated)] == [False, False, False, True]
    jax.tree.map(np.testing.assert_array_equal, cut_obs, obs)
    assert cut_reward == reward


FALLEN = {
    "CartPole-v1": lambda obs: (np.abs(obs[:, 2]) > 0.2094) | (np.abs(obs[:, 0]) > 2.4),
    "brax/inverted_pendulum,backend=spring": lambda obs: np.abs(obs[:, 1]) > 0.2,
}


@pytest.mark.parametrize("env", FALLEN, indirect=True)
def test_a_terminal_observation_shows_the_end(env, request):
    """The pole has fallen."""
    begin = quick_jit(lambda key: begin_episodes(key, env, BATCH))
    _, transitions, _ = quick_jit(functools.partial(play, env))(jax.random.key(0), begin(jax.random.key(1)))
    ends = np.asarray(transitions.next_obs)[np.asarray(transitions.terminated)]
    assert len(ends) > 10
    assert FALLEN[request.node.callspec.params["env"]](ends).all()


@pytest.mark.parametrize("algo", [pytest.param("ppo", marks=pytest.mark.slow), "trpo"])
@pytest.mark.parametrize("env", LIMITS, indirect=True)
def test_two_updates_are_finite(env, algo):
    config = preset(algo, env, num_envs=2, num_steps=16, num_minibatches=2, num_epochs=1, hidden_sizes=(8,))
    update = quick_jit(functools.partial(update_step))  # partial: with a cache of its own
    state = quick_jit(init)(config, jax.random.key(0))
    for _ in range(2):
        state, metrics = update(config, state)
    assert update._cache_size() == 1
    assert state.failure.update == 0
    for part in (state.policy, state.critic):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(part))
    assert np.isfinite(metrics["policy_loss"] if "policy_loss" in metrics else metrics["kl"])


def place(original, name, obs):
    """Put a Gymnasium environment into the state that an observation of the port shows."""
    original.reset()
    obs = obs.astype(np.float64)
    if name == "Acrobot-v1":
        obs = np.array([np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), obs[4], obs[5]])
    if name == "Pendulum-v1":
        obs = np.array([np.arctan2(obs[1], obs[0]), obs[2]])
    original.unwrapped.state = obs


@pytest.mark.parametrize(
    "name", by_cost(["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"], ["CartPole-v1"])
)
def test_a_port_is_the_original(name):
    """1,000 random steps: each from the same state in both, with the same action."""
    env, original = make_env(name), gymnasium.make(name, disable_env_checker=True)
    episodes = begin_episodes(jax.random.key(0), env, 2)
    _, transitions, _ = jax.device_get(quick_jit(functools.partial(play, env))(jax.random.key(1), episodes))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions._replace(distribution=None))
    for step in range(2 * STEPS):
        place(original, name, flat.obs[step])
        action = np.clip(flat.action[step], -2, 2) if name == "Pendulum-v1" else int(flat.action[step])
        obs, reward, terminated, _, _ = original.step(action)
        np.testing.assert_allclose(flat.next_obs[step], obs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(flat.reward[step], reward, rtol=1e-4, atol=1e-4)
        assert flat.terminated[step] == terminated


AGREEING = {"inverted_pendulum": "InvertedPendulum-v5", "halfcheetah": "HalfCheetah-v5"}  # brax's models ↦ Gymnasium's


@pytest.mark.slow
@pytest.mark.parametrize("name", AGREEING)
def test_brax_on_mjx_is_gymnasiums_mujoco_where_the_models_agree(name):
    """1,000 random steps: each from the same state in both, with the same action.

    What of brax's models is its own, Gymnasium's are given: the integrator and which geometries collide. Its rewards
    take the torso's position as of the last substep but one, as MuJoCo's `xpos` is, and pay for the step that ends an
    episode, for which Gymnasium's v5 pays nothing.
    """
    env, original = installed(f"brax/{name},backend=mjx"), gymnasium.make(AGREEING[name], disable_env_checker=True)
    theirs, unwrapped = env._env.sys.mj_model, original.unwrapped
    model, data, low, high = unwrapped.model, unwrapped.data, original.action_space.low, original.action_space.high
    model.opt.integrator = theirs.opt.integrator
    model.geom_contype[:], model.geom_conaffinity[:] = theirs.geom_contype, theirs.geom_conaffinity

    def put(obs):
        """All positions and velocities; the place along the track, which is not observed, does not matter."""
        whole = np.concatenate([np.zeros(model.nq + model.nv - len(obs)), obs])
        original.reset()
        unwrapped.set_state(whole[: model.nq], whole[model.nq :])

    episodes = begin_episodes(jax.random.key(0), env, 2)
    _, played, _ = jax.device_get(jax.jit(functools.partial(play, env))(jax.random.key(1), episodes))
    played = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), played._replace(distribution=None))
    actions = low + (high - low) * (np.clip(played.action, -1, 1) + 1) / 2
    done, paid = played.terminated | played.truncated, 0
    for i in range(2 * STEPS):
        put(played.obs[i])
        obs, reward, terminated, _, _ = original.step(actions[i])
        np.testing.assert_allclose(played.next_obs[i], obs, rtol=1e-3, atol=1e-3)
        assert played.terminated[i] == terminated
        if name == "inverted_pendulum":
            assert (played.reward[i], reward) == (1.0, float(not terminated))
        elif i % STEPS and not done[i - 1]:
            put(played.obs[i - 1])
            original.step(actions[i - 1])
            before = data.xpos[1, 0]
            original.step(actions[i])
            expected = (data.xpos[1, 0] - before) / unwrapped.dt - 0.1 * np.sum(actions[i] ** 2)
            np.testing.assert_allclose(played.reward[i], expected, rtol=1e-3, atol=5e-3)
            paid += 1
    assert paid > 900 or name == "inverted_pendulum"


@pytest.mark.parametrize("suite", SUITES)
def test_names_are_listed_where_a_suite_is_installed(suite):
    if importlib.util.find_spec(PACKAGES[suite]) is None:
        pytest.skip(f"{suite} is not installed")
    names = env_names(suite)
    assert len(set(names)) == len(names) > 3


REFUSED = {
    "nowhere/ant": ["'nowhere'", "brax", "navix"],
    "gymnax/Cartpole": ["did you mean CartPole-v1?"],
    "CartPole-v1,max_steps": ["'max_steps' is not key=value"],
    "CartPole-v1,no_such=3": ["cannot be made", "no_such"],
    "brax/halfcheeta": ["did you mean brax/halfcheetah"],
    "brax/ant,backend=euler": ["brax raised", "backend"],
    "playground/CartpoleBalanced": ["did you mean playground/CartpoleBalance"],
    "craftax/Craftax-v1": ["did you mean craftax/Craftax-"],
    "navix/Navix-Empty-9x9-v0": ["did you mean navix/Navix-Empty-"],
    "jumanji/snake": ["did you mean jumanji/Snake-v1"],
    "jumanji/Connector-v3": ["MultiDiscreteArray", "choose another one"],
    "gymnasium/LunarLander-v2": ["did you mean gymnasium/LunarLander-v3"],
    "pgx/tictactoe": ["did you mean pgx/tic_tac_toe"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_or_parameter_that_is_wrong_is_one_line(name, capsys):
    if "nowhere" not in name and "/" in name:
        with contextlib.suppress(UsageError):
            installed(name)  # or skip
    assert main(["--env", name]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("error: env")
    for part in REFUSED[name]:
        assert part in printed


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "gymnax"])
def test_an_absent_suite_names_its_extra(suite, monkeypatch, capsys):
    """Its package made impossible to import."""
    monkeypatch.setitem(sys.modules, PACKAGES[suite], None)
    for module in [
        name for name in sys.modules if name.startswith((f"purejaxppo.envs.{suite}", f"{PACKAGES[suite]}."))
    ]:
        monkeypatch.delitem(sys.modules, module)
    assert main(["--env", f"{suite}/any"]) == 2
    assert f"pip install 'purejaxppo[{suite}]'" in capsys.readouterr().err


def test_importing_the_package_imports_no_suite():
    code = f"import sys, purejaxppo; print(sorted(set({sorted(PACKAGES.values())}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout == "[]\n"


def test_parameters_are_numbers_truths_and_words():
    env = make_env("Pendulum-v1,max_steps_in_episode=20,g=9.5")
    assert repr(env) == "GymnaxEnv('Pendulum-v1', max_steps_in_episode=20, g=9.5)"
    assert preset("ppo", "Pendulum-v1,g=9.5").num_steps == preset("ppo", "Pendulum-v1").num_steps


DRAWN = [name for name in LIMITS if not name.startswith(("CartPole", "pgx", "gymnasium"))]


@pytest.mark.parametrize("env", DRAWN, indirect=True)
def test_a_suites_pictures(env):
    states = jax.device_get([env.reset(jax.random.key(i))[0] for i in range(2)])
    try:
        frames = list(env.render_frames(states))
    except UsageError as error:
        pytest.skip(str(error))  # no OpenGL
    assert len(frames) == 2
    assert {(frame.dtype, frame.shape) for frame in frames} == {(np.dtype(np.uint8), frames[0].shape)}
    assert frames[0].shape[2] == 3
    assert frames[0].std() > 1
