"""Networks that see as people do, near enough: their published weights, for a loss and for metrics.

``efficientnet-lite0`` and ``st-lpips-*`` come whole in packages. LPIPS itself (Zhang et al. 2018) takes the heads of
the package ``lpips`` and a trunk of torchvision, which the caller must have. ST-LPIPS is another metric than LPIPS:
its numbers are not comparable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqtok.adapters.containers import join, read_entries, read_tensor
from vqtok.adapters.metric_weights import WeightsFile, find_weights
from vqtok.adapters.rules import Drop, Rename, Rule, apply, changed, check
from vqtok.errors import ConfigError
from vqtok.losses import PerceptualLoss, perceptual
from vqtok.networks.efficientnet import STAGES, EfficientNetLite0
from vqtok.networks.feature_trunk import FeatureTrunk, alexnet, vgg16
from vqtok.networks.shift_tolerant import shift_tolerant_alexnet, shift_tolerant_vgg16

_LEAF = "{leaf:weight|bias}"
_NORM = "{leaf:weight|bias|running_mean|running_var}"
_HEADS = Rename("lin{level}.model.1.weight", "heads.{level}")
_BLOCK = (
    ("_expand_conv", "_bn0", "expand"),
    ("_depthwise_conv", "_bn1", "depthwise"),
    ("_project_conv", "_bn2", "project"),
)


def _block_rules() -> list[Rule]:
    """Return the blocks' names: theirs are numbered through, ours by stage."""
    places = [(i, j) for i, stage in enumerate(STAGES) for j in range(stage.blocks)]
    return [
        rule
        for number, (i, j) in enumerate(places)
        for conv, norm, ours in _BLOCK
        for rule in (
            Rename(f"_blocks.{number}.{conv}.weight", f"features.stages.{i}.{j}.{ours}.weight"),
            Rename(f"_blocks.{number}.{norm}.{_NORM}", f"features.stages.{i}.{j}.{ours}_norm.{_NORM}"),
            Drop(f"_blocks.{number}.{norm}.num_batches_tracked", "of training"),
        )
    ]


def _lpips(trunk: nn.Module) -> tuple[Rule, ...]:
    """Return the names of LPIPS' two files; torchvision's layers are numbered through, ours stand in their level."""
    if not isinstance(trunk, FeatureTrunk):
        raise TypeError("expected a trunk")
    places = [(i, j) for i, level in enumerate(trunk.levels) for j, _ in level.named_children()]
    return (
        *(Rename(f"trunk.features.{j}.{_LEAF}", f"features.levels.{i}.{j}.{_LEAF}") for i, j in places),
        Drop("trunk.classifier.*", "beyond the features"),
        _HEADS,
    )


def _efficientnet(_: nn.Module) -> tuple[Rule, ...]:
    return (
        *_block_rules(),
        Rename("_conv_stem.weight", "features.stem.weight"),
        Rename("_conv_head.weight", "features.head.weight"),
        Rename(f"_fc.{_LEAF}", f"features.classifier.{_LEAF}"),
        Rename(f"_bn0.{_NORM}", f"features.stem_norm.{_NORM}"),
        Rename(f"_bn1.{_NORM}", f"features.head_norm.{_NORM}"),
        Drop("_bn{norm}.num_batches_tracked", "of training"),
    )


def _shift_tolerant(_: nn.Module) -> tuple[Rule, ...]:
    return (
        Rename(f"net.slice{{level:1+}}.{{layer}}.{_LEAF}", f"features.levels.{{level}}.{{layer}}.{_LEAF}"),
        Drop("net.slice{level}.{layer}.filt", "the blur, a constant"),
        Rename("scaling_layer.{what:shift|scale}", "features.{what:shift|scale}"),
        _HEADS,
    )


