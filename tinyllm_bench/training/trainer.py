"""The one trainer, for every method: accelerate runs it on one device or many.

A round is one rollout, a mini-batch one optimiser step, a micro-batch what fits. Methods return sums; this file
divides, by the target tokens (or, where a term says so, the examples) of a channel in the whole mini-batch over all
processes, and nowhere else.
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
from tinyllm_bench.training.batching import Batch, Collator, Group, Row, count_examples, count_targets, step_micros
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
    """Trains one student by one plan; the same call again resumes from the last checkpoint."""

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
        AcceleratorState._reset_state(reset_partial_state=False)  # an earlier cell may have had another precision
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=cpu)
        if config.gradient_checkpointing:
            lm.plain.gradient_checkpointing_enable({"use_reentrant": False})
        trained = parameter_groups(lm, config.weight_decay)
        optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=config.betas, fused=True)
        self.lm, self.optimizer = self.accelerator.prepare(lm, optimizer)
        self.module.precision = self.accelerator.autocast
        self.state = State()
        self._notes: Sums = {}
        self._clock = self._saved = time.monotonic()
        self._elapsed, self._save_due = 0.0, False
        theirs = teacher.parameters if teacher is not None else 0
        self._flops = flops_per_token(lm, theirs, reads_teacher=method.reads_teacher)

    @property
    def module(self) -> LM:
        """The LM without accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.lm)

    def run(self) -> TrainingSummary:
        """Train to the end of the plan, evaluate on the way, put the selected weights into the module."""
        set_seed(self.seed)
        done = self._resume()
        self._clock = self._saved = time.monotonic()
        self._tick()
        if not done and self.method.rolls:
            self.state.start = self._evaluate(0, 0.0)
        index = 0
        for number in range(len(self.plan.rounds)):
            steps = self.plan.inner_epochs * len(self.plan.rounds[number])
            if index + steps > done and not self._round(number, index):
                break
            index += steps
        self._evaluate_at_the_end()
        self.state.seconds += time.monotonic() - self._clock
        return self._finish()

    def _round(self, number: int, index: int) -> bool:
        """Train one round; False where the budget ended in it."""
        members = self._members(number)
        minis = list(self.plan.places_of(number))
        if self._ends_before_rollout([members[place] for place in minis[0]]):
            return False
        members = self.roll(members, index, minis[: len(self.plan.rounds[number])])
        for offset, mini in enumerate(minis):
            groups = [members[place] for place in mini]
            if self.state.losses and self.plan.ends_before(self._cost(groups), self._spent()):
                return False
            self.optimise(groups, index + offset)
            self._tick()
            self._evaluate_where_due(index + offset + 1)
        if self._save_due:
            self._save(index + len(minis))
        return True

    def _members(self, number: int) -> list[Group]:
        """The questions of a round, each as often as the plan names it; `occurrence` numbers the repetitions."""
        seen: Counter[str] = Counter()
        members = []
        for index in self.plan.members_of(number):
            group = self.groups[index]
            members.append(group._replace(occurrence=seen[group.record_id]))
            seen[group.record_id] += 1
        return members

    def _tick(self) -> None:
        """Read the main process's clock: all must stop, evaluate, save and set the rate at the same step."""
        now, state = time.monotonic(), self.state
        elapsed = state.seconds + now - self._clock - state.evaluation_seconds
        clock = [elapsed, self.config.checkpoint_seconds <= now - self._saved]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(clock)
        self._elapsed, self._save_due = float(clock[0]), bool(clock[1])

    def _ends_before_rollout(self, first: Sequence[Group]) -> bool:
        """Whether a round whose rollout costs what the last one's did, and one mini-batch, ends too far off."""
        rollout = self.state.rollout_cost
        return rollout > 0 and self.plan.ends_before(rollout + self._cost(first), self._spent())

    def roll(self, members: list[Group], index: int, minis: Sequence[Sequence[int]] = ()) -> list[Group]:
        """The round's groups with their sampled texts, in order; every process samples its share of them.

        minis: the mini-batches of the round's first pass as places in `members`; one of all where none are given.
        """
        if not self.method.rolls:
            return members
        began, before = time.monotonic(), self._spent()
        share = members[self.accelerator.process_index :: self.accelerator.num_processes]
        self.module.eval()
        step = self._step(index, {})
        step = replace(step, reread=lambda groups: self.reread(groups, minis or [range(len(members))]))
        with torch.no_grad():
            groups = self._of_all(self.method.rollout(share, self.module, self.teacher, step))
        sampled = [item for group in groups for item in group.items if item.rollout]
        self.state.rollout_tokens += sum(len(item.target) for item in sampled)
        self.state.flops += sum(item.tokens * self._flops.sampled("logp" in item.rollout) for item in sampled)
        self.state.rollout_seconds += time.monotonic() - began
        self._tick()
        self.state.rollout_cost = self._spent() - before
        return groups

    def _of_all(self, share: list[Group]) -> list[Group]:
        """The groups of all processes in the order of the round; process p has the p-th, (p + world)-th, ... of it."""
        if self.accelerator.num_processes == 1:
            return share
        shares = gather_object([share])
        return [shares[n % len(shares)][n // len(shares)] for n in range(sum(map(len, shares)))]

    def reread(self, share: list[Group], minis: Sequence[Sequence[int]]) -> list[Group]:
        """The groups that this process sampled, with log q of their sampled tokens by the forward pass of training.

        A text is sampled token by token from cached keys and values; in 16 bits a pass over the whole text differs
        from that by more than the clip of a policy gradient allows. So each mini-batch of `minis` (places among the
        groups of all processes) is read once as it will be trained: the same micro-batches, on the same process.
        """
        members = self._of_all(share)
        vocabulary = self.teacher.vocabulary if self.teacher is not None else None
        logq_of: dict[int, tuple[float, ...]] = {}  # by identity of the item
        for mini in minis:
            groups = [members[place] for place in mini]
            micros, is_own = self._micros(groups)
            for micro in micros if is_own else ():
                batch = self.collator.collate(micro).to(self.accelerator.device)
                logq_N = self.module(batch, partial(_log_q, batch, vocabulary)).cpu()
                for number, item in enumerate(batch.items):
                    logq_of[id(item)] = tuple(logq_N[batch.item_N.cpu() == number].tolist())
            computed = sum(row.width for group in groups for row in self.collator.rows(group.items))
            self.state.flops += computed * self._flops.student
        # by place, since each text was read by one process, and not always by the one that sampled it
        places = [(m, n, id(item)) for m, group in enumerate(members) for n, item in enumerate(group.items)]
        logq_at = {(m, n): logq_of[item] for m, n, item in places if item in logq_of}
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if world > 1:
            logq_at = {place: logq for part in gather_object([logq_at]) for place, logq in part.items()}
        return [
            group._replace(items=tuple(_with_log_q(item, logq_at[m, n]) for n, item in enumerate(group.items)))
            for m, group in zip(range(rank, len(members), world), share, strict=True)
        ]

    def training_mode(self) -> None:
        """Ready to train: with dropout, but not for a student that samples: it is trained as it samples."""
        if self.method.rolls:
            eval_mode(self.lm)
        else:
            self.lm.train()

    def _micros(self, groups: Sequence[Group]) -> tuple[list[list[Row]], bool]:
        """This process's micro-batches of a mini-batch, and whether they are its own: one without a question takes
        part with another's, or the others would wait for it."""
        rows = [self.collator.rows(group.items) for group in groups]
        share = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        return step_micros(share or rows[:1], self.method, self.collator, self.config), bool(share)

    def _spent(self) -> float:
        """What is spent of the limit's unit; student tokens where there is none."""
        unit = self.plan.limit.unit if self.plan.limit else "student_tokens"
        if unit == "seconds":
            return self._elapsed
        return self.state.flops if unit == "flops" else self.state.tokens

    def _cost(self, groups: Sequence[Group]) -> float:
        """What a mini-batch will take of the limit's unit, by what its tokens took so far."""
        return sum(group.tokens for group in groups) * self._spent() / self.state.tokens

    def optimise(self, groups: Sequence[Group], index: int) -> None:
        """One optimiser step, the `index`th, on the questions of one mini-batch."""
        self.training_mode()
        counts = count_targets(groups)
        step = replace(self._step(index, counts), examples=count_examples(groups))
        micros, is_own = self._micros(groups)
        losses = dict.fromkeys(counts, 0.0)
        for number, micro in enumerate(micros):
            is_last = number == len(micros) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.lm):
                self.micro(micro, step, losses, weight=1.0 if is_own else 0.0)
        self.accelerator.clip_grad_norm_(self.lm.parameters(), self.config.max_grad_norm)
        learning_rate = self._learning_rate(index)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        computed = sum(row.width for group in groups for row in self.collator.rows(group.items))
        self.state.computed_tokens += computed
        self.state.flops += computed * self._flops.trained
        self._count(groups, counts, losses, index)

    def _learning_rate(self, index: int) -> float:
        """Of the `index`th step. A warm-up in steps is exact; the decay behind it goes by what is left to spend."""
        config, spent, warmup = self.config, self._spent(), self.config.warmup
        if config.warmup_steps is not None:
            if index < config.warmup_steps:
                return config.learning_rate * (index + 1) / (config.warmup_steps + 1)
            warmup = min(config.warmup_steps / self.plan.expected_steps(index, spent), 1.0)
        return config.learning_rate * rate(*self.plan.progress(index, spent), warmup, config.scheduler)

    def micro(self, rows: Sequence[Row], step: Step, losses: dict[str, float], *, weight: float = 1.0) -> None:
        """Forward and backward of one micro-batch; what it loses is added to `losses` by channel."""
        batch = self.collator.collate(rows).to(self.accelerator.device)
        terms = self.method.loss(batch, self.lm, self.teacher, step)
        terms = [term for term in terms if step.tokens.get(term.channel, 0) > 0]
        counts = {"token": step.tokens, "sequence": step.examples}
        shares = [weight * term.weight * term.sum / counts[term.per][term.channel] for term in terms]
        # DDP averages gradients over processes; the counts are of all of them already, so undo the mean.
        self.accelerator.backward(torch.stack(shares).sum() * self.accelerator.num_processes)
        for term, share in zip(terms, shares, strict=True):
            losses[term.channel] = losses.get(term.channel, 0.0) + float(share.detach())

    def _count(
        self, groups: Sequence[Group], counts: Mapping[str, int], losses: Mapping[str, float], index: int
    ) -> None:
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
        # what the method measured in this step, on all processes
        notes = [self._notes] if self.accelerator.num_processes == 1 else gather_object([self._notes])
        self._notes = {}
        sums: Sums = {}
        for of_process in notes:
            add_sums(sums, of_process)
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

    def _due(self, done: int) -> float | None:
        """The share of the run after which an evaluation is due now; None where none is."""
        if self.config.eval_every is not None:
            steps = self.plan.expected_steps(done, self._spent())
            return min(done / steps, 1.0) if done % self.config.eval_every == 0 or done == self.plan.steps else None
        if self.plan.limit is None:
            return {max(1, round(share * self.plan.steps)): share for share in self.config.evaluations}.get(done)
        last = self.state.evaluations[-1].fraction if self.state.evaluations else 0.0
        spent, amount = self.plan.progress(done, self._spent())
        passed = [s for s in self.config.evaluations if last < s < 1 and s * amount <= spent]
        return max(passed, default=None)

    def _evaluate_at_the_end(self) -> None:
        """The last evaluation of a run whose last step was not known before it was over."""
        if self.plan.limit is None or 1.0 not in self.config.evaluations:
            return
        evaluations, steps = self.state.evaluations, len(self.state.losses)
        if evaluations and evaluations[-1].step == steps:
            evaluations[-1] = replace(evaluations[-1], fraction=1.0)
        else:
            self._evaluate_where_due(steps, 1.0)

    def _evaluate_where_due(self, done: int, share: float | None = None) -> None:
        """Evaluate after `done` steps where `share`, or the settings, say so; the best weights so far are saved."""
        share = self._due(done) if share is None else share
        if share is None:
            return
        evaluation = self._evaluate(done, share)
        best = self._best()
        self.state.evaluations.append(evaluation)
        if self.accelerator.is_main_process and (best is None or self._score(evaluation) > self._score(best)):
            save_tensors(self._best_file(evaluation), trainable_state(self.module))
        self.accelerator.wait_for_everyone()

    def _evaluate(self, done: int, share: float) -> Evaluation:
        """The main process scores the validation split and lets the method probe; the others wait for the result."""
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
        """Named by its step: weights that a crashed run saved after its last checkpoint can never be taken for it."""
        return self.folder / f"best-{evaluation.step:08d}.safetensors"

    def _best(self) -> Evaluation | None:
        return max(self.state.evaluations, key=self._score, default=None)

    def _save(self, done: int) -> None:
        now = time.monotonic()
        self.state.seconds, self._clock, self._saved = self.state.seconds + now - self._clock, now, now
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.folder / "checkpoints",
                step=done,
                module=self.module,
                optimizer=self._inner(),
                state=self.state,
            )
            best = self._best()
            for old in self.folder.glob("best-*.safetensors"):
                if best is None or old != self._best_file(best):
                    old.unlink()
        self.accelerator.wait_for_everyone()

    def _inner(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _resume(self) -> int:
        checkpoint = load_checkpoint(self.folder / "checkpoints", module=self.module, optimizer=self._inner())
        if checkpoint is None:
            if self.accelerator.is_main_process:
                (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            return 0
        done, self.state = checkpoint
        if self.accelerator.is_main_process:
            # metrics of steps after the checkpoint go: these steps are trained again
            path = self.folder / "metrics.jsonl"
            events = [from_json(row, path) for row in read_checked(path)]
            path.unlink(missing_ok=True)
            append_checked(path, [to_json(event) for event in events if _step_of(event) <= done])
            self.report(TrainingResumed(done, self.plan.expected_steps(done, self._spent())))
        return done

    def _finish(self) -> TrainingSummary:
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
    """The optimiser step after which training logged this."""
    match event:
        case TrainingStep(step=step) | StudentEvaluated(evaluation=Evaluation(step=step)):
            return step
        case _:
            raise UserError(f"metrics.jsonl holds {event.event}, not written by training; delete the run's folder")


def rate(done: float, total: float, warmup: float, scheduler: Scheduler = "linear") -> float:
    """Share of the peak learning rate after `done` of `total`: linear warm-up over a share of it, then linear or cosine
    decay to 0, or none. As transformers' schedules, but that the first step of a warm-up is not at 0.
    """
    rising = warmup * total
    if done < rising:
        return (done + 1) / (rising + 1)
    left = max(total - done, 0) / max(total - rising, 1)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[scheduler]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What AdamW trains: matrices with weight decay; norms and biases, T5's of relative positions too, without."""
    decayed: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed[parameter.ndim > 1 and "bias" not in name].append(parameter)
    groups = [{"params": decayed[True], "weight_decay": weight_decay}, {"params": decayed[False], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _log_q(batch: Batch, vocabulary: int | None, logits_NV: Tensor, rows: slice) -> Tensor:
    """log q of a chunk's targets, among zeros for the batch's others, as chunks are added up."""
    logq_N = -cross_entropy_N(logits_NV[:, :vocabulary], batch.target_ids_N[rows])
    among_N = logq_N.new_zeros(len(batch.target_ids_N))
    among_N[rows] = logq_N
    return among_N


def _with_log_q(item: Encoded, logq: tuple[float, ...]) -> Encoded:
    return item._replace(rollout={**item.rollout, "logq": logq}) if "logq" in item.rollout else item
