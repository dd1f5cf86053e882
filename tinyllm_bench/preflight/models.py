"""Checks of `doctor` on models and tokenizers: available, with working special tokens, able to spell the task."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm_bench.answers.keys import normalised
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.experiment.cell import GUESSES, Cell
from tinyllm_bench.leaderboard.record import RECORD_FILE
from tinyllm_bench.models.adapters import add_adapters
from tinyllm_bench.models.files import read_object
from tinyllm_bench.models.load import Loaded, needs_bos, pad_is_eos, pretrained_source
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.models.vocabulary import overlap, same_tokenizer
from tinyllm_bench.preflight.dry_training import broken_step
from tinyllm_bench.preflight.inspection import (
    Finding,
    Preflight,
    graded,
    own_signal,
    own_student,
    place,
    share,
    this_machine,
)

SHARED_VOCABULARY = 0.5  # of the smaller vocabulary's entries
LOST = 0.01  # of prompts or answers


def refuse_errors(cells: Sequence[Cell], runs: Path) -> None:
    """Refuse cells whose models or tokenizers have an error in `doctor`; no weights are loaded.

    Finished cells are read back, and guessing baselines open no model: neither is checked.

    Raises:
        UserError: the first such finding, in one line.
    """
    left = [cell for cell in cells if cell.name not in GUESSES and not (runs / cell.run_id / RECORD_FILE).exists()]
    if not left:
        return
    preflight = Preflight(cells=left, machine=this_machine())
    for check in (models, special_tokens, vocabularies):
        for finding in check(preflight):
            if finding.severity == "error":
                raise UserError(f"{finding.where}: {finding.measured}; {finding.fix} (check {finding.check} of doctor)")


def models(preflight: Preflight) -> list[Finding]:
    """Whether every student and every teacher that runs here is available (files, configuration, tokenizer), and
    whether the students to be trained can be, and the adapters fit theirs."""
    findings = []
    for spec in _loaded_specs(preflight):
        why = preflight.why_not(spec)
        if why is None:
            findings.append(Finding("ok", "models", spec.text, "available"))
        else:
            findings.append(Finding("error", "models", spec.text, why, fix="give the cell a model that loads"))
    students = {own_student(cell).text: preflight.student(cell) for cell in preflight.trained}
    for text, student in students.items():
        if student is not None and (why := broken_step(student.model)) is not None:
            measured = f"a step of training fails in a small copy of it ({why})"
            fix = "correct what it names in the model's config.json"
            findings.append(Finding("error", "models", text, measured, fix=fix))
    for cell in preflight.trained:
        lora, student = cell.config.student.lora, preflight.student(cell)
        if lora is None or student is None:
            continue
        try:  # on a copy without weights
            add_adapters(copy.deepcopy(student.model), **lora.model_dump())
        except UserError as error:
            fix = "name layers of the student, or use all-linear"
            where = f"{place(cell)}, student {own_student(cell).text}"
            findings.append(Finding("error", "models", where, str(error), fix=fix))
    return findings


def _loaded_specs(preflight: Preflight) -> list[ModelSpec]:
    """Every model that is loaded on this machine, once: students, white-box teachers and live local teachers."""
    specs: dict[str, ModelSpec] = {}
    for cell in [*preflight.trained, *preflight.cells]:
        live = [parse_spec(teacher.spec, role="teacher") for teacher in cell.teachers if not teacher.recorded]
        local = [spec for spec in live if spec.has_weights and spec.kind != "run"]
        signal = own_signal(cell)
        for spec in [own_student(cell), *([signal] if signal else []), *local]:
            specs[spec.text] = spec
    return list(specs.values())


# --- Special tokens ---------------------------------------------------------------------------------------------------


def special_tokens(preflight: Preflight) -> list[Finding]:
    """Pitfalls of end, pad and begin tokens of every model that is loaded here, and missing chat templates.

    That end and pad token are the same is harmless here, where rows carry their lengths (`training/batching.py`);
    trainers that mask padding by its id never train the end.
    """
    findings: list[Finding] = []
    for spec in _loaded_specs(preflight):
        loaded = preflight.model(spec)
        if loaded is not None:
            pitfalls = list(_pitfalls(spec, loaded, preflight.runs))
            measured = f"ends with {loaded.tokenizer.eos_token!r}, pads with {loaded.tokenizer.pad_token!r}"
            findings += pitfalls or [Finding("ok", "special_tokens", spec.text, measured)]
    for cell in preflight.cells:
        templated = cell.kind == "reference_baseline" and cell.config.eval.chat_template == "always"
        signal = own_signal(cell) if cell.config.teacher.chat else None
        for prompted, key in (
            (own_student(cell) if templated else None, "eval.chat_template"),
            (signal, "teacher.chat"),
        ):
            loaded = None if prompted is None else preflight.model(prompted)
            if prompted is not None and loaded is not None and loaded.tokenizer.chat_template is None:
                measured = f"is to be prompted with its chat template ({key}) and has none"
                fix = f"set {key} to never or false, or name an instruction-tuned model"
                findings.append(Finding("error", "special_tokens", prompted.text, measured, fix=fix))
    return findings


def _pitfalls(spec: ModelSpec, loaded: Loaded, runs: Path) -> Iterator[Finding]:
    tokenizer: Any = loaded.tokenizer
    check, where = "special_tokens", spec.text
    ids = list(tokenizer("a").input_ids)
    if pad_is_eos(tokenizer):
        measured = f"its end token {tokenizer.eos_token!r} is its pad token too: harmless here"
        fix = "a trainer that masks padding by its id unlearns to stop: give the student another pad token there"
        yield Finding("note", check, where, measured, fix=fix)
    bare = tokenizer("a", add_special_tokens=False).input_ids
    if not loaded.model.config.is_encoder_decoder and ids[-1:] != bare[-1:]:
        end = tokenizer.convert_ids_to_tokens(ids[-1])
        measured = f"its tokenizer ends every text with {end!r}, prompts too: answers come after an end"
        fix = "set add_eos_token=false in tokenizer_config.json, or remove it from tokenizer.json's post-processor"
        yield Finding("error", check, where, measured, fix=fix)
    # add_bos_token is read from the file: transformers 5 ignores it if there is a tokenizer.json
    adds_none = tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id] and not needs_bos(*loaded)
    if adds_none and _small_file(spec, runs, "tokenizer_config.json").get("add_bos_token", False):
        measured = f"add_bos_token is true, but its tokenizer adds no {tokenizer.bos_token!r}: prompts begin without it"
        fix = "give the folder a tokenizer.json whose post-processor adds the token, or set add_bos_token=false"
        yield Finding("warning", check, where, measured, fix=fix)
    eos = _small_file(spec, runs, "generation_config.json").get("eos_token_id")
    declared = eos if isinstance(eos, list) else [eos]
    if eos is not None and tokenizer.eos_token_id not in declared:
        measured = f"its configuration ends texts with id {declared}, its tokenizer with {tokenizer.eos_token_id}"
        fix = "harmless here, where texts stop at either; other programs stop at the configuration's: name both there"
        yield Finding("note", check, where, measured, fix=fix)


def _small_file(spec: ModelSpec, runs: Path, name: str) -> Mapping[str, Any]:
    """The content of one of a model's JSON files; empty if it has no such file, as a GGUF."""
    with pretrained_source(spec, runs, weights=False) as (folder, _):
        file = Path(folder) / name
        return read_object(spec.text, file) if file.is_file() else {}


