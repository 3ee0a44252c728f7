"""Embeddings of sentences: distilled from the dense model on texts without labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from obert_modifiers import core
from obert_modifiers.tasks.flags import DataSetArguments, flag
from obert_modifiers.tasks.task import Inputs, Prepared, Task

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor

    from obert_modifiers.core.embedding_folder import SentenceFolder

logger = logging.getLogger(__name__)

_IDS, _PAIR, _LABEL = "input_ids", "pair", "label"
_DENSE_BATCH = 64


@dataclass
class EmbeddingArguments(DataSetArguments):
    """Which texts are embedded, and what is known of pairs of them."""

    text_column_names: str | None = flag(
        None, "The training data's columns of text, with commas; else the usual ones."
    )
    pair_column_names: str | None = flag(
        None, "The validation data's two columns of text, the query's first."
    )
    score_column_name: str | None = flag(
        None, "The column of a pair's score; else score, similarity or label."
    )
    max_score: float | None = flag(
        None, "The highest score that there may be; else 1, or 5 where some are above."
    )
    train_on: Literal["texts", "scores", "pairs"] | None = flag(
        None,
        "texts has no labels; scores compares cosines with a pair's score, pairs finds "
        "the second text by the first; if unset scores, where there are any, or texts.",
    )
    prompt_name: str | None = flag(
        None, "Which of the model's prompts stands before texts; else its default."
    )
    dense_model: str | None = flag(
        None,
        "The model whose embeddings the validation data's are compared with; if unset "
        "the model that is trained, as it was.",
    )

    def check(self) -> None:
        """Raise ValueError if a value breaks its rule or two exclude each other."""
        super().check()
        if self.max_score is not None and not self.max_score > 0:
            raise ValueError(
                f"--max_score={self.max_score:g} is not positive; expected the highest "
                "score; use 1 or 5"
            )


@dataclass(eq=False)
class Texts(Sequence[dict[str, Any]]):
    """Tokens of texts, each with its number."""

    rows: Dataset

    def token_counts(self) -> list[int]:
        """Return the number of tokens of each."""
        return [len(ids) for ids in self.rows[_IDS]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        number = int(index)
        return {**self.rows[number], core.outputs.SAMPLE_IDS: number}


@dataclass(eq=False)
class Pairs(Sequence[dict[str, Any]]):
    """Pairs of texts, with a score each, or the number of the second text."""

    texts: Texts
    first: Sequence[int]
    second: Sequence[int]
    labels: Sequence[float]

    def token_counts(self) -> list[int]:
        """Return the number of tokens of the longer text of each."""
        counts = self.texts.token_counts()
        pairs = zip(self.first, self.second, strict=True)
        return [max(counts[one], counts[two]) for one, two in pairs]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        i = int(index)
        texts = self.texts[self.first[i]], self.texts[self.second[i]]
        return {_PAIR: texts, _LABEL: self.labels[i]}


@dataclass(frozen=True)
class Collate:
    """Pads texts; of pairs both, one after the other, with their label twice."""

    pad: Any

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Make a batch."""
        import torch

        rows = [dict(row) for one in samples for row in one.get(_PAIR, (one,))]
        ids = [row.pop(core.outputs.SAMPLE_IDS) for row in rows]
        batch = dict(self.pad(rows)) | {core.outputs.SAMPLE_IDS: torch.tensor(ids)}
        labels = [one[_LABEL] for one in samples if _LABEL in one]
        if labels:
            batch["labels"] = torch.tensor(labels).repeat_interleave(2)
        return batch


