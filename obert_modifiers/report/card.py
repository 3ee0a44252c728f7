"""The model card of a run: ``README.md``, with the header that the hub reads."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from obert_modifiers.core.outputs import MULTI_LABEL, REGRESSION
from obert_modifiers.core.quantization.scales import FILE_NAME
from obert_modifiers.deploy.artefact import names_of
from obert_modifiers.deploy.bench.results import read_bench, read_machine
from obert_modifiers.report.compare import Measured, engine_title, measure_runs
from obert_modifiers.report.read import Run, read_run
from obert_modifiers.report.sizes import HEAD
from obert_modifiers.report.text import NONE, figure, number, percent, short_path
from obert_modifiers.report.write import TEMPLATES, Rows, facts

CARD = "README.md"
_CLASSES = "ForSequenceClassification"
_PIPELINES = {
    "": "feature-extraction",
    _CLASSES: "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}
_LABELS = "[model.config.id2label[i] for i in outputs.logits.argmax(-1)[0].tolist()]"
# How a head's outputs are shown.
_SHOWN = {
    "": "print(outputs.last_hidden_state.shape)",
    _CLASSES: "print(model.config.id2label[outputs.logits.argmax().item()])",
    "ForTokenClassification": f"print({_LABELS})",
    "ForQuestionAnswering": "print(outputs.start_logits.argmax().item(), "
    "outputs.end_logits.argmax().item())",
    "ForMaskedLM": "print(tokenizer.decode(outputs.logits.argmax(-1)[0]))",
}
# What the hub calls a figure, where it has another name.
_HUB_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr"}
_HUB_METRICS |= {"f1_micro": "f1", "f1_macro": "f1"}


@dataclass(frozen=True)
class Model:
    """What a run's model is to those who load it."""

    architecture: str  # BertForSequenceClassification
    problem: str | None  # transformers' ``problem_type``
    pairs: bool  # it reads two texts
    embeds: bool  # sentence-transformers' ``modules.json`` is there
    quantized: bool

    @property
    def head(self) -> str:
        """What follows the architecture's name."""
        found = re.search(r"For[A-Z]\w+$", self.architecture)
        return found[0] if found else ""

    @property
    def auto(self) -> str:
        """The class that loads it."""
        return f"AutoModel{self.head}"

    @property
    def sentence_class(self) -> str | None:
        """The class of sentence-transformers that loads it, where one does."""
        if self.embeds:
            return "SentenceTransformer"
        return "CrossEncoder" if self.head == _CLASSES and self.pairs else None

    @property
    def ranks(self) -> bool:
        """Whether it gives a pair one score."""
        return self.sentence_class == "CrossEncoder" and self.problem == REGRESSION

    @property
    def library(self) -> str:
        """The library that the hub shows it with."""
        return "sentence-transformers" if self.embeds or self.ranks else "transformers"

    @property
    def pipeline(self) -> str | None:
        """The hub's name of its task."""
        if self.embeds:
            return "sentence-similarity"
        return "text-ranking" if self.ranks else _PIPELINES.get(self.head)

    @property
    def texts(self) -> str:
        """What it is called with, in Python."""
        if self.head == "ForMaskedLM":
            return 'f"a quiet, moving {tokenizer.mask_token}"'
        return '"a first text", "a second text"' if self.pairs else '"a quiet film"'

    @property
    def shown(self) -> str:
        """The line that shows its outputs."""
        if self.problem == REGRESSION:
            return "print(outputs.logits.item())"
        if self.problem == MULTI_LABEL:
            return "print(outputs.logits.sigmoid())"
        return _SHOWN.get(self.head, "print(outputs)")

    @property
    def tags(self) -> list[str]:
        """The hub's tags of what it is, beside those of the run."""
        if self.embeds:
            return ["sentence-transformers", "feature-extraction"]
        if self.sentence_class is None:
            return []
        return ["sentence-transformers", "cross-encoder", *["reranker"] * self.ranks]


def write_card(
    folder: Path,
    repository: str | None = None,
    *,
    bench: Sequence[Path] = (),
    evaluated: Sequence[Path] = (),
) -> Path:
    """Write the card of a finished run into its folder.

    `repository` is where it goes on the hub, which the card then loads it from. `bench`
    and `evaluated` are JSON files of the commands of that name, of which the card has
    what is the run's.
    """
    run = read_run(folder, repository and repository.rpartition("/")[2])
    ((own,), _) = measure_runs([run], bench, evaluated)
    for flag, files, mine in (
        ("bench", bench, own.speeds),
        ("evaluated", evaluated, own.evaluated),
    ):
        if files and not mine:
            raise ValueError(
                f"--{flag}={files[0]} has nothing of run={folder}; expected figures of "
                "it or of its exported files; name the run that they are of"
            )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    page = environment.get_template("card.md.j2").render(
        _contents(own, repository, bench)
    )
    (folder / CARD).write_text(page, encoding="utf-8")
    return folder / CARD


