"""What a GPU kernel of our own costs, read off its machine code (SASS): instructions, occupancy, latencies.

XLA hands a Pallas kernel to Triton, so the HLO does not say what it does. Its PTX does, once `ptxas` has made it into
machine code as for the chip: spilled registers are loads and stores there, and each instruction carries its own stalls.

A kernel is a grid of equal blocks, one per run. An SM holds as many at once as registers, shared memory and warps
allow. A block's instructions count as often as the loops around them run; what a conditional branch can jump over
(reductions of huge angles, powers of whole numbers) is taken to be jumped over. Two times come out of it:

    least    the busiest unit of the SM is busy all the time: issue slots, arithmetic, special functions, load and
             store, matrix units
    most     the busiest unit's time for all blocks that the SM holds, and then what one warp alone waits for its own
             results (stalls that the compiler wrote, and the latencies below), as if neither hid the other

Left out: bank conflicts, misses of caches (but spilled registers that do not fit into the L1 cache are read and written
at the L2 cache's rate), and the last blocks of a grid, which share an SM with fewer.
"""

import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SMS, CLOCK = 132, 1.83e9  # of an H100 and an H200 (SXM), Hz; at this clock TF32's peak is 2,048 FLOP a cycle and SM
REGISTERS, SHARED, L1, WARPS = 65536, 227 * 1024, 256 * 1024, 64  # of an SM; memory in bytes
L2 = 5.5e12 / SMS / CLOCK  # bytes a cycle and SM
TENSOR = 2048  # FLOP a cycle and SM, TF32
OLD_MMA = 0.62  # of it, what `mma.sync` reaches on Hopper (Luo et al., 2024, arXiv:2402.13499)
# results per cycle and SM, from the CUDA C++ programming guide (compute capability 9.0)
FLOAT, INTEGER, SPECIAL, SHUFFLE, LSU_BYTES = 128, 64, 16, 32, 128
LATENCY = {"LDS": 29, "LDSM": 33, "LDL": 38, "LDG": 480, "LDC": 38, "MUFU": 23, "SHFL": 24, "BAR": 25}  # cycles
LATENCY |= {"S2R": 25, "F2I": 23, "I2F": 23, "STS": 20, "STL": 20, "STG": 20}  # a store: until its registers are free
UNITS = ("issue", "float", "integer", "special", "load and store", "matrix")

LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+)?\s*([A-Z0-9_.x]+)([^;]*);\s+/\*")
CONTROL = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
LABEL = re.compile(r"^(\.L_x_\d+):")
USED = re.compile(r"Used (\d+) registers")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
THREADS = re.compile(r"\.(?:req|max)ntid (\d+)")
ENTRY = re.compile(r"\.entry (\w+)\(")
LIMIT = re.compile(r", (0x[0-9a-f]+), U?PT\s*$")
MATRIX = re.compile(r"\.(\d+)x(\d+)x(\d+)\.")


class Instruction(NamedTuple):
    opcode: str  # with its modifiers
    arguments: str
    predicate: str
    stall: int  # cycles until the next one may be issued
    sets: tuple[int, ...]  # scoreboards that are free when its result is there, or its operands are read
    waits: tuple[int, ...]  # scoreboards that it waits for
    weight: float  # times that a warp issues it


class Work(NamedTuple):
    """One launch of a kernel, but for its grid: what one of its blocks has an SM do."""

    cycles: dict[str, float]  # of each unit of an SM, per block
    chain: float  # cycles that one warp alone needs
    resident: int  # blocks that an SM holds at once
    matrix_flops: float  # per block
    other_flops: float
    spilled_bytes: float  # per block, loads and stores of registers that did not fit
    registers: int
    warps: int

    def seconds(self, grid: int) -> tuple[float, float]:
        """Least and most, for so many blocks."""
        each = math.ceil(grid / SMS)
        busiest = each * max(self.cycles.values())
        return busiest / CLOCK, (busiest + math.ceil(each / self.resident) * self.chain) / CLOCK


