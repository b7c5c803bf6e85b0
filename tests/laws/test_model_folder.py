"""Model folders give back the model that was written, in the same bytes each time."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from vqtok.errors import ConfigError, InputError, OutputError
from vqtok.store import model_fingerprint, read_config, read_weights, write_model

CONFIG = {"architecture": "vqgan", "channels": [32, 64], "licence": "MIT", "note": "é", "dropout": 0.0}
RNG = np.random.default_rng(0)
TENSORS = {
    "encoder.conv.weight": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "encoder.conv.bias": np.zeros(4, np.float32),
    "quantizer.codebook": RNG.normal(size=(8, 4)).astype(np.float32),
    "scale": np.array(0.5, np.float32),
    "none": np.zeros((0, 4), np.float32),
}
SHAPES = {name: array.shape for name, array in TENSORS.items()}


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_round_trip_is_exact(tmp_path):
    write_model(tmp_path / "m", CONFIG, TENSORS)
    config = read_config(tmp_path / "m")
    assert set(config.pop("weights")) == {"dtype", "sha256"}
    assert config == CONFIG
    came = read_weights(tmp_path / "m", SHAPES)
    assert list(came) == list(SHAPES)
    for name, array in came.items():
        assert same_bits(array, TENSORS[name]), name
        assert array.flags.writeable, name
        assert array.flags.aligned, name
    assert model_fingerprint(CONFIG, came) == model_fingerprint(CONFIG, TENSORS)


@pytest.mark.parametrize(("dtype", "tolerance"), [("F16", 2**-11), ("BF16", 2**-8)])
def test_half_precision_rounds_to_nearest_once(dtype, tolerance, tmp_path):
    write_model(tmp_path / "a", CONFIG, TENSORS, dtype=dtype)
    came = read_weights(tmp_path / "a", SHAPES)
    for name, array in came.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, TENSORS[name], rtol=tolerance)
    write_model(tmp_path / "b", CONFIG, came, dtype=dtype)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_bfloat16_agrees_with_torch(values):
    torch = pytest.importorskip("torch")
    from vqtok.store.model_folder import _from_bfloat16, _narrow

    array = np.array(values, np.float32)
    came = _from_bfloat16(_narrow("x", array, "BF16"))
    np.testing.assert_array_equal(came, torch.tensor(array).bfloat16().float().numpy())


def test_equal_content_gives_equal_bytes(tmp_path):
    write_model(tmp_path / "a", CONFIG, TENSORS)
    turned = {name: np.asfortranarray(array).astype(np.float64) for name, array in reversed(TENSORS.items())}
    turned["scale"] = TENSORS["scale"]
    write_model(tmp_path / "b", {**dict(reversed(CONFIG.items())), "weights": "stale"}, turned)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_any_safetensors_reader_opens_the_weights_and_any_json_reader_the_config(tmp_path):
    write_model(tmp_path / "m", CONFIG, TENSORS)
    came = load_file(tmp_path / "m" / "model.safetensors")
    assert all(same_bits(came[name], array) for name, array in TENSORS.items())
    text = (tmp_path / "m" / "config.json").read_text(encoding="utf-8")
    assert json.loads(text)["note"] == "é"
    assert text.endswith("}\n")


def test_torch_opens_weights_of_every_dtype(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    for dtype, expected in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        write_model(tmp_path / dtype, CONFIG, TENSORS, dtype=dtype)
        ours = read_weights(tmp_path / dtype, SHAPES)
        for name, tensor in load_torch(tmp_path / dtype / "model.safetensors").items():
            assert tensor.dtype == expected
            np.testing.assert_array_equal(tensor.float().numpy(), ours[name])


def test_existing_model_is_kept_unless_overwritten(tmp_path):
    folder = tmp_path / "m"
    write_model(folder, CONFIG, TENSORS)
    with pytest.raises(OutputError, match="exists already"):
        write_model(folder, {}, TENSORS)
    assert read_config(folder)["note"] == "é"
    write_model(folder, {"new": True}, {}, overwrite=True)
    assert read_config(folder)["new"] is True
    assert read_weights(folder, {}) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_loading_ten_megabytes_of_float16_is_quick(tmp_path):
    tensors = {f"w{i}": RNG.normal(size=(500, 500)).astype(np.float32) for i in range(20)}
    write_model(tmp_path / "m", {}, tensors, dtype="F16")
    times = []
    for _ in range(10):
        start = time.process_time()  # the machine may have other work at hand
        read_weights(tmp_path / "m", {name: (500, 500) for name in tensors})
        times.append(time.process_time() - start)
    assert min(times) < 0.06, times


BAD_MODELS = {
    "nan": ({}, {"w": np.array([np.nan])}),
    "infinite": ({}, {"w": np.array([np.inf])}),
    "integers": ({}, {"w": np.array([1])}),
    "reserved_name": ({}, {"__metadata__": np.array([1.0])}),
    "surrogate_name": ({}, {"\ud800": np.array([1.0])}),
    "config_nan": ({"x": float("nan")}, {}),
    "config_object": ({"x": np.float32}, {}),
    "config_long": ({"x": "y" * (1 << 20)}, {}),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_cannot_be_kept_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="expected"):
        write_model(tmp_path / "m", *BAD_MODELS[name])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_weights_beyond_the_stored_range_are_refused(dtype, tmp_path):
    with pytest.raises(ConfigError, match="'w' to be finite"):
        write_model(tmp_path / "m", {}, {"w": np.array([np.finfo(np.float32).max])}, dtype=dtype)


def test_missing_model_is_an_input_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"{}")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("missing", "empty", "file", "dangling", "a\0b"):
        with pytest.raises(InputError, match="configuration"):
            read_config(tmp_path / name)
        with pytest.raises(InputError, match="configuration"):
            read_weights(tmp_path / name, {})
    write_model(tmp_path / "m", CONFIG, TENSORS)
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="weights"):
        read_weights(tmp_path / "m", SHAPES)


def test_links_are_followed(tmp_path):
    write_model(tmp_path / "m", CONFIG, TENSORS)
    (tmp_path / "cache").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "cache" / name).symlink_to(tmp_path / "m" / name)
    (tmp_path / "link").symlink_to("cache")
    assert set(read_weights(tmp_path / "link", SHAPES)) == set(SHAPES)
