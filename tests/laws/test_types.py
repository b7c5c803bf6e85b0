"""Laws of `Tokens`."""

import numpy as np
import pytest

from vqtok.errors import ConfigError
from vqtok.types import Tokens


def ragged() -> Tokens:
    return Tokens(
        ids=np.arange(4 + 6 + 2),
        offsets=np.array([0, 4, 10, 12]),
        grids=np.array([[1, 2, 2], [1, 2, 3], [1, 1, 2]]),
        sizes=np.array([[16, 16], [16, 20], [5, 16]]),
        vocab_size=16,
        keys=("a", "b", "c"),
        fingerprint="f",
    )


def test_rows_and_slices_are_tokens_again():
    tokens = ragged()
    assert len(tokens) == 3
    assert tokens[1].ids.tolist() == [4, 5, 6, 7, 8, 9]
    assert tokens[-1].keys == ("c",)
    assert tokens[::2].ids.tolist() == [0, 1, 2, 3, 10, 11]
    assert tokens[::-1].keys == ("c", "b", "a")
    assert tokens[3:].keys == ()
    assert [row.sizes.tolist() for row in tokens] == [[[16, 16]], [[16, 20]], [[5, 16]]]
    assert tokens[1:].offsets.tolist() == [0, 6, 8]
    with pytest.raises(IndexError):
        tokens[3]


def test_sequences_add_the_offset_and_leave_ids_alone():
    tokens = ragged()
    assert [x.tolist() for x in tokens.sequences(offset=32000)] == [
        [32000, 32001, 32002, 32003],
        [32004, 32005, 32006, 32007, 32008, 32009],
        [32010, 32011],
    ]
    assert tokens.ids[0] == 0


def test_equal_grids_make_one_array_and_others_say_so():
    tokens = ragged()
    assert np.asarray(tokens[1]).tolist() == [[[4, 5, 6], [7, 8, 9]]]
    assert np.asarray(tokens[1], dtype=np.int32).dtype == np.int32
    with pytest.raises(ConfigError, match="sequences"):
        np.asarray(tokens)
    deep = Tokens(np.arange(8), np.array([0, 8]), np.array([[2, 2, 2]]), np.array([[16, 16]]), 16, ("a",), "")
    assert np.asarray(deep).shape == (1, 2, 2, 2)
    assert np.asarray(deep)[0, 0, 1].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offsets": np.array([0, 4, 10])}, "offsets"),
        ({"offsets": np.array([1, 4, 10, 12])}, "start at 0"),
        ({"offsets": np.array([0, 11, 10, 12])}, "never fall"),
        ({"grids": np.zeros((2, 3), int)}, "grids"),
        ({"sizes": np.zeros((3, 3), int)}, "sizes"),
        ({"ids": np.arange(11)}, "ids"),
        ({"ids": np.arange(12) / 2}, "integer arrays, got ids float64"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(change, words):
    fields = {name: getattr(ragged(), name) for name in Tokens.__dataclass_fields__}
    with pytest.raises(ConfigError, match=words):
        Tokens(**fields | change)
