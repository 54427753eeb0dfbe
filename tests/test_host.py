"""Environments on the host: exact ends, one batch for all that is vmapped, failures named, nothing left behind."""

import csv
import functools
import gc
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_same_bits, by_cost, quick_jit

from purejaxppo import evaluate, init, make_train, over_runs, preset, update_step
from purejaxppo.cli.evaluate import EvaluateOptions, play_episodes, print_evaluation
from purejaxppo.cli.run import main
from purejaxppo.envs.check import check_env
from purejaxppo.envs.gymnasium import GymnasiumEnv, Part, _converted, _parts
from purejaxppo.envs.host import env as host_env
from purejaxppo.envs.host import pool
from purejaxppo.envs.host.env import _seed
from purejaxppo.envs.host.pool import EnvironmentBrokenError
from purejaxppo.envs.registry import make_env
from purejaxppo.errors import HostEnvironmentError, UsageError
from purejaxppo.experiment.experiment import start_record
from purejaxppo.experiment.options import HostOptions
from purejaxppo.parallel import devices
from purejaxppo.policy.export import export_policy
from purejaxppo.policy.load import trained
from purejaxppo.rollout import begin_episodes, environment_action, rollout
from purejaxppo.rundir.metrics import read_metrics
from purejaxppo.rundir.summary import read_summary
from purejaxppo.spaces import Discrete, MultiBinary, MultiDiscrete

gymnasium = pytest.importorskip("gymnasium")
host_environments = pytest.importorskip("host_environments")
CLOCK = "gymnasium/host_environments:Clock-v0"
TESTS = Path(__file__).parent
LIMIT = 7
SMALL = {"num_envs": 2, "num_steps": 8, "num_minibatches": 1, "num_epochs": 1, "hidden_sizes": (4,)}


class Always(NamedTuple):
    """A distribution of one action."""

    action: Any

    def noise(self, key):
        return jnp.zeros(())

    def sample_with(self, noise):
        return self.action

    def bound(self, action, low, high):
        return jnp.clip(action, low, high)


@pytest.fixture(autouse=True)
def found_by_workers(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))


@pytest.fixture
def clock():
    env = make_env(f"{CLOCK},terminates=3,workers=2")
    yield env
    env.close()


def played(env, num_envs, num_steps, key=0):
    """Transitions of a rollout in which every action is 1."""
    begin_key, key = jax.random.split(jax.random.key(key))
    episodes = begin_episodes(begin_key, env, num_envs)
    return rollout(
        key, env, lambda obs, hidden, start: (Always(jnp.ones(num_envs, jnp.int32)), hidden), episodes, num_steps
    )


def check_clock(t):
    """[T, B] each: rewards, ends, reached and first observations are what the rules say."""
    obs, next_obs = np.asarray(t.obs), np.asarray(t.next_obs)
    start, steps = obs[..., 0], obs[..., 1]
    np.testing.assert_array_equal(next_obs, np.stack([start, steps + 1], -1))
    np.testing.assert_array_equal(t.reward, steps + 1 + 1)
    np.testing.assert_array_equal(t.terminated, (start < 0.5) & (steps + 1 >= 3))
    np.testing.assert_array_equal(t.truncated, (start >= 0.5) & (steps + 1 == LIMIT))
    done = np.asarray(t.terminated | t.truncated)
    np.testing.assert_array_equal(obs[1:][~done[:-1]], next_obs[:-1][~done[:-1]])
    assert (obs[1:][done[:-1], 1] == 0).all()
    assert (obs[1:][done[:-1], 0] != next_obs[:-1][done[:-1], 0]).all()  # a start of its own
    assert t.terminated.any()
    assert t.truncated.any()


def test_ends_and_terminal_observations_are_the_environments_own(clock):
    check_env(clock, CLOCK)
    _, transitions, sums = quick_jit(lambda: played(clock, 5, 40))()
    check_clock(transitions)
    done = np.asarray(transitions.terminated | transitions.truncated)
    assert sums.episodes == done.sum()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_environments_are_seeded_apart_by_keys_that_lie_close(impl):
    """10,000 keys that differ in a few bits: valid, distinct seeds, of which each bit is set half the time."""
    seeds = np.asarray(jax.vmap(lambda i: _seed(jax.random.key(i, impl=impl)))(jnp.arange(10_000)))
    assert seeds.min() >= 0
    assert len(np.unique(seeds)) > 9_990
    bits = (seeds[:, None] >> np.arange(31)) & 1
    np.testing.assert_allclose(bits.mean(axis=0), 0.5, atol=0.02)


