"""Laws of `Tokenizer`: what people hold equals what tensors say, whatever the batch, the order and the neighbours."""

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from vqtok import images, streaming
from vqtok.errors import ConfigError, ImageError, InputError, MismatchError, OutputError, ResourceError
from vqtok.tokenizer import Tokenizer
from vqtok.types import TokenGrid, Tokens


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    torch.manual_seed(1)
    return vqtok.build("photo-f8", vocab_size=64, channels=(16, 16, 32)).eval()


@pytest.fixture(scope="module")
def tiny_vqgan() -> Tokenizer:
    torch.manual_seed(1)
    options = {"vocab_size": 64, "channels": 32, "multipliers": (1, 1, 1, 1), "residual_blocks": 1}
    return vqtok.build("vqgan-f8-16384", **options).eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours and noise, so that codes differ."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (37, 50), (8, 8), (1, 1), (256, 256), (1, 70)])
@pytest.mark.parametrize("name", ["tiny", "tiny_vqgan"])
def test_detokenize_of_tokenize_is_decode_of_encode_bit_for_bit(name, size, request):
    tokenizer = request.getfixturevalue(name)
    array = picture(*size)
    tokens = tokenizer.tokenize(array)
    pixels = tokenizer.decode(tokenizer.encode(tokenizer.preprocess(array)))
    expected = images.from_pixels(pixels[0].numpy(), tokenizer.spec, size)
    assert np.array_equal(np.asarray(tokenizer.detokenize(tokens)[0]), expected)
    assert tokens.sizes.tolist() == [[*size]]


@pytest.mark.parametrize("name", ["tiny", "tiny_vqgan", "photo_f8"])
def test_tokens_do_not_depend_on_batch_size_order_or_neighbours(name, request):
    tokenizer = request.getfixturevalue(name)
    arrays = [picture(64, 64, seed) for seed in range(8)]
    alone = [tokenizer.tokenize(array).ids for array in arrays]
    for batch in (1, 3, 8):
        for start in range(0, 8, batch):
            together = tokenizer.tokenize(arrays[start : start + batch]).sequences()
            for i, ids in enumerate(together):
                assert np.array_equal(ids, alone[start + i]), (batch, start + i)
    order = [5, 0, 7, 2, 6, 1, 4, 3]
    mixed = tokenizer.tokenize([arrays[i] for i in order] + [picture(48, 80), picture(17, 9)]).sequences()
    for i, ids in zip(order, mixed[:8], strict=True):
        assert np.array_equal(ids, alone[i]), i


@pytest.mark.parametrize("name", ["tiny", "photo_f8"])
def test_encode_and_decode_do_not_depend_on_the_batch(name, request):
    tokenizer = request.getfixturevalue(name)
    pixels = torch.cat([tokenizer.preprocess(picture(40, 56, seed)) for seed in range(5)])
    ids = tokenizer.encode(pixels).ids
    decoded = tokenizer.decode(TokenGrid(ids, tokenizer.vocab_size))
    for i in range(5):
        assert torch.equal(tokenizer.encode(pixels[i : i + 1]).ids[0], ids[i])
        assert torch.equal(tokenizer.decode(TokenGrid(ids[i : i + 1], tokenizer.vocab_size))[0], decoded[i])
    assert tokenizer.encode(pixels[:0]).ids.shape == (0, 5, 7)
    assert tokenizer.decode(TokenGrid(ids[:0], tokenizer.vocab_size)).shape == (0, 3, 40, 56)


def test_every_kind_of_source_gives_the_same_tokens(tiny, tmp_path):
    array = picture(30, 44)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    sources = [array, path, str(path), path.read_bytes(), Image.fromarray(array)]
    tokens = tiny.tokenize(sources)
    assert all(np.array_equal(row, tokens.sequences()[0]) for row in tokens.sequences())
    assert tokens.keys == ("0", str(path), f"{path}#2", "3", "4")
    for source in sources:
        assert np.array_equal(tiny.tokenize(source).ids, tokens.sequences()[0])


def test_a_bad_image_is_named(tiny, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        tiny.tokenize([picture(8, 8), path])


def test_forward_trains_every_weight(tiny):
    tokenizer = vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).train()
    reconstruction = tokenizer(torch.randn(2, 3, 32, 32))
    (reconstruction.pixels.square().mean() + reconstruction.quantized.losses["commitment"]).backward()
    assert [name for name, x in tokenizer.named_parameters() if x.grad is None or not x.grad.any()] == []


