"""Families of encoders: their linear layers by hand, and a small run of each."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizerFast

from obert_modifiers.core.positions import usable_length
from obert_modifiers.modifiers._targets import encoder_weights
from obert_modifiers.tasks.flags import DataSetArguments, ModelArguments
from obert_modifiers.tasks.run.models import Pretrained, check_fixed_length, find
from obert_modifiers.tasks.run.teacher import check_length
from obert_modifiers.tasks.task import Inputs
from tests import tiny
from tests.tasks.inputs import refused
from tests.tiny import WORDS

H, WIDE, LAYERS, LENGTH = 16, 24, 2, 32
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": H,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
}
# Query, key, value and output; then up and down.
BERT = 4 * H * H + 2 * H * WIDE
NARROW = 8  # of MobileBERT, whose layers begin and end with a bottleneck
MOBILE = {
    "attention": 2 * NARROW * NARROW + H * NARROW + NARROW * NARROW,  # value is wide
    "feed-forward, once more inside": 2 * 2 * NARROW * WIDE,
    "bottlenecks: input, attention, output": 3 * H * NARROW,
}
DISTIL = {"dim": H, "hidden_dim": WIDE, "n_layers": LAYERS, "n_heads": 2}
BOTTLENECKS = {"intra_bottleneck_size": NARROW, "num_feedforward_networks": 2}
BOTTLENECKS |= {"embedding_size": 12}
MODERN = {"reference_compile": False, "cls_token_id": 2, "sep_token_id": 3}
# Query, key and value in one matrix; two halves of a gate in another.
GATED = 3 * H * H + H * H + 2 * H * WIDE + WIDE * H
# Class, changed shape, weights of a layer, matrices of a layer, and whether the family
# knows token types beside input_ids and attention_mask.
FAMILIES = {
    "BERT": ("Bert", {}, BERT, 6, True),
    "MiniLM": ("Bert", {"num_hidden_layers": 3}, BERT, 6, True),
    "RoBERTa": ("Roberta", {"max_position_embeddings": LENGTH + 1}, BERT, 6, False),
    "ELECTRA": ("Electra", {"embedding_size": 12}, BERT, 6, True),
    "DistilBERT": ("DistilBert", DISTIL, BERT, 6, False),
    "MobileBERT": (
        "MobileBert",
        BOTTLENECKS,
        sum(MOBILE.values()),
        4 + 2 * 2 + 3,
        True,
    ),
    "ModernBERT": ("ModernBert", MODERN, GATED, 4, False),
}
RECIPE = """\
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 1.0
  - !OBERTPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.75
      start_epoch: 0.25
      end_epoch: 0.75
      update_frequency: 0.5
      num_grads: 16
      fisher_block_size: 16
"""


def config_of(family: str, table: dict = FAMILIES) -> tuple:
    """Return the name of a family's classes, and a tiny configuration."""
    name, changes, *_ = table[family]
    return name, getattr(transformers, f"{name}Config")(**SHAPE | changes)


def save(folder: Path, family: str) -> Path:
    """Save a tiny random encoder of a family with a tokenizer of words."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = BertTokenizerFast(
        vocab=str(folder / "vocab.txt"),
        model_max_length=512,
        model_input_names=names if FAMILIES[family][-1] else names[::2],
    )
    name, config = config_of(family)
    config.initializer_range = 0.2
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def layers_of(family: str) -> int:
    return FAMILIES[family][1].get("num_hidden_layers", LAYERS)


def test_the_table_has_every_family() -> None:
    assert len(FAMILIES) == 7


@pytest.mark.parametrize("head", ["SequenceClassification", "MaskedLM"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoders_linear_layers_are_found(family: str, head: str) -> None:
    *_, weights, matrices, _ = FAMILIES[family]
    name, config = config_of(family)
    model = getattr(transformers, f"{name}For{head}")(config)
    found = encoder_weights(model)
    layers = layers_of(family)
    assert len(found) == layers * matrices
    assert sum(model.get_parameter(one).numel() for one in found) == layers * weights
    assert not any("embedding" in one or "classifier" in one for one in found)
    # All matrices of the model would be too many.
    everything = [p for p in model.parameters() if p.ndim == 2]
    assert sum(p.numel() for p in everything) > layers * weights


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_run_ends_with_the_sparsity(run_task, tmp_path, family: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    # As long as the model takes: positions must not run out.
    rows = [{"sentence": "film " * 40, "label": i % 2} for i in range(16)]
    data = tiny.write_rows(tmp_path / "rows.json", rows)
    record = run_task(
        "text_classification",
        model_name_or_path=save(tmp_path / "model", family),
        train_file=data,
        validation_file=data,
        recipe=recipe,
        per_device_train_batch_size=4,
    )
    weights = layers_of(family) * FAMILIES[family][2]
    assert record["sparsity"] == round(0.75 * weights) / weights
    assert record["sparsity_encoder"] == record["sparsity"]
    assert 0.0 < record["sparsity_non_embedding"] < record["sparsity"]  # the head too
    assert record["pruning_events"] == 2
    saved = load_file(tmp_path / "out" / "model.safetensors")
    zeros = sum(int((saved[x["name"]] == 0).sum()) for x in record["layers"])
    assert zeros == round(0.75 * weights)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (name,) = config["architectures"]
    kind = getattr(transformers, name)
    again, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    loaded = again.state_dict()
    assert all(torch.equal(loaded[k], saved[k]) for k in loaded.keys() & saved)


SPECIAL = {f"{kind}_token": f"<{kind}>" for kind in ("pad", "unk", "mask")}
SPECIAL |= {"bos_token": "<s>", "eos_token": "</s>"}


def byte_level(kind: str, text: str = "a fine film and a fine plot", **options):
    """Train a small byte-level tokenizer, of RoBERTa's class or of none."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits()
    both = pre_tokenizers.Sequence([digits, level])
    made.pre_tokenizer = both if kind == "sequence" else level
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text] * 20, trainer)
    if kind != "roberta":
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)
    parts = json.loads(made.to_str())["model"]
    merges = [tuple(merge) for merge in parts["merges"]]
    options |= {"vocab": parts["vocab"], "merges": merges}
    return transformers.RobertaTokenizerFast(**options, **SPECIAL)


