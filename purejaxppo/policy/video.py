"""Films of a policy: GIF or MP4, its episodes one after the other."""

import contextlib
import functools
import itertools
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.errors import UsageError, reason
from purejaxppo.keys import RENDERING
from purejaxppo.policy.frames import Frame, compiled_frames, gymnasium_frames, in_gymnasium
from purejaxppo.policy.load import Trained, as_trained
from purejaxppo.rundir.files import check_out, replacing
from purejaxppo.statistics import return_text

_SMALLEST_WIDTH = 320  # pixels; smaller pictures are enlarged, so that there is room for the caption
_CAPTION_HEIGHT = 44
_GIF_MILLISECONDS = 20  # the shortest; browsers slow down what is faster


def render(
    trained: Trained | str | Path,
    out: str | Path = "policy.gif",
    episodes: int = 1,
    max_steps: int = 1000,
    gymnasium: str | None = None,
    sample: bool = False,
    episode_seed: int = 0,
    fps: float | None = None,
) -> tuple[str, list[Frame]]:
    """Film a policy in the environment it was trained in, or in Gymnasium's of the name given.

    Args:
        trained: what `load` returns; or a run's directory, for its best seed.
        out: a .gif or .mp4 file; one that is there is replaced, if the film is complete.
        episodes: how many, one after the other.
        max_steps: at which an episode is cut off.
        gymnasium: film Gymnasium's environment of this name, which has the same spaces.
        sample: take samples of the policy instead of its mode.
        episode_seed: what the episodes are drawn with.
        fps: frames per second; None is what suits the environment.

    Returns:
        The film's title, and the last frame of each episode.

    Raises:
        UsageError: no such file can be written, the environment cannot be drawn, a package is missing, or `episodes` is
            less than 1.
    """
    if episodes < 1:
        raise UsageError(f"episodes = {episodes!r} must be at least 1; pass 1, say.")
    out, trained = Path(out), as_trained(trained)
    check_file(out)
    config = trained.config.replace(eval_greedy=not sample)
    where = gymnasium or config.env_name
    title = f"{config.algo_name} on {where}, seed {trained.seed} after {trained.env_steps:,} steps"
    config = in_gymnasium(config, gymnasium) if gymnasium else config
    draw = gymnasium_frames if config.on_host else compiled_frames
    tagged = jax.random.fold_in(jax.random.key(episode_seed), RENDERING)
    keys, lasts = jax.random.split(tagged, episodes), []

    def pictures() -> Iterator[np.ndarray]:
        sizes: dict[str, None] = {}
        for i, frames in enumerate(draw(config, trained.state, keys, max_steps), 1):
            which = f"episode {i} of {episodes}, " if episodes > 1 else ""
            for frame in frames:
                sizes["×".join(map(str, frame.picture.shape[:2]))] = None
                if len(sizes) > 1:
                    raise UsageError(f"the renderer gave pictures of {' and '.join(sizes)}; make all of one size.")
                yield captioned(frame.picture, title, f"{which}step {frame.step}, return {return_text(frame.total)}")
            lasts.append(frame)

    with _rendering():
        write_film(out, pictures(), fps or config.environment.render_fps)
    return title, lasts


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
    check_out(path, (".gif", ".mp4"))
    if path.suffix == ".mp4":
        with _rendering():
            import imageio_ffmpeg  # noqa: F401


def write_film(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    """Write pictures of one size, uint8 [H, W, 3], as GIF or MP4: whole, or not at all."""
    with replacing(path) as draft:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(draft, pictures, fps)


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


@contextlib.contextmanager
def _rendering() -> Iterator[None]:
    """Raises: UsageError: a package that draws or writes is not installed."""
    from gymnasium.error import DependencyNotInstalled

    try:
        yield
    except (ImportError, DependencyNotInstalled) as error:
        raise UsageError(f"a package is missing ({reason(error)}); pip install 'purejaxppo[render]'.") from error
