"""The model card of a run, and what reaches the hub: all of it but the token."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from huggingface_hub import EvalResult, ModelCard
from markdown_it import MarkdownIt
from sentence_transformers import SentenceTransformer

from obert_modifiers import cli, embedded, hub
from obert_modifiers.core.quantization.scales import FILE_NAME
from obert_modifiers.deploy.run_folder import copy_along
from obert_modifiers.report.card import CARD, write_card
from obert_modifiers.tasks import TASKS, load
from obert_modifiers.tasks.command_line import check
from obert_modifiers.tasks.flags import DataSetArguments
from obert_modifiers.tasks.run.record import hub_ids
from obert_modifiers.tasks.text_classification import TextArguments
from tests import test_report, tiny
from tests.hub_server import OWNER, TOKEN, hub_server
from tests.tasks.inputs import refused

HOSTILE = "a|b <i> `c` [d](e) ***"
# By its head: what the hub calls its task, and what its run has on record.
HEADS = {
    "ForSequenceClassification": ("text-classification", {"accuracy": 0.8125}),
    "ForQuestionAnswering": ("question-answering", {"exact_match": 80.5, "f1": 88.0}),
    "ForTokenClassification": ("token-classification", {"f1": 0.9}),
    "ForMaskedLM": ("fill-mask", {"perplexity": 4.5}),
    "Model": ("feature-extraction", {"spearman": 0.8}),
}


def run_of(folder: Path, head: str = "ForSequenceClassification", **record) -> Path:
    """Make a finished run with a tiny model."""
    figures = HEADS[head][1]
    facts = {"headline": list(figures), "accuracy": None} | figures | record
    config = facts.pop("config", {})
    test_report.make_run(folder, test_report.EVENTS, **facts)
    tiny.save_model(folder)
    settings = transformers.BertConfig(**tiny.SHAPE | config)
    getattr(transformers, f"Bert{head}")(settings).save_pretrained(folder)
    return folder


def parts_of(folder: Path, kind: str) -> list[str]:
    """Return the card's parts of a kind, as Markdown reads it."""
    text = ModelCard.load(folder / CARD).text
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    if kind == "fence":
        return [one.content for one in tokens if one.type == kind]
    starts = [i for i, one in enumerate(tokens) if one.type == f"{kind}_open"]
    return [
        "".join(part.content for part in tokens[start + 1].children or ())
        for start in starts
    ]


@pytest.mark.parametrize("head", HEADS)
def test_the_header_is_read_by_the_hubs_own_classes(head, tmp_path):
    pipeline, figures = HEADS[head]
    write_card(run_of(tmp_path / "mine", head))
    card = ModelCard.load(tmp_path / "mine" / CARD)
    found = card.data
    assert (found.library_name, found.pipeline_tag) == ("transformers", pipeline)
    assert found.tags == ["obert_modifiers", "pruned", "sparse"]
    assert found.base_model is None and found.datasets is None
    names = {"spearman": "spearmanr"}
    assert found.eval_results == [
        EvalResult(
            pipeline,
            "a & b",
            "a & b",
            names.get(name, name),
            value,
            metric_name=name.replace("_", " "),
        )
        for name, value in figures.items()
    ]
    assert ModelCard(str(card)).data.to_dict() == found.to_dict()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_what_the_card_shows_runs(head, pairs, tmp_path, monkeypatch, capsys):
    columns = ["one", "two"] if pairs else ["one"]
    write_card(run_of(tmp_path / "mine", head, text_columns=columns))
    code, *more, recipe = parts_of(tmp_path / "mine", "fence")
    assert recipe == (tmp_path / "mine" / "recipe.yaml").read_text()
    classifies = head == "ForSequenceClassification"
    assert [bool(re.search("CrossEncoder", text)) for text in more] == (
        [True] if pairs and classifies else []
    )
    monkeypatch.chdir(tmp_path)
    for text in (code, *more):
        exec(text, {})
    assert len(capsys.readouterr().out.splitlines()) >= 1 + len(more)


