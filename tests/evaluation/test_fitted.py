"""Measuring a fit: the right sides, the right items, the numbers of the modules it calls."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.linear import ONE_EPOCH, QUICK, linear_features

from ebrm.evaluation import LearningCurve, measure_anchors, measure_fit, memorization
from ebrm.fitting import FitResult, fit
from ebrm.heads import FitConfig, LikelihoodConfig
from ebrm.metrics import Bootstrap, Estimate, calibration, error_auroc
from ebrm.model import EnergyRewardModel


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    return fit(linear_features(noise=0.7), head=QUICK)


def test_accuracy_is_that_of_the_test_pairs_one_by_one(fitted: FitResult) -> None:
    metrics = measure_fit(fitted).metrics
    features = fitted.features
    refined = fitted.model.refine(features.embedding(slice(None)), features.reward).reward
    test = features.pairs.select(fitted.splits.test)
    for name, reward in (("base", features.reward), ("refined", refined)):
        right = [bool(reward[c] > reward[r]) for c, r in zip(test.chosen, test.rejected, strict=True)]
        assert metrics[name]["accuracy"] == pytest.approx(np.mean(right))
    assert metrics["pairs"] == len(test) and metrics["prompts"] == len(set(test.prompt_id))
    gain = metrics["refined"]["accuracy"] - metrics["base"]["accuracy"]
    assert metrics["difference"]["value"] == pytest.approx(gain)
    flips = metrics["flips"]
    assert (flips["fixed"] - flips["broken"]) / len(test) == pytest.approx(gain)


def test_categories_add_up(fitted: FitResult) -> None:
    metrics = measure_fit(fitted).metrics
    parts = metrics["by_category"]
    assert sum(part["pairs"] for part in parts.values()) == metrics["pairs"]
    mean = sum(part["pairs"] * part["refined"]["accuracy"] for part in parts.values()) / metrics["pairs"]
    assert mean == pytest.approx(metrics["refined"]["accuracy"])


def test_metrics_are_json_and_have_what_is_promised(fitted: FitResult) -> None:
    measured = measure_fit(fitted)
    metrics = json.loads(json.dumps(measured.metrics, allow_nan=False))
    assert {"low", "high"} <= metrics["difference"].keys()
    labels = fitted.conflicts.overall
    assert metrics["kept_fraction"] == 1.0  # no filter: every training pair is fitted on
    assert 0 < metrics["contradicted_fraction"] == labels.dropped / len(fitted.splits.train)
    assert metrics["fusion"] == fitted.model.head.fusion.to_dict()
    assert {"filter", "fit", "refine", "evaluate"} <= measured.seconds.keys() and "seconds" not in metrics
    assert {"python", "torch", "transformers", "ebrm"} <= metrics["versions"].keys()


def test_what_the_filter_left_out_is_counted() -> None:
    head = replace(ONE_EPOCH, objective=LikelihoodConfig())
    fitted = fit(linear_features(noise=0.7), head=head, config=FitConfig(filter_conflicts=True))
    measured = measure_fit(fitted, bootstrap=Bootstrap(20))
    metrics, labels = measured.metrics, fitted.conflicts.overall
    assert metrics["kept_fraction"] == labels.kept / len(fitted.splits.train) < 1
    assert metrics["contradicted_fraction"] == labels.dropped / len(fitted.splits.train) > 0
    assert metrics["fusion"] == {"power": 1.0, "base_noise": None}  # JSON has no infinity
    assert measured.report is not None and measured.report.filtered and measured.report.fusion == metrics["fusion"]


def test_the_examples_are_those_that_moved_most_and_carry_their_densities(fitted: FitResult) -> None:
    report = measure_fit(fitted).report
    assert report is not None
    moved = np.abs(np.asarray(report.refined_reward) - np.asarray(report.base_reward)).ravel()
    shown = [abs(example.refined_reward - example.base_reward) for example in report.examples]
    assert shown == pytest.approx(sorted(moved, reverse=True)[: len(shown)], abs=1e-5)
    for example in report.examples:
        assert np.trapezoid(example.density, example.density_nodes) == pytest.approx(1, abs=1e-3)


def test_probabilities_favor_the_side_with_the_higher_mean(fitted: FitResult) -> None:
    report = measure_fit(fitted).report
    assert report is not None
    test = fitted.features.pairs.select(fitted.splits.test)
    mean = fitted.model.with_inference(estimate="mean")
    sides = [
        mean.refine(fitted.features.embedding(rows), fitted.features.reward[rows]).reward
        for rows in (test.chosen, test.rejected)
    ]
    agree = (sides[0] > sides[1]).numpy() == (np.asarray(report.probability) > 0.5)
    assert agree.mean() > 0.9


def test_uncertainty_is_held_against_the_pairs_the_refined_reward_gets_wrong(fitted: FitResult) -> None:
    measured = measure_fit(fitted)
    assert measured.report is not None
    refined, std = np.asarray(measured.report.refined_reward), np.asarray(measured.report.std)
    wrong = refined[:, 0] <= refined[:, 1]
    spread = np.sqrt((std**2).sum(1))
    above = (spread[wrong][:, None] > spread[~wrong]) + 0.5 * (spread[wrong][:, None] == spread[~wrong])
    assert measured.metrics["error_auroc"]["std"] == pytest.approx(above.mean())


def test_calibration_and_uncertainty_come_with_intervals_over_prompts(fitted: FitResult) -> None:
    measured = measure_fit(fitted, bootstrap=Bootstrap(300, seed=3))
    assert measured.report is not None
    probability, prompts = np.asarray(measured.report.probability), measured.report.prompt_id
    found = calibration(probability, prompts, bootstrap=Bootstrap(300, seed=3))
    numbers = measured.metrics["calibration"]
    assert set(numbers) == {"ece", "ece_if_calibrated", "brier", "log_loss", "intervals"}
    for name in ("ece", "brier", "log_loss"):
        estimate = getattr(found, name)
        assert numbers[name] == estimate.value
        assert numbers["intervals"][name] == {"low": estimate.low, "high": estimate.high}
    assert numbers["brier"] == pytest.approx(np.mean((1 - probability) ** 2))
    refined, std = np.asarray(measured.report.refined_reward), np.asarray(measured.report.std)
    wrong = refined[:, 0] <= refined[:, 1]
    auroc = measured.metrics["error_auroc"]
    for name, uncertainty in (("std", np.hypot(*std.T)), ("confidence", np.minimum(probability, 1 - probability))):
        expected = error_auroc(uncertainty, wrong, prompts, bootstrap=Bootstrap(300, seed=3))
        assert expected is not None and auroc[name] == pytest.approx(expected.value)
        assert auroc["intervals"][name] == pytest.approx({"low": expected.low, "high": expected.high})


def test_without_test_pairs_nothing_is_claimed(fitted: FitResult) -> None:
    empty = replace(fitted, splits=replace(fitted.splits, test=np.zeros(0, np.int64)))
    measured = measure_fit(empty)
    assert measured.report is None and measured.metrics["pairs"] == 0 and measured.metrics["base"] is None
    assert {"kept_fraction", "contradicted_fraction", "fusion", "versions"} < measured.metrics.keys()


def test_the_evaluation_prints_the_three_answers(fitted: FitResult) -> None:
    evaluation = fitted.evaluation
    assert evaluation.base is not None and evaluation.difference is not None
    better, moves, deploy = str(evaluation).splitlines()
    share = f"{100 * evaluation.base.value:.1f}% ["
    assert better.startswith(f"better for me?    accuracy on {evaluation.pairs:,} held-out pairs: base {share}")
    assert better.count("[") == 3 and " points [" in better
    assert moves == "what else moves?  Not measured: there are no anchors"
    assert deploy == f"deploy it?        {evaluation.metrics['recommendation']['sentence']}"


def test_the_report_and_the_metrics_hold_the_same_answers(fitted: FitResult) -> None:
    evaluation = measure_fit(fitted)
    report, metrics = evaluation.report, json.loads(json.dumps(evaluation.metrics, allow_nan=False))
    assert report is not None and report.answers == evaluation.answers and evaluation.recommendation is not None
    assert f"{report.headline}." == str(evaluation.recommendation) == metrics["recommendation"]["sentence"]
    assert [one.question for one in report.answers] == ["Better for me?", "What else moves?", "Deploy it?"]
    assert metrics["power"]["discordant"] == pytest.approx(
        (metrics["flips"]["fixed"] + metrics["flips"]["broken"]) / metrics["pairs"]
    )
    assert metrics["anchors"] is metrics["learning_curve"] is None
    assert fitted.memorization is not None and metrics["memorization"] == fitted.memorization.to_dict()
    assert metrics["pairs_seen"] == "unknown" and metrics["notes"] == []


def test_anchors_memorization_curve_and_notes_reach_the_page_and_the_metrics(fitted: FitResult) -> None:
    features, test = fitted.features, fitted.features.pairs.select(fitted.splits.test)
    anchors = measure_anchors(fitted.model, features, test.chosen, test)
    found = memorization(features.embeddings, features.reward, features.pairs)
    gain = Estimate(0.02, -0.01, 0.05)
    curve = LearningCurve((25, 50, 100), (gain,) * 3, gain)
    known = replace(fitted.model.record, data=fitted.model.record.data | {"pairs_seen": "no"})
    model = EnergyRewardModel(fitted.model.head, known)
    noted = replace(
        fitted, model=model, anchors=anchors, memorization=found, curve=curve, notes=("No evidence to move.",)
    )
    evaluation = measure_fit(noted, bootstrap=Bootstrap(50))
    metrics = json.loads(json.dumps(evaluation.metrics, allow_nan=False))
    assert metrics["anchors"] == anchors.to_dict() and metrics["learning_curve"] == curve.to_dict()
    assert found is not None and metrics["memorization"] == found.to_dict()
    assert metrics["pairs_seen"] == "no" and metrics["notes"] == ["No evidence to move."]
    better, moves, deploy = (" ".join(one.details) for one in evaluation.answers)
    assert "No evidence to move." in better and "has not seen these pairs" in better and str(found) in better
    assert f"On {anchors.rows} anchor responses" in moves and "cannot be told" in deploy


def test_a_refined_reward_that_is_the_base_reward_is_not_to_be_deployed_and_says_why(fitted: FitResult) -> None:
    model = EnergyRewardModel(fitted.model.head, fitted.model.record)
    model.refine = lambda embedding, reward, *rest, **more: replace(  # type: ignore[method-assign]
        fitted.model.refine(embedding, reward), reward=reward, delta=torch.zeros_like(reward)
    )
    evaluation = measure_fit(replace(fitted, model=model, notes=("No evidence to move.",)), bootstrap=Bootstrap(50))
    assert evaluation.difference is not None and evaluation.difference.value == 0
    assert str(evaluation.recommendation) == "Do not deploy: the refined reward is the base reward."
    assert evaluation.answers[0].answer == "No: the refined reward is the base reward"
    assert "No evidence to move." in evaluation.answers[0].details


def test_a_reward_model_that_knows_the_pairs_asks_for_others(fitted: FitResult) -> None:
    seen = replace(fitted.model.record, data=fitted.model.record.data | {"pairs_seen": "yes"})
    model = EnergyRewardModel(fitted.model.head, seen)
    model.refine = lambda embedding, reward, *rest, **more: replace(  # type: ignore[method-assign]
        fitted.model.refine(embedding, reward), reward=-reward, delta=-2 * reward
    )
    evaluation = measure_fit(replace(fitted, model=model), bootstrap=Bootstrap(50))
    assert evaluation.recommendation is not None and evaluation.recommendation.action == "bring more pairs"
    assert "has not seen" in evaluation.recommendation.verdict
    assert "was trained on these pairs" in " ".join(evaluation.answers[0].details)


def test_several_pairs_of_a_prompt_count_for_less(fitted: FitResult) -> None:
    pairs = fitted.pairs
    again = np.repeat(fitted.splits.test, 3)
    copied = replace(fitted, splits=replace(fitted.splits, test=again))
    one, three = (measure_fit(each, bootstrap=Bootstrap(50)).metrics["power"] for each in (fitted, copied))
    assert len(pairs) and one["design_effect"] == 1 and three["design_effect"] == pytest.approx(3, rel=0.05)
    assert three["smallest"] == pytest.approx(one["smallest"], rel=0.05)


def test_where_pairs_were_read_is_their_place_and_else_their_row(fitted: FitResult) -> None:
    report = measure_fit(fitted, bootstrap=Bootstrap(50)).report
    assert report is not None and all(one.place.startswith("row ") for one in report.examples)
    where = np.array([f"pairs.jsonl:{k}" for k in range(len(fitted.pairs))], dtype=object)
    placed = replace(fitted, pairs=replace(fitted.pairs, where=where))
    report = measure_fit(placed, bootstrap=Bootstrap(50)).report
    assert report is not None and all(one.place.startswith("pairs.jsonl:") for one in report.examples)
