"""Embeddings in exported files: pooled as the run says, where others look for them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertModel

from obert_modifiers.core.embedding import Embeds, Pooling, embed_
from obert_modifiers.core.embedding_folder import is_sentence_folder, read_folder
from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy.export import export_run
from obert_modifiers.deploy.formats.format import Options
from obert_modifiers.deploy.graph_model import open_graph
from obert_modifiers.deploy.run import load_run
from obert_modifiers.runtime import SparseEncoder
from tests import tiny
from tests.deploy.models import inputs, make, save_quantized

POOLING = {
    "mean": Pooling(),
    "first token": Pooling(("cls",)),
    "any length": Pooling(("mean",), unit=False),
}
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino", "sparse": "sparse"}


def make_run(folder, pooling: Pooling, scheme: Scheme | None = None):
    """Save a run of a tiny model that pools in some way."""
    model = make(BertModel, scheme)
    found = read_folder(folder, 32)
    files = dict(found.embeds.files)
    modes = {"pooling_mode": list(pooling.modes)}
    files["1_Pooling/config.json"] = json.dumps(modes).encode()
    if not pooling.unit:
        modules = json.loads(files.pop("modules.json"))
        files["modules.json"] = json.dumps(modules[:2]).encode()
        files.pop("2_Normalize/config.json")
    run = save_quantized(embed_(model, Embeds(pooling, files)), folder / "run")
    base = tiny.save_model(folder / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run / name).write_bytes((base / name).read_bytes())
    return run


def batch(holes: bool = False):
    given = inputs(3, 9)
    mask = torch.ones_like(given["input_ids"])
    mask[1, 6:] = 0
    if holes:
        mask[2, 3] = 0
    return given | {"attention_mask": mask}


@pytest.mark.parametrize("name", POOLING)
def test_every_engine_pools(name, tmp_path) -> None:
    run = make_run(tmp_path, POOLING[name])
    model = load_run(run).model
    assert model.embeds.pooling == POOLING[name]
    with torch.no_grad():
        expected = model(**batch())["sentence_embedding"]
    length = expected.norm(dim=1)
    assert torch.allclose(length, torch.ones(3)) is POOLING[name].unit
    for form, engine in ENGINES.items():
        if engine == "openvino":
            pytest.importorskip("openvino")
        path = export_run(run, form).path
        found = open_graph(path, engine)(**batch())
        assert set(found) >= {"sentence_embedding"}
        assert ("last_hidden_state" in found) == (form != "sparse")
        torch.testing.assert_close(found["sentence_embedding"], expected)
    places = [run / "onnx" / "model.onnx", run / "openvino" / "openvino_model.xml"]
    assert [path.is_file() for path in places] == [True, True]
    export_run(run, "onnx", options=Options("openvino"))
    assert (run / "export" / "openvino.onnx").is_file()


def test_int8_embeddings_and_their_folder(tmp_path) -> None:
    run = make_run(tmp_path, Pooling(), Scheme())
    with torch.no_grad():
        expected = load_run(run).model(**batch())["sentence_embedding"]
    export_run(run, "sparse", tmp_path / "sparse")
    export_run(run, "safetensors", tmp_path / "packed")
    for folder in ("sparse", "packed"):
        assert is_sentence_folder(tmp_path / folder)
        assert (tmp_path / folder / "1_Pooling" / "config.json").is_file()
    found = open_graph(tmp_path / "sparse" / "sparse.safetensors", "sparse")(**batch())
    assert (found["sentence_embedding"] - expected).abs().max() < 0.02


def test_the_sparse_engine_takes_masks_with_holes_and_any_batch(tmp_path) -> None:
    run = make_run(tmp_path, Pooling())
    export_run(run, "sparse", tmp_path / "out")
    encoder = SparseEncoder.load(tmp_path / "out", threads=1)
    given = {name: value.numpy() for name, value in batch(holes=True).items()}
    with torch.no_grad():
        expected = load_run(run).model(**batch(holes=True))["sentence_embedding"]
    found = encoder(**given).sentence_embedding
    assert found.shape == (3, 32) and encoder.width("sentence_embedding") == 32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    single = encoder(**{name: value[2:] for name, value in given.items()})
    assert (single.sentence_embedding[0] == found[2]).all()
    assert encoder(np.zeros((0, 4), np.int64)).sentence_embedding.shape == (0, 32)


def test_pooling_that_the_sparse_engine_does_not_compute(tmp_path) -> None:
    run = make_run(tmp_path, Pooling(("max",)))
    with pytest.raises(ValueError, match="pooling=max .*mean or cls"):
        export_run(run, "sparse", tmp_path / "out")


def test_the_sparse_engine_reads_texts_as_sentence_transformers_does(tmp_path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    run = make_run(tmp_path, Pooling())
    whole = read_folder(tmp_path, 32).embeds.files["1_Pooling/config.json"]
    (run / "1_Pooling" / "config.json").write_bytes(whole)
    texts = {"max_seq_length": 6, "do_lower_case": True}
    (run / "sentence_bert_config.json").write_text(json.dumps(texts))
    about = {"prompts": {"own": "Bad film "}, "default_prompt_name": "own"}
    (run / "config_sentence_transformers.json").write_text(json.dumps(about))
    given = ["A GOOD film", "word1 word2 word3 word4 word5 word6 word7 word8"]
    theirs = sentence_transformers.SentenceTransformer(str(run), device="cpu")
    export_run(run, "sparse", tmp_path / "out")
    encoder = SparseEncoder.load(tmp_path / "out", threads=1)
    found = encoder.texts(given).sentence_embedding
    np.testing.assert_allclose(found, theirs.encode(given), atol=1e-5)
    # Controls: texts that are read in another way have other embeddings.
    encoder._model = replace(encoder._model, texts=dict.fromkeys(encoder._model.texts))
    for text in given:
        other = encoder.texts([text]).sentence_embedding
        assert not np.allclose(other, theirs.encode([text]), atol=1e-4)
