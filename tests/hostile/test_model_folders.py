"""Damaged, foreign and lying model folders: each is refused with its own kind of error, and nothing of them is run."""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest

from vqtok.errors import ConfigError, IntegrityError, MismatchError
from vqtok.store import read_config, read_weights, write_model

SHAPES = {"codebook": (6, 4), "conv.weight": (2, 3), "conv.bias": (2,)}
TENSORS = {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1 for name, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "m", {"dim": 4}, TENSORS)
    return tmp_path / "m"


def put_weights(folder, data, dtype="F32"):
    """Replace the weights, and let the configuration vouch for them."""
    (folder / "model.safetensors").write_bytes(data)
    config = {"weights": {"dtype": dtype, "sha256": hashlib.sha256(data).hexdigest()}}
    (folder / "config.json").write_text(json.dumps(config))


def container(tensors, edit=None, order=None):
    """Write safetensors as a stranger would."""
    entries, data = {}, b""
    for name in order or tensors:
        label = {"float32": "F32", "float16": "F16", "float64": "F64", "int32": "I32"}[tensors[name].dtype.name]
        raw = tensors[name].tobytes()
        shape = list(tensors[name].shape)
        entries[name] = {"dtype": label, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    if edit:
        edit(entries)
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


class Bomb:
    def __reduce__(self):
        return os.system, ("touch BOMB",)


def archive(compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        target.writestr("archive/data.pkl", pickle.dumps(Bomb()))
        target.writestr("archive/data/0", bytes(1000))
    return file.getvalue()


FOREIGN = {
    "63_pickle": pickle.dumps(Bomb()),
    "63_pickle_protocol_0": pickle.dumps(Bomb(), 0),
    "63_torch_zip": archive(),
    "67_deflated_zip": archive(zipfile.ZIP_DEFLATED),
    "65_tar": b"data".ljust(257, b"\0") + b"ustar\0" + bytes(10000),
    "66_size_lies": container(TENSORS, lambda e: e["conv.bias"].update(data_offsets=[120, 1 << 40])),
    "66_shape_lies": container(TENSORS, lambda e: e["conv.bias"].update(shape=[1 << 40])),
    "empty": b"",
    "header_of_100_MB": struct.pack("<Q", 100_000_001) + b"{}",
    "header_past_end": struct.pack("<Q", 99_000_000) + b"{}",
    "truncated": container(TENSORS)[:-1],
    "trailing": container(TENSORS) + b"\0",
    "75_aliased": container(TENSORS, lambda e: e["conv.weight"].update(data_offsets=[0, 24])),
    "75_overlapping": container(
        TENSORS,
        lambda e: (e["conv.weight"].update(data_offsets=[72, 96]), e["conv.bias"].update(data_offsets=[96, 104])),
    )[:-24],
    "72_nan": container({**TENSORS, "conv.bias": np.array([1, np.nan], np.float32)}),
    "72_infinite": container({**TENSORS, "conv.bias": np.array([1, -np.inf], np.float32)}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_and_damaged_weights_are_refused_and_never_run(kind, folder, monkeypatch):
    monkeypatch.chdir(folder)
    put_weights(folder, FOREIGN[kind])
    with pytest.raises(IntegrityError, match="expected") as caught:
        read_weights(folder, SHAPES)
    assert str(folder / "model.safetensors") in str(caught.value)
    assert ("conv.bias" in str(caught.value)) == (kind.startswith("72") or "lies" in kind)
    assert not (folder / "BOMB").exists()


DIFFERENT = {
    "68_missing_key": ({k: v for k, v in TENSORS.items() if k != "codebook"}, "missing 'codebook'"),
    "69_extra_key": ({**TENSORS, "more": TENSORS["codebook"]}, "unexpected 'more'"),
    "70_wrong_shape": (
        {**TENSORS, "conv.bias": TENSORS["codebook"]},
        r"'conv.bias' of shape \(6, 4\) instead of \(2,\)",
    ),
    "70_flat": ({**TENSORS, "codebook": TENSORS["codebook"].ravel()}, "'codebook' of shape"),
    "71_float64": ({**TENSORS, "codebook": TENSORS["codebook"].astype(np.float64)}, "dtype F64 instead of F32"),
    "71_integers": ({**TENSORS, "codebook": TENSORS["codebook"].astype(np.int32)}, "dtype I32 instead of F32"),
    "71_half": ({**TENSORS, "codebook": TENSORS["codebook"].astype(np.float16)}, "dtype F16 instead of F32"),
    "74_transposed_codebook": ({**TENSORS, "codebook": np.ascontiguousarray(TENSORS["codebook"].T)}, r"\(4, 6\)"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_tensors_of_another_model_are_a_mismatch(kind, folder):
    tensors, words = DIFFERENT[kind]
    put_weights(folder, container(tensors))
    with pytest.raises(MismatchError, match=words):
        read_weights(folder, SHAPES)


def test_all_differences_are_said_at_once_and_before_data_is_read(folder, monkeypatch):
    put_weights(
        folder,
        container({"codebook": TENSORS["codebook"].T, "conv.bias": TENSORS["conv.bias"], "x": TENSORS["codebook"]}),
    )
    sizes = []

    def read(file, size):
        sizes.append(size)
        return memoryview(bytearray(file.read(size)))

    monkeypatch.setattr("vqtok.store.model_folder.read_exactly", read)
    with pytest.raises(MismatchError) as caught:
        read_weights(folder, SHAPES)
    assert len(sizes) == 3, "expected config, prefix and header to be read, and no tensor"
    for words in ("3 differ", "missing 'conv.weight' (2, 3)", "unexpected 'x' (6, 4)", "'codebook' of shape (4, 6)"):
        assert words in str(caught.value)


def test_weights_of_another_model_of_the_same_shape_are_a_mismatch(folder, tmp_path):
    write_model(tmp_path / "other", {"dim": 4}, {name: -array for name, array in TENSORS.items()})
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(MismatchError, match="different models"):
        read_weights(folder, SHAPES)


def test_strangers_weights_are_read_when_the_configuration_vouches_for_them(folder):
    put_weights(folder, container(TENSORS, order=["conv.bias", "codebook", "conv.weight"]))
    came = read_weights(folder, SHAPES)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(came[name], array)
        assert came[name].flags.aligned


def test_every_flipped_bit_of_the_weights_is_found(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    kinds = set()
    for position in rng.choice(len(good) * 8, 2000, replace=False).tolist():
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises((IntegrityError, MismatchError)) as caught:
            read_weights(folder, SHAPES)
        kinds.add(caught.type)
        if position // 8 >= len(good) - 152:
            assert caught.type is IntegrityError, "a flip in the tensors is damage, not another model"
    assert kinds == {IntegrityError, MismatchError}


def test_every_truncation_of_the_weights_is_found(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for size in range(0, len(good), 7):
        path.write_bytes(good[:size])
        with pytest.raises(IntegrityError):
            read_weights(folder, SHAPES)


CONFIGS = {
    "80_nan": b'{"x": NaN}',
    "80_infinity": b'{"x": -Infinity}',
    "80_1e400": b'{"x": 1e400}',
    "80_digits": b'{"x": ' + b"9" * 5000 + b"}",
    "86_10_MB": b'{"x": "' + b"y" * 10_000_000 + b'"}',
    "87_duplicate_keys": b'{"x": 1, "x": 2}',
    "87_duplicate_inner_keys": b'{"a": {"x": 1, "x": 1}}',
    "88_bom": b"\xef\xbb\xbf{}",
    "88_utf16": '{"x": 1}'.encode("utf-16"),
    "88_latin1": '{"x": "é"}'.encode("latin-1"),
    "deep": b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep_but_parsable": b'{"x": ' + b"[" * 100 + b"]" * 100 + b"}",
    "surrogate": b'{"x": "\\ud800"}',
    "surrogate_key": b'{"\\udfff": 1}',
    "list": b"[]",
    "null": b"null",
    "empty": b"",
    "two": b"{} {}",
    "comment": b"{} // x",
    "yaml": b"a: !!python/object/apply:os.system [id]",
    "pickle": pickle.dumps({}),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_hostile_configurations_are_refused(kind, folder):
    (folder / "config.json").write_bytes(CONFIGS[kind])
    for read in (read_config, lambda path: read_weights(path, SHAPES)):
        with pytest.raises(ConfigError, match="expected") as caught:
            read(folder)
        assert str(folder / "config.json") in str(caught.value)


def test_windows_line_ends_are_fine(folder):
    text = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(text.replace(b"\n", b"\r\n"))
    assert read_config(folder)["dim"] == 4
    assert set(read_weights(folder, SHAPES)) == set(SHAPES)


HEX = "0" * 64
ENTRIES = [None, 1, [], {}, {"dtype": "F32"}, {"sha256": HEX}, {"dtype": "F32", "sha256": HEX[1:]}]
ENTRIES += [{"dtype": "F64", "sha256": HEX}, {"dtype": ["F32"], "sha256": HEX}, {"dtype": "F32", "sha256": None}]
ENTRIES += [{"dtype": "F32", "sha256": HEX, "file": "../../secret"}, {"dtype": "F32", "sha256": "A" * 64}]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_configuration_that_does_not_describe_its_weights_is_refused(entry, folder):
    (folder / "config.json").write_text(json.dumps({"weights": entry}))
    with pytest.raises(ConfigError, match="'weights'"):
        read_weights(folder, SHAPES)
