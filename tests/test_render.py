"""`purejaxppo render`: episodes, pictures, files."""

import dataclasses
import importlib
import itertools
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import gymnax
import imageio_ffmpeg
import jax
import numpy as np
import pytest
from environments import StepCounter
from gymnax.visualize import visualizer
from gymnax.visualize.vis_gym import SUPPORTED_GYM_ENVS, render_gym_frame
from matplotlib import pyplot
from PIL import Image
from support import by_cost

from purejaxppo import Config, init, load, preset
from purejaxppo.__main__ import front
from purejaxppo.cli.run import main as run
from purejaxppo.envs.base import BaseEnv
from purejaxppo.envs.gymnax import CLASSIC_CONTROL, DRAWN, GymnaxEnv
from purejaxppo.envs.registry import make_env
from purejaxppo.errors import UsageError
from purejaxppo.policy import frames as frames_module
from purejaxppo.policy import video
from purejaxppo.policy.acting import actor
from purejaxppo.policy.frames import Frame, compiled_frames, gymnasium_frames, in_gymnasium, player
from purejaxppo.policy.video import captioned, write_film

FLAGS = "--algo a2c --num-envs 2 --num-steps 16 --total-steps 64 --hidden-sizes 8".split()
HOST = "--final-episodes 2 --num-seeds 2 --devices 1 --quiet".split()


@dataclasses.dataclass(frozen=True)
class Drawn(StepCounter):
    """Lasts 5 steps; its picture is as bright as the steps are many."""

    def render(self, state: Any) -> np.ndarray:
        return np.full((10, 15, 3), 40 * int(state.steps), np.uint8)


def floats(self, state):
    return np.zeros((10, 15, 3), np.float32)


def lacks_a_package(self, state):
    importlib.import_module("no_such_package")


def lacks_a_step(self, action):
    raise ValueError("no step")


