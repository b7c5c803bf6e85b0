"""Token files give back what went in, in the same bytes each time, and any safetensors reader opens them."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load as load_safetensors

from vqtok.errors import ConfigError, InputError, OutputError
from vqtok.store import (
    load_tokens,
    read_header,
    read_token_file,
    save_tokens,
    tokens_from_bytes,
    tokens_to_bytes,
)
from vqtok.types import Tokens, concatenate

HEX = "0123456789abcdef" * 4
RECORD = {
    "fingerprints": {"codebook": HEX, "preprocess": HEX[::-1], "job": HEX},
    "execution": {"device": "cpu", "versions": {"torch": "2.14"}, "micro_batch": [8, 3], "tf32": False},
    "created_by": "vqtok 1.0",
}


def make(grids, vocab_size=8192, fingerprint="", keys=None, seed=0):
    grids = np.array(grids, np.int64).reshape(-1, 3)
    offsets = np.cumsum([0, *grids.prod(axis=1)], dtype=np.int64)
    ids = np.random.default_rng(seed).integers(0, vocab_size, offsets[-1])
    keys = tuple(f"image-{i}" for i in range(len(grids))) if keys is None else keys
    return Tokens(ids, offsets, grids, grids[:, 1:] * 16 + 3, vocab_size, keys, fingerprint)


SMALL = make([[1, 2, 3], [2, 1, 1], [1, 4, 1]])


def assert_same(came, expected):
    for name in ("ids", "offsets", "grids", "sizes"):
        array = getattr(came, name)
        assert array.dtype == np.int64, name
        np.testing.assert_array_equal(array, getattr(expected, name), err_msg=name)
    assert (came.vocab_size, came.keys, came.fingerprint) == (expected.vocab_size, expected.keys, expected.fingerprint)


grids = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), max_size=6)
names = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=6, max_size=6, unique=True)


@given(grids, names, st.sampled_from([1, 2, 65535, 65536, 65537, 262144, 1 << 32]), st.sampled_from(["", HEX]))
@settings(max_examples=100, deadline=None)
def test_round_trip(rows, keys, vocab_size, fingerprint):
    tokens = make(rows, vocab_size, fingerprint, tuple(keys[: len(rows)]))
    data = tokens_to_bytes(replace(tokens, record={"execution": {"keys": keys}}))
    assert_same(tokens_from_bytes(data), tokens)
    assert tokens_to_bytes(tokens_from_bytes(data)) == data
    assert load_safetensors(data)["tokens"].dtype == (np.uint16 if vocab_size <= 65536 else np.uint32)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_runs_of_a_dynamic_tokenizer_round_trip(data):
    grid = make([[1, 4, 4]] * 3)
    spans = data.draw(st.lists(st.integers(0, 16), min_size=3, max_size=3))
    offsets = np.cumsum([0, *spans], dtype=np.int64)
    tokens = replace(grid, ids=grid.ids[: offsets[-1]], offsets=offsets)
    assert_same(tokens_from_bytes(tokens_to_bytes(tokens)), tokens)


def test_equal_content_gives_equal_bytes_whatever_the_memory_layout_and_key_order():
    other = replace(
        SMALL,
        ids=np.repeat(SMALL.ids, 2)[::2].astype(">i4"),
        offsets=SMALL.offsets.astype(np.uint16),
        grids=np.asfortranarray(SMALL.grids).astype(np.int8),
        sizes=SMALL.sizes[::-1][::-1],
    )
    turned = {
        name: dict(reversed(entry.items())) if isinstance(entry, dict) else entry
        for name, entry in reversed(RECORD.items())
    }
    assert tokens_to_bytes(replace(other, record=turned)) == tokens_to_bytes(replace(SMALL, record=RECORD))


def test_bytes_do_not_depend_on_the_process(tmp_path):
    save_tokens(tmp_path / "here.vqt", replace(SMALL, record=RECORD))
    code = (
        "import sys; from vqtok.store import *; f = read_token_file(sys.argv[1]);"
        "save_tokens(sys.argv[2], f.tokens); assert 'torch' not in sys.modules"
    )
    for seed in ("0", "1"):
        there = tmp_path / f"{seed}.vqt"
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, tmp_path / "here.vqt", there], check=True, env=env)
        assert there.read_bytes() == (tmp_path / "here.vqt").read_bytes()


def test_any_safetensors_reader_opens_it(tmp_path):
    path = tmp_path / "a.vqt"
    hashes = np.arange(96, dtype=np.uint8).reshape(3, 32)
    kept = replace(SMALL, record=RECORD, keep=np.ones(int(SMALL.grids[:, 1:].prod(axis=1).sum()), np.bool_))
    save_tokens(path, kept, source_sha256=hashes)
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    profile = {
        "tokens": ("uint16", (12,)),
        "offsets": ("uint64", (4,)),
        "grid": ("uint16", (3, 3)),
        "size": ("uint32", (3, 2)),
        "crc32": ("uint32", (3,)),
        "keys": ("uint8", (21,)),
        "key_offsets": ("uint64", (4,)),
        "source_sha256": ("uint8", (3, 32)),
        "keep": ("uint8", (2,)),
    }
    assert {name: (str(array.dtype), array.shape) for name, array in arrays.items()} == profile
    np.testing.assert_array_equal(arrays["tokens"], SMALL.ids)
    assert metadata["vqt.version"] == "1"
    assert json.loads(metadata["vqt.header"]) == {
        "vocab_size": 8192,
        "counts": {"images": 3, "tokens": 12},
        "layout": "runs",
        "created_by": "vqtok 1.0",
        "execution": RECORD["execution"],
        "fingerprints": {"model": "", **RECORD["fingerprints"]},
    }


def test_every_tensor_is_aligned_in_the_file():
    data = tokens_to_bytes(SMALL, source_sha256=np.zeros((3, 32), np.uint8))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    del header["__metadata__"]
    for name, entry in header.items():
        assert (start + entry["data_offsets"][0]) % (int(entry["dtype"][1:]) // 8) == 0, name


def test_header_and_extras_come_back(tmp_path):
    path = str(tmp_path / "a.vqt")
    hashes = np.arange(96, dtype=np.uint8).reshape(3, 32)
    save_tokens(path, replace(SMALL, fingerprint=HEX, record=RECORD), source_sha256=hashes)
    header = read_header(path)
    assert (header.vocab_size, header.images, header.tokens, header.layout) == (8192, 3, 12, "grid")
    assert header.fingerprints["model"] == HEX
    assert header.record() == {**RECORD, "fingerprints": {**RECORD["fingerprints"], "model": HEX}}
    file = read_token_file(path)
    np.testing.assert_array_equal(file.source_sha256, hashes)
    assert file.tokens.keep.shape == (0,)
    assert_same(load_tokens(path), replace(SMALL, fingerprint=HEX))


def test_what_a_dynamic_tokenizer_kept_comes_back_and_is_sliced_and_joined(tmp_path):
    keep = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1], np.bool_)  # of 2 x 3, 1 x 2 and 3 x 1 positions
    tokens = Tokens(
        ids=np.arange(5),
        offsets=np.array([0, 3, 4, 5]),
        grids=np.array([[1, 2, 3], [1, 1, 2], [1, 3, 1]]),
        sizes=np.full((3, 2), 8),
        vocab_size=8,
        keys=("a", "b", "c"),
        fingerprint="",
        keep=keep,
    )
    save_tokens(tmp_path / "a.vqt", tokens)
    came = load_tokens(tmp_path / "a.vqt")
    assert_same(came, tokens)
    assert read_header(tmp_path / "a.vqt").layout == "runs"
    for both in (came, concatenate([came[:2], came[2:]])):
        np.testing.assert_array_equal(both.keep, keep)
    np.testing.assert_array_equal(came[1].keep, keep[6:8])
    np.testing.assert_array_equal(came[1:].keep, keep[6:])
    for wrong in (keep[:-1], ~keep, keep.astype(np.uint8)):
        with pytest.raises(ConfigError, match=r"Tokens\.keep"):
            replace(tokens, keep=wrong)


def test_loaded_arrays_are_the_callers_own():
    data = tokens_to_bytes(SMALL)
    tokens = tokens_from_bytes(bytearray(data))
    tokens.ids[:] = 0
    assert tokens_from_bytes(memoryview(data)).ids.any()


NUMBER = np.array([1.0])
BAD_TOKENS = {
    "id_too_large": replace(SMALL, vocab_size=2),
    "id_negative": replace(SMALL, ids=SMALL.ids - 8192),
    "vocab_size_zero": replace(make([]), vocab_size=0),
    "vocab_size_huge": replace(SMALL, vocab_size=(1 << 32) + 1),
    "grid_too_large": replace(SMALL, grids=SMALL.grids * 65536),
    "grid_too_small": replace(SMALL, grids=SMALL.grids[[1, 1, 1]]),
    "grid_zero": replace(SMALL, grids=SMALL.grids * 0, ids=SMALL.ids[:0], offsets=SMALL.offsets * 0),
    "size_zero": replace(SMALL, sizes=SMALL.sizes * 0),
    "size_negative": replace(SMALL, sizes=-SMALL.sizes),
    "key_twice": replace(SMALL, keys=("a", "b", "a")),
    "key_long": replace(SMALL, keys=("a", "b", "é" * 2049)),
    "key_surrogate": replace(SMALL, keys=("a", "b", "\udc80")),
    "fingerprint_free_text": replace(SMALL, fingerprint="mine"),
    "record_unknown_key": replace(SMALL, record={"fingerprint": {}}),
    "record_another_model": replace(SMALL, record={"fingerprints": {"model": HEX}}),
    "record_fingerprint_case": replace(SMALL, record={"fingerprints": {"codebook": HEX.upper()}}),
    "record_fingerprint_type": replace(SMALL, record={"fingerprints": {"codebook": 1}}),
    "record_execution_type": replace(SMALL, record={"execution": "cpu"}),
    "record_execution_nan": replace(SMALL, record={"execution": {"x": float("nan")}}),
    "record_execution_object": replace(SMALL, record={"execution": {"x": object()}}),
    "record_execution_int_key": replace(SMALL, record={"execution": {1: 2}}),
    "record_execution_too_long": replace(SMALL, record={"execution": {"x": "y" * (1 << 20)}}),
    "record_created_by_type": replace(SMALL, record={"created_by": None}),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_tokens_that_break_a_promise_are_not_written(name, tmp_path):
    with pytest.raises(ConfigError, match="expected"):
        save_tokens(tmp_path / "a.vqt", BAD_TOKENS[name])
    assert not list(tmp_path.iterdir())


BAD_ARGUMENTS = {
    "source_dtype": {"source_sha256": np.zeros((3, 32))},
    "source_shape": {"source_sha256": np.zeros((2, 32), np.uint8)},
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_arguments_that_break_a_promise_are_refused(name):
    with pytest.raises(ConfigError, match="expected"):
        tokens_to_bytes(SMALL, **BAD_ARGUMENTS[name])


def test_existing_file_is_kept_unless_overwritten(tmp_path):
    path = tmp_path / "a.vqt"
    save_tokens(path, SMALL)
    before = path.read_bytes()
    other = replace(SMALL, keys=("x", "y", "z"))
    with pytest.raises(OutputError, match="exists already"):
        save_tokens(path, other)
    assert path.read_bytes() == before
    save_tokens(path, other, overwrite=True)
    assert load_tokens(path).keys == ("x", "y", "z")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.vqt"]


def test_what_is_no_regular_file_is_an_input_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("missing", ".", "pipe", "loop", "a\0b", "x" * 300):
        with pytest.raises(InputError, match="token file"):
            load_tokens(f"{tmp_path}/{name}")
    with pytest.raises(InputError):
        load_tokens("")


def test_links_are_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    save_tokens(tmp_path / "link", SMALL)
    assert (tmp_path / "link").is_symlink()
    assert_same(load_tokens(tmp_path / "file"), SMALL)
    assert_same(load_tokens(tmp_path / "link"), SMALL)