SENTENCES = {  # what the hub is told of runs that sentence-transformers loads
    "embedder": (
        "sentence-similarity",
        {"sentence-transformers", "feature-extraction"},
    ),
    "reranker": ("text-ranking", {"cross-encoder", "reranker"}),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_embedding_models_and_rerankers(kind, tmp_path, monkeypatch, capsys):
    folder, columns = tmp_path / "mine", ["one", "two"]
    if kind == "embedder":
        run_of(folder, "Model", text_columns=columns)
        SentenceTransformer(str(folder), device="cpu").save(str(folder))
    else:
        one = {"num_labels": 1, "problem_type": "regression"}
        run_of(folder, text_columns=columns, config=one)
    write_card(folder)
    found = ModelCard.load(folder / CARD).data
    pipeline, tags = SENTENCES[kind]
    assert (found.library_name, found.pipeline_tag) == (
        "sentence-transformers",
        pipeline,
    )
    assert tags < set(found.tags)
    monkeypatch.chdir(tmp_path)
    theirs, ours, _ = parts_of(folder, "fence")
    exec(theirs, {})
    exec(ours, {})
    assert ("(1, 32)" in capsys.readouterr().out) is (kind == "embedder")


def test_the_figures_sizes_and_speeds(tmp_path):
    folder = run_of(tmp_path / "mine", sparsity_non_embedding=0.7502)
    (folder / FILE_NAME).write_text('{"tensors": {}}')
    exported = folder / "export" / "x"
    exported.mkdir(parents=True)
    exported = test_report.with_weights(exported, 0.5) / "model.safetensors"
    rows = [
        test_report.timed(tmp_path / "dense", 100.0),
        test_report.timed(folder, 40.0),
        test_report.timed(exported, 20.0),
    ]
    bench = test_report.write_bench(tmp_path / "bench.json", *rows)
    content = json.loads(bench.read_text()) | {"machine": {"cpu": "A fine CPU"}}
    bench.write_text(json.dumps(content))
    other = test_report.evaluated(tmp_path / "e.json", exported)
    write_card(folder, bench=[bench], evaluated=[other])
    cells = parts_of(folder, "td")
    assert cells[:8] == (
        "the run, 0.812, 0.4322, 1,000, model.safetensors, 0.750, –, –".split(", ")
    )
    speed = cells.index("ONNX Runtime")
    row = "ONNX Runtime; 32; 128; 2; 800.0; dense, 320.0; 2.50x"
    assert cells[speed : speed + 7] == row.split("; ")
    assert cells[-1] == "5.00x"
    text = (folder / CARD).read_text()
    assert "A fine CPU" in text and "oBERTa counts, 75.02 % are" in text
    assert "quantization.json" in text
    assert {"int8"} <= set(ModelCard.load(folder / CARD).data.tags)
    write_card(folder)
    assert "## Speed" not in (folder / CARD).read_text()


def test_evaluated_files_of_one_name_have_a_row_each(tmp_path):
    folder = run_of(tmp_path / "mine")
    files = []
    for name, accuracy in (("mine", 0.5), ("other", 0.625)):
        exported = folder / "export" / name
        exported.mkdir(parents=True)
        model = test_report.with_weights(exported) / "model.safetensors"
        record = tmp_path / f"{name}.json"
        files.append(test_report.evaluated(record, model, accuracy=accuracy))
    write_card(folder, evaluated=files)
    cells = parts_of(folder, "td")
    for name, accuracy in (("mine", "0.500"), ("other", "0.625")):
        row = cells.index(f"{name}/model.safetensors")
        assert cells[row + 1] == accuracy


@pytest.mark.parametrize(("sparsity", "sparse"), [(0.8, True), (1e-4, False)])
def test_a_run_that_keeps_masks_is_sparse(sparsity, sparse, tmp_path):
    folder = run_of(tmp_path / "mine", sparsity=sparsity)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["kind"] != "prune"]
    (folder / "metrics.jsonl").write_text("\n".join(kept))
    write_card(folder)
    card = ModelCard.load(folder / CARD)
    assert ("pruned" in card.data.tags) is sparse
    assert ("80.00 % of its prunable weights are zero." in card.text) is sparse


def test_names_cannot_break_the_card(tmp_path):
    record = {"data": HOSTILE, "model": HOSTILE, "command": ["obert", "--x", "/a b/c"]}
    folder = run_of(tmp_path / "a|b `c` ***", **record)
    (folder / "recipe.yaml").write_text("a: |\n  ```\n  ````\n")
    write_card(folder)
    text = ModelCard.load(folder / CARD).text
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert "a|b &lt;i&gt; `c` [d](e) ***" in shown and "<i>" not in shown
    assert parts_of(folder, "heading")[0] == "a|b `c` ***"
    assert parts_of(folder, "fence")[-1] == "a: |\n  ```\n  ````\n"
    assert "<code>obert --x c</code>" in shown  # folders stay here
    assert ModelCard.load(folder / CARD).data.eval_results[0].dataset_name == HOSTILE


