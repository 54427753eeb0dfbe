"""What a study searches: for each setting a range, or choices."""

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.fields import check_field
from purejaxppo.presets import settings_of, with_settings
from purejaxppo.sweeps.axes import Settings, label, setting_field, show, traced
from purejaxppo.tuning.default_spaces import SPACES

SCALES = ("linear", "log", "one-minus-log")
MOST_PROGRAMS = 64  # combinations of static values, each of which is compiled
_JUDGES = ("total_steps", "eval_interval", "eval_episodes", "eval_max_steps", "eval_greedy")  # they measure a trial


class Dimension(NamedTuple):
    """The values of one setting: all from `low` to `high`, or some `choices`.

    On the scale `log`, x is spread evenly by log x; on `one-minus-log` by log (1 - x), as suits discounts.
    """

    low: float = math.nan
    high: float = math.nan
    scale: str = "linear"
    choices: tuple[Any, ...] = ()

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of what a sampler draws: of x, or of 1 - x."""
        return (1 - self.high, 1 - self.low) if self.scale == "one-minus-log" else (self.low, self.high)

    def setting(self, drawn: Any) -> Any:
        """The value of the setting: of a range to 4 significant digits, so that it can be written down."""
        if self.choices:
            return next(x for x in self.choices if label_of(x) == drawn)
        rounded = float(f"{drawn:.4g}")
        x = round(1 - rounded, 12) if self.scale == "one-minus-log" else rounded
        return min(max(x, self.low), self.high)

    def drawn(self, setting: Any) -> Any:
        """What `setting` is the value of, within the bounds."""
        if self.choices:
            return label_of(setting)
        low, high = self.bounds
        return min(max(1 - setting if self.scale == "one-minus-log" else setting, low), high)

    def parameter(self, name: str) -> str:
        """What the study calls it."""
        return f"one_minus_{name}" if self.scale == "one-minus-log" else name


Space = dict[str, Dimension]


def default_space(config: Config) -> dict[str, Any]:
    """The space of the config's algorithm, as a file would hold it. Raises: UsageError: there is none."""
    if config.algo_name not in SPACES:
        raise UsageError(f"there is no search space for {config.algo_name}; pass --space FILE.toml, or space=.")
    space = SPACES[config.algo_name]
    return {name: {key: x for key, x in about.items() if key != "source"} for name, about in space.items()}


def parse_space(config: Config, table: Mapping[str, Any]) -> Space:
    """Check a space against the config that it varies. A list stands for choices.

    Raises:
        UsageError: an unknown setting; a range that is none, or of a static setting; a value or a combination of values
            that cannot work; too many programs; no setting.
    """
    if not isinstance(table, Mapping) or not table:
        raise UsageError("the space has no setting; give [learning_rate] with low and high, say.")
    space = {}
    for name, about in table.items():
        setting_field(config, name)
        if name in _JUDGES:
            raise UsageError(f"space: {name} measures a trial and is the same for all; give it as a setting.")
        space[name] = _dimension(config, name, {"choices": about} if isinstance(about, list) else about)
    _check_statics(config, space)
    return space


def _dimension(config: Config, name: str, about: Any) -> Dimension:
    given = about.keys() if isinstance(about, Mapping) else {"no table"}
    if given not in ({"choices"}, {"low", "high"}, {"low", "high", "scale"}):
        raise UsageError(
            f"space: {name} has {', '.join(map(str, given)) or 'nothing':.80} and must have low and high, perhaps a "
            "scale, or choices; --show-space shows how."
        )
    if "choices" in about:
        return Dimension(choices=_choices(config, name, about["choices"]))
    if not traced(config, name):
        raise UsageError(
            f"space: {name} is static, each value being another program, and a range is for numbers; pass "
            f"choices = [{toml_value(settings_of(config)[name])}, …]."
        )
    low, high, scale = about["low"], about["high"], about.get("scale", "linear")
    if scale not in SCALES:
        raise UsageError(f"space: {name}: scale = {scale!r:.40} is not one of: {', '.join(SCALES)}; leave it out.")
    for end in (low, high):
        _check_value(config, name, end)
        if not math.isfinite(end):
            raise UsageError(f"space: {name} = {end} is no end of a range; pass choices to have inf among them.")
    within = {"linear": True, "log": low > 0, "one-minus-log": high < 1}[scale]
    if not low < high or not within:
        rule = {"linear": "low < high", "log": "0 < low < high", "one-minus-log": "low < high < 1"}[scale]
        raise UsageError(f"space: {name} from {low} to {high} must have {rule} on the scale {scale}; mend the range.")
    return Dimension(float(low), float(high), scale)


