"""What ops ask of their inputs, said once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vqtok.errors import ConfigError, NonFiniteLatents

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""The dtypes of latents and codebooks."""


def check_spaces(latents: Tensor, codebook: Tensor) -> None:
    """Raise ConfigError unless latents [..., D] and codebook [K, D] are floats of one space on one device."""
    check_codebook(codebook)
    if latents.dim() == 0 or latents.shape[-1] != codebook.shape[1]:
        raise ConfigError(
            f"expected latents [..., {codebook.shape[1]}] for a codebook {list(codebook.shape)}, got "
            f"{list(latents.shape)}; the last axis is the space: permute BCHW feature maps with .permute(0, 2, 3, 1)"
        )
    _check_floats("latents", latents)
    if latents.device != codebook.device:
        raise ConfigError(
            f"expected latents and codebook on one device, got {latents.device} and {codebook.device}; "
            "move one of them with .to(device)"
        )


def check_codebook(codebook: Tensor) -> None:
    """Raise ConfigError unless the codebook is [K, D] of floats, with K and D of at least 1."""
    if codebook.dim() != 2 or codebook.shape[0] == 0 or codebook.shape[1] == 0:
        raise ConfigError(f"expected a codebook [K, D] with at least one code, got shape {list(codebook.shape)}")
    _check_floats("a codebook", codebook)


def _check_floats(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise ConfigError(f"expected {name} of float16, bfloat16, float32 or float64, got {tensor.dtype}")


def check_codes(latents: Tensor, codes: Tensor) -> None:
    """Raise ConfigError unless codes are int64 [...], one for each of the latents [..., D], on the same device."""
    if codes.dtype != torch.int64 or codes.shape != latents.shape[:-1] or codes.device != latents.device:
        raise ConfigError(
            f"expected codes int64 {list(latents.shape[:-1])} on {latents.device} for latents {list(latents.shape)}, "
            f"got {codes.dtype} {list(codes.shape)} on {codes.device}"
        )


def check_range(codes: Tensor, vocab_size: int) -> None:
    """Raise ConfigError for a code outside 0..vocab_size-1; on the CPU alone, elsewhere it would stall the device."""
    if codes.device.type == "cpu" and codes.numel():
        least, most = (int(x) for x in codes.aminmax())
        if least < 0 or most >= vocab_size:
            raise ConfigError(
                f"expected codes in 0..{vocab_size - 1}, got {least if least < 0 else most}; "
                "were they made with another codebook, or is an offset still on them?"
            )


def check_finite_codebook(codebook: Tensor, witness: Tensor) -> None:
    """Raise ConfigError for a codebook that holds NaN or infinity; on the CPU alone.

    Args:
        codebook: float32 [K, D].
        witness: is not finite somewhere if the codebook is not; the norms are quicker to look through than all of it.
    """
    if codebook.device.type == "cpu" and not witness.isfinite().all() and (row := _first_bad(codebook)) >= 0:
        raise ConfigError(
            f"expected a finite codebook, but code {row} holds NaN or infinity (in float32); "
            "did training diverge, or is the checkpoint damaged?"
        )


def finite_blocks(latents: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Yield latents [..., D] as blocks float32 [n, D] of at most ``rows`` rows, each with the number of its first row.

    Only a block is ever copied, however the latents lie. On the CPU raise NonFiniteLatents for the first row that holds
    NaN or infinity.
    """
    first = 0
    for part in _blocks(latents, rows):
        block = part.reshape(-1, latents.shape[-1]).float()
        if block.device.type == "cpu" and (row := _first_bad(block)) >= 0:
            raise NonFiniteLatents(first + row)
        yield first, block
        first += len(block)


def _blocks(latents: Tensor, rows: int) -> Iterator[Tensor]:
    count = latents.shape[:-1].numel()
    if count <= rows or latents.dim() == 1:
        yield latents
        return
    each = count // latents.shape[0]
    for part in latents.split(max(1, rows // each)):
        yield from _blocks(part[0], rows) if each > rows else (part,)


def _first_bad(rows: Tensor) -> int:
    """Return the first row of float32 [N, D] that holds NaN or infinity, or -1."""
    finite = rows.isfinite()
    return -1 if finite.all() else int((~finite.all(dim=1)).nonzero()[0])
