"""What the hardware allows for each step of refining a row and of training on one, beside what is reached.

    python -m benchmarks.roofline [--d 4096] [--network slim] [--write]

First the machine's own rates: matrix products at the shapes in question, elementwise functions, copying memory. Then,
for every step, its operations, function values and least bytes, which of the three binds, and predicted and measured
time a row. Predicted is the time of the products plus that of the functions (they use the same units), or that of
the bytes if it is longer. --write puts the tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.page import markdown, rewrite
from benchmarks.plain import plain_network, plain_refine
from benchmarks.rows import fit_briefly, made_rows
from benchmarks.timing import seconds
from ebrm.heads import (
    EnergyConfig,
    EnergyHead,
    InferenceConfig,
    LikelihoodConfig,
    NetworkConfig,
    TrainingConfig,
    find_interpolation,
    grid_nodes,
    posterior,
    tanh,
    train_step,
)

#: Floats of the embeddings that a step of inference is timed on: 64 MiB, more than the last cache holds.
FLOATS = 2**24
OBJECTIVE = LikelihoodConfig()
OURS = EnergyConfig(objective=OBJECTIVE)


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second: operations of matrix products, function values, bytes copied.

    Attributes:
        first, joint: float32 products, [rows, d] x [d, w] and [rows · nodes, w] x [w, w'].
        wide: float64 product, [rows, nodes] x [nodes, grid].
        bfloat16: the product `first` in bfloat16, for comparison.
        tanh: float32 values of the network's tanh; torch_tanh: of PyTorch's.
        exp: float64 values.
        copy: bytes read and written.
    """

    first: float
    joint: float
    wide: float
    bfloat16: float
    tanh: float
    torch_tanh: float
    exp: float
    copy: float


@dataclass(frozen=True)
class Step:
    """One step for one row: what it takes at least, and how long it took.

    Attributes:
        operations: of matrix products, at `product` a second.
        values: of functions, at `function` a second.
        bytes: least traffic with memory.
        measured: seconds.
    """

    name: str
    operations: float
    product: float
    values: float
    function: float
    bytes: float
    copy: float
    measured: float

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each resource alone."""
        return {
            "product": self.operations / self.product,
            "functions": self.values / self.function,
            "memory": self.bytes / self.copy,
        }

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def predicted(self) -> float:
        """Seconds: products and functions share the units, memory works beside them."""
        return max(self.parts["product"] + self.parts["functions"], self.parts["memory"])


def typical(work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of a call, after one untimed."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


@dataclass(frozen=True)
class Shape:
    """Sizes of a network and of what is evaluated on it.

    Attributes:
        d: numbers of the embedding.
        joint: widths of the joint layers.
        nodes: rewards the network is evaluated at, a row.
        grid: nodes of the posterior.
        parameters: weights of the network.
        hidden: rewards that the first joint matrix is applied at, if they are fewer; 0 if not.
    """

    d: int
    joint: tuple[int, ...]
    nodes: int
    grid: int
    parameters: int
    hidden: int = 0

    @property
    def network_operations(self) -> float:
        """Operations of all layers after the first for one row, at all its nodes."""
        if not self.hidden:
            return self.nodes * self.head_operations
        matrix, between = 2.0 * self.joint[0] * self.joint[1], 2.0 * self.hidden * self.nodes * self.joint[1]
        return self.hidden * matrix + between + self.nodes * (self.head_operations - matrix)

    @property
    def network_values(self) -> float:
        """Values of tanh for one row, at all its nodes."""
        return float((self.hidden or self.nodes) * self.joint[0] + self.nodes * sum(self.joint[1:]))

    @property
    def head_operations(self) -> float:
        """Operations of all layers after the first, at one reward."""
        return 2.0 * sum(a * b for a, b in zip(self.joint, (*self.joint[1:], 1), strict=True))


def shape_of(density: EnergyHead, d: int, settings: InferenceConfig) -> Shape:
    """The sizes of a fitted density; nodes are those that its interpolation needs, or the grid's without one."""
    space = find_interpolation(density.network, density.support_bounds())
    network = density.network
    joint = tuple(layer.out_features for layer in (network.from_embedding, *network.joint_layers))
    count = settings.nodes if space is None else len(space.nodes)
    hidden = 0 if space is None or space.hidden is None else len(space.hidden.nodes)
    return Shape(d, joint, count, settings.nodes, sum(p.numel() for p in network.parameters()), hidden)


