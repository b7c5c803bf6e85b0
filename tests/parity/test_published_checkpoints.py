"""Published layouts, small and with random weights: our numbers are those that the publishers' own code gave.

Each case folder holds a checkpoint in the publisher's container, inputs, and what the publisher's code gave of them;
its `meta.json` has tolerances: ten times the noise of that code itself. Some cases lie in tests/golden; more, where
they are at hand, in a folder beside the repository.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import vqtok
from vqtok import adapters
from vqtok.adapters import FAMILIES
from vqtok.adapters.containers import read_tensor
from vqtok.adapters.family import table
from vqtok.adapters.files import find_parts
from vqtok.adapters.rules import Drop, _compiled, apply, changed, invert
from vqtok.quantizers.levels import unpack_levels

ROOT = Path(__file__).parents[2]
PLACES = (
    ROOT / "tests" / "golden" / "checkpoints",
    ROOT / "tests" / "golden" / "published",
    ROOT.parent / "shared" / "parity",
)


def case_folders():
    found = {}
    for place in PLACES:
        for meta in sorted(place.glob("**/meta.json")):
            about = json.loads(meta.read_text())
            # Of one family a quantizer only was published.
            if about["family"] in FAMILIES and about["container"]["weights"]:
                found.setdefault(f"{about['family']}-{about['case']}", meta.parent)
    return found


CASES = case_folders()
cases = pytest.mark.parametrize("case", CASES)
NOT_ONE_GRID = ("vqvae2-", "lavit_dynamic-")  # what their latents and codes are is said in tests of their own
grid_cases = pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(NOT_ONE_GRID)])


@cache
def about(case):
    return json.loads((CASES[case] / "meta.json").read_text())


@cache
def expected(case):
    with np.load(CASES[case] / "expected.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def checkpoint(case):
    weights = about(case)["container"]["weights"]
    one = CASES[case] / (weights if isinstance(weights, str) else weights[0])
    return one if one.exists() else CASES[case]


@cache
def loaded(case):
    # Where shapes cannot tell it all and nothing lies beside the weights, the publisher's configuration must be given.
    return vqtok.load(checkpoint(case), config=about(case)["config"] if case.startswith("lavit_dynamic-") else None)


def pixels(case):
    return torch.from_numpy(np.load(CASES[case] / "input.npy"))


def as_grid(array, grid):
    """Bring the publisher's [B, D, h, w] or [B, N, D] to [B, h, w, D]."""
    return array.permute(0, 2, 3, 1) if array.ndim == 4 else array.unflatten(1, grid)


def close(came, case, name, grid=None):
    wanted = expected(case)[name] if grid is None else as_grid(expected(case)[name], grid)
    torch.testing.assert_close(came, wanted, rtol=0, atol=about(case)["tolerance"][name]["atol"])


def decode(tokenizer, tokens):
    """What a publisher calls decoded: of dynamic tokens the features that they give back."""
    return tokenizer.decode_features(tokens) if isinstance(tokens, vqtok.TokenRuns) else tokenizer.decode(tokens)


def test_cases_are_found():
    assert {"hf_janus_vq", "lavit_dynamic", "vqvae2"} <= {about(case)["family"] for case in CASES}


@grid_cases
def test_numbers_are_the_publishers(case):
    tokenizer = loaded(case)
    with torch.inference_mode():
        grid = tuple(expected(case)["indices"].shape[1:])
        latents = tokenizer.latents(pixels(case))
        close(latents, case, "latents" if "latents" in expected(case) else "logits", grid)
        codes = tokenizer.quantizer.encode(latents)
        assert torch.equal(codes, expected(case)["indices"])
        if "quantized" in expected(case):  # the dVAE's decoder takes one-hot maps
            close(tokenizer.quantizer.decode(codes), case, "quantized", grid)
        if "post_quant" in expected(case):  # the only part of an absent decoder that was published
            post = tokenizer.decoder.from_latents(tokenizer.quantizer.decode(codes).permute(0, 3, 1, 2))
            close(post, case, "post_quant")
    ids = tokenizer.encode(pixels(case)).ids
    assert torch.equal(ids, expected(case)["indices"])
    if "decoded_pixels" in expected(case):  # behind the decoder's statistics, and in 0..1
        with torch.inference_mode():
            vectors = tokenizer.quantizer.decode(ids).permute(0, 3, 1, 2)
            close(tokenizer.decoder(vectors), case, "decoded")
        low, high = tokenizer.spec.low, tokenizer.spec.high
        decoded = tokenizer.decode(vqtok.TokenGrid(ids, tokenizer.vocab_size))
        close(((decoded - low) / (high - low)).clamp(0, 1), case, "decoded_pixels")
    elif "decoded" in expected(case):
        close(tokenizer.decode(vqtok.TokenGrid(ids, tokenizer.vocab_size)), case, "decoded")
    else:
        with pytest.raises(vqtok.VqtokError, match="published without one"):
            tokenizer.decode(vqtok.TokenGrid(ids, tokenizer.vocab_size))


