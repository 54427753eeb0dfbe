"""What is read off a compiled program: kernels, FLOPs and bytes; and how many kernels ours may have on a GPU."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
BUDGET = {"ppo": 1_500, "trpo": 7_000}  # kernels of one update on CartPole; lower it when a change needs fewer


@pytest.fixture(scope="module")
def hlo_cost():
    spec = importlib.util.spec_from_file_location("hlo_cost", BENCHMARKS / "hlo_cost.py")
    module = sys.modules["hlo_cost"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_work_in_loops_counts_as_often_as_it_is_done(hlo_cost):
    """Of a program that XLA's CPU backend has optimized: two nested loops around a product [8, 16] × [16, 32]."""
    b = jnp.ones((16, 32))

    def inner(x, _):
        return x + jnp.tanh(x[:, :16] @ b), None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, 5)[0], None

    text = jax.jit(lambda x: jax.lax.scan(outer, x, None, 7)[0]).lower(jnp.ones((8, 32))).compile().as_text()
    program = hlo_cost.Program(text)
    kernels = list(program.kernels(program.entry))
    trips = [(loop.trips, loop.starts) for loop in program.loops.values()]
    assert trips == [(7, 1), (5, 7)]
    assert sum(kernel.launches * kernel.matmul_flops for kernel in kernels) == 35 * 2 * 8 * 16 * 32
    slopes = sum(kernel.launches * kernel.other_flops for kernel in kernels if len(kernel.loops) == 2)
    assert slopes >= 35 * 8 * 32 * (hlo_cost.ONE_TRANSCENDENTAL + 1)
    assert program.waits == 0
    assert program.host_operations() == []


FUSIONS = """HloModule m, entry_computation_layout={()->f32[]}

%slicing (p.0: f32[128,64], p.1: s32[]) -> f32[1,64] {
  %p.0 = f32[128,64]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,64]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,64}
  ROOT %twice = f32[1,64]{1,0} add(%slice, %slice)
}

%storing (p.2: f32[128,64], p.3: f32[1,64], p.4: s32[]) -> f32[128,64] {
  %p.2 = f32[128,64]{1,0} parameter(0)
  %p.3 = f32[1,64]{1,0} parameter(1)
  %p.4 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %stored = f32[128,64]{1,0} dynamic-update-slice(%p.2, %p.3, %p.4, %zero.1)
}

ENTRY %main (x: f32[128,64], i: s32[]) -> f32[128,64] {
  %x = f32[128,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,64]{1,0} fusion(%x, %i), kind=kLoop, calls=%slicing
  ROOT %out = f32[128,64]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%storing
}
"""


def test_bytes_are_those_of_the_part_that_is_touched(hlo_cost):
    """A row is read and a row made; then it is written in place. An index is 4 bytes."""
    program = hlo_cost.Program(FUSIONS)
    assert [(x.instruction.name, x.launches, x.bytes) for x in program.kernels(program.entry)] == [
        ("row", 1, 4 * 64 + 4 + 4 * 64),
        ("out", 1, 4 * 64 + 4 + 4 * 64),
    ]


@pytest.mark.parametrize(
    ("shape", "bytes_"),
    [
        ("f32[128,2048,4,4]{3,2,1,0}", 4 * 128 * 2048 * 16),
        ("f32[128,2048,4,4]{3,2,1,0:T(8,128)}", 4 * 128 * 2048 * 8 * 128),  # a TPU's tiles
        ("f32[128,2048,4,4]{1,0,3,2:T(8,128)}", 4 * 128 * 2048 * 16),
        ("f32[8,2048]{1,0:T(8,128)S(1)}", 0),  # on the chip
        ("f32[300]{0:T(128)}", 4 * 384),
        ("(pred[8]{0}, bf16[3,2]{1,0})", 8 + 2 * 6),
    ],
)
def test_size(hlo_cost, shape, bytes_):
    assert hlo_cost.size(shape) == bytes_


@pytest.mark.slow
@pytest.mark.parametrize("case", BUDGET)
def test_kernels_of_an_update_stay_within_the_budget(case, tmp_path):
    """The real program, compiled for an H100 that is not there: minutes, most of them in XLA."""
    out = tmp_path / "rows.json"
    own = ["--python", sys.executable] if importlib.util.find_spec("jax_cuda12_plugin") else []
    command = [sys.executable, BENCHMARKS / "gpu_program.py", "--chips", "h100", "--cases", case, "--out", out, *own]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(out.read_text())
    assert 0 < row["kernels"] <= BUDGET[case], done.stdout
    assert row["host_operations"] == []
    assert set(row["phases"]) >= {"rollout", "advantages", "minibatch", "shuffle"}
