"""The feature space of DINOv2's ViT-L/14 (Oquab et al. 2023), as Stein et al. 2023 measure in it.

From the official weights file of facebookresearch/dinov2, `dinov2_vitl14_pretrain.pth`: the network
below has its names. Images are resized to 224 x 224 by antialiased bicubic interpolation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import torch_fidelity
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from scorekit.metrics.spaces import DINOV2, FEATURE_LAYERS

#: Mean and standard deviation of ImageNet's pixels in [0, 1], by channel.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZE = 224
PATCH = 14
#: Patches along a side of the images that positions were learned at (518 pixels).
LEARNED = 37


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Scale(nn.Module):
    """LayerScale (Touvron et al. 2021): a factor for each channel of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = _Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width)
        self.ls2 = _Scale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """A ViT with patches of 14 x 14: float (B, 3, H, W) to the CLS token's (B, width) features.

    H and W are multiples of 14. ViT-L is the default's 24 blocks of width 1024 with 16 heads.
    """

    def __init__(self, *, width: int = 1024, depth: int = 24, heads: int = 16) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + LEARNED**2, width))
        # Of training alone, and in the file.
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, stride=PATCH)})
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """Return the learned positions (1, 1 + rows * columns, width) for a grid of patches."""
        if (rows, columns) == (LEARNED, LEARNED):
            return self.pos_embed
        cls, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = grid.transpose(1, 2).unflatten(2, (LEARNED, LEARNED))
        # The official network enlarges by a tenth of a patch more, and so do features known of it.
        scale = ((rows + 0.1) / LEARNED, (columns + 0.1) / LEARNED)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed["proj"](x)
        rows, columns = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self.positions(rows, columns)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])


def prepared(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 (B, 1 or 3, H, W) as float32 (B, 3, 224, 224), of ImageNet's mean and spread."""
    x = images.expand(-1, 3, -1, -1).to(torch.float32) / 255
    if x.shape[2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False)
    mean, deviation = (torch.tensor(each, device=x.device).view(3, 1, 1) for each in IMAGENET)
    return (x - mean) / deviation


class DinoV2(FeatureExtractorBase):
    """`dinov2-vitl14` as a torch-fidelity extractor: uint8 (B, 1 or 3, H, W) in, 1024 features."""

    #: As keywords of VisionTransformer: those of ViT-L/14 unless a test has a smaller one.
    shape: ClassVar[dict[str, int]] = {}

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        assert feature_extractor_weights_path is not None
        self.network = VisionTransformer(**self.shape)
        state = torch.load(feature_extractor_weights_path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state)
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (FEATURE_LAYERS[DINOV2],)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return FEATURE_LAYERS[DINOV2]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"{self.name}: {x.dtype} {tuple(x.shape)} given; uint8 (B, 1 or 3, H, W) is right"
            )
        return (self.network(prepared(x)),)


if DINOV2 not in FEATURE_EXTRACTORS_REGISTRY:
    torch_fidelity.register_feature_extractor(DINOV2, DinoV2)
