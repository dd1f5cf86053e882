"""`export`: the student of a finished run as an ordinary Hugging Face folder with a model card.

What is exported is what was scored: the weights' digest is checked against the run's record first.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_bench.audit.verify import shown, trainings_of
from tinyllm_bench.base.config import read_yaml
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import read_json
from tinyllm_bench.experiment.sample_answers import joint_digest
from tinyllm_bench.leaderboard.board import board_config
from tinyllm_bench.leaderboard.public import machine_paths
from tinyllm_bench.leaderboard.record import RECORD_FILE, RunRecord, load_record, record_path
from tinyllm_bench.leaderboard.tables import BoardNames
from tinyllm_bench.leaderboard.verdicts import RecordTrust, refutations_of, tier_of, trust_in
from tinyllm_bench.models.adapters import CONFIG as ADAPTER_CONFIG
from tinyllm_bench.models.adapters import WEIGHTS as ADAPTER_WEIGHTS
from tinyllm_bench.models.load import Loaded, load_model, needs_bos, tokenizer_digest, weights_digest
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.publish.card_parts import base_of
from tinyllm_bench.publish.model_card import CARD, Exported, Form, decoding_of, model_card
from tinyllm_bench.reporters.eval_results import eval_results_file

# Weights, configuration and tokenizer of a Hugging Face folder; nothing else of a student's folder is passed on.
_PASSED_ON = (".safetensors", ".json", ".jinja", ".txt", ".model")
# Where a file lay when it was loaded: of no use to anybody else.
_PRIVATE = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
_CLOSE = 1e-4  # of the largest weight: merging again on another device rounds otherwise


class Bundle(NamedTuple):
    """What is exported: the run's record, and by its name each file, as bytes or as the file that is copied.

    `left_out` says which records beside the run could not be read.
    """

    record: RunRecord
    files: Mapping[str, bytes | Path]
    left_out: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by file name, sorted by name."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size
            for name, file in sorted(self.files.items())
        }

    @property
    def card(self) -> str:
        """The text of the model card."""
        found = self.files[CARD]
        assert isinstance(found, bytes)
        return found.decode()


@dataclass(frozen=True, slots=True)
class _Student:
    """A run's student: where it was trained, its channel where there are several, itself."""

    folder: Path
    channel: str | None
    loaded: Loaded


def find_run(name: str, runs: Path) -> Path:
    """The folder of a finished run, given that folder, its record's file, or its id in the folder of runs.

    Raises:
        UserError: nothing there, or a run without a record.
    """
    path = Path(name)
    folder = path.parent if path.name == RECORD_FILE and path.is_file() else path if path.is_dir() else runs / name
    if not folder.is_dir():
        raise unknown_name("run", name, (file.parent.name for file in runs.glob(f"*/{RECORD_FILE}")))
    if not (folder / RECORD_FILE).is_file():
        raise UserError(
            f"{folder} has no {RECORD_FILE}: it is not finished, or only trains for other runs; finish it with the "
            "command that began it, or name a run that was scored"
        )
    return folder


