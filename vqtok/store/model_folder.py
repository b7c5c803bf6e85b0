"""Model folders: ``config.json`` and ``model.safetensors``, bound to each other by a sha256.

Knows nothing of architectures: whoever builds the model says which tensors it expects, and gets those or an error.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError, IntegrityError, MismatchError
from vqtok.store import safetensors
from vqtok.store.canonical import pretty_json, strict_json
from vqtok.store.commit_folder import commit_folder
from vqtok.store.reading import open_regular, read_exactly, size_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 100_000_000
CHECKSUM = "vqtok.sha256"

StoredDtype = Literal["F32", "F16", "BF16"]
_STORED_DTYPES = ("F32", "F16", "BF16")
_SHA256 = re.compile("[0-9a-f]{64}")
_PathLike = str | os.PathLike[str]
_Array = npt.NDArray[np.generic]
_Floats = npt.NDArray[np.float32]


def write_model(
    folder: _PathLike,
    config: Mapping[str, object],
    tensors: Mapping[str, _Array],
    *,
    dtype: StoredDtype = "F32",
    overwrite: bool = False,
) -> None:
    """Write a model folder; afterwards it is whole, durable and proven readable. Equal content gives equal bytes.

    Args:
        folder: the folder to write; the one above must exist.
        config: any JSON; its entry ``weights`` is replaced by the dtype and sha256 of the weights.
        tensors: finite floating-point arrays of any shape by name.
        dtype: how weights are stored; "F16" and "BF16" round to nearest, so the loaded model may be another one.
        overwrite: replace a folder that holds a model and nothing else.

    Raises:
        ConfigError: the configuration is not JSON, or a tensor is not floating-point or not finite as stored.
        OutputError: the folder is not empty or cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp(), "model")
    >>> write_model(folder, {"dim": 2}, {"w": np.ones((2, 2), np.float32)})
    >>> read_config(folder)["dim"], read_weights(folder, {"w": (2, 2)})["w"].tolist()
    (2, [[1.0, 1.0], [1.0, 1.0]])
    """
    stored = {name: _narrow(name, array, dtype) for name, array in tensors.items()}
    pieces = safetensors.serialize(stored, {}, CHECKSUM, dict.fromkeys(stored, dtype))
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    text = pretty_json({**config, "weights": {"dtype": dtype, "sha256": digest.hexdigest()}}).encode("utf-8")
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"expected a configuration of at most {MAX_CONFIG_BYTES} bytes, got {len(text)}")

    def verify(written: Path) -> None:
        if (written / CONFIG).read_bytes() != text:
            raise IntegrityError(f"expected {CONFIG} as written, but other bytes came back")
        read_weights(written, {name: array.shape for name, array in tensors.items()})

    commit_folder(folder, {CONFIG: text, WEIGHTS: pieces}, verify=verify, overwrite=overwrite)


def read_config(folder: _PathLike) -> dict[str, object]:
    """Read ``config.json``: JSON that no two readers could understand differently.

    Args:
        folder: the model folder.

    Returns:
        The configuration, the entry ``weights`` included.

    Raises:
        InputError: there is no such folder or file, or it cannot be read.
        ConfigError: larger than 1 MiB, not UTF-8, not a JSON object, duplicate keys, NaN, overflow or deep nesting.
    """
    path = Path(folder, CONFIG)
    with open_regular(path, "a model's configuration") as file:
        if (size := size_of(file)) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{str(path)!r}: expected at most {MAX_CONFIG_BYTES} bytes, got {size}")
        data = read_exactly(file, size).tobytes()
    try:
        value = strict_json(data)
    except ValueError as error:
        raise ConfigError(f"{str(path)!r}: expected strict JSON in UTF-8, but {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{str(path)!r}: expected a JSON object, got {type(value).__name__}")
    return cast(dict[str, object], value)


def read_weights(folder: _PathLike, expected: Mapping[str, tuple[int, ...]]) -> dict[str, _Floats]:
    """Read exactly the expected tensors; names, shapes and dtypes are checked before any data is read.

    Args:
        folder: the model folder.
        expected: shape by tensor name, all that the model has.

    Returns:
        float32 arrays by name, writable and finite, in the order of ``expected``.

    Raises:
        InputError: there is no such folder or file, or it cannot be read.
        ConfigError: the configuration is not usable or does not describe the weights.
        MismatchError: tensors are missing, unexpected or of another shape or dtype (all are listed), or the weights
            are not those that the configuration was written with.
        IntegrityError: the weights are damaged, truncated, malformed or not finite.
    """
    dtype, sha256 = _weights_entry(folder)
    path = Path(folder, WEIGHTS)
    with open_regular(path, "a model's weights") as file:
        try:
            head, header = _read_header(file)
            _check_tensors(header, expected, dtype)
            data = read_exactly(file, size_of(file) - len(head))
            _check_sha256(sha256, head, header, data)
            return {name: _widen(name, safetensors.view(header, name, data), dtype) for name in expected}
        except (IntegrityError, MismatchError) as error:
            raise type(error)(f"{str(path)!r}: {error}") from error


def tensor_shapes(folder: _PathLike) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name, from the header alone.

    Raises:
        InputError: there is no such folder or file, or it cannot be read.
        IntegrityError: the header is damaged, truncated or malformed.
    """
    path = Path(folder, WEIGHTS)
    with open_regular(path, "a model's weights") as file:
        try:
            _, header = _read_header(file)
        except IntegrityError as error:
            raise IntegrityError(f"{str(path)!r}: {error}") from error
    return {name: tensor.shape for name, tensor in header.tensors.items()}