@pytest.mark.thorough
def test_seeds_and_environments_are_one_batch_and_do_not_depend_on_it(clock):
    """vmapped over seeds: one pool, one call per step; the same numbers as each seed alone."""
    calls = []
    step = clock._host_step
    clock._host_step = lambda table: calls.append(len(table)) or step(table)
    together = quick_jit(jax.vmap(lambda key: played(clock, 2, 20, key)))
    state, transitions, _ = jax.block_until_ready(together(jnp.arange(3)))
    assert calls == [6] * 20
    assert len(np.unique(state.env.pool)) == 1
    for seed in range(3):
        _, alone, _ = quick_jit(lambda seed=seed: played(clock, 2, 20, seed))()
        np.testing.assert_array_equal(transitions.next_obs[seed], alone.next_obs)
        np.testing.assert_array_equal(transitions.reward[seed], alone.reward)
    del clock._host_step


@pytest.mark.thorough
def test_devices_have_pools_of_their_own(clock):
    run = over_runs(lambda key: played(clock, 2, 20, key), jax.devices()[:2])
    state, transitions, _ = run(jnp.arange(4))
    for seed in range(4):
        check_clock(jax.tree.map(lambda x, seed=seed: x[seed], transitions._replace(distribution=None)))
    assert len(np.unique(state.env.pool)) == 2


