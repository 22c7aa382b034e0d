"""Masked language models of the transformers library with the interface of `model.Transformer`.

Nothing of theirs is changed but the output layer, which is left out of the forward pass, so that
here too only what is scored is projected to the vocabulary. Causal ones are in causal.py.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from configurator import UserError


class Skipped(nn.Module):
    """The output layer of a masked language model, skipped in its forward pass, so that the model
    returns features instead of logits. Its parameters keep their names and ties."""

    def __init__(self, decoder: nn.Linear):
        super().__init__()
        self.weight, self.bias = decoder.weight, decoder.bias  # (V, C), (V,)
        if self.bias is None:
            del self.bias
            self.register_buffer("bias", decoder.weight.new_zeros(len(self.weight)), False)

    def forward(self, h: Tensor) -> Tensor:
        return h


class MaskedLM(nn.Module):
    """Any *ForMaskedLM of transformers (ModernBERT, BERT, RoBERTa, DistilBERT) with the interface
    of `Transformer`: no time input, bidirectional. Features are the inputs of its output layer.
    Every id is an ordinary token, the model's padding id included. tokens: number of ids, if
    fewer than rows of the embedding, which is often rounded up; the rows behind them stay unused.
    """

    causal, time = False, None
    compiled = False  # as one graph; `model.compile_network` compiles its blocks

    def __init__(self, network: nn.Module, tokens: int | None = None):
        super().__init__()
        cfg, body = network.config, network.base_model
        network.set_output_embeddings(Skipped(network.get_output_embeddings()))
        network.get_input_embeddings().padding_idx = None  # its gradient would be dropped
        self.network = network
        self.vocab_size, self.n_embd = tokens or cfg.vocab_size, cfg.hidden_size
        self.n_layer, self.n_head = cfg.num_hidden_layers, cfg.num_attention_heads
        # RoBERTa counts positions from pad_token_id + 1 on, and would number by the ids
        places = [m for n, m in body.named_modules() if n.endswith("position_embeddings")]
        padded = places[0].padding_idx if places else None
        self.first = 0 if padded is None else padded + 1
        self.longest = cfg.max_position_embeddings - self.first
        local = "sliding_attention" in (getattr(cfg, "layer_types", None) or ())
        self.window = cfg.sliding_window if local else 0  # of local layers, to each side

    @property
    def blocks(self) -> nn.ModuleList:
        lists = (m for m in self.network.base_model.modules() if isinstance(m, nn.ModuleList))
        return next(m for m in lists if len(m) == self.n_layer)

    @property
    def norm(self) -> Skipped:
        """The module whose output is the features."""
        return self.network.get_output_embeddings()

    @property
    def head(self) -> Any:
        """Its weight (V, C) and bias (V,) are the projection to the vocabulary."""
        V, whole = self.vocab_size, self.norm
        if len(whole.weight) == V:
            return whole
        return SimpleNamespace(weight=whole.weight[:V], bias=whole.bias[:V])

    def features(
        self,
        ids: Tensor,
        time: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """As `Transformer.features`; raises UserError for positions that the model does not have.
        With a mask or positions, a local layer sees its window in terms of the positions."""
        assert time is None, "built without time"
        B, T = ids.shape
        longest = T if positions is None else int(positions.max()) + 1
        if longest > self.longest:
            raise UserError(f"{longest} positions, but this backbone has {self.longest}")
        if mask is not None and mask.ndim == 3 and mask.shape[1] == 1 and positions is None:
            seen = mask[:, 0].expand(B, T).long()  # keys that are padding
        elif mask is not None or (positions is not None and self.window):
            seen = self.attention(mask, positions, ids)
        else:
            seen = None
        if positions is None:
            positions = torch.arange(T, device=ids.device)[None]  # (1, T)
        out = self.network(ids, attention_mask=seen, position_ids=positions + self.first)
        return out.logits.float()

    def attention(self, mask: Tensor | None, positions: Tensor | None, ids: Tensor) -> Any:
        """The attention mask for transformers (B or 1, 1, T, T), additive, 0 and -inf, because its
        eager attention misreads booleans; per kind of layer where there are local layers, because
        such a mask replaces their window."""
        T = ids.shape[1]
        if positions is None:
            positions = torch.arange(T, device=ids.device)[None]
        seen = torch.ones(T, T, dtype=torch.bool, device=ids.device) if mask is None else mask
        seen = seen.expand(seen.shape[0] if seen.ndim == 3 else 1, T, T)[:, None]

        def added(seen: Tensor) -> Tensor:
            return self.head.weight.new_zeros(seen.shape).masked_fill(~seen, -torch.inf)

        if not self.window:
            return added(seen)
        near = (positions[:, None, :, None] - positions[:, None, None]).abs() <= self.window
        return {"full_attention": added(seen), "sliding_attention": added(seen & near)}

    def logits(self, h: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        return F.linear(h, self.head.weight, self.head.bias)

    def matrices(self) -> list[nn.Parameter]:
        """The weight matrices inside the blocks: what Muon is for."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def flops_per_token(self, T: int) -> int:
        """As `Transformer.flops_per_token`; local layers count in full, as they are computed."""
        body = sum(p.numel() for p in self.matrices())
        body += (self.vocab_size + self.n_embd) * self.n_embd  # output layer, and what precedes it
        return 6 * body + 12 * self.n_layer * self.n_embd * T
