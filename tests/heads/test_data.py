from __future__ import annotations

import math

import pytest
import torch
from tests.heads.worlds import NONE

from ebrm.errors import DataError, ModelError
from ebrm.heads import PairRows, labels_by_source
from ebrm.heads.data import Labels, head_data
from ebrm.heads.standardize import Standardizer

EMBEDDING = torch.arange(16.0).reshape(8, 2)
REWARD = torch.tensor([0.0, 2.0, 4.0, 6.0, 100.0, 1.0, 3.0, 9.0])
TRAIN = PairRows(torch.tensor([3, 1]), torch.tensor([2, 3]))
HELD = PairRows(torch.tensor([6]), torch.tensor([2]))


def test_each_row_stands_there_once_in_the_training_rows_units() -> None:
    standardizer = Standardizer(2)
    ratings = torch.where(torch.arange(8) < 7, torch.nan, REWARD)[:, None]
    ratings[6] = 5.0
    data = head_data(EMBEDDING, REWARD, TRAIN, HELD, Labels(ratings=ratings), standardizer)
    assert len(data.embedding) == 5  # rows 1, 2, 3, 6, 7
    assert data.training_rows.tolist() == [True, True, True, False, True]  # row 6 is held out, row 7 rated alone
    assert data.train.chosen.tolist() == [2, 0] and data.train.rejected.tolist() == [1, 2]
    assert data.validation.chosen.tolist() == [3] and data.validation.rejected.tolist() == [1]
    assert float(standardizer.reward_mean) == 5.25  # of 2, 4, 6, 9
    assert data.reward[data.training_rows].mean() == pytest.approx(0.0, abs=1e-6)
    assert data.embedding[data.training_rows].mean(0).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert data.ratings is not None and data.ratings[3:, 0].tolist() == [5.0, 9.0]
    assert data.label.tolist() == data.weight.tolist() == [1.0, 1.0] and data.margin.tolist() == [0.0, 0.0]


def test_what_does_not_fit_is_refused() -> None:
    def build(train: PairRows = TRAIN, **labels) -> None:
        head_data(EMBEDDING, REWARD, train, NONE, Labels(**labels), Standardizer(2))

    with pytest.raises(ModelError, match="No training pairs"):
        build(NONE)
    with pytest.raises(ValueError, match="one weight for each of 2"):
        build(weight=torch.ones(3))
    with pytest.raises(DataError, match="margin.*index 1"):
        build(margin=torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="one group"):
        build(group=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="pair 1 is negative"):
        build(group=torch.tensor([0, -1]))
    with pytest.raises(ValueError, match=r"ratings \[8, a\]"):
        build(ratings=torch.zeros(3, 2))
    with pytest.raises(DataError, match=r"ratings.*\(4, 1\)"):
        build(ratings=torch.where(torch.arange(16).reshape(8, 2) == 9, torch.inf, torch.nan))
    with pytest.raises(ValueError, match="1 held-out pairs"):
        head_data(EMBEDDING, REWARD, TRAIN, HELD, Labels(validation_group=torch.zeros(2)), Standardizer(2))
    bad = EMBEDDING.clone()
    bad[2, 1] = math.nan
    with pytest.raises(ModelError, match="embedding of row 2"):
        head_data(bad, REWARD, TRAIN, NONE, Labels(), Standardizer(2))
    with pytest.raises(DataError, match="base reward.*index 3"):
        head_data(EMBEDDING, torch.where(REWARD == 6, torch.inf, REWARD), TRAIN, NONE, Labels(), Standardizer(2))
    with pytest.raises(ModelError, match="all equal"):
        head_data(EMBEDDING, torch.ones(8), TRAIN, NONE, Labels(), Standardizer(2))


def test_sources_become_users_and_held_out_pairs_of_others_are_left_out() -> None:
    held = PairRows(torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5]))
    kept, labels = labels_by_source("prototypes", ["b", None, "b", "a"], held, ["a", "c", None])
    assert labels.group is not None and labels.validation_group is not None
    assert labels.group.tolist() == [2, 0, 2, 1] and labels.validation_group.tolist() == [1, 0]
    assert kept.chosen.tolist() == [0, 4] and kept.rejected.tolist() == [1, 5]
    same, nothing = labels_by_source("linear", ["a"], held, ["b"] * 3)
    assert same is held and nothing == Labels()
