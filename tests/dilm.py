"""The network of the published insertion diffusion model, restated for its recorded weights. It
differs from ours: the residual stream is replaced by each block's first modulated norm."""

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def dilm(
    ids: Tensor, length: Tensor, message: Tensor, heads: int, weight: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor]:
    """ids (B, T), rows `length` (B,) long, told (B,) of the time; weight: name -> tensor. Returns
    logits (B, T, V) and those of the number of missing tokens (B, n)."""

    def linear(name: str, x: Tensor, bias: bool = True) -> Tensor:
        return F.linear(x, weight(name + ".weight"), weight(name + ".bias") if bias else None)

    def norm(name: str, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:]) * weight(name + ".norm")
        return x * (1 + scale) + shift

    angle = message.float()[:, None] * weight("sigma_map.freqs")
    c = F.silu(linear("sigma_map.mlp.0", torch.cat([angle.cos(), angle.sin()], -1)))
    c = F.silu(linear("sigma_map.mlp.2", c))
    x = weight("embed_tokens.weight")[ids]
    B, T, C = x.shape
    inside = (torch.arange(T) < length[:, None])[:, None, None]
    turn = weight("encoder.0.rotary_emb.inv_freq")
    angle = torch.minimum(torch.arange(T), length[:, None] - 1)[..., None].float() * turn
    cos, sin, r = angle.cos()[:, :, None], angle.sin()[:, :, None], len(turn)

    def rotated(x: Tensor) -> Tensor:
        a, b = x[..., :r], x[..., r : 2 * r]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * r :]], -1)

    for i in range(layers(weight)):
        p = f"encoder.{i}."
        modulation = linear(p + "ada_ln_modulations.modulation", c)[:, None].chunk(6, -1)
        shift, scale, gate = modulation[:3]
        x = norm(p + "norm1", x, shift, scale)
        q, k, v = linear(p + "attn_qkv", x, False).view(B, T, 3, heads, -1).unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (rotated(q), rotated(k), v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=inside).transpose(1, 2)
        x = x + gate * linear(p + "o_proj", y.reshape(B, T, C), False)
        shift, scale, gate = modulation[3:]
        y = F.relu(linear(p + "mlp.0", norm(p + "norm2", x, shift, scale)))
        x = x + gate * linear(p + "mlp.2", y)

    def last(name: str, x: Tensor) -> Tensor:
        shift, scale = linear(name + ".adaLN_modulation.modulation", c)[:, None].chunk(2, -1)
        return norm(name + ".norm_final", x, shift, scale)

    logits = linear("output_layer.linear", last("output_layer", x), False)
    name = "length_output_layer"
    h = linear(name + ".mlp.2", torch.tanh(linear(name + ".mlp.0", last(name, x)[:, 0])))
    return logits, linear(name + ".linear", x[:, 0] + h, False)


def layers(weight: Callable[[str], Tensor]) -> int:
    for i in range(1000):
        try:
            weight(f"encoder.{i}.attn_qkv.weight")
        except KeyError:
            break
    return i
