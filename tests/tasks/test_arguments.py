"""The flags: what SparseML's users know works, and nothing is ignored."""

import pytest

from obert_modifiers.tasks.command_line import check, resuming
from obert_modifiers.tasks.flags import Arguments
from obert_modifiers.tasks.text_classification import TASK
from tests.tasks.inputs import refused


def flags(words: str) -> Arguments:
    return TASK.parse(words.split())


def test_a_command_of_sparseml_parses():
    found = flags(
        "--model_name_or_path bert --distill_teacher self --recipe r.yaml "
        "--recipe_args {} --task_name sst2 --max_seq_length 128 --do_train --do_eval "
        "--per_device_train_batch_size 16 --learning_rate 2e-5 --num_train_epochs 8 "
        "--evaluation_strategy epoch --seed 1 --output_dir out --fp16 "
        "--overwrite_output_dir --warmup_ratio 0.1 --report_to none "
        "--preprocessing_num_workers 2 --save_strategy no"
    )
    assert (found.model.distill_teacher, found.data.task_name) == ("self", "sst2")
    assert (found.train.learning_rate, found.train.seed) == (2e-5, 1)
    assert found.train.do_train and found.train.do_eval and found.train.fp16
    assert found.command[:3] == ("obert", "train", "text_classification")


def test_older_spellings_are_the_same_flags():
    found = flags("--no_cuda --evaluation_strategy no --max-train-samples=5")
    assert found.train.use_cpu and found.train.eval_strategy == "no"
    assert found.data.max_train_samples == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recpie r.yaml", "did you mean --recipe?"),
        ("--model bert", "did you mean --model_name_or_path?"),
        ("--zzzz", "--zzzz is unknown"),
        ("--max_steps 10", "not supported here yet.*use --num_train_epochs"),
        ("--one_shot", "flag of SparseML's training script that is not supported"),
        ("--gradient-checkpointing", "--gradient_checkpointing is a flag of SparseML"),
        ("--save_strategy best", "invalid choice: 'best'"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
        ("bert", "argument='bert' belongs to no flag"),
    ],
)
def test_what_is_not_a_flag_is_an_error(words, message):
    with refused(message):
        flags(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max_eval_samples 0", "--max_eval_samples=0 is not positive"),
        ("--logging_steps -1", "--logging_steps=-1 is not positive"),
        ("--save_steps 0", "--save_steps=0 is not positive"),
        ("--save_total_limit 0", "--save_total_limit=0 is not positive"),
        ("--do_eval --resume_from_checkpoint last", "=last needs training"),
        ("--fp16 --bf16", "exclude each other"),
        ("--eval_on_test --validation_ratio 0.1", "exclude each other"),
        ("--validation_ratio 10", "outside \\(0, 1\\).*use 0.1"),
        ("--train_file a.csv --task_name sst2", "several data sets"),
    ],
)
def test_a_value_that_breaks_its_rule_is_an_error(words, message):
    with refused(message):
        check(flags(words))


def test_a_full_output_folder_is_not_written_over(tmp_path):
    (tmp_path / "model.safetensors").touch()
    arguments = flags(f"--output_dir {tmp_path}")
    with refused("add --overwrite_output_dir"):
        check(arguments)
    arguments.train.overwrite_output_dir = True
    check(arguments)


def test_a_run_is_resumed_in_its_own_folder(tmp_path):
    words = f"--output_dir {tmp_path} --resume_from_checkpoint last"
    (tmp_path / "metrics.jsonl").touch()
    check(flags(words))  # a run that was killed before its first checkpoint
    (tmp_path / "model.safetensors").touch()
    with refused("add --overwrite_output_dir"):
        check(flags(words))  # there is nothing to resume, and a model to lose
    (tmp_path / "checkpoint-3").mkdir()
    check(flags(words))


def test_the_words_that_resume_a_run():
    words = "--recipe r.yaml --resume_from_checkpoint runs/a --seed 1".split()
    last = ["--resume_from_checkpoint", "last"]
    resumed = ["--recipe", "r.yaml", "--seed", "1", *last]
    assert resuming(words) == resuming(resumed) == resumed
    for spelling in ("--resume-from-checkpoint=x", "--resume_from_checkpoint="):
        assert resuming([spelling, "--bf16"]) == ["--bf16", *last]


def test_a_folder_without_permission_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with refused(f"no permission for {tmp_path};"):
        check(flags(f"--output_dir {tmp_path}/runs/new"))
