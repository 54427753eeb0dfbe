"""Films of a policy: an episode, its pictures, a file."""

import contextlib
import functools
import itertools
import math
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.agent import Agent
from purejaxppo.config import Config
from purejaxppo.envs.base import BaseEnv
from purejaxppo.errors import UsageError, reason
from purejaxppo.policy.gymnasium_play import for_gymnasium, open_env
from purejaxppo.rollout import environment_action
from purejaxppo.types import TrainState

DEFAULT_FPS = 25.0
_SMALLEST_WIDTH = 320  # pixels; smaller pictures are enlarged, so that there is room for the caption
_CAPTION_HEIGHT = 44
_GIF_MILLISECONDS = 20  # the shortest; browsers slow down what is faster

Renderer = Callable[[Sequence[Any]], Iterator[np.ndarray]]  # states ↦ one uint8 [H, W, 3] each


class Frame(NamedTuple):
    """An episode at one moment."""

    picture: np.ndarray  # uint8 [H, W, 3]
    step: int
    total: float  # the return so far
    over: bool  # the episode has ended


class Episode(NamedTuple):
    """The states of one episode, from its start to its end or to the last step allowed: L steps."""

    states: list[Any]  # L + 1, of NumPy arrays
    totals: np.ndarray  # [L + 1] the return so far
    ended: bool


def player(config: Config, max_steps: int) -> Callable[[TrainState, jax.Array], Episode]:
    """`(state, key) ↦ Episode`, compiled; greedy or sampled, as `config.eval_greedy` says."""
    agent = Agent.of(config)
    env = agent.env

    @jax.jit
    def play(state: TrainState, key: jax.Array) -> Any:
        policy, (start_key, play_key) = agent.make_policy(state), jax.random.split(key)
        start = env.reset(start_key)

        def step(carry: tuple[Any, Any, Any], key: jax.Array) -> Any:
            env_state, obs, hidden = carry
            action_key, step_key = jax.random.split(key)
            distribution, hidden = policy(obs, hidden)
            action = distribution.mode() if config.eval_greedy else distribution.sample(action_key)
            bounded = environment_action(env.action_space, distribution, action)
            env_state, obs, reward, terminated, truncated = env.step(step_key, env_state, bounded)
            return (env_state, obs, hidden), (env_state, reward, terminated | truncated)

        begun = (*start, agent.initial_hidden(start[1]))
        _, (states, rewards, done) = jax.lax.scan(step, begun, jax.random.split(play_key, max_steps))
        states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start[0], states)
        return states, rewards, done

    def episode(state: TrainState, key: jax.Array) -> Episode:
        states, rewards, done = jax.device_get(play(state, key))
        ended = bool(done.any())
        length = int(done.argmax()) + 1 if ended else max_steps
        totals = np.concatenate([[0.0], np.cumsum(rewards[:length], dtype=np.float64)])
        return Episode([jax.tree.map(lambda x, i=i: x[i], states) for i in range(length + 1)], totals, ended)

    return episode


def renderer(env: BaseEnv) -> Renderer:
    """How an environment is drawn. Raises: UsageError: it cannot be."""
    env.render_frames(())
    return env.render_frames


def frames(episode: Episode, render: Renderer) -> Iterator[Frame]:
    """An episode drawn."""
    with _rendering():
        last = len(episode.states) - 1
        for step, (picture, total) in enumerate(zip(render(episode.states), episode.totals, strict=True)):
            yield Frame(_checked(picture), step, float(total), episode.ended and step == last)


def gymnasium_frames(
    name: str, port: BaseEnv, act: Callable[..., Any], seed: int, max_steps: int, key: jax.Array | None
) -> Iterator[Frame]:
    """An episode in Gymnasium, drawn by itself, of `act(obs, key, hidden)`. With a `key` actions are sampled.

    Raises:
        UsageError: it is not there, cannot be drawn, or has other spaces.
    """
    env = open_env(name, port, render_mode="rgb_array")
    with contextlib.closing(env), _rendering():
        obs, _ = env.reset(seed=seed)
        step, total, over, hidden = 0, 0.0, False, None
        yield Frame(_checked(env.render()), step, total, over)
        while not over and step < max_steps:
            seen = np.asarray(obs, np.float32)
            action, hidden = act(seen, None if key is None else jax.random.fold_in(key, step), hidden)
            obs, reward, terminated, truncated, _ = env.step(for_gymnasium(env, action))
            step, total, over = step + 1, total + float(reward), terminated or truncated
            yield Frame(_checked(env.render()), step, total, over)