def test_a_saved_model_is_the_same_model(tiny, tmp_path):
    tiny.save(tmp_path / "m")
    again = vqtok.load(tmp_path / "m")
    array = picture(50, 60)
    assert again.fingerprint == tiny.fingerprint
    assert np.array_equal(again.tokenize(array).ids, tiny.tokenize(array).ids)
    again.save(tmp_path / "n")
    assert (tmp_path / "m/model.safetensors").read_bytes() == (tmp_path / "n/model.safetensors").read_bytes()
    assert (tmp_path / "m/config.json").read_bytes() == (tmp_path / "n/config.json").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        tiny.save(tmp_path / "m")


def test_a_loaded_model_trains_on_from_its_codebook(tiny, tmp_path):
    tiny.save(tmp_path / "m")
    tokenizer = vqtok.load(tmp_path / "m").train()
    before = tokenizer.quantizer.codebook
    tokenizer(torch.randn(2, 3, 32, 32))
    cosine = torch.nn.functional.cosine_similarity(tokenizer.quantizer.codebook, before)
    assert cosine.median() > 0.999, "the codebook started anew instead of going on"


def test_the_fingerprint_follows_every_weight_and_nothing_else(tiny):
    tokenizer = vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).eval()
    first = tokenizer.fingerprint
    tokenizer(torch.randn(1, 3, 16, 16))
    tokenizer.to(memory_format=torch.channels_last)
    assert tokenizer.fingerprint == first
    for tensor in (tokenizer.encoder.conv_out.bias, tokenizer.quantizer.codebook):
        with torch.no_grad():
            tensor[0] += 1e-3
        assert tokenizer.fingerprint != first
        first = tokenizer.fingerprint


def test_the_fingerprint_follows_a_codebook_that_is_replaced(tiny):
    """Each step of training makes a new codebook, often at the address of an older one."""
    tokenizer = vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).eval()
    seen = set()
    for i in range(20):
        for shift in (7.0, i):
            tokenizer.quantizer.codebook = torch.full((16, 8), 1.0) + shift * torch.eye(16, 8)
        seen.add(tokenizer.fingerprint)
    assert len(seen) == 20


def test_a_model_loaded_in_inference_mode_works_and_has_the_same_fingerprint(tiny, tmp_path):
    tiny.save(tmp_path / "m")
    with torch.inference_mode():
        tokenizer = vqtok.load(tmp_path / "m")
        tokens = tokenizer.tokenize(picture(16, 24))
        assert tokens.fingerprint == tiny.fingerprint
        tokenizer.quantizer.codebook[0] += 1
        assert tokenizer.fingerprint != tiny.fingerprint


def test_what_tokens_hand_out_is_theirs_alone(tiny):
    tokens = tiny.tokenize([picture(16, 24), picture(8, 8)])
    first = tokens[0]
    first.grids[:], first.sizes[:], first.ids[:] = 0, 0, 0
    tokens.record["fingerprints"]["model"] = ""
    again = tiny.tokenize([picture(16, 24), picture(8, 8)])
    assert np.array_equal(tokens.grids, again.grids)
    assert np.array_equal(tokens.sizes, again.sizes)
    assert np.array_equal(tokens.ids, again.ids)
    assert again.record["fingerprints"]["model"] == tiny.fingerprint


def test_images_of_many_sizes_do_not_pile_up(tiny, monkeypatch):
    arrays = [picture(8 * h, 8 * w) for h in range(1, 7) for w in range(1, 7)]
    monkeypatch.setattr(streaming, "WAITING", 8000)
    read = 0

    def source():
        nonlocal read
        for i, array in enumerate(arrays):
            read += array.shape[0] * array.shape[1]
            yield str(i), array

    done, most = {}, 0
    for row in streaming.tokenize(tiny, source()):
        most = max(most, read - sum(int(x.sizes.prod()) for x in done.values()))
        done[row.keys[0]] = row
    assert most <= 8000 + 48 * 48
    for i, array in enumerate(arrays):
        assert np.array_equal(done[str(i)].ids, tiny.tokenize(array).ids), array.shape


def test_a_callers_autocast_does_not_reach_the_tokens(tiny):
    array = picture(64, 64)
    plain = tiny.tokenize(array)
    with torch.autocast("cpu", torch.bfloat16):
        inside = tiny.tokenize(array)
        image = tiny.detokenize(plain)[0]
    assert np.array_equal(inside.ids, plain.ids)
    assert np.array_equal(np.asarray(image), np.asarray(tiny.detokenize(plain)[0]))


