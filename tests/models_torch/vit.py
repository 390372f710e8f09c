"""A vision transformer in lucidrains' manner: patches by reshaping, a class token, attention by chunks, pre-norm blocks."""

import torch
from torch import nn


def pair(t):
    return t if isinstance(t, tuple) else (t, t)


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x, **kwargs):
        return self.fn(self.norm(x), **kwargs)


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x):
        return self.net(x)


class Attention(nn.Module):
    def __init__(self, dim, heads=2, dim_head=6, dropout=0.0):
        super().__init__()
        inner_dim = dim_head * heads
        self.heads, self.scale = heads, dim_head**-0.5
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(dim, inner_dim * 3, bias=False)
        project_out = not (heads == 1 and dim_head == dim)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(dropout)) if project_out else nn.Identity()

    def forward(self, x):
        b, n, _ = x.shape
        qkv = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = map(lambda t: t.unflatten(-1, (self.heads, -1)).permute(0, 2, 1, 3), qkv)
        dots = torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale
        out = torch.einsum("bhij,bhjd->bhid", self.attend(dots), v)
        return self.to_out(out.permute(0, 2, 1, 3).reshape(b, n, -1))


class ViT(nn.Module):
    def __init__(self, *, image_size, patch_size, num_classes, dim, depth, heads, mlp_dim, pool="cls", channels=3):
        super().__init__()
        image_height, image_width = pair(image_size)
        self.p1, self.p2 = pair(patch_size)
        num_patches = (image_height // self.p1) * (image_width // self.p2)
        self.to_patch_embedding = nn.Linear(channels * self.p1 * self.p2, dim)
        self.pos_embedding = nn.Parameter(torch.randn(1, num_patches + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(
                nn.ModuleList([PreNorm(dim, Attention(dim, heads=heads)), PreNorm(dim, FeedForward(dim, mlp_dim))])
            )
        self.pool = pool
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, img):
        b, c, h, w = img.shape
        x = img.reshape(b, c, h // self.p1, self.p1, w // self.p2, self.p2).permute(0, 2, 4, 3, 5, 1)
        x = self.to_patch_embedding(x.reshape(b, -1, self.p1 * self.p2 * c))
        cls_tokens = self.cls_token.expand(b, -1, -1)
        x = torch.cat((cls_tokens, x), dim=1)
        x += self.pos_embedding[:, : x.shape[1]]
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        x = x.mean(dim=1) if self.pool == "mean" else x[:, 0]
        return self.mlp_head(x)


def build():
    return ViT(image_size=8, patch_size=4, num_classes=3, dim=12, depth=2, heads=2, mlp_dim=20)


def batch(r):
    return r.standard_normal((2, 3, 8, 8)).astype("float32"), r.random((2, 3)).astype("float32")


def loss(model, images, soft):
    logits = model(images)
    value = torch.sum(-torch.softmax(soft, 1) * torch.nn.functional.log_softmax(logits, dim=-1), dim=-1).mean()
    return value, [logits]
