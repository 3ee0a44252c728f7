"""The report: one page without network, a picture, and every figure in it."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file, save_file

from obert_modifiers.deploy.bench.results import read_bench
from obert_modifiers.report import (
    findings,
    read_run,
    weights_panel,
    write_comparison,
    write_report,
    write_runs,
)
from obert_modifiers.report.compare import measure_runs, speed_points
from obert_modifiers.report.panels import COLOURS, layer_grid
from obert_modifiers.report.write import event_cells, number

VOID = {"meta", "link", "br", "img", "path", "use", "rect"}


class Page(HTMLParser):
    """Collects texts, outward links, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.open, self.links = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def event(epoch, before, after, **changes):
    return {
        "kind": "prune",
        "modifier": "OBERTPruningModifier",
        "epoch": epoch,
        "step": int(epoch * 10),
        "sparsity_before": before,
        "sparsity_after": after,
        "predicted_loss_increase": 0.01234,
        "seconds": 12.34,
        "peak_memory_bytes": 2_500_000_000,
        "num_gradients": 1024,
        "skipped_gradients": 3,
        "layers": [],
    } | changes


def make_run(folder, events=(), **record):
    """Write the files of a run of 20 steps in 2 epochs."""
    folder.mkdir(parents=True)
    lines = [
        {
            "kind": "step",
            "step": step,
            "epoch": step / 10,
            "loss": 1 / step,
            "learning_rate": 1e-4 / step,
            "sparsity": max(
                [e["sparsity_after"] for e in events if e["step"] < step] or [0]
            ),
        }
        for step in range(1, 21)
    ]
    lines += events
    lines += [
        {"kind": "eval", "step": 10 * n, "epoch": n, "accuracy": 0.8, "loss": 0.5}
        for n in (1, 2)
    ]
    lines.append({"kind": "message", "text": "The recipe <sets> the epochs."})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    kinds = ("attention.self.query", "attention.output.dense", "output.dense")
    layers = [
        {
            "name": f"bert.encoder.layer.{i}.{kind}.weight",
            "numel": 100,
            "pruned": 80 + i,
        }
        for i in range(2)
        for kind in kinds
    ]
    facts = {
        "accuracy": 0.8125,
        "loss": 0.43219,
        "sparsity": 0.8,
        "size_mb": 90.9,
        "gzip_mb": 40.1,
        "minutes": 3.2,
        "seed": 0,
        "samples": 1000,
        "steps": 20,
        "model": "the embedded encoder",
        "data": "a & b",
        "layers": layers if events else [],
        "notes": ["a note"],
        "command": ["obert", "train", "--recipe", "my recipe.yaml"],
        "versions": {"python": "3.11"},
        "machine": {"cpu": "A fine processor", "cores": 2},
    }
    (folder / "metrics.json").write_text(json.dumps(facts | record))
    if events:
        (folder / "recipe.yaml").write_text("modifiers:\n  - !Some <recipe>\n")
    return folder


@pytest.fixture
def pruned(tmp_path):
    return make_run(tmp_path / "mine", (event(0.5, 0.0, 0.6), event(1.0, 0.6, 0.8)))


def test_the_page_is_whole_and_needs_no_network(pruned):
    text = write_report(pruned).read_text()
    page = Page(text)
    assert not [link for link in page.links if not link.startswith("#")]
    assert not re.findall(r"@import|<script|https?://(?!www\.w3\.org)", text)
    assert text.count("<svg") == 5
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_the_page_shows_the_figures(pruned):
    texts = Page(write_report(pruned).read_text()).texts
    for shown in (
        "0.812",
        "0.4322",
        "80.00 %",
        "90.9",
        "the embedded encoder on a & b",
        "0.0123",
        "1,024",
        "2.50 GB",
        "12.3",
        "A fine processor, 2 cores, 1 process(es)",
        "obert train --recipe 'my recipe.yaml'",
        "The recipe <sets> the epochs.",
        "a note",
        "attention output",
    ):
        assert shown in texts, shown
    assert any("!Some <recipe>" in text for text in texts)


def test_the_pictures_take_every_colour_from_the_page(pruned):
    text = write_report(pruned).read_text()
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not set(re.findall(r"#[0-9a-f]{6}\b", pictures)) - {"#000000"}
    assert set(re.findall(r"var\(--(\w+)\)", pictures)) <= set(COLOURS)
    dark = text.split("prefers-color-scheme: dark")[1].split("}")[0]
    assert all(f"--{name}:" in dark for name in COLOURS)