def supervised_losses(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of each text's pair; 0 of texts that are in none."""
    found, labels = core.embedding.embedding_of(outputs), batch.get("labels")
    if labels is None:
        return found.sum(dim=-1) * 0.0
    kind = "score" if labels.is_floating_point() else "contrastive"
    losses = getattr(core.embedding, f"{kind}_losses")
    return losses(found[::2], found[1::2], labels[::2]).repeat_interleave(2)


def _keep(outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"embedding": core.embedding.embedding_of(outputs)}


def _prepare(inputs: Inputs) -> Prepared:
    from transformers import DataCollatorWithPadding

    from obert_modifiers.tasks.sentences import data, metrics
    from obert_modifiers.training.batches import TaskData

    folder = _folder(inputs)
    if not folder.given:
        logger.warning(
            "model=%s does not say how its tokens are pooled: the mean of them is "
            "taken, with length 1",
            inputs.pretrained.description,
        )
    fixed = inputs.flags.pad_to_max_length
    collate = Collate(
        DataCollatorWithPadding(
            inputs.pretrained.tokenizer,
            padding="max_length" if fixed else True,
            max_length=_max_length(inputs, folder) if fixed else None,
            pad_to_multiple_of=inputs.pad_multiple,
        )
    )
    scores = data.scaled_scores(inputs.data, inputs.flags.max_score)
    samples, more = {}, {}
    measured = metrics.Measure(data.TEXTS, ())
    splits = inputs.data.splits
    if "train" in splits:
        texts, first, second = _numbered(inputs, folder, "train")
        samples["train"] = texts
        if second:
            labels = scores.get("train", second)
            samples["train"] = Pairs(texts, first, second, labels)
        more["gradients"] = TaskData(
            texts, [], collate, _Probes(inputs.seed), lambda: {}
        )
    if "validation" in splits:
        texts, first, second = _numbered(inputs, folder, "validation")
        samples["validation"] = texts
        kind = data.kind_of(splits["validation"])
        known = (scores.get("validation", ()), _dense(inputs, texts, collate))
        measured = metrics.Measure(kind, first, second, *known)
        _check_measured(measured, inputs)
    return Prepared.of(
        samples,
        collate=collate,
        sample_loss=supervised_losses,
        metrics=measured,
        keep=_keep,
        headline=metrics.HEADLINES[measured.kind],
        **more,
    )


@dataclass(frozen=True)
class _Probes:
    """The losses whose gradients make the Fisher of the embeddings."""

    seed: int

    def __call__(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        found = core.embedding.embedding_of(outputs)
        ids = batch[core.outputs.SAMPLE_IDS]
        return core.embedding.probe_losses(found, ids, self.seed)


def _folder(inputs: Inputs) -> SentenceFolder:
    from obert_modifiers.tasks.sentences.model import sentence_folder

    width = getattr(inputs.pretrained.config, "hidden_size", 0)
    where = inputs.pretrained.args
    name, revision = inputs.pretrained.source, where.model_revision
    return sentence_folder(name, width, where.cache_dir, revision)


def _max_length(inputs: Inputs, folder: SentenceFolder) -> int:
    return min(inputs.max_length, folder.max_length or inputs.max_length)


def _numbered(
    inputs: Inputs, folder: SentenceFolder, split: str
) -> tuple[Texts, list[int], list[int]]:
    """Tokenize each text of a split once; returns them and their places in the rows."""
    from datasets import Dataset

    from obert_modifiers.tasks.data.columns import map_rows
    from obert_modifiers.tasks.sentences import data

    rows, flags = inputs.data.splits[split], inputs.flags
    kind, named = data.kind_of(rows), flags.prompt_name
    if named is not None and named not in folder.prompts:
        raise ValueError(
            f"--prompt_name={named} is no prompt of the model; expected one of "
            f"{', '.join(folder.prompts) or 'none, it has no prompts'}; leave it out"
        )
    names = {data.TEXT: ("query",), data.OTHER: ("document", "passage")}
    numbers: dict[str, int] = {}
    places: dict[str, list[int]] = {data.TEXT: [], data.OTHER: []}
    for column in (one for one in places if one in rows.column_names):
        roles = names[column] if kind == data.PAIRS else ()
        prompt = folder.prompt(*((named,) if named else roles))
        texts = [prompt + text for text in rows[column]]
        texts = [text.lower() for text in texts] if folder.lower else texts
        places[column] = [numbers.setdefault(text, len(numbers)) for text in texts]
    told = {data.SCORES: "scored pairs"}.get(kind, kind)
    logger.info("%s: %d %s, %d different texts", split, len(rows), told, len(numbers))
    length, tokenizer = _max_length(inputs, folder), inputs.pretrained.tokenizer

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        return dict(tokenizer(batch[data.TEXT], truncation=True, max_length=length))

    found = map_rows(
        Dataset.from_dict({data.TEXT: list(numbers)}),
        encode,
        [data.TEXT],
        flags.preprocessing_num_workers,
        f"tokenizing {split}",
    )
    return Texts(found), places[data.TEXT], places[data.OTHER]


def _dense(inputs: Inputs, texts: Texts, collate: Collate) -> np.ndarray | None:
    """Embed texts by the dense model, if there is one beside that which is measured."""
    import numpy as np
    import torch
    from accelerate import PartialState
    from transformers import AutoTokenizer

    from obert_modifiers.tasks.run.models import fetch
    from obert_modifiers.tasks.run.teacher import check_tokens
    from obert_modifiers.tasks.sentences.model import EmbeddingModel
    from obert_modifiers.training.batches import inputs_of, sorted_batches

    source = inputs.flags.dense_model
    if source is None and "train" in inputs.data.splits:
        source = inputs.pretrained.source
    if source is None:
        return None
    flag, where = "--dense_model", inputs.pretrained.args
    if source != inputs.pretrained.source:
        tokenizer = fetch(AutoTokenizer, flag, source, where)
        check_tokens(inputs.pretrained.tokenizer, tokenizer, f"{flag}={source}")
    device = PartialState().device
    model = fetch(EmbeddingModel, flag, source, where, dtype=torch.float32)
    model = model.to(device).eval()
    found: dict[int, np.ndarray] = {}
    for indices in sorted_batches(texts.token_counts(), _DENSE_BATCH):
        batch = inputs_of(collate([texts[i] for i in indices]))
        with torch.no_grad():
            outputs = model(**{name: one.to(device) for name, one in batch.items()})
        rows = core.embedding.embedding_of(outputs).cpu().numpy()
        found |= dict(zip(indices, rows, strict=True))
    return np.stack([found[i] for i in range(len(texts))])


def _check_measured(measured: Any, inputs: Inputs) -> None:
    """Check that there is something to be measured."""
    from obert_modifiers.tasks.sentences import data

    place = inputs.data.place("validation")
    if measured.kind == data.PAIRS and len(set(measured.second)) < 2:
        raise ValueError(
            f"data={place} has one second text for all; expected two or more to choose "
            "from; add pairs"
        )
    if measured.kind == data.TEXTS and measured.dense is None:
        raise ValueError(
            f"data={place} holds only texts and no model to compare with is known; "
            "expected pairs, or the dense model; give --dense_model"
        )
    if measured.kind == data.TEXTS and len(measured.first) < 2:
        raise ValueError(f"data={place} has one text; expected two or more; add some")


def _check(inputs: Inputs, distillers: Sequence[Any]) -> None:
    """Check that there is something to learn from, and say what is not learnt."""
    from obert_modifiers.tasks.sentences import data

    rows = inputs.data.splits.get("train")
    if rows is None:
        return
    labelled = data.kind_of(rows) != data.TEXTS
    if labelled and any(one.hardness == 1.0 for one in distillers):
        logger.warning(
            "hardness=1.0: what the pairs of %s say is not learnt beside the teacher; "
            "write a smaller one where it should be",
            inputs.data.place("train"),
        )
    if not labelled and not distillers:
        raise ValueError(
            f"data={inputs.data.place('train')} has no labels and no teacher embeds it;"
            " expected a loss; add !EmbeddingDistillationModifier to the recipe and "
            "--distill_teacher self, or give pairs with --train_on"
        )


def _loader() -> Any:
    from obert_modifiers.tasks.sentences.model import EmbeddingModel

    return EmbeddingModel


def _reader(flags: Any, cache_dir: str | None) -> tuple[dict[str, Dataset], str]:
    from obert_modifiers.tasks.sentences import data

    return data.read(flags, cache_dir)


TASK = Task(
    name="sentence_embedding",
    flags=EmbeddingArguments,
    head="Model",
    columns=lambda rows, flags, of: (("text",), None),
    prepare=_prepare,
    reader=_reader,
    output="sentence_embedding",
    loader=_loader,
    check=_check,
)
