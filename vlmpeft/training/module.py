"""The LightningModule: a base with a plan on it, its loss, its optimizer, its scores."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import load_tensors
from vlmpeft.base.components import Components
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import autocast, load_base, load_processor, recompute_activations
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.datamodule import VLMData
from vlmpeft.evaluation.decoding import AnswerEnds, Limits, find_end_ids, find_pad_id, limits_of
from vlmpeft.evaluation.metrics.build import MetricSpec, build_metric
from vlmpeft.evaluation.scoring import Scorer, make_scorer, to_device
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.preflight.servability import Engine, check_servable
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.plan import AttachedPlan, Plan, attach, check_has_trainables
from vlmpeft.training.frozen_tower import FrozenTower, KeptOutputs

# after vlmpeft.evaluation.metrics, which has declared torchvision's operators
import lightning.pytorch as pl  # isort: skip
from lightning.pytorch.utilities import rank_zero_warn  # isort: skip

T = TypeVar("T")


@dataclass(frozen=True)
class WarmupCosine:
    """Factor on every learning rate: linear from 0, then half a cosine to 0.

    Args:
        total_steps: optimizer steps of the run.
        warmup_ratio: share of them spent rising.
    """

    total_steps: int
    warmup_ratio: float

    def __call__(self, step: int) -> float:
        warmup = math.ceil(self.total_steps * self.warmup_ratio)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, self.total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _ready(value: T | None, what: str, by: str) -> T:
    """A part of the module that is there only after one of its methods was called."""
    if value is None:
        raise RuntimeError(f"VLMModule: no {what} yet; call {by} first")
    return value


class VLMModule(pl.LightningModule):
    """A vision-language model with a PEFT plan on its components.

    Args:
        base: which pretrained VLM, and how wide its weights are.
        plan: strategy of each component.
        metrics: short names (ExactMatch, TokenF1, JsonFields, ...) or dotted paths of TextMetric classes, or
            {class_path, init_args, groups} of one, where groups are the values of data.group_by it is for; the first is the primary one.
        weight_decay: of AdamW.
        warmup_ratio: share of the steps during which the learning rates rise.
        gradient_checkpointing: recompute activations in the backward pass; slower, less memory.
        self_test: what happens if one batch before the first step shows a trainable tensor without a gradient, or a
            frozen one with one: error stops, warn goes on, off does not look.
        serve_with: peft or vllm: an adapter that this engine could not load is an error before the first step.
    """

    def __init__(
        self,
        base: BaseSpec = BaseSpec(),
        plan: Plan = Plan(),
        metrics: list[MetricSpec] = ["ExactMatch", "TokenF1"],  # noqa: B006  read only; shown in --help
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.03,
        gradient_checkpointing: bool = False,
        self_test: Literal["error", "warn", "off"] = "error",
        serve_with: Engine | None = None,
    ):
        super().__init__()
        self.base, self.plan = base, plan
        self.weight_decay, self.warmup_ratio = weight_decay, warmup_ratio
        self.gradient_checkpointing, self.self_test = gradient_checkpointing, self_test
        self.serve_with: Engine | None = serve_with
        self.unreachable: tuple[str, ...] = ()
        self.metrics = [build_metric(spec) for spec in metrics]
        self.strict_loading = False
        self.seed = 0
        self._attached: AttachedPlan | None = None
        self.reached: set[str] = set()
        self.supervised_tokens = 0
        self.seconds_before, self._started = (
            0.0,
            0.0,
        )  # of processes that were interrupted; of this one
        self._scorer: Scorer | None = None
        self._window_tokens: Tensor | float = 0.0
        self.model: Any = None
        self.kept_outputs: KeptOutputs | None = None  # of a frozen tower, shared by runs of a study

    # -- model ---------------------------------------------------------------------------------

    @property
    def processor(self) -> Any:
        """Tokenizer and image processor, without loading weights."""
        if not hasattr(self, "_processor"):
            self._processor = load_processor(self.base)
        return self._processor

    @property
    def attached(self) -> AttachedPlan:
        """The plan on the model, from `configure_model` on.

        Raises:
            RuntimeError: it is not attached yet, which is a mistake of the caller's.
        """
        return _ready(self._attached, "plan is attached", "configure_model")

    @attached.setter
    def attached(self, attached: AttachedPlan) -> None:
        self._attached = attached

    def load(self, device: torch.device) -> None:
        """Load the base onto a device, once."""
        if self.model is None:
            self.model, self._processor, self.components = load_base(self.base, device)

    def use_base(self, model: Any, processor: Any, components: Components) -> None:
        """Take a base that is loaded already, as another run on it left it."""
        self.model, self._processor, self.components = model, processor, components

    @property
    def is_attached(self) -> bool:
        """Whether the plan is on the model."""
        return self._attached is not None

    def configure_model(self) -> None:
        """Load the base and attach the plan; Lightning calls it before every run, it acts once."""
        self.load(self.trainer.strategy.root_device)
        if self._attached is None:
            torch.manual_seed(self.seed)  # the same start whatever was scored or cached before
            self.attached = attach(self.plan, self.model, self.components)
            if self.serve_with:
                check_servable(self.attached, self.serve_with)

    def start_from(self, adapter: Adapter, base: dict[str, Any]) -> None:
        """Load an adapter's tensors as the start of the attached plan, which contains the adapter's.

        Raises:
            UserError: another base, or tensors the plan has no place for.
        """
        adapter.check_base(base)
        load_tensors(adapter, self.attached, subset=True)
        adapter.forget_tensors()

    def use_adapter(self, adapter: Adapter) -> None:
        """Attach an adapter's plan in place of the module's own and load its tensors.

        Raises:
            UserError: another base, or tensors that do not fit the plan.
        """
        adapter.check_base(origin(self.base))
        self.plan = adapter.plan
        self.configure_model()
        load_tensors(adapter, self.attached)
        adapter.forget_tensors()

    def cpu(self) -> VLMModule:
        """Stay on the device: Lightning moves a module to the CPU after each run, minutes for 4-bit weights."""
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The trainable tensors alone, by their name in the model."""
        if self._attached is None:
            return {}
        return {name: p.detach() for name, p in self._attached.trainable().items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load exactly the trainable tensors; a missing or unexpected one is an error."""
        trainable = self.attached.trainable()
        if wrong := trainable.keys() ^ state_dict.keys():
            raise UserError(
                f"the checkpoint does not fit model.plan: {len(wrong)} tensors, e.g. {min(wrong)}"
            )
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(state_dict[name])

    def autocast(self) -> AbstractContextManager:
        """bf16 where the base holds 16-bit weights, else nothing."""
        return autocast(self.model)

    # -- training ------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self._started = time.perf_counter()
        check_has_trainables(self.attached)
        self._set_modes()
        self._tower = FrozenTower(self.attached, self.kept_outputs)
        if self.gradient_checkpointing:
            recompute_activations(self.model)

    def _set_modes(self) -> None:
        """Train mode for components that change, eval for frozen ones (dropout).

        Batch normalisation is always in eval mode: its running statistics are the base's, and no adapter carries them.
        """
        self.model.eval()
        changing = {
            attachment.component for attachment in self.attached.attachments if attachment.trainable
        }
        for component in changing:
            for root in self.components.roots[component]:
                module = dict(self.model.named_modules()).get(root)
                if module is not None:
                    module.train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout a function of (seed, epoch, batch, rank): a resumed run needs no RNG state."""
        position = (self.current_epoch * 1_000_003 + batch_idx) * 65_537 + self.global_rank
        torch.manual_seed((self.seed * 2_147_483_659 + position) % 2**63)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The summed loss; `on_before_optimizer_step` divides the gradients by the tokens."""
        loss, tokens = supervised_loss(self.model, self._tower.inputs(batch))
        # penalties are divided by the tokens of the window with the rest
        loss = self.attached.with_penalties(loss, tokens)
        self._window_tokens = self._window_tokens + tokens
        self.supervised_tokens += int(tokens)
        self.log("train/loss", loss.detach() / tokens.clamp(min=1), batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Divide once, before clipping, by the supervised tokens of the window over all ranks.

        Lightning has divided each backward by accumulate_grad_batches, and DDP averages over ranks.
        """
        tokens = self.trainer.strategy.reduce(torch.as_tensor(self._window_tokens), reduce_op="sum")
        scale = (
            self.trainer.accumulate_grad_batches * self.trainer.world_size / max(1.0, float(tokens))
        )
        self._window_tokens = 0.0
        trainable = self.attached.trainable()
        first_step = not self.reached
        for name, parameter in trainable.items():
            if parameter.grad is not None:
                self.reached.add(name)
                parameter.grad.mul_(scale)
        if first_step and (
            unreached := sorted(trainable.keys() - self.reached - {*self.unreachable})
        ):
            rank_zero_warn(
                f"{len(unreached)} of {len(trainable)} trainable tensors got no gradient in the first step "
                f"and stay as they are, e.g. {unreached[0]}"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then tell strategies of it while its gradients are still there and before any checkpoint."""
        super().optimizer_step(*args, **kwargs)
        for attachment in self.attached.attachments:
            attachment.hooks.after_step(self.trainer.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {
            "supervised_tokens": self.supervised_tokens,
            "reached": sorted(self.reached),
            "fit_seconds": self.seconds_before + time.perf_counter() - self._started,
        }
        checkpoint["strategies"] = [a.hooks.state() for a in self.attached.attachments]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.supervised_tokens = checkpoint["progress"]["supervised_tokens"]
        self.reached = set(checkpoint["progress"]["reached"])
        self.seconds_before = checkpoint["progress"].get("fit_seconds", 0.0)
        states = checkpoint.get("strategies", [])
        for attachment, state in zip(self.attached.attachments, states, strict=False):
            attachment.hooks.load_state(state)

    def configure_optimizers(self) -> Any:
        """AdamW with one group a component, warm-up and cosine on all of them."""
        check_has_trainables(self.attached)
        optimizer = torch.optim.AdamW(
            self.attached.parameter_groups(leave_out=self.unreachable),
            weight_decay=self.weight_decay,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = WarmupCosine(steps, self.warmup_ratio)
        for attachment in self.attached.attachments:
            attachment.hooks.schedule(steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # -- scoring -------------------------------------------------------------------------------

    @property
    def scorer(self) -> Scorer:
        """What answers are scored by, from `set_scorer` on.

        Raises:
            RuntimeError: it is not set yet, which is a mistake of the caller's.
        """
        return _ready(self._scorer, "scorer is set", "set_scorer")

    def set_scorer(self, data: VLMData, decoding: AnswerEnds | None = None) -> None:
        """Set the scorer for prepared data.

        Args:
            data: its encoder, its groups and its scored items.
            decoding: limits that an adapter was scored with; default: the longest training answer, and what ended those.

        Raises:
            UserError: a metric is for groups that no item is in.
        """
        tokenizer = self.processor.tokenizer
        if decoding:
            limits = limits_of(decoding, tokenizer)
        else:
            ends = tuple(find_end_ids(self.model, tokenizer, data.end_ids))
            limits = Limits(data.max_target_tokens, ends, find_pad_id(tokenizer))
        self._scorer = make_scorer(
            data.encoder, self.metrics, limits, data.group_by, data.scored_items()
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._score(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._score(batch)

    def _score(self, samples: Any) -> None:
        with self.autocast():
            self.scorer.add(self.model, samples)

    def on_validation_epoch_start(self) -> None:
        self._prepare_scorer("val")

    def on_test_epoch_start(self) -> None:
        self._prepare_scorer("test")

    def _prepare_scorer(self, split: str) -> None:
        items = self.trainer.datamodule.dataset(split).items  # type: ignore[attr-defined]
        self.scorer.prepare(items)
        self.scorer.to(self.device)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        scores = {f"{split}/{name}": value for name, value in self.scorer.compute().items()}
        self.log_dict(scores, rank_zero_only=True)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return to_device(batch, device)
