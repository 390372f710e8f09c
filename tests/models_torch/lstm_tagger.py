"""A bidirectional LSTM tagger with packed sequences and characters, and a conditional random field decoded by Viterbi."""

import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence


class CRF(nn.Module):
    def __init__(self, num_tags):
        super().__init__()
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        for p in self.parameters():
            nn.init.uniform_(p, -0.1, 0.1)

    def forward(self, emissions, tags, mask):
        return (self._score(emissions, tags, mask) - self._normalizer(emissions, mask)).sum() / mask.float().sum()

    def _score(self, emissions, tags, mask):
        seq_length, batch_size = tags.shape
        score = self.start_transitions[tags[0]]
        score += emissions[0, torch.arange(batch_size), tags[0]]
        for i in range(1, seq_length):
            score += self.transitions[tags[i - 1], tags[i]] * mask[i]
            score += emissions[i, torch.arange(batch_size), tags[i]] * mask[i]
        return score

    def _normalizer(self, emissions, mask):
        score = self.start_transitions + emissions[0]
        for i in range(1, emissions.size(0)):
            next_score = score.unsqueeze(2) + self.transitions + emissions[i].unsqueeze(1)
            score = torch.where(mask[i].unsqueeze(1), torch.logsumexp(next_score, dim=1), score)
        return torch.logsumexp(score, dim=1)

    def decode(self, emissions):
        score, history = self.start_transitions + emissions[0], []
        for i in range(1, emissions.size(0)):
            best, indices = (score[:, :, None] + self.transitions[None]).max(dim=1)
            score = best + emissions[i]
            history.append(indices)
        tags = [score.argmax(dim=1)]
        for indices in reversed(history):
            tags.append(indices.gather(1, tags[-1].unsqueeze(1)).squeeze(1))
        tags.reverse()
        return torch.stack(tags)


class Tagger(nn.Module):
    def __init__(self, vocab=11, tags=4, width=6, hidden=5):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width, padding_idx=0)
        self.char = nn.Conv1d(width, 3, kernel_size=3, padding=1)
        self.lstm = nn.LSTM(width + 3, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(2 * hidden, tags)
        self.crf = CRF(tags)

    def forward(self, sequences):
        lengths = torch.tensor([len(s) for s in sequences])
        padded = pad_sequence(sequences, batch_first=True, padding_value=0)
        e = self.embedding(padded)
        e = torch.cat([e, torch.relu(self.char(e.transpose(1, 2))).transpose(1, 2)], -1)
        packed = pack_padded_sequence(e, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, (h, c) = self.lstm(packed)
        output, out_lengths = pad_packed_sequence(output, batch_first=True)
        mask = torch.arange(padded.size(1))[None, :] < lengths[:, None]
        return self.hidden2tag(output).transpose(0, 1), mask.t(), h, out_lengths


def build():
    return Tagger()


def batch(r):
    return r.integers(1, 11, (5,)), r.integers(1, 11, (3,)), r.integers(1, 11, (4,)), r.integers(0, 4, (5, 3))


def loss(model, a, b, c, tags):
    emissions, mask, h, lengths = model([a, b, c])
    value = -model.crf(emissions, tags, mask)
    with torch.no_grad():
        decoded = model.crf.decode(emissions)
    return value, [emissions, h, lengths, decoded]