def test_pools_of_several_devices_share_the_cores():
    env = make_env(f"{CLOCK},terminates=3")
    run = over_runs(lambda key: played(env, 64, 1, key)[0], jax.devices()[:2])
    pools = [env._pools[number] for number in np.unique(run(jnp.arange(2)).env.pool)]
    cores = devices.cpu_cores()
    assert [len(pool._workers) for pool in pools] == [min(32, max(1, cores // 2))] * 2  # 2 environments for each
    env.close()


@pytest.mark.parametrize(
    ("actions", "given", "sent"),
    [
        ("discrete", jnp.asarray([0, 2]), [-1, 1]),
        ("multi", jnp.asarray([[1, 0], [2, 1]]), [1, 3]),
        ("binary", jnp.asarray([[1, 0], [1, 1]]), [1, 2]),
        ("box", jnp.asarray([[[0.5, 0.25]], [[9.0, -1.0]]]), [0.75, 1.0]),
        ("narrow", jnp.asarray([[9.0, 9.0], [0.25, -9.0]]), [0.8, -0.15]),
        ("whole", jnp.asarray([[0.9, 0.7], [9.0, -0.2]]), [2, 1]),
    ],
)
def test_spaces(actions, given, sent):
    env = make_env(f"gymnasium/host_environments:Spaces-v0,actions={actions},workers=1")
    space = {"discrete": Discrete(3), "multi": MultiDiscrete((3, 2)), "binary": MultiBinary(2)}
    assert env.action_space == space.get(actions, env.action_space)
    if actions == "box":
        np.testing.assert_array_equal(env.action_space.high, np.full((1, 2), 2.0))
    mask = {"action_mask": MultiBinary(3)} if actions == "discrete" else {}
    assert env.observation_space["place"] == Discrete(5)
    assert {"action_mask": env.observation_space["action_mask"]} == mask or actions != "discrete"
    if actions == "discrete":
        check_env(env, "spaces")
    episodes = begin_episodes(jax.random.key(0), env, 2)
    action = environment_action(env.action_space, Always(0), given)
    _, obs, reward, _, _ = jax.vmap(env.step)(jax.random.split(jax.random.key(1), 2), episodes.env, action)
    np.testing.assert_allclose(reward, sent)
    for seen in (obs, episodes.obs):
        assert {name: (x.dtype.name, x.shape[1:]) for name, x in seen.items() if name != "action_mask"} == {
            "picture": ("uint8", (4, 4, 1)),
            "place": ("int32", ()),
            "nested.0": ("float32", (2,)),
            "nested.1": ("float32", (2,)),
        }
        assert (seen["picture"] == 200).all()
        assert (seen["place"] == 1).all()
        np.testing.assert_array_equal(seen["nested.1"], [[2, 3]] * 2)
        np.testing.assert_array_equal(seen["action_mask"], [[1, 0, 1]] * 2)
    env.close()


@pytest.mark.thorough
def test_training_evaluations_and_chunks_are_one_another(clock):
    """One program, or update by update; and each evaluation gives its processes back."""
    config = preset("a2c", clock, total_steps=48, eval_interval=1, eval_episodes=3, **SMALL)
    _, metrics = quick_jit(make_train(config))(jax.random.key(0))
    assert len(clock._pools) == 2  # of training and of evaluation, though there were three
    assert np.isfinite(metrics["eval_return"]).all()
    update, state = quick_jit(functools.partial(update_step)), quick_jit(init)(config, jax.random.key(0))
    assert len(clock._pools) == 2  # the one of the training, which has ended, serves this run
    for i in range(3):
        state, one = update(config, state)
        np.testing.assert_allclose(one["policy_loss"], metrics["policy_loss"][i], rtol=1e-5)
    assert update._cache_size() == 1


@pytest.mark.parametrize("stack", by_cost([1, 2], [2]))
def test_generations_begin_new_episodes_in_the_same_processes(clock, stack):
    """In the midst of those before: and the same state leads to the same generation, whatever was played since."""
    config = preset("cem", clock, num_envs=4, num_steps=LIMIT + 2, hidden_sizes=(4,), frame_stack=stack)
    update, state = quick_jit(functools.partial(update_step, config)), quick_jit(init)(config, jax.random.key(0))
    first, metrics = update(state)
    assert metrics["episodes"] >= 4
    second, _ = update(first)
    again, same = update(state)
    assert len(clock._pools) == 1
    for part in ("policy", "algorithm", "key"):
        assert_same_bits(getattr(again, part), getattr(first, part))
    assert_same_bits((again.rollout.obs, same), (first.rollout.obs, metrics))
    assert not np.array_equal(first.algorithm.std, second.algorithm.std)


def test_an_evaluation_counts_whole_episodes_of_environments_that_stop(clock):
    config = preset("a2c", clock, **SMALL)
    state = quick_jit(init)(config, jax.random.key(0))
    steps, real = [], clock._host_step
    clock._host_step = lambda table: steps.append(np.sum(table[:, 3] == 0)) or real(table)
    result = quick_jit(evaluate, static_argnums=3)(config, state, jax.random.key(1), 23)
    del clock._host_step
    assert result.lengths.shape == (23,)
    assert set(np.asarray(result.lengths).tolist()) == {3, LIMIT}
    assert sum(steps) >= result.lengths.sum()
    assert max(steps) == clock.episodes_at_once


@pytest.mark.thorough
@pytest.mark.parametrize("stack", [1, 2])
def test_successes_are_counted_where_the_environment_tells_them(stack, tmp_path, capsys):
    """Episodes of 3 steps are successes, and others take 7: so the mean length says how many were."""

    def share(length):
        return (LIMIT - np.asarray(length, float)) / (LIMIT - 3)

    name, out = "gymnasium/host_environments:Goal-v0,terminates=3", tmp_path / "run"
    flags = f"--env {name} --algo a2c --num-envs 2 --num-steps 16 --total-steps 128 --hidden-sizes 4 --num-seeds 2"
    flags += f" --final-episodes 20 --eval-interval 2 --eval-episodes 5 --frame-stack {stack} --out {out}"
    assert main(flags.split()) == 0
    table = capsys.readouterr().out
    metrics = read_metrics(out / "metrics.csv", [0, 1])
    for kind, count in (("", 8), ("eval_", 4)):
        rates = metrics.metric(f"{kind}success_rate")
        assert np.isfinite(rates).sum() == count
        np.testing.assert_allclose(rates, share(metrics.metric(f"{kind or 'episode_'}length")), atol=1e-6)
    rate = read_summary(out, [0, 1])["success_rate"]
    assert 0 < rate < 1
    assert re.search(rf"success rate *│ {rate:.3f} ", table)

    file = tmp_path / "figures.json"
    print_evaluation(EvaluateOptions(out, env=name, episodes=12, json=str(file)))
    table = capsys.readouterr().out
    for found in json.loads(file.read_text())["returns"]["port"]["per_seed"]:
        assert found["success_rate"] == pytest.approx(share(found["mean_length"]))
        assert f" {found['success_rate']:.3f} " in table
    assert not make_env(CLOCK).tells_success


@pytest.mark.thorough
def test_what_cannot_be_is_told(clock):
    config = preset("a2c", clock, total_steps=32, **SMALL)
    shared = jax.vmap(lambda lr: make_train(config.replace(learning_rate=lr))(jax.random.key(0)))
    with pytest.raises(Exception, match="give each run a key of its own"):
        jax.block_until_ready(quick_jit(shared)(jnp.asarray([1e-3, 1e-4])))
    state = quick_jit(init)(config, jax.random.key(0))
    clock.close()
    with pytest.raises(Exception, match="begin new episodes"):
        jax.block_until_ready(quick_jit(update_step)(config, state))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gymnasium/LunarLandr-v3", ["did you mean gymnasium/LunarLander-v3"]),
        ("gymnasium/CartPole-v1,workers=0", ["workers = 0"]),
        ("gymnasium/CartPole-v1,wheels=3", ["cannot be made", "wheels"]),
        ("gymnasium/host_environments:Spaces-v0,actions=odd", ["actions Dict", "choose another one"]),
        ("gymnasium/CartPole-v1,grayscale=true", ["grayscale takes images, bytes [height, width, 3]"]),
        ("gymnasium/CartPole-v1,resize=84", ["resize takes images"]),
        ("gymnasium/host_environments:Picture-v0,resize=0", ["resize = 0 is no height and width"]),
        ("gymnasium/no_such_module:Any-v0", ["no_such_module", "on PYTHONPATH"]),
    ],
)
def test_names_and_parameters_that_are_wrong(name, parts):
    with pytest.raises(UsageError) as refused:
        make_env(name)
    for part in parts:
        assert part in str(refused.value)


FAILURES = {
    "raise": "raised ValueError: the spring is broken (host_environments.py:",
    "nan observation": "gave an observation that is not finite",
    "infinite observation": "gave an observation that is not finite",
    "inf reward": "gave a reward that is not finite",
    "short observation": "gave an observation of shape (1,), not (2,)",
    "abort": "ended its process (SIGABRT)",
    "abort and leave a process": "ended its process (SIGABRT)",
}


@pytest.mark.parametrize("how", by_cost(FAILURES, ["raise", "inf reward", "abort and leave a process"]))
def test_a_failure_names_the_environment_and_ends_the_processes(how):
    """The second of four, in the third step."""
    env = make_env(f"{CLOCK},fails_at=3,how={how},below=0.3,workers=2")
    pools, slots, ended, start = env._host_open(1, 4, np.asarray([[0, 14], [0, 12], [0, 13], [0, 9]]))
    assert (start[:, 0] < 0.3).tolist() == [False, True, False, False]
    table = np.stack([slots * 0, pools, slots, ended, slots, slots * 0], axis=1)
    for _ in range(2):
        env._host_step(table)
    with pytest.raises(EnvironmentBrokenError) as broken:
        env._host_step(table)
    assert FAILURES[how] in str(broken.value)
    assert (broken.value.run, broken.value.index) == (0, 1)
    assert not children()
    env.close()


@pytest.mark.thorough
def test_a_failure_while_a_policy_is_evaluated_names_the_seed(tmp_path):
    config = preset("ppo", f"{CLOCK},fails_at=3,how=raise,below=1", **SMALL)
    states = jax.jit(jax.vmap(lambda key: init(config, key)))(jax.random.split(jax.random.key(0), 1))
    with pytest.raises(
        HostEnvironmentError, match=r"environment \d of seed 7 raised ValueError.*; mend the environment"
    ):
        play_episodes(config, states, [7], EvaluateOptions(tmp_path, episodes=2))
    assert not children()
    one = jax.tree.map(lambda x: x[0], states)
    with pytest.raises(HostEnvironmentError, match=r"environment \d raised ValueError.*; mend the environment"):
        evaluate(config, one, jax.random.key(0), 2)
    with pytest.raises(HostEnvironmentError, match=r"of seed 7 raised ValueError.*; mend the environment"):
        export_policy(trained(config, [7], states, 0, 10), tmp_path / "policy.jax")


def opened(env, seeds, per_run=None):
    """Environments of those seeds, without JAX: the rows that name them, and what they observe first."""
    table = np.stack([np.zeros(len(seeds), int), seeds], axis=1)
    pools, slots, ended, start = env._host_open(1, per_run or len(seeds), table)
    return np.stack([slots * 0, pools, slots, ended, slots, slots * 0], axis=1), start


def test_keys_that_cannot_be_vmapped_are_refused(tmp_path):
    config = preset("ppo", CLOCK)
    with jax.default_prng_impl("rbg"), pytest.raises(UsageError, match="unset JAX_DEFAULT_PRNG_IMPL"):
        start_record(config, [0, 1], tmp_path, jax.devices()[:1], HostOptions())


def test_an_environment_that_takes_longer_than_its_timeout_ends_the_run():
    env = make_env(f"{CLOCK},fails_at=1,how=pause,below=0.3,workers=1,step_timeout=0.1")
    rows, _ = opened(env, [14, 13, 9, 12], per_run=2)
    with pytest.raises(
        EnvironmentBrokenError, match=r"environment 1 of run 1 did not answer within step_timeout = 0.1 s"
    ):
        env._host_step(rows)
    assert not children()
    env = make_env(f"{CLOCK},terminates=1,how=slow reset,workers=1,step_timeout=0.2")  # which a reset need not keep
    rows, _ = opened(env, [14, 13, 9, 12])
    assert env._host_step(rows)[2].any()
    env.close()
    env = make_env(f"{CLOCK},fails_at=1,how=rest,workers=1,step_timeout=0.25")  # five of 0.1 s, one after the other
    env._host_step(opened(env, [14, 13, 9, 12, 1])[0])
    env.close()
    with pytest.raises(UsageError, match="step_timeout = 0 must be seconds"):
        make_env(f"{CLOCK},step_timeout=0")


def test_environments_are_closed_when_they_end(tmp_path):
    """Each of them, in its worker."""
    env = make_env(f"{CLOCK},workers=2,closes_in={tmp_path}")
    for path in tmp_path.iterdir():  # of the one that was looked at
        path.unlink()
    opened(env, [1, 2, 3])
    env.close()
    assert len([*tmp_path.iterdir()]) == 3
    assert not children()


def test_an_environment_that_does_not_answer_is_named(monkeypatch, capfd):
    """The second of the second run, in a step that takes half a second."""
    env = make_env(f"{CLOCK},fails_at=1,how=pause,below=0.3,workers=1")
    rows, start = opened(env, [14, 13, 9, 12], per_run=2)
    assert (start[:, 0] < 0.3).tolist() == [False, False, False, True]
    monkeypatch.setattr(pool, "SILENT_SECONDS", 0.1)
    env._host_step(rows)
    env.close()
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: host_environments:Clock-v0: environment 1 of run 1 has not answered for 0.1 s")


def test_processes_serve_later_runs_and_end_with_their_environment():
    """Twenty runs after one another; another environment's; one that is not closed but forgotten; a `with`."""
    env = GymnasiumEnv("host_environments:Clock-v0", workers=1)
    for seed in range(20):
        rows, _ = opened(env, [seed, 1])
        env._host_release(rows)
    assert len(children()) == 1
    with pytest.raises(EnvironmentBrokenError, match="begin new episodes"):
        env._host_step(rows - [0, 1, 0, 0, 0, 0])  # of the run before
    with GymnasiumEnv("host_environments:Clock-v0", workers=1) as other:
        opened(other, [1, 2])
        assert len(children()) == 1  # what the first one kept in reserve has ended
    assert not children()
    opened(env, [1, 2])
    assert len(children()) == 1
    del env
    gc.collect()
    assert not children()


def test_images_are_made_gray_and_of_another_size():
    name = "gymnasium/host_environments:Picture-v0,workers=1,grayscale=true"
    env = make_env(name)
    (_, start), _ = opened(env, [3, 4]), env.close()
    gray = host_environments.Picture.shown @ np.array([0.2125, 0.7154, 0.0721])  # of ITU-R BT.709, by Gymnasium
    np.testing.assert_allclose(np.asarray(start[0], np.float64).reshape(6, 8), gray, atol=1.0)  # whole numbers
    pytest.importorskip("cv2")
    for text, shape in (("3", (3, 3)), ("[2,4]", (2, 4))):
        assert make_env(f"{name},resize={text}").observation_space.shape[:2] == shape


def test_atari_takes_what_its_preprocessing_takes():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env = make_env("gymnasium/ALE/Breakout-v5,workers=1,terminal_on_life_loss=true,screen_size=42")
    assert env.observation_space.shape[:2] == (42, 42)
    with pytest.raises(UsageError, match="lives"):
        make_env("gymnasium/ALE/Breakout-v5,lives=3")


@pytest.mark.parametrize("mask", by_cost(["method", "info", "tuple", "none"], ["info", "none"]))
def test_global_generators_are_seeded_and_masks_beside_the_observation_are_used(mask):
    env = make_env(f"gymnasium/host_environments:Dice-v0,mask={mask},workers=1")
    (rows, start), (_, again) = opened(env, [3, 4]), opened(env, [3, 4])
    jax.tree.map(np.testing.assert_array_equal, start, again)
    actions = rows[:, -1:] if mask == "tuple" else rows[:, :0]  # one number more
    reached = env._host_step(np.concatenate([rows, actions], axis=1))[0]
    env.close()
    if mask == "none":
        assert start.shape == (2, 3)
        assert (start[0] != start[1]).all()
        return
    check_env(env, "dice")
    assert {name: x.shape for name, x in start.items()} == {"obs": (2, 3), "action_mask": (2, 3)}
    np.testing.assert_array_equal(start["action_mask"], [[True, True, True]] * 2)
    np.testing.assert_array_equal(reached["action_mask"], [[True, False, True]] * 2)
    free = env.from_gymnasium(np.ones((5, 3)))
    np.testing.assert_array_equal(free["action_mask"], np.ones(3, bool))  # one for all
    told = env.from_gymnasium(np.ones(3), [1, 0, 1])
    np.testing.assert_array_equal(told["action_mask"], [True, False, True])


@pytest.mark.parametrize("mask", ["float", "bool", "int"])
def test_a_mask_may_have_any_type(mask):
    env = make_env(f"gymnasium/host_environments:Raw-v0,mask={mask},workers=1")
    assert env.observation_space["action_mask"] == MultiBinary(3)
    _, start = opened(env, [1])
    env.close()
    np.testing.assert_array_equal(start["action_mask"], [[True, False, True]])


def test_an_integer_outside_its_space_is_named():
    env = make_env("gymnasium/host_environments:Raw-v0,place=5,workers=1")
    with pytest.raises(EnvironmentBrokenError, match="gave an observation place 5, not one of 3 from 0 on"):
        opened(env, [1, 2])


def test_large_integers_are_the_floats_that_workers_send():
    number = 5_000_000_000  # beyond 2³¹
    part = Part([], None, "float32")
    given = np.asarray([number, -number], np.int64)
    np.testing.assert_array_equal(_converted(given, part), given.astype(np.float32))


@pytest.mark.parametrize("actions", ["discrete", "multi", "binary", "box", "narrow", "whole"])
def test_observations_and_actions_are_translated_as_workers_do(actions):
    env = make_env(f"gymnasium/host_environments:Spaces-v0,actions={actions},workers=1")
    _, start = opened(env, [1])
    env.close()
    raw = host_environments.Spaces(actions)
    ours = env.from_gymnasium(raw.observe())
    assert {name: (x.dtype, x.shape) for name, x in ours.items()} == {
        name: (x.dtype, x.shape[1:]) for name, x in start.items()
    }
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), ours, start)
    batch = env.from_gymnasium(jax.tree.map(lambda x: np.stack([x] * 4), raw.observe()))
    assert batch["nested.1"].shape == (4, 2)
    given = {
        "discrete": 0,
        "multi": [2, 1],
        "binary": [1, 0],
        "box": [[1.5, 0.5]],
        "narrow": [0.4, -0.4],
        "whole": [0.9, -0.7],
    }[actions]
    taken = env.to_gymnasium(jnp.asarray(given))
    raw.step(taken)  # it asserts that its space contains it
    assert env.to_gymnasium(jnp.asarray([given] * 3)).shape[0] == 3
    assert actions != "discrete" or hash(taken) == hash(-1)


