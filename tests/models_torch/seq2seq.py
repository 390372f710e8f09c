"""A translation transformer over nn.Transformer: positional encoding as a buffer, masks, greedy decoding."""

import math

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Transformer

PAD_IDX, BOS_IDX = 1, 2


class PositionalEncoding(nn.Module):
    def __init__(self, emb_size: int, dropout: float, maxlen: int = 50):
        super().__init__()
        den = torch.exp(-torch.arange(0, emb_size, 2) * math.log(10000) / emb_size)
        pos = torch.arange(0, maxlen).reshape(maxlen, 1)
        pos_embedding = torch.zeros((maxlen, emb_size))
        pos_embedding[:, 0::2] = torch.sin(pos * den)
        pos_embedding[:, 1::2] = torch.cos(pos * den)
        pos_embedding = pos_embedding.unsqueeze(-2)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("pos_embedding", pos_embedding)

    def forward(self, token_embedding: Tensor):
        return self.dropout(token_embedding + self.pos_embedding[: token_embedding.size(0), :])


class Seq2SeqTransformer(nn.Module):
    def __init__(self, num_layers=1, emb_size=8, nhead=2, src_vocab=9, tgt_vocab=10, feedforward=12):
        super().__init__()
        self.transformer = Transformer(
            d_model=emb_size, nhead=nhead, num_encoder_layers=num_layers, num_decoder_layers=num_layers,
            dim_feedforward=feedforward, dropout=0.0,
        )  # fmt: skip
        self.generator = nn.Linear(emb_size, tgt_vocab)
        self.src_tok_emb, self.tgt_tok_emb = nn.Embedding(src_vocab, emb_size), nn.Embedding(tgt_vocab, emb_size)
        self.emb_size = emb_size
        self.positional_encoding = PositionalEncoding(emb_size, dropout=0.0)

    def embed(self, table, tokens):
        return self.positional_encoding(table(tokens.long()) * math.sqrt(self.emb_size))

    def forward(self, src, trg, src_mask, tgt_mask, src_padding_mask, tgt_padding_mask):
        outs = self.transformer(
            self.embed(self.src_tok_emb, src), self.embed(self.tgt_tok_emb, trg), src_mask, tgt_mask, None,
            src_padding_mask, tgt_padding_mask, src_padding_mask,
        )  # fmt: skip
        return self.generator(outs)

    def greedy(self, src, steps):
        memory = self.transformer.encoder(self.embed(self.src_tok_emb, src), None)
        ys = torch.ones(1, src.size(1)).fill_(BOS_IDX).type(torch.long)
        for _ in range(steps):
            tgt_mask = generate_square_subsequent_mask(ys.size(0)).type(torch.bool)
            out = self.transformer.decoder(self.embed(self.tgt_tok_emb, ys), memory, tgt_mask)
            prob = self.generator(out[-1])
            _, next_word = torch.max(prob, dim=1)
            ys = torch.cat([ys, next_word[None].type_as(src.data)], dim=0)
        return ys


def generate_square_subsequent_mask(sz):
    mask = (torch.triu(torch.ones((sz, sz))) == 1).transpose(0, 1)
    return mask.float().masked_fill(mask == 0, float("-inf")).masked_fill(mask == 1, float(0.0)).isinf()


def create_mask(src, tgt):
    src_mask = torch.zeros((src.shape[0], src.shape[0])).type(torch.bool)
    padding = (src == PAD_IDX).transpose(0, 1), (tgt == PAD_IDX).transpose(0, 1)
    return src_mask, generate_square_subsequent_mask(tgt.shape[0]), *padding


def build():
    model = Seq2SeqTransformer()
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.xavier_uniform_(p)
    return model


def batch(r):
    src, tgt = r.integers(3, 9, (5, 2)), r.integers(3, 10, (6, 2))
    src[4, 1] = tgt[5, 0] = PAD_IDX
    return src, tgt


def loss(model, src, tgt):
    tgt_input = tgt[:-1, :]
    logits = model(src, tgt_input, *create_mask(src, tgt_input))
    loss_fn = torch.nn.CrossEntropyLoss(ignore_index=PAD_IDX)
    value = loss_fn(logits.reshape(-1, logits.shape[-1]), tgt[1:, :].reshape(-1))
    with torch.no_grad():
        return value, [logits, model.greedy(src, 3)]
