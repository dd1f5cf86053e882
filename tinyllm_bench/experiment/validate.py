"""Evaluation on the validation split during training: the cell's mode, and on request the gold answers' loss."""

from collections.abc import Callable, Sequence

from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import Split
from tinyllm_bench.evaluation.runner import evaluate
from tinyllm_bench.evaluation.scoring import score
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.sample_answers import path_validator
from tinyllm_bench.experiment.verified_texts import learns_paths
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded, max_input_tokens, needs_bos
from tinyllm_bench.models.tokens import Encoder
from tinyllm_bench.training.batching import Group, collator_of, micro_batches
from tinyllm_bench.training.losses import channel_cross_entropy
from tinyllm_bench.training.result import ValidationScore

# Validation questions that methods sample texts for at each evaluation.
PROBED = 64


def encoder_of(cell: Cell, loaded: Loaded) -> Encoder:
    """Tokenises the cell's examples for its student."""
    encoder_decoder = bool(loaded.model.config.is_encoder_decoder)
    room, most = max_input_tokens(loaded.model, loaded.tokenizer), cell.config.train.max_target_tokens
    sampled = cell.method.max_sampled_tokens if cell.method is not None else 0
    return Encoder(
        loaded.tokenizer,
        cell.ask,
        encoder_decoder=encoder_decoder,
        add_bos=needs_bos(loaded.model, loaded.tokenizer),
        max_prompt_tokens=room if encoder_decoder else room - max(most, sampled),
        max_target_tokens=most,
        cut_tokens=cell.config.data.cut_tokens,
    )


def gold_groups(cell: Cell, loaded: Loaded) -> list[Group]:
    """The gold answers to the validation questions, as the label channel has them."""
    encoder, ask = encoder_of(cell, loaded), cell.ask
    records = cell.asked_records("valid")
    return [
        Group(record.id, (encoder.encode(ask.example(record, LABEL, ask.label_target(record))),)) for record in records
    ]


def validator(cell: Cell, loaded: Loaded, gold: Sequence[Group]) -> Callable[[LM], ValidationScore]:
    """Scores a student on the cell's validation questions; with `train.select=loss` also by its loss on `gold`."""
    if learns_paths(cell):
        return path_validator(cell, loaded)
    from tinyllm_bench.evaluation.lm_eval_models import hf_lm  # lm-eval takes seconds

    config = cell.config
    split: Split = "test" if cell.select_on_test else "valid"
    valid = cell.asked_records(split)
    asked = cell.eval_request(split, [record.id for record in valid])

    def validate(student: LM) -> ValidationScore:
        asker = hf_lm(
            student.plain,
            loaded.tokenizer,
            batch_size=config.eval.batch_size,
            device=str(next(student.parameters()).device),
            add_bos=needs_bos(loaded.model, loaded.tokenizer) or None,
            layout=config.eval.layout,
            cut_tokens=config.data.cut_tokens,
        )
        found = score(evaluate(asker, asked), valid)
        loss = gold_loss(student, loaded, gold) if config.train.select == "loss" else None
        return ValidationScore(found.accuracy, found.gold_probability, found.n, loss)

    return validate


def gold_loss(student: LM, loaded: Loaded, gold: Sequence[Group], *, max_tokens: int = 4096) -> float:
    """Token mean of the cross-entropy on the gold answers, in nats, their ends included."""
    collator = collator_of(loaded.model, loaded.tokenizer)
    device = next(student.parameters()).device
    rows = [collator.rows(group.items) for group in gold]
    total = sum(
        float(sum(channel_cross_entropy(collator.collate(micro).to(device), student).values()))
        for micro in micro_batches(rows, max_tokens=max_tokens, keep_groups=False, pack=False)
    )
    return total / sum(len(item.target) for group in gold for item in group.items)
