"""How wide should the label noise be? What `--beta` does to accuracy and calibration.

    python recipes/label_noise.py

Fits the demonstration's density with several widths, judged on its validation pairs only: accuracy of the refined
reward, and calibration of P(chosen > rejected). The test pairs are not looked at.
"""

from __future__ import annotations

import numpy as np
import torch

from ebrm.features import open_features
from ebrm.fitting import fit
from ebrm.heads import EnergyConfig, FitConfig, InferenceConfig, LikelihoodConfig
from ebrm.metrics import Calibration, calibration

WIDTHS = (0.1, 0.25, 0.5, 1.0, 2.0)
SEEDS = (0, 1, 2)
ASCENT = InferenceConfig(estimate="ascent")


def line(name: str, accuracy: float, found: Calibration) -> str:
    """One row of the table."""
    ece, log_loss, brier = found.ece.value, found.log_loss.value, found.brier.value
    return f"| {name} | {100 * accuracy:.1f} | {100 * ece:.1f} | {log_loss:.3f} | {brier:.3f} |"


def main() -> None:
    """Print the table: mean over seeds."""
    features = open_features("demo")
    pairs = features.pairs.select(np.flatnonzero(features.pairs.split == "validation"))
    chosen, rejected = pairs.chosen, pairs.rejected
    margin = (features.reward[chosen] - features.reward[rejected]).double()
    print(f"{len(pairs)} validation pairs, {len(SEEDS)} seeds")
    print("| beta | accuracy, % | ECE, % | log loss | Brier |\n| --- | --- | --- | --- | --- |")
    base = calibration(torch.sigmoid(margin).numpy(), pairs.prompt_id)
    print(line("base RM (sigmoid)", float((margin > 0).double().mean()), base))
    for beta in WIDTHS:
        accuracies, found = [], []
        for seed in SEEDS:
            # The joint objective has no beta; the likelihood and nce do.
            head = EnergyConfig(objective=LikelihoodConfig(beta=beta), inference=ASCENT)
            model = fit(features, head=head, config=FitConfig(filter_conflicts=True, seed=seed)).model
            sides = [
                model.refine(features.embedding(rows), features.reward[rows]).reward for rows in (chosen, rejected)
            ]
            accuracies.append(float((sides[0] > sides[1]).double().mean()))
            probability = model.prefer_rows(
                (features.embedding(chosen), features.embedding(rejected)),
                (features.reward[chosen], features.reward[rejected]),
            )
            found.append(calibration(probability.double().clamp(0, 1).numpy(), pairs.prompt_id))
        values = (float(np.mean([getattr(one, name).value for one in found])) for name in ("ece", "log_loss", "brier"))
        ece, log_loss, brier = values
        print(
            f"| {beta} | {100 * np.mean(accuracies):.1f} | {100 * ece:.1f} | {log_loss:.3f} | {brier:.3f} |", flush=True
        )


if __name__ == "__main__":
    main()
