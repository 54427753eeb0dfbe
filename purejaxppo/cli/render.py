"""The command line: a film of a trained policy."""

import dataclasses
import os
import sys
from pathlib import Path

from purejaxppo.cli.command import start_jax
from purejaxppo.cli.flags import Command
from purejaxppo.cli.settings import PolicyOptions
from purejaxppo.errors import plural
from purejaxppo.experiment.progress import plain_console
from purejaxppo.fields import number, static
from purejaxppo.policy.load import load
from purejaxppo.policy.video import check_file, render
from purejaxppo.statistics import return_text

# before pygame, matplotlib and MuJoCo start: no window, no sound, no greeting
HEADLESS = {
    "SDL_VIDEODRIVER": "dummy",
    "SDL_AUDIODRIVER": "dummy",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "MPLBACKEND": "Agg",
    **({"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}),
}


@dataclasses.dataclass(frozen=True)
class RenderOptions(PolicyOptions):
    """What is filmed."""

    out: str = static("policy.gif", "file to write, .gif or .mp4; one that is there is replaced", metavar="FILE")
    episodes: int = static(1, "episodes, one after the other", interval="[1, 1e6]")
    max_steps: int = static(1000, "cut an episode off after so many steps", interval="[1, 1e9]")
    gymnasium: str | None = static(None, "film in this Gymnasium environment instead; CartPole-v1, say", metavar="ID")
    sample: bool = static(False, "take samples of the policy instead of its mode")
    episode_seed: int = static(0, "what the episodes are drawn with", interval="[0, 4294967295]")
    fps: float | None = number(None, "[1, 240]", "frames per second; left out: what suits the environment")


def film(options: RenderOptions) -> None:
    """Film, and say what came of each episode."""
    for name, value in HEADLESS.items():
        os.environ.setdefault(name, value)
    check_file(Path(options.out))
    start_jax()
    trained = load(options.directory, options.seed, options.checkpoint, options.env)
    how = (options.gymnasium, options.sample, options.episode_seed, options.fps)
    title, lasts = render(trained, options.out, options.episodes, options.max_steps, *how)
    console = plain_console()
    console.print(f"{options.out}: {title}", soft_wrap=True)
    for i, last in enumerate(lasts):
        cut = "" if last.over else ", cut off by --max-steps"
        played = f"{plural(last.step, 'step')}{cut}, return {return_text(last.total)}"
        console.print(f"episode {i + 1}: {played}", soft_wrap=True)


main = Command("render", RenderOptions, "Film what a run has learnt.", film)
