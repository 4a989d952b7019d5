"""The same vectors for less work: what OpenCLIP's transformers compute in vain is left out.

Of images, only the tower that OpenCLIP calls VisionTransformer, made of its ResidualAttentionBlocks, is changed; of
texts, only CLIP's own causal tower is told less; any other stays as it is. Figures are in jobs/BENCHMARKS.md; that
vectors stay the reference's is measured there, by architecture.
"""

from collections.abc import Callable
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer, text_global_pool
from torch import nn

Linear = Callable[[torch.Tensor], torch.Tensor]


def take_shortcuts(tower: Any) -> None:  # OpenCLIP is untyped
    """Change a tower in place: its last block computes one token if only one is used; CPUs in bf16 pack all weights."""
    if type(tower) is not VisionTransformer:
        return
    blocks = tower.transformer.resblocks
    if not all(_is_plain(block) for block in blocks):
        return
    pack = _can_pack(blocks[0])
    uses_first_only = tower.pool_type == "tok" and tower.attn_pool is None and not tower.output_tokens
    for i, block in enumerate(blocks):
        is_last = i == len(blocks) - 1
        if pack or (is_last and uses_first_only):
            blocks[i] = Block(block, pack=pack, first_only=is_last and uses_first_only)


def encode_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:  # OpenCLIP is untyped
    """Do what a model's encode_text does (n, context_length) -> (n, d), without what comes behind the texts' ends.

    A causal tower whose output is read at a text's end never looks there: of 77 tokens a caption fills some 15.
    """
    if type(model) is not CLIP or model.attn_mask is None or model.text_pool_type not in ("argmax", "eos"):
        return torch.as_tensor(model.encode_text(tokens))
    # The end has the highest number, or a number of its own: as text_global_pool finds it.
    marks = tokens if model.text_pool_type == "argmax" else (tokens == model.text_eos_id).int()
    length = int(marks.argmax(dim=-1).max()) + 1
    tokens, dtype = tokens[:, :length], model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = text_global_pool(x, tokens, model.text_pool_type, eos_token_id=getattr(model, "text_eos_id", None))
    if model.text_projection is None:
        return torch.as_tensor(x)
    is_linear = isinstance(model.text_projection, nn.Linear)
    return torch.as_tensor(model.text_projection(x) if is_linear else x @ model.text_projection)


class Block(nn.Module):
    """A ResidualAttentionBlock at inference: tokens (n, l, width) to as many, or to the first of each alone."""

    def __init__(self, block: Any, *, pack: bool, first_only: bool) -> None:
        super().__init__()
        attention = block.attn
        self.heads, self.first_only = attention.num_heads, first_only
        self.ln_1, self.ls_1, self.ln_2, self.ls_2, self.act = (
            block.ln_1,
            block.ls_1,
            block.ln_2,
            block.ls_2,
            block.mlp[1],
        )
        linear = _packed if pack else _plain
        width = attention.embed_dim
        cuts = (width, 2 * width) if first_only else (3 * width,)
        weights, biases = attention.in_proj_weight.split(cuts), attention.in_proj_bias.split(cuts)
        self.inputs = [linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        self.output = linear(attention.out_proj.weight, attention.out_proj.bias)
        self.wide, self.narrow = (linear(part.weight, part.bias) for part in (block.mlp[0], block.mlp[2]))

    def forward(self, x: torch.Tensor, attn_mask: None = None) -> torch.Tensor:
        """Compute the block's output; a vision tower has no mask."""
        y = self.ln_1(x)
        if self.first_only:
            x = x[:, :1]
            query = self._heads(self.inputs[0](y[:, :1]), 1)
            key_value = self._heads(self.inputs[1](y), 2)
            q, k, v = *query, *key_value
        else:
            q, k, v = self._heads(self.inputs[0](y), 3)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)  # (n, heads, l, width / heads)
        x = x + self.ls_1(self.output(seen.transpose(1, 2).flatten(2)))
        narrowed: torch.Tensor = self.ls_2(self.narrow(self.act(self.wide(self.ln_2(x)))))
        return x + narrowed

    def _heads(self, projected: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """Split (n, l, parts * width) into parts of (n, heads, l, width / heads)."""
        n, length, width = projected.shape
        split = projected.view(n, length, parts, self.heads, width // parts // self.heads)
        return split.permute(2, 0, 3, 1, 4).unbind()


def _is_plain(block: Any) -> bool:
    """Tell whether a block is what Block computes: OpenCLIP's own, attending to itself, with biases."""
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attention = block.attn
    return bool(
        type(attention) is nn.MultiheadAttention
        and attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _can_pack(block: Any) -> bool:
    """Tell whether weights gain by being laid out once, not in every call: oneDNN, in bf16, on CPUs that have it."""
    weight = block.attn.in_proj_weight
    return bool(
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _plain(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    return lambda x: nn.functional.linear(x, weight, bias)


def _packed(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    """Lay a weight out as oneDNN multiplies it: what torch.compile does when it freezes, without compiling."""
    ops = torch.ops.mkldnn
    packed, bias = ops._reorder_linear_weight(weight.detach().contiguous()), bias.detach()
    return lambda x: ops._linear_pointwise(x.contiguous(), packed, bias, "none", [], "")
