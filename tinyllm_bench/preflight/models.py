"""Checks of `doctor` on models and tokenizers: they are available, end and begin texts, and spell what is trained."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm_bench.answers.parser import normalised
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.identity import GUESSES
from tinyllm_bench.leaderboard.record import RECORD_FILE
from tinyllm_bench.models.adapters import add_adapters
from tinyllm_bench.models.files import read_object
from tinyllm_bench.models.load import Loaded, needs_bos, opened, pad_is_eos
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.models.vocabulary import overlap, same_tokenizer
from tinyllm_bench.preflight.inspection import Finding, Preflight, graded, own_signal, own_student, place, share
from tinyllm_bench.preflight.machine import this_machine

SHARED_VOCABULARY = 0.5  # of the smaller vocabulary's entries
LOST = 0.01  # of prompts or answers


def refuse_errors(cells: Sequence[Cell], runs: Path) -> None:
    """Refuse cells whose models or tokenizers `doctor` calls an error; no weights are loaded.

    Cells that are finished are read back, and guesses open no model.

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
    """Whether every student and every teacher that runs here is available: files, configuration, tokenizer."""
    found = []
    for spec in _specs(preflight):
        why = preflight.why_not(spec)
        if why is None:
            found.append(Finding(severity="ok", check="models", where=spec.text, measured="available"))
        else:
            fix = "give the cell a model that loads"
            found.append(Finding(severity="error", check="models", where=spec.text, measured=why, fix=fix))
    return found + list(_adapters(preflight))


def _adapters(preflight: Preflight) -> Iterator[Finding]:
    """Adapters that are to be trained and do not fit their student; tried on a model without weights."""
    for cell in preflight.trained:
        lora, student = cell.config.student.lora, preflight.student(cell)
        if lora is None or student is None:
            continue
        try:
            add_adapters(copy.deepcopy(student.model), **lora.model_dump())
        except UserError as error:
            fix = "name layers of the student, or take all-linear"
            where = f"{place(cell)}, student {own_student(cell).text}"
            yield Finding(severity="error", check="models", where=where, measured=str(error), fix=fix)


def _specs(preflight: Preflight) -> list[ModelSpec]:
    """Every model that is loaded here, each once: students, white-box teachers and live local ones."""
    found: dict[str, ModelSpec] = {}
    for cell in [*preflight.trained, *preflight.cells]:
        live = [parse_spec(teacher.spec, role="teacher") for teacher in cell.teachers if not teacher.recorded]
        local = [spec for spec in live if spec.has_weights and spec.kind != "run"]
        signal = own_signal(cell)
        for spec in [own_student(cell), *([signal] if signal else []), *local]:
            found[spec.text] = spec
    return list(found.values())


def special_tokens(preflight: Preflight) -> list[Finding]:
    """Traps of end, pad and begin tokens, of every model that is loaded here.

    That end and pad token are one is harmless here, where rows carry their lengths (`training/batching.py`); trainers
    that mask padding by its id never train the end.
    """
    found: list[Finding] = []
    for spec in _specs(preflight):
        loaded = preflight.model(spec)
        if loaded is not None:
            traps = list(_traps(spec, loaded, preflight.runs))
            measured = f"ends with {loaded.tokenizer.eos_token!r}, pads with {loaded.tokenizer.pad_token!r}"
            found += traps or [Finding(severity="ok", check="special_tokens", where=spec.text, measured=measured)]
    return found + list(_chat(preflight))


def _traps(spec: ModelSpec, loaded: Loaded, runs: Path) -> Iterator[Finding]:
    tokenizer: Any = loaded.tokenizer
    where = spec.text
    ids = list(tokenizer("a").input_ids)
    if pad_is_eos(tokenizer):
        measured = f"its end token {tokenizer.eos_token!r} is its pad token too: harmless here"
        fix = "a trainer that masks padding by its id unlearns to stop: give the student another pad token there"
        yield Finding(severity="note", check="special_tokens", where=where, measured=measured, fix=fix)
    bare = tokenizer("a", add_special_tokens=False).input_ids
    if not loaded.model.config.is_encoder_decoder and ids[-1:] != bare[-1:]:
        end = tokenizer.convert_ids_to_tokens(ids[-1])
        measured = f"its tokenizer ends every text with {end!r}, prompts too: answers follow an end"
        fix = "set add_eos_token=false in tokenizer_config.json, or drop it from tokenizer.json's post-processor"
        yield Finding(severity="error", check="special_tokens", where=where, measured=measured, fix=fix)
    if _promises_bos(spec, tokenizer, runs) and ids[:1] != [tokenizer.bos_token_id] and not needs_bos(*loaded):
        measured = f"add_bos_token is true, but its tokenizer adds no {tokenizer.bos_token!r}: prompts begin without it"
        fix = "give the folder a tokenizer.json whose post-processor adds the token, or set add_bos_token=false"
        yield Finding(severity="warning", check="special_tokens", where=where, measured=measured, fix=fix)
    said = _said(spec, runs, "generation_config.json").get("eos_token_id")
    declared = said if isinstance(said, list) else [said]
    if said is not None and tokenizer.eos_token_id not in declared:
        measured = f"its configuration ends texts with id {declared}, its tokenizer with {tokenizer.eos_token_id}"
        fix = "harmless here, where texts stop at either; other programs stop at the configuration's: name both there"
        yield Finding(severity="note", check="special_tokens", where=where, measured=measured, fix=fix)


