"""``obert recipe``: check recipes, and say what one does when."""

import math
from pathlib import Path
from typing import Annotated

import typer

from obert_modifiers.cli._host import quiet_host

recipe_app = typer.Typer(help="Work on recipes.", no_args_is_help=True)

_BATCH_SIZE = 8  # as `obert train` has it
_TOKENS = 384  # as `obert train` has it
_MODES = ("same", "ours")

RecipeArgs = Annotated[
    str | None,
    typer.Option("--recipe_args", "--recipe-args", help="Variables, as JSON."),
]
Replace = Annotated[
    str | None,
    typer.Option(help="Run SparseML's own modifiers on ours: same, or ours."),
]


def spelt_out(words: list[str]) -> list[str]:
    """Give a bare ``--replace`` of ``obert recipe`` its value.

    Args:
        words: The words of a command line.

    Returns:
        The same with ``--replace=same`` for it.
    """
    if words[:1] != ["recipe"]:
        return words
    pairs = zip(words, [*words[1:], ""], strict=True)
    bare = [word == "--replace" and after not in _MODES for word, after in pairs]
    return [
        "--replace=same" if one else word for word, one in zip(words, bare, strict=True)
    ]


@recipe_app.command("check")
def _check_recipes(
    recipes: Annotated[
        list[str], typer.Argument(help="A .yaml file, or .md with one on top.")
    ],
    recipe_args: RecipeArgs = None,
    replace: Replace = None,
) -> None:
    """Check recipes completely and print everything that is wrong with them."""  # noqa: DOC501  typer shows the docstring
    with quiet_host():
        from obert_modifiers.compat import replaced
        from obert_modifiers.recipe import RecipeError, load_recipe

        faulty = False
        for recipe in recipes:
            try:
                with replaced(replace):
                    loaded = load_recipe(recipe, recipe_args)
            except RecipeError as error:
                typer.echo(str(error), err=True)
                faulty = True
                continue
            names = [type(one.modifier).__name__ for one in loaded.placed]
            listed = ", ".join(names)
            typer.echo(f"{recipe}: no problems; {len(names)} modifiers: {listed}")
            for note in loaded.notes:
                typer.echo(f"note: {note}")
    if faulty:
        raise typer.Exit(1)


@recipe_app.command("plan")
def _plan_recipe(
    recipe: Annotated[
        str, typer.Argument(help="A .yaml file, or .md with one on top.")
    ],
    model: Annotated[
        Path | None, typer.Option(help="A model's folder; its config.json is read.")
    ] = None,
    train_samples: Annotated[
        int | None,
        typer.Option("--train-samples", "--train_samples", min=1, help="To get steps."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", "--batch_size", min=1, help="Samples of a step; 8 if unset."
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            "--max-seq-length",
            "--max_seq_length",
            min=2,
            help="Tokens of a sample, for the time of an event.",
        ),
    ] = _TOKENS,
    timing: Annotated[
        bool, typer.Option(help="With --model, time a few samples and blocks.")
    ] = True,
    recipe_args: RecipeArgs = None,
    replace: Replace = None,
    plot: Annotated[Path | None, typer.Option(help="A .png file to draw.")] = None,
) -> None:
    """Say what a recipe does when, without training."""  # noqa: DOC501  typer shows the docstring
    if batch_size is not None and train_samples is None:
        raise ValueError(
            f"--batch-size={batch_size} has no --train-samples beside it; expected both"
            " to count steps; add the number of samples"
        )
    with quiet_host():
        from obert_modifiers.cli.plan import show_plan
        from obert_modifiers.cli.shapes import shape_model, time_recipe
        from obert_modifiers.compat import replaced
        from obert_modifiers.recipe import RecipeError, load_recipe
        from obert_modifiers.recipe.cross import shared_weights
        from obert_modifiers.recipe.plan import plan_recipe

        per_step = batch_size or _BATCH_SIZE
        try:
            with replaced(replace):
                loaded = load_recipe(recipe, recipe_args)
            shapes = None if model is None else shape_model(model)
            plan = plan_recipe(
                loaded,
                steps_per_epoch=train_samples and math.ceil(train_samples / per_step),
                model=shapes,
            )
            twice = [] if shapes is None else shared_weights(loaded.placed, shapes)
            problems = loaded.problems_of(twice)
            if problems:
                raise RecipeError(problems)
        except RecipeError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
        timed = model is not None and timing
        timings = time_recipe(loaded, model, tokens) if timed else []
    show_plan(plan, timings)
    if plot is not None:
        from obert_modifiers.report.plan import save_plan_png

        save_plan_png(plot, plan, Path(recipe).name)
        typer.echo(f"drawn in {plot}")


@recipe_app.command("convert")
def _convert_recipe(
    old: Annotated[Path, typer.Argument(help="A recipe for SparseML's modifiers.")],
    new: Annotated[Path, typer.Argument(help="The .yaml file to write.")],
    ours: Annotated[
        bool, typer.Option("--ours", help="With our defaults, not the same meaning.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over the file.")
    ] = False,
) -> None:
    """Write a recipe of SparseML's modifiers in the keys of ours, with comments."""  # noqa: DOC501  typer shows the docstring
    if new.exists() and not overwrite:
        raise ValueError(
            f"new={new} exists; expected a file to be made; choose another or add "
            "--overwrite"
        )
    with quiet_host():
        from obert_modifiers.compat import convert_recipe
        from obert_modifiers.recipe import RecipeError

        try:
            found = convert_recipe(old, "ours" if ours else "same")
        except RecipeError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(found.text, encoding="utf-8")
    for change in found.changes:
        typer.echo(f"note: {change}")
    typer.echo(f"{new}: {found.modifiers} modifiers rewritten")
