"""A trained policy as one file, from raw observation to action, checked against the policy itself."""

import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from purejaxppo import __version__
from purejaxppo.agent import acting
from purejaxppo.experiment.directory import plain
from purejaxppo.experiment.trained import Trained
from purejaxppo.presets import settings_of
from purejaxppo.rollout import rollout
from purejaxppo.types import Discrete, UsageError

OBSERVATIONS, TOLERANCE = 1000, 1e-5  # of the check
Act = Callable[[np.ndarray], np.ndarray]  # obs [B, *O] float32 -> action [B, *A] float32, or [B] integer


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
        content, act = FORMATS[out.suffix][1](trained)
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


def observations(trained: Trained) -> np.ndarray:
    """[1000, *O]: 500 that the policy meets from where training ended, and these disturbed, slightly to wildly."""
    config, space, half = trained.config, trained.config.environment.observation_space, OBSERVATIONS // 2
    policy, start, steps = acting(config, trained.state), trained.state.rollout, -(-half // config.num_envs)
    explore = jax.jit(lambda key: rollout(key, config.environment, policy, start, steps)[1].obs)
    met = np.asarray(explore(trained.state.key)).reshape(-1, *space.shape)[:half]
    scale = np.geomspace(0.1, 10.0, half).reshape(-1, *(1 for _ in space.shape))
    disturbed = met + np.random.default_rng(trained.seed).normal(scale=scale, size=met.shape)
    return np.concatenate([met, np.clip(disturbed, space.low, space.high)]).astype(np.float32)


def largest_difference(trained: Trained, obs: np.ndarray, action: np.ndarray) -> float:
    """By how much actions [N, A] are not the policy's mode; infinite if their shape or type is not.

    Continuous: max |a - μ| / max(1, max |μ|). Discrete: max (ℓ* - ℓ(a)) / max(1, max |ℓ*|), ℓ* being the highest of the
    logits ℓ: 0 where the actions are equal, and tiny where two are as good as each other.
    """
    expected, space = np.asarray(trained.act(obs)), trained.config.environment.action_space
    if (action.shape, action.dtype) != (expected.shape, expected.dtype):
        return np.inf
    if isinstance(space, Discrete):
        logits = np.asarray(jax.jit(acting(trained.config, trained.state))(obs).logits)
        chosen = np.max(np.where(action[:, None] == np.arange(space.n), logits, -np.inf), axis=-1)
        expected, action = np.max(logits, axis=-1), np.where(action == expected, np.max(logits, axis=-1), chosen)
    return float(np.max(np.abs(action - expected)) / np.maximum(1.0, np.max(np.abs(expected))))


def to_onnx(trained: Trained) -> tuple[bytes, Act]:
    """An ONNX model, `obs` to `action`, whose metadata say what was trained; and what ONNX Runtime makes of it."""
    import jax2onnx
    import onnxruntime

    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)  # it warns of the converter's intermediate values
    inputs = [("B", *trained.config.environment.observation_space.shape)]
    model = jax2onnx.to_onnx(trained.act, inputs, opset=17, input_names=["obs"], output_names=["action"])
    about = settings_of(trained.config) | trained._asdict() | {"purejaxppo": __version__}
    for key in ("algo", "env", "seed", "env_steps", "purejaxppo"):
        model.metadata_props.add(key=key, value=str(plain(about[key])))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda obs: session.run(["action"], {"obs": obs})[0]


def to_stablehlo(trained: Trained) -> tuple[bytes, Act]:
    """StableHLO in a flatbuffer, for all of JAX's platforms; and what JAX makes of it."""
    from jax import export

    shape = export.symbolic_shape(", ".join(map(str, ("B", *trained.config.environment.observation_space.shape))))
    exported = export.export(jax.jit(trained.act), platforms=("cpu", "cuda", "rocm", "tpu"))
    content = bytes(exported(jax.ShapeDtypeStruct(shape, np.float32)).serialize())
    restored = export.deserialize(bytearray(content))
    return content, lambda obs: np.asarray(restored.call(obs))


FORMATS = {".onnx": (("jax2onnx", "onnxruntime"), to_onnx), ".jax": (("flatbuffers",), to_stablehlo)}
