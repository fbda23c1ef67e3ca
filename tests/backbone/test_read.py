from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.backbone.shared import close, load, refuses
from tests.tiny import DECODERS, FAMILIES, MORE_FAMILIES, build_model, byte_tokenizer, edit_config, save_rm
from torch import Tensor

from ebrm.backbone import Backbone, BackboneConfig, families, forward, load_backbone
from ebrm.backbone.read import Reading
from ebrm.data import TextConfig
from ebrm.errors import BackboneError, TextError

SAVED: dict[str, Path] = {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    if not SAVED:
        SAVED.update({family: save_rm(tmp_path_factory.mktemp(family), family) for family in FAMILIES})
    return SAVED


@pytest.fixture(scope="module")
def llama(folders):
    return load(folders["llama"])


def texts(count: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, 190) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("family", [family for family in (*FAMILIES, *MORE_FAMILIES) if family != "xlnet"])
def test_rewards_are_the_models_own(tmp_path, folders, family):
    backbone = load(folders[family] if family in FAMILIES else save_rm(tmp_path, family))
    # BART and T5 read their reward at the end token.
    end = [backbone.model.config.eos_token_id] if family in MORE_FAMILIES else []
    ids = [[*row, *end] for row in texts(9)]
    reading = backbone.read(ids)
    with torch.no_grad():
        own = torch.cat([backbone.model(input_ids=torch.tensor([row])).logits[:, 0] for row in ids])
    close(reading.reward, own, 1e-5)
    torch.testing.assert_close(backbone.head(reading.embedding), reading.reward)
    assert reading.embedding.shape == (9, backbone.embedding_size) and reading.embedding.dtype == torch.float32
    assert float(reading.reward.std()) > 1e-3  # the texts do differ


def test_a_model_that_reads_its_reward_at_the_padding_is_refused(tmp_path):
    folder, text = save_rm(tmp_path, "xlnet"), TextConfig(max_length=100)
    # Its blocks give [tokens, texts, h], so that there is nothing to average.
    with refuses(r"Block 1 of .* tensor of shape \[9, 2, 32\] for 2 texts .*: `layers=..`"):
        load_backbone(BackboneConfig(str(folder), device="cpu"), text).read([[5] * 9, [6, 7]])
    backbone = load_backbone(BackboneConfig(str(folder), device="cpu", layers=()), text)
    with refuses("another embedding when it is padded .* Use `token_budget=1`"):
        backbone.read([[5] * 9, [6, 7]])
    backbone.token_budget = 1
    assert backbone.read([[5] * 9, [6, 7]]).reward.isfinite().all()


@pytest.mark.parametrize("family", DECODERS)
def test_embeddings_are_the_last_hidden_state_at_the_last_token(folders, family):
    backbone = load(folders[family])
    ids = [row for row in texts(6) if len(row) > 1]
    reading = backbone.read(ids)
    for row, embedding in zip(ids, reading.embedding, strict=True):
        with torch.no_grad():
            hidden = backbone.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0]
        close(embedding[:32], hidden[-1])
        # The token before is another embedding.
        assert float((embedding[:32] - hidden[-2]).norm() / hidden[-1].norm()) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 37, 100, 16384])
def test_rewards_do_not_depend_on_the_batch(folders, family, budget):
    backbone = load(folders[family], token_budget=budget)
    ids = texts(12, seed=budget)
    reading = backbone.read(ids)
    shuffled = list(range(12))
    random.Random(1).shuffle(shuffled)
    again = backbone.read([ids[row] for row in shuffled])
    assert float((reading.reward[shuffled] - again.reward).abs().max()) <= 1e-5
    assert backbone.batch_drift(ids) <= 1e-5


@given(order=st.permutations(range(8)), budget=st.integers(1, 200))
def test_rows_come_back_in_the_order_given(llama, order, budget):
    ids = texts(8)
    llama.token_budget = budget
    expected = llama.read(ids)
    found = llama.read([ids[row] for row in order])
    close(found.embedding, expected.embedding[order], 1e-5)


def test_no_text_and_one_text(llama):
    nothing = llama.read([])
    assert nothing.embedding.shape == (0, 64) and nothing.reward.shape == (0,)
    assert llama.batch_drift([]) == 0.0
    one = llama.read([[5, 6, 7]])
    assert one.embedding.shape == (1, 64) and one.reward.shape == (1,)


