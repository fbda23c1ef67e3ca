"""TRL's trainers with the model itself, or its folder, as the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.integrations.autos import fitted
from tests.integrations.policies import LONG, prompts, save_policy
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.utils import get_reward

from ebrm.errors import ModelError, TextTooLongError
from ebrm.integrations import EBRMForSequenceClassification, export
from ebrm.model import EnergyRewardModel

# transformers 5.23 says that its own arguments, which TRL 1.16 sets, will have other names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> EnergyRewardModel:
    return fitted(tmp_path_factory.mktemp("trl"), "llama", eos="append")


@pytest.fixture(scope="module")
def folder(refined: EnergyRewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(refined, tmp_path_factory.mktemp("trl") / "standalone", standalone=True)


def train(reward: Any, out: Path, rows: Any) -> GRPOTrainer:
    arguments = GRPOConfig(
        output_dir=str(out), max_steps=2, per_device_train_batch_size=6, num_generations=2, seed=1,
        max_completion_length=6, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no", bf16=False,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GRPOTrainer(model=save_policy(out / "policy"), reward_funcs=reward, args=arguments, train_dataset=rows)
    trainer.train()
    return trainer


def talks(long: bool = False) -> Dataset:
    """Conversations that are not too long, or three that are."""
    rows = [row for row in prompts("conversational") if (LONG in str(row["prompt"])) == long]
    return Dataset.from_list(rows * 3 if long else rows)


@pytest.mark.parametrize("given", ["model", "folder"])
def test_grpo_trains_on_the_offline_scores(
    refined: EnergyRewardModel, folder: Path, tmp_path: Path, given: str
) -> None:
    reward = str(folder) if given == "folder" else EBRMForSequenceClassification.from_pretrained(folder)
    run = train(reward, tmp_path, talks())
    name = folder.name
    rewards, asked = torch.tensor(run._logs["rewards"][name]), list(run._logs["prompt"])
    expected = refined.score(asked, [answer[0]["content"] for answer in run._logs["completion"]])
    assert len(rewards) == 6 and any(len(prompt) > 1 for prompt in asked)
    torch.testing.assert_close(rewards, expected.reward, atol=1e-5, rtol=0)
    assert run.state.global_step == 2
    assert f"rewards/{name}/mean" in run.state.log_history[0]


def test_a_long_text_stops_the_run_and_says_why(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TextTooLongError, match=r"texts are too long, first row \d.*max_completion_length"):
        train(str(folder), tmp_path, talks(long=True))


def test_scoring_hidden_states_as_ppo_does_is_refused(folder: Path) -> None:
    model = EBRMForSequenceClassification.from_pretrained(folder)
    with pytest.raises(ModelError, match="belongs to a whole text.*PPO.* cannot use it; GRPOTrainer and RLOOTrainer"):
        get_reward(model, torch.tensor([[5, 6, 7, 1]]), 1, 2)
