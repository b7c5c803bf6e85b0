"""Weights that lie in pieces on several devices (FSDP): how they become whole, and pieces again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Spread a module's weights over the processes of a mesh; they are whole from its forward to its backward pass.

    In one piece, not block by block: losses look at weights between the two (the adaptive weight, codebooks).
    """
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=False)
    return module


def rest(module: nn.Module) -> None:
    """Leave a module's weights in pieces, as after a backward pass; nothing where they are whole anyway."""
    if isinstance(module, FSDPModule):
        module.reshard()


def whole(tree: Any) -> Any:
    """Return nested lists and dictionaries with every tensor whole; all processes must ask together.

    >>> whole({"weight": torch.ones(2)})["weight"].tolist()
    [1.0, 1.0]
    """
    return _pytree.tree_map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, tree)


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor in pieces as the model lies, or as it is where the model is whole.

    >>> like(torch.ones(2), torch.zeros(2)).tolist()
    [1.0, 1.0]
    """
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


@torch.no_grad()
def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy whole tensors by name into a module's parameters and buffers, whose names must be the same."""
    here = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if here.keys() != state.keys():
        raise KeyError(f"expected {sorted(here)}, got {sorted(state)}")
    for name, tensor in here.items():
        tensor.copy_(like(state[name], tensor))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from an optimizer's state of whole tensors."""
    parameters = [x for group in optimizer.param_groups for x in group["params"]]
    moments = {
        i: {name: like(x, parameters[i]) if name != "step" else x for name, x in each.items()}
        for i, each in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": moments})