def test_works_and_stays_usable_under_inference_mode(llama):
    with torch.inference_mode():
        inside = llama.read([[5, 6, 7], [8]])
    torch.testing.assert_close(inside.reward, llama.read([[5, 6, 7], [8]]).reward)
    weight = torch.zeros(64, requires_grad=True)
    (llama.read([[5, 6, 7]]).embedding @ weight).sum().backward()  # what is read outside can be trained on
    assert weight.grad is not None


class TestPadding:
    """The padding token never decides where a text ends."""

    def test_texts_that_end_in_the_padding_token(self, folders):
        backbone = load(folders["llama"])
        pad = backbone.tokenizer.pad_token_id
        ids = [[9, 8, 7, pad], [9, 8, 7], [9, pad, pad], [pad]]
        reading = backbone.read(ids)
        with torch.no_grad():
            hidden = [backbone.model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ids]
        close(reading.embedding[:, :32], torch.stack(hidden))
        assert abs(float(reading.reward[0] - reading.reward[1])) > 1e-3

    @pytest.mark.parametrize("pad", ["</s>", None])
    def test_padding_with_the_end_token_or_none(self, tmp_path, pad):
        save_rm(tmp_path)
        tokenizer = byte_tokenizer(pad=pad)
        tokenizer.save_pretrained(tmp_path)
        end = tokenizer.eos_token_id
        edit_config(tmp_path, pad_token_id=end if pad else None)
        backbone = load(tmp_path)
        ids = [[9, 8, 7, end], [9, 8, 7], [9, end]]
        size = backbone.model.get_input_embeddings().weight.shape
        together, single = backbone.read(ids), [load(tmp_path).read([row]) for row in ids]
        torch.testing.assert_close(
            together.reward, torch.cat([reading.reward for reading in single]), atol=1e-5, rtol=0
        )
        assert abs(float(together.reward[0] - together.reward[1])) > 1e-3
        assert backbone.model.get_input_embeddings().weight.shape == size

    @pytest.mark.parametrize("shift", [-1, 1])
    def test_a_shifted_position_is_refused(self, folders, monkeypatch, shift):
        backbone = load(folders["llama"])
        monkeypatch.setattr(
            forward, "last_position", lambda mask: (families.last_position(mask) + shift) % mask.shape[1]
        )
        with refuses(
            "the head applied to the embedding gives .* but the model reports|another embedding when it is padded"
        ):
            backbone.read(texts(6))

    def test_last_position_for_padding_on_either_side(self):
        mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]])
        assert families.last_position(mask).tolist() == [1, 3, 3, 0, 2]


class TestBatches:
    @staticmethod
    def batches(
        backbone: Backbone, monkeypatch: pytest.MonkeyPatch, limit: int | None = None, error: Any = None
    ) -> list[Any]:
        seen: list[Any] = []
        real = backbone.model.forward

        def forward(input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> Any:
            if limit is not None and input_ids.numel() > limit:
                raise error
            seen.append(tuple(input_ids.shape))
            return real(input_ids=input_ids, attention_mask=attention_mask, **rest)

        monkeypatch.setattr(backbone.model, "forward", forward)
        return seen

    def test_stay_within_the_budget_and_are_sorted(self, folders, monkeypatch):
        backbone = load(folders["llama"], token_budget=100)
        backbone.read([[5]])  # the first read makes one more forward, for its check
        seen = self.batches(backbone, monkeypatch)
        backbone.read(texts(30))
        assert sum(rows for rows, _ in seen) == 30
        assert all(rows * length <= 100 for rows, length in seen)
        lengths = [length for _, length in seen]
        assert lengths == sorted(lengths, reverse=True)

    def test_a_text_above_the_budget_runs_alone(self, folders, monkeypatch):
        backbone = load(folders["llama"], token_budget=10)
        backbone.read([[5]])
        seen = self.batches(backbone, monkeypatch)
        backbone.read([[5] * 30, [6] * 5, [7] * 5, [8] * 5])
        assert seen == [(1, 30), (2, 5), (1, 5)]

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        ],
    )
    def test_are_halved_when_memory_runs_out(self, folders, monkeypatch, error):
        backbone = load(folders["llama"])
        ids = texts(20)
        expected = backbone.read(ids)
        seen = self.batches(backbone, monkeypatch, limit=150, error=error)
        found = backbone.read(ids)
        torch.testing.assert_close(found.reward, expected.reward, atol=1e-5, rtol=0)
        assert sum(rows for rows, _ in seen) == 20 and max(rows * length for rows, length in seen) <= 150

    def test_that_cannot_be_halved_name_the_row(self, folders, monkeypatch):
        backbone = load(folders["llama"])
        backbone.read([[5]])
        self.batches(backbone, monkeypatch, limit=10, error=torch.OutOfMemoryError("CUDA out of memory"))
        with refuses("too small for a single text: row 1 has 11 tokens"):
            backbone.read([[5] * 3, [6] * 11])

    def test_other_errors_are_not_taken_for_it(self, folders, monkeypatch):
        backbone = load(folders["llama"])
        self.batches(backbone, monkeypatch, limit=0, error=RuntimeError("shapes do not match"))
        with pytest.raises(RuntimeError, match="shapes do not match"):
            backbone.read([[5]])


