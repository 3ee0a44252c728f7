"""``obert export``: a run in another format."""

from dataclasses import asdict
from pathlib import Path

from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.deploy.formats.format import Exported, Format, Options


def export_run(
    run: Path, form: str, out: Path | None = None, options: Options | None = None
) -> Exported:
    """Write a run's folder in one of :data:`FORMATS`.

    Without `out` it goes into ``export`` of the run's folder.

    Raises:
        ValueError: If the format is unknown, does not fit the model, or needs what is
            not installed.
    """
    options = options or Options()
    if form not in FORMATS:
        raise ValueError(
            f"format={form} is unknown; expected one of {', '.join(FORMATS)}; name one"
        )
    chosen = FORMATS[form]
    _check_options(chosen, options)
    return chosen.write(run, out or chosen.default_out(run, options), options)


def _check_options(chosen: Format, options: Options) -> None:
    for name, default in asdict(Options()).items():
        value = getattr(options, name)
        if value == default or name in chosen.takes:
            continue
        takes = ", ".join(one.name for one in FORMATS.values() if name in one.takes)
        raise ValueError(
            f"{name}={value} has no meaning for format={chosen.name}; expected it with "
            f"{takes}; leave out --{name.replace('_', '-')}"
        )
    if options.integer_bias and options.target == "openvino":
        raise ValueError(
            "integer_bias=True has no meaning for target=openvino, which adds biases in"
            " floating point; expected another target; leave out --integer-bias"
        )
