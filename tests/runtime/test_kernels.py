"""Each kernel of each path against NumPy in int64 or float64."""

import re

import numpy as np
import pytest
from llvmlite import binding

from obert_modifiers.runtime import kernels
from obert_modifiers.runtime.jit import optimised
from obert_modifiers.runtime.kernels import Kernel, linear
from obert_modifiers.runtime.paths import PATHS, Path, available, choose
from obert_modifiers.runtime.weights import Packed, from_dense
from tests.runtime.tiles import bytes_tile, of_registers, plain, run, sparse

WIDTHS = [(name, n) for name in PATHS for n in (1, PATHS[name].registers)]
assert len(PATHS) == 6
at_each_width = pytest.mark.parametrize(("name", "registers"), WIDTHS)


def phi(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return 0.5 * (1 + erf(x / np.sqrt(2)))


def call_linear(
    path: Path, kernel: Kernel, packed: Packed, x: np.ndarray, out: np.ndarray, *grid
) -> None:
    sums = np.zeros((packed.rows, path.tokens), np.int32)
    run(
        path,
        kernel,
        x.ctypes.data,
        *packed.addresses,
        sums.ctypes.data,
        0,
        packed.rows,
        out.ctypes.data,
        *(grid or (0.0, 0.0)),
    )


def multiplied(path: Path, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Multiply an int8 weight with ``(columns, T)`` bytes, scale 1 and no bias."""
    rows = len(weight)
    layer = from_dense(
        weight, np.zeros(rows, np.float32), np.ones(1, np.float32), (1.0, 0)
    )
    packed = Packed(layer, path)
    out = np.full((rows, path.tokens), np.nan, np.float32)
    kernel = linear("int8", "floats", chunks=packed.chunks)
    call_linear(path, kernel, packed, bytes_tile(x), out)
    return out


ADVERSARIAL = {
    "all 127 by 255": (127, 127, 255, 255),
    "all -127 by 255": (-127, -127, 255, 255),
    "any by 255": (-127, 127, 255, 255),
    "any by any": (-127, 127, 0, 255),
    "reduced by any": (-63, 63, 0, 255),
    "ones by any": (1, 1, 0, 255),
}


@at_each_width
@pytest.mark.parametrize("drawn", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_sums_of_integers_are_exact(name, registers, drawn) -> None:
    path, rng = of_registers(name, registers), np.random.default_rng(0)
    low, high, least, most = drawn
    weight = sparse(rng, 6, 96)
    weight[weight != 0] = rng.integers(low, high + 1, np.count_nonzero(weight))
    x = rng.integers(least, most + 1, (96, path.tokens)).astype(np.uint8)
    exact = weight.astype(np.int64) @ x.astype(np.int64)
    assert np.abs(exact).max() < 2**24
    np.testing.assert_array_equal(multiplied(path, weight, x), exact)


def test_a_saturating_sum_is_noticed() -> None:
    """Two blocks of +-127 in one 16-bit lane, as pairs without care would have them."""
    path = of_registers("avx2", 1)
    layer = from_dense(
        np.full((1, 8), 127, np.int8), np.zeros(1, np.float32), np.ones(1), (1.0, 0)
    )
    packed = Packed(layer, path)
    careless = np.array([127] * 8, np.int8)
    packed._arrays[0] = careless
    packed.addresses[0] = careless.ctypes.data
    packed._arrays[2][:] = [0, 2]
    x = np.full((8, path.tokens), 255, np.uint8)
    out = np.zeros((1, path.tokens), np.float32)
    call_linear(path, linear("int8", "floats"), packed, bytes_tile(x), out)
    assert (out != 8 * 127 * 255).all()


@pytest.mark.parametrize("name", available())
def test_chunks_of_columns_add_up(name) -> None:
    path, rng = PATHS[name], np.random.default_rng(1)
    weight = sparse(rng, 9, 2000, 0.1, 15)
    x = rng.integers(0, 256, (2000, path.tokens)).astype(np.uint8)
    exact = weight.astype(np.int64) @ x.astype(np.int64)
    np.testing.assert_array_equal(multiplied(path, weight, x), exact)


@pytest.mark.parametrize("name", available())
def test_the_sums_of_the_widest_weight_have_32_bits(name) -> None:
    path, columns = PATHS[name], 65_792
    x = np.full((columns, path.tokens), 255, np.uint8)
    weight = np.full((1, columns), -128, np.int8)
    assert (multiplied(path, weight, x) == -128 * 255 * columns).all()
    with pytest.raises(ValueError, match="columns=65796 of a weight are too many"):
        multiplied(path, np.full((1, columns + 4), -128, np.int8), x)
    # The negative control: another group of four no longer fits.
    with np.errstate(over="ignore"):
        wrapped = np.int64(-128 * 255 * (columns + 4)).astype(np.int32)
    assert wrapped > 0


def activated(y: np.ndarray, activation: str) -> np.ndarray:
    return {
        "none": lambda: y,
        "relu": lambda: np.maximum(y, 0),
        "tanh": lambda: np.tanh(y),
        "gelu": lambda: y * phi(y),
        "gelu_new": lambda: (
            0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        ),
    }[activation]()


@at_each_width
@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_activations_in_float(name, registers, activation) -> None:
    path, rng = of_registers(name, registers), np.random.default_rng(2)
    weight = rng.normal(size=(8, 16)).astype(np.float32)
    weight[rng.random((8, 16)) < 0.5] = 0
    bias = np.linspace(-12, 12, 8).astype(np.float32)
    layer = from_dense(weight, bias)
    packed = Packed(layer, path)
    x = rng.normal(size=(16, path.tokens)).astype(np.float32)
    out = np.zeros((8, path.tokens), np.float32)
    call_linear(path, linear(layer.inputs, "floats", activation), packed, x, out)
    exact = activated(weight.astype(np.float64) @ x + bias[:, None], activation)
    # A few roundings of numbers up to 12, and gelu's own 1.5e-7 of them.
    np.testing.assert_allclose(out, exact, atol=6e-6)
    added = out.copy()
    call_linear(path, linear(layer.inputs, "add", activation), packed, x, added)
    np.testing.assert_array_equal(added, out + out)


@at_each_width
def test_results_on_grids(name, registers) -> None:
    """Bytes, grids and words hold the same integers, each in its own layout."""
    path, rng = of_registers(name, registers), np.random.default_rng(3)
    weight = sparse(rng, 8, 32)
    scale = rng.uniform(1e-3, 2e-3, 8).astype(np.float32)
    bias = rng.normal(size=8).astype(np.float32)
    packed = Packed(from_dense(weight, bias, scale, (0.05, 77)), path)
    x = rng.integers(0, 256, (32, path.tokens)).astype(np.uint8)
    real = (weight * scale[:, None].astype(np.float64)) @ (
        0.05 * (x.astype(np.float64) - 77)
    ) + bias[:, None]
    step, zero = 0.03, 120.0
    steps = activated(real, "gelu") / step + zero

    def result(outputs: str, activation: str, out: np.ndarray) -> np.ndarray:
        kernel = linear("int8", outputs, activation)
        call_linear(path, kernel, packed, bytes_tile(x), out, 1 / step, zero)
        return out

    tokens = path.tokens
    found = plain(result("bytes", "gelu", np.zeros((2, tokens, 4), np.uint8)))
    # gelu's fit is 2e-4 of its step away at most.
    assert np.abs(found - steps.clip(0, 255)).max() < 0.5 + 2e-4 / step + 1e-3
    grid = result("grid", "none", np.zeros((8, tokens), np.float32))
    assert np.abs(grid - ((real / step + zero).clip(0, 255) - zero)).max() < 0.501
    pairs = result("words", "none", np.zeros((4, tokens, 2), np.int16))
    np.testing.assert_array_equal(pairs.transpose(0, 2, 1).reshape(8, tokens), grid)
    halves = result("halves", "none", np.zeros((8, tokens), np.int16))
    np.testing.assert_array_equal(halves, grid)


@at_each_width
def test_norm_and_rounding(name, registers) -> None:
    path, rng = of_registers(name, registers), np.random.default_rng(4)
    tile = rng.normal(3, 2, (12, path.tokens)).astype(np.float32)
    gain, bias = (rng.normal(size=12).astype(np.float32) for _ in range(2))
    away = tile.astype(np.float64) - tile.mean(0)
    exact = away / np.sqrt((away**2).mean(0) + 1e-5) * gain[:, None] + bias[:, None]
    rounded = np.zeros((3, path.tokens, 4), np.uint8)
    run(
        path,
        Kernel("norm", ("bytes",)),
        tile.ctypes.data,
        gain.ctypes.data,
        bias.ctypes.data,
        rounded.ctypes.data,
        12,
        1e-5,
        1 / 12,
        20.0,
        100.0,
    )
    np.testing.assert_allclose(tile, exact, atol=5e-6)
    assert np.abs(plain(rounded) - (exact * 20 + 100).clip(0, 255)).max() < 0.501
    again = np.zeros_like(rounded)
    run(path, Kernel("quantize"), tile.ctypes.data, again.ctypes.data, 12, 20.0, 100.0)
    np.testing.assert_array_equal(again, rounded)


@pytest.mark.parametrize("kinds", [("int8", "float", "int8"), ("float",) * 3])
@pytest.mark.parametrize("name", PATHS)
def test_embeddings(name, kinds) -> None:
    path, rng = of_registers(name, 1), np.random.default_rng(5)
    tables, indices = [], []
    for kind, count in zip(kinds, (9, 2, 5), strict=True):
        drawn = rng.normal(size=(count, 8)) * 50
        tables.append(drawn.astype(np.int8 if kind == "int8" else np.float32))
        indices.append(rng.integers(0, count, path.tokens).astype(np.int32))
    scales = [0.5 if kind == "int8" else 1.0 for kind in kinds]
    out = np.zeros((8, path.tokens), np.float32)
    addresses = [one.ctypes.data for one in (*indices, *tables)]
    run(path, Kernel("embed", kinds), *addresses, 8, out.ctypes.data, *scales)
    exact = sum(
        scale * table[index].astype(np.float64)
        for table, index, scale in zip(tables, indices, scales, strict=True)
    )
    np.testing.assert_allclose(out, exact.T, atol=1e-4)


def softmax(scores: np.ndarray) -> np.ndarray:
    power = np.exp(scores - scores.max(0))
    return power / power.sum(0)


@at_each_width
@pytest.mark.parametrize("numbers", ["floats", "grid", "words"])
@pytest.mark.parametrize("outputs", ["floats", "bytes"])
def test_attention(name, registers, numbers, outputs) -> None:
    """Two sentences in four tiles, with a masked key; head 1 of 2, of 8 features."""
    path, rng = of_registers(name, registers), np.random.default_rng(6)
    if numbers == "words" and not path.words:
        pytest.skip(f"{name} attends in floats")
    tokens, size, heads = path.tokens, 8, 2
    width, slots = size * heads, 4 * tokens
    edge = 2 * tokens + 2  # within tile 2
    own = np.repeat([0, 1], [edge, slots - edge]).astype(np.int32)
    attended = own.copy()
    attended[2] = -2
    if numbers == "floats":
        q, k, v = (rng.normal(size=(slots, width)) for _ in range(3))
    else:
        q, k, v = (rng.integers(-120, 130, (slots, width)) for _ in range(3))
    scale = 0.7 if numbers == "floats" else 2e-4
    step, factor, zero = 255.0, 0.02, 90.0
    expected = np.zeros((slots, size))
    for sentence in (0, 1):
        rows, keys = own == sentence, attended == sentence
        part = slice(size, 2 * size)
        chances = softmax(scale * (k[keys][:, part] @ q[rows][:, part].T.astype(float)))
        if numbers != "floats":
            chances = np.rint(chances * step)
        expected[rows] = chances.T @ v[keys][:, part]

    def tiled(values: np.ndarray, layout: str) -> np.ndarray:
        cut = values.reshape(4, tokens, width).transpose(0, 2, 1)
        if layout == "words":
            pairs = cut.reshape(4, width // 2, 2, tokens).transpose(0, 1, 3, 2)
            return np.ascontiguousarray(pairs.astype(np.int16))
        kind = np.int16 if layout == "halves" else np.float32
        return np.ascontiguousarray(cut.astype(kind))

    layouts = ("words", "words", "halves") if numbers == "words" else ("floats",) * 3
    q, k, v = (tiled(x, one) for x, one in zip((q, k, v), layouts, strict=True))
    scores = np.zeros((slots, tokens), np.float32)
    shape = (width, tokens) if outputs == "floats" else (width // 4, tokens, 4)
    out = np.zeros(shape, np.float32 if outputs == "floats" else np.uint8)
    tile = 2
    run(
        path,
        Kernel("attention", (numbers, outputs)),
        q[tile].ctypes.data,
        k.ctypes.data,
        v.ctypes.data,
        attended.ctypes.data,
        own.ctypes.data + 4 * tile * tokens,
        0,
        slots,
        width,
        size,
        1,
        2,
        scores.ctypes.data,
        out.ctypes.data,
        scale,
        step,
        factor,
        zero,
    )
    exact = factor * expected[tile * tokens : (tile + 1) * tokens].T
    if outputs == "floats":
        found = out[size:]
        # A probability on the border of two steps may go either way.
        away = 1e-5 if numbers == "floats" else 130 * factor + 1e-5
        np.testing.assert_allclose(found, exact, atol=away)
        assert np.median(np.abs(found - exact)) < 1e-5
        assert not out[:size].any()
    else:
        away = 0.501 if numbers == "floats" else 0.501 + 130 * factor
        assert np.abs(plain(out)[size:] - (exact + zero).clip(0, 255)).max() < away


FAR_AWAY = {
    "avx512vnni": ("x86_64-unknown-linux-gnu", "icelake-server", "vpdpbusd.*zmm"),
    "avxvnni": ("x86_64-unknown-linux-gnu", "alderlake", "vpdpbusd.*ymm"),
    "avx512": ("x86_64-unknown-linux-gnu", "skylake-avx512", "vpmaddubsw.*zmm"),
    "avx2": ("x86_64-unknown-linux-gnu", "haswell", "vpmaddubsw.*ymm"),
    "sdot": ("aarch64-unknown-linux-gnu", "neoverse-n1", r"sdot\s"),
    "portable": ("aarch64-unknown-linux-gnu", "cortex-a53", r"mla\s|mul\s"),
}


@pytest.mark.parametrize("name", PATHS)
def test_every_path_compiles_to_its_instructions(name) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple, cpu, pattern = FAR_AWAY[name]
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    path = PATHS[name]
    numbers = "words" if path.words else "grid"
    for kernel in (
        linear("int8", "bytes", "gelu", 2),
        linear("float4", "add"),
        Kernel("attention", (numbers, "bytes")),
        Kernel("norm", ("bytes",)),
        Kernel("embed", ("int8", "int8", "float")),
        Kernel("lead"),
        Kernel("follow"),
        Kernel("meet"),
    ):
        module = optimised(kernel.write(path).text(), machine)
        text = machine.emit_assembly(module)
        if kernel.options[:1] == ("int8",) and kernel.kind == "linear":
            assert re.search(pattern, text), name
        if kernel.kind == "meet":
            assert re.search(r"lock\s+(xadd|inc)|ldadd|ldaxr", text), name
            assert name == "portable" or re.search(r"\s(pause|yield)\s", text), name
        assert not re.search("call.*atomic|bl.*atomic", text)


def test_paths_are_chosen_by_features() -> None:
    features = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl"}
    assert [n for n, p in PATHS.items() if p.runs_on(features)] == [
        "avx512",
        "avx2",
        "portable",
    ]
    assert available()[-1] == "portable"
    assert choose().name == available()[0]
    with pytest.raises(ValueError, match=r"cpu_path=sse9 .*portable"):
        choose("sse9")
