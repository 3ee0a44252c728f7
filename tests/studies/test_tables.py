"""The tables: every row is a command whose recipe loads and whose flags parse."""

from pathlib import Path

import pytest
import yaml

from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe.plan import plan_recipe
from obert_modifiers.resources import recipe_names, recipe_path, recipe_setup
from obert_modifiers.tasks import load
from studies import runs, tables, verdicts
from studies.tables import Run, find_recipe, read_table, table_names
from tests.recipe.samples import same_modifiers

TABLES = "compound gmp_ablations gradual levers oneshot rivals transfer".split()
PAPERS = [name for name in TABLES if name not in ("levers", "rivals")]
PLACE = runs.Place(Path("out"), Path("data"))
# Recipes of our own, which stand in no paper.
ELSEWHERE = ("minilm", "quickstart")


def every_run(scale: str) -> set[Run]:
    """List the runs of all tables with one seed, and those that they need."""
    found: set[Run] = set()

    def add(run: Run) -> None:
        if run not in found:
            found.add(run)
            for needed in run.needs:
                add(needed)

    for name in TABLES:
        for job in read_table(name).jobs(scale, [0]):
            add(job.run)
    return found


def test_the_tables_are_these() -> None:
    assert table_names() == TABLES
    for name in TABLES:
        table = read_table(name)
        assert table.jobs("small") and bool(table.jobs("paper")) == (name in PAPERS)


@pytest.mark.parametrize("scale", tables.SCALES)
def test_every_row_is_a_command(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "shuffled", lambda source, kept, *others: kept)
    made = every_run(scale)
    assert len(made) > 60
    commands, loaded = set(), set()
    for run in made:
        name = tables.tasks(scale)[run.task]["task"]
        words = PLACE.words(run)
        command = name, run.task, *(word for word in words if word.startswith("--"))
        if command not in commands:
            commands.add(command)
            parsed = load(name).parse(words)
            parsed.data.check()
            parsed.train.check()
            assert parsed.train.output_dir == str(PLACE.folder(run))
            assert parsed.data.max_seq_length < 513
        recipe = run.recipe, str(sorted(run.args.items()))
        if run.recipe is not None and recipe not in loaded:
            loaded.add(recipe)
            load_recipe(find_recipe(run.recipe), dict(run.args))
    assert len(loaded) > 20 and len(commands) > 3


def test_a_wrong_row_is_no_command(tmp_path: Path) -> None:
    told = yaml.safe_load((tables.HERE / "tables" / "oneshot.yaml").read_text("utf-8"))
    told["rows"]["width"]["small"]["args"] = {"fisher_block_sise": 50}
    file = tmp_path / "oneshot.yaml"
    file.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    (job,) = [
        j for j in read_table(str(file)).jobs("small", [0]) if j.row == "width 50"
    ]
    with pytest.raises(ValueError, match="fisher_block_sise"):
        load_recipe(find_recipe(job.run.recipe), dict(job.run.args))
    told["rows"]["width"]["smal"] = {}
    file.write_text(yaml.safe_dump(told), encoding="utf-8")
    with pytest.raises(ValueError, match="smal is unknown"):
        read_table(str(file))
    with pytest.raises(ValueError, match="tabel is unknown"):
        read_table("tabel")


def test_students_and_teachers_are_those_of_the_headers() -> None:
    table = read_table("compound")
    jobs = {job.row: job.run for job in table.jobs("paper", [0])}
    qat = jobs["layers3-qat-90"]
    assert qat.start.recipe == "bert-3layer_squad_obert-30ep_4block80"
    assert qat.start.args == {"final_sparsity": 0.9}
    dropped = qat.start.start
    assert (dropped.recipe, dropped.task) == ("bert-3layer_mlm_drop-10ep_dense0", "mlm")
    assert dropped.teacher == "self"
    assert dropped.start.recipe == "bert-base_mlm_teacher-10ep_dense0"
    assert dropped.start.start == "bert-base-uncased"
    assert qat.teacher.recipe == "bert-base_squad_teacher-2ep_dense0"
    assert qat.flags["per_device_train_batch_size"] == 16


def test_recipes_are_those_of_their_tables() -> None:
    """Each recipe's header and each row name the same table."""
    run = {job.run.recipe for name in PAPERS for job in read_table(name).jobs("paper")}
    left = {name for name in recipe_names() if not name.startswith(ELSEWHERE)}
    needed = {one.recipe for one in every_run("paper")}
    assert left <= needed
    for recipe in run:
        assert recipe_setup(recipe)["table"] != "none"


def test_claims_name_rows_that_are_measured() -> None:
    count = 0
    for name in TABLES:
        table = read_table(name)
        for claim in verdicts.claims_of(table.told):
            count += 1
            names = (claim.left, *claim.right)
            assert set(names) <= set(table.rows), names
            shared = [set(table.tasks_of(table.rows[one], "small")) for one in names]
            assert shared[0] <= set.intersection(*shared), names
            rows = [table.rows[one] for one in names]
            assert all(row.seeds >= claim.seeds for row in rows), names
    assert count > 30


def test_levers_begin_with_the_shipped_recipe() -> None:
    shipped = RecipeManager.from_recipe(recipe_path("quickstart")).host
    own = RecipeManager.from_recipe(find_recipe("recipes/levers.yaml")).host
    assert same_modifiers(list(own.iter_modifiers()), list(shipped.iter_modifiers()))
    args = {"hidden_weight": 1.0}
    other = RecipeManager.from_recipe(find_recipe("recipes/levers.yaml"), args).host
    assert not same_modifiers(
        list(other.iter_modifiers()), list(shipped.iter_modifiers())
    )


def test_the_first_event_and_the_others_follow_one_cubic() -> None:
    found = []
    for name in ("levers", "levers_first"):
        plan = plan_recipe(load_recipe(find_recipe(f"recipes/{name}.yaml")))
        events = [event for one in plan.pruning for event in one.events]
        found.append([(round(e.epoch, 6), round(e.sparsities[0], 6)) for e in events])
    assert found[0] == found[1] and len(found[0]) == 4