# --- Vocabularies and spelling ----------------------------------------------------------------------------------------


def vocabularies(preflight: Preflight) -> list[Finding]:
    """What the vocabularies of a student and of its white-box teacher share, if they differ.

    Planning refuses another tokenizer only if both models are on this machine; hub models are compared here.
    """
    findings = []
    for cell in preflight.trained:
        signal, student = own_signal(cell), preflight.student(cell)
        teacher = None if signal is None else preflight.model(signal)
        if signal is None or student is None or teacher is None or cell.method is None:
            continue
        where = f"{place(cell)}, teacher {signal.text}"
        if same_tokenizer(student.tokenizer, teacher.tokenizer):
            findings.append(Finding("ok", "vocabularies", where, "the student's tokenizer"))
            continue
        if cell.method.needs().same_tokenizer:
            fix = "set method.cross_tokenizer if the method has it, or choose a teacher of the student's family"
            measured = "its tokenizer is not the student's, and the method compares token by token"
            findings.append(Finding("error", "vocabularies", where, measured, fix=fix))
            continue
        try:
            common = overlap(student.tokenizer, teacher.tokenizer).share_of_smaller
        except UserError as error:
            findings.append(Finding("error", "vocabularies", where, str(error), fix="name another teacher"))
            continue
        findings.append(
            graded(
                1 - common,
                check="vocabularies",
                where=where,
                measured=f"{100 * common:.3g} % of the smaller vocabulary's entries are in the other",
                fix="the teacher's other probability is projected or dropped: choose one with a closer vocabulary",
                note=None,
                warning=1 - SHARED_VOCABULARY,
                unit="of the entries not shared",
            )
        )
    return findings


def spelling(preflight: Preflight) -> list[Finding]:
    """Prompts with unknown tokens, and answers that the student's tokenizer does not reproduce.

    T5's vocabulary, for example, has no braces and no newline.
    """
    findings = []
    for cell in preflight.trained:
        student = preflight.student(cell)
        if student is None:
            continue
        items = [item for group in preflight.groups(cell) for item in group.items]
        unknown = student.tokenizer.unk_token_id
        with_unknown = 0 if unknown is None else sum(unknown in item.prompt for item in items)
        gold = {record.id: normalised(cell.ask.label_target(record)) for record in cell.records("train")}
        labels = [item for item in items if item.channel == LABEL and item.record_id in gold]
        ends = student.tokenizer.all_special_ids
        texts = [str(student.tokenizer.decode([t for t in item.target if t not in ends])) for item in labels]
        changed = sum(normalised(text) != gold[item.record_id] for text, item in zip(texts, labels, strict=True))
        for count, of, what in (
            (with_unknown, len(items), "prompts hold characters that its tokenizer does not know"),
            (changed, len(labels), "answers are changed by its tokenizer"),
        ):
            findings.append(
                graded(
                    count / max(of, 1),
                    check="spelling",
                    where=f"{cell.task.name}, student {own_student(cell).text}",
                    measured=f"{share(count, of)} {what}",
                    fix="choose a student whose tokenizer spells the task's text (byte-level ones spell everything)",
                    note=None,
                    warning=LOST,
                    unit="of them",
                )
            )
    return findings
