"""An LSTM language model, trained by truncated backpropagation: python examples/lstm_language_model.py --compile

The text is read by several readers side by side, each going on where it was in the step before: the state is carried over, and
gradients stop at its edge. The state is part of the checkpoint.
"""

from __future__ import annotations

import numpy as np
from common import compiled, options, train

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.demo.data import python_topics


class LanguageModel(nn.Module):
    """Codes [time, readers] -> logits of the next one; the readers' states are buffers, written in place."""

    def __init__(self, vocabulary: int, width: int, layers: int, readers: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, dropout=dropout if layers > 1 else 0.0)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight  # tied
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.register_buffer("hidden", flame.zeros(layers, readers, width))
        self.register_buffer("cell", flame.zeros(layers, readers, width))

    def forward(self, codes):
        y, (hidden, cell) = self.lstm(self.drop(self.embedding(codes)), (self.hidden.clone(), self.cell.clone()))
        with flame.no_grad():
            self.hidden.copy_(hidden)
            self.cell.copy_(cell)
        return self.head(self.drop(y))


def main(argv: list[str] | None = None, after=None) -> dict[str, float]:
    args = options(__doc__.splitlines()[0], argv, steps=1000, readers=32, time=32, width=256, layers=2, lr=2e-3, dropout=0.2)
    flame.manual_seed(args.seed)
    if args.small:
        args.readers, args.time, args.width, args.layers = 4, 4, 8, 1
    text = python_topics()
    length = len(text.codes) // args.readers
    columns = text.codes[: length * args.readers].reshape(args.readers, length).T  # [length, readers]
    model = LanguageModel(len(text.characters), args.width, args.layers, args.readers, args.dropout)
    optimizer = flame.optim.AdamW(model.parameters(), lr=args.lr)

    def learn(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss

    run = compiled(learn, args)

    def step(i: int) -> dict:
        at = i * args.time % (length - args.time - 1)
        part = np.ascontiguousarray(columns[at : at + args.time + 1])
        loss = run(flame.tensor(part[:-1]), flame.tensor(part[1:]))
        return {"loss": loss}

    return train(args, {"model": model, "optimizer": optimizer}, step, after)


if __name__ == "__main__":
    main()
