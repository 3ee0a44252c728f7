"""``obert recipe``: check a recipe, say what it does when, convert it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from obert_modifiers.cli.common import flag

_BATCH_SIZE, _TOKENS = 8, 384  # as `obert train` has them

Mode = Literal["same", "ours"]
_MODES = get_args(Mode)
RecipeArgs = Annotated[str | None, flag("Variables: name=value, with commas, or JSON.")]
Replace = Annotated[Mode | None, flag("Run SparseML's own modifiers on ours.")]
_FILE = "A .yaml file, or .md with one on top."


def spelt_out(words: list[str]) -> list[str]:
    """Give a bare ``--replace`` of ``obert recipe`` its value, ``same``."""
    if words[:1] != ["recipe"]:
        return words
    return [
        "--replace=same" if word == "--replace" and after not in _MODES else word
        for word, after in zip(words, [*words[1:], ""], strict=True)
    ]


@contextmanager
def _faults_printed() -> Iterator[None]:
    """Print what is wrong with a recipe, a line each, and end with exit code 1."""
    from obert_modifiers.recipe_text.problems import RecipeError

    try:
        yield
    except RecipeError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def check(
    recipes: Annotated[list[str], typer.Argument(help=_FILE)],
    recipe_args: RecipeArgs = None,
    replace: Replace = None,
) -> None:
    """Check recipes completely and print everything that is wrong with them."""
    from obert_modifiers.compat import replaced
    from obert_modifiers.recipe import load_recipe
    from obert_modifiers.recipe_text.problems import RecipeError

    faulty = False
    for recipe in recipes:
        try:
            with replaced(replace):
                loaded = load_recipe(recipe, recipe_args)
        except RecipeError as error:
            typer.echo(str(error), err=True)
            faulty = True
            continue
        names = [type(placed.modifier).__name__ for placed in loaded.placed]
        count = f"{len(names)} modifiers"
        typer.echo(f"{recipe}: no problems; {count}: {', '.join(names)}")
        for note in loaded.notes:
            typer.echo(f"note: {note}")
    if faulty:
        raise typer.Exit(1)


def plan(
    recipe: Annotated[str, typer.Argument(help=_FILE)],
    model: Annotated[Path | None, flag("Folder with a config.json.")] = None,
    train_samples: Annotated[int | None, flag("To get steps.", min=1)] = None,
    batch_size: Annotated[int | None, flag("8 samples if unset.", min=1)] = None,
    tokens: Annotated[
        int, flag("Tokens of a sample, to time them.", "--max-seq-length", min=2)
    ] = _TOKENS,
    timing: Annotated[bool, flag("With --model, time samples and blocks.")] = True,
    recipe_args: RecipeArgs = None,
    replace: Replace = None,
    plot: Annotated[Path | None, flag("A .png file to draw.")] = None,
) -> None:
    """Say what a recipe does when, without training."""
    if batch_size is not None and train_samples is None:
        raise ValueError(
            f"--batch-size={batch_size} has no --train-samples beside it; expected both"
            " to count steps; add the number of samples"
        )
    if model is not None and not (model / "config.json").is_file():
        raise FileNotFoundError(
            f"model={model} has no config.json; expected the folder of a model; check "
            "the path"
        )
    from obert_modifiers.cli.plan import show_plan
    from obert_modifiers.cli.shapes import shape_model, time_recipe
    from obert_modifiers.compat import replaced
    from obert_modifiers.recipe import load_recipe
    from obert_modifiers.recipe.cross import shared_weights
    from obert_modifiers.recipe.plan import plan_recipe
    from obert_modifiers.recipe_text.problems import RecipeError

    with _faults_printed():
        with replaced(replace):
            loaded = load_recipe(recipe, recipe_args)
        shapes = None if model is None else shape_model(model)
        steps = train_samples and math.ceil(train_samples / (batch_size or _BATCH_SIZE))
        planned = plan_recipe(loaded, steps_per_epoch=steps, model=shapes)
        twice = [] if shapes is None else shared_weights(loaded.placed, shapes)
        if problems := loaded.problems_of(twice):
            raise RecipeError(problems)
    timed = model is not None and timing
    show_plan(planned, time_recipe(loaded, model, tokens) if timed else [])
    if plot is not None:
        from obert_modifiers.report.plan import save_plan_png

        save_plan_png(plot, planned, Path(recipe).name)
        typer.echo(f"drawn in {plot}")


def convert(
    old: Annotated[Path, typer.Argument(help="A recipe for SparseML's modifiers.")],
    new: Annotated[Path, typer.Argument(help="The .yaml file to write.")],
    ours: Annotated[
        bool, flag("With our defaults, not the same meaning.", "--ours")
    ] = False,
    overwrite: Annotated[bool, flag("Write over the file.", "--overwrite")] = False,
) -> None:
    """Write a recipe of SparseML's modifiers in the keys of ours, with comments."""
    if new.exists() and not overwrite:
        raise ValueError(
            f"new={new} exists; expected a file to be made; choose another or add "
            "--overwrite"
        )
    from obert_modifiers.recipe.convert import convert_recipe

    with _faults_printed():
        found = convert_recipe(old, "ours" if ours else "same")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(found.text, encoding="utf-8")
    for change in found.changes:
        typer.echo(f"note: {change}")
    typer.echo(f"{new}: {found.modifiers} modifiers rewritten")
