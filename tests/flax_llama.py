"""A Llama in flax.linen, written from the paper and MaxText's parameter tree: scanned layers, interleaved RoPE."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

THETA = 10000.0
EPS = 1e-6


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * scale


class Kernel(nn.Module):
    """A product of the last axes of the input with a kernel."""

    shape: tuple[int, ...]
    axes: int = 1

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.tensordot(x, self.param("kernel", nn.initializers.normal(0.1), self.shape), axes=self.axes)


def rotate(x: Any) -> Any:
    """Neighbours (2i, 2i + 1) of a head are rotated by position / theta^(2i / length); x: [position, head, place]."""
    length = x.shape[-1]
    angle = jnp.arange(x.shape[0])[:, None, None] * THETA ** (-jnp.arange(0, length, 2) / length)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * jnp.exp(1j * angle)
    return jnp.stack([turned.real, turned.imag], -1).reshape(x.shape)


class Attention(nn.Module):
    heads: int
    kv_heads: int
    length: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = x.shape[-1]
        q = rotate(Kernel((hidden, self.heads, self.length), name="query")(x))
        k = rotate(Kernel((hidden, self.kv_heads, self.length), name="key")(x))
        v = Kernel((hidden, self.kv_heads, self.length), name="value")(x)
        k, v = (jnp.repeat(each, self.heads // self.kv_heads, 1) for each in (k, v))
        scores = jnp.einsum("qhd,khd->hqk", q, k)  # the scale is in the queries
        scores = jnp.where(jnp.tri(x.shape[0], dtype=bool), scores, -jnp.inf)
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores, -1), v)
        return Kernel((self.heads, self.length, hidden), 2, name="out")(mixed)


class Mlp(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = x.shape[-1]
        gate = jax.nn.silu(Kernel((hidden, self.width), name="wi_0")(x))
        return Kernel((self.width, hidden), name="wo")(gate * Kernel((hidden, self.width), name="wi_1")(x))


class Layer(nn.Module):
    heads: int
    kv_heads: int
    length: int
    width: int

    @nn.compact
    def __call__(self, x: Any, _: None) -> tuple[Any, None]:
        attention = Attention(self.heads, self.kv_heads, self.length, name="self_attention")
        x = x + attention(Norm(name="pre_self_attention_layer_norm")(x))
        return x + Mlp(self.width, name="mlp")(Norm(name="post_self_attention_layer_norm")(x)), None


class Decoder(nn.Module):
    num_layers: int
    layer: tuple[int, int, int, int]
    vocabulary: int
    scan_axis: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        scanned = nn.scan(
            Layer, variable_axes={"params": self.scan_axis}, split_rngs={"params": True}, length=self.num_layers
        )
        x, _ = scanned(*self.layer, name="layers")(x, None)
        return Kernel((x.shape[-1], self.vocabulary), name="logits_dense")(Norm(name="decoder_norm")(x))


class Embedder(nn.Module):
    vocabulary: int
    hidden: int

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        return self.param("embedding", nn.initializers.normal(0.1), (self.vocabulary, self.hidden))[tokens]


class FlaxLlama(nn.Module):
    """tokens [position] -> logits [position, vocabulary], in float32."""

    num_layers: int
    heads: int
    kv_heads: int
    length: int
    width: int
    hidden: int
    vocabulary: int
    scan_axis: int = 1

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = Embedder(self.vocabulary, self.hidden, name="token_embedder")(tokens)
        layer = (self.heads, self.kv_heads, self.length, self.width)
        return Decoder(self.num_layers, layer, self.vocabulary, self.scan_axis, name="decoder")(x)