def test_entries_of_the_same_name_are_told_apart():
    box = gymnasium.spaces.Box(0, 1, (1,))
    nested = gymnasium.spaces.Dict({"a": gymnasium.spaces.Dict({"b": box}), "a.b": box})
    assert {name: path for name, (path, *_) in _parts("x", nested, 0).items()} == {"a/b": ["a", "b"], "a.b": ["a.b"]}


def test_what_only_this_process_knows_is_refused_with_what_to_write():
    source = type("Here", (gymnasium.Env,), {"__module__": "__main__"})
    gymnasium.register("Here-v0", source)
    gymnasium.register("There-v0", "host_environments:Clock", max_episode_steps=7)
    for name, part in (("Here-v0", "MODULE:Here-v0"), ("There-v0", "host_environments:There-v0")):
        with pytest.raises(UsageError, match=f"registered in this process alone.*{part}"):
            make_env(f"gymnasium/{name}")
        gymnasium.registry.pop(name)


def run(*flags):
    return main(["--quiet", "--algo", "a2c", "--num-envs", "2", "--num-steps", "5", "--hidden-sizes", "4", *flags])


@pytest.mark.slow
def test_a_failure_names_the_seed_and_leaves_the_checkpoint_and_a_resumed_run_begins_new_episodes(tmp_path, capfd):
    """It is in the second update, of one environment only; the checkpoint of the first is whole."""
    starts = make_env(CLOCK)
    seeds, out, mended = [5, 6], tmp_path / "run", tmp_path / "mended"
    first = np.asarray(quick_jit(jax.vmap(lambda seed: begin_of(seed, starts)))(jnp.asarray(seeds)))
    starts.close()
    order = np.argsort(first.ravel())  # the one with the lowest start is to fail
    below = float(np.mean(first.ravel()[order[:2]]))
    name = f"{CLOCK},fails_at=6,how=raise,below={below},workers=1,mended={mended}"
    flags = ["--num-seeds", "2", "--seed", "5", "--total-steps", "40", "--checkpoint-interval", "1", "--out", str(out)]
    assert run("--env", name, "--devices", "1", *flags) == 1
    [printed] = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning")]
    seed, index = seeds[order[0] // 2], order[0] % 2
    assert printed.startswith(
        f"error: host_environments:Clock-v0: environment {index} of seed {seed} raised ValueError"
    )
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["10"]
    assert not children()
    mended.touch()
    assert main(["--resume", str(out)]) == 2  # it is code of its own
    assert main(["--resume", str(out), "--env", name]) == 0
    assert "begin new episodes" in capfd.readouterr().out
    with (out / "metrics.csv").open() as file:
        assert [(row["seed"], row["env_steps"]) for row in csv.DictReader(file)] == [
            (str(seed), str(steps)) for steps in (10, 20, 30, 40) for seed in seeds
        ]


def begin_of(seed, env):
    """[2] what the environments of a run observe first."""
    config = preset("a2c", env, num_envs=2, num_steps=5, hidden_sizes=(4,))
    return init(config, jax.random.key(seed)).rollout.obs[:, 0]


@pytest.mark.parametrize(
    ("name", "package"), [("LunarLander-v3", "Box2D"), ("Hopper-v5", "mujoco"), ("ALE/Breakout-v5", "ale_py")]
)
def test_a_missing_package_names_the_extra(name, package, monkeypatch, capsys):
    for module in [module for module in sys.modules if module.startswith(("gymnasium.envs.", f"{package}."))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    make_env.cache_clear()
    assert main(["--env", f"gymnasium/{name}"]) == 2
    [printed] = capsys.readouterr().err.splitlines()
    assert "pip install 'purejaxppo[gymnasium]'" in printed


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("no_such_module:Arm-v0", "no module 'no_such_module'; correct its name, or put the directory"),
        ("gymnasium.nothing:Arm-v0", "no module 'gymnasium.nothing'; correct its name"),
        ("Unheard-v0", "if it is your own: gymnasium/MODULE:Unheard-v0; "),
    ],
)
def test_environments_of_ones_own_that_are_not_found_say_what_to_do(name, part):
    with pytest.raises(UsageError, match=part):
        make_env(f"gymnasium/{name}")


