from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import CHAT_TEMPLATE, build_model, byte_tokenizer, save_rm
from torch import Tensor, nn

from ebrm.backbone import BackboneConfig
from ebrm.data import TextConfig, tokenize
from ebrm.errors import BackboneError, ConfigError, TextError
from ebrm.logprobs import CausalLogprobs, endogenous_reward, log_density_ratio, self_aligned, yes_no_log_odds

PROMPTS = ["Name a fruit.", "Say hello in the other language, please.", "?", "the the the"]
RESPONSES = ["the apple", "Grüße 🙂!", "in", "the other, another and yet another one"]


@pytest.fixture(scope="module")
def llama() -> Any:
    return build_model("llama", "causal", seed=3)


@pytest.fixture(scope="module")
def source(llama: Any) -> CausalLogprobs:
    return CausalLogprobs(llama, byte_tokenizer())


def by_hand(model: Any, ids: list[int], start: int, temperature: float = 1.0) -> tuple[list[float], list[float]]:
    """Log p and log Z of the tokens from `start` on, one forward a text, without padding or batches."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float() / temperature
    rows = [logits[at - 1] for at in range(start, len(ids))]
    log_z = [float(row.logsumexp(0)) for row in rows]
    return [float(row[token]) - z for row, token, z in zip(rows, ids[start:], log_z, strict=True)], log_z


def split(source: CausalLogprobs, prompt: str, response: str) -> tuple[list[int], int]:
    """Ids of a text, and the first that has a character of the response, found without offsets."""
    found = tokenize(source.text_rule, source.tokenizer, prompt, response)
    assert found is not None
    text = source.tokenizer.decode(found.ids)
    begins = text.rindex(response)
    start = next(i for i in range(len(found.ids)) if len(source.tokenizer.decode(found.ids[: i + 1])) > begins)
    return found.ids, start


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_log_probabilities_are_those_of_a_loop_over_the_models_own_logits(family: str) -> None:
    model = build_model(family, "causal", seed=3)
    source = CausalLogprobs(model, byte_tokenizer(), token_budget=150, chunk=7)
    found = source(PROMPTS, RESPONSES, log_z=True, temperature=0.7)
    assert found.log_z is not None and found.logp.dtype == torch.float32
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        ids, start = split(source, prompt, response)
        logp, log_z = by_hand(model, ids, start, 0.7)
        count = int(found.lengths[row])
        assert count == len(logp)
        assert found.logp[row, :count].tolist() == pytest.approx(logp, abs=2e-5)
        assert found.log_z[row, :count].tolist() == pytest.approx(log_z, abs=2e-5)


def test_nothing_depends_on_batches_order_chunks_or_the_tokenizers_padding_side(source: CausalLogprobs) -> None:
    expected = source(PROMPTS, RESPONSES, log_z=True)
    assert expected.log_z is not None
    order = [2, 0, 3, 1]
    for changes in ({"token_budget": 1}, {"chunk": 1}, {"chunk": 1000}, {"side": "left"}):
        tokenizer = byte_tokenizer()
        tokenizer.padding_side = changes.pop("side", "right")
        other = CausalLogprobs(source.model, tokenizer, **changes)
        found = other([PROMPTS[i] for i in order], [RESPONSES[i] for i in order], log_z=True)
        assert found.log_z is not None
        torch.testing.assert_close(found.logp, expected.logp[order], atol=2e-5, rtol=0)
        torch.testing.assert_close(found.log_z, expected.log_z[order], atol=2e-5, rtol=0)
        assert torch.equal(found.mask, expected.mask[order])
    alone = source(PROMPTS[0], RESPONSES[0])
    torch.testing.assert_close(alone.sum(), expected.sum()[:1], atol=2e-5, rtol=0)
    assert source([], []).logp.shape == (0, 0)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
@pytest.mark.parametrize("bos", [True, False])
def test_the_response_is_all_its_characters_and_by_default_what_closes_its_turn(
    llama: Any, template: str | None, bos: bool
) -> None:
    tokenizer = byte_tokenizer(template, adds_bos=bos)
    whole, bare = CausalLogprobs(llama, tokenizer), CausalLogprobs(llama, tokenizer, closing=False)
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        closed, text = whole._tokens(0, (prompt, response)), bare._tokens(0, (prompt, response))
        assert closed.ids == text.ids and closed.start == text.start
        assert tokenizer.decode(text.ids[text.start : text.end]).strip() == response
        rest = tokenizer.decode(closed.ids[closed.start : closed.end]).strip().removeprefix(response)
        assert rest == ("<|end|>" if template else "")
    assert bare("Say nothing.", "").lengths.tolist() == [0]
    assert whole("Say nothing.", "").lengths.tolist() == [2 if template else 0]


def test_a_token_on_the_prompts_edge_is_the_responses() -> None:
    tokenizer = byte_tokenizer(None)  # plain: "Assistant: the", where " the" is one token
    found = CausalLogprobs(build_model("llama", "causal"), tokenizer)._tokens(0, ("Hi", "the end"))
    assert tokenizer.decode(found.ids[found.start]) == " the"


def test_leading_space_and_eos_are_counted_as_the_text_rule_writes_them(llama: Any) -> None:
    tokenizer = byte_tokenizer(None)
    closed = CausalLogprobs(llama, tokenizer, TextConfig(eos="append"))._tokens(0, ("Hi", "yes"))
    assert closed.ids[closed.end - 1] == tokenizer.eos_token_id
    bare = CausalLogprobs(llama, tokenizer, TextConfig(eos="append", bos="strip"), closing=False)._tokens(
        0, ("Hi", "yes")
    )
    assert bare.ids == closed.ids[1:-1] + [tokenizer.eos_token_id]
    assert tokenizer.decode(bare.ids[bare.start : bare.end]) == "yes"


def test_a_cut_prompt_leaves_the_response_where_it_is(llama: Any, source: CausalLogprobs) -> None:
    long = "word " * 100
    cutting = CausalLogprobs(llama, byte_tokenizer(), TextConfig(truncation="prompt_left", max_length=60))
    found = cutting._tokens(0, (long, RESPONSES[0]))
    assert len(found.ids) == 60 and found.truncated > 0 and found.ids[0] == source.tokenizer.bos_token_id
    ids, start = found.ids, found.start
    assert cutting(long, RESPONSES[0]).logp[0].tolist() == pytest.approx(by_hand(llama, ids, start)[0], abs=2e-5)
    with pytest.raises(TextError, match="Text 1: The text has .* tokens, and the limit is 128"):
        source(["Hi", long], ["a", "b"])
    dropping = CausalLogprobs(llama, byte_tokenizer(), TextConfig(truncation="drop"))
    with pytest.raises(TextError, match="Text 0: The text is longer than the 128 tokens"):
        dropping(long, "a")


def test_a_response_with_nothing_before_it_has_no_first_probability(llama: Any) -> None:
    tokenizer = byte_tokenizer("{{ messages[-1]['content'] }}", bos=None)
    with pytest.raises(TextError, match="Text 0: nothing stands before the response .the text rule writes nothing"):
        CausalLogprobs(llama, tokenizer)("Hi", "there")


def test_without_the_prompt_its_system_turns_and_an_empty_users_turn_stay(source: CausalLogprobs) -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is best?"},
        {"role": "assistant", "content": "Cheese."},
        {"role": "user", "content": "And then?"},
    ]
    found = source._tokens(0, (prompt, "the apple"), unconditional=True)
    expected = "<s><|start|>system\nBe brief.<|end|>\n<|start|>user\n<|end|>\n<|start|>assistant\nthe apple<|end|>\n"
    assert source.tokenizer.decode(found.ids) == expected
    conditional, unconditional = source(prompt, RESPONSES), source(prompt, RESPONSES, unconditional=True)
    assert torch.equal(conditional.mask, unconditional.mask)
    ppl, alone = (-conditional.mean()).exp(), (-unconditional.mean()).exp()
    torch.testing.assert_close(self_aligned(conditional, unconditional, 1e3), 1 - ppl / alone, atol=1e-5, rtol=1e-4)


def test_a_follow_up_is_what_the_user_says_next(llama: Any, source: CausalLogprobs) -> None:
    found = source.followup(PROMPTS, RESPONSES, "the end, thanks")
    one = source._tokens(1, (PROMPTS[1], RESPONSES[1]), followup="the end, thanks")
    text = source.tokenizer.decode(one.ids[: one.end])
    assert text.endswith(f"assistant\n{RESPONSES[1]}<|end|>\n<|start|>user\nthe end, thanks")
    expected = by_hand(llama, one.ids[: one.end], one.start)[0]
    assert found.logp[1, : len(expected)].tolist() == pytest.approx(expected, abs=2e-5)
    with pytest.raises(TextError, match="follow-up is empty"):
        source.followup("Hi", "there", " ")


def test_logits_of_an_answer_give_the_log_odds_of_its_log_probabilities(source: CausalLogprobs) -> None:
    logits, yes, no = source.answer_logits(PROMPTS, ("Yes", "yes", "Yeah"), ("No",))
    assert logits.shape == (4, len(source.tokenizer)) and len(yes) == 2 and len(no) == 1  # Y and y, N
    odds = yes_no_log_odds(logits, yes, no)
    first = [source(PROMPTS, [answer] * 4).logp[:, 0].double() for answer in ("Yes", "yes", "No")]
    torch.testing.assert_close(odds.double(), torch.logaddexp(first[0], first[1]) - first[2], atol=1e-5, rtol=0)
    assert source.answer_logits([])[0].shape[0] == 0
    alone = source.answer_logits(PROMPTS[2])[0]
    torch.testing.assert_close(alone[0], logits[2], atol=2e-5, rtol=0)


def test_the_endogenous_reward_of_a_model_telescopes(source: CausalLogprobs) -> None:
    tokens = source(PROMPTS, RESPONSES, log_z=True)
    assert tokens.log_z is not None
    total = endogenous_reward(tokens).sum(1)
    torch.testing.assert_close(total, tokens.sum() + tokens.log_z[:, 0], atol=1e-4, rtol=0)


def test_a_model_that_is_given_is_left_as_it_was(llama: Any) -> None:
    model = build_model("llama", "causal", seed=3, attention_dropout=0.5).train()
    model.lm_head.eval()
    source = CausalLogprobs(model, byte_tokenizer())
    one, two = source("Hi", "there"), source("Hi", "there")
    assert torch.equal(one.logp, two.logp) and not one.logp.requires_grad
    assert model.training and model.model.training and not model.lm_head.training
    assert all(p.requires_grad for p in model.parameters())


class Odd(nn.Module):
    """A model whose logits are made of its head's in a way that no configuration tells."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.lm_head

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, **inputs: Tensor) -> Any:
        output = self.inner(**inputs)
        output.logits = output.logits.abs().sqrt()
        return output


