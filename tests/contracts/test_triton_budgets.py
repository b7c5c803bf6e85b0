"""What the Triton kernels become on each architecture, compiled ahead of time: no GPU is needed, no time is measured.

A score should cost little more than the comparison that it takes part in: at D <= 64 tensor cores are quicker than
what is done with their results. So instructions a score of the hot loop are held, spills are none, and tiles fit the
machine. The budgets leave about a tenth for other versions of the compiler.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
    pytest.mark.skipif(not (TOOLS / "nvdisasm").exists(), reason="this triton brings no nvdisasm"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
POINTERS = {
    "centre": "*fp32",
    "exponents": "*i32",
    "bounds": "*fp32",
    "operands": "*fp16",
    "scales": "*i32",
    "slack": "*fp32",
    "vectors": "*fp16",
    "biases": "*fp16",
    "values": "*fp32",
    "groups": "*i32",
    "columns": "*fp32",
    "half_norms": "*fp32",
    "codes": "*i64",
    "pending": "*i32",
    "pending_count": "*i32",
    "order": "*i64",
    "ends": "*i64",
    "sums": "*fp32",
    "codebook": "*fp32",
    "errors": "*fp64",
}
STRIDES = tuple(g + name for g in ("", "g_") for name in ("stride0", "stride1", "stride2", "stride_d"))
REGISTERS = 255
SHARED_KIB = {"sm_80": 163, "sm_86": 99, "sm_90": 227, "sm_100": 227}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


def kernel(module, name):
    return getattr(import_module(f"vqtok.kernels.triton.{module}"), name)


@dataclass
class Compiled:
    """Machine code and what it asks of the machine."""

    instructions: list[str]
    loops: list[list[str]]
    registers: int
    shared: int

    def count(self, pattern):
        return sum(bool(re.search(pattern, line)) for line in self.instructions)


def source(function, constants, **types):
    """As a launch compiles it: pointers at multiples of 16 bytes, rows one after the other, sizes of no known value."""
    signature, values, hints = {}, {}, {}
    for i, name in enumerate(function.arg_names):
        if name in constants or name.endswith("stride_d"):
            signature[name], values[i,] = "constexpr", constants.get(name, 1)
            continue
        signature[name] = types.get(name) or POINTERS.get(name) or ("i64" if name in STRIDES else "i32")
        if signature[name].startswith("*") or name in STRIDES:
            hints[i,] = [["tt.divisibility", 16]]
    return ASTSource(fn=function, signature=signature, constexprs=values, attrs=hints)


def compiled(architecture, function, constants, warps, tmp_path, **types):
    target = GPUTarget("cuda", architecture, 32)
    options = {"num_warps": warps, "enable_fp_fusion": function.fn.__name__ != "pass_back"}
    made = triton.compile(source(function, constants, **types), target=target, options=options)
    file = tmp_path / "kernel.cubin"
    file.write_bytes(made.asm["cubin"])
    code = subprocess.run([TOOLS / "nvdisasm", "-c", file], capture_output=True, text=True, check=True).stdout
    usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
    lines, labels, loops = [], {}, []
    for line in code.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            lines.append(instruction[1])
    for i, line in enumerate(lines):
        jump = re.search(r"\bBRA.*`\((\.L\w+)\)", line)
        if jump and labels.get(jump[1], i + 1) <= i:
            loops.append(lines[labels[jump[1]] : i + 1])
    registers = re.search(r"REG:(\d+)", usage.stdout + usage.stderr)
    return Compiled(lines, loops, int(registers[1]), made.metadata.shared)


def constants_of_screen(family, dim):
    tiles = import_module("vqtok.kernels.triton.tiles").tiles_for(family, dim)
    block_d = tiles.width_of(dim)
    chunks = -(-dim // block_d)
    constants = {
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "BLOCK_D": block_d,
        "CHUNKS": chunks,
        "FOLDED": dim + 2 <= block_d * chunks,
        "STAGES": tiles.stages,
    }
    return constants, tiles


BUDGETS = [
    # family, D, instructions a score, registers
    ("sm_80", 8, 4.2, 128),
    ("sm_80", 64, 4.6, 192),
    ("sm_80", 256, 12.5, 168),
    ("sm_86", 8, 4.2, 128),
    ("sm_86", 128, 6.4, 200),
    ("sm_90", 8, 1.95, 184),
    ("sm_90", 16, 2.15, 192),
    ("sm_90", 64, 2.5, 200),
    ("sm_90", 128, 2.9, 224),
    ("sm_90", 256, 6.0, 192),
    ("sm_90", 1024, 3.7, 255),
    ("sm_100", 8, 1.9, 184),
    ("sm_100", 64, 2.5, 232),
    ("sm_100", 256, 5.2, 192),
]


@pytest.mark.parametrize(("family", "dim", "most", "registers"), BUDGETS, ids=lambda x: str(x))
def test_a_score_costs_what_it_may(family, dim, most, registers, tmp_path):
    constants, tiles = constants_of_screen(family, dim)
    screen = kernel("nearest_code", "screen")
    made = compiled(int(family[3:]), screen, constants, tiles.warps, tmp_path, vectors="*fp16")
    assert made.count(r"\b(LDL|STL)\b") == 0, "spills"
    assert made.registers <= registers
    assert made.shared <= SHARED_KIB[family] * 1024
    matrix = {"sm_90": "HGMMA", "sm_100": "UTC.*MMA"}.get(family, "HMMA")
    assert made.count(matrix) > 0
    # The steady loop is the shortest one that both multiplies and compares; others start or end its pipeline.
    hot = min((loop for loop in made.loops if _has(loop, matrix) and _has(loop, "FMNMX")), key=len)
    scores = tiles.block_n * tiles.block_k / (32 * tiles.warps)
    inner = [loop for loop in made.loops if _has(loop, matrix) and not _has(loop, "FMNMX")]
    once = len(hot) - sum(len(loop) for loop in inner[:1])
    assert once / scores <= most, f"{once / scores:.2f} instructions a score"
    assert sum("SHFL" in line for line in hot) <= 8, "groups lie in threads"


def _has(lines, pattern):
    return any(re.search(pattern, line) for line in lines)


PASSED_BACK = {"vectors": "*fp32", "gradient": "*fp32", "weight": "*fp32", "of_latents": "*fp32"}
OTHERS = [
    # module, kernel, constants, registers, types
    ("nearest_code", "measure", {"D": 64, "WIDTH": 64, "BLOCK_N": 32, "BLOCK_D": 64}, 64, {}),
    ("nearest_code", "decide", {"D": 64, "GROUP": 32, "BLOCK_N": 16, "EMULATED": False}, 80, {}),
    ("nearest_code", "search", {"D": 64, "BLOCK_N": 8, "BLOCK_K": 512, "EMULATED": False}, 144, {}),
    ("code_statistics", "sum_rows", {"D": 64, "BLOCK_D": 64, "DIFFERENCES": True, "DOUBLE": False}, 56, {}),
    ("straight_through", "gather", {"D": 64, "BLOCK_N": 32, "BLOCK_D": 64, "DOUBLE": False}, 64, PASSED_BACK),
    ("straight_through", "pass_back", {"D": 64, "BLOCK_N": 32, "BLOCK_D": 64, "DOUBLE": False}, 64, PASSED_BACK),
    ("rotate", "rotate_back", {"D": 64, "BLOCK_N": 32, "BLOCK_D": 32, "SHORTEST": 1e-6}, 128, PASSED_BACK),
    ("norms", "codebook_norms", {"D": 64, "BLOCK_K": 64, "UNIT": True}, 64, {"out": "*fp32"}),
    ("norms", "unit_rows", {"D": 64, "BLOCK_N": 32, "BLOCK_D": 64, "LEAST": 1e-12}, 96, {"unit": "*fp32"}),
    ("norms", "unit_rows_back", {"D": 64, "BLOCK_N": 32, "BLOCK_D": 32, "LEAST": 1e-12}, 96, PASSED_BACK),
    (
        "finite_scalar",
        "round_to_levels",
        {"D": 4, "BLOCK_N": 64, "BLOCK_L": 8},
        64,
        {"thresholds": "*fp32", "levels": "*i32", "vectors": "*fp32"},
    ),
]


@pytest.mark.parametrize(
    "architecture", [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("module", "name", "constants", "registers", "types"), OTHERS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_the_other_kernels_stay_in_registers(module, name, constants, registers, types, architecture, tmp_path):
    function = kernel(module, name)
    for latents in ("*fp32", "*bf16") if architecture != 90 else ("*fp32",):
        made = compiled(architecture, function, constants, 4, tmp_path, latents=latents, **types)
        assert made.count(r"\b(LDL|STL)\b") == 0, "spills"
        assert made.registers <= registers
        if name == "pass_back":
            assert made.count(r"\bFFMA") == 0, "three roundings"
        if name in ("decide", "search"):
            assert made.count(r"\bFMUL\b") == 0, "the score is fused multiply-adds alone"
            assert made.count(r"\bFFMA2?\b") > 0
            assert made.count(r"\bFFMA\S*\.FTZ") == 0, "denormals count"


@pytest.mark.parametrize(
    ("module", "name", "constants", "types"),
    [(o[0], o[1], o[2], o[4]) for o in OTHERS],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_amd_gpus_get_the_same_kernels(module, name, constants, types):
    target = GPUTarget("hip", "gfx942", 64)
    made = triton.compile(
        source(kernel(module, name), constants, latents="*fp32", **types), target=target, options={"num_warps": 4}
    )
    assert "amdgcn" in made.asm
    assert re.search(r"vgpr_spill_count:\s+0\b", made.asm["amdgcn"])


def test_amd_gpus_multiply_on_matrix_cores():
    constants, tiles = constants_of_screen("gfx9", 64)
    made = triton.compile(
        source(kernel("nearest_code", "screen"), constants),
        target=GPUTarget("hip", "gfx942", 64),
        options={"num_warps": tiles.warps},
    )
    assert "v_mfma_f32" in made.asm["amdgcn"]
    assert re.search(r"vgpr_spill_count:\s+0\b", made.asm["amdgcn"])
    assert made.metadata.shared <= 64 * 1024


SIZES = {"N", "K", "first", "end", "tiles", "tiles_a_split", "splits", "size1", "size2", "g_size1", "g_size2"}


@pytest.mark.parametrize(
    ("module", "name"),
    [("nearest_code", "screen"), *((module, name) for module, name, *_ in OTHERS)],
)
def test_another_number_of_rows_or_codes_compiles_nothing_anew(module, name):
    for parameter in kernel(module, name).params:
        if parameter.name in SIZES:
            assert parameter.do_not_specialize, parameter.name
            assert not parameter.is_constexpr, parameter.name
