"""The codebooks of a tokenizer, as rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from vqtok.errors import ConfigError
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.quantizers import Quantizer

_MOST = 1 << 20


@torch.no_grad()
def codebooks_of(tokenizer: ImageTokenizer) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors [K, D] that each of a tokenizer's codebooks hands out, by the name of its quantizer.

    Raises:
        ConfigError: there is none, as when codes have no vectors of their own or are more than a million.

    >>> import vqtok
    >>> {name: rows.shape for name, rows in codebooks_of(vqtok.build("vqvae-cifar")).items()}
    {'quantizer': (512, 64)}
    """
    found = {
        name: quantizer.decode(torch.arange(quantizer.vocab_size, device=tokenizer.device)).float().cpu().numpy()
        for name, quantizer in tokenizer.named_modules()
        if isinstance(quantizer, Quantizer)
        and quantizer.codebooks == 1
        and 2 <= quantizer.vocab_size <= _MOST
        and not any(isinstance(module, Quantizer) for module in quantizer.children())
    }
    if not found:
        raise ConfigError(f"expected a model with a codebook of 2 to {_MOST:,} codes to draw, found none")
    return found