def make_bundle(
    folder: Path,
    *,
    adapter: bool = False,
    channel: str | None = None,
    predictions: bool = False,
    repo: str | None = None,
) -> Bundle:
    """Collect and check what is exported of a run; nothing is written.

    Args:
        folder: The run's folder; reference baselines and the baseline are looked for among the runs beside it.
        adapter: The LoRA adapters alone instead of the student that they were merged into.
        channel: Which student, of a run that answers with several.
        predictions: Also every stored answer to the test questions.
        repo: Where on the hub the folder will go, for the card.

    Raises:
        UserError: a reference baseline, a student that is not at hand or is not the one that was scored, no adapters
            where they
            are asked for, an unknown or missing channel.
    """
    record = load_record(folder)
    if record.kind == "reference_baseline":
        raise UserError(f"{record.run_id} is a reference baseline: nothing was trained, there is no student to export")
    student = _student(record, folder, channel)
    form = _form(record, student, adapter=adapter)
    others, checks, left_out = _beside(folder, record)
    exported = Exported(
        form=form,
        encoder_decoder=bool(student.loaded.model.config.is_encoder_decoder),
        add_bos=needs_bos(*student.loaded),
        channel=student.channel,
        repo=repo,
        tier=trust_in(checks, record).tier,
        with_predictions=predictions,
    )
    config = board_config(folder.parent / "board")
    names = BoardNames(baseline=config.baseline, baseline_title=config.baseline_title, order=config.order)
    files = dict(_adapter_files(record, student) if form == "adapter" else _passed_on(student.folder / "student"))
    files[RECORD_FILE] = folder / RECORD_FILE
    files[CARD] = model_card(record, exported, others, names, checks).encode()
    files |= {name: text.encode() for name, text in eval_results_file(record).items()}
    if predictions:
        name = f"predictions/{record.task}.jsonl.zst"
        files[name] = _there(folder / name, "the run's predictions")
    return Bundle(record, files, left_out)


def _there(file: Path, what: str) -> Path:
    if not file.is_file():
        raise UserError(f"{file}: missing; expected {what}")
    return file


def _student(record: RunRecord, folder: Path, channel: str | None) -> _Student:
    """The student that is exported, checked to be what was scored."""
    folders = trainings_of(record, folder)
    if not folders or not all((one / "student").is_dir() for one in folders):
        raise UserError(
            f"{folder}: no student is at hand that the record tells of; it lies in student/ of the run, or of the "
            "training run beside it"
        )
    channels = _channels(record) if len(folders) > 1 else ()
    if channels and channel is None:
        raise UserError(
            f"{record.run_id} answers with several students, one a channel: {', '.join(channels)}; name one with "
            "--channel"
        )
    if channel is not None and channel not in channels:
        raise unknown_name(f"channel of {record.run_id}", channel, channels)
    dtype = read_yaml(folder / "config.yaml")["student"]["dtype"]
    loaded = [load_model(parse_spec(f"dir:{one / 'student'}", role="student"), dtype=dtype) for one in folders]
    _check_scored(record, folders, loaded)
    chosen = channels.index(channel) if channel is not None else 0
    return _Student(folders[chosen], channel, loaded[chosen])


def _channels(record: RunRecord) -> tuple[str, ...]:
    decoding = decoding_of(record)
    return () if decoding is None else tuple(decoding.channels)


def _check_scored(record: RunRecord, folders: Sequence[Path], loaded: Sequence[Loaded]) -> None:
    """Refuse weights or a tokenizer that are not those of the record."""
    told = record.student
    assert told is not None
    found = {
        "weights'": (joint_digest([weights_digest(one.model) for one in loaded]), told.digest),
        "tokenizer's": (tokenizer_digest(loaded[0].tokenizer), told.tokenizer_digest),
    }
    for what, (own, recorded) in found.items():
        if own != recorded:
            places = ", ".join(str(one / "student") for one in folders)
            raise UserError(
                f"{places}: the {what} digest is {shown(own)}, the record says {shown(recorded)}: this is not the "
                "student that was scored; run the cell again"
            )


def _form(record: RunRecord, student: _Student, *, adapter: bool) -> Form:
    lora = (record.config.get("student") or {}).get("lora")
    if not adapter:
        return "merged" if lora else "full"
    if not lora:
        raise UserError(f"--adapter: {record.run_id} was trained fully (student.lora is null); export it without")
    if not (student.folder / "adapter" / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"--adapter: {student.folder} kept no adapters, as runs of older versions do; export the merged student"
        )
    return "adapter"


def _passed_on(folder: Path) -> Iterator[tuple[str, bytes | Path]]:
    """The files of a student's folder, without what tells of this machine."""
    for file in sorted(folder.iterdir()):
        if file.suffix not in _PASSED_ON:
            raise UserError(
                f"{file}: not a file of a trained student; remove it ({', '.join(_PASSED_ON)} are passed on)"
            )
        yield file.name, _public(file) if file.name in ("config.json", "tokenizer_config.json") else file


