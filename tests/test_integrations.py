"""What stands in integrations/ runs."""

import json
import runpy
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification

from obert_modifiers.core.quantization.scales import load_quantization_
from obert_modifiers.deploy.export import export_run
from tests import tiny
from tests.hosts import on_sparseml

FOLDER = Path(__file__).parents[1] / "integrations"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Return a recipe, a model's folder and a file of sentences."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "recipe.yaml").write_text(tiny.RECIPE, encoding="utf-8")
    rows = datasets.Dataset.from_list(tiny.sentences(48))
    rows.to_parquet(folder / "train.parquet")
    model = tiny.save_model(folder / "model")
    return folder / "recipe.yaml", model, folder / "train.parquet"


# The README runs two of them, tests/elsewhere two, and this file one.
SCRIPTS = [
    "accelerate/plain_loop.py",
    "composer/obert.py",
    "llmcompressor/obert.py",
    "sentence_transformers/train.py",
    "sparseml/plain_loop.py",
    "transformers/train.py",
]


@on_sparseml
def test_plain_loop_with_sparsemls_manager(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # SparseML writes its log files where it is run
    script = runpy.run_path(str(FOLDER / "sparseml" / "plain_loop.py"))
    assert script["main"]() == 461 / 576  # round(0.8 * 576)


def test_plain_accelerate_loop(files) -> None:
    script = runpy.run_path(str(FOLDER / "accelerate" / "plain_loop.py"))
    model, sparsity = script["main"](*files, batch_size=8)
    assert sparsity == pytest.approx(0.8, abs=1e-4)
    assert tiny.sparsity(model) == pytest.approx(sparsity)


def test_hugging_face_trainer(files, tmp_path) -> None:
    script = runpy.run_path(str(FOLDER / "transformers" / "train.py"))
    options = {"per_device_train_batch_size": 8, "use_cpu": True}
    callback, model = script["main"](*files, tmp_path, save_strategy="no", **options)
    assert callback.manager.sparsity() == pytest.approx(0.8, abs=1e-4)
    assert tiny.sparsity(model) == pytest.approx(0.8, abs=1e-4)
    assert (tmp_path / "recipe.yaml").is_file()


QAT = "\nquantization_modifiers:\n  - !QATModifier\n      start_epoch: 2.6\n"


def test_sentence_transformers_trainer(files, tmp_path) -> None:
    folder, recipe = FOLDER / "sentence_transformers", tmp_path / "recipe.yaml"
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    text = text.replace("num_grads: 512", "num_grads: 16")
    recipe.write_text(text + QAT, encoding="utf-8")

    def train(name: str, **options):
        options |= {"save_strategy": "steps", "save_steps": 5, "use_cpu": True}
        options |= {"per_device_train_batch_size": 8, "disable_tqdm": True}
        main = runpy.run_path(str(folder / "train.py"))["main"]
        return main(recipe, *files[1:], tmp_path / name, **options)

    callback, model = train("out")
    encoder = model[0].auto_model
    assert callback.manager.sparsity() == pytest.approx(0.8, abs=1e-4)
    assert tiny.sparsity(model) == tiny.sparsity(encoder) == callback.manager.sparsity()
    events = callback.manager.events
    assert len(events) == 4 and all(event.predicted_loss_increase for event in events)
    # The folder loads without us, and with us on its 8-bit grids.
    texts = [row["sentence"] for row in tiny.sentences(4)]
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    weights = loaded[0].auto_model.state_dict()
    assert all(torch.equal(weights[name], own) for name, own in plain(encoder).items())
    load_quantization_(loaded[0].auto_model, tmp_path / "out")
    model.eval()
    assert torch.equal(
        *(one.encode(texts, convert_to_tensor=True) for one in (model, loaded))
    )
    # A run that goes on from a checkpoint, between two pruning events, has its bits.
    shutil.copytree(tmp_path / "out" / "checkpoint-5", tmp_path / "b" / "checkpoint-5")
    _, again = train("b", resume_from_checkpoint=True)
    own = again[0].auto_model.state_dict()
    assert all(torch.equal(own[name], one) for name, one in plain(encoder).items())


def plain(model) -> dict[str, torch.Tensor]:
    """Return the parameters, without what quantization keeps beside them."""
    return {name: one.detach() for name, one in model.named_parameters()}


@contextmanager
def serving(run: Path, out: Path) -> Iterator[Callable[[object], tuple[int, dict]]]:
    """Serve a run on the loopback address; yield what posts a body."""
    export_run(run, "sparse", out)
    script = runpy.run_path(str(FOLDER / "serving" / "server.py"))
    server = script["make_server"](out, "127.0.0.1", 0, 2)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def post(body: object) -> tuple[int, dict]:
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        text = body if isinstance(body, str) else json.dumps(body)
        length = {"Content-Length": str(body)} if isinstance(body, int) else {}
        text = "" if length else text  # more is promised than comes
        connection.request("GET" if body is None else "POST", "/", text, length)
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    try:
        yield post
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        server.batcher.close()


def test_serving_a_classifier(files, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(files[1], run)
    model = AutoModelForSequenceClassification.from_pretrained(run)
    model.save_pretrained(run)
    texts = [row["sentence"] for row in tiny.sentences(40)]
    with serving(run, tmp_path / "out") as post:
        alone = [post({"texts": [text]})[1]["answers"][0] for text in texts[:4]]
        with ThreadPoolExecutor(8) as pool:
            parts = [texts[i : i + 5] for i in range(0, 40, 5)]
            found = list(pool.map(lambda part: post({"texts": part}), parts))
        assert [status for status, _ in found] == [200] * 8
        answers = [one for _, body in found for one in body["answers"]]
        assert answers[:4] == alone and len(answers) == 40
        assert {one["label"] for one in answers} <= {"LABEL_0", "LABEL_1"}
        assert post({"texts": []}) == (200, {"answers": []})
        for body in ("{", "[]", {"texts": "one"}, {"texts": [3]}, {}):
            assert post(body)[0] == 400
        assert post(5_000_000)[0] == 413
        assert post(None)[1]["labels"] == ["LABEL_0", "LABEL_1"]


def test_what_the_logits_stand_for_is_served() -> None:
    batcher_of = runpy.run_path(str(FOLDER / "serving" / "server.py"))["Batcher"]
    chance = pytest.approx(1 / (1 + np.exp(-2.5)))
    for problem, logits, expected in (
        ("regression", [2.5], {"score": 2.5}),
        (None, [2.5], {"score": 2.5}),
        ("multi_label_classification", [2.5, 0.0], {"a": chance, "b": 0.5}),
        (None, [2.5, 0.0], {"label": "a", "score": chance}),
    ):
        batcher = batcher_of(None, ["a", "b"][: len(logits)], problem)
        found = batcher._answer({"logits": np.array([logits])}, 0)
        batcher.close()
        assert found.get("scores", found) == expected, problem


def test_serving_embeddings(files, tmp_path) -> None:
    with serving(files[1], tmp_path / "out") as post:
        status, body = post({"texts": ["good", "a bad one"]})
    assert status == 200 and len(body["answers"]) == 2
    for answer in body["answers"]:
        assert sum(x * x for x in answer["embedding"]) == pytest.approx(1)


def test_every_script_is_run_here() -> None:
    found = sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.py"))
    assert found == [
        "accelerate/plain_loop.py",
        "composer/obert.py",
        "llmcompressor/obert.py",
        "sentence_transformers/train.py",
        "serving/server.py",
        "sparseml/plain_loop.py",
        "transformers/train.py",
    ]
