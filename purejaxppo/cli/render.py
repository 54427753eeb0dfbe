"""The command line: a film of a trained policy."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from purejaxppo.cli.command import exit_code, parse_flags
from purejaxppo.errors import UsageError, plural
from purejaxppo.experiment.options import Checkpoint, EnvAgain, Flag, OneSeed, RunDirectory
from purejaxppo.policy.load import load
from purejaxppo.policy.video import check_file, render

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
        trained = load(options.directory, options.seed, options.checkpoint, options.env)
        how = (options.gymnasium, options.sample, options.episode_seed, options.fps)
        title, lasts = render(trained, options.out, options.episodes, options.max_steps, *how)
        console = Console(highlight=False)
        console.print(f"{options.out}: {title}", soft_wrap=True)
        for i, last in enumerate(lasts):
            cut = "" if last.over else ", cut off by --max-steps"
            console.print(f"episode {i + 1}: {plural(last.step, 'step')}{cut}, return {last.total:.1f}", soft_wrap=True)

    return exit_code(command)
