"""What is looked at before a training starts, and before its weights are kept."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError, ResourceError
from vqtok.training.recipe import Recipe

_BYTES_A_PIXEL = 3 * (1 + 4)  # as it was decoded, and as the network takes it


def check_memory(recipe: Recipe, processes: int = 1) -> None:
    """Refuse batches whose pixels alone are more than a machine's memory: the system would kill without a word.

    Raises:
        ResourceError: there is a stage with such batches.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for number, stage in enumerate(recipe.stages):
        needed = stage.images * stage.size**2 * _BYTES_A_PIXEL // processes
        if needed > memory:
            raise ResourceError(
                f"stages.{number}: expected batches that fit into {memory / 1e9:.0f} GB of memory, but the pixels of "
                f"{stage.images:,} crops of {stage.size:,} x {stage.size:,} take {needed / 1e9:,.0f} GB: lower images "
                "or size"
            )


def not_finite(module: nn.Module) -> str:
    """Return the name of the first tensor that holds NaN or infinity, or "".

    >>> not_finite(nn.Linear(2, 2)), not_finite(nn.ParameterDict({"scale": torch.tensor(float("nan"))}))
    ('', 'scale')
    """
    tensors: Iterable[tuple[str, Tensor]] = module.state_dict().items()
    return next((name for name, x in tensors if x.is_floating_point() and not bool(torch.isfinite(x).all())), "")


def diverged(step: int, what: str) -> ConfigError:
    """Return the error of a training that nothing will bring back."""
    return ConfigError(
        f"step {step}: {what}: the training has diverged. Lower optimizer.learning_rate, set optimizer.clip = 1.0 or "
        "precision = 'float32', and go on from the last checkpoint"
    )
