"""The command line of a task; nothing in it is ignored in silence."""

import ast
import difflib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from transformers import HfArgumentParser

from obert_modifiers import hub
from obert_modifiers.tasks.flags import (
    Arguments,
    DataSetArguments,
    ModelArguments,
    TrainArguments,
)

_TOKEN = "a command line is kept in files: run `hf auth login` or set HF_TOKEN"
_NOT_YET = {
    "hub_token": _TOKEN,
    "load_best_model_at_end": "the model of the last step is saved",
    "logging_dir": "the log is OUTPUT_DIR/metrics.jsonl",
    "max_steps": "use --num_train_epochs",
    "optim": "the optimizer is AdamW",
    "push_to_hub_model_id": "use --hub_model_id",
    "push_to_hub_token": _TOKEN,
    "warmup_steps": "use --warmup_ratio",
}
# Flags of SparseML and of the transformers releases that it supports; those of the
# installed release are added from its TrainingArguments.
_KNOWN_ELSEWHERE = """
    adafactor best_model_after_epoch dispatch_batches fp16_backend
    fp16_opt_level half_precision_backend include_inputs_for_metrics jit_mode_eval
    logging_dir max_predict_samples mp_parameters num_export_samples one_shot
    overwrite_cache past_index per_gpu_eval_batch_size per_gpu_train_batch_size
    push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_scope
    save_safetensors sharded_ddp split_batches torchdynamo tpu_metrics_debug
    tpu_num_cores trust_remote_code use_auth_token use_fast_tokenizer use_ipex
    label_all_tokens return_entity_level_metrics use_mps_device use_teacher_tokenizer
    xpu_backend
""".split()


class _Parser(HfArgumentParser):
    """An argument parser whose errors are exceptions."""

    def error(self, message: str) -> None:
        raise ValueError(f"{message}; run with --help for the flags and their values")


def parse(
    argv: Sequence[str], program: str, flags: type[DataSetArguments]
) -> Arguments:
    """Read the words after a program's name, whose last word is the output folder's."""
    kinds = (ModelArguments, flags, TrainArguments)
    parser = _Parser(kinds, prog=program, allow_abbrev=False)
    parser.set_defaults(output_dir=f"runs/{program.split()[-1]}")
    *parsed, rest = parser.parse_args_into_dataclasses(
        _spelt_out(argv), return_remaining_strings=True
    )
    if rest:
        raise ValueError(_unknown(rest, parser))
    return Arguments(*parsed, (*program.split(), *argv))


def _spelt_out(argv: Sequence[str]) -> list[str]:
    """Give a bare ``--replace`` its value."""
    words: list[str] = []
    for word, after in zip(argv, [*argv, "--"][1:], strict=True):
        words.append(word)
        if word == "--replace" and after.startswith("--"):
            words.append("same")
    return words


def resuming(argv: Sequence[str]) -> list[str]:
    """Change the words of a command line so that it resumes the run."""
    from obert_modifiers.training.checkpoint import LAST  # with torch

    kept: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        if name.replace("-", "_") != "__resume_from_checkpoint":
            kept.append(word)
        elif not equals:
            next(words, None)
    return [*kept, "--resume_from_checkpoint", LAST]


def _unknown(rest: list[str], parser: _Parser) -> str:
    """Say why a word that the parser left over is no flag."""
    word = next((word for word in rest if word.startswith("--")), rest[0])
    if not word.startswith("--"):
        return f"argument={word!r} belongs to no flag; expected --name value; remove it"
    name = word[2:].split("=")[0].replace("-", "_")
    if name in _transformers_flags() | set(_KNOWN_ELSEWHERE):
        return (
            f"--{name} is a flag of SparseML's training script that is not supported "
            "here yet; expected a flag that --help lists; "
            f"{_NOT_YET.get(name, 'remove it')}"
        )
    options = parser._option_string_actions
    # Of two spellings that with underscores is ours, and comes first.
    ours = sorted(options, key=lambda option: "_" not in option)
    ours = [option for option in ours if "_" in option or "-" not in option[2:]]
    near = [option for option in ours if option.startswith(f"--{name}")]
    near += difflib.get_close_matches(f"--{name}", ours, n=1, cutoff=0.5)
    way = f"did you mean {near[0]}?" if near else "remove it"
    return f"--{name} is unknown; expected a flag that --help lists; {way}"


def _transformers_flags() -> set[str]:
    """Read the flags of the installed transformers from its source, without torch."""
    spec = find_spec("transformers")
    source = Path(spec.origin).with_name("training_args.py").read_text("utf-8")
    return {
        field.target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def check(arguments: Arguments) -> None:
    """Check each value, and those that exclude each other; loads nothing."""
    arguments.data.check()
    train = arguments.train
    train.check()
    folder, resumed = Path(train.output_dir), train.resume_from_checkpoint
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"--output_dir={folder} is a file; expected a folder; choose another"
        )
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"--output_dir={folder} cannot be written to: no permission for "
            f"{existing}; expected a folder of yours; choose another"
        )
    trains = train.do_train or not (train.do_eval or train.do_predict)
    if resumed is not None and not trains:
        raise ValueError(
            f"--resume_from_checkpoint={resumed} needs training; expected --do_train "
            "beside it; add it"
        )
    if train.push_to_hub:
        if not trains:
            raise ValueError(
                "--push_to_hub needs training; expected --do_train beside it; push a "
                "finished run with `obert card RUN --push_to_hub`"
            )
        hub.check_ready(train.repository)
    full = folder.is_dir() and any(folder.iterdir())
    if trains and full and not train.overwrite_output_dir:
        finished = any(folder.glob("model*.safetensors"))
        if resumed is None or (finished and not resumes(train)):
            raise ValueError(
                f"--output_dir={folder} is not empty; expected an empty or new folder; "
                "choose another or add --overwrite_output_dir"
            )


def resumes(train: TrainArguments) -> bool:
    """Tell whether a run starts from a checkpoint; `last` may find none."""
    from obert_modifiers.training.checkpoint import LAST, checkpoints_in  # with torch

    wanted = train.resume_from_checkpoint
    if wanted == LAST:
        return bool(checkpoints_in(Path(train.output_dir)))
    return wanted is not None
