"""Tables 2 and 3 of the paper, read off the networks as they are built."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ablations.reporting.artefacts import Artefact
from ablations.reporting.table import Column, Table
from scorekit.models.layers import RefineBlock, ResBlock
from scorekit.models.score_network import PAPER_ARCHITECTURES, ScoreNetwork

_WIDTH = 128  # filters at full resolution in the paper
_COLUMNS = ("layer", "name", "dilation", "in_channels", "out_channels", "resolution")


def layer_rows(architecture: str, *, conditional: bool) -> list[dict[str, Any]]:
    """Return a network's layers in the order in which an image passes them, as the paper has them.

    One pass of a network of 128 filters without memory (torch's meta device) tells of each layer
    its input and output channels and the side of its output. "down" doubles the filters or halves
    the resolution, or dilates. The last normalisation, which the paper leaves out, has no row.
    """
    rows: list[dict[str, Any]] = []
    prefix = "Cond" if conditional else ""
    # The smallest side of the column's heading: 32 of 32-64.
    side = int(architecture.split("-")[0])

    def note(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        first = inputs[0]
        channels = [x.shape[1] for x in first] if isinstance(first, list) else [first.shape[1]]
        convs = [m for m in layer.modules() if isinstance(m, nn.Conv2d)]
        dilation = max(conv.dilation[0] for conv in convs)
        if isinstance(layer, ResBlock):
            resampled = not isinstance(layer.shortcut, nn.Identity)
            title = f"{prefix}ResBlock" + (" down" if resampled else "")
        elif isinstance(layer, RefineBlock):
            title = f"{prefix}RefineBlock"
        else:
            title = "{}x{} Conv2D".format(*convs[0].kernel_size)
        rows.append(
            {
                "layer": f"{title}, {output.shape[1]}",
                "name": name,
                "dilation": dilation if dilation > 1 else None,
                "in_channels": " + ".join(map(str, channels)),
                "out_channels": output.shape[1],
                "resolution": output.shape[-1],
            }
        )

    sigmas = torch.ones(10)  # as many levels as NCSN has; looked at, so not on the meta device
    with torch.device("meta"), torch.no_grad():
        network = ScoreNetwork(architecture, sigmas, conditional=conditional, width=_WIDTH)
        for name, layer in network.named_modules():
            ends = name in ("begin_conv", "end_conv")
            if ends or isinstance(layer, ResBlock | RefineBlock):
                layer.register_forward_hook(
                    lambda layer, inputs, output, name=name: note(name, layer, inputs, output)
                )
        network.features(torch.empty(1, 3, side, side), torch.zeros(1, dtype=torch.int64))
    return rows


def architecture_artefact(*, conditional: bool) -> Artefact:
    """The architectures of NCSN (Table 2) or NCSNv2 (Table 3), one block a range of resolutions."""
    number, model = (2, "NCSN") if conditional else (3, "NCSNv2")
    rows = [
        {"architecture": f"{model}, {architecture}"} | row
        for architecture in PAPER_ARCHITECTURES
        for row in layer_rows(architecture, conditional=conditional)
    ]
    raw = pd.DataFrame(rows, columns=["architecture", *_COLUMNS])
    texts = raw.astype({"resolution": "str", "out_channels": "str"})
    columns = (
        Column("Architecture", texts["architecture"]),
        Column("Layer", texts["layer"]),
        Column("Name", texts["name"]),
        Column(
            "Dilation",
            [f"{d:.0f}" if pd.notna(d) else "—" for d in texts["dilation"]],
            by="dilation",
        ),
        Column("In", texts["in_channels"]),
        Column("Out", texts["out_channels"], number=True),
        Column("Side of output", texts["resolution"], number=True),
    )
    more = " The paper's Table 2 ends at 128²; the last block is ours." if conditional else ""
    table = Table(
        name=f"table{number}",
        title=f"Architectures of {model} (Table {number})",
        caption=(
            f"Read off the networks as built, {_WIDTH} filters at full resolution, RGB images of "
            "the smallest side of each range. Names are those of the released checkpoints. A "
            f"RefineBlock's inputs are its stage's output and what came before it.{more}"
        ),
        raw=raw,
        columns=columns,
        kinds=("ours",) * len(raw),
    )
    return Artefact(shown=table)
