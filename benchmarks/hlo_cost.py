"""What a compiled program would have a chip do: its kernels, their bytes and FLOPs, from the optimized HLO as text.

Only the text is needed, so a program can be judged that was compiled for a chip that is not there. A kernel is an
instruction that stays after fusion; in a loop it counts once per iteration, and of a conditional's branches the larger
one counts. Bytes are what a kernel reads and writes if nothing stays in a cache: of an operand that is only sliced or
gathered from, and of a result that is updated in place, the part that is touched.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# instructions that are no work of their own
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "add-dependency", "domain", "async-done", "async-update", "copy-done", "all-reduce-done"),
    *("all-gather-done", "custom-call-done", "slice-done", "dynamic-slice-done", "copy-start-done"),
}
TRANSCENDENTAL = {"exponential", "tanh", "log", "logistic", "power", "sine", "cosine", "sqrt", "rsqrt", "atan2", "erf"}
TRANSCENDENTAL |= {"exponential-minus-one", "log-plus-one", "cbrt", "tan"}
MOVES = {
    "broadcast",
    "iota",
    "reshape",
    "transpose",
    "copy",
    "slice",
    "concatenate",
    "pad",
    "reverse",
    "gather",
    "bitcast",
}
MOVES |= {
    "bitcast-convert",
    "dynamic-slice",
    "dynamic-update-slice",
    "get-tuple-element",
    "tuple",
    "parameter",
    "constant",
}
HOST = {"infeed", "outfeed", "send", "recv", "send-done", "recv-done"}
WIDTHS = {"pred": 1, "s4": 1, "u4": 1, "token": 0}  # bytes; of other types it is in the name
ONE_TRANSCENDENTAL = 8  # FLOPs

SHAPE = re.compile(r"([a-z]+[0-9a-z]*)\[([\d,]*)\](?:\{([\d,]*)(?::(?:T\(([\d,]+)\))?(?:\([\d,]+\))*(S\(1\))?)?)?")
HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$")
CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
BODY, CONDITION = (re.compile(rf"{name}=%?([\w.\-]+)") for name in ("body", "condition"))
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)")
TRIPS = re.compile(r'known_trip_count[^\d]*"(\d+)"')
OP_NAME = re.compile(r'op_name="([^"]*)"')
CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
LHS_DILATE = re.compile(r"lhs_dilate=([\dx]+)")
WINDOW = re.compile(r"window=\{size=([\dx]+)")


class Instruction(NamedTuple):
    name: str
    opcode: str
    shape: str
    operands: list[str]
    attributes: str

    @property
    def is_root(self) -> bool:
        return self.attributes.startswith("ROOT ")

    @property
    def op_name(self) -> str:
        found = OP_NAME.search(self.attributes)
        return found[1] if found else ""


class Kernel(NamedTuple):
    """One kernel of a program, with all its launches."""

    instruction: Instruction
    loops: tuple[str, ...]  # the whiles that it is in, outermost first
    launches: float
    bytes: float  # of one launch
    matmul_flops: float
    exact_flops: float  # of matrix products that are asked for in full float32
    other_flops: float


class Loop(NamedTuple):
    name: str
    op_name: str
    trips: int | None  # None where it depends on data
    starts: float  # how often it is begun
    inside: tuple[str, ...]  # the loops that it is in


class Program:
    """The computations of one HLO module."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._parse(text)
        self.loops: dict[str, Loop] = {}
        self.waits = 0.0  # times that the host must read a value from the chip: conditionals, and loops without a count

    def _parse(self, text: str) -> None:
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line[:1] in ("%", "E") and (head := HEAD.match(line)):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("  ") and " = " in line and (found := _instruction(line.strip())):
                current[found.name] = found

    def kernels(self, computation: str, launches: float = 1.0, loops: tuple[str, ...] = ()) -> Iterator[Kernel]:
        """All kernels of a computation and of what it calls. `loops` and `waits` are noted on the way."""
        known = self.computations[computation]
        for x in known.values():
            if x.opcode == "while":
                body, condition = BODY.search(x.attributes), CONDITION.search(x.attributes)
                assert body
                assert condition
                found = TRIPS.search(x.attributes)
                trips = int(found[1]) if found else _counted(self.computations[condition[1]])
                self.loops[x.name] = Loop(x.name, x.op_name, trips, launches, loops)
                yield from self.kernels(body[1], launches * (trips or 1), (*loops, x.name))
                if trips is None:
                    self.waits += launches
                    yield from self.kernels(condition[1], launches, (*loops, x.name))
            elif x.opcode == "conditional":
                self.waits += launches
                branches = [list(self.kernels(name, launches, loops)) for name in _branches(x)]
                yield from max(branches, key=lambda found: sum(kernel.launches for kernel in found))
            elif x.opcode in ("call", "async-start") and (called := CALLED.search(x.attributes)):
                yield from self.kernels(called[1], launches, loops)
            elif x.opcode not in FREE:
                yield Kernel(x, loops, launches, self._bytes(x, known), *self._flops(x, known))

    def host_operations(self) -> list[str]:
        """What the chip has the host do, beside waiting for a predicate: callbacks and transfers."""
        everything = (x for known in self.computations.values() for x in known.values())
        return sorted({x.name for x in everything if x.opcode in HOST or "callback" in x.attributes})

    def _bytes(self, x: Instruction, known: dict[str, Instruction]) -> float:
        operands = [known[name] for name in x.operands if name in known]
        inner = self._called(x) if x.opcode == "fusion" else None
        if inner is None:
            if x.opcode in ("dynamic-slice", "slice", "gather"):
                return 2 * size(x.shape)
            if x.opcode == "dynamic-update-slice":
                return 2 * size(operands[1].shape)
            return size(x.shape) + sum(size(y.shape) for y in operands)
        parameters = {
            int(y.attributes.split("parameter(")[1].split(")")[0]): y for y in inner.values() if is_parameter(y)
        }
        read = sum(_touched(y, inner) for i, y in parameters.items() if i < len(operands))
        root = next(y for y in inner.values() if y.is_root)
        roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return read + sum(_written(y, inner) for y in roots)

    def _flops(self, x: Instruction, known: dict[str, Instruction]) -> tuple[float, float, float]:
        """Of matrix products, of exact ones, and of all else."""
        if x.opcode in ("fusion", "map") and (inner := self._called(x)) is not None:
            rough, exact, other = zip(*(self._flops(y, inner) for y in inner.values()), strict=True)
            return sum(rough), sum(exact), sum(other)
        if x.opcode in ("dot", "convolution") or "$gemm" in x.attributes or "$matmul" in x.attributes:
            flops = 2.0 * elements(x.shape) * _contracted(x, known)
            return (0.0, flops, 0.0) if "operand_precision={highest" in x.attributes else (flops, 0.0, 0.0)
        if x.opcode in ("reduce", "reduce-window"):
            return 0.0, 0.0, float(sum(elements(known[name].shape) for name in x.operands[:1] if name in known))
        if x.opcode in FREE | MOVES:
            return 0.0, 0.0, 0.0
        return 0.0, 0.0, float(elements(x.shape) * (ONE_TRANSCENDENTAL if x.opcode in TRANSCENDENTAL else 1))

    def _called(self, x: Instruction) -> dict[str, Instruction] | None:
        called = CALLED.search(x.attributes)
        return self.computations.get(called[1]) if called else None