def _choices(config: Config, name: str, given: Any) -> tuple[Any, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise UsageError(f"space: {name}: choices = {given!r:.40} must be a list of values; pass at least one.")
    values = tuple(tuple(x) if isinstance(x, list) else x for x in given)
    for value in values:
        _check_value(config, name, value)
    if traced(config, name):
        values = tuple(float(x) for x in values)  # type: ignore[arg-type]
    if len({*map(label_of, values)}) < len(values):
        raise UsageError(f"space: {name}: choices = {given!r:.80} has a value twice; pass each once.")
    return values


def _check_value(config: Config, name: str, value: Any) -> None:
    if isinstance(value, jax.Array):
        raise UsageError(f"space: {name} = {value!r:.40} is an array; pass Python values.")
    try:
        check_field(setting_field(config, name), value, settings_of(config)[name])
    except UsageError as error:
        raise UsageError(f"space: {error}") from error


def combinations(config: Config, space: Space) -> list[Settings]:
    """Every combination of the choices of static settings: each is a program. [{}] where there are none."""
    axes = {name: dimension.choices for name, dimension in space.items() if not traced(config, name)}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _check_statics(config: Config, space: Space) -> None:
    """Every combination of static values must work, and they must not be too many."""
    counts = {name: len(dimension.choices) for name, dimension in space.items() if not traced(config, name)}
    if (count := math.prod(counts.values())) > MOST_PROGRAMS:
        raise UsageError(
            f"space: the choices of {', '.join(counts)} combine to {count:,} programs, each compiled by itself, and "
            f"may to {MOST_PROGRAMS}; pass fewer."
        )
    numbers = {name: x.choices[0] if x.choices else x.low for name, x in space.items() if name not in counts}
    for own in combinations(config, space):
        try:
            with_settings(config, own | numbers).check()
        except UsageError as error:
            raise UsageError(f"space: {f'with {label(own)}: ' if own else ''}{error}") from error


def label_of(value: Any) -> Any:
    """A choice as a study can keep it: numbers, truth values and texts as they are, sizes as `64x64`."""
    return show(value) if isinstance(value, tuple) else value


def as_toml(space: Space, sources: Mapping[str, str] | None = None, introduction: str = "") -> str:
    """A file that `parse_space` takes, each setting under its source, and all under an introduction."""
    lines = [*(f"# {line}" for line in introduction.splitlines()), ""] if introduction else []
    for name, about in plain(space).items():
        lines += [f"# {source}"] if (source := (sources or {}).get(name)) else []
        told = {key: x for key, x in about.items() if (key, x) != ("scale", Dimension().scale)}
        lines += [f"[{name}]", *(f"{key} = {toml_value(x)}" for key, x in told.items()), ""]
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """A setting as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON lets stand
    return repr(value)


def plain(space: Space) -> dict[str, Any]:
    """The table that `parse_space` takes, for JSON."""
    return {
        name: {"choices": list(x.choices)} if x.choices else {"low": x.low, "high": x.high, "scale": x.scale}
        for name, x in space.items()
    }


def settings_at(space: Space, drawn: Mapping[str, Any]) -> Settings:
    """The settings of a trial, of what the study drew for it."""
    return {name: x.setting(drawn[x.parameter(name)]) for name, x in space.items()}