def _contents(
    own: Measured, repository: str | None, bench: Sequence[Path]
) -> dict[str, Any]:
    """Collect what the template asks for."""
    run, model = own.run, _read_model(own.run)
    ticks = [len(found) for found in re.findall("`+", run.recipe)]
    sizes = (HEAD, *(size.cells() for size in own.sizes))
    return {
        "header": _header(run, model).to_yaml(),
        "title": run.name,
        "model": model,
        "base_model": (run.record.get("hub") or {}).get("base_model"),
        "began_as": short_path(run.record.get("model")),
        "data": _data(run),
        "modifiers": dict.fromkeys(f"`{event['modifier']}`" for event in run.prunes),
        "zeros": percent(run.record["sparsity"]) if _sparse(run) else None,
        "zeros_of_all": run.record.get("sparsity_non_embedding"),
        "figures": _table(_figures(own)),
        "sizes": _table([row[:-1] for row in sizes]),  # without the ratio to another
        "speeds": _table(_speeds(own, bench)),
        "machines": dict.fromkeys(map(read_machine, bench)),
        "name": json.dumps(repository or short_path(str(run.folder))),
        "facts": _facts(run),
        "recipe": run.recipe,
        "fence": "`" * max(3, *(length + 1 for length in ticks), 0),
        "percent": percent,
    }


def _plain(text: Any) -> str:
    """Keep Markdown from reading a text as more than a text of one line."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(str(text).split()))


def _table(rows: Rows) -> str:
    """Write a table, whose first row is the head; nothing without another row."""
    if len(rows) < 2:
        return ""
    rules = ("---", *["---:"] * (len(rows[0]) - 1))
    plain = [[_plain(cell) for cell in row] for row in rows]
    lines = (plain[0], rules, *plain[1:])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read_model(run: Run) -> Model:
    config = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    embeds = (run.folder / "modules.json").is_file()
    return Model(
        architecture=(config.get("architectures") or ["a model"])[0],
        problem=config.get("problem_type"),
        # Two texts are embedded one by one.
        pairs=len(run.record.get("text_columns") or ()) == 2 and not embeds,
        embeds=embeds,
        quantized=(run.folder / FILE_NAME).is_file(),
    )


def _measured(run: Run) -> dict[str, float]:
    """Return the figures of the task."""
    found = {name: run.record.get(name) for name in run.record.get("headline", ())}
    return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}


def _sparse(run: Run) -> bool:
    """Tell whether it is pruned, by this run or by one before it."""
    return (run.record.get("sparsity") or 0.0) >= 0.01


def _data(run: Run) -> str:
    return short_path(run.record.get("data")).removeprefix("the embedded ")


def _header(run: Run, model: Model) -> ModelCardData:
    """Make what the hub reads: its terms, and only what it knows."""
    ids = run.record.get("hub") or dict.fromkeys(("base_model", "dataset"))
    data = _data(run)
    results = [
        EvalResult(
            task_type=model.pipeline or "other",
            dataset_type=ids["dataset"] or data,
            dataset_name=data,
            dataset_config=ids.get("dataset_config"),
            metric_type=_HUB_METRICS.get(name, name),
            metric_name=name.replace("_", " "),
            metric_value=round(value, 6),
        )
        for name, value in _measured(run).items()
    ]
    tags = ["obert_modifiers", *model.tags]
    tags += ["pruned", "sparse"] if _sparse(run) else []
    tags += ["int8", "quantization-aware-training"] if model.quantized else []
    return ModelCardData(
        library_name=model.library,
        pipeline_tag=model.pipeline,
        base_model=ids["base_model"],
        datasets=[ids["dataset"]] if ids["dataset"] else None,
        tags=tags,
        metrics=list(dict.fromkeys(one.metric_type for one in results)) or None,
        model_name=run.name if results else None,
        eval_results=results or None,
    )


def _figures(own: Measured) -> Rows:
    """Collect the task's figures of the run, and of its files that were evaluated."""
    names = list(_measured(own.run))
    rows = [("", *(name.replace("_", " ") for name in names), "loss", "samples")]
    # The run itself was measured after the training, too.
    paths = [path for path in own.evaluated if path != own.folder]
    files = zip(names_of(paths), map(own.evaluated.get, paths), strict=True)
    for name, found in (("the run", own.run.record), *files):
        samples = found.get("samples")
        rows.append((
            name,
            *(figure(found.get(name)) for name in names),
            number(found.get("loss"), 4),
            f"{samples:,}" if samples else NONE,
        ))
    return rows if names else []


def _speeds(own: Measured, bench: Sequence[Path]) -> Rows:
    """Compare the run's speeds with the first model that was timed as they were."""
    first = {}
    for row in (row for path in bench for row in read_bench(path)):
        first.setdefault(row.setting, row)
    rows = [("", "engine", "batch", "tokens", "cores", "samples/s", "beside", "speed")]
    for path, speed in own.speeds:
        setting, base = speed.setting, first[speed.setting]
        itself = base.path == speed.path
        rows.append((
            "the run" if path == own.folder else path.name,
            engine_title(setting.engine),
            *(str(size) for size in (setting.batch, setting.sequence, setting.cores)),
            number(speed.items, 1),
            NONE if itself else f"{base.name}, {number(base.items, 1)}",
            NONE if itself else f"{speed.items / base.items:.2f}x",
        ))
    return rows


def _facts(run: Run) -> dict[str, str]:
    """Return what repeats the run, without the folders of this machine."""
    # An absolute path is a word, or what follows `--flag=`.
    words = [
        re.sub(r"^(--\w+=)?/.*/", r"\1", word) for word in run.record.get("command", ())
    ]
    found = {name: _plain(value) for name, value in facts(run)}
    return found | ({"command": f"`{shlex.join(words)}`"} if words else {})