def is_parameter(x: Instruction) -> bool:
    return x.opcode == "parameter"


def elements(shape: str) -> int:
    """Numbers in an array, or in a tuple of them."""
    return sum(math.prod(map(int, filter(None, found[2].split(",")))) for found in SHAPE.finditer(shape))


def size(shape: str) -> float:
    """Bytes in memory of an array, or of a tuple; on a TPU with the padding of its tiles, and 0 for one on the chip."""
    total = 0.0
    for found in SHAPE.finditer(shape):
        dimensions = [int(x) for x in filter(None, found[2].split(","))]
        if found[5]:
            continue
        if found[4] and found[3]:  # minor to major; the minor ones are padded to whole tiles
            order = [int(x) for x in found[3].split(",")]
            for axis, tile in zip(order, map(int, reversed(found[4].split(","))), strict=False):
                dimensions[axis] = -(-dimensions[axis] // tile) * tile
        total += math.prod(dimensions) * width(found[1])
    return total


def width(kind: str) -> float:
    """Bytes of one number of a type."""
    bits = re.search(r"\d+", kind)
    return WIDTHS.get(kind, int(bits[0]) / 8 if bits else 1)


def _instruction(line: str) -> Instruction | None:
    left, right = line.split(" = ", 1)
    end = _closing(right) + 1 if right[0] == "(" else right.index(" ")
    found = re.match(r"([\w\-]+)\(", rest := right[end:].strip())
    if not found:
        return None
    inside = rest[found.end() : (close := found.end() - 1 + _closing(rest[found.end() - 1 :]))]
    root = "ROOT " if left.startswith("ROOT ") else ""
    kept = root + (f"{found[1]}({inside})" if found[1] in ("parameter", "constant") else rest[close:])
    return Instruction(
        left.removeprefix("ROOT ").lstrip("%"), found[1], right[:end], re.findall(r"%([\w.\-]+)", inside), kept
    )


def _counted(condition: dict[str, Instruction]) -> int | None:
    """The trips of a loop whose condition is that a counter, from 0 on, is below a constant; else None."""
    root = next(x for x in condition.values() if x.is_root)
    limit = condition[root.operands[-1]] if root.opcode == "compare" and root.operands else None
    if limit is None or limit.opcode != "constant" or "direction=LT" not in root.attributes:
        return None
    return int(limit.attributes.split("constant(")[1].split(")")[0])


def _closing(text: str) -> int:
    """Where the parenthesis that `text` begins with is closed."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    return len(text) - 1


def _branches(x: Instruction) -> list[str]:
    found = BRANCHES.search(x.attributes)
    assert found, x
    return [name.strip().lstrip("%") for name in (found[1] or f"{found[2]},{found[3]}").split(",")]


def _touched(parameter: Instruction, inner: dict[str, Instruction]) -> float:
    """Bytes that a fusion reads of one of its operands."""
    users = [y for y in inner.values() if parameter.name in y.operands]
    while len(users) == 1 and users[0].opcode == "bitcast":
        parameter = users[0]
        users = [y for y in inner.values() if parameter.name in y.operands]
    if users and all(
        y.opcode in ("dynamic-slice", "slice", "gather") and y.operands[0] == parameter.name for y in users
    ):
        return min(size(parameter.shape), sum(size(y.shape) for y in users))
    if users and all(y.opcode == "dynamic-update-slice" and y.operands[0] == parameter.name for y in users):
        return 0.0
    return size(parameter.shape)


def _written(root: Instruction, inner: dict[str, Instruction]) -> float:
    while root.opcode == "bitcast" and root.operands[0] in inner:
        root = inner[root.operands[0]]
    return size(inner[root.operands[1]].shape if root.opcode == "dynamic-update-slice" else root.shape)


def _contracted(x: Instruction, known: dict[str, Instruction]) -> float:
    """Products that each result of a matrix product, or of a convolution, sums up."""
    if x.opcode == "convolution":
        window, kernel = WINDOW.search(x.attributes), known[x.operands[1]]
        sizes = window[1].split("x") if window else []
        dilated = LHS_DILATE.search(x.attributes)  # as far as the window is wide: then it meets one number, not zeros
        spread = dilated[1].split("x") if dilated else ["1"] * len(sizes)
        taps = math.prod(1 if size == far else int(size) for size, far in zip(sizes, spread, strict=True))
        labels = re.search(r"dim_labels=\w+_(\w+)->", x.attributes)
        sides = [int(n) for n in re.findall(r"\d+", kernel.shape.split("[")[1].split("]")[0])]
        return taps * (sides[labels[1].index("i")] if labels else 1)
    left, axes = known[x.operands[0]], CONTRACTED.search(x.attributes)
    sides = [int(n) for n in re.findall(r"\d+", left.shape.split("[")[1].split("]")[0])]
    return math.prod(sides[int(axis)] for axis in axes[1].split(",") if axis) if axes else 1.0
