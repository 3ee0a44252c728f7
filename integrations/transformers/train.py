"""Fine-tune with the Hugging Face Trainer and a recipe; its lines say `new`."""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from obert_modifiers import embedded
from obert_modifiers.training.trainer_callback import RecipeCallback  # new


def main(recipe: Path, model_name: Path, train_file: Path, out: Path, **options):
    """Fine-tune with a recipe, the dense model as its own teacher.

    Args:
        recipe: The recipe.
        model_name: Folder of a model with its tokenizer.
        train_file: Parquet file with the columns sentence and label.
        out: Folder of the checkpoints and of the model.
        **options: Further `TrainingArguments`, and ``resume_from_checkpoint``.

    Returns:
        The callback, which knows the sparsity, and the trained model.
    """
    set_seed(0)
    resume = options.pop("resume_from_checkpoint", None)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForSequenceClassification.from_pretrained(model_name)
    rows = load_dataset("parquet", data_files=str(train_file), split="train")
    tokens = rows.map(lambda row: tokenizer(row["sentence"], truncation=True))
    callback = RecipeCallback(recipe, teacher="self")  # new
    trainer = Trainer(
        model,
        TrainingArguments(
            str(out),
            num_train_epochs=callback.manager.max_epochs,  # new: the recipe's
            **{"per_device_train_batch_size": 32, "report_to": "none"} | options,
        ),
        train_dataset=tokens,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[callback],  # new
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(out))
    callback.save(out)  # new: the recipe, and scales after QAT
    return callback, trainer.model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=embedded.encoder_path())
    parser.add_argument("--train_file", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args()
    file = arguments.train_file or embedded.movie_snippets()["train"]
    where = arguments.model, file, arguments.output_dir
    trained, _ = main(arguments.recipe, *where)
    print(f"sparsity {trained.manager.sparsity():.4f}")
