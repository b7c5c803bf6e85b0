"""Layouts of published checkpoints in sizes that no case has: written out, opened, exported, trained, refused.

Odd widths, stacks of no or eleven blocks, decoders of their own width: what a publisher's class can be made with.
"""

import pytest
import torch
from torch.nn import functional as F

import vqtok
from vqtok import adapters
from vqtok.adapters import FAMILIES
from vqtok.adapters.family import Tensors
from vqtok.adapters.rules import apply, invert
from vqtok.errors import ConfigError, InputError, MismatchError


def publishers_vqvae2(channels, blocks, inner, dim, codes, seed=0):
    """A state dict as rosinality's class of these sizes has it: names and shapes written out, numbers at random."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {}

    def layer(name, out, into, kernel, transposed=False):
        shapes[f"{name}.weight"] = (into, out, kernel, kernel) if transposed else (out, into, kernel, kernel)
        shapes[f"{name}.bias"] = (out,)

    def stack(name, first):
        for i in range(first, first + blocks):
            layer(f"{name}.{i}.conv.1", inner, channels, 3)
            layer(f"{name}.{i}.conv.3", channels, inner, 1)

    half = channels // 2
    layer("enc_b.blocks.0", half, 3, 4)
    layer("enc_b.blocks.2", channels, half, 4)
    layer("enc_b.blocks.4", channels, channels, 3)
    stack("enc_b.blocks", 5)
    layer("enc_t.blocks.0", half, channels, 4)
    layer("enc_t.blocks.2", channels, half, 3)
    stack("enc_t.blocks", 3)
    layer("quantize_conv_t", dim, channels, 1)
    layer("dec_t.blocks.0", channels, dim, 3)
    stack("dec_t.blocks", 1)
    layer(f"dec_t.blocks.{blocks + 2}", dim, channels, 4, transposed=True)
    layer("quantize_conv_b", dim, dim + channels, 1)
    layer("upsample_t", dim, dim, 4, transposed=True)
    layer("dec.blocks.0", channels, 2 * dim, 3)
    stack("dec.blocks", 1)
    layer(f"dec.blocks.{blocks + 2}", half, channels, 4, transposed=True)
    layer(f"dec.blocks.{blocks + 4}", 3, half, 4, transposed=True)
    shapes |= {f"quantize_{x}.{name}": (dim, codes) for x in "tb" for name in ("embed", "embed_avg")}
    shapes |= {f"quantize_{x}.cluster_size": (codes,) for x in "tb"}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


# Twelve blocks: numbers of two digits, and a layer behind the stack whose number is a block's elsewhere.
@pytest.mark.parametrize("sizes", [(7, 12, 3, 5, 9), (4, 0, 32, 6, 6), (8, 1, 8, 8, 16)], ids=str)
def test_vqvae2_of_other_sizes_is_opened_goes_back_and_learns_on(sizes, tmp_path):
    state = publishers_vqvae2(*sizes)
    torch.save({f"module.{name}": x for name, x in state.items()}, tmp_path / "vqvae.pt")
    tokenizer = vqtok.load(tmp_path / "vqvae.pt")
    exported = adapters.export(tokenizer.inference_tensors(), "vqvae2")
    assert exported.keys() == {name for name in state if not name.endswith(("cluster_size", "embed_avg"))}
    assert all(torch.equal(exported[name], state[name]) for name in exported)
    words = dict(zip(("channel", "n_res_block", "n_res_channel", "embed_dim", "n_embed"), sizes, strict=True))
    said = vqtok.load(tmp_path / "vqvae.pt", config={"in_channel": 3, "decay": 0.9, **words})
    assert said.card.architecture.quantizer.decay == 0.9
    with pytest.raises(MismatchError, match="channels is 6"):
        vqtok.load(tmp_path / "vqvae.pt", config={**words, "channel": 6})
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = tokenizer.levels.top.codebook.clone()
    out = tokenizer.train()(image)
    (out.pixels.sub(image).square().mean() + out.quantized.losses["commitment"]).backward()
    assert all(bool(x.grad.any()) for name, x in tokenizer.network.named_parameters() if name.endswith("weight"))
    used = torch.unique(out.quantized.codes[..., 0])
    assert not torch.equal(tokenizer.levels.top.codebook[used], before[used])


def test_vqvae2_with_a_codebook_the_other_way_round_or_other_pixels_is_refused(tmp_path):
    state = publishers_vqvae2(8, 1, 8, 5, 9)
    state["quantize_t.embed"] = state["quantize_t.embed"].T.contiguous()
    torch.save(state, tmp_path / "turned.pt")
    with pytest.raises(MismatchError, match="transposed"):
        vqtok.load(tmp_path / "turned.pt")
    state = publishers_vqvae2(8, 1, 8, 5, 9)
    state["enc_b.blocks.0.weight"] = state["enc_b.blocks.0.weight"][:, :1].clone()
    state["stranger"] = state.pop("upsample_t.bias")
    torch.save(state, tmp_path / "grey.pt")
    with pytest.raises(MismatchError, match=r"(?s)missing 'upsample_t.bias'.*left over 'stranger'.*\(4, 1, 4, 4\)"):
        vqtok.load(tmp_path / "grey.pt")


class Lavit:
    """Three state dicts as LaVIT's classes have them; each of eva, tok and dec is width, depth and hidden width."""

    def __init__(self, eva, tok, dec, patch, size, codes, dim, features):
        self.generator = torch.Generator().manual_seed(0)
        patches, width = (size // patch) ** 2, eva[0]
        self.eva = {"cls_token": self.fresh(1, 1, width), "pos_embed": self.fresh(1, 1 + patches, width)}
        self.eva |= {"patch_embed.proj.weight": self.fresh(width, 3, patch, patch)}
        self.eva |= {"patch_embed.proj.bias": self.fresh(width)}
        self.eva |= self.norm("norm", width) | self.linear("head", 7, width) | self.blocks("blocks", *eva, "attn")
        self.tok = self.norm("token_predictor.in_conv.0", width) | self.linear(
            "token_predictor.in_conv.1", width, width
        )
        for layer, to, into in ((0, width // 2, width), (2, width // 4, width // 2), (4, 2, width // 4)):
            self.tok |= self.linear(f"token_predictor.out_conv.{layer}", to, into)
        self.tok |= self.blocks("causal_encoder.blocks", *tok, "token_causal_attn", "token_cross_attn")
        self.tok |= self.norm("causal_encoder.ln_vision", width) | self.norm("causal_encoder.norm", width)
        self.tok |= self.linear("encode_task_layer.0", width, width) | self.linear("encode_task_layer.2", dim, width)
        self.tok |= {"quantize.embedding.weight": self.fresh(codes, dim)} | self.linear("vit_proj", 9, width)
        self.dec = {name: self.fresh(1, patches, dec[0]) for name in ("pos_embed", "query_embed")}
        self.dec |= self.linear("in_proj", dec[0], dim) | self.norm("norm", dec[0])
        self.dec |= self.blocks("blocks", *dec, "self_attn", "cross_attn") | self.linear("unet_proj", 3, features)
        self.dec |= self.linear("decode_task_layer.0", dec[0], dec[0])
        self.dec |= self.linear("decode_task_layer.2", features, dec[0])

    def fresh(self, *shape):
        return torch.randn(shape, generator=self.generator) * 0.2

    def linear(self, name, out, into):
        return {f"{name}.weight": self.fresh(out, into), f"{name}.bias": self.fresh(out)}

    def norm(self, name, width):
        return {f"{name}.weight": self.fresh(width), f"{name}.bias": self.fresh(width)}

    def blocks(self, name, width, depth, hidden, own, cross=""):
        found = {}
        for block in (f"{name}.{i}" for i in range(depth)):
            found |= self.linear(f"{block}.mlp.fc1", hidden, width) | self.linear(f"{block}.mlp.fc2", width, hidden)
            found |= self.linear(f"{block}.{own}.qkv", 3 * width, width) | self.linear(
                f"{block}.{own}.proj", width, width
            )
            for norm in ("norm0", "norm1", "norm2") if cross else ("norm1", "norm2"):
                found |= self.norm(f"{block}.{norm}", width)
            for part in ("query", "key", "value", "proj") if cross else ():
                found |= self.linear(f"{block}.{cross}.{part}", width, width)
            if not cross:  # EVA: no bias of keys
                del found[f"{block}.{own}.qkv.bias"]
                found |= {f"{block}.{own}.{part}_bias": self.fresh(width) for part in "qv"}
        return found

    def save(self, folder):
        folder.mkdir(parents=True)
        torch.save(self.eva, folder / "eva_vitg_psz14.bin")
        torch.save(self.tok, folder / "tokenizer_encoder.bin")
        torch.save(self.dec, folder / "tokenizer_decoder.bin")
        return folder

    def used(self):
        """What tokens and features depend on, behind the file's part."""
        whole = {f"{part}.{name}": x for part in ("eva", "tok", "dec") for name, x in getattr(self, part).items()}
        unused = ("eva.norm.", "eva.head.", "tok.vit_proj.", "dec.unet_proj.")
        return {name: x for name, x in whole.items() if not name.startswith(unused)}


# Eleven blocks: numbers of two digits. The decoder is of a width, depth and heads of its own.
LAVIT = {"eva": (24, 1, 31), "tok": (24, 11, 17), "dec": (20, 2, 40), "patch": 4, "size": 12, "codes": 30, "dim": 5}
SAID = {
    "eva": {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, "mlp_ratio": 1.3},
    "tok": {"img_size": 12, "width": 24, "layers": 11, "heads": 2, "n_code": 30, "code_dim": 5},
    "dec": {"in_chans": 5, "embed_dim": 20, "depth": 2, "num_heads": 5},
    "decoder_out_dim": 24,
}


def test_lavit_of_other_sizes_is_opened_and_goes_back(tmp_path):
    theirs = Lavit(**LAVIT, features=24)
    place = theirs.save(tmp_path / "low" / "visual_tokenizer")
    tokenizer = vqtok.load(tmp_path / "low", config=SAID)
    heads = tokenizer.features.blocks[0].attention.heads, tokenizer.merger.blocks[10].attention.heads
    assert (*heads, tokenizer.feature_decoder.blocks[1].cross_attention.heads) == (3, 2, 5)
    exported, used = adapters.export(tokenizer.inference_tensors(), "lavit_dynamic"), theirs.used()
    assert exported.keys() == used.keys()
    assert all(torch.equal(exported[name], used[name]) for name in used)
    for path in (place, place / "tokenizer_encoder.bin"):
        assert vqtok.load(path, config=SAID).fingerprint == tokenizer.fingerprint
    tokenizer.save(tmp_path / "model")
    assert vqtok.load(tmp_path / "model").fingerprint == tokenizer.fingerprint


def test_lavits_decoder_of_higher_resolution_is_meant_by_its_own_path_only(tmp_path):
    theirs = Lavit(**LAVIT, features=24)
    place = theirs.save(tmp_path / "visual_tokenizer")
    high = {name: x + 1 for name, x in theirs.dec.items() if not name.startswith("unet_proj")}
    high |= {"unet_proj_1.weight": torch.zeros(3, 24), "unet_attnpool.q_proj.weight": torch.zeros(24, 24)}
    torch.save(high, place / "highres_tokenizer_decoder.bin")
    for path, bias in {tmp_path: theirs.dec, place / "highres_tokenizer_decoder.bin": high}.items():
        decoder = vqtok.load(path, config=SAID).feature_decoder
        assert torch.equal(decoder.from_vectors.bias, bias["in_proj.bias"])


def test_lavits_decoder_may_give_features_of_a_width_of_their_own(tmp_path):
    place = Lavit(**LAVIT, features=16).save(tmp_path / "narrow")
    tokenizer = vqtok.load(place, config=SAID | {"decoder_out_dim": 16})
    runs = vqtok.TokenRuns(torch.tensor([3, 1, 4]), torch.tensor([1, 2]), 30)
    assert tokenizer.decode_features(runs).shape == (2, 9, 16)
    with pytest.raises(MismatchError, match="feature_width is 24"):
        vqtok.load(place, config=SAID)


def test_lavit_learns_on(tmp_path):
    tokenizer = vqtok.load(Lavit(**LAVIT, features=24).save(tmp_path / "it"), config=SAID).train()
    out = tokenizer(torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
    distance = (out.statistics["features"] - out.statistics["target"]).square().mean()
    (distance + out.quantized.losses["commitment"]).backward()
    learning = {name for name, x in tokenizer.named_parameters() if x.grad is not None and bool(x.grad.any())}
    assert {"selector.to_scores.weight", "merger.blocks.10.mlp.to_out.weight", "projection.to_out.weight"} <= learning
    assert {"feature_decoder.queries", "feature_decoder.positions"} <= learning
    assert not any(name.startswith("features.") for name in learning)


def test_lavit_without_its_heads_or_with_another_models_configuration_is_refused(tmp_path):
    place = Lavit(**LAVIT, features=24).save(tmp_path / "one")
    with pytest.raises(ConfigError, match="no tensor tells"):
        vqtok.load(place)
    wrong = SAID | {"tok": SAID["tok"] | {"n_code": 31}, "dec": SAID["dec"] | {"depth": 3}}
    with pytest.raises(MismatchError, match=r"tok.vocab_size is 31.*dec.depth is 3"):
        vqtok.load(place, config=wrong)
    with pytest.raises(ConfigError, match="heads of dec"):
        vqtok.load(place, config=SAID | {"dec": {"num_heads": 7}})


def test_lavit_of_its_published_width_needs_no_configuration():
    with torch.device("meta"):
        teacher = vqtok.build("lavit-dynamic")
    shapes = {name: tuple(x.shape) for name, x in teacher.inference_tensors().items()}
    theirs = {name: pair[0] for name, pair in invert(FAMILIES["lavit_dynamic"].rules, shapes).items()}
    changed_back = {"feature_decoder.positions", "feature_decoder.queries"}
    foreign = {theirs[name]: (1, *shape) if name in changed_back else shape for name, shape in shapes.items()}
    applied = apply(FAMILIES["lavit_dynamic"].rules, foreign)
    family = FAMILIES["lavit_dynamic"]
    described = family.architecture(Tensors(applied.tensors), {}, family.preprocess)
    assert described.model_copy(update={"preprocess": teacher.spec}) == teacher.card.architecture
    assert described.preprocess == teacher.spec.model_copy(update={"exif": "ignore", "alpha": "keep"})
    tensors = [name for name in foreign if name.startswith("tok.")]
    assert len(tensors) == 285 - 2  # and the linear layer into the language model, which is not ours


class Cosmos:
    """A state dict as Cosmos' class has it, and what it means, written out with the publisher's names in float64."""

    def __init__(self, channels, multipliers, blocks, z, levels, patch, halvings, haar=True, attended=((), ())):
        self.generator, self.state = torch.Generator().manual_seed(0), {}
        self.widths, self.blocks, self.patch, self.halvings = (
            [channels * m for m in multipliers],
            blocks,
            patch,
            halvings,
        )
        self.haar, self.attended, last = haar, attended, channels * multipliers[-1]
        self.conv("encoder.conv_in", channels, 3 * patch**2, 3)
        for i, (before, after) in enumerate(zip([channels, *self.widths], self.widths, strict=False)):
            self.level(f"encoder.down.{i}", before, after, blocks, i in attended[0])
            if i < halvings:
                self.conv(f"encoder.down.{i}.downsample.conv", after, after, 3)
        for i, (after, before) in enumerate(zip(self.widths, [*self.widths[1:], last], strict=True)):
            self.level(f"decoder.up.{i}", before, after, blocks + 1, i in attended[1])
            if i >= len(self.widths) - halvings:
                self.conv(f"decoder.up.{i}.upsample.conv", after, after, 3)
        for net, end in (("encoder", last), ("decoder", self.widths[0])):
            self.block(f"{net}.mid.block_1", last, last)
            self.attention(f"{net}.mid.attn_1", last)
            self.block(f"{net}.mid.block_2", last, last)
            self.norm(f"{net}.norm_out", end)
        self.conv("encoder.conv_out", z, last, 3)
        self.conv("decoder.conv_in", last, z, 3)
        self.conv("decoder.conv_out", 3 * patch**2, self.widths[0], 3)
        self.conv("quant_conv", len(levels), z, 1)
        self.conv("post_quant_conv", z, len(levels), 1)

    def conv(self, name, out, into, kernel):
        scale = (into * kernel**2) ** -0.5
        self.state[f"{name}.weight"] = torch.randn(out, into, kernel, kernel, generator=self.generator) * scale
        self.state[f"{name}.bias"] = torch.randn(out, generator=self.generator) * 0.3

    def norm(self, name, width):
        self.state[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=self.generator)
        self.state[f"{name}.bias"] = 0.3 * torch.randn(width, generator=self.generator)

    def block(self, name, before, after):
        self.norm(f"{name}.norm1", before)
        self.conv(f"{name}.conv1", after, before, 3)
        self.norm(f"{name}.norm2", after)
        self.conv(f"{name}.conv2", after, after, 3)
        if before != after:
            self.conv(f"{name}.nin_shortcut", after, before, 1)

    def attention(self, name, width):
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width, 1)

    def level(self, name, before, after, blocks, attended):
        for j in range(blocks):
            self.block(f"{name}.block.{j}", before if j == 0 else after, after)
            if attended:
                self.attention(f"{name}.attn.{j}", after)

    # What it means.

    def of(self, name):
        return self.state[f"{name}.weight"].double(), self.state[f"{name}.bias"].double()

    def apply_conv(self, name, x):
        weight, bias = self.of(name)
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)

    def apply_norm(self, name, x):
        return F.group_norm(x, 32, *self.of(name), eps=1e-6)

    def apply_block(self, name, x):
        h = self.apply_conv(f"{name}.conv1", F.silu(self.apply_norm(f"{name}.norm1", x)))
        h = self.apply_conv(f"{name}.conv2", F.silu(self.apply_norm(f"{name}.norm2", h)))
        return h + (self.apply_conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.bias" in self.state else x)

    def apply_attention(self, name, x):
        if f"{name}.norm.bias" not in self.state:
            return x
        normed = self.apply_norm(f"{name}.norm", x)
        q, k, v = (self.apply_conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")
        seen = v @ (q.mT @ k * q.shape[1] ** -0.5).softmax(dim=2).mT
        return x + self.apply_conv(f"{name}.proj_out", seen.unflatten(2, x.shape[2:]))

    def apply_level(self, name, x, blocks):
        for j in range(blocks):
            x = self.apply_attention(f"{name}.attn.{j}", self.apply_block(f"{name}.block.{j}", x))
        return x

    def apply_middle(self, net, x):
        x = self.apply_attention(f"{net}.mid.attn_1", self.apply_block(f"{net}.mid.block_1", x))
        return self.apply_block(f"{net}.mid.block_2", x)

    def wavelets(self, channels):
        """Filters [4 * channels, 1, 2, 2]: sums and differences of columns, of each those of rows, a quarter each."""
        low, high = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        pairs = ((low, low), (low, high), (high, low), (high, high))
        filters = torch.stack([torch.outer(rows, columns) / 4 for columns, rows in pairs])
        return filters[:, None].repeat_interleave(channels, dim=0)

    def encode(self, pixels):
        x, left = pixels.double(), self.patch
        while self.haar and left > 1:
            bands = x.repeat(1, 4, 1, 1)
            x, left = F.conv2d(bands, self.wavelets(x.shape[1]), stride=2, groups=bands.shape[1]), left // 2
        x = x if self.haar else F.pixel_unshuffle(x, self.patch)
        x = self.apply_conv("encoder.conv_in", x)
        for i in range(len(self.widths)):
            x = self.apply_level(f"encoder.down.{i}", x, self.blocks)
            if i < self.halvings:
                weight, bias = self.of(f"encoder.down.{i}.downsample.conv")
                x = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)
        x = F.silu(self.apply_norm("encoder.norm_out", self.apply_middle("encoder", x)))
        return self.apply_conv("quant_conv", self.apply_conv("encoder.conv_out", x))

    def decode(self, vectors):
        x = self.apply_conv("decoder.conv_in", self.apply_conv("post_quant_conv", vectors.double()))
        x = self.apply_middle("decoder", x)
        for i in reversed(range(len(self.widths))):
            x = self.apply_level(f"decoder.up.{i}", x, self.blocks + 1)
            if i >= len(self.widths) - self.halvings:
                doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.apply_conv(f"decoder.up.{i}.upsample.conv", doubled)
        x, left = self.apply_conv("decoder.conv_out", F.silu(self.apply_norm("decoder.norm_out", x))), self.patch
        while self.haar and left > 1:
            bands = 4 * self.wavelets(x.shape[1] // 4)  # orthogonal up to scale: each is its own way back
            x, left = _summed(F.conv_transpose2d(x, bands, stride=2, groups=x.shape[1])), left // 2
        return x if self.haar else F.pixel_shuffle(x, self.patch)


def _summed(bands):
    return sum(bands.chunk(4, dim=1))


_SIX = [8, 8, 8, 5, 5, 5]
COSMOS = {
    "DI8x8": ((32, (2, 4, 4), 1, 24, _SIX, 4, 1), {"attended": ((1, 2), (0, 1))}),
    "DI16x16": ((32, (2, 4, 4), 2, 24, _SIX, 4, 2), {"attended": ((2,), (2,))}),
    "pixels": ((32, (1, 3, 2), 1, 24, [7, 5, 5], 3, 3), {"haar": False}),
    "no-halving": ((64, (1, 2), 1, 8, [4, 3], 2, 0), {"attended": ((0,), ())}),
}


@pytest.mark.parametrize("case", COSMOS)
def test_cosmos_is_what_its_names_mean(case, tmp_path):
    sizes, more = COSMOS[case]
    theirs = Cosmos(*sizes, **more)
    torch.save(theirs.state, tmp_path / "autoencoder.pt")
    said = {"levels": sizes[4], "patch_method": "haar" if theirs.haar else "rearrange", "spatial_compression": 0}
    said["spatial_compression"] = factor = sizes[5] * 2 ** sizes[6]
    tokenizer = vqtok.load(tmp_path / "autoencoder.pt", family="cosmos_fsq", config=said)
    pixels = torch.rand(2, 3, 3 * factor, 4 * factor, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = theirs.encode(pixels)
    assert latents.std() > 0.3
    torch.testing.assert_close(tokenizer.latents(pixels).double(), latents.movedim(1, -1), rtol=0, atol=2e-5)
    tokens = tokenizer.encode(pixels)
    decoded = theirs.decode(tokenizer.quantizer.decode(tokens.ids).movedim(-1, 1))
    torch.testing.assert_close(tokenizer.decode(tokens).double(), decoded, rtol=0, atol=2e-5)
    exported = adapters.export(tokenizer.inference_tensors(), "cosmos_fsq")
    assert exported.keys() == theirs.state.keys()
    assert all(torch.equal(exported[name], x) for name, x in theirs.state.items())
    tokenizer.save(tmp_path / "model")
    again = vqtok.load(tmp_path / "model")
    assert again.fingerprint == tokenizer.fingerprint
    assert torch.equal(again.decode(again.encode(pixels)), tokenizer.decode(tokens))


def test_cosmos_is_told_by_its_shapes_where_they_are_the_published_ones_and_learns_on(tmp_path):
    theirs = Cosmos(*COSMOS["DI8x8"][0], **COSMOS["DI8x8"][1])
    # What the publisher's TorchScript holds beside the weights, in the precision that it is published in.
    state = {name: x.bfloat16() for name, x in theirs.state.items()}
    state |= {"quantizer._levels": torch.tensor(_SIX), "encoder.patcher.wavelets": torch.tensor([0.7071, 0.7071])}
    torch.save(state, tmp_path / "autoencoder.pt")
    tokenizer = vqtok.load(tmp_path / "autoencoder.pt").train()
    assert (tokenizer.vocab_size, tokenizer.factor) == (64000, 8)
    assert torch.equal(tokenizer.encoder.conv_in.weight, theirs.state["encoder.conv_in.weight"].bfloat16().float())
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    (tokenizer(pixels).pixels - pixels).square().mean().backward()
    # The keys' bias is the same for all positions and cancels.
    still = {name for name, x in tokenizer.named_parameters() if not bool(x.grad.any())}
    assert all(name.endswith("key.bias") for name in still)


def test_cosmos_in_stages_has_a_code_a_stage(tmp_path):
    theirs = Cosmos(*COSMOS["DI8x8"][0])
    torch.save(theirs.state, tmp_path / "autoencoder.pt")
    said = {"quantizer": "RESFSQ", "num_quantizers": 3, "levels": _SIX}
    tokenizer = vqtok.load(tmp_path / "autoencoder.pt", config=said)
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    rest, single = tokenizer.latents(pixels), vqtok.FiniteScalarQuantizer(_SIX)
    codes = []
    for _ in range(3):
        codes.append(single.encode(rest))
        rest = rest - single.decode(codes[-1])
    assert torch.equal(tokenizer.encode(pixels).ids, torch.stack(codes, dim=-1))


def test_cosmos_whose_configuration_is_of_another_or_missing_is_refused(tmp_path):
    torch.save(Cosmos(*COSMOS["no-halving"][0], **COSMOS["no-halving"][1]).state, tmp_path / "two.pt")
    with pytest.raises(InputError, match="fit none"):  # a continuous tokenizer could be of these shapes
        vqtok.load(tmp_path / "two.pt")
    torch.save(Cosmos(32, (1, 2), 1, 8, _SIX, 1, 1).state, tmp_path / "pixels.pt")
    with pytest.raises(InputError, match="fit none"):  # a continuous tokenizer of latent-diffusion could be, too
        vqtok.load(tmp_path / "pixels.pt")
    assert vqtok.load(tmp_path / "pixels.pt", family="cosmos_fsq").vocab_size == 64000
    with pytest.raises(ConfigError, match="no tensor tells"):
        vqtok.load(tmp_path / "two.pt", family="cosmos_fsq")
    said = {"levels": [4, 3], "spatial_compression": 4, "channels_mult": [1, 4]}
    with pytest.raises(MismatchError, match=r"(?s)multipliers is \[1, 4\].*factor is 4"):
        vqtok.load(tmp_path / "two.pt", family="cosmos_fsq", config=said)
    with pytest.raises(ConfigError, match="LFQ"):
        vqtok.load(tmp_path / "two.pt", family="cosmos_fsq", config={"levels": [4, 3], "quantizer": "LFQ"})
    theirs = Cosmos(*COSMOS["DI8x8"][0]).state
    theirs["encoder.mid.block_1.conv1.weight"] = theirs["encoder.mid.block_1.conv1.weight"][:, :-1].clone()
    del theirs["decoder.up.2.upsample.conv.bias"]
    theirs["stranger"] = torch.zeros(1)
    torch.save(theirs, tmp_path / "broken.pt")
    with pytest.raises(MismatchError, match=r"(?s)missing 'decoder.up.2.upsample.conv.bias'.*'stranger'.*mid.block_1"):
        vqtok.load(tmp_path / "broken.pt")
