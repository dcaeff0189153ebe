"""DINOv2's feature space: its network and resize against independent ones, with random weights.

The official weights are 1.2 GB, and shipped nowhere: that their features are those of the official
code is not tested here.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from ablations.pipeline.data import data_facts
from scorekit.data.embedded import photo_patches
from scorekit.metrics.dinov2 import DinoV2, VisionTransformer, prepared
from scorekit.metrics.features import extract
from scorekit.metrics.spaces import MetricError, distance_label, extractor_digest, metric_label

SMALL = {"width": 32, "depth": 2, "heads": 4}


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(**SMALL)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


@pytest.fixture
def weights(network, tmp_path, monkeypatch):
    monkeypatch.setattr(DinoV2, "shape", SMALL)
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    torch.save(network.state_dict(), path)
    return path


def test_the_default_has_the_names_and_shapes_of_the_official_file():
    with torch.device("meta"):
        found = {name: tuple(p.shape) for name, p in VisionTransformer().state_dict().items()}
    block = {
        "norm1.weight": (1024,),
        "norm1.bias": (1024,),
        "attn.qkv.weight": (3072, 1024),
        "attn.qkv.bias": (3072,),
        "attn.proj.weight": (1024, 1024),
        "attn.proj.bias": (1024,),
        "ls1.gamma": (1024,),
        "norm2.weight": (1024,),
        "norm2.bias": (1024,),
        "mlp.fc1.weight": (4096, 1024),
        "mlp.fc1.bias": (4096,),
        "mlp.fc2.weight": (1024, 4096),
        "mlp.fc2.bias": (1024,),
        "ls2.gamma": (1024,),
    }
    expected = {
        "cls_token": (1, 1, 1024),
        "pos_embed": (1, 1370, 1024),
        "mask_token": (1, 1024),
        "patch_embed.proj.weight": (1024, 3, 14, 14),
        "patch_embed.proj.bias": (1024,),
        "norm.weight": (1024,),
        "norm.bias": (1024,),
    }
    expected |= {f"blocks.{i}.{name}": shape for i in range(24) for name, shape in block.items()}
    assert found == expected


def standardised(x, weight, bias):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * weight + bias


def by_hand(state, x, positions):
    """The CLS token's features in numpy and torch's own MultiheadAttention, in float64."""
    patches = (
        x.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    )
    kernel = state["patch_embed.proj.weight"].flatten(1)
    tokens = patches @ kernel.T + state["patch_embed.proj.bias"]
    tokens = torch.cat([state["cls_token"].expand(len(x), -1, -1), tokens], 1) + positions
    for i in range(SMALL["depth"]):
        own = {n.removeprefix(f"blocks.{i}."): v for n, v in state.items() if f"blocks.{i}." in n}
        attention = torch.nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
        attention.load_state_dict(
            {
                "in_proj_weight": own["attn.qkv.weight"],
                "in_proj_bias": own["attn.qkv.bias"],
                "out_proj.weight": own["attn.proj.weight"],
                "out_proj.bias": own["attn.proj.bias"],
            }
        )
        y = torch.from_numpy(
            standardised(tokens.numpy(), own["norm1.weight"].numpy(), own["norm1.bias"].numpy())
        )
        with torch.no_grad():
            tokens = tokens + own["ls1.gamma"] * attention(y, y, y, need_weights=False)[0]
        y = torch.from_numpy(
            standardised(tokens.numpy(), own["norm2.weight"].numpy(), own["norm2.bias"].numpy())
        )
        y = y @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"]
        y = y * torch.special.ndtr(y)
        y = y @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"]
        tokens = tokens + own["ls2.gamma"] * y
    return standardised(
        tokens[:, 0].numpy(), state["norm.weight"].numpy(), state["norm.bias"].numpy()
    )


@pytest.mark.parametrize(("rows", "columns"), [(3, 2), (37, 37)])
def test_the_network_is_the_paper_s(network, rows, columns):
    x = torch.randn(2, 3, 14 * rows, 14 * columns, generator=torch.Generator().manual_seed(1))
    state = {name: value.double() for name, value in network.state_dict().items()}
    positions = network.positions(rows, columns)
    assert positions.shape == (1, 1 + rows * columns, 32)
    expected = by_hand(state, x.double(), positions.double())
    assert network(x).numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_positions_are_learned_ones_between_the_patches(network):
    small = VisionTransformer(**SMALL)
    # Linear along a side: so they stay away from the edges, where bicubic repeats the last.
    along = torch.arange(37.0)[:, None, None].expand(37, 37, 32).flatten(0, 1)
    with torch.no_grad():
        small.pos_embed.copy_(torch.cat([torch.full((1, 32), -5.0), along])[None])
    found = small.positions(16, 16)[0].detach()
    assert (found[0] == -5).all()
    centres = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    got = found[1:].reshape(16, 16, 32)
    # This kernel (a = -0.75) follows a line to 0.05; without the tenth the last is off by 0.2.
    assert got[1:-1, 3, 0].numpy() == pytest.approx(centres[1:-1], abs=0.06)
    assert (got - got[:, :1]).abs().max() < 1e-4
    assert network.positions(37, 37) is network.pos_embed


@pytest.mark.parametrize("size", [(32, 32), (40, 64), (300, 280), (224, 224)])
def test_the_resize_is_pillow_s_bicubic_and_the_rest_imagenet_s(size):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    found = prepared(torch.from_numpy(images)).numpy()
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for i in range(2):
        for channel in range(3):
            one = Image.fromarray(images[i, channel].astype(np.float32), mode="F")
            resized = np.asarray(one.resize((224, 224), Image.Resampling.BICUBIC))
            expected = (resized / 255 - mean[channel]) / deviation[channel]
            # 1e-4 of a normalised pixel is 0.006 of 255.
            assert found[i, channel] == pytest.approx(expected, abs=1e-4)


def test_features_are_the_network_s_of_grey_and_colour_images(network, weights):
    images = photo_patches("test")[0][:3]
    got = extract(images, "dinov2-vitl14", batch_size=2, weights_path=weights)
    assert got.logits is None and got.features.shape == (3, 32)
    expected = network(prepared(torch.from_numpy(np.array(images))))
    assert got.features == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)
    grey, rgb = (
        extract(x, "dinov2-vitl14", weights_path=weights).features
        for x in (images[:, :1], images[:, :1].repeat(3, axis=1))
    )
    assert (grey == rgb).all()


def test_it_is_named_and_identified_by_its_weights(weights, tmp_path):
    assert distance_label("dinov2-vitl14") == "FD[dinov2-vitl14, bicubic 224]"
    assert metric_label("KID", "dinov2-vitl14") == "KID[dinov2-vitl14, bicubic 224]"
    arguments = {"image_size": None, "inception_weights": None}
    facts = data_facts("digits", tmp_path, dinov2_weights=weights, **arguments)
    assert facts.extractor == "dinov2-vitl14"
    assert facts.extractor_fingerprint == extractor_digest("dinov2-vitl14", weights)
    with pytest.raises(ValueError, match="--dinov2-weights: --extractor digits-cnn has no use"):
        data_facts("digits", tmp_path, dinov2_weights=weights, extractor="digits-cnn", **arguments)
    with pytest.raises(
        MetricError, match=r"needs weights; give dinov2_vitl14_pretrain\.pth of .* with"
    ):
        data_facts("digits", tmp_path, extractor="dinov2-vitl14", **arguments)


@pytest.mark.parametrize("content", [b"", b"no weights", {"pos_embed": torch.zeros(3)}])
def test_a_file_that_holds_no_such_weights(content, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(MetricError, match=r"--dinov2-weights .*w\.pth: holds no DINOv2 weights"):
        extract(np.zeros((2, 3, 8, 8), np.uint8), "dinov2-vitl14", weights_path=path)