def frame_rate(port: BaseEnv, name: str | None) -> float:
    """Frames per second that suit an environment, or the Gymnasium one called `name`. Raises as `open_env`."""
    if name is None:
        return port.render_fps
    with contextlib.closing(open_env(name, port)) as env:
        return env.metadata.get("render_fps") or DEFAULT_FPS


def captioned(picture: np.ndarray, title: str, line: str) -> np.ndarray:
    """A picture, at least 320 pixels wide, under two lines of text; both sides even, as video needs."""
    from PIL import Image, ImageDraw

    scale = math.ceil(_SMALLEST_WIDTH / picture.shape[1])
    picture = np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)
    height, width = picture.shape[0] + _CAPTION_HEIGHT, picture.shape[1]
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), "#eeeeee")
    canvas.paste(Image.fromarray(picture), (0, _CAPTION_HEIGHT))
    draw = ImageDraw.Draw(canvas)
    for y, text in ((4, title), (23, line)):
        size = 15
        while draw.textlength(text, _font(size)) > width - 16 and size > 7:
            size -= 1
        draw.text((8, y), text, fill="black", font=_font(size))
    return np.asarray(canvas)


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def check_file(path: Path) -> None:
    """Raises: UsageError: no film can be written there."""
    if path.suffix not in (".gif", ".mp4") or path.is_dir():
        raise UsageError(f"out = {str(path)!r} must be the name of a .gif or .mp4 file; write --out policy.gif.")
    if not path.parent.is_dir():
        raise UsageError(f"out = {str(path)!r} is in no directory that exists; make it first.")
    if path.suffix == ".mp4":
        with _rendering():
            import imageio_ffmpeg  # noqa: F401


def write_film(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    """Write pictures of one size, uint8 [H, W, 3], as GIF or MP4: whole, or not at all."""
    draft = path.with_name(f".{path.stem}.saving{path.suffix}")
    try:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(draft, pictures, fps)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _write_gif(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    from PIL import Image

    octree, plain = Image.Quantize.FASTOCTREE, Image.Dither.NONE  # 2 ms a picture; the default takes 13
    first, *rest = (Image.fromarray(picture).quantize(method=octree, dither=plain) for picture in pictures)
    duration = max(_GIF_MILLISECONDS, 10 * round(100 / fps))
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0)


def _write_mp4(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    """imageio-ffmpeg brings the program; its own writer forks, which JAX's threads may not survive."""
    from imageio_ffmpeg import get_ffmpeg_exe

    first = next(pictures)
    taken = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{first.shape[1]}x{first.shape[0]}", "-r", str(fps)]
    given = ["-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path.absolute())]
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-y", *taken, "-i", "-", *given]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as ffmpeg:
        assert ffmpeg.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            for picture in itertools.chain([first], pictures):
                ffmpeg.stdin.write(picture.tobytes())
        said = ffmpeg.communicate()[1].decode(errors="replace")
    if ffmpeg.returncode:
        raise OSError(f"{path} cannot be written: ffmpeg says {said}")


def _checked(picture: Any) -> np.ndarray:
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UsageError(f"the renderer gave {array.dtype} {list(array.shape)}, not uint8 [H, W, 3]; correct it.")
    return array


@contextlib.contextmanager
def _rendering() -> Iterator[None]:
    """Raises: UsageError: a package that draws or writes is not installed."""
    from gymnasium.error import DependencyNotInstalled

    try:
        yield
    except (ImportError, DependencyNotInstalled) as error:
        raise UsageError(f"a package is missing ({reason(error)}); pip install 'purejaxppo[render]'.") from error
