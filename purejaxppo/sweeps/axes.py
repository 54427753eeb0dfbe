"""What a sweep goes over: grids and distributions, as lists of settings."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from purejaxppo.algorithms import hyperparameters
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.fields import did_you_mean, is_number, meant, whole_number, without_none
from purejaxppo.presets import settings_of, with_settings
from purejaxppo.stages import parse_stages

Settings = dict[str, Any]  # the fields of one setting that are swept
_OTHER_SWEEPS = dict.fromkeys(("env", "algo", "policy_network", "critic_network"), "make one sweep of each")
_OTHER_SWEEPS |= dict.fromkeys(("seed", "num_seeds"), "all settings have the same: pass --seed and --num-seeds")
_MOST = 100_000  # settings
_LARGEST = 1e18  # ends of what is drawn: int64 holds them, and no float overflows


def traced(config: Config, name: str) -> bool:
    """Whether a setting may be traced, so that all its values share one program. Raises: UsageError: no setting."""
    return is_number(setting_field(config, name))


def grid(axes: Mapping[str, Sequence[Any]], times: int = 1) -> list[Settings]:
    """Every combination of the values of all axes; the last axis varies fastest.

    Raises:
        UsageError: an empty axis, or so many, `times` the draws of others, that nobody could list them.
    """
    for name, values in axes.items():
        if not len(values):
            raise UsageError(f"grid {name} is empty; pass {name}=VALUE,VALUE.")
    count = times * math.prod(len(values) for values in axes.values())
    if count > _MOST:
        raise UsageError(f"the sweep has {count:,} settings and may have {_MOST:,}; pass fewer values, or --random.")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def parse_axis(config: Config, text: str) -> tuple[str, list[Any]]:
    """`field=a,b,c` → the field and its values. Items of a tuple: `hidden_sizes=64x64,32`, or by spaces, `64 64,32`.

    Raises:
        UsageError: it is not of that form, there is no such field, or a value is not of its type.
    """
    name, equals, values = text.partition("=")
    if not equals:
        raise UsageError(f"grid = {text!r} must be field=value,value; pass --grid max_kl=0.01,0.02, say.")
    name = name.strip().replace("-", "_")
    setting_field(config, name)
    return name, [parse_value(config, name, value) for value in values.split(",")] if values.strip() else []


def parse_sampler(config: Config, text: str) -> tuple[str, Callable[[np.random.Generator], Any]]:
    """`field=DISTRIBUTION:a,b` → the field and what draws a value of it, to 4 significant digits.

    To more where the range is narrow: γ from 0.9995 to 0.9999 to 6.

    `uniform:low,high` and `loguniform:low,high` are for numbers that may be traced, `randint:low,high`, both ends
    included, for whole ones, `choice:a,b,c` for all.

    Raises:
        UsageError: it is not of that form, or does not fit the field.
    """
    name, _, spec = text.partition("=")
    kind, colon, values = spec.partition(":")
    name = name.strip().replace("-", "_")
    field = setting_field(config, name)
    if kind not in ("uniform", "loguniform", "randint", "choice") or not colon:
        raise UsageError(f"sample = {text!r} must be field=KIND:a,b, one of: uniform, loguniform, randint, choice.")
    if kind == "choice":
        _, options = parse_axis(config, f"{name}={values}")
        if not options:
            raise UsageError(f"sample {name} is empty; pass {name}=choice:VALUE,VALUE.")
        return name, lambda rng: options[rng.integers(len(options))]
    ends = [parse_value(config, name, value) for value in values.split(",")]
    if kind != "randint" and not traced(config, name):
        raise UsageError(
            f"{name} is static, and {kind} is for real numbers; pass {name}=randint:low,high or choice:a,b."
        )
    if kind == "randint" and _kind(field)[0] is not int:
        raise UsageError(f"{name} is no whole number, which randint draws; pass {name}=uniform:low,high or choice.")
    bounded = all(end is not None and abs(end) <= _LARGEST for end in ends)  # not NaN either
    if len(ends) != 2 or not bounded or ends[0] > ends[1] or (kind[0] == "l" and ends[0] <= 0):
        above = "0 < " if kind == "loguniform" else ""
        rule = f"{above}low ≤ high, within ±{_LARGEST:g}"
        raise UsageError(f"sample = {text!r:.80} needs {kind}:low,high, {rule}; pass both ends.")
    low, high = ends
    if kind == "randint":
        return name, lambda rng: int(rng.integers(low, high, endpoint=True))
    alike = math.log10(max(abs(low), abs(high)) / (high - low)) if high > low else 0.0  # first digits of all draws
    digits = max(4, min(math.ceil(alike) + 2, 15))

    def draw(rng: np.random.Generator) -> float:
        x = rng.uniform(low, high) if kind == "uniform" else math.exp(rng.uniform(math.log(low), math.log(high)))
        return min(max(float(f"{x:.{digits}g}"), low), high)

    return name, draw


def parse_value(config: Config, name: str, text: str) -> Any:
    """One value of a field, as its flag would take it. Raises: UsageError."""
    field, text = setting_field(config, name), text.strip()
    kind, optional = _kind(field)
    if optional and text.lower() == "none":
        return None
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return whole_number(text) if kind is int else float(text)
        if kind == tuple[int, ...]:
            return tuple(map(whole_number, text.replace("x", " ").split()))
    except (KeyError, ValueError) as error:
        wanted = "true or false" if kind is bool else "a number" if kind is float else "a whole number"
        raise UsageError(f"{name} = {text!r} must be {wanted}; the default: {settings_of(config)[name]!r}.") from error
    return text if kind is str else (text,) * bool(text) if name == "stages" else tuple(text.split())


def _kind(field: "dataclasses.Field[Any]") -> tuple[Any, bool]:
    """The type of a field's values, and whether None is one, too."""
    kind, optional = without_none(field.type)
    return str if field.metadata.get("choices") else kind, optional


