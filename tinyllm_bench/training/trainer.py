"""The trainer of all methods, on one device or several (accelerate).

A round is one rollout, a mini-batch one optimiser step, a micro-batch what fits into memory. Methods return sums; only
this file divides them, by the target tokens (or, if a term says so, the examples) of a channel in the whole mini-batch
over all processes.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from safetensors.torch import load_file
from torch import Tensor, nn

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import (
    Evaluation,
    Event,
    Report,
    StudentEvaluated,
    TrainingResumed,
    TrainingStep,
    from_json,
    to_json,
)
from tinyllm_bench.base.files import append_checked, read_checked
from tinyllm_bench.models.lm import LM, eval_mode
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import (
    Batch,
    Collator,
    Group,
    InputRow,
    count_examples,
    count_targets,
    step_micro_batches,
)
from tinyllm_bench.training.budget import Plan, flops_per_token
from tinyllm_bench.training.checkpoint import (
    State,
    Sums,
    add_sums,
    load_checkpoint,
    load_trainable,
    means_of,
    preserved_random_state,
    save_checkpoint,
    save_tensors,
    trainable_state,
)
from tinyllm_bench.training.losses import cross_entropy_N
from tinyllm_bench.training.method import Method, Step, TeacherSignal
from tinyllm_bench.training.result import TrainingSummary, ValidationScore, checkpoint_score
from tinyllm_bench.training.settings import Scheduler, TrainConfig


class Trainer:
    """Trains one student by one plan; running it again in the same folder resumes from the last checkpoint."""

    def __init__(
        self,
        lm: LM,
        method: Method,
        groups: Sequence[Group],
        plan: Plan,
        collator: Collator,
        config: TrainConfig,
        *,
        folder: Path,
        seed: int,
        validate: Callable[[LM], ValidationScore],
        teacher: TeacherSignal | None = None,
        probed: Sequence[Group] = (),
        report: Report = lambda event: None,
        cpu: bool = False,
    ) -> None:
        self.method, self.teacher = method, teacher
        self.groups, self.plan, self.collator = groups, plan, collator
        self.config, self.folder, self.seed = config, folder, seed
        self.validate, self.report, self.probed = validate, report, probed
        AcceleratorState._reset_state(reset_partial_state=False)  # an earlier run may have had another precision
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=cpu)
        if config.gradient_checkpointing:
            lm.hf_model.gradient_checkpointing_enable({"use_reentrant": False})
        groups_of_parameters = parameter_groups(lm, config.weight_decay)
        optimizer = torch.optim.AdamW(groups_of_parameters, lr=config.learning_rate, betas=config.betas, fused=True)
        self.lm, self.optimizer = self.accelerator.prepare(lm, optimizer)
        self.module.precision = self.accelerator.autocast
        self.state = State()
        self._notes: Sums = {}
        self._clock = self._saved = time.monotonic()
        self._elapsed, self._save_due = 0.0, False
        teacher_parameters = teacher.parameters if teacher is not None else 0
        self._flops = flops_per_token(lm, teacher_parameters, loss_uses_teacher=method.loss_uses_teacher)

    @property
    def module(self) -> LM:
        """The LM without accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.lm)

    def run(self) -> TrainingSummary:
        """Train to the end of the plan with evaluations; then load the selected weights into the module."""
        set_seed(self.seed)
        done = self._resume()
        self._clock = self._saved = time.monotonic()
        self._tick()
        if not done and self.method.is_on_policy:
            self.state.start = self._evaluate(0, 0.0)
        index = 0
        for number in range(len(self.plan.rounds)):
            steps = self.plan.inner_epochs * len(self.plan.rounds[number])
            if index + steps > done and not self._train_round(number, index):
                break
            index += steps
        self._evaluate_at_the_end()
        self.state.seconds += time.monotonic() - self._clock
        return self._finish()

    def _train_round(self, number: int, index: int) -> bool:
        """Train a round, whose first step is the `index`th; False if the budget ended in it."""
        # the round's questions, with repetitions numbered: each occurrence gets a sampled text of its own
        members: list[Group] = []
        occurrences: Counter[str] = Counter()
        for group_index in self.plan.members_of(number):
            group = self.groups[group_index]
            members.append(group._replace(occurrence=occurrences[group.record_id]))
            occurrences[group.record_id] += 1
        mini_batches = list(self.plan.positions_of(number))
        # stop now if another rollout (at the cost of the last) and one mini-batch would end further from the budget
        rollout_cost = self.state.rollout_cost
        first = [members[position] for position in mini_batches[0]]
        if rollout_cost > 0 and self.plan.ends_before(rollout_cost + self._cost(first), self._spent()):
            return False
        members = self.rollout(members, index, mini_batches[: len(self.plan.rounds[number])])
        for offset, positions in enumerate(mini_batches):
            groups = [members[position] for position in positions]
            if self.state.losses and self.plan.ends_before(self._cost(groups), self._spent()):
                return False
            self.optimise(groups, index + offset)
            self._tick()
            self._evaluate_if_due(index + offset + 1)
        if self._save_due:
            self._save(index + len(mini_batches))
        return True

    def _tick(self) -> None:
        """Read the clock of the main process: all must stop, evaluate, save and set the rate at the same step."""
        now, state = time.monotonic(), self.state
        elapsed = state.seconds + now - self._clock - state.evaluation_seconds
        clock = [elapsed, self.config.checkpoint_seconds <= now - self._saved]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(clock)
        self._elapsed, self._save_due = float(clock[0]), bool(clock[1])

    def rollout(self, members: list[Group], index: int, mini_batches: Sequence[Sequence[int]] = ()) -> list[Group]:
        """The round's groups with their sampled texts, in order; every process samples its share of them.

        mini_batches: those of the round's first pass, as positions in `members`; by default one of all.
        """
        if not self.method.is_on_policy:
            return members
        began, spent_before = time.monotonic(), self._spent()
        share = members[self.accelerator.process_index :: self.accelerator.num_processes]
        self.module.eval()
        mini_batches = mini_batches or [range(len(members))]
        step = self._step(index, {})
        step = replace(step, recompute_logq=lambda groups: self.recompute_logq(groups, mini_batches))
        with torch.no_grad():
            groups = self._gather_groups(self.method.rollout(share, self.module, self.teacher, step))
        sampled = [item for group in groups for item in group.items if item.rollout]
        self.state.rollout_tokens += sum(len(item.target) for item in sampled)
        self.state.flops += sum(item.tokens * self._flops.sampled("logp" in item.rollout) for item in sampled)
        self.state.rollout_seconds += time.monotonic() - began
        self._tick()
        self.state.rollout_cost = self._spent() - spent_before
        return groups

    def _gather_groups(self, share: list[Group]) -> list[Group]:
        """The groups of all processes in the round's order; process p has the p-th, (p + world)-th, ... of them."""
        if self.accelerator.num_processes == 1:
            return share
        shares = gather_object([share])
        return [shares[n % len(shares)][n // len(shares)] for n in range(sum(map(len, shares)))]

    def recompute_logq(self, share: list[Group], mini_batches: Sequence[Sequence[int]]) -> list[Group]:
        """The groups that this process sampled, with log q of their sampled tokens by the forward pass of training.

        A text is sampled token by token with a key-value cache; in 16 bits a forward pass over the whole text differs
        from that by more than the clip of a policy gradient allows. So every mini-batch (positions among the groups of
        all processes) is run once as it will be trained: in the same micro-batches, on the same process.
        """
        members = self._gather_groups(share)
        vocabulary = self.teacher.vocabulary if self.teacher is not None else None
        logq_of: dict[int, tuple[float, ...]] = {}  # by identity of the item
        for positions in mini_batches:
            groups = [members[position] for position in positions]
            micro_batches, is_own = self._own_micro_batches(groups)
            for rows in micro_batches if is_own else ():
                batch = self.collator.collate(rows).to(self.accelerator.device)
                logq_N = self.module(batch, partial(_chunk_logq, batch, vocabulary)).cpu()
                for number, item in enumerate(batch.items):
                    logq_of[id(item)] = tuple(logq_N[batch.item_N.cpu() == number].tolist())
            computed = sum(row.width for group in groups for row in self.collator.rows(group.items))
            self.state.flops += computed * self._flops.student
        # exchanged by (group, example): the process that runs a text need not be the one that sampled it
        logq_at = {
            (member, number): logq_of[id(item)]
            for member, group in enumerate(members)
            for number, item in enumerate(group.items)
            if id(item) in logq_of
        }
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if world > 1:
            logq_at = {position: logq for part in gather_object([logq_at]) for position, logq in part.items()}

        def with_logq(item: Encoded, logq: tuple[float, ...]) -> Encoded:
            return item._replace(rollout={**item.rollout, "logq": logq}) if "logq" in item.rollout else item

        return [
            group._replace(items=tuple(with_logq(item, logq_at[member, n]) for n, item in enumerate(group.items)))
            for member, group in zip(range(rank, len(members), world), share, strict=True)
        ]

    def training_mode(self) -> None:
        """Set the student to train with dropout, but without it if it samples: it is trained as it samples."""
        if self.method.is_on_policy:
            eval_mode(self.lm)
        else:
            self.lm.train()

    def _own_micro_batches(self, groups: Sequence[Group]) -> tuple[list[list[InputRow]], bool]:
        """This process's micro-batches of a mini-batch; False if it has none: it then gets those of another process,
        to run with weight 0, because the others wait for its gradients."""
        rows = [self.collator.rows(group.items) for group in groups]
        share = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        return step_micro_batches(share or rows[:1], self.method, self.collator, self.config), bool(share)

    def _spent(self) -> float:
        """What the run has spent in the limit's unit; in student tokens if there is no limit."""
        unit = self.plan.limit.unit if self.plan.limit else "student_tokens"
        if unit == "seconds":
            return self._elapsed
        return self.state.flops if unit == "flops" else self.state.tokens

    def _cost(self, groups: Sequence[Group]) -> float:
        """The expected cost of a mini-batch in the limit's unit, from the mean cost of a token so far."""
        return sum(group.tokens for group in groups) * self._spent() / self.state.tokens

    def optimise(self, groups: Sequence[Group], index: int) -> None:
        """One optimiser step, the `index`th, on the questions of one mini-batch."""
        self.training_mode()
        counts = count_targets(groups)
        step = replace(self._step(index, counts), examples=count_examples(groups))
        micro_batches, is_own = self._own_micro_batches(groups)
        losses = dict.fromkeys(counts, 0.0)
        for number, rows in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.lm):
                self._backward(rows, step, losses, weight=1.0 if is_own else 0.0)
        self.accelerator.clip_grad_norm_(self.lm.parameters(), self.config.max_grad_norm)
        learning_rate = self._learning_rate(index)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        computed = sum(row.width for group in groups for row in self.collator.rows(group.items))
        self.state.computed_tokens += computed
        self.state.flops += computed * self._flops.trained
        self._record_step(groups, counts, losses, index)

    def _learning_rate(self, index: int) -> float:
        """The rate of the `index`th step. A warm-up in steps is exact; the decay follows the remaining budget."""
        config, spent, warmup = self.config, self._spent(), self.config.warmup
        if config.warmup_steps is not None:
            if index < config.warmup_steps:
                return config.learning_rate * (index + 1) / (config.warmup_steps + 1)
            warmup = min(config.warmup_steps / self.plan.expected_steps(index, spent), 1.0)
        return config.learning_rate * rate(*self.plan.progress(index, spent), warmup, config.scheduler)

    def _backward(self, rows: Sequence[InputRow], step: Step, losses: dict[str, float], *, weight: float) -> None:
        """Forward and backward pass of one micro-batch; its loss is added to `losses` by channel."""
        batch = self.collator.collate(rows).to(self.accelerator.device)
        terms = self.method.loss(batch, self.lm, self.teacher, step)
        terms = [term for term in terms if step.tokens.get(term.channel, 0) > 0]
        counts = {"token": step.tokens, "sequence": step.examples}
        shares = [weight * term.weight * term.sum / counts[term.per][term.channel] for term in terms]
        # DDP averages gradients over processes; the counts are of all processes already, so undo the mean
        self.accelerator.backward(torch.stack(shares).sum() * self.accelerator.num_processes)
        for term, share in zip(terms, shares, strict=True):
            losses[term.channel] = losses.get(term.channel, 0.0) + float(share.detach())

    def _record_step(
        self, groups: Sequence[Group], counts: Mapping[str, int], losses: Mapping[str, float], index: int
    ) -> None:
        """Add a step to the state and log it."""
        loss_C = torch.tensor([losses[channel] for channel in sorted(losses)], device=self.accelerator.device)
        summed_C: Tensor = self.accelerator.reduce(loss_C, "sum")
        by_channel = dict(zip(sorted(losses), summed_C.tolist(), strict=True))
        total = sum(by_channel.values())
        if not np.isfinite(total):
            raise UserError(
                f"the loss is {total} at step {index + 1}; lower train.learning_rate (now {self.config.learning_rate})"
            )
        self.state.losses.append(total)
        self.state.records += len(groups)
        self.state.tokens += sum(group.tokens for group in groups)
        for channel, count in counts.items():
            self.state.tokens_by_channel[channel] = self.state.tokens_by_channel.get(channel, 0) + count
        # the method's measurements in this step, of all processes
        notes = [self._notes] if self.accelerator.num_processes == 1 else gather_object([self._notes])
        self._notes = {}
        sums: Sums = {}
        for note in notes:
            add_sums(sums, note)
        add_sums(self.state.sums, sums)
        step = TrainingStep(
            step=index + 1,
            steps=self.plan.expected_steps(index + 1, self._spent()),
            loss=total,
            by_channel=by_channel,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            tokens=self.state.tokens,
            measured=means_of(sums),
        )
        self._log(step)

    def _log(self, event: TrainingStep | StudentEvaluated) -> None:
        if self.accelerator.is_main_process:
            append_checked(self.folder / "metrics.jsonl", [to_json(event)])
            self.report(event)

    def _step(self, index: int, tokens: Mapping[str, int]) -> Step:
        def seed_of(record_id: str) -> int:
            text = f"{self.seed}/{index}/{record_id}"
            return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1

        def all_reduce(tensor: Tensor) -> Tensor:
            return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum").to(tensor.device)

        def note(name: str, total: float, count: float) -> None:
            add_sums(self._notes, {name: (total, count)})

        total = self.plan.expected_steps(index, self._spent())
        return Step(index=index, total=total, tokens=tokens, all_reduce=all_reduce, seed_of=seed_of, note=note)

    def _evaluation_due(self, done: int) -> float | None:
        """The share of the run that an evaluation after `done` steps is for; None if none is due."""
        if self.plan.limit is None:
            return self.config.evaluation_due(done, self.plan.steps)
        if self.config.eval_every is not None:
            steps = self.plan.expected_steps(done, self._spent())
            return min(done / steps, 1.0) if done % self.config.eval_every == 0 or done == self.plan.steps else None
        last = self.state.evaluations[-1].fraction if self.state.evaluations else 0.0
        spent, amount = self.plan.progress(done, self._spent())
        passed = [s for s in self.config.evaluations if last < s < 1 and s * amount <= spent]
        return max(passed, default=None)

    def _evaluate_at_the_end(self) -> None:
        """The last evaluation of a run whose number of steps was not known beforehand."""
        if self.plan.limit is None or 1.0 not in self.config.evaluations:
            return
        evaluations, steps = self.state.evaluations, len(self.state.losses)
        if evaluations and evaluations[-1].step == steps:
            evaluations[-1] = replace(evaluations[-1], fraction=1.0)
        else:
            self._evaluate_if_due(steps, 1.0)

    def _evaluate_if_due(self, done: int, share: float | None = None) -> None:
        """Evaluate after `done` steps, if the settings or `share` say so, and save the weights if they are the best."""
        share = self._evaluation_due(done) if share is None else share
        if share is None:
            return
        evaluation = self._evaluate(done, share)
        best = self._best()
        self.state.evaluations.append(evaluation)
        if self.accelerator.is_main_process and (best is None or self._score(evaluation) > self._score(best)):
            save_tensors(self._best_file(evaluation), trainable_state(self.module))
        self.accelerator.wait_for_everyone()

    def _evaluate(self, done: int, share: float) -> Evaluation:
        """The main process scores the validation split and runs the method's probe; the others wait for the result."""
        began = time.monotonic()
        result: list[Any] = [None]
        if self.accelerator.is_main_process:
            with preserved_random_state(), torch.no_grad():
                self.module.eval()
                score = self.validate(self.module)
                step = replace(self._step(0, {}), all_reduce=lambda tensor: tensor)  # the others wait
                probe = self.method.probe(list(self.probed), self.module, self.teacher, step)
                result = [Evaluation(done, share, *score, probe=dict(probe))]
        broadcast_object_list(result)
        evaluation: Evaluation = result[0]
        self.accelerator.wait_for_everyone()
        self._log(StudentEvaluated(evaluation))
        self.state.evaluation_seconds += time.monotonic() - began
        return evaluation

    def _score(self, evaluation: Evaluation) -> tuple[float, float, int]:
        return checkpoint_score(evaluation, self.config.select)

    def _best_file(self, evaluation: Evaluation) -> Path:
        """Named by its step, so that weights which a crashed run saved after its last checkpoint are never taken."""
        return self.folder / f"best-{evaluation.step:08d}.safetensors"

    def _best(self) -> Evaluation | None:
        return max(self.state.evaluations, key=self._score, default=None)

    def _save(self, done: int) -> None:
        """Save a checkpoint, and delete weights that are no longer the best."""
        now = time.monotonic()
        self.state.seconds, self._clock, self._saved = self.state.seconds + now - self._clock, now, now
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.folder / "checkpoints",
                step=done,
                module=self.module,
                optimizer=self._plain_optimizer(),
                state=self.state,
            )
            best = self._best()
            for old in self.folder.glob("best-*.safetensors"):
                if best is None or old != self._best_file(best):
                    old.unlink()
        self.accelerator.wait_for_everyone()

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _resume(self) -> int:
        """Load the last checkpoint; returns the steps done, 0 if there is no checkpoint."""
        checkpoint = load_checkpoint(self.folder / "checkpoints", module=self.module, optimizer=self._plain_optimizer())
        if checkpoint is None:
            if self.accelerator.is_main_process:
                (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            return 0
        done, self.state = checkpoint
        if self.accelerator.is_main_process:
            # drop metrics of steps after the checkpoint: these steps are trained again
            path = self.folder / "metrics.jsonl"
            events = [from_json(row, path) for row in read_checked(path)]
            path.unlink(missing_ok=True)
            append_checked(path, [to_json(event) for event in events if _step_of(event) <= done])
            self.report(TrainingResumed(done, self.plan.expected_steps(done, self._spent())))
        return done

    def _finish(self) -> TrainingSummary:
        """Load the selected weights, and summarise the run."""
        best, state = self._best(), self.state
        selected = len(state.losses)
        if self.config.select != "last" and best is not None:
            load_trainable(self.module, load_file(self._best_file(best)))
            selected = best.step
        return TrainingSummary(
            steps=len(state.losses),
            records=state.records,
            student_tokens=state.tokens,
            computed_tokens=state.computed_tokens,
            flops=state.flops,
            tokens_by_channel=dict(state.tokens_by_channel),
            first_loss=state.losses[0],
            last_loss=state.losses[-1],
            evaluations=tuple(state.evaluations),
            selected_step=selected,
            seconds=state.seconds - state.evaluation_seconds,
            rollout_tokens=state.rollout_tokens,
            rollout_seconds=state.rollout_seconds,
            start=state.start,
            measured=means_of(state.sums),
        )


def _step_of(event: Event) -> int:
    """The optimiser step after which an event was logged."""
    match event:
        case TrainingStep(step=step) | StudentEvaluated(evaluation=Evaluation(step=step)):
            return step
        case _:
            raise UserError(f"metrics.jsonl holds {event.event}, not written by training; delete the run's folder")


def rate(done: float, total: float, warmup: float, scheduler: Scheduler = "linear") -> float:
    """The share of the peak learning rate after `done` of `total`: linear warm-up over a share of the run, then linear
    or cosine decay to 0, or none. As transformers' schedules, except that the first step of a warm-up is not at 0.
    """
    warmup_end = warmup * total
    if done < warmup_end:
        return (done + 1) / (warmup_end + 1)
    left = max(total - done, 0) / max(total - warmup_end, 1)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[scheduler]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices with weight decay; norms and biases (also T5's relative ones) without."""
    decayed: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed[parameter.ndim > 1 and "bias" not in name].append(parameter)
    groups = [{"params": decayed[True], "weight_decay": weight_decay}, {"params": decayed[False], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _chunk_logq(batch: Batch, vocabulary: int | None, logits_NV: Tensor, rows: slice) -> Tensor:
    """log q of a chunk's targets, and 0 at the batch's other targets: the student adds up its chunks."""
    logq_N = -cross_entropy_N(logits_NV[:, :vocabulary], batch.target_ids_N[rows])
    padded_N = logq_N.new_zeros(len(batch.target_ids_N))
    padded_N[rows] = logq_N
    return padded_N