@cases
def test_a_model_folder_gives_the_same_bits(case, tmp_path):
    tokenizer = loaded(case)
    tokenizer.save(tmp_path / "model")
    again = vqtok.load(tmp_path / "model")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.card == tokenizer.card
    with torch.inference_mode():
        assert torch.equal(again.latents(pixels(case)), tokenizer.latents(pixels(case)))
        tokens = tokenizer.encode(pixels(case))
        assert torch.equal(again.encode(pixels(case)).ids, tokens.ids)
        if "decoded" in expected(case):
            decoded, decoded_again = (decode(x, tokens) for x in (tokenizer, again))
            assert torch.equal(decoded_again, decoded)


@cases
def test_images_become_the_publishers_pixels(case):
    """Some publishers round in float64 where we round in float32: one unit in the last place of values up to 1."""
    came = torch.cat([loaded(case).preprocess(CASES[case] / name) for name in about(case)["input"]["images"]])
    exact = about(case)["input"]["preprocess"] in ("pm1_totensor", "unit")
    torch.testing.assert_close(came, pixels(case), rtol=0, atol=0 if exact else 1.2e-7)


@cases
def test_the_publishers_configuration_is_taken_as_it_stands(case):
    tokenizer = vqtok.load(checkpoint(case), family=about(case)["family"], config=about(case)["config"])
    assert tokenizer.card.architecture == loaded(case).card.architecture


@cases
def test_tensors_go_back_to_the_publishers_names_bit_for_bit(case):
    tokenizer, family = loaded(case), FAMILIES[about(case)["family"]]
    entries = find_parts(checkpoint(case), FAMILIES.values())
    prefix = adapters.sniff.prefix_of(family, [*entries]) or ""
    inside = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    if family.averaged:
        inside = adapters.checkpoint.averaged(family, inside)
    dropped = [_compiled(rule.foreign) for rule in table(family, [*inside]) if isinstance(rule, Drop)]
    kept = {name: entry for name, entry in inside.items() if not any(drop.fullmatch(name) for drop in dropped)}
    exported = adapters.export(tokenizer.inference_tensors(), family.name)
    assert exported.keys() == kept.keys()
    wrong = [name for name, entry in kept.items() if not torch.equal(exported[name], read_tensor(name, entry))]
    assert wrong == []


@pytest.mark.parametrize("case", [case for case in CASES if about(case)["family"] == "openai_dvae"])
def test_modules_that_were_pickled_whole_are_the_same_model(case):
    """OpenAI's files are modules; either file stands for both, and so does their folder."""
    modules = [CASES[case] / name for name in about(case)["container"].get("pickled_modules", ())]
    if not all(module.exists() for module in modules):
        pytest.skip("the modules lie beside the repository only")
    for path in (*modules, CASES[case]):
        tokenizer = vqtok.load(path)
        assert tokenizer.fingerprint == loaded(case).fingerprint


@pytest.mark.parametrize("case", [case for case in CASES if "indices_raw" in expected(case)])
def test_without_averages_the_weights_themselves_are_taken(case):
    """Where the configuration says that there are none, as the publisher's code does."""
    family = about(case)["family"]
    tokenizer = vqtok.load(checkpoint(case), family=family, config={**about(case)["config"], "use_ema": False})
    with torch.inference_mode():
        close(tokenizer.latents(pixels(case)), case, "raw_latents", ())
        tokens = tokenizer.encode(pixels(case))
        assert torch.equal(tokens.ids, expected(case)["indices_raw"])
        close(tokenizer.decode(tokens), case, "raw_decoded")


