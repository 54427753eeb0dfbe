"""Compile a program for a chip that is not there, and keep what the compiler made of it.

XLA needs a description of the chip, not the chip: the CUDA plugin takes a target config as text (`../chips`), libtpu
knows its own. `SETTINGS` must be in the environment before JAX is imported.
"""

import gzip
import json
import sysconfig
import time
from pathlib import Path
from typing import Any

SETTINGS = {
    "JAX_PLATFORMS": "cpu",  # where the process itself runs
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # there is nothing to tune on
    "TPU_SKIP_MDS_QUERY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
CUDA = {"h100", "h200"}


def devices(chip: str, count: int = 1) -> list[Any]:
    """The first `count` devices of one host with such chips."""
    from jax.experimental import topologies

    if chip in CUDA:
        config = (Path(__file__).parent.parent / "chips" / f"{chip}.txtpb").read_text()
        found = topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"{count}x1x1")
    else:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
    return list(found.devices)[:count]


def tools() -> dict[str, str]:
    """NVIDIA's assembler and disassembler, where this environment has packages that bring them along."""
    at = Path(sysconfig.get_path("purelib"))
    found = {"ptxas": at / "nvidia/cuda_nvcc/bin/ptxas", "nvdisasm": at / "triton/backends/nvidia/bin/nvdisasm"}
    return {name: str(path) for name, path in found.items() if path.exists()}


def keep(jitted: Any, keys: Any, on: list[Any], path: Path) -> None:
    """Compile `jitted` of an array of keys [seeds] for these devices; HLO goes to `path`, the rest is printed."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    along_seeds = NamedSharding(Mesh(np.asarray(on), ("run",)), PartitionSpec("run"))
    abstract = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=along_seeds)
    began = time.perf_counter()
    compiled = jitted.lower(abstract).compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    path.write_bytes(gzip.compress(compiled.as_text().encode(), compresslevel=1))
    line = {
        "device": on[0].device_kind,
        "compile_seconds": seconds,
        "temporary_bytes": memory.temp_size_in_bytes,
        "result_bytes": memory.output_size_in_bytes,
        "jax": jax.__version__,
        "tools": tools(),
    }
    print(json.dumps(line), flush=True)
