"""Train, val and test conversations for Lightning: read, checked, encoded, batched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch.utils.data import DataLoader

from vlmpeft.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()  # Lightning imports torchmetrics, and that imports torchvision

import lightning.pytorch as pl

from vlmpeft.data.collate import collate, collate_prompts
from vlmpeft.data.conversation import Conversation
from vlmpeft.data.dataset import EncodedDataset, Item, content_hash, scored_items
from vlmpeft.data.encode import Encoded, Encoder
from vlmpeft.data.sampler import BucketBatchSampler
from vlmpeft.data.sources import read_conversations
from vlmpeft.data.workbench.build import PREFIX, cached_task
from vlmpeft.errors import UserError

SPLITS = ("train", "val", "test")


class VLMData(pl.LightningDataModule):
    """Conversations about pictures.

    Args:
        train: an annotation file (JSON or JSONL), or `workbench:TASK`, which also brings val and test.
        val: annotation file of the validation split.
        test: annotation file of the test split.
        image_dir: what image paths are relative to; default: the annotation file's folder.
        batch_size: conversations a step and device; effective batch = batch_size x
            trainer.accumulate_grad_batches x devices.
        max_length: most tokens of a conversation, image tokens included.
        over_length: what happens to longer ones: error names the first of them, drop leaves them out.
        on_error: what happens to unreadable ones: error stops at the first, skip counts and lists them.
        chat_template: Jinja template, file, or name under configs/templates, instead of the base's own.
        num_workers: processes that prepare batches.
        cache_bytes: memory for encoded conversations, so that small sets are decoded once.
    """

    def __init__(
        self,
        train: str | None = "workbench:format",
        val: str | None = None,
        test: str | None = None,
        image_dir: str | None = None,
        batch_size: int = 16,
        max_length: int = 2048,
        over_length: Literal["error", "drop"] = "error",
        on_error: Literal["error", "skip"] = "error",
        chat_template: str | None = None,
        num_workers: int = 0,
        cache_bytes: int = 512 * 2**20,
    ):
        super().__init__()
        self.paths = {"train": train, "val": val, "test": test}
        self.image_dir, self.batch_size, self.num_workers = image_dir, batch_size, num_workers
        self.max_length, self.over_length, self.on_error = max_length, over_length, on_error
        self.chat_template, self.cache_bytes = chat_template, cache_bytes
        self.seed, self.eval_batch_size = 0, 64
        self.eval_limit: int | None = None
        self.skipped: list[str] = []
        self.max_target_tokens = 0
        self.end_ids: set[int] = set()
        self.sampler: BucketBatchSampler | None = None
        self._conversations: dict[str, list[Conversation]] = {}
        self._datasets: dict[str, EncodedDataset] = {}
        self.lengths: dict[str, list[int]] = {}
        self._identity: dict[str, dict[str, Any]] = {}

    # -- reading -------------------------------------------------------------------------------

    def prepare(self, processor: Any, splits: Sequence[str] = SPLITS) -> None:
        """Read and check the splits that are given; encode training conversations once to know lengths.

        Raises:
            UserError: a missing or broken file, record or image (unless on_error is skip), a
                conversation longer than max_length, a split without conversations.
        """
        self.processor = processor
        self.encoder = Encoder(processor, self.chat_template)
        self.pad_id = processor.tokenizer.pad_token_id
        if self.pad_id is None:
            self.pad_id = processor.tokenizer.eos_token_id
        for split in splits:
            if split not in self._conversations and (path := self._resolve(split)):
                # the length limit of generated answers is the longest training answer
                self._read(split, path, sets_limit=split == "train" or "train" not in splits)

    def _resolve(self, split: str) -> str | None:
        train, path = self.paths["train"] or "", self.paths[split]
        if path is None and train.startswith(PREFIX):
            path = train
        if path and path.startswith(PREFIX):
            return str(cached_task(path) / f"{split}.json")
        return path

    def _read(self, split: str, path: str, sets_limit: bool) -> None:
        in_cache = (self.paths[split] or self.paths["train"] or "").startswith(PREFIX)
        conversations = read_conversations(
            path, None if in_cache else self.image_dir, self._on_error
        )
        items = [Item(c.id, c) for c in conversations]
        if split != "train":
            items = scored_items(conversations)[: self.eval_limit]
        dataset = EncodedDataset(items, self.encoder, self.cache_bytes // 2)
        lengths = self._scan(dataset, sets_limit)
        kept = [index for index, length in enumerate(lengths) if length]
        if not kept:
            raise UserError(f"data file {path}: no conversation is left for {split}")
        self._datasets[split] = dataset = _subset(dataset, kept)
        chosen = dict.fromkeys(id(item.conversation) for item in dataset.items)
        self._conversations[split] = [c for c in conversations if id(c) in chosen]
        self.lengths[split] = [lengths[index] for index in kept]

    def _scan(self, dataset: EncodedDataset, sets_limit: bool) -> list[int]:
        """Tokens of every item; 0 for one that is to be left out. Finds what would fail in mid-run."""
        lengths = []
        for index, item in enumerate(dataset.items):
            try:
                encoded = dataset[index][1]
                self._check_length(item, len(encoded))
            except UserError as error:
                self._on_error(UserError(f"{item.conversation.place}: {error}"))
                lengths.append(0)
                continue
            if len(encoded) > self.max_length:
                lengths.append(0)
                continue
            lengths.append(len(encoded))
            if sets_limit:
                self._note_answers(encoded)
        return lengths

    def _note_answers(self, encoded: Encoded) -> None:
        for start, end in encoded.turns:
            self.max_target_tokens = max(self.max_target_tokens, end - start)
            self.end_ids.add(int(encoded.input_ids[end - 1]))

    def _check_length(self, item: Item, length: int) -> None:
        if length > self.max_length and self.over_length == "error":
            raise UserError(
                f"conversation {item.id} has {length} tokens, more than data.max_length={self.max_length}; "
                "raise it, or set --data.over_length=drop"
            )
        if length > self.max_length:
            self.skipped.append(f"{item.conversation.place}: {length} tokens")

    def _on_error(self, error: UserError) -> None:
        if self.on_error == "error":
            raise error
        self.skipped.append(str(error))

    def identity(self) -> dict[str, dict[str, Any]]:
        """Split -> content hash and number of conversations, as a record keeps them."""
        for split, conversations in self._conversations.items():
            if split not in self._identity:  # reads every image
                sha256, number = content_hash(conversations), len(conversations)
                self._identity[split] = {"sha256": sha256, "conversations": number}
        return dict(self._identity)

    def has(self, split: str) -> bool:
        return split in self._datasets

    def has_source(self, split: str) -> bool:
        """Whether a split was given, read or not."""
        return self._resolve(split) is not None

    def dataset(self, split: str) -> EncodedDataset:
        return self._datasets[split]

    # -- batching ------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        self.sampler = BucketBatchSampler(
            self.lengths["train"],
            self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if self._resume_at:
            self.sampler.resume(*self._resume_at)
        return self._loader(
            "train", partial(_train_batch, pad_id=self.pad_id), batch_sampler=self.sampler
        )

    def val_dataloader(self) -> DataLoader | list:
        return self.scoring_loader("val") if self.has("val") else []

    def test_dataloader(self) -> DataLoader:
        return self.scoring_loader("test")

    def scoring_loader(self, split: str) -> DataLoader:
        """Batches of items to score, of similar length, in an order that does not depend on anything."""
        if not self.has(split):
            raise UserError(f"there is no {split} split; give one: --data.{split} FILE")
        size, lengths = self.eval_batch_size, self.lengths[split]
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        return self._loader(
            split, partial(_scoring_batch, pad_id=self.pad_id), batch_sampler=batches
        )

    def _loader(self, split: str, collate_fn: Any, batch_sampler: Any) -> DataLoader:
        return DataLoader(
            self._datasets[split],
            batch_sampler=batch_sampler,
            collate_fn=collate_fn,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=_on_gpu(self.trainer),
        )

    # -- resuming ------------------------------------------------------------------------------

    _resume_at: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch the sampler is; the order itself follows from the seed."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current  # type: ignore[union-attr]
        return {"epoch": self.trainer.current_epoch, "batch": progress.ready, "seed": self.seed}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["seed"] != self.seed:
            raise UserError(
                f"the checkpoint was made with seed {state_dict['seed']}, not {self.seed}"
            )
        self._resume_at = (state_dict["epoch"], state_dict["batch"])


def _subset(dataset: EncodedDataset, kept: list[int]) -> EncodedDataset:
    if len(kept) == len(dataset):
        return dataset
    subset = EncodedDataset([dataset.items[i] for i in kept], dataset.encoder)
    subset._cache = {
        new: dataset._cache[old] for new, old in enumerate(kept) if old in dataset._cache
    }
    return subset


def _train_batch(samples: list[tuple[Item, Encoded]], pad_id: int) -> dict[str, Any]:
    return collate([encoded for _, encoded in samples], pad_id)


def _scoring_batch(samples: list[tuple[Item, Encoded]], pad_id: int) -> dict[str, Any]:
    encoded = [sample for _, sample in samples]
    return {
        "items": [item for item, _ in samples],
        "full": collate(encoded, pad_id),
        "prompts": collate_prompts(encoded, pad_id),
    }


def _on_gpu(trainer: Any) -> bool:
    return trainer is not None and trainer.strategy.root_device.type == "cuda"
