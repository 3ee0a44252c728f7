"""A plain torch loop with SparseML's manager and our modifiers."""

import torch
from sparseml.pytorch.optim import ScheduledModifierManager
from torch import nn

import obert_modifiers.modifiers  # noqa: F401  new: registers our YAML tags

RECIPE = """
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 3.0
  - !OBERTPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.8
      start_epoch: 1.0
      end_epoch: 2.0
      update_frequency: 0.5
      params: ["re:.*weight"]
      num_grads: 128
      fisher_block_size: 16
      grad_sampler_kwargs:
        batch_size: 16
"""


def main() -> float:
    """Train a small classifier with the recipe.

    Returns:
        The sparsity of its weights.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 16, generator=generator)
    labels = (inputs[:, :4].sum(dim=1) > 0).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def sample_batches(options):
        size = (options or {}).get("batch_size", 32)
        for x, y in zip(inputs.split(size), labels.split(size), strict=True):
            yield [x], {}, y

    manager = ScheduledModifierManager.from_yaml(RECIPE)
    optimizer = manager.modify(
        model,
        optimizer,
        steps_per_epoch=16,
        grad_sampler={
            "data_loader_builder": sample_batches,
            "loss_function": nn.functional.cross_entropy,
        },
    )
    for _ in range(manager.max_epochs):
        for x, y in zip(inputs.split(32), labels.split(32), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    manager.finalize(model)
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    zeros = sum(int((w == 0).sum()) for w in weights)
    return zeros / sum(w.numel() for w in weights)


if __name__ == "__main__":
    print(f"sparsity {main():.4f}")