@pytest.mark.parametrize("kind", ["plain", "sequence", "roberta"])
def test_words_of_byte_level_tokenizers_keep_their_space(tmp_path, kind) -> None:
    config = transformers.RobertaConfig(**SHAPE | {"vocab_size": 400})
    config.save_pretrained(tmp_path)
    byte_level(kind).save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path))
    assert find(args).tokenizer.tokenize("a fine film") == ["a", "Ġfine", "Ġfilm"]
    found = find(args, words=True).tokenizer
    found.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    for tokenizer in (found, again):
        encoded = tokenizer("a fine film".split(), is_split_into_words=True)
        tokens = [token for token in encoded.tokens() if token not in SPECIAL.values()]
        assert tokens == ["Ġa", "Ġfine", "Ġfilm"]


def test_positions_that_start_late_leave_fewer_tokens(tmp_path) -> None:
    for family in ("BERT", "RoBERTa"):
        args = ModelArguments(model_name_or_path=str(save(tmp_path / family, family)))
        assert find(args).max_length(512) == LENGTH
        assert find(args).max_length(7) == 7


# Class, changes, tokens that it reads: MPNet's padding is 1 whatever its tokenizer's.
LATE = {
    "RoBERTa": ("Roberta", {"pad_token_id": 1}, LENGTH - 2),
    "XLM-RoBERTa": ("XLMRoberta", {}, LENGTH - 1),
    "CamemBERT": ("Camembert", {}, LENGTH - 1),
    "MPNet": ("MPNet", {}, LENGTH - 2),
    "data2vec": ("Data2VecText", {}, LENGTH - 1),
    "RoBERTa-PreLayerNorm": ("RobertaPreLayerNorm", {"pad_token_id": 3}, LENGTH - 4),
    "BERT": ("Bert", {"pad_token_id": 3}, LENGTH),
    "Nystroemformer": ("Nystromformer", {"segment_means_seq_len": 64}, LENGTH),
}


@pytest.mark.parametrize("family", LATE)
def test_the_longest_sample_is_read_and_one_token_more_is_not(family: str) -> None:
    assert len(LATE) == 8
    longest, (name, config) = LATE[family][2], config_of(family, LATE)
    model = getattr(transformers, f"{name}Model")(config).eval()
    assert usable_length(model) == longest
    words = torch.full((1, longest), len(WORDS) - 1)
    with torch.no_grad():
        model(input_ids=words)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.cat([words, words[:, :1]], 1))


def test_a_tokenizer_without_a_length_leaves_the_models(small, tmp_path) -> None:
    folder = save(tmp_path / "model", "RoBERTa")
    path = folder / "tokenizer_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"model_max_length": int(1e30)}))
    found = find(ModelArguments(model_name_or_path=str(folder)))
    assert found.max_length(10**6) == LENGTH
    # Padding takes positions too: 30 tokens of 30 cannot become 32.
    short = SHAPE | {"max_position_embeddings": 30}
    found = replace(found, config=transformers.BertConfig(**short))
    inputs = Inputs(None, None, found, DataSetArguments(max_seq_length=64), 0)
    assert inputs.max_length == 30
    assert replace(inputs, pad_multiple=8).max_length == 24
    short = replace(inputs, flags=DataSetArguments(max_seq_length=10))
    assert replace(short, pad_multiple=8).max_length == 10


def test_a_model_of_one_length_wants_it(tmp_path) -> None:
    lengths = {"num_landmarks": 4, "segment_means_seq_len": 16}
    config = transformers.NystromformerConfig(**SHAPE, **lengths)
    found = Pretrained("m", config, None, "m")
    with refused("segment_means_seq_len=16 .*length 16 --pad"):
        check_fixed_length(found, 16, False)
    check_fixed_length(found, 16, True)
    config.num_landmarks = 16
    check_fixed_length(found, 20, False)


def test_a_teacher_with_fewer_positions_is_refused() -> None:
    teacher = transformers.BertModel(transformers.BertConfig(**SHAPE))
    check_length(teacher, LENGTH)
    check_length("self", 10**6)
    with refused(f"reads {LENGTH} tokens.*length {LENGTH}"):
        check_length(teacher, LENGTH + 1)
