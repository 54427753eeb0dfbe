"""config.json: written, and read back without trust."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import platform
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from purejaxppo._version import __version__
from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.fields import is_number
from purejaxppo.optimize.optimizers import OPTIMIZERS
from purejaxppo.presets import preset, settings_of
from purejaxppo.rundir.files import TUNE, malformed, read_json, refuse_links, refusing, shown, write_json
from purejaxppo.stages import FIXED, MOST_STAGES

_PRNGS = ("threefry2x32", "rbg", "unsafe_rbg")


class RunRecord(NamedTuple):
    """What config.json says."""

    directory: Path
    config: Config
    seeds: list[int]
    options: dict[str, Any]  # of the run loop, see options.py
    prng: str  # implementation of the keys
    devices: int
    versions: dict[str, str]
    threads: int | None = None  # of the CPU; None on an accelerator, or where nobody wrote it down
    machine: dict[str, str] | None = None  # see `parallel.machine.fingerprint`; None where nobody wrote it down


def write_record(record: RunRecord, name: str = "config.json", more: Mapping[str, Any] | None = None) -> None:
    """Write config.json, or what else begins with the same."""
    same = {key: getattr(record, key) for key in ("seeds", "options", "devices", "threads", "versions", "machine")}
    about = {"settings": settings_of(record.config), **same, "prng_implementation": record.prng}
    write_json(record.directory / name, about | dict(more or {}))


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object that `write_record` wrote, its parts of the right types.

    Raises:
        UsageError: it is damaged, or missing; where that is a study's directory, it names the run in it.
    """
    if path.name == "config.json" and not path.exists() and path.with_name(TUNE).exists():
        best = path.parent / "best"
        again = resume_command("tune", path.parent, None)
        way_out = f"pass {best}" if best.is_dir() else f"it has none yet; {again} goes on"
        raise UsageError(f"{path.parent} is the directory of a study, whose run is in best: {way_out}.")
    content = read_json(path)
    with refusing(path):
        settings, seeds = content["settings"], content["seeds"]
        for named, value in (("algo", settings["algo"]), ("env", settings["env"])):
            if not isinstance(value, str):
                raise malformed(path, f"{named} = {value!r:.80} is not a name")
        if not isinstance(seeds, list) or not 0 < len(seeds) <= 2**20 or len({*seeds}) < len(seeds):
            raise malformed(path, f"seeds = {seeds!r:.80} are not different numbers, of which there is at least one")
        if not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
            raise malformed(path, f"seeds = {seeds!r:.80} are not whole numbers in [0, 2³²)")
        if not isinstance(content.get("options") or {}, dict):
            raise malformed(path, "options is no object")
        if not isinstance(content["versions"], dict) or not isinstance(content["prng_implementation"], str):
            raise malformed(path, "versions or prng_implementation are missing")
    return content


def is_object(env: str) -> bool:
    """Whether it is what `to_json` calls an environment that was no name but an instance."""
    return env.startswith("<") or "(" in env.partition(",")[0]


def is_code(env: str) -> bool:
    """Whether an environment's name makes Python import a module, which no file may ask for."""
    return ":" in env and not is_object(env)


def refuse_code(path: Path, env: str) -> None:
    """Raises: UsageError: the environment that `path` names is code, which is to be named again by whoever runs it."""
    if is_object(env):
        raise UsageError(
            f"{path}: env = {env!r:.80} was passed as an object; give it again: --env MODULE:CLASS, or env=… in Python."
        )
    if is_code(env):
        raise UsageError(
            f"{path}: env = {env!r:.80} is code, and a config.json, which may come from others, may not say what is "
            f"run; give it again:{env_again(env)}"
        )


def resume_command(command: str, directory: Path, env: Any, flag: str = "--resume") -> str:
    """What to type, so that a run, a sweep or a study (`tune`) goes on."""
    return f"purejaxppo {command} {flag} {shlex.quote(str(directory))}{env_again(env)}"


def env_again(env: Any) -> str:
    """The flag that commands need to read a run back; nothing where its record names the environment."""
    return f" --env {shlex.quote(env)}" if isinstance(env, str) and is_code(env) else ""


def read_record(
    directory: Path,
    env: Any = None,
    policy_network: Any = None,
    critic_network: Any = None,
    optimizer: Any = None,
    *,
    name: str = "config.json",
) -> RunRecord:
    """Read config.json, believing nothing in it.

    An environment of the user's own is code that the file merely names: `env` must give it again, as `module:Class` or
    as an instance. So must `policy_network` and `critic_network`, modules of the user's own, and an `optimizer` that is
    a function; one that is a name is the file's.

    Raises:
        UsageError: there is none, it is damaged, or what it asks for cannot work here.
    """
    path = directory / name
    content = read_config(path)
    prng, seeds = content["prng_implementation"], content["seeds"]
    versions = {shown(package): shown(version) for package, version in content["versions"].items()}
    options, devices, threads = content.get("options"), content.get("devices"), content.get("threads")
    machine = content.get("machine")
    refuse_newer(path, versions.get("purejaxppo"))
    if prng not in _PRNGS:
        raise malformed(path, f"prng_implementation = {prng:.80} is not one of {', '.join(_PRNGS)}")
    if not isinstance(options, dict) or not isinstance(devices, int) or not isinstance(threads, int | None):
        raise malformed(path, "options, devices or threads are missing, or of another type")
    if machine is not None:
        if not isinstance(machine, dict):
            raise malformed(path, f"machine = {machine!r:.80} is no object")
        machine = {shown(name): shown(value, 200) for name, value in machine.items()}
    settings, modules = dict(content["settings"]), {"policy_network": policy_network, "critic_network": critic_network}
    for key, module in modules.items():
        if (written := settings.pop(key, None)) is not None and module is None:
            raise UsageError(f"{path}: {key} = {written!r:.40} is a module of yours; give it again from Python.")
        if written is None and module is not None:
            raise UsageError(f"{key} = {type(module).__name__}, but this run was trained without; leave it out.")
    again = {name for name, own in (("env", env), ("optimizer", optimizer)) if own is not None}  # their texts are idle
    refuse_huge(path, {name: x for name, x in settings.items() if name not in again} | options)
    if "optimizer" in settings:  # which older versions did not have
        settings["optimizer"] = _optimizer_again(path, settings["optimizer"], optimizer)
    refuse_links(directory)
    algo, named = settings.pop("algo"), settings.pop("env")
    if env is None:
        refuse_code(path, named)
    if isinstance(env, str) and env != named and not is_object(named):
        raise UsageError(f"env = {env!r} is not the one that this run was trained on, {named!r:.80}; pass that one.")
    try:
        settings = {name: float(x) if x in ("inf", "-inf") else x for name, x in settings.items()}
        config = preset(algo, named if env is None else env, **usual_settings(algo, settings), **modules)
        config.check()
    except UsageError as error:
        raise UsageError(f"{path}: {error!s:.400}") from error
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: the settings do not fit together ({error!s:.200}); restore the file.") from error
    return RunRecord(directory, config, seeds, options, prng, devices, versions, threads, machine)