def test_keys_are_text_that_files_can_carry_and_never_come_twice(tiny, tmp_path):
    Image.fromarray(picture(8, 8)).save(name := tmp_path / "\udcff.png")
    tokens = tiny.tokenize([name, name, name])
    vqtok.save_tokens(tmp_path / "a.vqt", tokens)
    assert [key[len(str(tmp_path)) :] for key in tokens.keys] == ["/\\xff.png", "/\\xff.png#2", "/\\xff.png#3"]
    assert streaming.unique_keys(["a#2", "a", "a", "a"]) == ("a#2", "a", "a#3", "a#4")


def test_tokens_of_another_model_are_refused(tiny, tiny_vqgan):
    tokens = tiny.tokenize(picture(16, 16))
    with pytest.raises(MismatchError, match=tokens.fingerprint[:12]):
        tiny_vqgan.detokenize(tokens)
    stranger = Tokens(tokens.ids, tokens.offsets, tokens.grids, tokens.sizes, 64, tokens.keys, "")
    assert len(tiny_vqgan.detokenize(stranger)) == 1


def test_bfloat16_is_recorded(tiny, tmp_path):
    tiny.save(tmp_path / "m")
    fast = vqtok.load(tmp_path / "m", precision="bfloat16")
    vqtok.save_tokens(tmp_path / "a.vqt", fast.tokenize(picture(16, 16)))
    assert vqtok.load_tokens(tmp_path / "a.vqt").record["execution"]["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 20, 16), "multiples of 8, got 20 x 16"),
        ((1, 4, 16, 16), r"\[B, 3, H, W\]"),
        ((3, 16, 16), r"\[B, 3, H, W\]"),
        ((1, 3, 0, 16), "multiples of 8"),
    ],
)
def test_pixels_of_a_wrong_shape_are_refused(tiny, shape, words):
    with pytest.raises(ConfigError, match=words):
        tiny.encode(torch.zeros(shape))


def test_ids_outside_the_vocabulary_are_refused(tiny):
    for ids in (torch.full((1, 2, 2), 64), torch.full((1, 2, 2), -1)):
        with pytest.raises(ConfigError, match=r"0\.\.63"):
            tiny.decode(TokenGrid(ids, 64))
    with pytest.raises(MismatchError, match="vocabulary of 64, got 65"):
        tiny.decode(TokenGrid(torch.zeros(1, 2, 2, dtype=torch.int64), 65))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: vqtok.build("photo-f9"), ConfigError, "did you mean 'photo-f8'"),
        (lambda: vqtok.build("photo-f8", vocab_sise=3), ConfigError, "did you mean 'vocab_size'"),
        (lambda: vqtok.build("photo-f8", vocab_size="8"), ConfigError, "vocab_size"),
        (lambda: vqtok.build("photo-f8", vocab_size=0), ConfigError, "greater than or equal to 1"),
        (lambda: vqtok.load().tokenize(None), ConfigError, "got NoneType"),
        (lambda: vqtok.load().save("never", dtype="int8"), ConfigError, "float32, float16"),
        (lambda: vqtok.load(device=None), ResourceError, "None"),
        (lambda: vqtok.build("photo-f8", vocab_size=1 << 62), ConfigError, "less than or equal to"),
        (lambda: vqtok.build("photo-f8", residual_blocks=(10**9, 0, 0)), ConfigError, "less than or equal to"),
        (lambda: vqtok.build("vqgan-f8-16384", multipliers=(1,) * 99), ConfigError, "at most 16"),
        (lambda: vqtok.load().encode(np.zeros((1, 3, 8, 8), np.float32)), ConfigError, "tensor of pixels"),
        (lambda: vqtok.load().decode(TokenGrid(torch.zeros(1, 2, 2), 8192)), ConfigError, "int64"),
        (lambda: vqtok.load().decode(TokenGrid(torch.zeros(1, 0, 2).long(), 8192)), ConfigError, r"\[1, 0, 2\]"),
        (lambda: vqtok.build("photo-f8", channels=(8, 8)), ConfigError, "one length"),
        (lambda: vqtok.build("photo-f8", channels=(8, 8), residual_blocks=(1, 1)), ConfigError, "one factor"),
        (lambda: vqtok.load("/nowhere"), InputError, "nowhere"),
        (lambda: vqtok.load(device="cuda:99"), ResourceError, "cuda:99"),
        (lambda: vqtok.load(device="toaster"), ResourceError, "toaster"),
        (lambda: vqtok.load(precision="float8"), ConfigError, "float32, bfloat16"),
    ],
)
def test_errors_say_what_was_expected(call, error, words):
    with pytest.raises(error, match=words):
        call()
