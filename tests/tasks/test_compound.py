"""Dropped layers, a teacher that the recipe names, and N:M, in one run of a task."""

from transformers import AutoModelForSequenceClassification

from tests import tiny

RECIPE = """\
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 1.0
  - !LayerDropModifier
      keep: [0, 3]
  - !NMPruningModifier
      mask_type: 2:4
      start_epoch: 0.25
      end_epoch: 0.75
      gradual: by_n
  - !LogitDistillationModifier
      hardness: 0.5
      teacher: {teacher}
      hidden_weight: 1.0
      layer_map: [0, 3]
"""


def test_a_shallow_n_m_student_of_the_recipes_teacher(small, run_task, tmp_path):
    deep = tiny.save_model(tmp_path / "deep", num_hidden_layers=4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(teacher=deep), encoding="utf-8")
    record = run_task(
        "text_classification",
        model_name_or_path=deep,
        train_file=small.train,
        validation_file=small.validation,
        recipe=recipe,
        max_train_samples=64,
    )
    assert record["teacher"] == str(deep)
    assert record["pruning_events"] == 2 and record["sparsity"] == 0.5
    assert {layer["name"].split(".")[3] for layer in record["layers"]} == {"0", "1"}
    model, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert model.config.num_hidden_layers == 2
    assert not model.config.output_hidden_states
    assert not report["missing_keys"] and not report["unexpected_keys"]
    parameters = [p for n, p in model.named_parameters() if ".encoder." in n]
    weights = [values.detach() for values in parameters if values.ndim == 2]
    assert len(weights) == 12
    for weight in weights:
        assert ((weight.reshape(-1, 4) != 0).sum(dim=1) == 2).all()