def test_the_dvae_is_read_from_its_two_files():
    folder = ROOT / "tests" / "golden" / "published" / "openai_dvae"
    tokenizer = vqtok.load(folder)
    with np.load(folder / "expected.npz") as data, torch.inference_mode():
        pixels = torch.from_numpy(np.load(folder / "input.npy"))
        logits = tokenizer.latents(pixels).permute(0, 3, 1, 2)
        np.testing.assert_allclose(logits.numpy(), data["logits"], rtol=0, atol=8.8e-4)
        tokens = tokenizer.encode(pixels)
        assert np.array_equal(tokens.ids.numpy(), data["indices"])
        decoded = (tokenizer.decode(tokens).numpy() - 0.1) / 0.8
        np.testing.assert_allclose(decoded.clip(0, 1), data["decoded_pixels"], rtol=0, atol=1.3e-5)


# Tables of models that are more than an encoder, a quantizer of vectors and a decoder -------------------------------


def filled(module, table, entries, prefix):
    """Load a module strictly from the tensors that a table gives it."""
    found = apply(table, {name: entry.shape for name, entry in entries.items()})
    assert found.leftovers == ()
    own = {name.removeprefix(prefix): source for name, source in found.tensors.items() if name.startswith(prefix)}
    module.load_state_dict({n: changed(read_tensor(s.name, entries[s.name]), s.change) for n, s in own.items()})
    exported = invert(table, found.tensors)
    assert {name: pair[0] for name, pair in exported.items()} == {n: s.name for n, s in found.tensors.items()}
    return module.eval()


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("vqvae2-")])
def test_both_levels_of_vqvae2_are_the_publishers(case):
    tokenizer = loaded(case)
    ids = tokenizer.encode(pixels(case)).ids
    codes = unpack_levels(ids, 2)
    assert torch.equal(codes.top, expected(case)["indices"])
    assert torch.equal(codes.bottom, expected(case)["indices_b"])
    with torch.inference_mode():
        latents, vectors = tokenizer.latents(pixels(case)), tokenizer.quantizer.decode(ids)
        for name, packed in {"latents": latents, "quantized": vectors}.items():
            levels = unpack_levels(packed.unflatten(3, (5, -1)), 2)
            close(levels.top, case, f"{name}_t", levels.top.shape[1:3])
            close(levels.bottom, case, f"{name}_b", levels.bottom.shape[1:3])
    close(tokenizer.decode(vqtok.TokenGrid(ids, tokenizer.vocab_size)), case, "decoded")


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("lavit_dynamic-")])
def test_dynamic_tokens_are_the_publishers(case):
    tokenizer, keep = loaded(case), expected(case)["keep_mask"].flatten(1)
    with torch.inference_mode():
        features = tokenizer.features(pixels(case))
        close(features, case, "features")
        close(tokenizer.selector(features), case, "selector_log_probs")
        merged = tokenizer.merger(features, keep)[0]
        torch.testing.assert_close(
            merged,
            expected(case)["merged_features"][keep],
            rtol=0,
            atol=about(case)["tolerance"]["merged_features"]["atol"],
        )
        close(tokenizer.projection(merged), case, "latents")
    assert torch.equal(tokenizer.select(pixels(case)).keep, keep)
    tokens = tokenizer.encode(pixels(case))
    assert torch.equal(tokens.lengths, expected(case)["token_counts"])
    assert torch.equal(tokens.ids, expected(case)["indices"].flatten(1)[keep])
    close(tokenizer.quantizer.decode(tokens.ids), case, "quantized")
    close(tokenizer.decode_features(tokens), case, "decoded")
    kept = tokenizer.encode(pixels(case)[:1], "topk", tokens=keep.shape[1])
    assert torch.equal(kept.ids, expected(case)["indices_keepall"])
    ids, counts = torch.cat([kept.ids, kept.ids[: keep.shape[1] // 2]]), [keep.shape[1], keep.shape[1] // 2]
    runs = vqtok.TokenRuns(ids, torch.tensor(counts), tokenizer.vocab_size)
    close(tokenizer.decode_features(runs), case, "decode_keepall_and_half")