class TestRefused:
    def test_numbers_that_are_not_finite_name_the_row(self, folders):
        for value in (float("nan"), float("inf")):
            backbone = load(folders["llama"])
            with torch.no_grad():
                backbone.model.get_input_embeddings().weight[77] = value
            backbone.read([[5, 6], [7]])
            with pytest.raises(
                BackboneError, match=r"1 of 3 texts an embedding or reward .* not a finite number, first row 1 \(2 tok"
            ):
                backbone.read([[5, 6], [77, 5], [7]])

    def test_one_number_of_an_embedding_is_enough(self, folders):
        backbone = load(folders["llama"])
        backbone.read([[5]])

        def poison(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            hidden = inputs[0].clone()
            hidden[0, :, 3] = float("inf")  # the first of a batch is its longest text
            return (hidden,)

        backbone.forward.head.register_forward_pre_hook(poison)
        with refuses(r"1 of 3 texts .* first row 2 \(4 tokens\)"):
            backbone.read([[5, 6], [7], [8, 9, 10, 11]])

    @pytest.mark.parametrize(
        ("ids", "said"),
        [
            ([[5], []], "Row 1 has no tokens"),
            ([[5], [6] * 129], "Row 1 has 129 tokens, and .* takes at most 128"),
            ([[5, 100_000]], "Row 0 holds the token id 100000, but .* knows ids 0 to"),
            ([[5, -1]], "Row 0 holds the token id -1"),
        ],
    )
    def test_token_ids_the_model_cannot_take(self, llama, ids, said):
        with refuses(said):
            llama.read(ids)


def test_half_precision_is_read_and_its_head_computes_in_float32(folders):
    backbone = load(folders["llama"], dtype="bfloat16")
    assert backbone.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert backbone.head.weight.dtype == torch.float32 and backbone.identity.dtype == "bfloat16"
    reading = backbone.read(texts(8))
    assert reading.reward.dtype == torch.float32
    assert not torch.equal(reading.reward, reading.reward.bfloat16().float())  # not rounded on the way
    exact = load(folders["llama"]).read(texts(8))
    torch.testing.assert_close(reading.reward, exact.reward, atol=0.2, rtol=0.1)


def test_batch_drift_is_the_largest_difference(llama, monkeypatch):
    # A reader whose rewards fall by one for every text beside them in the batch.
    monkeypatch.setattr(
        llama, "read", lambda ids, on_error: Reading(torch.zeros(len(ids), 1), torch.full((len(ids),), -len(ids)))
    )
    assert llama.batch_drift([[5], [6], [7]]) == 2.0


def test_the_model_is_frozen_and_keeps_no_cache(llama):
    assert not llama.model.training and not any(p.requires_grad for p in llama.model.parameters())
    assert llama.model(input_ids=torch.tensor([[5, 6]])).past_key_values is None


def test_turns_and_a_rendered_conversation_are_tokenized_by_the_text_rule(llama):
    assert llama.tokenizer.decode(llama.tokenize("Hi", "Yes").ids).startswith("<s><|start|>user\nHi<|end|>")
    written = "<|start|>user\nHi<|end|>\n<|start|>assistant\nYes<|end|>"
    assert llama.tokenize_rendered(written) == llama.tokenize("Hi", "Yes")
    with pytest.raises(TextError, match="row 2: The text is a NoneType"):
        llama.tokenize_rendered(None, "row 2")  # type: ignore[arg-type]


def test_many_threads_read_what_one_reads(folders):
    backbone = load(folders["llama"], token_budget=60)
    batches = [texts(5, seed=seed) for seed in range(24)]
    expected = [load(folders["llama"], token_budget=60).read(ids) for ids in batches]
    # Another reader of the same modules: its hooks must not meet those of the first.
    other = replace(backbone.forward, name="other")

    def read(place: int) -> tuple[Tensor, Tensor, list[int]]:
        found = backbone.read(batches[place])
        return found.embedding, other.embed(batches[place][:1]), backbone.tokenize("Hi", f"{place}").ids

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(len(batches))))
    for place, (embedding, first, ids) in enumerate(found):
        assert torch.equal(embedding, expected[place].embedding)
        close(first[0], expected[place].embedding[0], 1e-5)
        assert ids == backbone.tokenize("Hi", f"{place}").ids
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in backbone.model.modules())