def test_ids_on_the_page_do_not_clash(pruned):
    text = write_report(pruned).read_text()
    defined = re.findall(r'\bid="([^"]*)"', text)
    referred = set(re.findall(r'(?:href="|url\()#([^")]*)', text))
    assert referred <= set(defined)


def test_the_picture_is_a_png(pruned):
    write_report(pruned)
    data = (pruned / "report.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 20_000


def test_the_same_run_gives_the_same_page(pruned):
    assert write_report(pruned).read_text() == write_report(pruned).read_text()


def test_a_run_without_recipe_evaluation_or_events(tmp_path):
    folder = make_run(tmp_path / "dense", accuracy=None, loss=None, sparsity=0.0)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"eval"' not in line]
    (folder / "metrics.jsonl").write_text("".join(kept))
    texts = Page(write_report(folder).read_text()).texts
    assert "Pruning events" not in texts and "Recipe" not in texts
    assert "–" in texts


def test_several_runs_on_one_page(tmp_path, pruned):
    dense = make_run(tmp_path / "dense")
    rows = [("", "accuracy"), ("dense", "0.81"), ("oBERT", "0.80")]
    runs = {"dense": dense, "oBERT": pruned}
    page = write_comparison(tmp_path / "all", "Both", runs, rows, ["a subset"])
    texts = Page(page.read_text()).texts
    assert {"Both", "0.81", "0.80", "a subset", "Pruning events: oBERT"} <= set(texts)
    assert "Layers: dense" not in texts
    assert (tmp_path / "all" / "report.png").is_file()


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no metrics.json; expected"):
        read_run(tmp_path)


def test_the_sparsity_jumps_at_the_event(pruned):
    epochs, sparsities = read_run(pruned).sparsity_curve()
    curve = list(zip(epochs, sparsities, strict=True))
    assert curve[0] == (0.0, 0.0) and curve[-1] == (2.0, 0.8)
    assert sparsities == sorted(sparsities)
    # Step 5 ended at epoch 0.5; the event came after it and before step 6.
    at = curve.index((0.5, 0.6))
    assert curve[at - 1] == (0.5, 0) and curve[at + 1] == (0.6, 0.6)


def test_layers_that_are_not_numbered_are_rows():
    rows, columns, cells = layer_grid([
        {"name": "head.weight", "numel": 4, "pruned": 1}
    ])
    assert (rows, columns, cells) == (
        ["head"],
        ["sparsity"],
        {("head", "sparsity"): 0.25},
    )


def test_numbers():
    assert [number(x, 2) for x in (None, 0.0, 1234.5, 1e-5)] == [
        "–",
        "0.00",
        "1,234.50",
        "1.0e-05",
    ]
    plain = event(1, 0, 0.5, predicted_loss_increase=None, num_gradients=0)
    assert event_cells(plain)[5:9] == ["–", "–", "–", "–"]


HOSTILE = "<b>&\"'$x_1$ {{ 7*7 }}"


def with_weights(folder, keep=1.0):
    """Give a run's folder weights of one layer, the largest of which are kept."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=draw)
    weight[weight.abs() < weight.abs().flatten().quantile(1 - keep)] = 0.0
    tensors = {
        "bert.encoder.layer.0.output.dense.weight": weight,
        "bert.embeddings.word_embeddings.weight": torch.ones(5, 64),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("several")
    events = (event(0.5, 0.0, 0.6), event(1.0, 0.6, 0.8))
    return [
        with_weights(make_run(tmp_path / "dense", gzip_mb=None)),
        with_weights(make_run(tmp_path / HOSTILE, events, gzip_mb=None), 0.2),
        make_run(tmp_path / "_old", events, accuracy=0.7),
    ]


@pytest.fixture(scope="module")
def page_of_several(several, tmp_path_factory):
    return write_runs(several, tmp_path_factory.mktemp("page")).read_text()


def write_json(path, record):
    path.write_text(json.dumps(record))
    return path


def timed(model, items, engine="onnxruntime", **changes):
    throughput = {"mean": items + 1, "median": items, "sd": 0.5}
    row = {"model": str(model), "engine": engine, "batch": 32, "seq": 128}
    return row | {"throughput": throughput} | changes


def test_names_cannot_break_the_page(page_of_several):
    text = page_of_several
    page = Page(text)
    assert HOSTILE in page.texts and "<b>" not in text and "49" not in page.texts
    assert text.count("<svg") == text.count('role="img"') >= 7
    assert {"3 runs", "Sizes", f"Layers: {HOSTILE}"} <= set(page.texts)
    # In the pictures too: neither mathematics nor left out of the legend.
    assert page.texts.count(HOSTILE) > 4
    assert any(one.endswith("_old") for one in page.texts)
    assert not re.findall(r"@import|<script|https?://(?!www\.w3\.org)", text)


def test_every_picture_says_what_it_shows(page_of_several):
    text = page_of_several
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', text)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(labels) == len(captions) == text.count("<svg")
    assert all(label.endswith(".") for label in labels)
    assert any("as planned" in label or "events to" in label for label in labels)


def test_sizes_and_speeds_are_compared_with_the_first(several, tmp_path):
    dense, sparse, _ = several
    model = sparse / "model.safetensors"
    bench = write_json(
        tmp_path / "bench.json",
        {"rows": [timed(dense, 10.0), timed(model, 25.0), timed("elsewhere", 9.0)]},
    )
    record = {"model": str(model), "headline": ["accuracy"], "accuracy": 0.75}
    evaluated = write_json(tmp_path / "e.json", record)
    page = write_runs(several, tmp_path / "p", bench=[bench], evaluated=[evaluated])
    text = page.read_text()
    texts = Page(text).texts
    assert "Accuracy against speed" in texts and "Accuracy against size" in texts
    assert "elsewhere was timed and belongs to no run here." in texts
    assert "2.50x faster at 92.3" in text  # 0.75 of 0.8125
    runs = [read_run(path) for path in several]
    measured, notes = measure_runs(runs, [bench], [evaluated])
    (points,) = speed_points(runs, measured).values()
    assert [(p.gain, p.metric) for p in points] == [(1.0, 0.8125), (2.5, 0.75)]
    assert measured[2].sizes == [] and len(notes) == 1


def test_speeds_of_other_settings_are_not_compared(several, tmp_path):
    runs = [read_run(path) for path in several]
    rows = [timed(several[0], 10.0), timed(several[1], 20.0, engine="openvino")]
    rows += [timed(several[1], 30.0, batch=1)]
    measured, _ = measure_runs(runs, [write_json(tmp_path / "b", rows)])
    assert speed_points(runs, measured) == {}


def test_speeds_of_other_benchmarks_and_cores_are_not_compared(several, tmp_path):
    runs = [read_run(path) for path in several]
    one = write_json(tmp_path / "1", [timed(several[0], 10.0), timed(several[1], 20.0)])
    other = write_json(tmp_path / "2", [timed(several[0], 40.0)])
    measured, _ = measure_runs(runs, [one, other])
    (points,) = speed_points(runs, measured).values()
    assert [point.gain for point in points] == [1.0, 2.0]
    rows = [timed(several[0], 10.0, cores=1), timed(several[1], 20.0, cores=2)]
    measured, _ = measure_runs(runs, [write_json(tmp_path / "3", rows)])
    assert speed_points(runs, measured) == {}


def test_figures_of_other_samples_are_said_to_be(several, tmp_path):
    runs = [read_run(path) for path in several]
    files = [
        write_json(
            tmp_path / f"{number}.json",
            {"model": str(path), "headline": ["accuracy"], "accuracy": 0.5}
            | {"samples": samples},
        )
        for number, (path, samples) in enumerate(
            zip(several, (50, 100, 100), strict=True)
        )
    ]
    _, notes = measure_runs(runs, evaluated=files)
    assert len(notes) == 1 and "different numbers of samples" in notes[0]
    assert f"{runs[0].name} 50" in notes[0] and f"{runs[1].name} 100" in notes[0]


def test_a_median_comes_before_a_mean(tmp_path):
    path = write_json(tmp_path / "b", [timed("m", 10.0)])
    assert (read_bench(path)[0].items, read_bench(path)[0].deviation) == (10.0, 0.5)
    write_json(path, [timed("m", 0, throughput=7.5)])
    assert (read_bench(path)[0].items, read_bench(path)[0].deviation) == (7.5, None)
    write_json(path, [timed("m", 0, throughput=None, throughput_mean=3.0)])
    assert read_bench(path)[0].items == 3.0
    row = timed("m", 0, throughput=None, items_per_second=8.0, bf16=True)
    write_json(path, {"results": [row]})
    (found,) = read_bench(path)
    assert (found.items, found.deviation) == (8.0, None)
    assert found.engine == "onnxruntime bf16"
    write_json(path, {"results": [row | {"median_ms": 3200.0, "sd_ms": 320.0}]})
    (found,) = read_bench(path)
    assert (found.items, found.deviation) == (10.0, 1.0)  # 32 samples in 3.2 s


def test_rows_are_found_by_their_name_where_it_is_one_runs(several, tmp_path):
    runs = [read_run(path) for path in several]
    rows = [timed("dense", 10.0), timed("_old", 20.0, path="gone.onnx")]
    rows += [timed("model.safetensors", 5.0)]
    path = write_json(tmp_path / "b", rows)
    measured, notes = measure_runs(runs, [path])
    assert [len(one.speeds) for one in measured] == [1, 0, 1]
    assert notes == ["model.safetensors was timed and belongs to no run here."]


def test_a_name_is_that_of_a_file_that_was_exported(several, tmp_path):
    runs = [read_run(path) for path in several]
    for run in several[:2]:
        packed = run / "export" / f"only_{len(run.name)}"
        packed.mkdir(parents=True)
        shutil.copy(run / "model.safetensors", packed)
    names = [f"only_{len(run.name)}" for run in several[:2]]
    try:
        path = write_json(tmp_path / "b", [timed(name, 9.0) for name in names])
        measured, notes = measure_runs(runs, [path])
    finally:
        for run in several[:2]:
            shutil.rmtree(run / "export")
    assert [len(one.speeds) for one in measured] == [1, 1, 0] and not notes
    assert measured[1].sizes[1].model.endswith(f": {names[1]}")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "holds no list of rows"),
        ([], "holds no list of rows"),
        ([{"model": "m"}], "a row without engine"),
        ([3], "a row without model"),
        ([timed("m", 0.0)], "without a throughput"),
    ],
)
def test_what_is_no_benchmark_is_refused(record, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_bench(write_json(tmp_path / "b", record))
    (tmp_path / "b").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_bench(tmp_path / "b")


def test_runs_of_different_tasks_are_refused(several, tmp_path):
    other = make_run(tmp_path / "other", headline=["f1"], f1=0.5)
    with pytest.raises(ValueError, match="has the figure f1 .* expected runs of one"):
        write_runs([several[0], other], tmp_path / "page")
    wrong = write_json(tmp_path / "e.json", [1])
    with pytest.raises(ValueError, match="is no evaluation"):
        write_runs(several, tmp_path / "page", evaluated=[wrong])


def test_runs_with_the_same_folders_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / seed / "obert") for seed in ("s1", "s2")]
    texts = Page(write_runs(runs, tmp_path / "page").read_text()).texts
    assert {"s1/obert", "s2/obert"} <= set(texts)


RECIPE = """
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 2.0
  - !GMPStarPruningModifier
      init_sparsity: 0.6
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 1.0
      update_frequency: 0.5
"""


def test_the_plan_is_held_against_what_was_done(pruned):
    (pruned / "recipe.yaml").write_text(RECIPE)
    run = read_run(pruned)
    assert run.planned == [(0.5, 0.6), (1.0, 0.8)]
    assert "2 events to 80.00 %, as planned." in findings.sparsity([run])
    (pruned / "recipe.yaml").write_text(RECIPE.replace("0.8", "0.9"))
    assert "not as the recipe plans it" in findings.sparsity([read_run(pruned)])
    (pruned / "recipe.yaml").write_text("modifiers:\n  - !Unknown {}\n")
    assert read_run(pruned).planned == []


def test_the_histogram_counts_the_encoders_weights(several):
    dense, sparse = (weights_panel.magnitudes(read_run(f)) for f in several[:2])
    assert dense.total == sparse.total == 64 * 64
    assert int(dense.counts.sum()) == dense.nonzero == 64 * 64
    weight = load_file(several[1] / "model.safetensors")
    kept = weight["bert.encoder.layer.0.output.dense.weight"]
    kept = kept[kept != 0].abs()
    assert sparse.nonzero == len(kept) < 0.21 * 64 * 64
    assert sparse.median == pytest.approx(float(kept.median()), rel=0.01)
    assert sparse.low >= float(kept.min())
    assert weights_panel.magnitudes(read_run(several[2])) is None
    assert "820 of 4,096 weights are not zero" in weights_panel.finding([sparse])
    assert "Nothing is pruned" in weights_panel.finding([dense, dense])


def test_the_findings_are_the_figures(pruned, several):
    run = read_run(pruned)
    assert findings.loss([run]) == "The validation loss ends at 0.5000, its best."
    assert findings.events(run).startswith("2 events took 24.7 s;")
    least = "Least is pruned of the attention query of layer 1"
    assert findings.layers(run).startswith(least.replace("attention ", ""))
    assert "80.0 %" in findings.layers(run) and "81.0 %" in findings.layers(run)
    ends = findings.metric([read_run(path) for path in several])
    assert ends.startswith("The validation accuracy at the end, the best first: dense")