@pytest.fixture(scope="module", autouse=True)
def headless():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
            patch.setenv(name, "dummy")
        patch.setenv("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        yield pyplot.switch_backend("Agg")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, by the name of its environment."""
    made = {}

    def find(env="CartPole-v1"):
        if env not in made:
            made[env] = tmp_path_factory.mktemp("runs") / "finished"
            assert run([*FLAGS, *HOST, "--env", env, "--out", str(made[env])]) == 0
        return made[env]

    return find


@pytest.fixture
def command(monkeypatch, capsys):
    """The command's exit code and what it prints."""

    def call(*argv):
        return front(["render", *map(str, argv)]), capsys.readouterr()

    return call


def pictures_of(path):
    """The frames of a GIF, and how long each is shown."""
    with Image.open(path) as film:
        frames, milliseconds = [], set()
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB")))
            milliseconds.add(film.info["duration"])
    return frames, milliseconds


@pytest.mark.parametrize("where", by_cost([[], ["--gymnasium", "CartPole-v1"]], [[]]))
def test_a_gif_has_a_picture_for_every_state_and_no_two_alike(where, finished, tmp_path, command):
    code, printed = command(finished(), "--out", tmp_path / "x.gif", "--max-steps", 6, "--episodes", 2, *where)
    assert (code, printed.err) == (0, "")
    assert [line.partition(": ")[0] for line in printed.out.splitlines()[1:]] == ["episode 1", "episode 2"]
    assert printed.out.count("6 steps, cut off by --max-steps, return 6.0") == 2
    frames, milliseconds = pictures_of(tmp_path / "x.gif")
    assert len(frames) == 2 * 7
    assert milliseconds == {20}  # Gymnasium's 50 frames per second
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    assert frames[0].shape == (444, 600, 3)
    drawn = [frame[44:] for frame in frames[:7]]
    assert len({picture.tobytes() for picture in drawn}) >= 4  # it starts nearly at rest
    assert list(tmp_path.iterdir()) == [tmp_path / "x.gif"]


@pytest.mark.parametrize("where", [[], ["--gymnasium", "CartPole-v1"]])
def test_an_mp4_is_played_back_whole(where, finished, tmp_path, command):
    path = tmp_path / "x.mp4"
    code, printed = command(finished(), "--out", path, "--max-steps", 100, "--sample", "--fps", 40, *where)
    assert (code, printed.err) == (0, "")
    steps = int(printed.out.splitlines()[1].split()[2])
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert 5 < count == steps + 1
    assert seconds == pytest.approx(count / 40, abs=0.03)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(ffmpeg, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(count, 444, 600, 3)
    assert frames[0, 50:100].mean() > 250  # the sky
    assert (np.abs(frames[-1].astype(int) - frames[0]) > 100).any()


def test_an_episode_is_cut_where_it_ends_or_at_the_last_step_allowed():
    config = preset("a2c", StepCounter(limit=5), num_envs=2, num_steps=4, total_steps=8, hidden_sizes=(4,))
    state = init(config, jax.random.key(0))
    for max_steps, ended in ((8, True), (5, True), (3, False)):
        episode = player(config, max_steps)(state, jax.random.key(1))
        length = min(5, max_steps)
        assert [int(x.steps) for x in episode.states] == list(range(length + 1))
        assert episode.totals.tolist() == list(range(length + 1))
        assert episode.ended is ended


def test_the_films_episode_is_that_of_a_plain_loop(finished):
    trained = load(finished(), seed=1)
    episode = player(trained.config.replace(eval_greedy=False), 50)(trained.state, jax.random.key(3))
    start_key, play_key = jax.random.split(jax.random.key(3))
    env = trained.config.environment
    state, obs = env.reset(start_key)
    for step, key in enumerate(jax.random.split(play_key, len(episode.states) - 1)):
        np.testing.assert_allclose(episode.states[step].theta, state.theta, rtol=1e-4, atol=1e-6)
        action_key, step_key = jax.random.split(key)
        state, obs, *_ = env.step(step_key, state, trained.act(obs, action_key))


def test_an_environment_of_the_users_own_draws_itself(finished, tmp_path, command):
    run_directory = finished("test_render:Drawn")
    code, printed = command(run_directory, "--env", "test_render:Drawn", "--out", tmp_path / "x.gif")
    assert (code, printed.err) == (0, "")
    assert "episode 1: 5 steps, return 5.0" in printed.out
    frames, milliseconds = pictures_of(tmp_path / "x.gif")
    assert milliseconds == {40}
    for step, frame in enumerate(frames):
        picture = frame[44:]
        assert picture.shape == (220, 330, 3)  # enlarged 22 times
        assert np.abs(picture.astype(int) - 40 * step).max() <= 4  # the palette's
    assert len(frames) == 6


@pytest.mark.parametrize(
    ("render", "parts"),
    [
        (floats, ["float32 [10, 15, 3]", "uint8 [H, W, 3]"]),
        (lacks_a_package, ["no_such_package", "pip install 'purejaxppo[render]'"]),
    ],
)
def test_a_film_that_fails_leaves_the_old_one(render, parts, finished, tmp_path, monkeypatch, command):
    (tmp_path / "x.gif").write_text("precious")
    monkeypatch.setattr(Drawn, "render", render)
    name = "test_render:Drawn"
    code, printed = command(finished(name), "--env", name, "--out", tmp_path / "x.gif")
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    for part in parts:
        assert part in printed.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_an_environment_that_cannot_be_drawn_is_refused_with_a_way_out():
    config = preset("a2c", StepCounter(), num_envs=2, num_steps=4, total_steps=8, hidden_sizes=(4,))
    with pytest.raises(UsageError, match=r"render\(state\).*--gymnasium"):
        next(compiled_frames(config, None, [], 5))
    with pytest.raises(UsageError, match=r"^this environment cannot be drawn"):  # no `<… object at 0x…>`
        BaseEnv().render_frames([])
    with pytest.raises(UsageError, match=r"is not drawn by gymnax; those are Acrobot-v1.*Breakout-MinAtar"):
        GymnaxEnv("FrozenLake-misc").render_frames([])


@pytest.mark.parametrize("env", ["CartPole-v1", "gymnasium/CartPole-v1,sutton_barto_reward=true"])
def test_an_episode_in_gymnasium_is_that_of_a_plain_loop(env):
    """With frames stacked and actions repeated as in training, and the environment's own parameters."""
    config = preset("a2c", env, num_envs=2, num_steps=4, frame_stack=2, action_repeat=2, hidden_sizes=(8,))
    with config.environment:
        state = init(config, jax.random.key(0))
    act = actor(config, state)
    original = config if config.on_host else in_gymnasium(config, "CartPole-v1")
    env = gymnasium.make("CartPole-v1", sutton_barto_reward=config.on_host)
    keys = jax.random.split(jax.random.key(2), 2)
    for key, frames in zip(keys, gymnasium_frames(original, state, keys, 12), strict=True):
        *_, last = frames
        seen, _ = env.reset(seed=int(jax.random.bits(key) >> 1))
        stack, total, steps, over = [seen, seen], 0.0, 0, False
        while not over and steps < 12:
            action, steps, left = int(act(np.concatenate(stack))), steps + 1, 2
            while left and not over:
                seen, reward, over, *_ = env.step(action)
                total, left = total + reward, left - 1
            stack = [stack[1], seen]
        assert last[1:] == (steps, total, over)
    env.close()


@pytest.mark.parametrize("mask", by_cost(["method", "info"], ["info"]))
def test_masks_that_gymnasium_tells_beside_the_observation_count_in_a_film(mask):
    """Whatever the policy prefers, the middle action is taken only in even steps, when it is valid."""
    config = preset("a2c", f"gymnasium/host_environments:Dice-v0,mask={mask}", num_envs=2, num_steps=4)
    with config.environment:
        state = init(config, jax.random.key(0))
    head = state.policy["params"]["Dense_0"]
    head = head | {"kernel": 0 * head["kernel"], "bias": jax.numpy.array([0.0, 1.0, -1.0])}
    state = state.replace(policy={"params": state.policy["params"] | {"Dense_0": head}})
    [frames] = gymnasium_frames(config, state, jax.random.split(jax.random.key(1), 1), 6)
    pictures, _, totals, _ = zip(*frames, strict=True)
    assert np.diff(totals).tolist() == [1, 0, 1, 0, 1, 0]
    assert [int(picture.max()) for picture in pictures] == [20 * step for step in range(7)]
    [frames] = gymnasium_frames(config.replace(action_repeat=2), state, jax.random.split(jax.random.key(1), 1), 3)
    pictures, _, totals, _ = zip(*frames, strict=True)
    assert np.diff(totals).tolist() == [1, 0, 0]  # the second time it would not be valid
    assert [int(picture.max()) // 20 for picture in pictures] == [0, 1, 3, 5]


def test_what_an_environment_draws_from_global_generators_is_the_same_in_each_film(monkeypatch):
    config, seen = preset("a2c", "gymnasium/host_environments:Dice-v0,mask=none", num_envs=2, num_steps=4), []

    def step(obs, *_):
        seen.append(obs)
        return 0, None

    monkeypatch.setattr(frames_module, "stepper", lambda *_: step)
    before = np.random.get_state()[1].tolist()
    for _ in range(2):
        [frames] = gymnasium_frames(config, None, jax.random.split(jax.random.key(1), 1), 3)
        assert len([*frames]) == 4
    assert np.random.get_state()[1].tolist() == before  # this process's own
    np.testing.assert_array_equal(seen[:3], seen[3:])
    assert len(np.unique(seen)) == 9


def test_pictures_of_several_sizes_are_no_film(tmp_path, monkeypatch):
    trained = SimpleNamespace(config=Config(), seed=0, env_steps=8, state=None)
    sizes = [(4, 6), (4, 6), (5, 6)]
    drawn = [Frame(np.zeros((*size, 3), np.uint8), step, 0.0, step == 2) for step, size in enumerate(sizes)]
    monkeypatch.setattr(video, "compiled_frames", lambda *_: [drawn])
    with pytest.raises(UsageError, match="pictures of 4×6 and 5×6; make all of one size"):
        video.render(trained, tmp_path / "x.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_an_environment_that_fails_while_it_is_filmed_is_told_in_one_line(finished, tmp_path, command, monkeypatch):
    run_directory = finished("gymnasium/CartPole-v1,max_episode_steps=3")
    monkeypatch.setattr("gymnasium.envs.classic_control.CartPoleEnv.step", lacks_a_step)
    code, printed = command(run_directory, "--out", tmp_path / "x.gif")
    assert (code, printed.err.count("\n"), [*tmp_path.iterdir()]) == (1, 1, [])
    assert "CartPole-v1 raised ValueError: no step; mend the environment" in printed.err


@pytest.mark.thorough
def test_a_run_in_gymnasium_is_filmed_there(finished, tmp_path, command):
    run_directory = finished("gymnasium/CartPole-v1,max_episode_steps=3")
    code, printed = command(run_directory, "--out", tmp_path / "x.gif")
    assert (code, printed.err) == (0, "")
    assert "a2c on gymnasium/CartPole-v1,max_episode_steps=3, seed" in printed.out
    assert "episode 1: 3 steps, return 3.0" in printed.out
    assert len(pictures_of(tmp_path / "x.gif")[0]) == 4


BAD = {
    "--out x.avi": ["'x.avi'", ".gif or .mp4"],
    "--out nowhere/x.gif": ["'nowhere/x.gif'", "in a directory that exists"],
    "--episodes 0": ["episodes = 0"],
    "--max-steps 0": ["max_steps = 0"],
    "--episode-seed -1": ["episode_seed = -1"],
    "--fps 0": ["fps = 0"],
    "--seed all": ["seed = 'all'", "best, 0 … 1"],
    "--gymnasium CartPole": ["'gymnasium/CartPole'", "did you mean"],
    "--gymnasium Pendulum-v1": ["observations"],
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line_and_exit_code_2(flags, finished, tmp_path, monkeypatch, command):
    directory = finished()
    monkeypatch.chdir(tmp_path)
    code, printed = command(directory, *flags.split())
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    for part in BAD[flags]:
        assert part in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_names_that_can_be_drawn_are_those_that_gymnax_draws(monkeypatch):
    assert sorted(CLASSIC_CONTROL) == sorted(SUPPORTED_GYM_ENVS)
    for kind in ("gym", "catch", "minatar", "circle", "maze"):
        monkeypatch.setattr(getattr(visualizer, f"vis_{kind}"), f"init_{kind}", lambda *args: None)
    known = set()
    for name in gymnax.registered_envs:
        drawing = visualizer.Visualizer(types.SimpleNamespace(name=name), None, [None])
        drawing.init()
        known |= {name} if hasattr(drawing, "im") else set()
        pyplot.close(drawing.fig)
    assert known == {*CLASSIC_CONTROL, *DRAWN}


@pytest.mark.parametrize(
    "name", by_cost([*CLASSIC_CONTROL, *DRAWN], ["CartPole-v1", "Breakout-MinAtar"], [*CLASSIC_CONTROL, *[*DRAWN][::3]])
)
def test_every_environment_that_gymnax_knows_is_drawn(name):
    env = make_env(name)
    states = [env.reset(jax.random.key(i))[0] for i in range(4)]
    frames = list(env.render_frames(jax.device_get(states)))
    assert len(frames) == 4
    assert {(frame.dtype, frame.shape) for frame in frames} == {(np.dtype(np.uint8), frames[0].shape)}
    assert frames[0].shape[2] == 3
    assert frames[0].std() > 1  # not a blank
    assert pyplot.get_fignums() == []
    if name in CLASSIC_CONTROL:
        expected = render_gym_frame(name, states[-1], gymnax.make(name)[1])
        np.testing.assert_array_equal(frames[-1], expected)


def test_a_suites_own_renderer_and_rate_come_first():
    class Suite(Drawn):
        def render_frames(self, states):
            return (np.zeros((2, 2, 3), np.uint8) for _ in states)

    config = preset("a2c", Suite(), num_envs=2, num_steps=4, total_steps=8, hidden_sizes=(4,))
    [episode] = compiled_frames(config, init(config, jax.random.key(0)), [jax.random.key(1)], 9)
    found = list(episode)
    assert [frame.step for frame in found] == [0, 1, 2, 3, 4, 5]
    assert [frame.over for frame in found] == [False] * 5 + [True]
    assert {frame.picture.shape for frame in found} == {(2, 2, 3)}


@pytest.mark.parametrize("shape", [(1, 1), (33, 77), (210, 160), (401, 601)])
def test_a_caption_leaves_the_picture_as_it_is(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = captioned(picture, "a title of some length", "step 1")
    assert image.shape[0] % 2 == image.shape[1] % 2 == 0
    assert image.shape[1] >= 320
    scale = image.shape[1] // shape[1]
    below = image[44 : 44 + scale * shape[0] : scale, : scale * shape[1] : scale]
    np.testing.assert_array_equal(below, picture)
    assert (image[:44] < 128).any()
    long = captioned(picture, "a title " * 12, "step 1")
    assert (long[:44, -8:] == image[:44, -8:]).all()  # made to fit


def test_a_film_without_an_episode_is_refused(tmp_path):
    with pytest.raises(UsageError, match="episodes = 0 must be at least 1"):
        video.render(None, tmp_path / "x.gif", episodes=0)


def test_a_film_that_cannot_be_written_is_an_error(tmp_path):
    odd = iter([np.zeros((3, 3, 3), np.uint8)])
    with pytest.raises(OSError, match="ffmpeg says"):
        write_film(tmp_path / "x.mp4", odd, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_in_a_process_of_its_own_no_window_opens_and_nothing_is_said(finished, tmp_path):
    words = [sys.executable, "-m", "purejaxppo", "render", finished(), "--out", tmp_path / "x.mp4", "--max-steps", "3"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER", "PYGAME_HIDE_SUPPORT_PROMPT", "MPLBACKEND", "DISPLAY"):
        environment.pop(name, None)
    root = Path(__file__).parent.parent
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, cwd=root, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 2
