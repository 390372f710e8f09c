"""Attention beyond `F.scaled_dot_product_attention`: scores changed by a function of the user's (`flex_attention`)."""

from flame.nn.attention import flex_attention

__all__ = ["flex_attention"]
