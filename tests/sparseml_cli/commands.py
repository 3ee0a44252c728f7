"""The commands that the tests run, by name; ``{...}`` are folders and files."""

from dataclasses import dataclass

SCRIPT = "sparseml.transformers.train."
TASKS = {
    "text": f"{SCRIPT}text_classification",
    "qa": f"{SCRIPT}question_answering --doc_stride 8",
    "token": f"{SCRIPT}token_classification",
    "mlm": f"{SCRIPT}masked_language_modeling --line_by_line",
}
ENDINGS = {"text": "json", "qa": "json", "token": "json", "mlm": "txt"}
EXPORT = "sparseml.transformers.export_onnx --task text-classification"


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        words: What follows the program.
        program: ``obert run``, SparseML's ``console`` script, ``seeded``, or two
            ``ranks`` of torchrun.
        after: The command whose folder it needs.
    """

    words: str
    program: str = "obert"
    after: str | None = None


def words(task: str, *, model: str = "{models}/encoder", rest: str = "") -> str:
    """Return a script with the flags that all its runs share."""
    ending = ENDINGS[task]
    return (
        f"{TASKS[task]} --model_name_or_path {model} --max_seq_length 32 --use_cpu "
        f"--train_file {{data}}/{task}_train.{ending} --cache_dir {{cache}} "
        f"--validation_file {{data}}/{task}_validation.{ending} --output_dir {{out}} "
        f"--per_device_train_batch_size 8 {rest}"
    )


def train(task: str, recipe: str, rest: str = "", evaluate: str = "--do_eval") -> str:
    """Return a training with a recipe of the folder of recipes."""
    recipe = f"--recipe {{recipes}}/{recipe}.yaml"
    return words(task, rest=f"--do_train {evaluate} {recipe} {rest}")


def again(task: str, folder: str) -> str:
    """Return the evaluation of a folder that another command wrote."""
    return words(task, model=f"{{runs}}/{folder}", rest="--do_eval")


COMMANDS: dict[str, Command] = {}
for _task in TASKS:
    _teacher = f"--distill_teacher {{models}}/{_task}_teacher"
    _teacher = "" if _task == "mlm" else _teacher
    _program = "seeded" if _task == "mlm" else "obert"
    _ours = train(_task, _task, _teacher)
    COMMANDS |= {
        f"{_task}_ours": Command(_ours, _program),
        f"{_task}_ours_again": Command(
            again(_task, f"{_task}_ours"), _program, f"{_task}_ours"
        ),
        f"{_task}_plain": Command(_ours, "console"),
    }

# oBERT with SparseML's own recipes, and as few gradients as the tests wait for.
for _task in TASKS:
    _teacher = {"mlm": "{models}/encoder", "token": ""}.get(
        _task, f"{{models}}/{_task}_teacher"
    )
    _rest = f"--distill_teacher {_teacher}" if _teacher else ""
    _rest += f" --recipe_args num_grads={128 if _task == 'qa' else 32}"
    _program = "seeded" if _task == "mlm" else "obert"
    _replaced = train(_task, f"obs_{_task}", _rest)
    COMMANDS |= {
        f"{_task}_replaced": Command(f"--replace {_replaced}", _program),
        f"{_task}_replaced_again": Command(
            f"--replace {again(_task, f'{_task}_replaced')}",
            _program,
            f"{_task}_replaced",
        ),
    }
COMMANDS |= {
    "text_ours_replaced": Command(f"--replace=ours {train('text', 'obs')}"),
    "int8": Command(
        "--replace "
        + words(
            "text",
            model="{runs}/text_replaced",
            rest="--do_train --do_eval --recipe {recipes}/int8.yaml "
            "--distill_teacher {models}/text_teacher",
        ),
        after="text_replaced",
    ),
    "int8_again": Command(f"--replace {again('text', 'int8')}", after="int8"),
    "plain_obs": Command(train("mlm", "obs", evaluate=""), "console"),
    "plain_quantization": Command(
        train("mlm", "quantization_mlm", evaluate=""), "console"
    ),
    "obs": Command(train("text", "obs")),
    "obs_without_samples": Command(
        f"--without=gradient-samples {train('text', 'obs')}"
    ),
    "ours_without_samples": Command(f"--without=gradient-samples {train('qa', 'qa')}"),
    "quantized": Command(train("text", "quantization")),
    "quantized_without_slots": Command(
        f"--without=open-qconfig {train('text', 'quantization')}"
    ),
    "quantized_without_copies": Command(
        f"--without=shared-buffers {train('text', 'quantized_modules')}"
    ),
    "quantized_with_copies": Command(train("text", "quantized_modules")),
    "quantized_again": Command(again("text", "quantized"), after="quantized"),
    "quantized_again_without": Command(
        f"--without=safetensors-reload {again('text', 'quantized')}", after="quantized"
    ),
    "compound_again_without": Command(
        f"--without=saved-structure {again('text', 'text_ours')}", after="text_ours"
    ),
    "export": Command(
        f"{EXPORT} --model_path {{runs}}/text_ours --sequence_length 16",
        after="text_ours_again",
    ),
    "export_without": Command(
        f"--without=tracing-export {EXPORT} --model_path {{runs}}/text_ours "
        "--sequence_length 16",
        after="text_ours_again",
    ),
    "stopped": Command(
        train("token", "stopping", "--evaluation_strategy steps --eval_steps 4")
    ),
    "stopped_without": Command(
        "--without=early-stopping "
        + train("token", "stopping", "--evaluation_strategy steps --eval_steps 4")
    ),
}
_SAVING = "--distill_teacher {models}/text_teacher --save_strategy steps --save_steps 6"
_LONG = train("text", "text", _SAVING, evaluate="")
COMMANDS |= {
    "whole": Command(_LONG),
    "ranks": Command(f"{_LONG} --ddp_backend gloo", "ranks"),
    "resumed": Command(_LONG, after="whole"),
    "resumed_without_epoch": Command(f"--without=resume-epoch {_LONG}", after="whole"),
    "resumed_without_loading": Command(
        f"--without=checkpoint-loading {_LONG}", after="whole"
    ),
}
# Commands that find the checkpoint of another one in their folder.
CHECKPOINTS = {
    name: "whole/checkpoint-6" for name in COMMANDS if name.startswith("resumed")
}