def test_texts_that_cannot_be_read_leave_the_others_as_they_are(llama):
    reading, errors = llama.read_texts(["Hi", "Hi", "Hi"], ["Yes", "word " * 200, "No"], on_error="nan")
    assert [error is None for error in errors] == [True, False, True] and "the limit is 128" in str(errors[1])
    alone, _ = llama.read_texts("Hi", ["Yes", "No"])
    assert torch.equal(reading.embedding[[0, 2]], alone.embedding) and torch.equal(reading.reward[[0, 2]], alone.reward)
    assert reading.embedding[1].isnan().all() and reading.reward[1].isnan()
    nothing, none = llama.read_texts([], [])
    assert nothing.embedding.shape == (0, 64) and none == ()
    dropping = load_backbone(BackboneConfig(llama.identity.name, device="cpu"), TextConfig(truncation="drop"))
    _, (why,) = dropping.read_texts("Hi", ["word " * 200], on_error="nan")
    assert "longer than the 128 tokens" in str(why)
    with pytest.raises(TextError, match="Text 0: The text is longer .*`truncation=.prompt_left.`"):
        dropping.read_rendered("word " * 200)


class TestTokenThatPads:
    """Any token of the model will do to pad with: what pads is masked."""

    def rewards(self, folder: Path) -> torch.Tensor:
        backbone = load(folder)
        texts = [backbone.tokenize("a", "b"), backbone.tokenize("a longer prompt", "b")]
        together = backbone.read([text.ids for text in texts if text is not None])
        close(together.reward, torch.cat([backbone.read([text.ids]).reward for text in texts if text is not None]))
        return together.reward

    @pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
    def test_a_token_that_was_added_without_resizing_the_model(self, tmp_path, family):
        expected = self.rewards(save_rm(tmp_path / "rm", family))
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id >= build_model(family).get_input_embeddings().weight.shape[0]
        tokenizer.save_pretrained(tmp_path / "rm")
        close(self.rewards(tmp_path / "rm"), expected)

    @pytest.mark.parametrize("pad", [5000, -1, None])
    @pytest.mark.parametrize("own", ["<pad>", None])
    def test_a_configuration_that_names_none_that_there_is(self, tmp_path, pad, own):
        expected = self.rewards(save_rm(tmp_path / "rm"))
        edit_config(tmp_path / "rm", pad_token_id=pad)
        byte_tokenizer(pad=own).save_pretrained(tmp_path / "rm") if own else None
        close(self.rewards(tmp_path / "rm"), expected)

    def test_no_token_at_all_that_the_model_knows(self, tmp_path):
        folder = save_rm(tmp_path / "rm")
        expected = self.rewards(folder)
        edit_config(folder, pad_token_id=5000, eos_token_id=5001, bos_token_id=5002)
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "[PAD]", "eos_token": "[END]"})
        tokenizer.save_pretrained(folder)
        close(self.rewards(folder), expected)