def test_unknown_logits_are_read_whole_and_said_so(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    source = CausalLogprobs(Odd(llama), byte_tokenizer())
    found = source(PROMPTS, RESPONSES)
    assert "Odd makes its logits in a way that is not known here" in caplog.text
    ids, start = split(source, PROMPTS[0], RESPONSES[0])
    with torch.no_grad():
        logits = llama(torch.tensor([ids])).logits[0].abs().sqrt().log_softmax(-1)
    expected = [float(logits[at - 1, ids[at]]) for at in range(start, len(ids))]
    assert found.logp[0, : len(expected)].tolist() == pytest.approx(expected, abs=2e-5)


def test_logits_are_held_a_few_positions_at_a_time(llama: Any) -> None:
    source = CausalLogprobs(llama, byte_tokenizer(), chunk=3)
    shapes: list[tuple[int, ...]] = []
    handle = llama.lm_head.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[:-1])))
    source(PROMPTS, RESPONSES)
    handle.remove()
    assert max(math.prod(shape) for shape in shapes) <= 4  # one position a row, or a chunk


def test_numbers_that_are_not_finite_are_refused_by_row(llama: Any) -> None:
    broken = build_model("llama", "causal", seed=3)
    with torch.no_grad():
        broken.get_input_embeddings().weight[byte_tokenizer()("🙂", add_special_tokens=False)["input_ids"][-1]] = (
            math.nan
        )
    with pytest.raises(BackboneError, match="gives text 1 log-probabilities that are not finite"):
        CausalLogprobs(broken, byte_tokenizer())(PROMPTS, RESPONSES)