def test_a_run_of_an_older_version_has_a_card(tmp_path):
    folder = run_of(tmp_path / "old", accuracy=float("nan"), headline=["accuracy"])
    (folder / "recipe.yaml").unlink()
    write_card(folder)
    card = ModelCard.load(folder / CARD)
    assert card.data.eval_results is None and "## Figures" not in card.text
    assert "The recipe, as it was run" not in card.text


def test_figures_of_another_model_are_refused(tmp_path):
    folder = run_of(tmp_path / "mine")
    bench = test_report.write_bench(tmp_path / "b", test_report.timed("other", 1.0))
    with refused("--bench=.*has nothing of run"):
        write_card(folder, bench=[bench])
    other = test_report.evaluated(tmp_path / "e", "other")
    with refused("--evaluated=.*has nothing of run"):
        write_card(folder, evaluated=[other])


def test_an_exported_folder_has_no_card_of_the_run(tmp_path):
    write_card(run_of(tmp_path / "mine"))
    copy_along(tmp_path / "mine", tmp_path / "out")
    assert (tmp_path / "out" / "recipe.yaml").is_file()
    assert not (tmp_path / "out" / CARD).exists()


def test_the_base_model_is_found_through_earlier_runs(tmp_path):
    data = DataSetArguments()

    def base(model):
        return hub_ids(None if model is None else str(model), data)["base_model"]

    assert base(None) == embedded.ENCODER_ID
    assert base("somebody/model") == "somebody/model"
    earlier = {"hub": {"base_model": "somebody/model"}, "hub_model_id": None}
    for content, found in (
        (earlier, "somebody/model"),
        (earlier | {"hub_model_id": "me/dense"}, "me/dense"),
        ({"accuracy": 1}, None),
        ([1], None),
    ):
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        assert base(tmp_path) == found
    (tmp_path / "metrics.json").write_text("{")
    assert base(tmp_path) is None


def test_the_data_sets_name_on_the_hub(tmp_path):
    def named(**flags):
        found = hub_ids(None, TextArguments(**flags))
        return found["dataset"], found["dataset_config"]

    assert named() == (None, None)
    assert named(task_name="sst2") == ("nyu-mll/glue", "sst2")
    assert named(dataset_name="a/b", dataset_config_name="c") == ("a/b", "c")
    assert named(dataset_name=str(tmp_path), dataset_config_name="c") == (None, None)


@pytest.fixture
def server():
    with hub_server() as hub:
        yield hub


@pytest.fixture
def command(server, tmp_path):
    """Run `obert` beside the stand-in, as somebody who has a token."""
    settings = {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # the stand-in has Git LFS
        "NO_PROXY": "127.0.0.1",
    }

    def run(*words, **changes):
        done = subprocess.run(
            [sys.executable, "-m", "obert_modifiers.cli", *map(str, words)],
            env=os.environ | settings | changes,
            capture_output=True,
            text=True,
        )
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        for text in (done.stdout, done.stderr, *(f.read_bytes() for f in files)):
            assert (TOKEN if isinstance(text, str) else TOKEN.encode()) not in text
        return done

    return run


def training(folder: Path, **flags) -> list[str]:
    small = tiny.flags(folder, 32) | {"output_dir": folder / "out"} | flags
    words = ["train", "text_classification", *tiny.words_of(small)]
    return [*words, "--use_cpu", "--push_to_hub"]


