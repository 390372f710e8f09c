"""MBConv blocks of an EfficientNet: depthwise convolutions, squeeze and excitation, stochastic depth, rounding of widths."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


def _make_divisible(v, divisor, min_value=None):
    if min_value is None:
        min_value = divisor
    new_v = max(min_value, int(v + divisor / 2) // divisor * divisor)
    return new_v + divisor if new_v < 0.9 * v else new_v


class ConvNormAct(nn.Sequential):
    def __init__(self, i, o, kernel_size=3, stride=1, groups=1, activation=nn.SiLU):
        layers = [nn.Conv2d(i, o, kernel_size, stride, (kernel_size - 1) // 2, groups=groups, bias=False)]
        layers.append(nn.BatchNorm2d(o, eps=1e-3, momentum=0.01))
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, squeeze, activation=partial(nn.SiLU, inplace=True)):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeeze, 1), nn.Conv2d(squeeze, channels, 1)
        self.activation, self.scale_activation = activation(), nn.Hardsigmoid()

    def forward(self, x):
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return scale * x


def drop_path(x, drop_prob: float = 0.0, training: bool = False):
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1 - drop_prob
    random_tensor = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
    return x * random_tensor.div_(keep_prob)


class MBConv(nn.Module):
    def __init__(self, i, o, expand_ratio, kernel, stride, drop_prob):
        super().__init__()
        self.use_res_connect = stride == 1 and i == o
        expanded = _make_divisible(i * expand_ratio, 4)
        layers = [ConvNormAct(i, expanded, 1)] if expanded != i else []
        layers += [
            ConvNormAct(expanded, expanded, kernel, stride, groups=expanded),
            SqueezeExcitation(expanded, max(1, i // 4)),
            ConvNormAct(expanded, o, 1, activation=None),
        ]
        self.block = nn.Sequential(*layers)
        self.drop_prob = drop_prob

    def forward(self, x):
        result = self.block(x)
        if self.use_res_connect:
            result = drop_path(result, self.drop_prob, self.training)
            result += x
        return result


class EfficientNet(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.features = nn.Sequential(
            ConvNormAct(3, 4, 3, 2), MBConv(4, 4, 1, 3, 1, 0.0), MBConv(4, 6, 4, 5, 2, 0.1), MBConv(6, 6, 4, 3, 1, 0.2)
        )
        self.classifier = nn.Sequential(nn.Dropout(p=0.2, inplace=True), nn.Linear(6, num_classes))
        for m in self.modules():
            if isinstance(m, nn.Linear):
                init_range = 1.0 / math.sqrt(m.out_features)
                nn.init.uniform_(m.weight, -init_range, init_range)
                nn.init.zeros_(m.bias)

    def forward(self, x):
        x = F.hardswish(self.features(x))
        x = F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)
        return self.classifier(x)


def build():
    return EfficientNet().eval()


def batch(r):
    return r.standard_normal((2, 3, 12, 12)).astype("float32"), (r.random((2, 3)) < 0.5).astype("float32")


def loss(model, x, y):
    logits = model(x)
    p = torch.sigmoid(logits)
    focal = F.binary_cross_entropy_with_logits(logits, y, reduction="none") * ((1 - p) * y + p * (1 - y)) ** 2
    return focal.mean(), [logits]