def triton_kernels(hlo: str) -> dict[str, tuple[str, int]]:
    """The name of each Pallas kernel in an optimized program, and how many blocks it has, by its instruction."""
    found: dict[str, tuple[str, int]] = {}
    for line in hlo.splitlines():
        name, grid = re.search(r'", name = "(\w+)"', line), re.search(r"grid_x = (\d+)", line)
        if "xla.gpu.triton" in line and name and grid:
            same = sum(x.split("__")[0] == name[1] for x, _ in found.values())  # XLA numbers them as they come
            instruction = line.split(" = ")[0].split()[-1].lstrip("%")
            found[instruction] = name[1] + (f"__{same}" if same else ""), int(grid[1])
    return found


def kernels_in(dump: Path, names: Sequence[str], ptxas: str, nvdisasm: str) -> dict[str, Work]:
    """What those kernels cost whose PTX lies in `dump`, as XLA has it written there (`--xla_dump_to`)."""
    found = {}
    shared = dict(_shared_memory(dump))
    for ptx in dump.glob("*.ptx"):
        text = ptx.read_text()
        if not (name := ENTRY.search(text)) or name[1] not in names:
            continue
        cubin = ptx.with_suffix(".cubin")
        said = _run(ptxas, "-v", "-arch=sm_90a", str(ptx), "-o", str(cubin))
        threads, registers, frame = THREADS.search(text), USED.search(said), FRAME.search(said)
        assert threads, name
        assert registers, said
        assert frame, said
        sass = _run(nvdisasm, "-hex", "-c", str(cubin))
        found[name[1]] = work(sass, int(threads[1]) // 32, int(registers[1]), shared[name[1]], int(frame[1]))
    return found


def work(sass: str, warps: int, registers: int, shared: int, frame: int) -> Work:
    """Of a kernel whose blocks have so many warps, registers a thread, bytes of shared memory, and a thread's stack."""
    instructions = _parsed(sass)
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    resident = max(1, min(by_registers, SHARED // max(shared, 1), WARPS // warps, 32))
    stack = frame * 32 * warps * resident
    in_l1 = min(1.0, max(L1 - shared * resident, 0) / max(stack, 1))
    local = in_l1 / LSU_BYTES + (1 - in_l1) / L2  # cycles a byte
    cycles = dict.fromkeys(UNITS, 0.0)
    matrix = other = spilled = 0.0
    for x in instructions:
        name, times = x.opcode.split(".")[0], x.weight * warps
        cycles["issue"] += times / 4
        if name in ("HMMA", "HGMMA"):
            flops = _matrix_flops(x.opcode)
            matrix += times * flops
            cycles["matrix"] += times * flops / TENSOR / (OLD_MMA if name == "HMMA" else 1)
        elif name in ("FFMA", "FADD", "FMUL"):
            other += times * 32 * (2 if name == "FFMA" else 1)
            cycles["float"] += times * 32 / FLOAT
        elif name in ("MUFU", "F2I", "I2F"):
            other += times * 32
            cycles["special"] += times * 32 / SPECIAL
        elif name == "SHFL":
            cycles["load and store"] += times * 32 / SHUFFLE
        elif name in ("LDL", "STL"):
            spilled += times * 32 * _width(x.opcode)
            cycles["load and store"] += times * 32 * _width(x.opcode) * local
        elif name in ("LDS", "STS", "LDG", "STG", "LDSM", "STSM", "RED", "ATOMS"):
            cycles["load and store"] += times * 32 * _width(x.opcode) / LSU_BYTES
        elif not name.startswith(("BAR", "BRA", "NOP", "WARPGROUP", "U", "LDC", "S2", "FENCE", "EXIT")):
            cycles["integer"] += times * 32 / INTEGER
    return Work(cycles, _chain(instructions), resident, matrix, other, spilled, registers, warps)


def _parsed(sass: str) -> list[Instruction]:
    lines = sass.splitlines()
    found, labels = [], {}
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif (x := LINE.search(line)) and (control := CONTROL.match(following)):
            bits = int(control[1], 16) >> 41
            sets = tuple(n for n in ((bits >> 5) & 7, (bits >> 8) & 7) if n != 7)
            waits = tuple(n for n in range(6) if (bits >> 11) & (1 << n))
            found.append(Instruction(x[2], x[3], x[1] or "", bits & 15, sets, waits, 1.0))
    weights = [1.0] * len(found)
    for end, x in enumerate(found):
        target = re.search(r"\.L_x_\d+", x.arguments) if x.opcode.startswith("BRA") else None
        if not target or (begin := labels[target[0]]) == end:
            continue  # the code ends in an endless loop that nothing reaches
        if begin < end:
            trips = _trips(found[begin:end])
            weights[begin : end + 1] = [w * trips for w in weights[begin : end + 1]]
        elif x.predicate:
            weights[end + 1 : begin] = [0.0] * (begin - end - 1)
    return [x._replace(weight=w) for x, w in zip(found, weights, strict=True)]


def _trips(body: Sequence[Instruction]) -> int:
    """How often a loop runs whose counter, from 0 in steps of 1, is compared with a constant; 1 if that is not seen."""
    limits = [LIMIT.search(x.arguments) for x in body if x.opcode.startswith(("ISETP.NE", "UISETP.NE"))]
    return next((int(x[1], 16) for x in reversed(limits) if x and int(x[1], 16) > 1), 1)


def _chain(instructions: Sequence[Instruction]) -> float:
    """Cycles of a warp that has the SM to itself: each instruction waits for the one before, and its scoreboards."""
    now = matrix = total = 0.0
    free = [0.0] * 6
    for x in instructions:
        if not x.weight:
            continue
        name, begin = x.opcode.split(".")[0], now
        now = max([now, *(free[n] for n in x.waits)])
        if name == "HGMMA":
            matrix = max(matrix, now) + 4 * _matrix_flops(x.opcode) / TENSOR
        if x.opcode.startswith("WARPGROUP.DEPBAR"):
            now = max(now, matrix)
        for n in x.sets:
            free[n] = max(free[n], now + LATENCY.get(name, 20))
        now += max(x.stall, 1) + (LATENCY["BAR"] if name == "BAR" else 0)
        total += x.weight * (now - begin)
    return total


def _matrix_flops(opcode: str) -> float:
    """Of one warp; a `HGMMA` is issued by four warps, which share its work."""
    if opcode.startswith("HMMA"):  # m, n, k as digits: 1688 is 16 × 8 × 8, 16816 is 16 × 8 × 16
        shape = opcode.split(".")[1]
        return 2.0 * 16 * 8 * int(shape[3:])
    found = MATRIX.search(opcode)
    assert found, opcode
    return 2.0 * math.prod(map(int, found.groups())) / 4


def _width(opcode: str) -> int:
    """Bytes a thread."""
    if opcode.startswith(("LDSM", "STSM")):
        number = opcode.rsplit(".", 1)[1]  # of 8 × 8 matrices; a single one goes without
        return 4 * int(number) if number.isdigit() else 4
    return next((int(n) // 8 for n in re.findall(r"\.(?:U|S)?(8|16|64|128)(?=\.|$)", opcode)), 4)


def _shared_memory(dump: Path) -> list[tuple[str, int]]:
    """Bytes of shared memory of each kernel, by name, as XLA launches it."""
    launches = re.compile(r"kCustomKernel .*\] (\w+) grid: .*shared_memory: (\d+)")
    texts = (path.read_text() for path in dump.glob("*thunk_sequence.txt"))
    return [(x[1], int(x[2])) for text in texts for x in launches.finditer(text)]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
