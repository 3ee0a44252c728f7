"""2:4 weights: values and metadata by the definition, refusals, and the way back."""

import pytest
import torch
from torch import nn
from torch.sparse import _semi_structured_conversions as conversions
from transformers import AutoModelForSequenceClassification

from obert_modifiers.deploy.formats import torch24
from obert_modifiers.deploy.formats.torch24 import (
    compress,
    decompress,
    export_torch24,
    is_24,
    load_torch24,
    sparsify_,
)
from tests.deploy.models import prune_24, save_pruned


def read_by_hand(values: torch.Tensor, meta: torch.Tensor) -> torch.Tensor:
    """Each value goes to the place that its two bits name, one after the other."""
    rows, half = values.shape
    whole = torch.zeros(rows, 2 * half, dtype=values.dtype)
    for row in range(rows):
        for i in range(half):
            place = int(meta[row, i // 4]) >> (2 * (i % 4)) & 3
            whole[row, i // 2 * 4 + place] = values[row, i]
    return whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_and_metadata_are_what_the_definition_says(dtype):
    weight = prune_24(torch.randn(32, 64)).to(dtype)
    weight[0, :8] = torch.tensor([0.0, -0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    values, meta = compress(weight)
    assert values.shape == (32, 32) and values.dtype == dtype
    assert meta.shape == (32, 8) and meta.dtype == torch.uint8
    by_hand = read_by_hand(values, meta)
    bits = [t.view(torch.uint8) for t in (by_hand, weight, decompress(values, meta))]
    assert torch.equal(bits[0], bits[1]) and torch.equal(bits[2], bits[1])
    # Places rise within each four, as the hardware wants it.
    places = (meta[..., None] >> torch.tensor([0, 2, 4, 6])).int() & 3
    places = places.reshape(32, 16, 2)
    assert (places[..., 0] < places[..., 1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torchs_own_compression_has_the_same_values(dtype):
    weight = torch.randn(32, 64).reshape(-1, 4)
    weight[:, :2] = 0.0
    weight = weight[:, torch.randperm(4)].reshape(32, 64).to(dtype)
    theirs, _ = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    assert torch.equal(compress(weight)[0], theirs)


def test_a_planted_mistake_is_seen():
    weight = prune_24(torch.randn(32, 64))
    values, meta = compress(weight)
    assert not torch.equal(read_by_hand(values, meta.flip(1)), weight)
    assert not torch.equal(decompress(values, (meta << 2) | (meta >> 6)), weight)


def test_24_is_told_by_the_zeros_along_the_input():
    weight = prune_24(torch.randn(8, 16))
    assert is_24(weight) and not is_24(weight.t().contiguous() + 1)
    dense = weight.clone()
    dense[3, 4:7] = 1.0
    assert not is_24(dense)
    assert not is_24(torch.zeros(4)) and not is_24(torch.zeros(4, 6))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_pruned(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_run_comes_back_in_the_dtype_of_the_file(run, tmp_path, dtype):
    found = export_torch24(run, tmp_path / "out", dtype=dtype)
    model = AutoModelForSequenceClassification.from_pretrained(run)
    encoder = {n for n, w in model.named_parameters() if "encoder" in n and w.ndim == 2}
    assert set(found.sparse_weights) == encoder
    state = load_torch24(found.path)
    for name, weight in model.state_dict().items():
        expected = weight.to(getattr(torch, dtype)) if weight.ndim > 1 else weight
        assert state[name].dtype == expected.dtype
        assert torch.equal(state[name].view(torch.uint8), expected.view(torch.uint8))
    assert (found.path / "config.json").is_file()
    back = type(model).from_pretrained(
        None, config=model.config, state_dict=state, dtype=torch.float32
    )
    with torch.no_grad():
        ids = torch.randint(0, 20, (2, 8))
        one, other = model.eval()(ids).logits, back.eval()(ids).logits
    torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_half_of_a_weight_and_a_bit_remain(run, tmp_path):
    found = export_torch24(run, tmp_path / "out")
    tensors = load_torch24(found.path)
    sparse = sum(tensors[name].numel() for name in found.sparse_weights)
    whole = sum(tensor.nbytes for tensor in tensors.values()) - 2 * sparse
    # Two bytes for each second weight and two bits; the header lists the tensors.
    bound = whole + sparse + sparse // 8
    assert bound <= found.size_bytes < bound + 300 * len(tensors)


def test_runs_that_do_not_fit_are_refused(run, tmp_path):
    dense = save_pruned(tmp_path / "dense", prune=lambda weight: weight)
    odd = save_pruned(tmp_path / "odd", hidden_size=32)
    model = AutoModelForSequenceClassification.from_pretrained(run)
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "large")
    for path, dtype, message in (
        (dense, "float16", "no 2:4 weight; expected .*mask_type: 2:4"),
        (odd, "float16", r"query.weight \(32, 32\).* of 32 and .* 64"),
        (run, "int8", "dtype=int8 is unknown"),
        (tmp_path / "large", "float16", "classifier.weight, up to 1e.06"),
    ):
        with pytest.raises(ValueError, match=message):
            export_torch24(path, tmp_path / "out", dtype=dtype)
        assert not (tmp_path / "out").exists()
    export_torch24(tmp_path / "large", tmp_path / "out", dtype="bfloat16")


def test_without_a_gpu_it_says_so(run, tmp_path, monkeypatch):
    export_torch24(run, tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="expected an NVIDIA GPU"):
        sparsify_(nn.Linear(2, 2), tmp_path / "out")
    export_torch24(run, tmp_path / "wide", dtype="float32")
    with pytest.raises(ValueError, match="dtype=float32 .* float16 or bfloat16"):
        sparsify_(nn.Linear(2, 2), tmp_path / "wide")


def test_the_weights_that_become_sparse(run, tmp_path, monkeypatch):
    """What a GPU would be given; the conversion itself is stood in for."""
    found = export_torch24(run, tmp_path / "out", dtype="bfloat16")
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch24.torch.sparse,
        "to_sparse_semi_structured",
        lambda weight: given.append(weight) or weight,
    )
    model = AutoModelForSequenceClassification.from_pretrained(run)
    names = sparsify_(model, tmp_path / "out", device="cpu")
    assert sorted(names) == sorted(found.sparse_weights)
    for name, weight in zip(names, given, strict=True):
        assert is_24(weight) and weight.dtype == torch.bfloat16
        assert model.get_parameter(name).data_ptr() == weight.data_ptr()
    with pytest.raises(ValueError, match="is of no plain linear layer of Linear"):
        sparsify_(nn.Linear(2, 2), tmp_path / "out", device="cpu")


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a GPU with sparse tensor cores",
)
def test_a_gpu_computes_what_the_dense_weights_do(run, tmp_path):
    export_torch24(run, tmp_path / "out")
    dense = AutoModelForSequenceClassification.from_pretrained(run).half().cuda().eval()
    sparse = AutoModelForSequenceClassification.from_pretrained(run)
    assert sparsify_(sparse, tmp_path / "out")
    ids = torch.randint(0, 20, (32, 16), device="cuda")
    with torch.no_grad():
        one, other = dense(ids).logits, sparse(ids).logits
    torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)
