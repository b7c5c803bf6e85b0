"""Fingerprints depend on what decides an outcome, and on nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtok.errors import ConfigError
from vqtok.store import canonical_json, codebook_fingerprint, mapping_fingerprint, model_fingerprint
from vqtok.store.canonical import strict_json

A = np.arange(6, dtype=np.float32).reshape(2, 3)
CONFIG = {"name": "vqgan", "channels": [64, 128], "dropout": 0.0}


def test_fingerprints_are_fixed_for_ever():
    """Tokens on disk carry them: a change here orphans every file ever written."""
    assert mapping_fingerprint({"size": 256, "é": [None, True, 0.1]}) == (
        "7fc30262ce7a74aeb4ee6e711785a2c6f9bd0d3b1fd05801840f1ab10e31357c"
    )
    assert codebook_fingerprint(A, "l2") == "ff5995e26c41885c652bcadaea1bd0abc8bbbfe3e0733930a0b3157dd2dc2d54"
    assert model_fingerprint(CONFIG, {"b": A[0], "a": A.astype(np.float16)}) == (
        "e561d806e3f91f832912c5245ec1af528e0ed0aeb8da15c915ad2d32c9989468"
    )


def test_order_and_memory_layout_do_not_matter():
    expected = model_fingerprint(CONFIG, {"a": A, "b": A[0]})
    assert model_fingerprint(dict(reversed(CONFIG.items())), {"b": A[0], "a": A}) == expected
    assert model_fingerprint(CONFIG, {"a": np.asfortranarray(A), "b": np.repeat(A[0], 2)[::2]}) == expected
    assert model_fingerprint(CONFIG, {"a": A.astype(">f4"), "b": A[0]}) == expected


def test_everything_else_matters():
    flipped = A.copy()
    flipped.view(np.uint8)[1, 3] ^= 1
    prints = [
        model_fingerprint(CONFIG, {"a": A, "b": A[0]}),
        model_fingerprint({**CONFIG, "dropout": 0}, {"a": A, "b": A[0]}),
        model_fingerprint(CONFIG, {"a": A}),
        model_fingerprint(CONFIG, {"a": A, "c": A[0]}),
        model_fingerprint(CONFIG, {"a": flipped, "b": A[0]}),
        model_fingerprint(CONFIG, {"a": A.reshape(3, 2), "b": A[0]}),
        model_fingerprint(CONFIG, {"a": A.astype(np.float64), "b": A[0]}),
        model_fingerprint(CONFIG, {"a": A.view(np.int32), "b": A[0]}),
        model_fingerprint(CONFIG, {"a": A, "b": A[0], "c": A[:0]}),
        codebook_fingerprint(A, "l2"),
        codebook_fingerprint(A, "cosine"),
        codebook_fingerprint(A.reshape(3, 2), "l2"),
        mapping_fingerprint(CONFIG),
        mapping_fingerprint({"metric": "l2"}),
    ]
    for a, b in itertools.combinations(range(len(prints)), 2):
        assert prints[a] != prints[b], (a, b)


def test_what_has_no_one_meaning_is_refused():
    for value in ({1: 2}, {"x": {1, 2}}, {"x": b""}, {"x": float("inf")}, {"x": "\ud800"}, {"x": A}):
        with pytest.raises(ConfigError, match="expected"):
            mapping_fingerprint(value)
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ConfigError, match="deep"):
        mapping_fingerprint({"x": deep})
    with pytest.raises(ConfigError, match=r"\[K, D\]"):
        codebook_fingerprint(A[0], "l2")
    with pytest.raises(ConfigError, match="got <U4"):
        model_fingerprint({}, {"a": np.array(["text"])})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=100, deadline=None)
def test_canonical_json_is_read_back_and_is_its_own_canonical_form(value):
    text = canonical_json(value)
    assert strict_json(text.encode()) == value
    assert canonical_json(strict_json(text.encode())) == text
