"""Fingerprints: sha256 over what decides an outcome, and over nothing else, such as a container or a file name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError
from vqtok.store.canonical import canonical_json as canonical_json
from vqtok.store.safetensors import array_bytes, label_of

_Array = npt.NDArray[np.generic]


def model_fingerprint(config: Mapping[str, object], tensors: Mapping[str, _Array]) -> str:
    """Return the fingerprint of a model: its architecture and every tensor's name, dtype, shape and elements.

    Args:
        config: what decides the computation; leave provenance, licence and the weights' container out.
        tensors: arrays of any shape by name, in the dtype they are computed with.

    Returns:
        64 lowercase hexadecimal digits; the order of keys and the memory layout do not matter.

    Raises:
        ConfigError: the configuration is not JSON, or an array's dtype has no name.

    >>> model_fingerprint({"dim": 2}, {"w": np.zeros((2, 2), np.float32)})[:16]
    '0ebe55146db31f95'
    """
    return _digest("model", config, tensors)


def codebook_fingerprint(codebook: _Array, metric: str) -> str:
    """Return the fingerprint of a codebook as it is searched.

    Args:
        codebook: float [K, D], the effective one: after projection and normalisation.
        metric: "l2", "cosine" or "dot".

    Raises:
        ConfigError: the codebook is not a matrix.

    >>> codebook_fingerprint(np.zeros((4, 2), np.float32), "l2") == codebook_fingerprint(np.zeros((2, 4), "f4"), "l2")
    False
    """
    if codebook.ndim != 2:
        raise ConfigError(f"expected a codebook of shape [K, D], got {codebook.shape}")
    return _digest("codebook", {"metric": metric}, {"codebook": codebook})


def mapping_fingerprint(mapping: Mapping[str, object]) -> str:
    """Return the fingerprint of settings, such as a preprocess specification or a job.

    Raises:
        ConfigError: the mapping is not JSON.

    >>> mapping_fingerprint({"a": 1, "b": 2}) == mapping_fingerprint({"b": 2, "a": 1})
    True
    """
    return _digest("mapping", mapping, {})


def _digest(kind: str, mapping: Mapping[str, object], tensors: Mapping[str, _Array]) -> str:
    """Hash lines of JSON, each tensor's line followed by its bytes, whose number the line decides."""
    digest = hashlib.sha256(f"vqtok.fingerprint.{kind}.1\n{canonical_json(mapping)}\n".encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{canonical_json([name, label_of(array), array.shape])}\n".encode())
        digest.update(array_bytes(array))
    return digest.hexdigest()
