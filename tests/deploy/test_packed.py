"""Packed weights: every bit comes back, near the entropy bound, damage is found."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
)

from obert_modifiers.core.quantization.scales import load_quantization_
from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy.artefact import restore
from obert_modifiers.deploy.formats import container, mask_code
from obert_modifiers.deploy.formats.safetensors_packed import (
    FILE_NAME,
    KIND,
    VERSION,
    export_packed,
    load_packed,
    pack,
    unpack,
)
from obert_modifiers.deploy.run_folder import copy_along
from tests import tiny
from tests.deploy.models import (
    SHAPE,
    pruned_,
    quantized_,
    save_quantized,
    tensor_bytes,
)

N = 40_000


def entropy(share: float) -> float:
    """H(s) in bits, from the definition."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p)


def random_mask(pruned: float, count: int = N, seed: int = 0) -> np.ndarray:
    mask = np.ones(count, bool)
    mask[: round(pruned * count)] = False
    return np.random.default_rng(seed).permutation(mask)


def read_by_hand(stream: bytes, code: mask_code.MaskCode, count: int) -> list[bool]:
    """Read gaps bit by bit, as the docstring of the format says."""
    bits = [byte >> (7 - i) & 1 for byte in stream for i in range(8)]
    start = -(-code.unary_bits // 8) * 8
    place, at, mask = -1, 0, [not code.kept] * count
    for number in range(code.count):
        high = 0
        while not bits[at]:
            high, at = high + 1, at + 1
        at += 1
        first = start + number * code.low_bits
        low = sum(bits[first + i] << i for i in range(code.low_bits))
        place += (high << code.low_bits) + low + 1
        mask[place] = code.kept
    return mask


def there_and_back(mask):
    """Encode a mask; check that it comes back."""
    code, size = mask_code.choose(mask)
    stream = mask_code.encode(mask, code)
    assert np.array_equal(mask_code.decode(stream, code, mask.size), mask)
    return code, size, stream


@pytest.mark.parametrize("pruned", [0.001, 0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97, 0.999])
def test_a_mask_is_near_its_entropy_and_comes_back(pruned):
    mask = random_mask(pruned)
    code, size, stream = there_and_back(mask)
    assert stream.nbytes == size
    if code.kind == mask_code.GAPS:
        assert read_by_hand(stream.tobytes(), code, N) == mask.tolist()
    bound = N * entropy(pruned)
    assert math.isclose(mask_code.entropy_bits(N, int(mask.sum())), bound, rel_tol=1e-9)
    # One bit each is 13 % over the bound at 70 %, where gaps begin to pay; a Rice code
    # of a geometric gap is 4 % over it at most, and both streams end on whole bytes.
    most = 1.14 if 0.29 < pruned < 0.71 else 1.045
    assert 1.0 <= 8 * size / bound < most + 16 / bound


@pytest.mark.parametrize("mask", [[], [1], [0], [1, 0], [0, 1], [0] * 9, [1] * 9])
def test_short_masks(mask):
    there_and_back(np.array(mask, bool))


def test_masks_that_do_not_fit_are_refused():
    code, _, stream = there_and_back(random_mask(0.9, 100))
    for bad, count in ((stream[:-1], 100), (stream ^ 255, 100), (stream, 50)):
        with pytest.raises(ValueError, match="bytes of|gaps in place of|leads to"):
            mask_code.decode(bad, code, count)
    with pytest.raises(ValueError, match="bytes for"):
        mask_code.decode(stream, mask_code.MaskCode(mask_code.BITS), 100)


def odd_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Any bits at all, mostly zeros, with -0.0, infinities and several NaNs."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    draw = np.random.default_rng(1)
    raw = draw.integers(0, 256, (math.prod(shape), size), dtype=np.uint8)
    raw[draw.random(len(raw)) < 0.6] = 0
    raw[::7, :] = 0
    raw[::7, -1] = 0x80  # -0.0
    raw[1::11, :] = 0xFF  # a NaN
    return torch.from_numpy(raw.reshape(-1).copy()).view(dtype).reshape(shape)


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES += (torch.float8_e4m3fn, torch.int8, torch.int64, torch.uint8)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and tensor_bytes(one) == tensor_bytes(other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (0,), (3, 7), (8, 12), (2, 3, 4), (4, 0)])
def test_every_bit_comes_back(dtype, shape):
    tensor = odd_bits(dtype, shape)
    kept = np.array([any(tensor_bytes(one)) for one in tensor.reshape(-1)], bool)
    parts, entry = pack(tensor, kept)
    entry = json.loads(json.dumps(entry))
    assert same_bits(unpack(parts["values"], parts.get("mask"), entry), tensor)


