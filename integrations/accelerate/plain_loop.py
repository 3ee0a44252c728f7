"""A plain accelerate loop; what a recipe adds to it is marked with `new`."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

from obert_modifiers import RecipeManager, embedded
from obert_modifiers.training import RecipeStepper  # new
from obert_modifiers.training.batches import TaskData, gradient_source  # new


def main(recipe: Path, model_name: Path, train_file: Path, batch_size: int = 32):
    """Fine-tune with a recipe, the dense model as its own teacher.

    Args:
        recipe: The recipe.
        model_name: Folder of a model with its tokenizer.
        train_file: Parquet file with the columns sentence and label.
        batch_size: Sentences in a batch of one process.

    Returns:
        The trained model and its sparsity.
    """
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=1)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForSequenceClassification.from_pretrained(model_name)
    rows = load_dataset("parquet", data_files=str(train_file), split="train")
    tokens = rows.map(lambda row: tokenizer(row["sentence"], truncation=True))
    tokens = tokens.select_columns(["input_ids", "attention_mask", "label"])
    collate = DataCollatorWithPadding(tokenizer)
    loader = DataLoader(tokens, batch_size, shuffle=True, collate_fn=collate)

    manager = RecipeManager.from_recipe(recipe)  # new
    manager.apply_structure(model, teacher="self")  # new: before the optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    raw_model, forward = model, model.forward  # new: as it is in full precision
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def losses(outputs, batch):  # new: the loss of each sentence, for oBERT's gradients
        return cross_entropy(outputs.logits, batch["labels"], reduction="none")

    data = TaskData(tokens, [], collate, losses, lambda logits, labels: {})  # new
    source = gradient_source(data, forward, accelerator.device, seed=0)  # new
    manager.initialize(raw_model, gradient_source=source, teacher="self")  # new
    steps_per_epoch = -(-len(loader) // accelerator.gradient_accumulation_steps)
    stepper = RecipeStepper(manager, raw_model, optimizer, steps_per_epoch)  # new
    for _ in range(round(manager.max_epochs)):
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                outputs = model(**batch)
                loss = manager.loss(  # new: for distillation
                    outputs.loss,
                    raw_model,
                    optimizer,
                    stepper.epoch,
                    steps_per_epoch,
                    student_outputs=outputs,
                    student_inputs=batch,
                )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    stepper.step()  # new: in the place of optimizer.step()
                optimizer.zero_grad()
    manager.finalize(raw_model)  # new
    return raw_model, manager.sparsity()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=embedded.encoder_path())
    parser.add_argument("--train_file", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args()
    file = arguments.train_file or embedded.movie_snippets()["train"]
    trained, sparsity = main(arguments.recipe, arguments.model, file)
    trained.save_pretrained(arguments.output_dir)
    print(f"sparsity {sparsity:.4f}")
