"""A variational autoencoder (Kingma and Welling, 2014) of handwritten digits: python examples/vae.py --compile

The digits are scikit-learn's, 8 by 8. At the end it prints some that it made up, as characters.
"""

from __future__ import annotations

from common import compiled, draws, options, train

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.demo.data import digits


class VAE(nn.Module):
    """64 pixels -> a Gaussian over a few numbers -> 64 pixels."""

    def __init__(self, width: int, latent: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.mean, self.log_variance = nn.Linear(width, latent), nn.Linear(width, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 64)
        )

    def forward(self, x):
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + flame.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(z), mean, log_variance


def bound(logits, x, mean, log_variance):
    """The negative evidence lower bound of an image: how badly it is rebuilt, and how far the code is from a standard Gaussian."""
    rebuilt = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    distance = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
    return rebuilt.mean(), distance.mean()


def main(argv: list[str] | None = None, after=None) -> dict[str, float]:
    args = options(__doc__.splitlines()[0], argv, steps=2000, batch=128, width=256, latent=8, lr=2e-3)
    flame.manual_seed(args.seed)
    if args.small:
        args.batch, args.width, args.latent = 16, 16, 2
    images = digits(args.seed).train_x.reshape(-1, 64)
    model = VAE(args.width, args.latent)
    optimizer = flame.optim.Adam(model.parameters(), lr=args.lr)

    def learn(x):
        optimizer.zero_grad()
        logits, mean, log_variance = model(x)
        rebuilt, distance = bound(logits, x, mean, log_variance)
        (rebuilt + distance).backward()
        optimizer.step()
        return rebuilt, distance

    run = compiled(learn, args)

    def step(i: int) -> dict:
        rows = draws(args, i).integers(0, len(images), args.batch)
        rebuilt, distance = run(flame.tensor(images[rows]))
        return {"rebuilt": rebuilt, "distance": distance}

    measured = train(args, {"model": model, "optimizer": optimizer}, step, after)
    with flame.no_grad():
        made = model.decoder(flame.randn(5, args.latent)).sigmoid().view(5, 8, 8).numpy()
    for row in range(8):
        print("   ".join("".join(" .:-=+*#%@"[int(9.99 * v)] for v in image[row]) for image in made))
    return measured


if __name__ == "__main__":
    main()