def checked(config: Config, settings: Sequence[Settings]) -> list[Config]:
    """The config of every setting. Raises: UsageError: there is none, or one twice, or one that cannot work."""
    if not settings or not settings[0]:
        raise UsageError("a sweep needs an axis; pass --grid FIELD=A,B, or --random N with --sample FIELD=uniform:A,B.")
    twice = next((a for a, b in itertools.pairwise(sorted(settings, key=repr)) if a == b), None)
    if twice is not None:
        sizes = " A list's items are joined by x: hidden_sizes=64x64,32." if "hidden_sizes" in label(twice) else ""
        raise UsageError(f"{label(twice)} is there twice; pass each value once.{sizes}")
    configs = [with_settings(config, own) for own in settings]
    for one in configs:
        one.check()
    return configs


def refuse_overruled(configs: Sequence[Config], settings: Sequence[Settings]) -> None:
    """Raises: UsageError: what a new sweep or study gives a config would do nothing, as another setting decides."""
    for config, own in zip(configs, settings, strict=True):
        found = settings_of(config)
        staged = {name for stage in parse_stages(config.stages) if stage.step <= 0 for name in stage.numbers}
        for name, value in own.items():
            idle = f"{label({name: value})} would do nothing"
            if name in staged:
                raise UsageError(f"{idle}: stages set {name} from step 0; leave out one.")
            if value is not None and found[name] != value:
                raise UsageError(f"{idle}: another setting makes it {show(found[name])}; leave out one of them.")


def of_python(config: Config, axes: Mapping[str, Any]) -> list[Settings]:
    """The settings of axes that are lists or arrays of values. Raises: UsageError, a static field given as an array."""
    values: dict[str, list[Any]] = {}
    for name, axis in axes.items():
        if traced(config, name):
            try:
                values[name] = np.asarray(axis, np.float64).ravel().tolist()
            except (TypeError, ValueError) as error:
                raise UsageError(f"{name} = {axis!r:.80} must be a list of numbers, or an array of them.") from error
        elif isinstance(axis, str) or not isinstance(axis, Iterable):
            raise UsageError(f"{name} = {axis!r:.80} must be a list of values.")
        elif isinstance(axis, jax.Array):
            raise UsageError(f"{name} is static and cannot be an array; pass a list of Python values.")
        else:
            values[name] = [tuple(x) if isinstance(x, list) else x for x in axis]
    return grid(values)


def label(settings: Settings) -> str:
    """`max_kl=0.01,gamma=0.99`."""
    return ",".join(f"{name}={show(value)}" for name, value in settings.items())


def show(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def setting_field(config: Config, name: str) -> "dataclasses.Field[Any]":
    """The field of a setting that may be varied, of the config or of its algorithm. Raises: UsageError: no setting."""
    fields = {field.name: field for owner in (config, config.algo) for field in dataclasses.fields(owner)}
    known = sorted(fields.keys() - {*_OTHER_SWEEPS})
    if name in _OTHER_SWEEPS:
        raise UsageError(f"{name} is the same for a whole sweep or study; {_OTHER_SWEEPS[name]}.")
    if name not in known:
        owners = hyperparameters()
        other = meant(name, owners)
        hint = (
            f"{other} belongs to --algo {' or '.join(owners[other])}." if other else f"there are: {', '.join(known)}."
        )
        hint = did_you_mean(name, known) or hint
        raise UsageError(f"{name!r:.80} is no setting of {type(config.algo).__name__} that can be varied; {hint}")
    return fields[name]
