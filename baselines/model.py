"""C1C2C3C40 in PyTorch. Modules are named like the layers of cifar_jax, so that port.py can carry weights across."""

import torch
from torch import nn


class Conv(nn.Module):
    """k x k convolution - norm - relu."""

    def __init__(self, in_channels, channels, kernel_size=3, **conv):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, bias=False, **conv)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Separable(nn.Module):
    """Depthwise 3x3 - 1x1 - norm, plus the input where shapes allow, - relu."""

    def __init__(self, in_channels, channels, **conv):
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, groups=in_channels, bias=False, **conv)
        self.conv_pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.norm(self.conv_pw(self.conv_dw(x)))
        return torch.relu(x + y if x.shape == y.shape else y)


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of each position over its channels."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """3x3 convolution - norm over channels."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm = ChannelNorm(channels)

    def forward(self, x):
        return self.norm(self.conv(x))


class SeparableNorm(nn.Module):
    """Depthwise 4x4 of stride 2 - 1x1 - norm over channels."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 4, stride=2, padding=1, groups=in_channels, bias=False)
        self.conv_pw = nn.Conv2d(in_channels, channels, 1)
        self.norm = ChannelNorm(channels)

    def forward(self, x):
        return self.norm(self.conv_pw(self.conv_dw(x)))


class Gated(nn.Module):
    """Three windows on parts of the channels - norm over channels - gated pair of 1x1 - 1x1, plus the scaled input; so many
    times, with the same weights.
    """

    def __init__(self, in_channels, channels, turns=1):
        super().__init__()
        self.turns = turns
        self.parts = [(in_channels + part) // 4 for part in range(4)]
        _, near, wide, far = self.parts
        self.conv_near = nn.Conv2d(near, near, 3, padding=1, groups=near)
        self.conv_wide = nn.Conv2d(wide, wide, 7, padding=3, groups=wide)
        self.conv_far = nn.Conv2d(far, far, 7, padding=9, dilation=3, groups=far)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.norm = ChannelNorm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, 2 * channels, 1)
        self.conv_out = nn.Conv2d(channels, channels, 1)
        self.skip = nn.Parameter(torch.ones(channels)) if in_channels == channels else None

    def forward(self, x):
        for _ in range(self.turns):
            x = self.turn(x)
        return x

    def turn(self, x):
        same, near, wide, far = x.split(self.parts, 1)
        seen = torch.cat([same, self.conv_near(near), self.conv_wide(wide), self.conv_far(self.pool(far))], 1)
        value, gate = self.conv_in(self.norm(seen)).chunk(2, 1)
        y = self.conv_out(value * torch.tanh(torch.exp(value.clamp(max=4))) * gate)
        return y if self.skip is None else y + x * self.skip[:, None, None]


def strided(w1, w2, w3, w4):
    return {
        "c1_conv": Conv(3, w1, padding=1),
        "c1_sep": Separable(w1, w1, padding=1),
        "t1": Separable(w1, w2, stride=2, padding=1),
        "c2_sep1": Separable(w2, w2, dilation=2, padding=2),
        "c2_sep2": Separable(w2, w2, padding=1),
        "c2_sep3": Separable(w2, w2, padding=1),
        "t2": Separable(w2, w3, stride=2, padding=1),
        "c3_sep1": Separable(w3, w3, dilation=2, padding=2),
        "c3_sep2": Separable(w3, w3, padding=1),
        "c3_sep3": Separable(w3, w3, padding=1),
        "t3": Separable(w3, w4, stride=2, padding=1),
        "c4_sep": Separable(w4, w4, padding=1),
    }


def dilated(w1, w2, w3, w4):
    return {
        "c1_conv": Conv(3, w1, padding=1),
        "c1_sep": Separable(w1, w1, padding=1),
        "t1": Conv(w1, w2, dilation=4),
        "c2_sep1": Separable(w2, w2, dilation=2, padding=2),
        "c2_sep2": Separable(w2, w2, padding=1),
        "t2": Conv(w2, w3, dilation=4),
        "c3_sep1": Separable(w3, w3, dilation=2, padding=2),
        "c3_sep2": Separable(w3, w3, dilation=2, padding=2),
        "c3_sep3": Separable(w3, w3, padding=1),
        "t3": Conv(w3, w4, dilation=4),
        "c4_sep1": Separable(w4, w4, dilation=2, padding=2),
        "c4_sep2": Separable(w4, w4, padding=1),
    }


def mixed(w1, w2, w3, w4):
    return {
        "c1_conv": Conv(3, w1, padding=1),
        "c1_sep": Separable(w1, w1, padding=1),
        "t1": Conv(w1, w2, 1),
        "c2_sep": Separable(w2, w2, dilation=2, padding=2),
        "t2": Conv(w2, w3, dilation=8),
        "c3_sep1": Separable(w3, w3, dilation=2, padding=2),
        "c3_sep2": Separable(w3, w3, padding=1),
        "t3": Conv(w3, w4, stride=2, padding=1),
        "c4_sep1": Separable(w4, w4, dilation=2, padding=2),
        "c4_sep2": Separable(w4, w4, padding=1),
    }


def early(w1, w2, w3, w4):
    return {
        "c1_conv": Conv(3, w1, stride=2, padding=1),
        "c1_sep": Separable(w1, w1, padding=1),
        "t1": Separable(w1, w2, padding=1),
        "c2_sep1": Separable(w2, w2, dilation=2, padding=2),
        "c2_sep2": Separable(w2, w2, padding=1),
        "t2": Separable(w2, w3, stride=2, padding=1),
        "c3_sep1": Separable(w3, w3, dilation=2, padding=2),
        "c3_sep2": Separable(w3, w3, padding=1),
        "c3_sep3": Separable(w3, w3, padding=1),
        "t3": Separable(w3, w4, stride=2, padding=1),
        "c4_sep": Separable(w4, w4, padding=1),
    }


def coarse(w1, w2, w3, w4):
    return {
        "c1_conv": Conv(3, w1, 4, stride=2, padding=1),
        "c1_sep": Separable(w1, w1, padding=1),
        "t1": Separable(w1, w2, stride=2, padding=1),
        "c2_sep1": Separable(w2, w2, dilation=2, padding=2),
        "c2_sep2": Separable(w2, w2, padding=1),
        "t2": Separable(w2, w3, padding=1),
        "c3_sep1": Separable(w3, w3, dilation=2, padding=2),
        "c3_sep2": Separable(w3, w3, padding=1),
        "t3": Separable(w3, w4, stride=2, padding=1),
        "c4_sep": Separable(w4, w4, padding=1),
    }


def gated(w1, w2, w3, w4):
    return {
        "c1_conv": ConvNorm(3, w1),
        "c1_gated": Gated(w1, w1, turns=2),
        "c2_gated": Gated(w1, w2, turns=2 if w1 == w2 else 1),
        "t2": SeparableNorm(w2, w3),
        "c3_gated": Gated(w3, w3, turns=2),
        "c4_gated": Gated(w3, w4, turns=2 if w3 == w4 else 1),
    }


VARIANTS = {"strided": strided, "dilated": dilated, "mixed": mixed, "early": early, "coarse": coarse, "gated": gated}


class Network(nn.Module):
    """Images (b, 3, 32, 32), normalized -> logits (b, num_classes). The arguments are the config's model section."""

    def __init__(self, variant, widths, num_classes, head="dense"):
        super().__init__()
        for name, layer in VARIANTS[variant](*widths).items():
            self.add_module(name, layer)
        self.blocks = list(self._modules)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.pool_last = head == "pointwise"
        self.head = nn.Conv2d(widths[-1], num_classes, 1) if self.pool_last else nn.Linear(widths[-1], num_classes)
        self.apply(init_weights)
        for layer in self.children():
            if isinstance(layer, ConvNorm | SeparableNorm | Gated):
                layer.apply(init_without_relu)

    def features(self, x):
        """The last map before pooling."""
        for name in self.blocks:
            x = self._modules[name](x)
        return x

    def forward(self, x):
        x = self.features(x)
        if self.pool_last:
            return self.pool(self.head(x)).flatten(1)
        return self.head(self.pool(x).flatten(1))


def init_weights(module):
    """He initialization of convolutions without a bias; the head, which no relu follows, gets half that variance."""
    if isinstance(module, nn.Conv2d) and module.bias is None:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)


def init_without_relu(module):
    """PyTorch's own initialization of kernels, but biases of zero."""
    if isinstance(module, nn.Conv2d):
        module.reset_parameters()
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def create_model(config):
    """The network of a config's model section, in channels_last."""
    model = Network(config.variant, tuple(config.widths), config.num_classes, config.head)
    return model.to(memory_format=torch.channels_last)
