"""``obert export``: a run in another format."""

from dataclasses import asdict
from pathlib import Path

from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.deploy.formats.format import Exported, Format, Options
from obert_modifiers.deploy.registry import check_known


def export_run(
    run: Path, form: str, out: Path | None = None, options: Options | None = None
) -> Exported:
    """Write a run's folder in a format, into its folder ``export`` without `out`."""
    options = options or Options()
    check_known("format", form, FORMATS)
    chosen = FORMATS[form]
    _check_options(chosen, options)
    return chosen.write(run, out or chosen.default_out(run, options), options)


def _check_options(chosen: Format, options: Options) -> None:
    """Refuse an option that the format makes no use of."""
    for name, default in asdict(Options()).items():
        value = getattr(options, name)
        if value == default or name in chosen.takes:
            continue
        takes = ", ".join(form.name for form in FORMATS.values() if name in form.takes)
        raise ValueError(
            f"{name}={value} has no meaning for format={chosen.name}; expected it with "
            f"{takes}; leave out --{name.replace('_', '-')}"
        )
    if options.integer_bias and options.target == "openvino":
        raise ValueError(
            "integer_bias=True has no meaning for target=openvino, which adds biases in"
            " floating point; expected another target; leave out --integer-bias"
        )