def _read_header(file: FileIO) -> tuple[bytes, safetensors.Header]:
    """Return a weights file's bytes before the data, and what they say."""
    size = size_of(file)
    prefix = read_exactly(file, min(8, size)).tobytes()
    raw = read_exactly(file, safetensors.header_length(prefix, size, MAX_HEADER_BYTES)).tobytes()
    return prefix + raw, safetensors.parse_header(raw, size - 8 - len(raw))


def _weights_entry(folder: _PathLike) -> tuple[str, str]:
    """Return dtype and sha256 of the weights as the configuration names them."""
    entry = read_config(folder).get("weights")
    fields = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
    dtype, sha256 = fields.get("dtype"), fields.get("sha256")
    if set(fields) != {"dtype", "sha256"} or dtype not in _STORED_DTYPES or not _SHA256.fullmatch(str(sha256)):
        raise ConfigError(
            f"{str(Path(folder, CONFIG))!r}: expected an entry 'weights' with 'dtype' (one of "
            f"{', '.join(_STORED_DTYPES)}) and 'sha256' (64 hexadecimal digits), got {str(entry)[:120]}"
        )
    return str(dtype), str(sha256)


def _check_tensors(header: safetensors.Header, expected: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """Compare the header with the model, and say all differences at once."""
    came = header.tensors
    problems = [f"missing {name!r} {tuple(expected[name])}" for name in expected if name not in came]
    problems += [f"unexpected {name!r} {came[name].shape}" for name in sorted(came) if name not in expected]
    for name in (name for name in expected if name in came):
        spec = came[name]
        if spec.shape != tuple(expected[name]):
            problems.append(f"{name!r} of shape {spec.shape} instead of {tuple(expected[name])}")
        if spec.dtype != dtype:
            problems.append(f"{name!r} of dtype {spec.dtype} instead of {dtype}")
    if problems:
        raise MismatchError(
            f"expected the {len(expected)} tensors that the configuration describes, but {len(problems)} differ: "
            f"{'; '.join(problems)}. Are configuration and weights of one model?"
        )


def _check_sha256(expected: str, head: bytes, header: safetensors.Header, data: memoryview) -> None:
    """Check the file against the configuration; when they differ, the file's own checksum tells why."""
    digest = hashlib.sha256(head)
    digest.update(data)
    if digest.hexdigest() == expected:
        return
    own = header.metadata.get(CHECKSUM)
    if own is not None and own != safetensors.content_sha256(header, CHECKSUM, [data]):
        raise IntegrityError("expected the content that the file's own sha256 names, got another: it is damaged")
    raise MismatchError(
        f"expected weights of sha256 {expected}, got {digest.hexdigest()}: "
        "configuration and weights are of different models, or one of them was changed"
    )


def _narrow(name: str, array: _Array, dtype: StoredDtype) -> _Array:
    """Return a tensor as it is stored; it must be finite as such."""
    if array.dtype.kind != "f":
        raise ConfigError(f"expected tensor {name!r} of a floating-point dtype, got {array.dtype}")
    with np.errstate(over="ignore"):
        values = array.astype(np.float16 if dtype == "F16" else np.float32, copy=False)
        if dtype == "BF16":  # the upper half of a float32, rounded to nearest, ties to even
            bits = values.view(np.uint32)
            values = ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)
    finite = _from_bfloat16(values) if dtype == "BF16" else values
    if not np.isfinite(array).all() or not np.isfinite(finite).all():
        raise ConfigError(f"expected tensor {name!r} to be finite as {dtype}: look for a diverged training or overflow")
    return values


def _widen(name: str, stored: _Array, dtype: str) -> _Floats:
    """Return a tensor as finite float32."""
    values = _from_bfloat16(stored) if dtype == "BF16" else stored.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise IntegrityError(f"expected finite weights, but tensor {name!r} holds NaN or infinity")
    # A file of another writer may not be aligned.
    return cast(_Floats, values if values.flags.aligned else values.copy())


def _from_bfloat16(bits: _Array) -> _Floats:
    """Return bfloat16 bits, uint16 of any shape, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