def _promises_bos(spec: ModelSpec, tokenizer: Any, runs: Path) -> bool:
    """Whether `tokenizer_config.json` says `add_bos_token`; transformers 5 drops it beside a `tokenizer.json`."""
    if tokenizer.bos_token_id is None:
        return False
    return bool(_said(spec, runs, "tokenizer_config.json").get("add_bos_token", False))


def _said(spec: ModelSpec, runs: Path, name: str) -> Mapping[str, Any]:
    """What a small file of a model says; nothing where it has none, as a GGUF."""
    with opened(spec, runs, weights=False) as (folder, _):
        file = Path(folder) / name
        return read_object(spec.text, file) if file.is_file() else {}


def _chat(preflight: Preflight) -> Iterator[Finding]:
    """Models that are to be asked in a chat template and have none."""
    for cell in preflight.cells:
        asked = cell.kind == "reference_baseline" and cell.config.eval.chat_template == "always"
        signal = own_signal(cell) if cell.config.teacher.chat else None
        for spec, key in ((own_student(cell) if asked else None, "eval.chat_template"), (signal, "teacher.chat")):
            loaded = None if spec is None else preflight.model(spec)
            if spec is not None and loaded is not None and loaded.tokenizer.chat_template is None:
                measured = f"is to be asked in its chat template ({key}) and has none"
                fix = f"set {key} to never or false, or name an instruction-tuned model"
                yield Finding(severity="error", check="special_tokens", where=spec.text, measured=measured, fix=fix)


def vocabularies(preflight: Preflight) -> list[Finding]:
    """What the vocabularies of a student and of its white-box teacher share, where they differ.

    Planning refuses another tokenizer only where both models lie on this machine; hub models are compared here.
    """
    found = []
    for cell in preflight.trained:
        signal, student = own_signal(cell), preflight.student(cell)
        teacher = None if signal is None else preflight.model(signal)
        if signal is not None and student is not None and teacher is not None and cell.method is not None:
            same = same_tokenizer(student.tokenizer, teacher.tokenizer)
            where = f"{place(cell)}, teacher {signal.text}"
            found.append(_shared(where, student, teacher, same=same, needed=cell.method.needs().same_tokenizer))
    return found


def _shared(where: str, student: Loaded, teacher: Loaded, *, same: bool, needed: bool) -> Finding:
    if same:
        return Finding(severity="ok", check="vocabularies", where=where, measured="one tokenizer")
    if needed:
        fix = "set method.cross_tokenizer where the method has it, or choose a teacher of the student's family"
        measured = "its tokenizer is not the student's, and the method compares token by token"
        return Finding(severity="error", check="vocabularies", where=where, measured=measured, fix=fix)
    try:
        common = overlap(student.tokenizer, teacher.tokenizer).share_of_smaller
    except UserError as error:
        return Finding(severity="error", check="vocabularies", where=where, measured=str(error), fix="name another")
    return graded(
        1 - common,
        check="vocabularies",
        where=where,
        measured=f"{100 * common:.3g} % of the smaller vocabulary's entries are in the other",
        fix="most of the teacher's probability is projected or dropped: a teacher nearer to the student loses less",
        note=None,
        warning=1 - SHARED_VOCABULARY,
        unit="of the entries not shared",
    )


def spelling(preflight: Preflight) -> list[Finding]:
    """Prompts with unknown tokens, and answers that the student's tokenizer does not give back as they were.

    T5's vocabulary has no braces and no newline, for one.
    """
    found = []
    for cell in preflight.trained:
        student = preflight.student(cell)
        if student is None:
            continue
        items = [item for group in preflight.groups(cell) for item in group.items]
        unknown = student.tokenizer.unk_token_id
        odd = 0 if unknown is None else sum(unknown in item.prompt for item in items)
        where = f"{cell.task.name}, student {own_student(cell).text}"
        found.append(_lost(odd, len(items), where, "prompts hold characters that its tokenizer does not know"))
        gold = {record.id: normalised(cell.ask.label_target(record)) for record in cell.records("train")}
        labels = [item for item in items if item.channel == LABEL and item.record_id in gold]
        ends = student.tokenizer.all_special_ids
        texts = [str(student.tokenizer.decode([t for t in item.target if t not in ends])) for item in labels]
        changed = sum(normalised(t) != gold[item.record_id] for t, item in zip(texts, labels, strict=True))
        found.append(_lost(changed, len(labels), where, "answers do not come back from its tokenizer as they were"))
    return found


def _lost(count: int, of: int, where: str, what: str) -> Finding:
    return graded(
        count / max(of, 1),
        check="spelling",
        where=where,
        measured=f"{share(count, of)} {what}",
        fix="choose a student whose tokenizer spells the task's text (byte-level ones spell all)",
        note=None,
        warning=LOST,
        unit="of them",
    )
