"""The README's command, and data sets in folders instead of on the hub."""

import re
import shlex
from pathlib import Path

from tests.sparseml_cli.commands import Command, words
from tests.sparseml_cli.recipes import OBS_SPARSITY

README = Path(__file__).parents[2] / "README.md"


def readme_commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return "".join(blocks).replace("\\\n", " ").splitlines()


def test_the_readmes_command_runs_scaled_down(run):
    (found,) = (one for one in readme_commands() if "obert run" in one)
    program, word, *flags = shlex.split(found)
    assert (program, word) == (".venv-sparseml-cli/bin/obert", "run")
    values = {
        "recipe.yaml": "{recipes}/obs_qa.yaml",
        "path/to/model": "{models}/encoder",
        "train.json": "{data}/qa_train.json",
        "validation.json": "{data}/qa_validation.json",
        "runs/theirs": "{out}",
    }
    assert set(values) < set(flags)
    scaled = [values.get(flag, flag) for flag in flags]
    scaled += ["--max_seq_length 32 --doc_stride 8 --cache_dir {cache} --use_cpu"]
    scaled += ["--distill_teacher {models}/qa_teacher --recipe_args num_grads=32"]
    done = run("readme", Command(" ".join(scaled)))
    assert done.figures()["eval_f1"] >= 0.0
    count, weights = done.zeros()
    assert abs(count - OBS_SPARSITY["qa"] * weights) < 4


def from_folder(folder: Path, rest: str) -> Command:
    """Return a command that reads a folder in the place of two files."""
    flags = re.sub(r"--(train|validation)_file \S+", "", words("text", rest=rest))
    return Command(f"{flags} --dataset_name {folder}")


def test_a_data_set_may_be_a_folder(run):
    folder = run.base / "folder"
    folder.mkdir()
    for split in ("train", "validation"):
        source = run.base / "data" / f"text_{split}.json"
        (folder / f"{split}.json").write_bytes(source.read_bytes())
    done = run("folder", from_folder(folder, "--do_eval"))
    assert done.figures()["eval_samples"] == 32


def test_real_data_in_a_folder(run, shared_data):
    rest = "--do_train --do_eval --recipe {recipes}/text.yaml --max_train_samples 64 "
    rest += "--input_column_names sentence1,sentence2 --max_eval_samples 32"
    done = run("rte", from_folder(shared_data / "rte", rest))
    assert done.figures()["eval_samples"] == 32
    count, weights = done.zeros()
    assert abs(count - 0.8 * weights) < 4
