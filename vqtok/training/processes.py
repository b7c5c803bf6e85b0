"""The processes of a training: how Lightning joins them without a word, what they agree on, how a lost one ends it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import distributed

from vqtok.errors import ResourceError, VqtokError, escape
from vqtok.training.recipe import Recipe
from vqtok.training.sharding import shard

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Strategy: TypeAlias = Literal["ddp", "fsdp"]
_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
# What torch says in a process whose neighbour has gone away, by gloo, by NCCL, by the store.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "timed out", "Timed out", "gloo")


def launch(recipe: Recipe, device: str = "auto", strategy: Strategy = "ddp") -> Fabric:
    """Return the Fabric of this process, or of this one among torchrun's.

    Raises:
        ResourceError: Lightning is not installed, there is no such device, or the processes do not find each other.
    """
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies.ddp import DDPStrategy
        from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
    except ImportError:
        raise ResourceError("expected Lightning for training: pip install 'vqtok[train]'") from None
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    # DDP must know whether some weights get no gradient at a step, as those of frozen parts.
    idle = any(stage.teacher or stage.frozen or not stage.quantize for stage in recipe.stages)
    several = {
        "ddp": lambda: DDPStrategy(find_unused_parameters=idle),
        "fsdp": lambda: ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1),
    }
    if world > 1:  # of 1 x 1 convolutions in channels_last, whose two layouts are one
        warnings.filterwarnings("ignore", message="Grad strides do not match")
    with _silence():
        fabric = Fabric(
            accelerator="auto" if device == "auto" else device,
            devices=local,
            num_nodes=max(1, world // local),
            strategy=several[strategy]() if world > 1 else "auto",
            precision=_PRECISIONS[recipe.precision],  # pyright: ignore[reportArgumentType]
        )
        fabric.launch()
    return fabric


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Lightning from telling what it was told to do; it logs by several names."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def any_process(fabric: Fabric, here: bool) -> bool:
    """Tell whether something is so in any process; all must ask together.

    A signal reaches them between different steps: without asking one would save while another trains on.
    """
    if fabric.world_size == 1:
        return here
    found = torch.tensor(float(here), device=fabric.device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found.item())


@contextmanager
def losses_named(fabric: Fabric) -> Iterator[None]:
    """Say in one line that another process has gone away, where torch says it in many.

    Raises:
        ResourceError: it has.
    """
    try:
        yield
    except VqtokError:
        raise
    except RuntimeError as error:
        words = str(error)
        if fabric.world_size == 1 or not any(known in words for known in _LOST):
            raise
        raise ResourceError(
            f"process {fabric.global_rank} of {fabric.world_size}: expected the others to train along, but one has "
            f"ended ({escape(words.splitlines()[0], 200)}): see what it said; the same command goes on from the last "
            "checkpoint"
        ) from error
