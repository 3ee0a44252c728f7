"""The commands that the tests run, by name; ``{...}`` are folders and files."""

from dataclasses import dataclass

SCRIPT = "sparseml.transformers.train."
TASKS = {
    "text": f"{SCRIPT}text_classification",
    "qa": f"{SCRIPT}question_answering --doc_stride 8",
    "token": f"{SCRIPT}token_classification",
    "mlm": f"{SCRIPT}masked_language_modeling --line_by_line",
}
# Teachers with our recipe, and with SparseML's own.
TEACHERS = {
    "text": ("text_teacher", "text_teacher"),
    "qa": ("qa_teacher", "qa_teacher"),
    "token": ("token_teacher", None),
    "mlm": (None, "encoder"),
}


@dataclass(frozen=True)
class Command:
    """A command line."""

    words: str  # what follows the program
    # `obert run`, SparseML's `console` script, `seeded`, or two `ranks` of torchrun.
    program: str = "obert"
    after: str | None = None  # the command whose folder it needs
    checkpoint: str | None = None  # a folder of another command, put into its own
    fails: tuple[str, ...] = ()  # with these words in its output, and this status
    status: int = 1


def words(task: str, *, model: str = "{models}/encoder", rest: str = "") -> str:
    """Return a script with the flags that all its runs share."""
    ending = "txt" if task == "mlm" else "json"
    return (
        f"{TASKS[task]} --model_name_or_path {model} --max_seq_length 32 --use_cpu "
        f"--train_file {{data}}/{task}_train.{ending} --cache_dir {{cache}} "
        f"--validation_file {{data}}/{task}_validation.{ending} --output_dir {{out}} "
        f"--per_device_train_batch_size 8 {rest}"
    )


def train(
    task: str, recipe: str, rest: str = "", evaluate: str = "--do_eval", **flags: str
) -> str:
    """Return a training with a recipe of the folder of recipes."""
    recipe = f"--do_train {evaluate} --recipe {{recipes}}/{recipe}.yaml"
    return words(task, rest=f"{recipe} {rest}", **flags)


def again(task: str, folder: str) -> str:
    """Return the evaluation of a folder that another command wrote."""
    return words(task, model=f"{{runs}}/{folder}", rest="--do_eval")


def taught_by(teacher: str | None) -> str:
    return f"--distill_teacher {{models}}/{teacher}" if teacher else ""


COMMANDS: dict[str, Command] = {}
for _task, (_teacher, _other) in TEACHERS.items():
    _program = "seeded" if _task == "mlm" else "obert"
    _ours = train(_task, _task, taught_by(_teacher))
    # As few gradients as the tests wait for.
    _few = f"--recipe_args num_grads={128 if _task == 'qa' else 32}"
    _theirs = train(_task, f"obs_{_task}", f"{taught_by(_other)} {_few}")
    COMMANDS[f"{_task}_plain"] = Command(_ours, "console")
    for _folder, _replace, _words in (
        (f"{_task}_ours", "", _ours),
        (f"{_task}_replaced", "--replace ", _theirs),
    ):
        _again = f"{_replace}{again(_task, _folder)}"
        COMMANDS[_folder] = Command(f"{_replace}{_words}", _program)
        COMMANDS[f"{_folder}_again"] = Command(_again, _program, _folder)

# Without us, and without a fix.
_CLOSED = ("'QConfig' object has no attribute",)
_NO_STATE = ("unexpected keyword argument 'gradient_state'",)
_INT8 = train("text", "int8", taught_by("text_teacher"), model="{runs}/text_replaced")
_EXPORT = (
    "sparseml.transformers.export_onnx --task text-classification --model_path "
    "{runs}/text_ours --sequence_length 16"
)
_STOPPED = train("token", "stopping", "--evaluation_strategy steps --eval_steps 4")
_SAVING = f"{taught_by('text_teacher')} --save_strategy steps --save_steps 6"
_LONG = train("text", "text", _SAVING, evaluate="")
_FROM = {"after": "whole", "checkpoint": "whole/checkpoint-6"}
COMMANDS |= {
    "text_ours_replaced": Command(f"--replace=ours {train('text', 'obs')}"),
    "int8": Command(f"--replace {_INT8}", after="text_replaced"),
    "int8_again": Command(f"--replace {again('text', 'int8')}", after="int8"),
    "plain_obs": Command(
        train("mlm", "obs", evaluate=""),
        "console",
        fails=("_data_loader_builder", "unexpected keyword argument"),
    ),
    "plain_quantization": Command(
        train("mlm", "quantization_mlm", evaluate=""), "console", fails=_CLOSED
    ),
    "obs": Command(train("text", "obs")),
    "obs_without_samples": Command(
        f"--without=gradient-samples {train('text', 'obs')}", fails=_NO_STATE
    ),
    "ours_without_samples": Command(
        f"--without=gradient-samples {train('qa', 'qa')}", fails=_NO_STATE
    ),
    "quantized": Command(train("text", "quantization")),
    "quantized_without_slots": Command(
        f"--without=open-qconfig {train('text', 'quantization')}", fails=_CLOSED
    ),
    "quantized_with_copies": Command(train("text", "quantized_modules")),
    "quantized_without_copies": Command(
        f"--without=shared-buffers {train('text', 'quantized_modules')}",
        fails=("shared tensors",),
    ),
    "quantized_again": Command(again("text", "quantized"), after="quantized"),
    "quantized_again_without": Command(
        f"--without=safetensors-reload {again('text', 'quantized')}", after="quantized"
    ),
    # That it works with the fix, test_a_new_process_measures_the_same shows.
    "compound_again_without": Command(
        f"--without=saved-structure {again('text', 'text_ours')}",
        after="text_ours",
        fails=("keep=[1, 3] names layer 3 of a model with 2 layers",),
        status=2,
    ),
    "export": Command(_EXPORT, after="text_ours_again"),
    "export_without": Command(
        f"--without=tracing-export {_EXPORT}",
        after="text_ours_again",
        fails=("onnxscript",),
    ),
    "stopped": Command(_STOPPED),
    "stopped_without": Command(f"--without=early-stopping {_STOPPED}"),
    "whole": Command(_LONG),
    "ranks": Command(f"{_LONG} --ddp_backend gloo", "ranks"),
    "resumed": Command(_LONG, **_FROM),
    "resumed_without_epoch": Command(f"--without=resume-epoch {_LONG}", **_FROM),
    "resumed_without_loading": Command(
        f"--without=checkpoint-loading {_LONG}",
        fails=("WeightsUnpickler error",),
        **_FROM,
    ),
}
