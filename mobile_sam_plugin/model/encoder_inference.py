"""TinyViT and SAM's neck arranged for inference: exactly the same function in less time.

The differences from running the modules one after another, all of them exact up to rounding:

* Batch norms are folded into the convolutions before them, the layer norms of attentions and MLPs
  into the projections after them; tables of attention biases are looked up once.
* Channels come last, so that a feature map is also its list of tokens: nothing is transposed
  between convolutions and attentions, and every linear layer is a 1x1 convolution.
* On a CPU, layers work through an image in bands of rows small enough for its cache. The first
  stage on a whole image of 1024 x 1024 pixels writes 67 MB per step, to pages that the kernel must
  provide again each time; that costs more than the arithmetic.
* Windows are padded with zeros after the projection to queries, keys and values, not before it. A
  key's bias moves all scores of a query alike, which softmax ignores, and is dropped; a value's
  bias passes through attention's average, and is folded into the output projection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import ConvNorm, MBConv, PatchEmbed, PatchMerging, TinyVit, TinyVitBlock
from torch import Tensor, nn

# Numbers in the largest tensor of a band: 4 MB in float32, the fastest measured.
BAND_SIZE = 2**20


class InferenceEncoder:
    """Computes what trunk and neck do in eval mode, from their current weights.

    All layers map channels-last feature maps, (B, C, H, W), to such.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, trunk: TinyVit, neck: nn.Sequential) -> None:
        first_stage, *attention_stages = trunk.stages
        self.layers: list[Callable[[Tensor], Tensor]] = [_PatchEmbedding(trunk.patch_embed)]
        self.layers += [_Bottleneck(block) for block in first_stage.blocks]
        for stage in attention_stages:
            self.layers.append(_Bottleneck(stage.downsample))
            for block in stage.blocks:
                self.layers += [_WindowAttention(block), _LocalConvolutionAndMlp(block)]
        self.layers += [_Neck(*neck)]

    def __call__(self, images: Tensor) -> Tensor:
        """Encodes images, (B, 3, H, W), as embeddings, (B, 256, H / 16, W / 16)."""
        if images.device.type != "cpu":
            return self._encode(images)
        # In a single channels-last image, a band of rows is one piece of memory.
        return torch.cat([self._encode(image) for image in images.split(1)])

    def _encode(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = layer(x)
        return x.contiguous()


@dataclass(frozen=True)
class _Convolution:
    """A 1x1 convolution, or a 3x3 one with padding 1."""

    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    groups: int = 1

    @property
    def out_channels(self) -> int:
        return self.weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)

    def rows_for(self, rows: slice, height: int) -> tuple[slice, slice]:
        """Returns the rows of an input of some height that a 3x3 convolution reads for output rows.

        Returns:
            The rows of the input, and the place of the output rows in their convolution: the rows
            next to these are wrong, padded with zeros in the middle of the image.
        """
        first = max(rows.start - 1, 0)
        stop = min((rows.stop - 1) * self.stride + 2, height)
        return slice(first * self.stride, stop), slice(rows.start - first, rows.stop - first)


class _PatchEmbedding:
    def __init__(self, module: PatchEmbed) -> None:
        self.conv1 = _fold_batch_norm(module.conv1)
        self.conv2 = _fold_batch_norm(module.conv2)

    def __call__(self, x: Tensor) -> Tensor:
        image_height, image_width = x.shape[2:]
        hidden_height = ceil(image_height / self.conv1.stride)

        def band(rows: slice) -> Tensor:
            hidden_rows, kept = self.conv2.rows_for(rows, hidden_height)
            image_rows, hidden_kept = self.conv1.rows_for(hidden_rows, image_height)
            hidden = F.gelu(self.conv1(x[:, :, image_rows])[:, :, hidden_kept])
            return self.conv2(hidden)[:, :, kept]

        height = ceil(hidden_height / self.conv2.stride)
        return _in_bands(band, x, height, self.conv1.out_channels * image_width)


class _Bottleneck:
    """MBConv, or the downsampling between stages, which is one without a shortcut."""

    def __init__(self, module: MBConv | PatchMerging) -> None:
        self.expand = _fold_batch_norm(module.conv1)
        self.depthwise = _fold_batch_norm(module.conv2)
        self.project = _fold_batch_norm(module.conv3)
        self.has_shortcut = isinstance(module, MBConv)

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        stride = self.depthwise.stride

        def band(rows: slice) -> Tensor:
            rows_read, kept = self.depthwise.rows_for(rows, height)
            hidden = F.gelu(self.expand(x[:, :, rows_read]))
            hidden = F.gelu(self.depthwise(hidden)[:, :, kept])
            out = self.project(hidden)
            return F.gelu(out.add_(x[:, :, rows])) if self.has_shortcut else out

        row_size = stride * width * self.expand.out_channels
        return _in_bands(band, x, ceil(height / stride), row_size)


