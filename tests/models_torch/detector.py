"""A one-stage detector: a grid of boxes, the overlap of boxes as loss, and non-maximum suppression in plain operations."""

from typing import List, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Detections(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor


class Conv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1, g=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True) if act is True else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class SPPF(nn.Module):
    def __init__(self, c, k=3):
        super().__init__()
        self.cv1, self.cv2 = Conv(c, c // 2), Conv(c * 2, c)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)

    def forward(self, x):
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class Detector(nn.Module):
    def __init__(self, classes: int = 3, width: int = 4, stride: int = 4) -> None:
        super().__init__()
        self.nc, self.stride = classes, stride
        self.backbone = nn.Sequential(Conv(3, width, 3, 2), Conv(width, 2 * width, 3, 2), SPPF(2 * width))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral = Conv(3 * width, 2 * width, 3, 2)
        self.first = self.backbone[0]
        self.head = nn.Conv2d(2 * width, 5 + classes, 1)
        with torch.no_grad():
            self.head.bias[4:].fill_(-2.0)

    def forward(self, x):
        early = self.first(x)
        deep = self.backbone[1:](early)
        x = self.head(deep + self.lateral(torch.cat([self.up(deep), early], 1)))
        b, _, h, w = x.shape
        x = x.view(b, 5 + self.nc, h * w).permute(0, 2, 1)
        gy, gx = torch.meshgrid(torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij")
        grid = torch.stack((gx, gy), -1).view(1, -1, 2).to(x.dtype)
        xy = (x[..., :2].sigmoid() * 2 - 0.5 + grid) * self.stride
        wh = (x[..., 2:4].sigmoid() * 2) ** 2 * self.stride
        return torch.cat((xy - wh / 2, xy + wh / 2), -1), x[..., 4:]


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    area = lambda t: (t[..., 2] - t[..., 0]) * (t[..., 3] - t[..., 1])
    lt = torch.max(a[..., :, None, :2], b[..., None, :, :2])
    rb = torch.min(a[..., :, None, 2:], b[..., None, :, 2:])
    inter = (rb - lt).clamp(min=0).prod(-1)
    return inter / (area(a)[..., :, None] + area(b)[..., None, :] - inter + 1e-7)


@torch.no_grad()
def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    order = scores.argsort(descending=True)
    keep: List[int] = []
    while order.numel() > 0:
        i = int(order[0])
        keep.append(i)
        if order.numel() == 1:
            break
        iou = box_iou(boxes[i].unsqueeze(0), boxes[order[1:]]).squeeze(0)
        order = order[1:][iou <= threshold]
    return torch.as_tensor(keep, dtype=torch.long, device=boxes.device)


def build():
    return Detector()


def batch(r):
    corner = r.uniform(0, 9, (2, 2, 2))
    boxes = np.concatenate([corner, corner + r.uniform(3, 7, (2, 2, 2))], -1)
    return [
        r.standard_normal((2, 3, 16, 16)).astype(np.float32),
        boxes.astype(np.float32),
        r.integers(0, 3, (2, 2)).astype(np.int64),
    ]


def loss(model, images, boxes, labels):
    found, logits = model(images)
    iou = box_iou(found, boxes)  # [batch, cells, objects]
    best, which = iou.max(1)
    picked = torch.gather(logits, 1, which.unsqueeze(-1).expand(-1, -1, logits.size(-1)))
    target = F.one_hot(labels, model.nc).to(logits.dtype)
    objectness = torch.zeros_like(logits[..., 0]).scatter_(1, which, best.detach().clamp(0))
    value = (
        (1 - best).mean()
        + F.binary_cross_entropy_with_logits(picked[..., 1:], target)
        + F.binary_cross_entropy_with_logits(logits[..., 0], objectness)
    )
    scores = (logits[0, :, 0].sigmoid() * logits[0, :, 1:].sigmoid().amax(-1)).detach()
    keep = nms(found[0].detach(), scores, 0.3)
    out = Detections(found[0].detach()[keep], scores[keep], logits[0].detach()[keep][:, 1:].argmax(-1))
    return value, [*out, best]