def _public(file: Path, **changes: Any) -> bytes:
    values = {key: value for key, value in read_json(file).items() if key not in _PRIVATE} | changes
    private = next(machine_paths(values), None)
    if private is not None:
        raise UserError(f"{file} names a place on this machine, {private}; remove that setting before it is passed on")
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _adapter_files(record: RunRecord, student: _Student) -> Iterator[tuple[str, bytes | Path]]:
    """The adapters, and the tokenizer that the base model's own may differ from (a pad token may have been set)."""
    _check_adapter(record, student)
    base, folder = base_of(record), student.folder / "adapter"
    place = base.location if base.kind == "hf" and base.layers is None else None
    yield ADAPTER_CONFIG, _public(folder / ADAPTER_CONFIG, base_model_name_or_path=place, revision=base.revision)
    yield ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS
    for name, file in _passed_on(student.folder / "student"):
        if "tokenizer" in name or name.endswith((".jinja", ".txt", ".model")):
            yield name, file


def _check_adapter(record: RunRecord, student: _Student) -> None:
    """Refuse adapters that, merged into the base model, do not make the student that was scored."""
    settings = read_yaml(student.folder / "config.yaml")["student"]
    if settings["init"] is not None:
        raise UserError(
            f"--adapter: the base of {record.run_id} is a student that another run made first (student.init), which "
            "nobody else has; export the merged student"
        )
    base = settings["model"]
    spec = parse_spec(f"{base}{'&' if '?' in base else '?'}adapter={student.folder / 'adapter'}", role="student")
    merged = load_model(spec, dtype=settings["dtype"])
    if weights_digest(merged.model) == weights_digest(student.loaded.model):
        return
    ours, theirs = (model.state_dict() for model in (student.loaded.model, merged.model))
    for name, tensor in ours.items():
        if name not in theirs or not _close(tensor, theirs[name]):
            raise UserError(
                f"{student.folder / 'adapter'}: merged into {base} it does not make the student that was scored"
                f" ({name} differs); export the merged student"
            )


def _close(tensor: Any, other: Any) -> bool:
    if tensor.shape != other.shape:
        return False
    eps = max(_CLOSE, _finfo_eps(tensor)) * float(tensor.abs().max())
    return bool(((tensor.float() - other.float()).abs() <= eps).all())


def _finfo_eps(tensor: Any) -> float:
    import torch

    return float(torch.finfo(tensor.dtype).eps)


def _beside(folder: Path, record: RunRecord) -> tuple[list[RunRecord], dict[str, RecordTrust], tuple[str, ...]]:
    """The records of the runs beside a run, what was found about them on the board of these runs, and those that could
    not be read.

    What a run's folder itself holds against its record is told as well.
    """
    found, checks, left_out = [], {}, []
    board = folder.parent / "board"
    for file in sorted(folder.parent.glob(f"*/{RECORD_FILE}")):
        try:
            one = load_record(file)
        except UserError as error:
            left_out.append(str(error))
            continue
        if one.protocol_hash == record.protocol_hash:
            found.append(one)
            place = board / record_path(one)
            known = (*refutations_of(place), *refutations_of(file.parent))
            checks[record_path(one)] = RecordTrust(tier_of(place, one), known)
    return found, checks, tuple(left_out)


def write_bundle(bundle: Bundle, to: Path) -> None:
    """Write a bundle into a folder that is new or empty; it appears whole or not at all.

    Raises:
        UserError: there is something already.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {to}: there is something already; name a new or an empty folder")
    partial = to.absolute().parent / f".{to.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for name, file in bundle.files.items():
        place = partial / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, bytes):
            place.write_bytes(file)
        else:
            shutil.copyfile(file, place)
    if to.exists():
        to.rmdir()
    os.replace(partial, to)