def measure_rates(shape: Shape, rows: int) -> Rates:
    """Time each resource alone, at the sizes the steps use."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def product(n: int, k: int, m: int, dtype: torch.dtype = torch.float32) -> float:
        a, b = normal(n, k).to(dtype), normal(m, k).to(dtype)
        return 2.0 * n * k * m / typical(lambda: torch.nn.functional.linear(a, b))

    width, out = shape.joint[0], (*shape.joint[1:], 1)[0]
    few = max(1, min(rows, 2**22 // (width * shape.nodes)))  # a matrix that stays in the cache, as blocks of rows do
    values = normal(few * shape.nodes, width)
    large, copied = torch.empty(2**26), torch.empty(2**26)
    wide = normal(rows, shape.grid).double()
    with torch.no_grad():
        return Rates(
            first=product(rows, shape.d, width),
            joint=product(few * shape.nodes, width, out),
            wide=product(rows, shape.nodes, shape.grid, torch.float64),
            bfloat16=product(rows, shape.d, width, torch.bfloat16),
            tanh=values.numel() / typical(lambda: tanh(values)),
            torch_tanh=values.numel() / typical(lambda: torch.tanh(values)),
            exp=wide.numel() / typical(lambda: wide.exp()),
            copy=2.0 * 4 * large.numel() / typical(lambda: copied.copy_(large), 3),
        )


@torch.no_grad()
def refining_steps(density: EnergyHead, shape: Shape, rates: Rates, embedding: Tensor, reward: Tensor) -> list[Step]:
    """The steps of `refine(estimate="mean")`, then the whole of it; `embedding` [n, d], `reward` [n]."""
    n, width, network = len(reward), shape.joint[0], density.network
    grid = grid_nodes(*density.support_bounds(), shape.grid)
    space = find_interpolation(network, density.support_bounds())
    nodes = grid.float() if space is None else space.nodes.float()
    units = density.standardizer
    at_once = max(1, 2**22 // (sum(shape.joint) * shape.nodes))
    standard = units.embed(embedding)
    first = network.embed(standard)

    def at_nodes() -> list[Tensor]:
        if space is None:
            return [network.on_nodes(e, nodes) for e in first.split(at_once)]
        return [density._at_nodes(e, space)[0] for e in first.split(at_once)]

    values = torch.cat(at_nodes()).double()
    matrix = torch.eye(shape.grid, dtype=torch.float64) if space is None else space.on_grid(shape.grid, grid.device)
    curves = values @ matrix

    def read_off() -> None:
        at = posterior(grid, curves)
        at.mean(), at.std(), at.mode(), at.quantile(0.05), at.quantile(0.95)

    def step(
        name: str, work: Callable[[], object], *, operations: float = 0.0, product: float = rates.first,
        values: float = 0.0, function: float = rates.tanh, traffic: float = 0.0,
    ) -> Step:  # fmt: skip
        return Step(name, operations, product, values, function, traffic, rates.copy, typical(work, 3) / n)

    weights = 4.0 * shape.parameters / n
    return [
        step("standardize the embedding", lambda: units.embed(embedding), traffic=8.0 * shape.d),
        step(
            "embedding's part of the first layer", lambda: network.embed(standard),
            operations=2.0 * shape.d * width, traffic=4.0 * (shape.d + width) + weights,
        ),
        step(
            f"network at {shape.nodes} nodes" + (f" by way of {shape.hidden}" if shape.hidden else ""), at_nodes,
            operations=shape.network_operations, product=rates.joint, values=shape.network_values,
            traffic=4.0 * (width + shape.nodes),
        ),
        step(
            f"from {shape.nodes} nodes to {shape.grid}", lambda: values @ matrix,
            operations=2.0 * shape.nodes * shape.grid, product=rates.wide, traffic=8.0 * (shape.nodes + shape.grid),
        ),
        step(
            "posterior: mode, mean, std, quantiles", read_off,
            values=2.0 * shape.grid, function=rates.exp, traffic=2 * 8.0 * shape.grid,
        ),
        step(
            "**refine, all of it**", lambda: density.with_inference(nodes=shape.grid).refine(embedding, reward),
            operations=2.0 * shape.d * width + shape.network_operations,
            values=shape.network_values, traffic=4.0 * shape.d + weights,
        ),
    ]  # fmt: skip


def plain_steps(density: EnergyHead, shape: Shape, rates: Rates, embedding: Tensor, reward: Tensor) -> list[Step]:
    """One step of the plain ascent: two forwards and one backward in r."""
    network, width = plain_network(density.network), shape.joint[0]
    rows = slice(0, 1024)
    one, more = (InferenceConfig(estimate="ascent", steps=steps) for steps in (1, 5))
    took = [
        typical(lambda s=s: plain_refine(network, density, embedding[rows], reward[rows], s), 3) for s in (one, more)
    ]
    joined = shape.d + density.network.from_reward.in_features
    return [
        Step(
            "a step of the plain ascent", 3 * (2.0 * joined * width + shape.head_operations), rates.first,
            2.0 * sum(shape.joint), rates.torch_tanh, 4.0 * (2 * (shape.d + 2 * joined) + joined), rates.copy,
            (took[1] - took[0]) / 4 / len(reward[rows]),
        )
    ]  # fmt: skip


def training_steps(density: EnergyHead, shape: Shape, rates: Rates, embedding: Tensor, reward: Tensor) -> list[Step]:
    """One optimizer step of ours, a row, and the optimizer's own part of it."""
    n, width, evaluated = OURS.training.batch_rows, shape.joint[0], OBJECTIVE.nodes + 1
    optimizer = torch.optim.AdamW(density.network.parameters(), lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    whole = typical(lambda: train_step(density, embedding[:n], reward[:n], optimizer, generator)) / n
    moments = 7 * 4.0 * shape.parameters / n  # weight, gradient and two moments read, the weight and moments written
    units = float(evaluated * sum(shape.joint))
    operations = 2 * 2.0 * shape.d * width + 3 * evaluated * shape.head_operations
    return [
        Step(
            f"training step of {n} rows", operations, rates.joint, units, rates.tanh,
            moments + 4.0 * shape.d + 6 * 4.0 * units, rates.copy, whole,
        ),
        Step("AdamW's part of it", 0.0, 1.0, 0.0, 1.0, moments, rates.copy, typical(optimizer.step) / n),
    ]  # fmt: skip


def rates_table(rates: Rates, d: int, network: str) -> str:
    """The machine's rates as Markdown."""
    giga = (
        ("float32 product, first layer", rates.first, "GFLOP/s"),
        ("bfloat16 product, first layer", rates.bfloat16, "GFLOP/s"),
        ("float32 product, joint layers", rates.joint, "GFLOP/s"),
        ("float64 product, nodes to grid", rates.wide, "GFLOP/s"),
        ("tanh of the network, float32", rates.tanh, "G/s"),
        ("tanh of PyTorch, float32", rates.torch_tanh, "G/s"),
        ("exp, float64", rates.exp, "G/s"),
        ("memory, read and written", rates.copy, "GB/s"),
    )
    header = (f"`{network}`, d = {d:,}, {torch.get_num_threads()} threads", "Measured rate")
    return markdown(header, [(name, f"{rate / 1e9:,.3g} {unit}") for name, rate, unit in giga])


def steps_table(steps: Sequence[Step]) -> str:
    """Operations, bytes, bound, predicted and measured time a row as Markdown."""
    header = (
        "Step, a row", "Bound", "MFLOP", "Functions", "Least KB", "Predicted µs", "Measured µs", "Reached",
    )  # fmt: skip
    rows = [
        (
            step.name, step.bound, f"{step.operations / 1e6:,.3g}", f"{step.values:,.0f}", f"{step.bytes / 1e3:,.3g}",
            f"{step.predicted * 1e6:,.3g}", f"{step.measured * 1e6:,.3g}", f"{step.predicted / step.measured:.0%}",
        )
        for step in steps
    ]  # fmt: skip
    return markdown(header, rows, left=2)


def roofline(d: int, size: str) -> str:
    """Both tables for one network, fitted briefly on made-up rows."""
    rows = FLOATS // d
    embedding, reward = made_rows(rows, d)
    ours = EnergyConfig() if size == NetworkConfig().size else OURS
    brief = replace(ours, network=NetworkConfig(size=size), training=TrainingConfig(epochs=2))
    density = fit_briefly(embedding[:1024], reward[:1024], brief).head
    assert isinstance(density, EnergyHead)
    shape = shape_of(density, d, InferenceConfig())
    rates = measure_rates(shape, rows)
    steps = [
        *refining_steps(density, shape, rates, embedding, reward),
        *plain_steps(density, shape, rates, embedding, reward),
        *training_steps(density, shape, rates, embedding, reward),
    ]
    return f"{rates_table(rates, d, size)}\n\n{steps_table(steps)}"


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description="Rates, predicted and measured.")
    parser.add_argument("--d", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--network", nargs="+", default=["small", NetworkConfig().size])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    args = parser.parse_args()
    tables = []
    for size in args.network:
        for d in args.d:
            tables.append(roofline(d, size))
            print(tables[-1], end="\n\n", flush=True)
    if args.write:
        rewrite("roofline", "\n\n".join(tables))


if __name__ == "__main__":
    main()
