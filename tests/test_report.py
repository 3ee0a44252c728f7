"""The report: one page without network, a picture, and every figure in it."""

import json
import re
from html.parser import HTMLParser

import pytest

from obert_modifiers.report import read_run, write_comparison, write_report
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
    assert event_cells(plain)[5:8] == ["–", "–", "–"]