@pytest.mark.parametrize("tile", [(1, 1), (1, 4), (1, 32), (4, 1), (4, 4), (32, 32)])
def test_the_tile_of_the_mask_is_found(tile):
    rows, columns = 128, 256
    tiles = random_mask(0.8, rows * columns // (tile[0] * tile[1]))
    mask = tiles.reshape(rows // tile[0], columns // tile[1]).repeat(tile[0], 0)
    mask = mask.repeat(tile[1], 1)
    weight = torch.randn(rows, columns).clamp_min(1e-3) * torch.from_numpy(mask)
    parts, entry = pack(weight, mask.reshape(-1))
    assert tuple(entry["tile"]) == tile
    assert torch.equal(unpack(parts["values"], parts.get("mask"), entry), weight)
    stored = sum(part.numel() * part.element_size() for part in parts.values())
    pruned = 1 - tiles.mean()
    bound = 4 * mask.sum() + tiles.size * entropy(pruned) / 8
    assert stored <= 1.02 * bound + 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run at 90 %, with everything that its folder holds."""
    folder = tiny.save_model(tmp_path_factory.mktemp("run"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    pruned_(model, lambda w: w.where(torch.rand(w.shape, generator=draw) >= 0.9, 0))
    with torch.no_grad():
        model.classifier.bias[0] = -0.0
    model.save_pretrained(folder)
    (folder / "recipe.yaml").write_text("modifiers: []\n")
    (folder / "report.html").write_text("not this")
    (folder / "checkpoint-1").mkdir()
    return folder


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def test_a_run_comes_back_bit_for_bit(run, tmp_path):
    found = export_packed(run, tmp_path / "out")
    loaded, there = load_packed(found.path), tensors_of(run)
    assert loaded.keys() == there.keys()
    assert all(same_bits(loaded[name], there[name]) for name in there)
    assert (found.tensors, found.int8_weights) == (len(there), 0)
    assert found.dense_bytes == sum(4 * one.numel() for one in there.values())
    assert found.size_bytes == found.file.stat().st_size
    names = {path.name for path in found.path.iterdir()}
    kept = {"config.json", "recipe.yaml", "tokenizer.json", "tokenizer_config.json"}
    assert kept | {FILE_NAME} <= names
    assert not names & {"model.safetensors", "report.html", "checkpoint-1"}
    (tmp_path / "plain").touch()
    assert found.file.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_restored_folder_loads(run, tmp_path):
    export_packed(run, tmp_path / "out")
    folder = restore(tmp_path / "out", tmp_path / "back")
    whole = AutoModelForSequenceClassification.from_pretrained(run)
    back = AutoModelForSequenceClassification.from_pretrained(folder)
    for one, other in zip(whole.parameters(), back.parameters(), strict=True):
        assert same_bits(one.detach(), other.detach())
    assert (folder / "tokenizer.json").is_file()


def test_a_folder_of_another_format_is_not_restored(run, tmp_path):
    with pytest.raises(ValueError, match="is of the format run; expected one of"):
        restore(run, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("block", [1, 4])
def test_a_quantized_model_is_int8_and_computes_the_same(
    run, tmp_path, per_channel, block
):
    model = AutoModelForSequenceClassification.from_pretrained(run)

    def in_blocks(weight):
        tiles = torch.rand(len(weight), weight.shape[1] // block) >= 0.8
        return weight.where(tiles.repeat_interleave(block, dim=1), 0)

    ids = torch.randint(0, 20, (4, 9))
    scheme = Scheme(per_channel=per_channel)
    quantized_(pruned_(model, in_blocks), scheme, {"input_ids": ids})
    folder = save_quantized(model, tmp_path / "qat")
    found = export_packed(folder, tmp_path / "out")
    weights = [n for n, w in model.named_parameters() if w.ndim == 2]
    assert found.int8_weights == len(weights)
    stored = load_file(found.file)
    assert {stored[f"{name}.values"].dtype for name in weights} == {torch.int8}
    state = load_packed(found.path)
    back = type(model).from_pretrained(None, config=model.config, state_dict=state)
    load_quantization_(back, found.path)
    with torch.no_grad():
        expected, got = model.eval()(ids).logits, back.eval()(ids).logits
    assert torch.equal(expected, got)
    for name in weights:
        zeros = model.get_parameter(name) == 0
        assert not state[name][zeros].any()
    whole = export_packed(folder, tmp_path / "whole", int8=False)
    assert whole.int8_weights == 0
    loaded, there = load_packed(whole.path), tensors_of(folder)
    assert all(same_bits(loaded[name], there[name]) for name in loaded)


def test_a_wrong_scale_is_seen(run, tmp_path):
    """Negative control: with another grid the outputs differ."""
    model = AutoModelForSequenceClassification.from_pretrained(run)
    folder = save_quantized(quantized_(model, Scheme()), tmp_path / "qat")
    path = folder / "quantization.json"
    saved = json.loads(path.read_text())
    for entry in saved["tensors"].values():
        entry["scale"] = [2 * scale for scale in entry["scale"]]
    path.write_text(json.dumps(saved))
    export_packed(folder, tmp_path / "out")
    name = "classifier.weight"
    expected = model.classifier.quantizers["weight"](model.classifier.weight, False)
    assert not torch.equal(load_packed(tmp_path / "out")[name], expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_shared_weight_stays_shared(tmp_path, per_channel):
    model = BertForMaskedLM(BertConfig(**SHAPE, tie_word_embeddings=True))
    ids = torch.randint(0, 40, (3, 7))
    quantized_(model, Scheme(per_channel=per_channel), {"input_ids": ids})
    found = export_packed(save_quantized(model, tmp_path / "mlm"), tmp_path / "out")
    state = load_packed(found.path)
    shared = "bert.embeddings.word_embeddings.weight"
    assert (shared in state) + ("cls.predictions.decoder.weight" in state) == 1
    # Two grids for one weight: neither is taken, or the other layer's would change.
    matrices = [name for name, tensor in state.items() if tensor.ndim == 2]
    assert found.int8_weights == len(matrices) - per_channel
    back = BertForMaskedLM.from_pretrained(None, config=model.config, state_dict=state)
    load_quantization_(back, found.path)
    decoder = back.cls.predictions.decoder.weight
    assert decoder is back.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, back.eval()(ids).logits)


def test_a_shared_weight_leaves_the_others_their_grids(tmp_path):
    model = BertForMaskedLM(BertConfig(**SHAPE, tie_word_embeddings=True))
    ids = torch.randint(0, 40, (3, 7))
    quantized_(model, Scheme(embeddings=False), {"input_ids": ids})
    found = export_packed(save_quantized(model, tmp_path / "mlm"), tmp_path / "out")
    linear = [one for one in model.modules() if isinstance(one, torch.nn.Linear)]
    assert found.int8_weights == len(linear) - 1  # the output's is the embedding


def test_what_an_earlier_export_left_is_not_read(tmp_path):
    old, new, out = (tmp_path / name for name in ("old", "new", "out"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    for name in ("quantization.json", "modules.json", "tokenizer.json"):
        (old / name).write_text("[]")
    copy_along(old, out)
    assert len(list(out.iterdir())) == 4
    for name in ("model.xml", "tf_model.h5"):  # weights that others made of it
        (new / name).write_text("weights")
    (out / "notes.txt").write_text("somebody's")
    copy_along(new, out)
    assert {path.name for path in out.iterdir()} == {"config.json", "notes.txt"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path, one = tmp_path / "model.safetensors", {"a": torch.ones(1)}
    theirs = tmp_path / "model.safetensors.part"  # of a process that writes it, too
    theirs.write_text("half")
    container.write_tensors(one, path, {"format": "pt"})
    whole = path.read_bytes()

    def full(tensors, path, metadata):
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(container, "save_file", full)
    for write in (
        lambda: container.write_tensors(one, path, {"format": "pt"}),
        lambda: container.write(path, KIND, VERSION, one, {}),
    ):
        with pytest.raises(OSError, match="no space"):
            write()
        assert path.read_bytes() == whole and theirs.read_text() == "half"
        assert len(list(tmp_path.iterdir())) == 2


def test_damage_anywhere_is_found(run, tmp_path):
    file = export_packed(run, tmp_path / "out").file
    whole = file.read_bytes()
    last = len(whole) - 1
    for place in [0, 9, 200, last, *np.random.default_rng(0).integers(8, last, 30)]:
        bad = bytearray(whole)
        bad[place] ^= 0x10
        file.write_bytes(bad)
        what = "its checksum differs" if place == last else ""
        with pytest.raises(ValueError, match=rf"{what}; expected .*; "):
            load_packed(file)
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not whole"):
            load_packed(file)
    file.write_bytes(whole)
    load_packed(file)


def test_foreign_and_newer_files_are_refused(run, tmp_path):
    one = {"a": torch.ones(1)}
    container.write(tmp_path / "newer", KIND, VERSION + 1, one, {})
    container.write(tmp_path / "other", "obert_modifiers.other", 1, one, {})
    for path, message in (
        (run / "model.safetensors", "format run; expected .* a run with from_pretr"),
        (tmp_path / "newer", f"version={VERSION + 1} of .* a newer one"),
        (tmp_path / "other", "format obert_modifiers.other; expected"),
        (tmp_path / "missing", "is not there"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_packed(path)
    save_file(one, tmp_path / "f.safetensors", {"format": "pt"})
    assert container.kind_of(tmp_path / "f.safetensors") is None


def test_what_is_no_run_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    for path, out, message in (
        (tmp_path, tmp_path / "out", "has no config.json"),
        (run, run, "is the run itself"),
        (tmp_path / "empty", tmp_path / "out", "has no weights"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            export_packed(path, out)
