"""The report: one page without network, a picture, and every figure in it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from obert_modifiers.deploy.bench.results import read_bench
from obert_modifiers.report.compare import measure_runs, speed_points
from obert_modifiers.report.draw import COLOURS
from obert_modifiers.report.panels import Point, layer_grid, tradeoff_panel
from obert_modifiers.report.read import Run, read_run
from obert_modifiers.report.text import number
from obert_modifiers.report.write import event_rows, write_report

OUTWARD = r"@import|<script|https?://(?!www\.w3\.org)"
VOID = {"meta", "link", "br", "img", "path", "use", "rect"}
HOSTILE = "<b>&\"'$x_1$ {{ 7*7 }}"


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

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def texts_of(*runs, **options) -> list[str]:
    return Page(write_report(*runs, **options).read_text()).texts


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


EVENTS = (event(0.5, 0.0, 0.6), event(1.0, 0.6, 0.8))


def make_run(folder, events=(), **record):
    """Write the files of a run of 20 steps in 2 epochs."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, 21):
        done = [e["sparsity_after"] for e in events if e["step"] < step]
        line = {"kind": "step", "step": step, "epoch": step / 10, "loss": 1 / step}
        rate = {"learning_rate": 1e-4 / step, "sparsity": max(done, default=0)}
        lines.append(line | rate)
    lines += events
    lines += [
        {"kind": "eval", "step": 20, "epoch": 2, "accuracy": 0.8, "loss": 0.5},
        {"kind": "message", "text": "The recipe <sets> the epochs."},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    kinds = ("attention.self.query", "attention.output.dense", "output.dense")
    layers = [
        {"name": f"bert.encoder.layer.{i}.{kind}.weight", "numel": 100, "pruned": 80}
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


def three_runs(folder, last, **changes):
    return [
        with_weights(make_run(folder / "dense", gzip_mb=None)),
        with_weights(make_run(folder / HOSTILE, EVENTS, gzip_mb=None), 0.2),
        make_run(folder / last, EVENTS, **changes),
    ]


@pytest.fixture
def pruned(tmp_path):
    return make_run(tmp_path / "mine", EVENTS)


@pytest.fixture(scope="module")
def page_of_one(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("one") / "mine", EVENTS)
    text = write_report([folder]).read_text()
    picture = (folder / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    assert write_report([folder]).read_text() == text
    return text


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return three_runs(tmp_path_factory.mktemp("several"), "_old", accuracy=0.7)


@pytest.fixture
def runs(several):
    return [read_run(path) for path in several]


@pytest.fixture(scope="module")
def page_of_several(several, tmp_path_factory):
    return write_report(several, tmp_path_factory.mktemp("page")).read_text()


def test_the_page_is_whole_and_needs_no_network(page_of_one):
    page = Page(page_of_one)
    assert not [link for link in page.links if not link.startswith("#")]
    assert not re.findall(OUTWARD, page_of_one)
    assert page_of_one.count("<svg") == 2
    assert 'name="viewport"' in page_of_one
    defined = re.findall(r'\bid="([^"]*)"', page_of_one)
    referred = set(re.findall(r'(?:href="|url\()#([^")]*)', page_of_one))
    assert referred <= set(defined)


def test_the_page_shows_the_figures(page_of_one):
    texts = Page(page_of_one).texts
    shown = {"0.812", "0.4322", "80.00 %", "90.9", "0.0123", "1,024", "2.50 GB", "12.3"}
    shown |= {"the embedded encoder on a & b", "attention output", "a note"}
    shown |= {"A fine processor, 2 cores, 1 process(es)"}
    shown |= {"obert train --recipe 'my recipe.yaml'", "The recipe <sets> the epochs."}
    assert shown <= set(texts), shown - set(texts)
    assert any("!Some <recipe>" in text for text in texts)


def test_the_pictures_take_every_colour_from_the_page(page_of_one):
    pictures = "".join(re.findall(r"<svg.*?</svg>", page_of_one, flags=re.DOTALL))
    assert not set(re.findall(r"#[0-9a-f]{6}\b", pictures)) - {"#000000"}
    assert set(re.findall(r"var\(--(\w+)\)", pictures)) <= set(COLOURS)
    dark = page_of_one.split("prefers-color-scheme: dark")[1].split("}")[0]
    assert all(f"--{name}:" in dark for name in COLOURS)


def test_a_run_without_recipe_evaluation_or_events(tmp_path):
    folder = make_run(tmp_path / "dense", accuracy=None, loss=None, sparsity=0.0)
    texts = texts_of([folder])
    assert "Pruning events" not in texts and "Recipe" not in texts
    assert "–" in texts


def test_several_runs_on_one_page(tmp_path, pruned):
    rows = [("", "accuracy"), ("dense", "0.81"), ("oBERT", "0.80")]
    runs = {"dense": make_run(tmp_path / "dense"), "oBERT": pruned}
    out = tmp_path / "all"
    texts = texts_of(runs, out, title="Both", table=rows, notes=["a subset"])
    assert {"Both", "0.81", "0.80", "a subset", "Pruning events: oBERT"} <= set(texts)
    assert "Layers: dense" not in texts
    assert (out / "report.png").is_file()


def test_names_cannot_break_the_page(page_of_several):
    text = page_of_several
    page = Page(text)
    assert HOSTILE in page.texts and "<b>" not in text and "49" not in page.texts
    assert {"3 runs", "Sizes", f"Layers: {HOSTILE}"} <= set(page.texts)
    # In the pictures too: neither mathematics nor left out of the legend.
    assert page.texts.count(HOSTILE) > 4
    assert any(one.endswith("_old") for one in page.texts)
    assert not re.findall(OUTWARD, text)


def test_every_picture_says_what_it_shows(page_of_several):
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', page_of_several)
    assert len(labels) == page_of_several.count("<svg") == 4
    starts = ("Accuracy against size, gzipped", "Sparsity of the prunable")
    layers = ("Sparsity by layer of &lt;b&gt;", "Sparsity by layer of _old")
    for label, start in zip(labels, starts + layers, strict=True):
        assert label.startswith(start)


def test_runs_with_the_same_folders_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / seed / "obert") for seed in ("s1", "s2")]
    assert {"s1/obert", "s2/obert"} <= set(texts_of(runs, tmp_path / "page"))


def test_the_time_of_the_events_is_beside_that_of_the_training(tmp_path):
    folder = make_run(tmp_path / "run", (event(0.5, 0.0, 0.6),), train_seconds=60.0)
    assert "20 in 60.0 s; pruning events: 12.3 s" in texts_of([folder])


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


def test_a_planned_sparsity_goes_on_to_the_end():
    steps = [{"epoch": 0.0, "step": 0}, {"epoch": 3.0, "step": 0}]
    run = Run("plan", Path(), {}, steps, prunes=[{"epoch": 1.0, "sparsity_after": 0.5}])
    assert run.sparsity_curve() == ([0.0, 1.0, 3.0], [0.0, 0.5, 0.5])


def test_layers_that_are_not_numbered_are_rows():
    found = layer_grid([{"name": "head.weight", "numel": 4, "pruned": 1}])
    assert found == (["head"], ["sparsity"], {("head", "sparsity"): 0.25})


def test_what_an_event_does_not_have_is_a_dash(tmp_path):
    plain = event(1, 0, 0.5, predicted_loss_increase=None, num_gradients=0)
    (row,) = event_rows(read_run(make_run(tmp_path / "run", (plain,))))
    assert row[4] == "–" and row[6:10] == ["–", "–", "–", "–"]


def test_numbers():
    said = [number(value, 2) for value in (None, 0.0, 1234.5, 1e-5)]
    assert said == ["–", "0.00", "1,234.50", "1.0e-05"]


RECIPE = """
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2.0}
  - !GMPStarPruningModifier
      init_sparsity: 0.6
      final_sparsity: 0.9
      start_epoch: 0.5
      end_epoch: 1.0
      update_frequency: 0.5
"""


def test_the_plan_stands_beside_what_was_done(pruned):
    (pruned / "recipe.yaml").write_text(RECIPE)
    run = read_run(pruned)
    assert run.planned == [(0.5, 0.6), (1.0, 0.9)]
    assert [row[3:6] for row in event_rows(run)] == [
        ["0.00 %", "60.00 %", "60.00 %"],
        ["60.00 %", "90.00 %", "80.00 %"],
    ]
    (pruned / "recipe.yaml").write_text("modifiers:\n  - !Unknown {}\n")
    assert read_run(pruned).planned == []
    assert event_rows(read_run(pruned))[0][4] == "–"


def write_json(path, record):
    path.write_text(json.dumps(record))
    return path


def timed(model, milliseconds, **changes):
    """A row of `obert bench`, as its file has it."""
    row = {"model": Path(model).name, "path": str(model), "engine": "onnxruntime"}
    row |= {"bf16": False, "batch": 32, "seq": 128, "cores": 2}
    return row | {"median_ms": milliseconds, "sd_ms": 1.0} | changes


def write_bench(path, *rows):
    return write_json(path, {"results": rows})


def evaluated(path, model, **record):
    record = {"model": str(model), "headline": ["accuracy"], "accuracy": 0.75} | record
    return write_json(path, record)


def test_sizes_and_speeds_are_compared_with_the_first(several, runs, tmp_path):
    dense, sparse, _ = several
    model = sparse / "model.safetensors"
    quartiles = {"speedup": 2.5, "speedup_low": 2.4, "speedup_high": 2.75}
    rows = [timed(dense, 100.0), timed(model, 40.0, **quartiles)]
    bench = [write_bench(tmp_path / "bench.json", *rows, timed("elsewhere", 9.0))]
    figures = [evaluated(tmp_path / "e.json", model)]
    texts = texts_of(several, tmp_path / "p", bench=bench, evaluated=figures)
    assert "Accuracy against speed" in texts and "Accuracy against size" in texts
    assert "elsewhere was timed and belongs to no run here." in texts
    faster = texts.index("800.0 (768.0 to 880.0)")  # 32 samples in 40 ms
    assert texts[faster - 3 : faster] == [HOSTILE, "0.750", "92.3 %"]  # of 0.8125
    assert texts[faster + 1] == "2.50x"
    measured, notes = measure_runs(runs, bench, figures)
    (points,) = speed_points(measured).values()
    assert [(p.gain, p.metric) for p in points] == [(1.0, 0.8125), (2.5, 0.75)]
    assert measured[2].sizes == [] and len(notes) == 1


def test_the_error_bar_is_the_quartiles_of_the_speed_up():
    points = [Point(0, "dense", 0.9, 1.0, 320.0, 320.0, 320.0)]
    points.append(Point(1, "sparse", 0.8, 2.5, 800.0, 768.0, 880.0))
    ax = Figure().add_subplot()
    tradeoff_panel(points, "title", "accuracy", "faster").draw(ax)
    ends = [bar[2][0].get_segments()[0][:, 0].tolist() for bar in ax.containers]
    assert ends == [pytest.approx([1.0, 1.0]), pytest.approx([2.4, 2.75])]


def test_speeds_of_other_settings_are_not_compared(several, runs, tmp_path):
    other = {"engine": "openvino", "batch": 1, "seq": 64, "cores": 1, "bf16": True}
    rows = [timed(several[1], 20.0, **{key: other[key]}) for key in other]
    path = write_bench(tmp_path / "b", timed(several[0], 10.0), *rows)
    measured, _ = measure_runs(runs, [path])
    assert len(measured[1].speeds) == 5 and speed_points(measured) == {}


def test_speeds_of_other_benchmarks_are_not_compared(several, runs, tmp_path):
    rows = timed(several[0], 40.0), timed(several[1], 20.0)
    one = write_bench(tmp_path / "1", *rows)
    other = write_bench(tmp_path / "2", timed(several[0], 10.0))
    measured, _ = measure_runs(runs, [one, other])
    (points,) = speed_points(measured).values()
    assert [point.gain for point in points] == [1.0, 2.0]


def test_figures_of_other_samples_are_said_to_be(several, runs, tmp_path):
    files = [
        evaluated(tmp_path / f"{place}.json", path, samples=samples)
        for place, (path, samples) in enumerate(
            zip(several, (50, 100, 100), strict=True)
        )
    ]
    _, notes = measure_runs(runs, evaluated=files)
    assert len(notes) == 1 and "different numbers of samples" in notes[0]
    assert f"{runs[0].name} 50" in notes[0] and f"{runs[1].name} 100" in notes[0]


def test_a_row_is_samples_a_second(tmp_path):
    quartiles = {"speedup": 2.0, "speedup_low": 1.8, "speedup_high": 2.2}
    row = timed("a/m.onnx", 3200.0, bf16=True, **quartiles)
    (found,) = read_bench(write_bench(tmp_path / "b", row))
    assert found.items == 10.0  # 32 samples in 3.2 s
    assert (found.low, found.high) == pytest.approx((9.0, 11.0))
    assert (found.path, found.name) == ("a/m.onnx", "m.onnx")
    setting = ("onnxruntime bf16", 32, 128, 2, str(tmp_path / "b"))
    assert found.setting == setting


def test_rows_are_found_by_their_name_where_it_is_one_runs(runs, tmp_path):
    names = ("dense", "_old", "model.safetensors")
    rows = [timed(name, 10.0, path="gone.onnx") for name in names]
    measured, notes = measure_runs(runs, [write_bench(tmp_path / "b", *rows)])
    assert [len(own.speeds) for own in measured] == [1, 0, 1]
    assert notes == ["model.safetensors was timed and belongs to no run here."]


def test_a_name_is_that_of_a_file_that_was_exported(several, tmp_path):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in several]
    names = [f"only_{place}" for place in (0, 1)]
    for run, name in zip(copies, names, strict=False):
        packed = run / "export" / name
        packed.mkdir(parents=True)
        shutil.copy(run / "model.safetensors", packed)
    rows = [timed(name, 9.0, path="gone") for name in names]
    path = write_bench(tmp_path / "b", *rows)
    measured, notes = measure_runs([read_run(run) for run in copies], [path])
    assert [len(one.speeds) for one in measured] == [1, 1, 0] and not notes
    assert measured[1].sizes[1].model.endswith(f": {names[1]}")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "holds no results"),
        ([timed("m", 1.0)], "holds no results"),
        ({"results": []}, "holds no results"),
        ({"results": [{"model": "m"}]}, "a row without batch"),
        ({"results": [3]}, "a row without batch"),
        ({"results": [timed("m", 0.0)]}, "a row with median_ms=0.0"),
        ({"results": [timed("m", None)]}, "a row with median_ms=None"),
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
        write_report([several[0], other], tmp_path / "page")
    wrong = write_json(tmp_path / "e.json", [1])
    with pytest.raises(ValueError, match="is no evaluation"):
        write_report(several, tmp_path / "page", evaluated=[wrong])
