"""A trained policy as one file, from raw observation to action, checked against the policy itself."""

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo import __version__
from purejaxppo.agent import acting
from purejaxppo.experiment.directory import plain
from purejaxppo.experiment.trained import Trained
from purejaxppo.presets import settings_of
from purejaxppo.rollout import rollout
from purejaxppo.types import Box, MultiBinary, Space, UsageError

OBSERVATIONS, TOLERANCE = 1000, 1e-5  # of the check
Act = Callable[[Any], np.ndarray]  # obs [B, *O], or a dict of them -> action [B, *A], float32 or integer


def export_policy(trained: Trained, out: Path) -> float:
    """Write the greedy policy of a seed to `out`: `.onnx` for ONNX Runtime, `.jax` for `jax.export.deserialize`.

    The file maps observations as the environment gives them to what it receives: normalisation and clipping are in it.
    It is complete and checked, or not written; what was at `out` before then stays. Matrices are multiplied in full
    float32, also where accelerators round them by default. Returns the `largest_difference` that the check found.

    Raises:
        UsageError: `out` cannot be (see `check_name`), or the file's actions are not the policy's.
    """
    check_name(out)
    with jax.default_matmul_precision("highest"):
        obs = observations(trained)
        content, act = FORMATS[out.suffix][1](trained, obs)
        difference = largest_difference(trained, obs, act(obs))
    if not difference <= TOLERANCE:
        raise UsageError(
            f"{out}: its actions are off by {difference:.2g} > {TOLERANCE}; not written, choose another suffix."
        )
    draft = out.with_name(f".{out.name}.saving")
    try:
        draft.write_bytes(content)
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return difference


def check_name(out: Path) -> None:
    """Raises: UsageError: no such format, a package that it needs is missing, or no file can stand there."""
    if out.suffix not in FORMATS:
        raise UsageError(f"out = {str(out)!r} must end in {' or '.join(FORMATS)}; rename it.")
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"out = {str(out)!r} must be a file in a directory that exists; choose another --out.")
    try:
        for package in FORMATS[out.suffix][0]:
            importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f'out = {str(out)!r} needs an extra ({error}); pip install "purejaxppo[onnx]".') from error


def observations(trained: Trained) -> Any:
    """[1000, *O]: 500 that the policy meets from where training ended, and these disturbed, slightly to wildly.

    Integers and masks are left as they are.
    """
    config, space, half = trained.config, trained.config.environment.observation_space, OBSERVATIONS // 2
    policy, start, steps = acting(config, trained.state), trained.state.rollout, -(-half // config.num_envs)
    explore = jax.jit(lambda key: rollout(key, config.environment, policy, start, steps)[1].obs)
    rng = np.random.default_rng(trained.seed)

    def double(found: jax.Array, space: Space) -> np.ndarray:
        met = disturbed = np.asarray(found).reshape(-1, *space.shape)[:half]
        if isinstance(space, Box):
            scale = np.geomspace(0.1, 10.0, half).reshape(-1, *(1 for _ in space.shape))
            disturbed = np.clip(met + rng.normal(scale=scale, size=met.shape), space.low, space.high)
        return np.concatenate([met, disturbed]).astype(met.dtype)

    found = explore(trained.state.key)
    if isinstance(space, Mapping):
        return {name: double(found[name], space[name]) for name in space}
    return double(found, space)


def largest_difference(trained: Trained, obs: np.ndarray, action: np.ndarray) -> float:
    """By how much actions [N, A] are not the policy's mode; infinite if their shape or type is not.

    Continuous: max |a - μ| / max(1, max |μ|). Discrete, for each factor: max (ℓ* - ℓ(a)) / max(1, max |ℓ*|), ℓ* being
    the highest of the logits ℓ: 0 where the actions are equal, and tiny where two are as good as each other.
    """
    expected, space = np.asarray(trained.act(obs)), trained.config.environment.action_space
    if (action.shape, action.dtype) != (expected.shape, expected.dtype):
        return np.inf
    if not isinstance(space, Box):
        logits = np.asarray(jax.jit(acting(trained.config, trained.state))(obs).logits)
        if isinstance(space, MultiBinary):
            logits = np.stack([np.zeros_like(logits), logits], axis=-1)
        chosen = np.max(np.where(action[..., None] == np.arange(logits.shape[-1]), logits, -np.inf), axis=-1)
        expected, action = np.max(logits, axis=-1), np.where(action == expected, np.max(logits, axis=-1), chosen)
    return float(np.max(np.abs(action - expected)) / np.maximum(1.0, np.max(np.abs(expected))))


def to_onnx(trained: Trained, obs: Any) -> tuple[bytes, Act]:
    """An ONNX model, `obs` to `action`, whose metadata say what was trained; and what ONNX Runtime makes of it.

    A dictionary observation has one input for each entry, of its name. `obs` is an example.
    """
    import jax2onnx
    import onnxruntime

    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)  # it warns of the converter's intermediate values
    leaves, structure = jax.tree.flatten(obs)
    names = sorted(obs) if isinstance(obs, Mapping) else ["obs"]  # as JAX sorts the leaves of a dict
    inputs = [jax.ShapeDtypeStruct(("B", *x.shape[1:]), x.dtype) for x in leaves]

    def act(*leaves: jax.Array) -> jax.Array:
        return trained.act(jax.tree.unflatten(structure, leaves))

    model = jax2onnx.to_onnx(act, inputs, opset=17, input_names=names, output_names=["action"])
    about = settings_of(trained.config) | trained._asdict() | {"purejaxppo": __version__}
    for key in ("algo", "env", "seed", "env_steps", "purejaxppo"):
        model.metadata_props.add(key=key, value=str(plain(about[key])))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda obs: session.run(["action"], dict(zip(names, jax.tree.leaves(obs), strict=True)))[0]


def to_stablehlo(trained: Trained, obs: Any) -> tuple[bytes, Act]:
    """StableHLO in a flatbuffer, for all of JAX's platforms; and what JAX makes of it. `obs` is an example."""
    from jax import export

    batch = export.symbolic_shape("B")
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*batch, *x.shape[1:]), x.dtype), obs)
    exported = export.export(jax.jit(trained.act), platforms=("cpu", "cuda", "rocm", "tpu"))
    content = bytes(exported(inputs).serialize())
    restored = export.deserialize(bytearray(content))
    return content, lambda obs: np.asarray(restored.call(obs))


FORMATS = {".onnx": (("jax2onnx", "onnxruntime"), to_onnx), ".jax": (("flatbuffers",), to_stablehlo)}