def test_several_devices_for_one_seed_are_refused(capsys, tmp_path):
    flags = ["--num-seeds", "1", "--mesh", "env=2", "--out", str(tmp_path / "run")]
    assert run("--env", "gymnasium/CartPole-v1", *flags) == 2
    assert "mesh = 'env=2': env and net must be 1" in capsys.readouterr().err
    train = make_train(preset("ppo", "gymnasium/CartPole-v1", **SMALL))
    with pytest.raises(UsageError, match="mesh = 'net=2': env and net must be 1"):
        over_runs(train, net_shards=2).lower(jax.random.split(jax.random.key(0), 2))


def children(parent=None):
    """Worker processes of one parent, or of this process."""
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (path / "cmdline").read_bytes(), (path / "stat").read_text()
        except OSError:
            continue
        mine = f'"parent": {parent or os.getpid()},'.encode() in command
        if mine and status.rpartition(")")[2].split()[0] != "Z":
            found.append(int(path.name))
    return found


KILLED = """
import sys
import numpy as np
from purejaxppo.envs.registry import make_env

for params in ("", ",fails_at=1,how=hang"):
    env = make_env(f"{sys.argv[1]},workers=2{params}")
    pools, slots, ended, _ = env._host_open(1, 2, np.asarray([[0, 3], [0, 4]]))
    if params:
        print("ready", flush=True)
    env._host_step(np.stack([slots * 0, pools, slots, ended, slots, slots], axis=1))
"""