# peft 0.18 asks transformers 5.23 by a name that is going to be another.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_models_are_read_by_folder_and_adapters_merged(tmp_path: Path, llama: Any) -> None:
    llama.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    plain = CausalLogprobs(str(tmp_path / "base"))
    expected = CausalLogprobs(llama, byte_tokenizer())(PROMPTS, RESPONSES)
    torch.testing.assert_close(plain(PROMPTS, RESPONSES).logp, expected.logp, atol=2e-5, rtol=0)
    base = CausalLogprobs(str(tmp_path / "base")).model
    adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "dpo")
    strong = CausalLogprobs(BackboneConfig(str(tmp_path / "dpo"), base=str(tmp_path / "base")))
    live = CausalLogprobs(adapted, byte_tokenizer())(PROMPTS, RESPONSES)
    torch.testing.assert_close(strong(PROMPTS, RESPONSES).logp, live.logp, atol=1e-4, rtol=1e-4)
    ratio = log_density_ratio(strong(PROMPTS, RESPONSES), plain(PROMPTS, RESPONSES), reduction="sum")
    assert ratio.abs().min() > 1e-3


def test_what_is_no_language_model_is_refused(tmp_path: Path, llama: Any) -> None:
    save_rm(tmp_path / "rm", "llama")
    with pytest.raises(BackboneError, match="lacks weights that the model needs: lm_head.weight"):
        CausalLogprobs(str(tmp_path / "rm"))
    with pytest.raises(BackboneError, match="There is no language model"):
        CausalLogprobs(str(tmp_path / "nothing here"))
    for settings, said in (({"server": "http://127.0.0.1:1"}, "use ServerLogprobs"), ({"head": "score"}, "leave it")):
        with pytest.raises(BackboneError, match=said):
            CausalLogprobs(BackboneConfig("x", **settings))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="without its `tokenizer`"):
        CausalLogprobs(llama)
    with pytest.raises(ConfigError, match="goes with a loaded model"):
        CausalLogprobs("x", byte_tokenizer())
    for name in ("token_budget", "chunk"):
        with pytest.raises(ConfigError, match=f"`{name}` is 0"):
            CausalLogprobs(llama, byte_tokenizer(), **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`temperature` is 0"):
        CausalLogprobs(llama, byte_tokenizer())("Hi", "there", temperature=0.0)
