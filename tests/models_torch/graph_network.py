"""A graph network without a library: messages by index_select, sums by scatter_add_ and index_add_, attention by scatter_reduce."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def scatter_softmax(src, index, num_nodes):
    top = torch.full((num_nodes, src.size(1)), float("-inf")).scatter_reduce(
        0, index.unsqueeze(-1).expand_as(src), src, reduce="amax", include_self=True
    )
    out = (src - top.detach().index_select(0, index)).exp()
    total = torch.zeros(num_nodes, src.size(1)).index_add_(0, index, out) + 1e-16
    return out / total[index]


class GCNConv(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x, edge_index):
        loop = torch.arange(0, x.size(0), dtype=torch.long, device=x.device).unsqueeze(0).repeat(2, 1)
        edge_index = torch.cat([edge_index, loop], dim=1)
        row, col = edge_index
        deg = torch.bincount(col, minlength=x.size(0)).to(x.dtype)
        deg_inv_sqrt = deg.pow(-0.5)
        deg_inv_sqrt[deg_inv_sqrt == float("inf")] = 0
        norm = deg_inv_sqrt[row] * deg_inv_sqrt[col]
        messages = norm.view(-1, 1) * self.lin(x).index_select(0, row)
        out = torch.zeros(x.size(0), messages.size(1)).scatter_add_(0, col.unsqueeze(1).expand_as(messages), messages)
        return out + self.bias


class GATConv(nn.Module):
    def __init__(self, in_channels, out_channels, heads=2):
        super().__init__()
        self.heads, self.out_channels = heads, out_channels
        self.lin = nn.Linear(in_channels, heads * out_channels, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        nn.init.xavier_uniform_(self.att_src)
        nn.init.xavier_uniform_(self.att_dst)

    def forward(self, x, edge_index):
        h = self.lin(x).view(-1, self.heads, self.out_channels)
        src, dst = edge_index[0], edge_index[1]
        alpha = (h * self.att_src).sum(dim=-1)[src] + (h * self.att_dst).sum(-1)[dst]
        alpha = scatter_softmax(F.leaky_relu(alpha, negative_slope=0.2), dst, x.size(0))
        out = torch.zeros_like(h)
        out = out.index_add(0, dst, h[src] * alpha.unsqueeze(-1))
        return out.flatten(start_dim=1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GCNConv(4, 6), GATConv(6, 3)
        self.pool = nn.Linear(6, 2)

    def forward(self, x, edge_index, batch):
        x = F.relu(self.conv1(x, edge_index))
        x = F.elu(self.conv2(x, edge_index))
        size = int(batch.max()) + 1
        mean = torch.zeros(size, x.size(1)).scatter_reduce(0, batch[:, None].expand_as(x), x, "mean", include_self=False)
        return F.log_softmax(self.pool(mean), dim=1), x


def build():
    return Net()


def batch(r):
    return (
        r.standard_normal((6, 4)).astype("float32"),
        r.integers(0, 6, (2, 11)),
        r.permutation([0, 0, 0, 1, 1, 1]),
        r.integers(0, 2, (2,)),
    )


def loss(model, x, edge_index, graph, y):
    out, nodes = model(x, edge_index, graph)
    return F.nll_loss(out, y), [out, nodes]