class PerceptualNetwork(nn.Module):
    """Features of each level and how much each channel counts: what `PerceptualLoss` takes. Frozen, in eval mode.

    Args:
        features: pixels [B, 3, H, W] to one [B, C_l, h_l, w_l] a level.
        heads: one [C_l] a level.
        weights: the files that they came from.
    """

    def __init__(self, features: nn.Module, heads: Sequence[Tensor], weights: Sequence[WeightsFile] = ()) -> None:
        super().__init__()
        self.features = features.requires_grad_(False).eval()
        self.weights = tuple(weights)
        self.levels = len(heads)
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head.detach().clone())

    @property
    def heads(self) -> tuple[Tensor, ...]:
        """One [C_l] a level."""
        return tuple(self.get_buffer(f"head{i}") for i in range(self.levels))

    def train(self, mode: bool = True) -> PerceptualNetwork:
        """Stay in eval mode, whatever the mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, pixels: Tensor) -> Sequence[Tensor]:
        """Return the features of pixels [B, 3, H, W] in the range that was chosen; gradients reach the pixels."""
        return self.features(pixels)

    def distance(self, pixels: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each image [B], as the publisher's code has it."""
        return perceptual(self(pixels), self(target), self.heads)

    def loss(self) -> PerceptualLoss:
        """Return the mean distance as a loss, with these heads."""
        return PerceptualLoss(self, self.heads)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a network is made.

    Attributes:
        make: (low, high) to a network with fresh weights.
        files: names of the weights, by what the table of names has in front of theirs; the first is the caller's path.
        rules: the table of names for the network.
        constants: ends of names that no file has.
    """

    make: Callable[[float, float], nn.Module]
    files: Mapping[str, str]
    rules: Callable[[nn.Module], tuple[Rule, ...]]
    constants: tuple[str, ...] = ()


_TRAINED, _FIXED = (".num_batches_tracked",), (".shift", ".scale")
NETWORKS = {
    "efficientnet-lite0": _Kind(EfficientNetLite0, {"": "efficientnet-lite0"}, _efficientnet, _TRAINED),
    "st-lpips-alex": _Kind(shift_tolerant_alexnet, {"": "st-lpips-alex"}, _shift_tolerant),
    "st-lpips-vgg": _Kind(shift_tolerant_vgg16, {"": "st-lpips-vgg"}, _shift_tolerant),
    "lpips-alex": _Kind(alexnet, {"trunk.": "alexnet", "": "lpips-alex-heads"}, _lpips, _FIXED),
    "lpips-vgg": _Kind(vgg16, {"trunk.": "vgg16", "": "lpips-vgg-heads"}, _lpips, _FIXED),
}


def perceptual_network(
    name: str, path: str | os.PathLike[str] | None = None, *, low: float = -1.0, high: float = 1.0
) -> PerceptualNetwork:
    """Return a network with its published weights.

    Args:
        name: a key of `NETWORKS`.
        path: its weights, for LPIPS the trunk's: a file, or a folder with files of their published names. Without it
            they are looked for as `find_weights` does.
        low: what black is in the pixels it is given.
        high: what white is.

    Raises:
        ConfigError: there is no such network.
        InputError: nothing lies at the path.
        ResourceError: the weights are not on this machine; the message says how to get them.
        MismatchError: they are others than the published ones.

    >>> try:
    ...     perceptual_network("lpips")
    ... except ConfigError as error:
    ...     print(str(error)[:57])
    unknown network 'lpips': efficientnet-lite0, st-lpips-ale
    """
    if name not in NETWORKS:
        raise ConfigError(f"unknown network {name!r}: {', '.join(NETWORKS)} are known")
    files = network_weights(name, path)
    return load_network(name, files, low=low, high=high)


def network_weights(name: str, path: str | os.PathLike[str] | None = None) -> dict[str, WeightsFile]:
    """Return the files of a network, by what the table of names has in front of theirs; raises as `find_weights`."""
    roles = NETWORKS[name].files
    first = next(iter(roles))
    return {
        role: find_weights(weights, path if role == first or (path and os.path.isdir(path)) else None)
        for role, weights in roles.items()
    }


def load_network(
    name: str, files: Mapping[str, WeightsFile], *, low: float = -1.0, high: float = 1.0
) -> PerceptualNetwork:
    """Read weights into a network; every tensor of both must have its place.

    Raises:
        IntegrityError: a file is damaged.
        MismatchError: tensors are missing, left over or of another shape.
    """
    kind = NETWORKS[name]
    features = kind.make(low, high)
    rules = kind.rules(features)
    entries = join({role: read_entries(file.path) for role, file in files.items()})
    expected = _expected(features, rules, kind.constants)
    shapes = {key: entry.shape for key, entry in entries.items()}
    applied = apply(rules, shapes)
    check(rules, applied, expected, shapes)
    tensors = {
        ours: changed(read_tensor(source.name, entries[source.name]), source.change)
        for ours, source in applied.tensors.items()
    }
    own = {key.removeprefix("features."): tensor for key, tensor in tensors.items() if key.startswith("features.")}
    features.load_state_dict(features.state_dict() | own)
    # Without heads of its own a network has the mean over levels of the squared distance, of LPIPS' order of magnitude.
    widths = _channels(features)
    even = [torch.full((n,), 1 / len(widths), dtype=torch.float32) for n in widths]
    heads = [tensors.get(f"heads.{i}", head).flatten() for i, head in enumerate(even)]
    return PerceptualNetwork(features, heads, [*files.values()])


def _expected(features: nn.Module, rules: Sequence[Rule], constants: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a network's files hold, by our names."""
    state = {f"features.{key}": tuple(tensor.shape) for key, tensor in features.state_dict().items()}
    found = {key: shape for key, shape in state.items() if not key.endswith(constants)}
    heads = {f"heads.{i}": (1, n, 1, 1) for i, n in enumerate(_channels(features))} if _HEADS in rules else {}
    return found | heads


def _channels(features: nn.Module) -> tuple[int, ...]:
    if not isinstance(features, EfficientNetLite0 | FeatureTrunk):
        raise TypeError("expected one of the networks here")
    return features.channels