@pytest.mark.thorough
def test_nothing_is_left_after_kill_9():
    """Neither workers that wait nor those whose environment hangs."""
    shared = sorted(Path("/dev/shm").iterdir())
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, CLOCK],
        env=os.environ | {"PYTHONPATH": path},
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        assert len(children(process.pid)) == 4
        time.sleep(0.3)
        process.kill()
    assert waited_for(lambda: not children(process.pid), 10)
    assert sorted(Path("/dev/shm").iterdir()) == shared


def waited_for(what, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not what():
        time.sleep(0.05)
    return what()


@pytest.mark.parametrize("stack", [1, 2])
def test_the_last_of_several_who_use_an_environment_closes_it(stack):
    """Runs in threads of one process have the same environment, by its name."""
    first, second = (preset("a2c", f"{CLOCK},workers=1", frame_stack=stack).environment for _ in range(2))
    step = quick_jit(lambda state: jax.vmap(first.step)(jax.random.split(jax.random.key(1), 2), state, jnp.zeros(2)))
    with first:
        episodes = quick_jit(lambda key: begin_episodes(key, first, 2))(jax.random.key(0))
        with second:
            pass
        jax.block_until_ready(step(episodes.env))
    with pytest.raises(jax.errors.JaxRuntimeError, match="was closed"):
        jax.block_until_ready(step(episodes.env))


@pytest.mark.thorough
def test_evaluations_on_many_devices_leave_the_trainings_processes_alone(clock, monkeypatch):
    """How many pools there may be depends on the number of devices, each of which has some of its own."""
    monkeypatch.setattr(host_env, "MOST_POOLS", 1)
    named = set()
    for environments in (2, 3):  # of the training, and of an evaluation
        begin = over_runs(functools.partial(begin_episodes, env=clock, num_envs=environments), jax.devices()[:2])
        named |= {*np.unique(begin(jax.random.split(jax.random.key(0))).env.pool).tolist()}
    assert {*clock._pools} == named
    assert len(named) == 4
