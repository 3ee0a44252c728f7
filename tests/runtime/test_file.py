"""Files that were cut, changed or written by something else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from obert_modifiers.runtime import SparseEncoder, file, model
from tests.runtime.models import SCHEMES, batch, make, prune_, quantized_, write


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = make("Bert", "ForSequenceClassification", num_hidden_layers=1)
    prune_(made, 4)
    quantized_(made, SCHEMES["int8 attention"], batch([20]))
    return write(made, tmp_path_factory.mktemp("file") / file.FILE_NAME)


def test_a_file_of_another_process_is_left_alone(tmp_path) -> None:
    path = tmp_path / file.FILE_NAME
    theirs = tmp_path / f"{file.FILE_NAME}.part"  # as it writes the same
    theirs.write_text("half")
    file.write(path, {}, {"a": np.zeros(3, np.float32)})
    assert file.read(path)[0] == {} and theirs.read_text() == "half"
    assert len(list(tmp_path.iterdir())) == 2


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_noticed(written, tmp_path_factory, data) -> None:
    content = bytearray(written.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / file.FILE_NAME
    path.write_bytes(content)
    with pytest.raises(ValueError, match="file=|version="):
        model.read(path)


def _without_types(spec, arrays) -> None:
    spec["model"].update(types=0)
    arrays["tables.types"] = arrays["tables.types"][:0]


def _with_narrow_norm(spec, arrays) -> None:
    """Behind the classifier, which has three outputs."""
    spec["outputs"][0]["steps"].append(["norm", "narrow"])
    for part in ("gain", "bias"):
        arrays[f"narrow.{part}"] = np.ones(3, np.float32)


WRONG = {
    "an unknown activation": lambda spec, arrays: spec["model"].update(
        activation="swish"
    ),
    "more heads than features": lambda spec, arrays: spec["model"].update(heads=7),
    "less than no heads": lambda spec, arrays: spec["model"].update(heads=-4),
    "no types": lambda spec, arrays: _without_types(spec, arrays),
    "positions before the first": lambda spec, arrays: spec["model"].update(
        position_offset=1, pad=-90
    ),
    "a norm that is no whole block": lambda spec, arrays: _with_narrow_norm(
        spec, arrays
    ),
    "more layers": lambda spec, arrays: spec["model"].update(layers=2),
    "another vocabulary": lambda spec, arrays: spec["model"].update(vocab=7),
    "another hidden size": lambda spec, arrays: spec["model"].update(hidden=44),
    "no layer": lambda spec, arrays: spec["linears"].pop("layers.0.up"),
    "no table": lambda spec, arrays: arrays.pop("tables.words"),
    "NaN in a norm": lambda spec, arrays: arrays["embedding_norm.gain"].fill(np.nan),
    "NaN in a bias": lambda spec, arrays: arrays["layers.0.up.bias"].fill(np.nan),
    "a zero point of probabilities": lambda spec, arrays: spec["attention"][0].update(
        probabilities=[0.1, 3]
    ),
    "an output of nothing": lambda spec, arrays: spec["outputs"][0].update(
        names=["a", "b"]
    ),
    "a step that is unknown": lambda spec, arrays: spec["outputs"][0].update(
        steps=[["dance", "up"]]
    ),
    "no spec of a layer": lambda spec, arrays: spec.pop("attention"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_together_is_refused(written, tmp_path, change) -> None:
    spec, arrays = file.read(written)
    change(spec, arrays)
    path = tmp_path / file.FILE_NAME
    file.write(path, spec, arrays)
    with pytest.raises(ValueError, match=f"file={path}"):
        SparseEncoder.load(path)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_change_of_a_number_is_refused_or_runs(written, tmp_path_factory, data):
    """With its checksum right, too, nothing reads beyond an array."""
    spec, arrays = file.read(written)
    name = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays[name].copy()
    place = data.draw(st.integers(0, array.nbytes - 1))
    array.reshape(-1).view(np.uint8)[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()) and len(array) > 1:
        array = array[:-1]
    path = tmp_path_factory.mktemp("changed") / file.FILE_NAME
    file.write(path, spec, arrays | {name: array})
    try:
        encoder = SparseEncoder.load(path, threads=1)
    except ValueError as error:
        assert f"file={path}" in str(error)
        return
    assert encoder(np.arange(5, 25)[None]).logits.shape == (1, 3)


def test_damage_that_makes_arrays_of_another_kind(written, tmp_path) -> None:
    path = tmp_path / file.FILE_NAME
    path.write_bytes(written.read_bytes().replace(b'"U32"', b'"I32"', 1))
    with pytest.raises(ValueError, match="file=.*int32"):
        model.read(path)


def test_other_files_are_named(written, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="obert export"):
        SparseEncoder.load(tmp_path)
    plain = tmp_path / file.FILE_NAME
    save_file({"a": np.zeros(2, np.float32)}, plain)
    with pytest.raises(ValueError, match="format safetensors; expected"):
        SparseEncoder.load(plain)
    spec, arrays = file.read(written)
    metadata = {"obert_format": file.KIND, "version": "2", "spec": json.dumps(spec)}
    save_file(arrays, plain, metadata)
    with pytest.raises(ValueError, match="version=2"):
        SparseEncoder.load(plain)
