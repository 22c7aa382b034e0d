"""Published weights of insertion models (ILM), under our names.

Their network is our transformer with biased layer norms, ReLU, an MLP of any width, and rotary
positions on the first channels of a head. The tensors do not tell the number of heads, so it is
that of the config. Hub id: dhruveshpatel/ilm-owt.
"""

from typing import Any

import torch
from torch import Tensor

from configurator import UserError

EMBEDDING = "embed_tokens.weight"  # tells these weights from others
# a buffer that is computed here, and an embedding that was never used
DROPPED = ("rotary_emb.inv_freq", "type_embeddings.weight")
BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "attn_qkv.weight": "attn.qkv.weight",
    "o_proj.weight": "attn.proj.weight",
    "mlp.0.weight": "mlp.fc.weight",
    "mlp.0.bias": "mlp.fc.bias",
    "mlp.2.weight": "mlp.proj.weight",
    "mlp.2.bias": "mlp.proj.bias",
}
READOUT = {
    "norm_final.weight": "norm.weight",
    "norm_final.bias": "norm.bias",
    "mlp.0.weight": "fc.weight",
    "mlp.0.bias": "fc.bias",
    "mlp.2.weight": "proj.weight",
    "mlp.2.bias": "proj.bias",
    "linear.weight": "linear.weight",
}


def from_ilm(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict of bare names -> weights under our names, and the fields of Config that they
    determine. Raises UserError for a missing or unexpected tensor."""
    layers = sum(name.endswith(".attn_qkv.weight") for name in state)
    readout = "length_output_layer.linear.weight"
    kind = "stop" if readout not in state or len(state[readout]) == 2 else "length"
    pairs = {EMBEDDING: "embed.weight", "output_layer.linear.weight": "head.weight"}
    normed = "output_layer.norm_final.weight" in state
    if normed:
        pairs |= {f"output_layer.norm_final.{e}": f"norm.{e}" for e in ("weight", "bias")}
    for i in range(layers):
        pairs |= {f"encoder.{i}.{a}": f"blocks.{i}.{b}" for a, b in BLOCK.items()}
    if readout in state:
        pairs |= {f"length_output_layer.{a}": f"heads.{kind}.{b}" for a, b in READOUT.items()}
    rest = [n for n in state if n not in pairs and not n.endswith(DROPPED)]
    missing = [n for n in pairs if n not in state]
    for names, what in ((missing, "lack"), (rest, "have, and no insertion model has,")):
        if names:
            raise UserError(f"these weights {what} {names[0]} ({len(names)} such names)")
    weights = {ours: state[theirs] for theirs, ours in pairs.items()}
    weights["head.bias"] = torch.zeros(len(weights["head.weight"]))  # theirs has none
    turned = state.get("encoder.0.rotary_emb.inv_freq")
    config = {
        "objective": "ilm" if readout in state else "it",
        "n_embd": weights["embed.weight"].shape[1],
        "n_layer": layers,
        "n_inner": len(weights["blocks.0.mlp.fc.bias"]),
        "activation": "relu",
        "norm_bias": True,
        "final_norm": normed,
        "rotary_dims": 64 if turned is None else 2 * len(turned),
        "time_input": False,
    }
    return weights, config | ({"stop": kind} if readout in state else {})
