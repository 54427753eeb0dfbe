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
BUDGET = {  # kernels of one update on CartPole; lower it when a change needs fewer
    ("ppo", "ours"): 1_500,
    ("trpo", "ours"): 7_000,
    ("ppo", "ours-kernels"): 80,
    ("trpo", "ours-kernels"): 750,
}


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hlo_cost():
    return benchmark("hlo_cost")


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


def machine_code(*lines):
    """As nvdisasm prints it, from (instruction, stall, scoreboard that it sets, scoreboards that it waits for)."""
    text = []
    for address, line in enumerate(lines):
        if isinstance(line, str):
            text.append(f"{line}:")
            continue
        instruction, stall, sets, waits = line
        control = (stall | sets << 5 | 7 << 8 | sum(1 << n for n in waits) << 11) << 41
        text += [f"        /*{16 * address:04x}*/   {instruction} ;   /* 0x{0:016x} */", f"   /* 0x{control:016x} */"]
    return "\n".join(text)


def test_work_of_a_kernel_of_our_own():
    """Of 16 rounds by four warps, counted by hand; what a branch jumps over is left out."""
    sass_cost = benchmark("sass_cost")
    code = machine_code(
        ("MOV R1, RZ", 2, 7, ()),
        ".L_x_0",
        ("LDS.128 R4, [R0]", 1, 0, ()),
        ("LDSM.16.M88 R7, [R0]", 1, 7, ()),
        ("HMMA.1688.F32.TF32 R8, R4, R6, R8", 10, 7, (0,)),
        ("FFMA R8, R8, R9, R10", 4, 7, ()),
        ("@P2 FADD R8, R8, R9", 4, 7, ()),
        ("MUFU.EX2 R8, R8", 1, 1, ()),
        ("SHFL.BFLY PT, R8, R8, 0x2, 0x1f", 1, 7, (1,)),
        ("STL.64 [R1+0x8], R8", 1, 7, ()),
        ("@!P1 BRA `(.L_x_1)", 5, 7, ()),
        ("FADD R8, R8, R9", 4, 7, ()),
        ".L_x_1",
        ("IADD3 R1, R1, 0x1, RZ", 2, 7, ()),
        ("ISETP.NE.AND P0, PT, R1, 0x10, PT", 3, 7, ()),
        ("@P0 BRA `(.L_x_0)", 5, 7, ()),
        ("EXIT", 1, 7, ()),
    )
    found = sass_cost.work(code, warps=4, registers=64, shared=1024, frame=8)
    assert found.matrix_flops == 16 * 4 * 2 * 16 * 8 * 8
    assert found.other_flops == 16 * 4 * 32 * (2 + 1 + 1)  # FFMA, FADD, MUFU
    assert found.spilled_bytes == 16 * 4 * 32 * 8
    assert found.resident == 8  # 64 registers × 32 threads × 4 warps, of 65,536
    cycles = {
        "issue": (2 + 16 * 12),  # of four warps, one instruction each at a time
        "float": 16 * 4 * 2 / 4,
        "integer": (1 + 16 * 2) * 4 / 2,
        "special": 16 * 4 * 2,
        "load and store": 16 * 4 * (4 + 1 + 1 + 2),  # 512 and 128 bytes at 128 a cycle, a shuffle, 256 bytes
        "matrix": 16 * 4 * 2 * 16 * 8 * 8 / (2048 * 0.62),
    }
    assert found.cycles == pytest.approx(cycles)
    round_ = 29 + 10 + 4 + 4 + 23 + 1 + 1 + 5 + 2 + 3 + 5  # the two that set a scoreboard last until it is free
    assert found.chain == 2 + 16 * round_ + 1
    least, most = found.seconds(264)  # two blocks on each of 132 SMs, which has both at once
    assert least == pytest.approx(2 * 16 * 4 * 8 / 1.83e9)
    assert most == pytest.approx(least + found.chain / 1.83e9)
    assert (
        sass_cost.work(code, 4, 64, 1024, frame=2048).cycles["load and store"] > 2 * 16 * 4 * 7
    )  # beyond the L1 cache


@pytest.mark.slow
@pytest.mark.parametrize(("case", "by"), BUDGET)
def test_kernels_of_an_update_stay_within_the_budget(case, by, tmp_path):
    """The real program, compiled for an H100 that is not there: minutes, most of them in XLA."""
    out = tmp_path / "rows.json"
    own = ["--python", sys.executable] if importlib.util.find_spec("jax_cuda12_plugin") else []
    command = [sys.executable, BENCHMARKS / "gpu_program.py", "--chips", "h100", "--cases", case, "--by", by]
    done = subprocess.run([*command, "--out", out, *own], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(out.read_text())
    assert 0 < row["kernels"] <= BUDGET[case, by], done.stdout
    assert row["host_operations"] == []
    assert set(row["phases"]) >= {"rollout", "advantages", "minibatch", "shuffle"}
    if (case, by) == ("ppo", "ours-kernels"):
        # what is read off the machine code is what the networks are: 16 minibatches of 128 samples, with layers of
        # 4, 64, 64 and 2 (held as 16), forward and back but for the first layer's input; the critic has one output
        wide, narrow = 2 * 128 * 64 * 64, 2 * 128 * 64 * 16
        flops = sorted(x["matrix_flops"] for x in row["own"].values())
        assert flops[1:] == [16 * (3 * wide + 2 * narrow), 16 * (3 * wide + 5 * narrow)]
