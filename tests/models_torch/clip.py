"""Images and texts in one space: two encoders, a learned temperature, a symmetric contrastive loss, under autocast."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor):
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, attn_mask: torch.Tensor | None = None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, width * 2))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(width * 2, width))
        self.ln_2 = nn.LayerNorm(width)
        self.attn_mask = attn_mask

    def attention(self, x):
        mask = self.attn_mask.to(dtype=x.dtype, device=x.device) if self.attn_mask is not None else None
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x):
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CLIP(nn.Module):
    def __init__(self, width: int = 16, context: int = 6, vocab: int = 23, patch: int = 4, image: int = 8) -> None:
        super().__init__()
        self.context = context
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional = nn.Parameter(width**-0.5 * torch.randn((image // patch) ** 2 + 1, width))
        self.visual = ResidualAttentionBlock(width, 2)
        self.token_embedding = nn.Embedding(vocab, width)
        self.text_positional = nn.Parameter(torch.empty(context, width))
        self.textual = ResidualAttentionBlock(width, 2, self.build_attention_mask())
        self.ln_final = nn.LayerNorm(width)
        self.image_projection = nn.Parameter(torch.empty(width, 12))
        self.text_projection = nn.Parameter(torch.empty(width, 12))
        self.logit_scale = nn.Parameter(torch.ones([]) * np.log(1 / 0.07))
        for p in (self.text_positional, self.image_projection, self.text_projection):
            nn.init.normal_(p, std=width**-0.5)

    def build_attention_mask(self):
        mask = torch.empty(self.context, self.context)
        mask.fill_(float("-inf"))
        return mask.triu_(1)

    def encode_image(self, image):
        x = self.conv1(image).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.to(x.dtype) + torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
        x = torch.cat([first, x], dim=1) + self.positional.to(x.dtype)
        x = self.visual(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_final(x[:, 0, :]) @ self.image_projection

    def encode_text(self, text):
        x = self.token_embedding(text) + self.text_positional
        x = self.ln_final(self.textual(x.permute(1, 0, 2)).permute(1, 0, 2))
        return x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ self.text_projection  # where the text ends

    def forward(self, image, text):
        image, text = self.encode_image(image), self.encode_text(text)
        image = image / image.norm(dim=1, keepdim=True)
        text = F.normalize(text, dim=1)
        logits = self.logit_scale.exp().clamp(max=100) * image @ text.t()
        return logits, logits.t()


def build():
    return CLIP()


def batch(r):
    texts = r.integers(0, 20, (5, 6))
    texts[np.arange(5), r.integers(2, 6, 5)] = 22
    return [r.standard_normal((5, 3, 8, 8)).astype(np.float32), texts.astype(np.int64)]


def loss(model, images, texts):
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16, enabled=False):
        per_image, per_text = model(images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.encode_text(texts)
    labels = torch.arange(len(images), device=images.device)
    value = (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2
    return value, [per_image, str(half.dtype).split(".")[-1] == "bfloat16", (per_image.argmax(1) == labels).float().mean()]
