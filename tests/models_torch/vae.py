"""A convolutional variational autoencoder with the reparametrisation trick, and a vector-quantising layer with straight-through."""

import torch
import torch.utils.data
from torch import nn, optim
from torch.nn import functional as F


class VectorQuantizer(nn.Module):
    def __init__(self, n_embeddings, dim, beta=0.25):
        super().__init__()
        self.beta = beta
        self.embedding = nn.Embedding(n_embeddings, dim)
        self.embedding.weight.data.uniform_(-1.0 / n_embeddings, 1.0 / n_embeddings)

    def forward(self, z):
        flat = z.view(-1, self.embedding.embedding_dim)
        d = (
            torch.sum(flat**2, dim=1, keepdim=True)
            + torch.sum(self.embedding.weight**2, dim=1)
            - 2 * torch.matmul(flat, self.embedding.weight.t())
        )
        index = torch.argmin(d, dim=1).unsqueeze(1)
        one_hot = torch.zeros(index.shape[0], self.embedding.num_embeddings, device=z.device)
        one_hot.scatter_(1, index, 1)
        z_q = torch.matmul(one_hot, self.embedding.weight).view(z.shape)
        loss = torch.mean((z_q.detach() - z) ** 2) + self.beta * torch.mean((z_q - z.detach()) ** 2)
        z_q = z + (z_q - z).detach()
        e_mean = torch.mean(one_hot, dim=0)
        perplexity = torch.exp(-torch.sum(e_mean * torch.log(e_mean + 1e-10)))
        return loss, z_q, perplexity


class VAE(nn.Module):
    def __init__(self, latent=6):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, 8, 3, 2, 1), nn.ELU(), nn.Flatten()
        )
        self.fc_mu, self.fc_logvar = nn.Linear(32, latent), nn.Linear(32, latent)
        self.quantize = VectorQuantizer(5, 3)
        self.decoder = nn.Sequential(
            nn.Linear(latent, 32),
            nn.Unflatten(1, (8, 2, 2)),
            nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
            nn.PReLU(4),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(4, 1, 3, padding=1, padding_mode="reflect"),
            nn.Sigmoid(),
        )

    def reparameterize(self, mu, logvar, eps):
        std = torch.exp(0.5 * logvar)
        return mu.addcmul(eps, std)

    def forward(self, x, eps):
        h = self.encoder(x)
        mu, logvar = self.fc_mu(h), self.fc_logvar(h).clamp(-4, 4)
        vq, z, perplexity = self.quantize(self.reparameterize(mu, logvar, eps))
        return self.decoder(z), mu, logvar, vq, perplexity


def loss_function(recon_x, x, mu, logvar):
    BCE = F.binary_cross_entropy(recon_x, x, reduction="sum")
    KLD = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return BCE + KLD


def build():
    model = VAE()
    model.optimizer = optim.Adam(model.parameters(), lr=1e-3)
    return model


def batch(r):
    return r.random((3, 1, 8, 8)).astype("float32"), r.standard_normal((3, 6)).astype("float32")


def loss(model, x, eps):
    recon, mu, logvar, vq, perplexity = model(x, eps)
    return loss_function(recon, x, mu, logvar) + vq, [recon, mu, logvar, perplexity]
