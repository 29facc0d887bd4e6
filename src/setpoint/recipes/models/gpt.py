"""A decoder-only transformer as in GPT-2 (Radford et al., 2019), for text as bytes or any other small vocabulary."""

import torch
from torch import Tensor, nn
from torch.nn import functional

# Standard deviation of all initial weights, as in GPT-2.
_DEVIATION = 0.02


class Attention(nn.Module):
    """Causal attention of several heads; queries, keys and values come from one stacked projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        # The number of heads is left to follow from the projection's size.
        split = [part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in self.qkv(inputs).chunk(3, -1)]
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        outputs: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return outputs


class Block(nn.Module):
    """Attention and a feed-forward layer of four times the width, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        inputs = inputs + self.attention(self.norm1(inputs))
        outputs: Tensor = inputs + self.down(functional.gelu(self.up(self.norm2(inputs))))
        return outputs


class GPT(nn.Module):
    """Token and learned position embeddings, blocks, a last norm, and a linear layer to the vocabulary.

    Args:
        vocabulary: Number of tokens; 256 for bytes.
        context: The most positions that a sequence may have.
        width: Size of the embeddings, divided among the heads.
        depth: Number of blocks.
        heads: Of attention in each block.
        tied: Whether the last layer's weight is the token embedding's.

    Raises:
        ValueError: If a size is below 1, or ``heads`` does not divide ``width``.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        context: int = 256,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "context": context, "width": width, "depth": depth, "heads": heads}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} was asked for; at least 1 is possible")
        if width % heads:
            raise ValueError(f"width={width} was asked for with heads={heads}; a multiple of the heads is possible")
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self.reset_parameters()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T) int64 to logits (N, T, vocabulary); those at t see the tokens up to t.

        Raises:
            ValueError: If T is above ``context``.
        """
        length, context = tokens.shape[1], self.positions.num_embeddings
        if length > context:
            raise ValueError(f"a sequence of {length} tokens was given; up to context={context} are possible")
        places = torch.arange(length, device=tokens.device)
        states = self.tokens(tokens) + self.positions(places)
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.head(self.norm(states))
        return logits

    def reset_parameters(self) -> None:
        """Draw all weights; what is added to the stream begins smaller the more blocks add to it."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_DEVIATION)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        width = self.tokens.embedding_dim
        for block in self.blocks:
            assert isinstance(block, Block)
            # A layer of several (a product, a sum) adds to the stream with those of its parts that have its width.
            for module in (*block.attention.out.modules(), *block.down.modules()):
                if isinstance(module, nn.Linear) and module.out_features == width:
                    nn.init.normal_(module.weight, std=_DEVIATION / (2 * len(self.blocks)) ** 0.5)