class _WindowAttention:
    """The first half of a transformer block: attention within windows, and its shortcut."""

    def __init__(self, block: TinyVitBlock) -> None:
        attention = block.attn
        self.window_size: int = block.window_size
        self.num_heads: int = attention.num_heads
        self.norm_eps: float = attention.norm.eps
        # A head's query, key and value follow one another; all heads' queries are to come first.
        weight, bias = (
            tensor.unflatten(0, (self.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            for tensor in _fold_layer_norm(attention.norm, attention.qkv)
        )
        query_bias, key_bias, value_bias = bias.chunk(3)
        output_weight = _at_least_float32(attention.proj.weight)
        output_bias = attention.proj.bias + output_weight @ value_bias
        dtype = attention.proj.weight.dtype
        no_bias = torch.zeros_like(key_bias)
        self.qkv = _pointwise(weight, torch.cat([query_bias, no_bias, no_bias]), dtype)
        self.project = _pointwise(output_weight, output_bias, dtype)
        # (heads, N, N), N the tokens of a window
        self.position_bias: Tensor = attention.attention_biases[:, attention.attention_bias_idxs]

    def __call__(self, x: Tensor) -> Tensor:
        size = self.window_size
        height, width = x.shape[2:]

        def band(window_rows: slice) -> Tensor:
            part = x[:, :, window_rows.start * size : window_rows.stop * size]
            qkv = self.qkv(_layer_norm(part, self.norm_eps))
            return self.project(self._attend(qkv)).add_(part)

        row_size = size * width * self.qkv.out_channels
        return _in_bands(band, x, ceil(height / size), row_size)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Computes attention, (B, C, H, W), of queries, keys and values, (B, 3 * C, H, W)."""
        size, heads = self.window_size, self.num_heads
        qkv = qkv.permute(0, 2, 3, 1)
        batch, height, width, channels = qkv.shape
        rows, columns = ceil(height / size), ceil(width / size)
        qkv = F.pad(qkv, (0, 0, 0, columns * size - width, 0, rows * size - height))
        qkv = qkv.reshape(batch, rows, size, columns, size, 3, heads, channels // (3 * heads))
        query, key, value = (
            qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)
            .reshape(3, batch * rows * columns, heads, size * size, -1)
            .unbind()
        )
        # With a bias of three axes PyTorch takes a path twice as slow.
        position_bias = self.position_bias.expand(len(query), -1, -1, -1)
        x = F.scaled_dot_product_attention(query, key, value, position_bias)
        x = x.transpose(1, 2).reshape(batch, rows, columns, size, size, -1)
        x = x.transpose(2, 3).reshape(batch, rows * size, columns * size, -1)
        return x[:, :height, :width].permute(0, 3, 1, 2)


class _LocalConvolutionAndMlp:
    """The second half of a transformer block: a depthwise convolution, then the MLP."""

    def __init__(self, block: TinyVitBlock) -> None:
        mlp = block.mlp
        dtype = mlp.fc1.weight.dtype
        self.local_convolution = _fold_batch_norm(block.local_conv)
        self.norm_eps: float = mlp.norm.eps
        self.expand = _pointwise(*_fold_layer_norm(mlp.norm, mlp.fc1), dtype)
        self.project = _pointwise(mlp.fc2.weight, mlp.fc2.bias, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]

        def band(rows: slice) -> Tensor:
            rows_read, kept = self.local_convolution.rows_for(rows, height)
            local = self.local_convolution(x[:, :, rows_read])[:, :, kept]
            hidden = F.gelu(self.expand(_layer_norm(local, self.norm_eps)))
            return self.project(hidden).add_(local)

        return _in_bands(band, x, height, width * self.expand.out_channels)


class _Neck:
    def __init__(
        self, conv1: nn.Conv2d, norm1: LayerNorm2d, conv2: nn.Conv2d, norm2: LayerNorm2d
    ) -> None:
        self.conv1, self.conv2 = (
            _Convolution(conv.weight.contiguous(memory_format=torch.channels_last), bias=None)
            for conv in (conv1, conv2)
        )
        self.norm1, self.norm2 = (
            (norm.eps, norm.weight.detach(), norm.bias.detach()) for norm in (norm1, norm2)
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = _layer_norm(self.conv1(x), *self.norm1)
        return _layer_norm(self.conv2(x), *self.norm2)


def _in_bands(compute: Callable[[slice], Tensor], x: Tensor, height: int, row_size: int) -> Tensor:
    """All rows of a layer's output, ``height`` of them, computed band by band.

    Args:
        compute: computes some rows of the output.
        x: the layer's input.
        height: the number of rows; for ``compute`` a row may be several of the tensor it returns.
        row_size: numbers per row in the layer's largest tensor.
    """
    step = max(1, BAND_SIZE // row_size) if x.device.type == "cpu" else height
    if step >= height:
        return compute(slice(0, height))
    bands = [compute(slice(start, min(start + step, height))) for start in range(0, height, step)]
    # Joined with channels last in shape as well: torch.cat then copies whole blocks.
    return torch.cat([band.permute(0, 2, 3, 1) for band in bands], dim=1).permute(0, 3, 1, 2)


def _layer_norm(
    x: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Normalises over the channels of (B, C, H, W)."""
    x = x.permute(0, 2, 3, 1)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).permute(0, 3, 1, 2)


def _fold_batch_norm(module: ConvNorm) -> _Convolution:
    conv, norm = module.conv, module.bn
    scale = norm.weight * torch.rsqrt(_at_least_float32(norm.running_var) + norm.eps)
    weight = conv.weight * scale[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale
    return _Convolution(
        weight.to(conv.weight.dtype).contiguous(memory_format=torch.channels_last),
        bias.to(conv.weight.dtype),
        conv.stride[0],
        conv.groups,
    )


def _fold_layer_norm(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer that takes what is normalised, but not scaled by `norm`."""
    weight = _at_least_float32(linear.weight)
    return weight * norm.weight, linear.bias + weight @ _at_least_float32(norm.bias)


def _pointwise(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> _Convolution:
    """A linear layer as a 1x1 convolution."""
    return _Convolution(weight.detach()[:, :, None, None].to(dtype), bias.detach().to(dtype))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
