"""The command line: a film of a trained policy."""

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console

from purejaxppo.cli.command import exit_code, parse_flags
from purejaxppo.errors import UsageError
from purejaxppo.experiment.options import Checkpoint, EnvAgain, Flag, OneSeed, RunDirectory
from purejaxppo.policy.load import Trained, load, stepper
from purejaxppo.policy.video import (
    Frame,
    captioned,
    check_file,
    frame_rate,
    frames,
    gymnasium_frames,
    player,
    renderer,
    write_film,
)
from purejaxppo.presets import settings_of

# before pygame, matplotlib and MuJoCo start: no window, no sound, no greeting
HEADLESS = {
    "SDL_VIDEODRIVER": "dummy",
    "SDL_AUDIODRIVER": "dummy",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "MPLBACKEND": "Agg",
    **({"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}),
}


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """What is filmed."""

    directory: RunDirectory
    out: Annotated[str, tyro.conf.arg(help="file to write, .gif or .mp4; one that is there is replaced")] = "policy.gif"
    seed: OneSeed = "best"
    checkpoint: Checkpoint = "last"
    episodes: Annotated[int, tyro.conf.arg(help="episodes, one after the other")] = 1
    max_steps: Annotated[int, tyro.conf.arg(help="cut an episode off after so many steps")] = 1000
    gymnasium: Annotated[
        str | None, tyro.conf.arg(help="film it in this Gymnasium environment instead; CartPole-v1, say")
    ] = None
    env: EnvAgain = None
    sample: Annotated[Flag, tyro.conf.arg(help="take samples of the policy instead of its mode")] = False
    episode_seed: Annotated[int, tyro.conf.arg(help="what the episodes are drawn with")] = 0
    fps: Annotated[float | None, tyro.conf.arg(help="frames per second. None: what suits the environment")] = None

    def check(self) -> None:
        """Raises: UsageError."""
        check_file(Path(self.out))
        for name in ("episodes", "max_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} must be a whole number in [1, inf); pass one.")
        if not 0 <= self.episode_seed < 2**32:
            raise UsageError(f"episode_seed = {self.episode_seed} must be within 0 … 2³² - 1; the default is 0.")
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise UsageError(f"fps = {self.fps} must be within 1 … 240; leave it out for what suits the environment.")


def main(argv: list[str]) -> int:
    """Film, and return the exit code, see `exit_code`."""

    def command() -> None:
        for name, value in HEADLESS.items():
            os.environ.setdefault(name, value)
        options = parse_flags(RenderOptions, argv, "purejaxppo render", "Film what a run has learnt.")
        options.check()
        film(options, Console(highlight=False))

    return exit_code(command)


def film(options: RenderOptions, console: Console) -> None:
    """Write the film, and say what it shows.

    Raises:
        UsageError: the options cannot be met.
    """
    trained = load(options.directory, options.seed, options.checkpoint, options.env)
    trained = trained._replace(config=trained.config.replace(eval_greedy=not options.sample))
    env, name = trained.config.environment, options.gymnasium
    if options.gymnasium is None:
        name = trained.config.env if isinstance(trained.config.env, str) else repr(env)
    title = f"{settings_of(trained.config)['algo']} on {name}, seed {trained.seed} after {trained.env_steps:,} steps"
    lasts: list[Frame] = []

    def pictures() -> Iterator[np.ndarray]:
        for i, episode in enumerate(episodes(trained, options)):
            which = f"episode {i + 1} of {options.episodes}, " if options.episodes > 1 else ""
            for still in episode:
                yield captioned(still.picture, title, f"{which}step {still.step}, return {still.total:.1f}")
            lasts.append(still)

    write_film(Path(options.out), pictures(), options.fps or frame_rate(env, options.gymnasium))
    console.print(f"{options.out}: {title}", soft_wrap=True)
    for i, last in enumerate(lasts):
        cut = "" if last.over else ", cut off by --max-steps"
        console.print(f"episode {i + 1}: {last.step:,} steps{cut}, return {last.total:.1f}", soft_wrap=True)


def episodes(trained: Trained, options: RenderOptions) -> Iterator[Iterator[Frame]]:
    """The episodes of a film, drawn as they are asked for."""
    config, key, act = trained.config, jax.random.key(options.episode_seed), stepper(trained.config, trained.state)
    if options.gymnasium:
        seeds = np.random.SeedSequence(options.episode_seed).generate_state(options.episodes)
        for i, seed in enumerate(seeds):
            sampling = jax.random.fold_in(key, i) if options.sample else None
            yield gymnasium_frames(options.gymnasium, config.environment, act, int(seed), options.max_steps, sampling)
        return
    draw, play = renderer(config.environment), player(config, options.max_steps)
    for i in range(options.episodes):
        yield frames(play(trained.state, jax.random.fold_in(key, i)), draw)
