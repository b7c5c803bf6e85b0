"""Damaged, malformed and lying token files: each is refused with its own kind of error before a token is returned.

The files are put together here, byte by byte, by a second and independent writer of the format.
"""

import hashlib
import io
import json
import pickle
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtok.errors import IntegrityError, MismatchError
from vqtok.store import load_tokens, read_header, tokens_from_bytes, tokens_to_bytes
from vqtok.types import Tokens

CODES = {"U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "F32": "<f4"}
TOKENS = Tokens(
    np.array([0, 1, 2, 99, 4, 5, 6, 7, 8]),
    np.array([0, 4, 6, 9]),
    np.array([[1, 2, 2], [2, 1, 1], [1, 1, 3]]),
    np.array([[16, 16], [8, 8], [16, 48]]),
    100,
    ("a", "bb", "é"),
    "",
)
HEADER = {
    "counts": {"images": 3, "tokens": 9},
    "created_by": "vqtok",
    "execution": {},
    "fingerprints": {"codebook": "", "model": "", "preprocess": ""},
    "layout": "grid",
    "vocab_size": 100,
}


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def crc32(arrays):
    grid, tokens, offsets = arrays["grid"][1], arrays["tokens"][1], arrays["offsets"][1]
    keys, ends = bytes(arrays["keys"][1]), arrays["key_offsets"][1]
    return [
        zlib.crc32(keys[ends[i] : ends[i + 1]] + grid[i].tobytes() + tokens[offsets[i] : offsets[i + 1]].tobytes())
        for i in range(len(grid))
    ]


def valid():
    """Return the parts of a valid file: arrays as (label, array), and the header."""
    values = {
        "tokens": ("U16", TOKENS.ids),
        "offsets": ("U64", TOKENS.offsets),
        "grid": ("U16", TOKENS.grids),
        "size": ("U32", TOKENS.sizes),
        "keys": ("U8", list("abbé".encode())),
        "key_offsets": ("U64", [0, 1, 3, 5]),
    }
    arrays = {name: (label, np.array(value, CODES[label])) for name, (label, value) in values.items()}
    arrays["crc32"] = ("U32", np.array(crc32(arrays), "<u4"))
    return arrays, json.loads(json.dumps(HEADER))


def build(arrays, header, *, version="1", sign=True, edit=None, extra=None, layout=None):
    """Write a file, signed and canonical unless told otherwise; ``edit`` changes the signed header's dict."""
    entries, start = {}, 0
    order = layout or (lambda name: (-arrays[name][1].itemsize, name))
    for name in sorted(arrays, key=order):
        label, array = arrays[name]
        entries[name] = {"dtype": label, "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    data = b"".join(arrays[name][1].tobytes() for name in entries)
    metadata = {"vqt.version": version, "vqt.header": header if isinstance(header, str) else canonical(header)}
    entries["__metadata__"] = {**metadata, **(extra or {})}
    if edit:
        edit(entries)
    if sign:
        digest = hashlib.sha256(canonical(entries).encode() + data).hexdigest()
        entries["__metadata__"]["vqt.sha256"] = digest
    return frame(canonical(entries).encode(), data)


def frame(text, data=b"", pad=True):
    text += b" " * (-len(text) % 8 if pad else 0)
    return struct.pack("<Q", len(text)) + text + data


def changed(change, *, crc=True, **options):
    """Build a file after ``change(arrays, header)``, its crc32 made to agree, so that only the change is wrong."""
    arrays, header = valid()
    header = change(arrays, header) or header
    if crc:
        arrays["crc32"] = ("U32", np.array(crc32(arrays), "<u4"))
    return build(arrays, header, **options)


def put(name, value, label=None):
    def change(arrays, _):
        kind = label or arrays[name][0]
        arrays[name] = (kind, np.array(value, CODES.get(kind, "u1")))

    return change


def keeping(packed):
    def change(arrays, header):
        put("keep", packed, "U8")(arrays, header)
        header["layout"] = "runs"

    return change


def drop(name):
    def change(arrays, _):
        del arrays[name]

    return change


def say(**fields):
    return lambda _, header: header.update(fields)


def offsets(name, first, last):
    def edit(entries):
        entries[name]["data_offsets"] = [first, last]

    return edit


def shape(name, value):
    def edit(entries):
        entries[name]["shape"] = value

    return edit


def set_metadata(value):
    def edit(entries):
        entries["__metadata__"] = value

    return edit


def archive():
    file = io.BytesIO()
    np.savez(file, tokens=np.arange(9))
    return file.getvalue()


GOOD = build(*valid())
TEXT = GOOD[8 : 8 + struct.unpack("<Q", GOOD[:8])[0]]
DATA = GOOD[8 + len(TEXT) :]
KINDS = {
    "37_empty": b"",
    "38_seven_bytes": GOOD[:7],
    "38_eight_bytes": GOOD[:8],
    "39_header_longer_than_file": struct.pack("<Q", len(GOOD)) + GOOD[8:],
    "39_header_of_zero": struct.pack("<Q", 0) + GOOD[8:],
    "40_header_of_2_to_63": struct.pack("<Q", 1 << 63) + GOOD[8:],
    "40_header_of_2_to_64": b"\xff" * 8 + GOOD[8:],
    "41_header_above_limit": frame(TEXT + b" " * (1 << 20), DATA),
    "42_not_utf8": frame(TEXT.replace(b"vqtok", b"vqt\xffk"), DATA),
    "43_not_json": frame(b"tokens: 1", DATA),
    "43_json_list": frame(b"[1, 2]", DATA),
    "43_json_after_space": frame(b" " + TEXT, DATA),
    "43_trailing_text": frame(TEXT.strip() + b"}", DATA),
    "43_nan": frame(TEXT.replace(b"[3,32]", b"[NaN]").replace(b"[9]", b"[NaN]"), DATA),
    "44_deep": frame(b'{"a":' * 5000 + b"1" + b"}" * 5000, DATA),
    "44_deep_list": frame(b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}", DATA),
    "45_duplicate_key": frame(b'{"crc32":{},' + TEXT[1:], DATA),
    "45_duplicate_metadata": frame(TEXT.replace(b'"vqt.version":"1"', b'"vqt.version":"1","vqt.version":"1"'), DATA),
    "46_metadata_number": build(*valid(), extra={"vqt.extra": 1}),
    "46_metadata_list": build(*valid(), edit=set_metadata([]), sign=False),
    "46_metadata_absent": build(*valid(), edit=lambda entries: entries.pop("__metadata__"), sign=False),
    "46_metadata_extra": build(*valid(), extra={"vqt.extra": "1"}),
    "46_header_absent": build(*valid(), edit=lambda entries: entries["__metadata__"].pop("vqt.header")),
    "47_overlap": build(*valid(), edit=offsets("offsets", 0, 32)),
    "48_hole": build(*valid(), edit=offsets("keys", 1000, 1005)),
    "49_negative_offset": build(*valid(), edit=offsets("key_offsets", -32, 0)),
    "49_offset_true": build(*valid(), edit=offsets("key_offsets", False, 32)),
    "49_offset_float": build(*valid(), edit=offsets("key_offsets", 0.0, 32)),
    "49_offset_reversed": build(*valid(), edit=offsets("key_offsets", 32, 0)),
    "50_shape_overflow": build(*valid(), edit=shape("tokens", [1 << 62, 1 << 62])),
    "50_shape_wraps_to_zero": build(*valid(), edit=shape("tokens", [1 << 32, 1 << 32, 0])),
    "50_shape_negative": build(*valid(), edit=shape("tokens", [-9])),
    "50_shape_1e12": build(*valid(), edit=shape("tokens", [10**12])),
    "50_shape_many": build(*valid(), edit=shape("tokens", [9] + [1] * 1000)),
    "50_shape_text": build(*valid(), edit=shape("tokens", "9")),
    "51_trailing_byte": GOOD + b"\0",
    "51_trailing_file": GOOD + GOOD,
    "52_unknown_dtype": changed(put("keys", list("abbé".encode()), "F8_E4M3"), crc=False),
    "52_dtype_null": build(*valid(), edit=lambda entries: entries["tokens"].update(dtype=None)),
    "52_entry_extra": build(*valid(), edit=lambda entries: entries["tokens"].update(stride=1)),
    "52_entry_number": build(*valid(), edit=lambda entries: entries.update(more=1)),
    **{f"53_missing_{name}": changed(drop(name), crc=False) for name in valid()[0]},
    "54_extra": changed(put("aux", [1], "U8")),
    "54_float_tokens": changed(put("tokens", TOKENS.ids, "F32")),
    "54_wide_tokens": changed(put("tokens", TOKENS.ids, "U32")),
    "54_tokens_2d": changed(put("tokens", TOKENS.ids.reshape(3, 3)), crc=False),
    "54_grid_flat": changed(put("grid", TOKENS.grids.ravel()), crc=False),
    "54_size_short": changed(put("size", TOKENS.sizes[:2])),
    "54_crc_short": changed(put("crc32", [1, 2]), crc=False),
    "54_keep_2d": changed(put("keep", [[1]], "U8")),
    "54_source_short": changed(put("source_sha256", np.zeros((3, 31)), "U8")),
    "55_offsets_fall": changed(put("offsets", [0, 6, 4, 9]), crc=False),
    "55_offsets_from_one": changed(put("offsets", [1, 4, 6, 9]), crc=False),
    "55_offsets_empty": changed(put("offsets", []), crc=False),
    "55_key_offsets_fall": changed(put("key_offsets", [0, 3, 1, 5]), crc=False),
    "55_key_offsets_wrap": changed(put("key_offsets", [0, (1 << 64) - 1, 3, 5]), crc=False),
    "56_offsets_past_end": changed(put("offsets", [0, 4, 6, 10]), crc=False),
    "56_offsets_before_end": changed(put("offsets", [0, 4, 6, 8]), crc=False),
    "56_key_offsets_past_end": changed(put("key_offsets", [0, 1, 3, 6]), crc=False),
    "57_token_not_below_vocab_size": changed(say(vocab_size=99)),
    "57_vocab_size_zero": changed(say(vocab_size=0)),
    "57_vocab_size_true": changed(say(vocab_size=True)),
    "57_vocab_size_huge": changed(say(vocab_size=1 << 70)),
    "58_crc": changed(put("crc32", [*crc32(valid()[0])[:2], 1]), crc=False),
    "58_crc_of_swapped_tokens": changed(put("tokens", [1, 0, *TOKENS.ids[2:]]), crc=False),
    "58_crc_of_another_key": changed(put("keys", list("abcé".encode())), crc=False),
    "58_crc_of_a_turned_grid": changed(put("grid", [[1, 2, 2], [2, 1, 1], [1, 3, 1]]), crc=False),
    "59_sha_absent": build(*valid(), sign=False),
    "59_sha_wrong": build(*valid(), sign=False, extra={"vqt.sha256": "0" * 64}),
    "60_duplicate_keys": changed(put("keys", list(b"bbbbb"))),
    "60_duplicate_empty_keys": changed(put("key_offsets", [0, 0, 0, 5])),
    "60_invalid_utf8_key": changed(put("keys", list(b"abb\xc3("))),
    "60_surrogate_key": changed(
        lambda a, _: [put("keys", list(b"ab\xed\xa0\x80"))(a, _), put("key_offsets", [0, 1, 2, 5])(a, _)] and None
    ),
    "60_utf8_cut_by_offsets": changed(put("key_offsets", [0, 1, 4, 5])),
    "60_long_key": changed(
        lambda a, _: [put("keys", [97] * 5000)(a, _), put("key_offsets", [0, 1, 3, 5000])(a, _)] and None
    ),
    "61_flipped_version": GOOD.replace(b'"vqt.version":"1"', b'"vqt.version":"3"'),
    "counts_of_images_lie": changed(say(counts={"images": 2, "tokens": 9})),
    "counts_of_tokens_lie": changed(say(counts={"images": 3, "tokens": 8})),
    "counts_negative": changed(say(counts={"images": -1, "tokens": 9})),
    "counts_absent": changed(say(counts={})),
    "layout_lies": changed(say(layout="runs")),
    "layout_unknown": changed(say(layout="free")),
    "layout_of_keep": changed(put("keep", [0b11111111], "U8")),
    "keep_absent": changed(say(layout="runs")),
    "keep_empty": changed(keeping([])),
    "keep_long": changed(keeping([0b11111111, 0])),
    "keep_of_other_lengths": changed(keeping([0b11111110])),
    "grid_smaller_than_span": changed(put("grid", [[1, 2, 1], [2, 1, 1], [1, 1, 3]])),
    "grid_larger_than_span": changed(put("grid", [[1, 2, 3], [2, 1, 1], [1, 1, 3]])),
    "fingerprint_text": changed(say(fingerprints={"codebook": "", "model": "mine", "preprocess": ""})),
    "fingerprint_absent": changed(say(fingerprints={"codebook": "", "model": ""})),
    "fingerprint_number": changed(say(fingerprints={"codebook": "", "model": "", "preprocess": "", "job": 1})),
    "header_not_json": changed(lambda *_: "vocab_size=100"),
    "header_list": changed(lambda *_: "[]"),
    "header_spaced": changed(lambda *_: json.dumps(HEADER, sort_keys=True)),
    "header_unsorted": changed(lambda *_: json.dumps(dict(reversed(HEADER.items())), separators=(",", ":"))),
    "header_duplicate": changed(lambda *_: '{"vocab_size":1,' + canonical(HEADER)[1:]),
    "header_surrogate": changed(lambda *_: canonical(HEADER).replace('"execution":{}', '"execution":{"a":"\\ud800"}')),
    "header_1e400": changed(lambda *_: canonical(HEADER).replace('"execution":{}', '"execution":{"a":1e400}')),
    "not_canonical_padding": frame(TEXT + b" " * 8, DATA),
    "not_canonical_spaces": frame(TEXT.replace(b",", b", ", 1), DATA),
    "not_canonical_escape": frame(TEXT.replace(b"vqtok", b"\\u0076qtok", 1), DATA),
    "not_canonical_layout": build(*valid(), layout=lambda name: name),
    "zip": archive(),
    "pickle": pickle.dumps({"tokens": [1, 2]}),
    "text": b"tokens tokens tokens",
    "zeros": bytes(1000),
}


def test_the_independent_writer_agrees_with_ours():
    assert tokens_to_bytes(TOKENS) == GOOD
    assert tokens_from_bytes(GOOD).keys == TOKENS.keys


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_file_is_refused(kind, tmp_path):
    path = tmp_path / "a.vqt"
    path.write_bytes(KINDS[kind])
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="expected") as caught:
            load_tokens(path)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    for read in (read_header, lambda _: tokens_from_bytes(KINDS[kind])):
        with pytest.raises(IntegrityError, match="expected"):
            read(path)


@pytest.mark.parametrize("version", ["2", "0", "abc", "", "1.1"])
def test_intact_file_of_another_version_is_a_mismatch(version):
    with pytest.raises(MismatchError, match="expected token file version 1"):
        tokens_from_bytes(build(*valid(), version=version))


def test_intact_file_of_a_later_version_may_hold_anything_else():
    data = changed(drop("grid"), crc=False, version="2", extra={"vqt.more": "x"})
    with pytest.raises(MismatchError):
        tokens_from_bytes(data)


def test_unknown_fields_of_the_header_are_ignored():
    assert tokens_from_bytes(changed(say(margin={"tau": 1e-5}))).keys == TOKENS.keys


def test_unsorted_keys_are_fine():
    assert tokens_from_bytes(changed(put("keys", list("zbbé".encode())))).keys == ("z", "bb", "é")


def test_every_flipped_bit_is_found():
    """All of them, which is more than 2,000."""
    assert len(GOOD) * 8 > 2000
    for position in range(len(GOOD) * 8):
        data = bytearray(GOOD)
        data[position // 8] ^= 1 << position % 8
        with pytest.raises(IntegrityError):
            tokens_from_bytes(data)


def test_flipped_bits_of_optional_tensors_are_found():
    kept = replace(TOKENS, keep=np.ones(8, np.bool_))
    good = tokens_to_bytes(kept, source_sha256=np.ones((3, 32), np.uint8))
    rng = np.random.default_rng(7)
    for position in rng.choice(len(good) * 8, 2000, replace=False).tolist():
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        with pytest.raises(IntegrityError):
            tokens_from_bytes(data)


def test_every_truncation_is_found():
    for size in range(len(GOOD)):
        with pytest.raises(IntegrityError):
            tokens_from_bytes(GOOD[:size])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_spliced_files_are_refused_or_equal(data):
    """Cut, doubled and moved pieces: never another error, never another content."""
    first, last = sorted(data.draw(st.tuples(st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))))
    at = data.draw(st.integers(0, len(GOOD)))
    piece = data.draw(st.sampled_from([GOOD[first:last], b"", bytes(last - first)]))
    mutant = GOOD[:at] + piece + GOOD[at + data.draw(st.sampled_from([0, len(piece)])) :]
    if mutant == GOOD:
        assert tokens_from_bytes(mutant).keys == TOKENS.keys
        return
    with pytest.raises(IntegrityError):
        tokens_from_bytes(mutant)
