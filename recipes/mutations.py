"""Break the code on purpose, one small mutation at a time, and see whether its tests notice.

    python recipes/mutations.py                  # all
    python recipes/mutations.py energy/grid off  # those with one of these words in their file or reason

Each mutation is made in a temporary copy of the project, and the tests that mirror its file run there. Prints one line
a mutation, with the test that killed it, and exits with 1 if any survives or no longer fits the code.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Seconds for one run of one test file. A mutation that makes it hang is noticed too.
LIMIT = 900


@dataclass(frozen=True)
class Mutation:
    """Replace the one occurrence of `old` in src/ebrm/`file` by `new`; `why` says what that breaks."""

    file: str
    old: str
    new: str
    why: str
    tests: str = ""  # where not tests/<package>/test_<module>.py

    @property
    def test_file(self) -> str:
        """The test file that has to notice."""
        path = Path(self.file)
        return self.tests or f"tests/{path.parent}/test_{path.name}"


M = Mutation
T_ENERGY = "tests/heads/test_energy.py"
MUTATIONS = [
    # curate
    M("pairs.py", "- known[..., self.rejected]", "+ known[..., self.rejected]", "rewards of a pair are added"),
    M(
        "curate/filters.py",
        "ConflictReport(margin > 0,",
        "ConflictReport(margin >= 0,",
        "ties kept",
        "tests/curate/test_filters.py",
    ),
    M(
        "curate/filters.py",
        "margin[margin < 0]",
        "margin[margin <= 0]",
        "ties counted as dropped",
        "tests/curate/test_filters.py",
    ),
    M("pairs.py", "if len(values) != count:", "if False:", "texts of another length taken"),
    M(
        "curate/augmentation.py",
        "all_pairs = torch.arange(len(pairs), device=pairs.device)",
        "all_pairs = torch.arange(len(pairs))",
        "an index on the CPU",
        "tests/test_numeric_inputs.py",
    ),
    M(
        "utils/validation.py",
        "    return tensor.double()\n",
        "    return tensor\n",
        "whole numbers stay whole",
        "tests/test_numeric_inputs.py",
    ),
    M(
        "groups.py",
        "torch.where(zero, 1.0, square).sqrt()",
        "square.sqrt()",
        "no gradient at ties",
        "tests/test_numeric_inputs.py",
    ),
    # energy: units
    M(
        "heads/data.py",
        "internal.double() * (self.reward_std / self.reward_scale) + self.reward_mean",
        "(internal.double() + self.reward_mean) * (self.reward_std / self.reward_scale)",
        "inverse of the standardizer wrong",
    ),
    M(
        "heads/data.py",
        "* (self.reward_scale / self.reward_std)",
        "* (1.0 / self.reward_std)",
        "reward_scale forgotten",
    ),
    M("heads/data.py", "if not bool(std > 0):", "if len(values) == 0:", "equal rewards taken"),
    M("heads/data.py", "self.embedding_center.copy_(mean)", "pass", "embeddings not centered"),
    M("heads/data.py", "spread > 1e-6 * mean.abs()", "spread > 0", "rounding taken as spread"),
    M(
        "heads/data.py",
        "torch.where(spread > 1e-6 * mean.abs(), spread, torch.ones_like(spread))",
        "spread.square().mean().sqrt().expand_as(spread)",
        "one spread for all numbers of the embedding",
    ),
    M(
        "heads/data.py",
        " + shift.square() * (count * len(values) / total)",
        "",
        "spread between batches left out",
    ),
    M("heads/data.py", "mean += shift * (len(values) / total)", "mean += shift / 2", "batches weighed alike"),
    # energy: network
    M(
        "heads/network.py",
        ".sigmoid_().mul_(2).sub_(1)",
        ".sigmoid_().mul_(2)",
        "tanh without its offset",
        "tests/heads/test_objective.py",
    ),
    M(
        "heads/network.py",
        "torch.addcmul(grad, grad * y, y, value=-1)",
        "torch.addcmul(grad, grad, y, value=-1)",
        "gradient of another function than tanh",
        "tests/heads/test_objective.py",
    ),
    M(
        "heads/network.py",
        "y = (2 * x).sigmoid_()",
        "y = x.mul_(2).sigmoid_()",
        "tanh writes over its input",
        "tests/heads/test_objective.py",
    ),
    M(
        "heads/network.py",
        "return self.output(x * masks[-1] if masks else x).squeeze(-1)",
        "return self.output(F.dropout(x, self.dropout) if masks else x).squeeze(-1)",
        "dropout mask drawn for every sample",
        "tests/heads/test_objective.py",
    ),
    M(
        "heads/network.py",
        "torch.rand(rows, 1, layer",
        "torch.rand(1, 1, layer",
        "dropout mask shared by all rows",
        "tests/heads/test_objective.py",
    ),
    M(
        "heads/network.py",
        ".float() / keep)",
        ".float())",
        "dropout mask not rescaled",
        "tests/heads/test_objective.py",
    ),
    M(
        "heads/network.py",
        "layer.weight.uniform_(-bound, bound, generator=generator)",
        "layer.weight.uniform_(-bound, bound)",
        "initial weights from the global generator",
        "tests/heads/test_objective.py",
    ),
    M(
        "heads/network.py",
        "self.reward_part(nodes).unsqueeze(0)",
        "self.reward_part(nodes.expand(len(embedded), -1))",
        "reward branch run for every row",
        "tests/heads/test_objective.py",
    ),
    # energy: noise
    M("heads/objective.py", "return beta * sigma", "return beta**2 * sigma", "beta squared (variance for width)"),
    M("heads/objective.py", " - math.log(len(self.sigmas))", "", "mixture weight 1/K missing"),
    M("heads/objective.py", "- sigma.log()", "", "width missing from the log-density"),
    M(
        "heads/objective.py",
        "torch.randint(len(self.sigmas), shape,",
        "torch.randint(len(self.sigmas), shape[:-1] + (1,),",
        "one component for a whole row",
    ),
    # energy: objective
    M(
        "heads/objective.py",
        "return torch.logsumexp(a, 1) - a0",
        "return a0 - torch.logsumexp(a, 1)",
        "sign of the NCE+ loss",
    ),
    M("heads/objective.py", "negative - negative_log_noise]", "negative]", "log p_N of the negatives missing"),
    M("heads/objective.py", "a0 = positive - positive_log_noise", "a0 = positive", "log p_N of the positive missing"),
    M(
        "heads/objective.py",
        "a = torch.cat([a0.unsqueeze(1), negative - negative_log_noise], dim=1)",
        "a = negative - negative_log_noise",
        "positive left out of the denominator",
    ),
    M(
        "heads/objective.py",
        "log_noise = noise.log_prob(y, center)",
        "log_noise = noise.log_prob(y, center)\n"
        "    log_noise[:, :1] = MixtureNoise(tuple(beta * s for s in noise.sigmas)).log_prob(positive, center)",
        "density of the positive under the beta-scaled mixture",
    ),
    M(
        "heads/objective.py",
        "return torch.logsumexp(on_nodes + log_weight, 1) - positive",
        "return positive - torch.logsumexp(on_nodes + log_weight, 1)",
        "sign of the likelihood",
    ),
    M(
        "heads/objective.py",
        "torch.logsumexp(on_nodes + log_weight, 1)",
        "torch.logsumexp(on_nodes, 1)",
        "likelihood: cell width missing",
    ),
    M("heads/objective.py", "generator.device) + offset) * step", "generator.device)) * step", "nodes not shifted"),
    M("heads/objective.py", "positive = positive.clamp(*support)", "", "positive outside the support"),
    M(
        "heads/objective.py",
        "yield (loss + regularization * f.square().mean(1)).sum() / n",
        "yield (loss + regularization * f.square().mean(1)).mean()",
        "parts of a batch weighed alike",
    ),
    M(
        "heads/objective.py",
        "(loss + regularization * f.square().mean(1))",
        "(loss + regularization * f.mean(1))",
        "mean energy regularized instead of its square",
    ),
    M(
        "heads/objective.py",
        "network.reward_part(y[part]), [mask[part] for mask in masks])",
        "network.reward_part(y[part]), [mask[: len(y[part])] for mask in masks])",
        "every part takes the first rows' dropout masks",
    ),
    # energy: the joint objective
    M("heads/objective.py", "(other.cumsum(1) - 0.5 * other)", "other.cumsum(1)", "labels: shared cell counted whole"),
    M(
        "heads/objective.py",
        "flips + (1 - 2 * flips) * win",
        "flips + (1 - flips) * win",
        "labels: flips counted twice",
    ),
    M(
        "heads/objective.py",
        "(flips + (1 - 2 * flips) * win).clamp_min(tiny).log()",
        "(flips + (1 - 2 * flips) * win).log()",
        "labels: an impossible one costs infinity",
    ),
    M(
        "heads/objective.py",
        "chosen, rejected = log_mass.chunk(2)",
        "rejected, chosen = log_mass.chunk(2)",
        "labels: chosen and rejected swapped",
    ),
    M(
        "heads/objective.py",
        "log_mass - 0.5 * distance.square(), 1)",
        "log_mass - distance.square(), 1)",
        "measurement: no ½",
    ),
    M("heads/objective.py", "constant = math.log(noise) + ", "constant = ", "measurement: width missing"),
    M(
        "heads/objective.py",
        "kept = [torch.cat([mask[part], mask[part]]) for mask in masks]",
        "kept = [torch.cat([mask[part], mask[part].flip(0)]) for mask in masks]",
        "joint: pairs' dropout masks not shared",
    ),
    M(
        "heads/objective.py",
        "p + torch.arange(p)[part]]",
        "p + torch.arange(p)[: part.stop - part.start]]",
        "joint: every part takes the first rejected rows",
    ),
    M("heads/objective.py", "0.5 * reward_weight *", "reward_weight *", "joint: both members' rewards counted whole"),
    M(
        "heads/objective.py",
        "0.5 * regularization * (w * f.square().mean(1))",
        "0.5 * regularization * (w * f.mean(1))",
        "joint: mean energy regularized instead of its square",
    ),
    # energy: trust
    M("heads/fusion.py", "weakened = power * log_density", "weakened = log_density", "power forgotten"),
    M("heads/fusion.py", "- 0.5 * nodes) / noise**2", "- 0.5 * nodes) / noise", "width for variance"),
    M(
        "heads/fusion.py",
        "(reward.unsqueeze(1) - 0.5 * nodes)",
        "(reward.unsqueeze(1) - nodes)",
        "the base reward halved",
    ),
    M(
        "heads/fusion.py",
        "losses.index(min(losses))",
        "losses.index(max(losses))",
        "unlikeliest labels chosen",
    ),
    M("heads/fusion.py", "noise * scale) + cell", "noise) + cell", "error of the base reward not in internal units"),
    M(
        "heads/fusion.py",
        "density = part.log_mass - cell",
        "density = part.log_mass",
        "cells, not densities, to the power",
    ),
    M(
        "heads/fusion.py",
        "if pairs else UNMEASURED",
        "if pairs else Fusion()",
        "base reward left out without pairs",
    ),
    M(
        "heads/fusion.py",
        "losses[k] += float(",
        "losses[k] = float(",
        "only the last part of the held-out pairs chooses",
    ),
    M("heads/fusion.py", "Fusion(1.0, BASE_NOISE[-1])", "Fusion(0.0, BASE_NOISE[0])", "base reward kept without pairs"),
    M("heads/fusion.py", "1.4, 2.0)", "1.4, 2.0, math.inf)", "base reward may be left out"),
    M("heads/fusion.py", "base_noise: float = math.inf", "base_noise: float = 2.0", "density alone not the default"),
    # energy: ascent
    M(
        "heads/energy.py",
        "(new_value > value)",
        "(new_value >= value)",
        "steps that do not raise f accepted",
        T_ENERGY,
    ),
    M("heads/energy.py", "r + step * slope", "r - step * slope", "descent", T_ENERGY),
    M(
        "heads/energy.py",
        " & (candidate >= low) & (candidate <= high)",
        "",
        "steps out of the support accepted",
        T_ENERGY,
    ),
    M(
        "heads/energy.py",
        "range(settings.steps)",
        "range(settings.steps + 1)",
        "one step too many",
        T_ENERGY,
    ),
    M("heads/energy.py", "step * settings.step_decay", "step * 0.1", "eta fixed", T_ENERGY),
    M(
        "heads/energy.py",
        "moving = step >= settings.step_stop",
        "moving = step >= 0",
        "rows never stop",
        T_ENERGY,
    ),
    M(
        "heads/energy.py",
        "torch.where(better, new_slope, slope)",
        "slope",
        "slope of the start kept",
        T_ENERGY,
    ),
    M(
        "heads/energy.py",
        "return base.clamp(*trusted)",
        "return base.clone()",
        "start not clamped",
        T_ENERGY,
    ),
    M(
        "heads/energy.py",
        "<= settings.window[1]), base, draw)",
        "<= settings.window[1]), draw, base)",
        "paper's start: inside and outside swapped",
        T_ENERGY,
    ),
    M(
        "heads/energy.py",
        "(base >= settings.window[0])",
        "(base > settings.window[0])",
        "window open",
        T_ENERGY,
    ),
    M(
        "heads/energy.py",
        "low + (high - low) * uniform",
        "low + high * uniform",
        "range of the random draw",
        T_ENERGY,
    ),
    # energy: grid
    M(
        "heads/grid.py",
        "    log_weight[0] -= math.log(2)\n    log_weight[-1] -= math.log(2)\n",
        "",
        "end nodes at full weight in Z",
    ),
    M("heads/grid.py", "        weights[-1] /= 2\n", "", "last node at full weight in the mean"),
    M("heads/grid.py", "f - log_z.unsqueeze(1), log_z", "f, log_z", "density not normalized"),
    M("heads/grid.py", "    f = f - top ", "    top = 0 * top ", "huge energies lose the cells' widths"),
    M(
        "heads/grid.py",
        "return self.log_density + self._weights.log()",
        "return self.log_density",
        "cells without their width",
    ),
    M("heads/grid.py", "(self.nodes[k] + t * step)", "(self.nodes[k + 1] + t * step)", "quantile off by one cell"),
    M(
        "heads/grid.py",
        "below.gather(1, (k - 1).clamp_min(0))",
        "below.gather(1, k)",
        "mass below the cell off by one",
    ),
    M("heads/grid.py", "2 * mass / (left + root)", "mass / left", "quantile: cell taken as flat"),
    M(
        "heads/grid.py",
        "-slope / bend",
        "slope / bend",
        "mode: Newton steps away from the top",
    ),
    M(
        "heads/grid.py",
        ".clamp(2, last - 2)",
        ".clamp(2, last // 2)",
        "mode: half the nodes",
    ),
    M(
        "heads/grid.py",
        "_NEWTON = 4",
        "_NEWTON = 0",
        "mode: the best node itself",
    ),
    M(
        "heads/grid.py",
        "c2, c3 = 3 * rise - 2 * ma - mb, ma + mb - 2 * rise",
        "c2, c3 = 3 * rise - ma - 2 * mb, ma + mb - 2 * rise",
        "curves: slopes of the cells swapped",
    ),
    M(
        "heads/grid.py",
        "(ma + t * (2 * c2 + 3 * t * c3)) / step",
        "(ma + t * (2 * c2 + 3 * t * c3))",
        "curves: slope in cells",
    ),
    M(
        "heads/grid.py",
        "rows * len(self.nodes) + cell, rows",
        "cell, rows",
        "curves: the first row for all",
    ),
    M("heads/grid.py", "(lower + 0.5 * theirs)", "(lower + theirs)", "prefer: shared cell counted whole"),
    M("heads/grid.py", "torch.cumsum(theirs, 1) - theirs", "1 - torch.cumsum(theirs, 1)", "prefer: sides swapped"),
    M("heads/grid.py", "value.masked_fill(outside, -torch.inf)", "value", "density outside the support"),
    M(
        "heads/grid.py",
        "(self.mean() - center) ** 2",
        "self.mean() ** 2",
        "std around another center",
    ),
    # energy: density
    M("heads/base.py", "at.density / self.standardizer.unit", "at.density", "density in internal units", T_ENERGY),
    M(
        "heads/base.py",
        "(at.log_density - math.log(unit))",
        "at.log_density",
        "log-density per internal unit",
        T_ENERGY,
    ),
    M(
        "heads/base.py",
        "(at.std * unit)",
        "at.std",
        "std in internal units",
        T_ENERGY,
    ),
    M(
        "heads/energy.py",
        "3 * max(objective.noise_scales) * scale",
        "3 * max(objective.noise_scales)",
        "support: noise widths in the wrong units",
    ),
    M("heads/energy.py", "max(-most, min(-least, low))", "min(-least, low)", "support of joint without an end"),
    M(
        "heads/energy.py",
        "least, most = 4 * scale",
        "least, most = 4",
        "support of joint in the wrong units",
    ),
    M(
        "heads/energy.py",
        "return float(self.base_noise) * float(self.standardizer.reward_scale)",
        "return float(self.base_noise)",
        "error of the base reward not in internal units",
    ),
    M(
        "heads/energy.py",
        "power * slope + precision * off",
        "power * slope - precision * off",
        "ascent: base reward repels",
    ),
    M(
        "heads/energy.py",
        "power * value - 0.5 * precision",
        "value - 0.5 * precision",
        "ascent: power forgotten",
    ),
    M(
        "heads/energy.py",
        "off = base[rows].double() - r",
        "off = base[: len(r)].double() - r",
        "ascent: others' base rewards",
    ),
    M("heads/energy.py", "tail = (1 - inference.coverage) / 2", "tail = 1 - inference.coverage", "interval one-sided"),
    M(
        "heads/base.py",
        "return first.prefer(second)",
        "return second.prefer(first)",
        "prefer: a and b swapped",
        T_ENERGY,
    ),
    M("heads/grid.py", "log_up_to.sum(0) - log_up_to", "log_up_to.sum(0)", "p_best: a row competes with itself"),
    M("heads/grid.py", "below[:, :-1]], 1)", "below[:, 1:]], 1)", "p_best: mass below a cell is another's"),
    M("heads/grid.py", "math.log((1 + point) / 2)", "math.log(0.5)", "p_best: one point inside a cell"),
    M(
        "heads/energy.py",
        "base[part], start[part], inference)",
        "base[part], start[: len(f)], inference)",
        "every block starts from the first rows",
    ),
    M(
        "heads/energy.py",
        "start.double(), settings",
        "start.float(), settings",
        "ascent in float32",
    ),
    M(
        "heads/energy.py",
        "if len(astray):",
        "if False:",
        "rows outside the space taken as in it",
        tests="tests/heads/test_grid.py",
    ),
    M(
        "heads/energy.py",
        "f[astray] = ",
        "f[: len(astray)] = ",
        "rows outside the space written over others",
        tests="tests/heads/test_grid.py",
    ),
    M(
        "heads/energy.py",
        "known == versions and",
        "",
        "space kept when weights change",
        tests="tests/heads/test_grid.py",
    ),
    M(
        "heads/energy.py",
        "all(a is b for a, b in zip(tensors, state, strict=True))",
        "True",
        "space kept when weights are replaced",
        tests="tests/heads/test_grid.py",
    ),
    M(
        "heads/interpolation.py",
        "_CHECKS = 2",
        "_CHECKS = 1",
        "one node to check a row by",
        "tests/heads/test_grid.py",
    ),
    M(
        "heads/interpolation.py",
        "\n_ERROR = 3e-6",
        "\n_ERROR = 3e-3",
        "a space too small",
        "tests/heads/test_grid.py",
    ),
    M(
        "heads/interpolation.py",
        "ends[0] = ends[-1] = 2.0",
        "pass",
        "end points counted whole",
        "tests/heads/test_grid.py",
    ),
    M(
        "heads/interpolation.py",
        "reachable[:, dimensions:]",
        "reachable[:, :2]",
        "misfit of what does fit",
        "tests/heads/test_grid.py",
    ),
    M(
        "heads/interpolation.py",
        "torch.Generator().manual_seed(0)",
        "torch.Generator().manual_seed(torch.seed())",
        "another space every time",
        "tests/heads/test_grid.py",
    ),
    M(
        "heads/interpolation.py",
        "{id(network.from_embedding): network.from_embedding}",
        "{id(network): network}",
        "the network itself made float64",
        "tests/heads/test_grid.py",
    ),
    M(
        "heads/energy.py",
        ", generator).clamp(*self.support_bounds())",
        ", generator)",
        "start outside the support",
    ),
    M(
        "heads/energy.py",
        '"mean": at.mean,',
        '"mean": at.mode,',
        "estimate mean is the mode",
    ),
    # energy: fit
    M(
        "heads/training.py",
        "return max(history, key=lambda e: (e.validation_accuracy, -e.validation_nll)).epoch",
        "return len(history)",
        "best epoch is the last",
    ),
    M("heads/training.py", "-e.validation_nll)", "e.validation_nll)", "best epoch: the worse -log p"),
    M(
        "heads/training.py",
        "return min(history, key=lambda e: e.validation_label_loss).epoch",
        "return min(history, key=lambda e: e.validation_nll).epoch",
        "best epoch of joint: by the base reward",
    ),
    M("heads/training.py", "    head.load_state_dict(best)\n    if joint", "    if joint", "last weights returned"),
    M(
        "heads/data.py",
        "chosen > rejected, chosen < rejected",
        "chosen < rejected, chosen > rejected",
        "validation: chosen and rejected swapped",
        "tests/heads/test_fusion.py",
    ),
    M(
        "heads/data.py",
        "chosen > rejected, chosen < rejected",
        "chosen >= rejected, chosen <= rejected",
        "validation: ties right",
        "tests/heads/test_fusion.py",
    ),
    M(
        "heads/fusion.py",
        "noisy_preference_nll(mass[pairs.chosen], mass[pairs.rejected]",
        "noisy_preference_nll(mass[pairs.rejected], mass[pairs.chosen]",
        "validation: labels swapped",
        "tests/heads/test_fusion.py",
    ),
    M(
        "heads/training.py",
        "torch.stack([train.chosen, train.rejected], 1)",
        "torch.stack([train.rejected, train.chosen], 1)",
        "labels swapped",
    ),
    M("heads/training.py", "batch.T.reshape(-1)", "batch.reshape(-1)", "pairs taken apart"),
    M(
        "heads/training.py",
        "training.batch_rows // passed.shape[1]",
        "training.batch_rows",
        "twice the rows a step under the joint objective",
    ),
    M(
        "heads/training.py",
        "loss += value * len(batch) / len(passed)",
        "loss += value / len(passed)",
        "batches weighed alike",
    ),
    M(
        "heads/training.py",
        "flips=_label_noise(config), scale=training.reward_scale",
        "flips=_label_noise(config)",
        "trust in the wrong units",
    ),
    M(
        "heads/training.py",
        "        head.fusion = UNMEASURED\n",
        "        pass\n",
        "base reward left out without pairs",
    ),
    M(
        "heads/training.py",
        "if joint and not len(validation)",
        "if not len(validation)",
        "base reward heard under the paper's objectives",
    ),
    M(
        "heads/training.py",
        "elif joint:",
        "elif len(validation):",
        "trust chosen under the paper's objectives",
    ),
    M(
        "heads/training.py",
        "reward_noise=objective.reward_noise * training.reward_scale",
        "reward_noise=objective.reward_noise",
        "error of the base reward not in internal units",
    ),
    M(
        "heads/training.py",
        'if estimate == "mean" else part.posterior.mode()',
        'if estimate != "mean" else part.posterior.mode()',
        "validation: not the deployed inference",
        "tests/heads/test_fusion.py",
    ),
    M(
        "heads/training.py",
        "[fresh].double()",
        ".double()",
        "a response counted as often as it stands in pairs",
        "tests/heads/test_fusion.py",
    ),
    M(
        "heads/training.py",
        "torch.randperm(len(passed), generator=generator).split",
        "torch.arange(len(passed)).split",
        "not shuffled",
    ),
    M(
        "heads/training.py",
        "head.fit_units(reward[rows]",
        "head.fit_units(reward",
        "units see the held-out rows",
    ),
    M(
        "heads/training.py",
        "scale * training.reward_scale for scale",
        "scale for scale",
        "noise widths not in internal units",
    ),
    M(
        "heads/training.py",
        "math.inf if training.clip_norm is None else training.clip_norm",
        "1e9",
        "gradient not clipped",
    ),
    M(
        "heads/training.py",
        "torch.unique(torch.cat([train.chosen, train.rejected]))",
        "train.chosen",
        "rejected side unused",
    ),
    M(
        "heads/training.py",
        '        "rewards": _digest(reward),\n',
        "",
        "a checkpoint of other rewards taken",
        "tests/heads/test_checkpoint.py",
    ),
    M("heads/training.py", "    head.zero_grad(set_to_none=True)", "    pass", "gradients left behind"),
    # energy: checkpoint
    M(
        "heads/training.py",
        'generator.set_state(tensors["generator"])',
        "pass",
        "random state not restored",
        "tests/heads/test_checkpoint.py",
    ),
    M(
        "heads/training.py",
        "    optimizer.load_state_dict(state)\n",
        "",
        "AdamW's moments not restored",
        "tests/heads/test_checkpoint.py",
    ),
    M(
        "heads/training.py",
        "return history, best\n\n\ndef _damaged",
        'return history, _part(tensors, "now.")\n\n\ndef _damaged',
        "best weights lost",
        "tests/heads/test_checkpoint.py",
    ),
    M(
        "utils/tensors.py",
        '!= sealed(tensors, {**metadata, **(of or {})})["sha256"]:',
        "is None:",
        "checksum not looked at",
        "tests/heads/test_checkpoint.py",
    ),
    # energy: settings
    M(
        "heads/config.py",
        "return max(passes, math.ceil(least",
        "return min(passes, math.ceil(least",
        "epochs planned",
    ),
    M("heads/config.py", "(3, 200) if self.objective", "(5, 1000) if self.objective", "epochs planned for joint"),
    M("heads/config.py", "lambda value: 0.0 <= value < 0.5", "lambda value: 0.0 <= value <= 1.0", "labels all wrong"),
    M(
        "heads/config.py",
        'InferenceConfig(estimate="ascent", start',
        "InferenceConfig(start",
        "the paper's estimate",
    ),
    M(
        "heads/config.py",
        "objective=NCEConfig(beta=0.1)",
        "objective=NCEConfig(beta=0.1, noise_scales=(0.5,))",
        "the paper's noise width",
    ),
    M("heads/config.py", 'start="paper")', 'start="base")', "the paper's start"),
    # backbone and features
    M(
        "backbone/forward.py",
        "last_position(attention_mask).to(",
        "(last_position(attention_mask) - 1).to(",
        "position off by one",
    ),
    M("backbone/read.py", "embedding[batch] = found", "embedding[sorted(batch)] = found", "rows in another order"),
    M(
        "backbone/forward.py",
        "with _locks.setdefault(self.model, threading.Lock()):",
        "with threading.Lock():",
        "threads share the hooks",
        "tests/backbone/test_read.py",
    ),
    M(
        "backbone/read.py",
        "    if one and isinstance(responses, str | Mapping):",
        "    if False:",
        "one response refused",
        "tests/test_model.py",
    ),
    M("model.py", "if self._loaded is None:", "if True:", "the reward model loaded again and again"),
    M(
        "model.py",
        "columns[name][rows] = values",
        "columns[name][: len(rows)] = values",
        "rewards at other rows' places",
    ),
    M(
        "scoring/rows.py",
        "if not parts[number].exists():",
        "if True:",
        "work done twice",
        "tests/scoring/test_score_file.py",
    ),
    M(
        "features/extract.py",
        "zip(numbers[::2], numbers[1::2], strict=True)",
        "zip(numbers[1::2], numbers[::2], strict=True)",
        "pair swapped",
    ),
    M(
        "features/manifest.py",
        "elif verify and sha256_file(file) != digest:",
        "elif False:",
        "checksum not looked at",
        "tests/features/test_store.py",
    ),
    # the main job
    M("fitting.py", "keep[decided] = conflicts.keep", "pass", "filter not applied"),
    M("hub.py", "    if expected != found:", "    if False:", "damaged weights taken"),
    M("evaluation/fitted.py", "sides[2] <= sides[3]", "sides[2] > sides[3]", "error and success swapped"),
    M(
        "metrics/accuracy.py",
        "np.where(chosen > rejected, 1.0",
        "np.where(chosen < rejected, 1.0",
        "pair swapped",
    ),
    # benchmarks
    M("benchmarks/benchmark.py", "(lowest > highest)", "(lowest >= highest)", "a tie is right"),
    M(
        "benchmarks/benchmark.py",
        "1.0 / binom(a + b, a)",
        "a / (a + b)",
        "ties of several right ones shared wrongly",
    ),
    M(
        "metrics/ranking.py",
        "(tied_lead > tied_spread)",
        "(tied_lead >= tied_spread)",
        "equal margins preferred",
    ),
    M(
        "metrics/ranking.py",
        "least / tied_spread - 1)",
        "least / tied_spread)",
        "the margin term is shifted",
    ),
    M("groups.py", "include_self=False", "include_self=True", "an empty group's NaN stays in every extreme"),
    M("groups.py", "torch.where(same, 0.0, square)", "square", "equal values have a spread"),
    M("utils/validation.py", "(numbers < low) | (numbers > high)", "(numbers < low)", "too large numbers are taken"),
    M(
        "serve/scoring.py",
        "zip(batch, results, strict=True)",
        "zip(batch, results[::-1], strict=True)",
        "mixed up",
        "tests/serve/test_batching.py",
    ),
    M(
        "serve/scoring.py",
        "tokens + len(item.ids) > self._budget",
        "tokens > self._budget",
        "batches over the budget",
        "tests/serve/test_batching.py",
    ),
    M("serve/middleware.py", "if self.bytes > config.max_body:", "if False:", "a chunked body is read whole"),
    M(
        "serve/middleware.py",
        'scheme.lower() != "bearer" or not right',
        'scheme.lower() != "bearer"',
        "any token will do",
    ),
    M("serve/scoring.py", "self.held + count > self.config.queue", "False", "the queue has no bound"),
    M(
        "integrations/reward_design.py",
        "taken = replace(taken, references=references[rows])",
        "taken = replace(taken, references=references.flip(0)[rows])",
        "references of another row",
        "tests/integrations/test_reward_design.py",
    ),
    M(
        "integrations/reward_design.py",
        "there = usable(shaped, rollouts)",
        "pass",
        "a check that leaves a row to the model leaves it without a reward",
        "tests/integrations/test_reward_design.py",
    ),
    M(
        "integrations/reward_sources.py",
        "if any(map(math.isnan, known)):",
        "if False:",
        "a row that a function leaves out is not counted",
        "tests/integrations/test_reward_design.py",
    ),
    M(
        "integrations/reference_rewards.py",
        "group = row if source.reads_columns else int(rollouts.groups.index[row])",
        "group = 0",
        "references of one prompt stand for another's",
        "tests/integrations/test_reward_design.py",
    ),
    M(
        "integrations/rollouts.py",
        "number[rows] = torch.arange(len(rows))",
        "number[rows] = rows",
        "steps of another response",
        "tests/integrations/test_reward_design.py",
    ),
    M(
        "integrations/environment.py",
        "if row is not None and self.unusable is None:",
        "if False:",
        "a row without a reward is paid 0",
        "tests/integrations/test_openrlhf.py",
    ),
    M(
        "integrations/reward_sources.py",
        'k if mode == "pessimistic" else 0.0',
        "0.0",
        "pessimism does nothing",
        "tests/integrations/test_trl.py",
    ),
    M(
        "integrations/transformers.py",
        "AutoModelForSequenceClassification.register(EBRMConfig, EBRMForSequenceClassification, exist_ok=True)\n",
        "",
        "the Auto class does not know the model",
        "tests/integrations/test_registration.py",
    ),
    M("metrics/significance.py", "(1 + reached) / (1 + permutations)", "reached / permutations", "p may be 0"),
    M("evaluation/comparison.py", 'for field in ("p", "p_gain")', 'for field in ("p",)', "gains not corrected"),
    M(
        "evaluation/cache.py",
        "self._row.setdefault(text, len(self.reward) + row)",
        "self._row[text] = len(self.reward) + row + 1",
        "texts off by one",
    ),
    M(
        "evaluation/score_models.py",
        "if rows[place] < 0), None)",
        "if rows[place] < 0 and place == start), None)",
        "an item with a missing second response is scored",
    ),
    # residual head, ridge, anchors
    M("heads/ridge.py", "logsigmoid(-z - self.margin)", "logsigmoid(self.margin - z)", "margin of one side only"),
    M("heads/ridge.py", "return -self.weight * (self.label", "return -(self.label", "weights not in the loss"),
    M(
        "heads/ridge.py",
        "(self.label * right - (1 - self.label) * wrong)",
        "(self.label * right + (1 - self.label) * wrong)",
        "slope of labels added up",
    ),
    M("heads/ridge.py", "self.label * right * (1 - right)", "self.label * right", "second derivative of another loss"),
    M("heads/ridge.py", "root = values[keep].sqrt()", "root = values[keep]", "products of differences not kept"),
    M("heads/ridge.py", " * (n / weight.to(one).sum())", "", "weights with a scale"),
    M(
        "heads/ridge.py",
        "torch.linalg.qr(d.T @ (d @ draws)).Q",
        "torch.linalg.qr(draws).Q",
        "projected on any directions",
    ),
    M("heads/ridge.py", "places.setdefault(prompt, [])", "places.setdefault(place, [])", "pairs left out one by one"),
    M("heads/ridge.py", "f.T @ slope - penalty * c", "f.T @ slope + penalty * c", "penalty pushes away"),
    M("heads/ridge.py", "if lower <= value or share < 1e-6:", "if True:", "Newton's steps never halved"),
    M("heads/ridge.py", ".to(f) - within * bend", ".to(f) + within * bend", "left out with the wrong curvature"),
    M(
        "heads/ridge.py",
        "z[block] - moved.squeeze(2)",
        "z[block] + moved.squeeze(2)",
        "prompt counted twice instead of left out",
    ),
    M("heads/ridge.py", "if total > best + _HOPELESS:", "if False:", "hopeless penalties followed"),
    M("heads/ridge.py", "else PRIOR_NONE) for c in found]", "else 1 - PRIOR_NONE) for c in found]", "prior for moving"),
    M(
        "heads/ridge.py",
        "-c.losses.sum() for c in found",
        "-c.losses.mean() for c in found",
        "evidence does not grow with pairs",
    ),
    M(
        "heads/ridge.py",
        "strict=True) if not math.isfinite(c.penalty))",
        "strict=True) if math.isfinite(c.penalty))",
        "share of moving called none",
    ),
    M("heads/ridge.py", "float(gain.mean()) > error", "float(gain.mean()) > 0", "any gain is clear"),
    M("heads/ridge.py", "return len(sums) > 1 and", "return", "one pair has a standard error"),
    M(
        "heads/residual.py",
        "return base + near * ((self.base_weight - 1) * base",
        "return base + ((self.base_weight - 1) * base",
        "correction everywhere, near the pairs or not",
    ),
    M("heads/residual.py", "((self.base_weight - 1) * base", "(self.base_weight * base", "base reward counted twice"),
    M("heads/residual.py", ".double())).clamp_max(1.0)", ".double()))", "more than the correction near the pairs"),
    M(
        "heads/residual.py",
        "x = data.embedding.double() / math.sqrt(data.embedding.shape[1])",
        "x = data.embedding.double()",
        "penalties in another unit",
    ),
    M(
        "heads/residual.py",
        "_comparisons(data, near[:, None] * x,",
        "_comparisons(data, x,",
        "fitted as if all pairs were near",
    ),
    M("heads/residual.py", "(1 - near) * data.reward\n", "0 * near\n", "the rest of the base reward forgotten"),
    M(
        "heads/residual.py",
        "and not clear_gain(found, pairs.blocks)",
        "and False",
        "pairs known by heart: moved without a gain",
    ),
    M("heads/residual.py", "alpha = SEEN_SHARE * float(", "alpha = float(", "base weight of seen pairs"),
    M(
        "heads/residual.py",
        '            if data.pairs_seen == "no":',
        "            if True:",
        "seen labels choose the base weight",
    ),
    M("heads/residual.py", "losses.index(min(losses))", "losses.index(max(losses))", "the unlikeliest base weight"),
    M(
        "heads/residual.py",
        "self.weight.copy_(u / math.sqrt(x.shape[1]))",
        "self.weight.copy_(u)",
        "weights in another unit",
    ),
    M("heads/residual.py", "if trusted or s <= 1]", "if True]", "seen labels make probabilities sharper"),
    M("heads/residual.py", "0.5 * (math.log(s)", "0.0 * (math.log(s)", "no prior for the sharpness"),
    M("heads/residual.py", ", dtype=torch.float64) / self.sharpness", ", dtype=torch.float64)", "sharpness not in P"),
    M("heads/residual.py", "torch.full((n,), 1.0 / n)", "torch.full((n,), 1.0)", "more anchors weigh more"),
    M("heads/residual.py", "v[-1:] * _INTERCEPT", "v[-1:]", "intercept in another unit"),
    M(
        "heads/residual.py",
        "data.train.weight * (data.evidence / len(data.train))",
        "data.train.weight",
        "held-out weights in another unit",
    ),
    M(
        "heads/residual.py",
        "label = (1 - smoothing) * label + smoothing * (1 - label)",
        "label = 1.0 * label",
        "no label smoothing",
    ),
    M(
        "heads/residual.py",
        '[f"{place} {name}" for place',
        '[f"{name}" for place',
        "prompts of two parts taken for one",
    ),
    M("heads/residual.py", "(head.base_weight, 1.0), ", "", "base weight stays in unmoved"),
    M(
        "heads/registry.py",
        "pairs_seen=pairs_seen, anchors=anchors, device=device",
        "anchors=anchors, device=device",
        "pairs_seen ignored",
        "tests/heads/test_residual.py",
    ),
    M(
        "heads/base.py",
        "None if base is None else base[rows])",
        "None if base is None else base[: len(some)])",
        "base rewards of other rows",
        "tests/heads/test_residual.py",
    ),
    M(
        "anchors.py",
        '"fitted": 1 - HELD_OUT, "held": HELD_OUT',
        '"fitted": HELD_OUT, "held": 1 - HELD_OUT',
        "most anchors held out",
    ),
    M(
        "anchors.py",
        "np.isin(pairs.prompt_id, names[held.numpy()])",
        "np.isin(pairs.prompt_id, names[fitted.numpy()])",
        "drift on anchors fitted on",
    ),
    M("anchors.py", "if opened.embedding_size != features.embedding_size:", "if False:", "other embeddings taken"),
    M("anchors.py", "if found.manifest.get(name):", "if False:", "anchors left out without a word"),
    M(
        "fitting.py",
        'config.pairs_seen == "unknown" and bool(train.rm_training.any())',
        "False",
        "flags of seen pairs ignored",
    ),
    M("fitting.py", "if added < LITTLE * kept:", "if added == 0:", "a head that hardly moves does not say so"),
    M("evaluation/head_benchmark.py", "pairs_seen=self.config.pairs_seen, ", "", "compare ignores pairs_seen"),
]


def run_tests(project: Path, test_file: str) -> tuple[int, str]:
    """(pytest's exit code, the first failing test or the last line) of one test file in `project`."""
    environment = os.environ | {
        "PYTHONPATH": str(project / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",  # two mutations within a second would pass for the same file
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", test_file]
    try:
        run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return 1, f"no end after {LIMIT} s"
    failed = re.search(r"^FAILED \S*?::([^\s\[]+)", run.stdout, re.M)
    lines = (run.stdout + run.stderr).strip().splitlines()
    return run.returncode, failed[1] if failed else lines[-1] if lines else "no output"


def copy_project(to: Path) -> None:
    """What tests need of the project."""
    ignored = shutil.ignore_patterns("__pycache__", "*.partial")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, to / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", to)


def check_copy(project: Path, test_files: list[str]) -> None:
    """The untouched copy is what gets imported, and its tests pass; otherwise every mutation would seem killed."""
    code = "import ebrm; print(ebrm.__file__)"
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if not Path(run.stdout.strip()).resolve().is_relative_to(project.resolve()):
        sys.exit(f"The tests would import {run.stdout.strip()} instead of the copy in {project}.")
    for test_file in test_files:
        code_, said = run_tests(project, test_file)
        if code_:
            sys.exit(f"{test_file} does not pass on the untouched code ({said}), so it can kill nothing.")


def try_mutation(project: Path, mutation: Mutation) -> tuple[str, str]:
    """("killed" | "SURVIVED" | "STALE" | "BROKEN", details) of one mutation; the copy is put right again."""
    path = project / "src" / "ebrm" / mutation.file
    original = path.read_text(encoding="utf-8")
    found = original.count(mutation.old)
    if found != 1:
        return "STALE", f"its text is there {found} times"
    path.write_text(original.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, said = run_tests(project, mutation.test_file)
    finally:
        path.write_text(original, encoding="utf-8")
    return {0: "SURVIVED", 1: "killed"}.get(code, "BROKEN"), said


def main(words: list[str]) -> int:
    """Try the mutations with one of `words` in their file or reason (all without words); 1 if any is not killed."""
    chosen = [m for m in MUTATIONS if not words or any(word in f"{m.file} {m.why}" for word in words)]
    started, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        project = Path(folder)
        copy_project(project)
        check_copy(project, sorted({m.test_file for m in chosen}))
        for mutation in chosen:
            outcome, said = try_mutation(project, mutation)
            outcomes.append(outcome)
            print(f"{outcome:8}  {mutation.file:22}  {mutation.why:54}  {said}", flush=True)
    killed = outcomes.count("killed")
    print(f"{killed} of {len(chosen)} killed in {time.monotonic() - started:.0f} s")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