def test_a_run_is_pushed_with_its_card(server, command, tmp_path):
    out = tmp_path / "out"
    saving = {"save_strategy": "steps", "save_steps": 4, "max_eval_samples": 8}
    words = training(tmp_path, hub_model_id="me/pruned", **saving)
    done = command(*words, "--hub_private_repo")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"pushed to {server.url}/me/pruned"
    [(name, files)] = server.repositories.items()
    assert name == "me/pruned" and server.private == {name: True}
    assert files == {path: (out / path).read_bytes() for path in files}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    whole = {CARD, "config.json", "model.safetensors", "recipe.yaml"}
    assert set(files) == whole | tokenizer
    assert list(out.glob("checkpoint-*")) and "PUT" in server.asked
    # The repository was opened before the training, and nobody else was asked.
    assert server.asked[0] == "POST /api/repos/create"
    assert server.asked.count(server.asked[0]) == server.asked.count("PUT") == 1
    card = ModelCard(files[CARD].decode())
    assert 'from_pretrained("me/pruned")' in card.text and card.text.count(" pruned\n")
    record = json.loads((out / "metrics.json").read_text())
    assert record["hub_model_id"] == "me/pruned"
    assert card.data.eval_results[0].metric_value == record["accuracy"]


def test_a_hub_that_refuses_is_said_before_the_training(server, command, tmp_path):
    server.refused, server.echoes = "create", True
    done = command("--debug", *training(tmp_path))
    assert done.returncode == 2 and "Traceback" in done.stderr
    assert "did not take out (" in done.stderr and "TOKEN" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def here(server, monkeypatch):
    """Let this process see the stand-in, which holds nothing yet."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


def test_a_run_that_could_not_be_pushed_is_pushed_later(here, tmp_path, capfd):
    run = run_of(tmp_path / "mine")
    here.refused, here.echoes = "commit", True
    assert cli.main(["card", str(run), "--push_to_hub"]) == 2
    said = capfd.readouterr().err
    assert f"did not get all of {OWNER}/mine (" in said and TOKEN not in said
    assert "`obert card RUN --push_to_hub`" in said
    here.refused = None
    assert cli.main(["card", str(run), "--push-to-hub"]) == 0
    assert here.repositories[f"{OWNER}/mine"][CARD] == (run / CARD).read_bytes()
    assert f'from_pretrained("{OWNER}/mine")' in (run / CARD).read_text()
    assert here.private == {f"{OWNER}/mine": False}
    record = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(record | {"hub_model_id": "me/a"}))
    assert cli.main(["card", str(run), "--push_to_hub"]) == 0
    assert here.repositories.keys() == {f"{OWNER}/mine", "me/a"}


def test_what_the_hub_answers_is_one_message(here, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with refused("did not take a/b .*Invalid credentials") as caught:
        hub.open_repository("a/b", False)
    assert caught.value.__suppress_context__
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refused("hub=http://127.0.0.1:9 did not take a/b"):
        hub.open_repository("a/b", False)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_pushed_by_the_same_flags(task, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "check_ready", lambda name: names.append(name))
    names = []
    words = ["--output_dir", str(tmp_path / "mine"), "--push_to_hub"]
    words += ["--train_file", "train.json"]
    check(load(task).parse(words))
    check(load(task).parse([*words, "--hub_model_id", "me/other"]))
    assert names == ["mine", "me/other"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--hub_model_id a/b", "--hub_model_id=a/b has nothing to push"),
        ("--hub_private_repo", "expected --push_to_hub beside it"),
        ("--push_to_hub --do_eval", "push a finished run with `obert card"),
        ("--push_to_hub --hub_model_id a/b/c", "=a/b/c is no repository's name"),
        ("--push_to_hub", "HF_HUB_OFFLINE"),  # as all tests are
        (f"--hub_token {TOKEN}", "--hub_token is.*set HF_TOKEN"),
        (f"--push_to_hub --hub_token={TOKEN}", "--hub_token is.*set HF_TOKEN"),
        (f"--push_to_hub_token={TOKEN}", "run `hf auth login`"),
    ],
)
def test_what_cannot_be_pushed_is_an_error_at_once(words, message, capsys, tmp_path):
    code = cli.main([
        "train",
        "text_classification",
        *words.split(),
        f"--output_dir={tmp_path}/x",
    ])
    said = capsys.readouterr().err
    assert code == 2 and re.search(message, said) and TOKEN not in said


def test_a_push_without_a_token_is_an_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with refused("--push_to_hub has no token"):
        hub.check_ready("me/mine")


def test_the_token_is_read_by_the_hubs_library_alone():
    """No file of the package passes a token on, but to take it out of a message."""
    folder = Path(hub.__file__).parent
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if getattr(node, "id", getattr(node, "name", "")) == "get_token"
        or (isinstance(node, ast.keyword) and node.arg == "token")
    }
    assert found == {"hub.py"}
