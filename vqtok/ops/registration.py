"""Torch ops of the library ``vqtok``: one an op, whichever backend computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("vqtok", "FRAGMENT")  # ops live as long as this object


def register(schema: str, compute: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an op, so that torch.compile takes it as one node.

    Autograd stays outside: what has gradients wraps its op in an `torch.autograd.Function`.

    Args:
        schema: name and signature in torch's schema language.
        compute: the op; it runs below autograd on every device.
        fake: returns empty tensors of the shapes and dtypes that ``compute`` would return.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vqtok::{name}", fake, lib=_LIBRARY)
