"""The cheapest set of edges that parts a source from a sink: Dinic's algorithm on arrays.

Source: Y. Dinitz, "Algorithm for solution of a problem of maximum flow in networks with power estimation", 1970. Written out
because networkx's takes seconds on a training step of a few thousand values, and this some tens of milliseconds: the networks
of `partition` are shallow, so there are few phases.
"""

from __future__ import annotations

from collections import deque

UNBOUNDED = 1 << 60


class Network:
    """Nodes are numbers from `node()`; the source is 0, the sink is 1. Capacities are integers."""

    def __init__(self) -> None:
        self.edges: list[list[int]] = [[], []]  # the numbers of the edges that leave a node
        self.head: list[int] = []  # where an edge leads; edge e ^ 1 is e reversed
        self.capacity: list[int] = []

    def node(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def edge(self, a: int, b: int, capacity: int = UNBOUNDED) -> None:
        for tail, head, c in ((a, b, capacity), (b, a, 0)):
            self.edges[tail].append(len(self.head))
            self.head.append(head)
            self.capacity.append(c)

    def source_side(self) -> list[bool]:
        """Saturate the network; for each node, whether it stays connected with the source (the smallest such side).

        Raises ValueError if no finite cut exists.
        """
        total = 0
        while True:
            level = self._levels()
            if level[1] < 0:
                return [n >= 0 for n in level]
            total += self._blocking_flow(level)
            if total >= UNBOUNDED:
                raise ValueError("source and sink are joined by a path of unbounded capacity")

    def _levels(self) -> list[int]:
        level = [-1] * len(self.edges)
        level[0] = 0
        queue = deque([0])
        while queue:
            a = queue.popleft()
            for e in self.edges[a]:
                b = self.head[e]
                if level[b] < 0 and self.capacity[e] > 0:
                    level[b] = level[a] + 1
                    queue.append(b)
        return level

    def _blocking_flow(self, level: list[int]) -> int:
        """Push flow along shortest paths until each has a full edge; depth first, without recursion."""
        edges, head, capacity = self.edges, self.head, self.capacity
        following = [0] * len(edges)  # the edge of each node to try next
        path: list[int] = []
        a = total = 0
        while True:
            if a == 1:
                pushed = min(capacity[e] for e in path)
                total += pushed
                cut = 0
                for i in range(len(path) - 1, -1, -1):
                    capacity[path[i]] -= pushed
                    capacity[path[i] ^ 1] += pushed
                    if capacity[path[i]] == 0:
                        cut = i
                a = head[path[cut] ^ 1]
                del path[cut:]
                continue
            while following[a] < len(edges[a]):
                e = edges[a][following[a]]
                if capacity[e] > 0 and level[head[e]] == level[a] + 1:
                    break
                following[a] += 1
            else:
                if not path:
                    return total
                a = head[path.pop() ^ 1]
                following[a] += 1
                continue
            path.append(e)
            a = head[e]