def usual_settings(algo: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file has them; and what its version did not know, as that did it: never as a preset says today."""
    fields = (*dataclasses.fields(Config), *dataclasses.fields(ALGORITHMS.get(str(algo), Config)))  # type: ignore[arg-type]
    known = {x.name: x.default for x in fields if x.name != "env" and isinstance(x.default, bool | int | float | str)}
    anneal = settings.get("anneal")
    if str(algo) in ALGORITHMS and isinstance(anneal, list):  # older versions took names that did nothing
        settings = {**settings, "anneal": [name for name in anneal if name not in (*FIXED, "dual_clip")]}
    return known | dict(settings)


def _optimizer_again(path: Path, written: Any, given: Any) -> Any:
    """The file's if it is a name, else the user's own. Raises: UsageError: it is lacking, or was not asked for."""
    own = None if isinstance(given, str) else given
    if written in OPTIMIZERS and own is not None:
        raise UsageError(f"optimizer = {own!r:.80}, but this run was trained with {written}; leave it out.")
    if written not in OPTIMIZERS and own is None:
        raise UsageError(f"{path}: optimizer = {written!r:.80} is a function of yours; give it again from Python.")
    return own or written


def refuse_huge(path: Path, values: Mapping[str, Any]) -> None:
    """Raises: UsageError: a number that JAX cannot count to, or a longer list or text than any of ours."""
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        limit, most = 2**53 if name == "total_steps" else 2**31, MOST_STAGES if name == "stages" else 64
        largest = max((abs(x) for x in items if isinstance(x, int)), default=0)
        if len(items) > most or (largest >= limit and not (largest < 2**1000 and _is_real(name))):
            raise UsageError(f"{path}: {name:.40} = {value!r:.80} is larger than can be; restore the file.")
        if isinstance(value, str) and len(value) > 1000:
            raise UsageError(f"{path}: {name:.40} = {value[:40]!r}… is longer than can be; restore the file.")


def _is_real(name: str) -> bool:
    """Whether a setting of ours may be any number, not whole ones alone."""
    owners: tuple[Any, ...] = (Config, *ALGORITHMS.values())
    fields = (field for owner in owners for field in dataclasses.fields(owner))
    return any(field.name == name and is_number(field) for field in fields)


def refuse_newer(path: Path, version: Any) -> None:
    """Raises: UsageError: `path` was written by a newer purejaxppo, or does not say by which."""
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,6}(\.\d{1,6}){1,2}\S{0,20}", version):
        raise UsageError(f"{path}: purejaxppo = {version!r:.80} is no version; restore the file.")

    def numbers(text: str) -> list[int]:
        return [int(x) for x in re.findall(r"\d+", text)[:3]]

    if numbers(version) > numbers(__version__):
        raise UsageError(f"{path} was written by purejaxppo {version}, newer than this {__version__}; upgrade.")


def versions(env: Any = "") -> dict[str, str]:
    """What a run's numbers depend on beside its settings: of packages, those that are installed, `env`'s among them."""
    found = {"purejaxppo": __version__, "python": platform.python_version()}
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"]
    with contextlib.suppress(ImportError):  # of a suite that is not there, as is told where the environment is made
        packages += _packages_of(env)
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _packages_of(env: Any) -> list[str]:
    """The packages that step an environment: its suite's, or the one that its class is from."""
    if not isinstance(env, str):
        env = type(env).__module__.removeprefix("purejaxppo.envs.") + ":"
    suite, slash, name = env.partition(",")[0].partition("/")
    if suite != "gymnasium":
        own = suite.partition(":")[0].partition(".")[0] if slash or ":" in suite else "gymnax"
        return [own, *(("mujoco", "mujoco-mjx") if own in ("brax", "playground") else ())]
    module, _, name = name.rpartition(":")
    entry = getattr(importlib.import_module("gymnasium").registry.get(name), "entry_point", "")
    engines = {"ALE/": ("ale-py",), ".mujoco": ("mujoco",), ".box2d": ("box2d", "box2d-py")}
    found = [package for word, packages in engines.items() if word in f"{name}{entry}" for package in packages]
    return [suite, *found, *([module.partition(".")[0]] if module else ())]
