"""Distil an embedding model from itself with sentence-transformers and a recipe.

The trainer, the loss and the data are theirs, and need no labels; our lines say `new`.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

from obert_modifiers import embedded
from obert_modifiers.training.trainer_callback import RecipeCallback  # new


def main(recipe: Path, model_name: Path, train_file: Path, out: Path, **options):
    """Distil a model from itself with a recipe.

    Args:
        recipe: The recipe.
        model_name: Folder of a model of sentence-transformers, or of an encoder.
        train_file: Parquet file with the column sentence.
        out: Folder of the checkpoints and of the model.
        **options: Further training arguments, and ``resume_from_checkpoint``.

    Returns:
        The callback, which knows the sparsity, and the trained model.
    """
    resume = options.pop("resume_from_checkpoint", None)
    model = SentenceTransformer(str(model_name))
    rows = load_dataset("parquet", data_files=str(train_file), split="train")
    rows = rows.select_columns("sentence")
    rows = rows.add_column("label", model.encode(rows["sentence"]).tolist())

    def probed(model, batch):  # new
        """Return <v, e(x)> of each text, (k,), with Gaussian v of unit variance.

        Its gradients' second moment is the Gauss-Newton matrix of the embeddings'
        squared error, whatever the loss is, and also where that is 0.
        """
        texts, _ = trainer.collect_features(batch)
        found = [model(text)["sentence_embedding"].float() for text in texts]
        return sum((e * torch.randn_like(e)).sum(-1) for e in found)

    callback = RecipeCallback(recipe, losses=probed)  # new
    arguments = SentenceTransformerTrainingArguments(
        str(out),
        num_train_epochs=callback.manager.max_epochs,  # new: the recipe's
        **{"per_device_train_batch_size": 32, "report_to": "none"} | options,
    )
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=rows,
        loss=EmbedDistillLoss(model, "mse"),
        callbacks=[callback],  # new
    )
    trainer.train(resume_from_checkpoint=resume)
    model.save(str(out))
    callback.save(out, model[0].auto_model)  # new: the recipe, and scales after QAT
    return callback, model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=embedded.encoder_path())
    parser.add_argument("--train_file", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    given = parser.parse_args()
    file = given.train_file or embedded.movie_snippets()["train"]
    trained, _ = main(given.recipe, given.model, file, given.output_dir)
    print(f"sparsity {trained.manager.sparsity():.4f}")
