"""`export`: the student of a finished run as an ordinary Hugging Face folder with a model card.

What is exported is what was scored: the weights' digest is checked against the run's record first.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_bench.audit.verify import abbreviated, trainings_of
from tinyllm_bench.base.config import Layer, read_yaml, resolve
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import read_json
from tinyllm_bench.experiment.settings import BenchConfig, StudentConfig
from tinyllm_bench.experiment.train import joint_digest
from tinyllm_bench.leaderboard.board import board_config
from tinyllm_bench.leaderboard.public import machine_paths
from tinyllm_bench.leaderboard.record import RECORD_FILE, RunRecord, load_record, record_path
from tinyllm_bench.leaderboard.tables import BoardNames
from tinyllm_bench.leaderboard.verdicts import RecordTrust, refutations_of, tier_of, trust_in
from tinyllm_bench.models.adapters import ADAPTER_WEIGHTS
from tinyllm_bench.models.files import ADAPTER_CONFIG
from tinyllm_bench.models.load import Loaded, load_model, needs_bos, tokenizer_digest, weights_digest
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.publish.model_card import CARD, Exported, Form, base_of, decoding_of, model_card
from tinyllm_bench.reporters.eval_results import eval_results_file

# Weights, configuration and tokenizer of a Hugging Face folder; nothing else of a student's folder is exported.
_EXPORTED_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
# Settings that hold the place a file was loaded from: of no use on another machine.
_LOCAL_SETTINGS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
_MERGE_TOLERANCE = 1e-4  # of the largest weight: merging again on another device rounds differently


class ExportBundle(NamedTuple):
    """What is exported: the run's record, and each file by its name, as bytes or as the path to copy.

    `left_out`: why records of neighbouring runs could not be read.
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
        card = self.files[CARD]
        assert isinstance(card, bytes)
        return card.decode()


@dataclass(frozen=True, slots=True)
class _Student:
    """A run's student: the folder of its training, its channel if there are several, and the loaded model."""

    folder: Path
    channel: str | None
    loaded: Loaded


def find_run(name: str, runs: Path) -> Path:
    """The folder of a finished run, given as that folder, its record file, or its id in the folder of runs.

    Raises:
        UserError: there is no such run, or it has no record.
    """
    path = Path(name)
    folder = path.parent if path.name == RECORD_FILE and path.is_file() else path if path.is_dir() else runs / name
    if not folder.is_dir():
        raise unknown_name("run", name, (file.parent.name for file in runs.glob(f"*/{RECORD_FILE}")))
    if not (folder / RECORD_FILE).is_file():
        raise UserError(
            f"{folder} has no {RECORD_FILE}: it is not finished, or only trains for other runs; finish it with the "
            "command that started it, or name a run that was scored"
        )
    return folder


def make_bundle(
    folder: Path,
    *,
    adapter: bool = False,
    channel: str | None = None,
    predictions: bool = False,
    repo: str | None = None,
) -> ExportBundle:
    """Collect and check what is exported of a run; nothing is written.

    Args:
        folder: The run's folder; the card compares with runs of the same protocol in the folders next to it.
        adapter: Export the LoRA adapters alone instead of the student that they were merged into.
        channel: Which student, of a run that answers with several.
        predictions: Also export every stored answer to the test questions.
        repo: Where on the hub the folder will go, for the card.

    Raises:
        UserError: a reference baseline, a student that is missing or is not the one that was scored, adapters that were
            requested but do not exist, an unknown or missing channel.
    """
    record = load_record(folder)
    if record.kind == "reference_baseline":
        raise UserError(f"{record.run_id} is a reference baseline: nothing was trained, there is no student to export")
    student = _scored_student(record, folder, channel)
    lora = (record.config.get("student") or {}).get("lora")
    form: Form = "adapter" if adapter else "merged" if lora else "full"
    if adapter and not lora:
        raise UserError(f"--adapter: {record.run_id} was trained fully (student.lora is null); export it without")
    if adapter and not (student.folder / "adapter" / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"--adapter: {student.folder} has no adapters, as runs of older versions do; export the merged student"
        )
    others, checks, left_out = _comparable_runs(folder, record)
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
    files = dict(_adapter_files(record, student) if adapter else _student_files(student.folder / "student"))
    files[RECORD_FILE] = folder / RECORD_FILE
    files[CARD] = model_card(record, exported, others, names, checks).encode()
    files |= {name: text.encode() for name, text in eval_results_file(record).items()}
    if predictions:
        name = f"predictions/{record.task}.jsonl.zst"
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; expected the run's predictions")
        files[name] = folder / name
    return ExportBundle(record, files, left_out)


def _scored_student(record: RunRecord, folder: Path, channel: str | None) -> _Student:
    """The student to export, once its weights and tokenizer are known to be those that were scored."""
    folders = trainings_of(record, folder)
    if not folders or not all((training / "student").is_dir() for training in folders):
        raise UserError(
            f"{folder}: the student that the record describes is missing; it belongs in student/ of the run, or of the "
            "training run next to it"
        )
    decoding = decoding_of(record)
    channels = tuple(decoding.channels) if decoding is not None and len(folders) > 1 else ()
    if channels and channel is None:
        raise UserError(
            f"{record.run_id} answers with several students, one a channel: {', '.join(channels)}; name one with "
            "--channel"
        )
    if channel is not None and channel not in channels:
        raise unknown_name(f"channel of {record.run_id}", channel, channels)

    dtype = _student_settings(folder).dtype
    students = [load_model(parse_spec(f"dir:{path / 'student'}", role="student"), dtype=dtype) for path in folders]
    assert record.student is not None
    for what, actual, recorded in (
        ("weights'", joint_digest([weights_digest(student.model) for student in students]), record.student.digest),
        ("tokenizer's", tokenizer_digest(students[0].tokenizer), record.student.tokenizer_digest),
    ):
        if actual != recorded:
            places = ", ".join(str(training / "student") for training in folders)
            raise UserError(
                f"{places}: the {what} digest is {abbreviated(actual)}, the record has {abbreviated(recorded)}: this is"
                " not the student that was scored; run the cell again"
            )
    index = channels.index(channel) if channel is not None else 0
    return _Student(folders[index], channel, students[index])


def _student_settings(folder: Path) -> StudentConfig:
    """The settings of a run's student; a record has them without the places of models on a machine."""
    file = folder / "config.yaml"
    settings = read_yaml(file)
    if "student" not in settings:
        raise UserError(f"{file}: the settings of the student are missing; expected the settings that the run wrote")
    config: BenchConfig = resolve(BenchConfig, [Layer(str(file), {"student": settings["student"]})]).config
    return config.student


def _student_files(folder: Path) -> Iterator[tuple[str, bytes | Path]]:
    """The files of a student's folder, without settings that describe this machine."""
    for file in sorted(folder.iterdir()):
        if file.suffix not in _EXPORTED_SUFFIXES:
            raise UserError(
                f"{file}: not a file of a trained student; remove it ({', '.join(_EXPORTED_SUFFIXES)} are exported)"
            )
        yield file.name, _portable_json(file) if file.name in ("config.json", "tokenizer_config.json") else file


def _portable_json(file: Path, **changes: Any) -> bytes:
    values = {key: value for key, value in read_json(file).items() if key not in _LOCAL_SETTINGS} | changes
    private = next(machine_paths(values), None)
    if private is not None:
        raise UserError(f"{file} holds a path of this machine, {private}; remove that setting before you export")
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _adapter_files(record: RunRecord, student: _Student) -> Iterator[tuple[str, bytes | Path]]:
    """The adapters, and the tokenizer, which may differ from the base model's own (a pad token may have been set)."""
    _check_adapter(record, student)
    base, folder = base_of(record), student.folder / "adapter"
    place = base.location if base.kind == "hf" and base.layers is None else None
    yield ADAPTER_CONFIG, _portable_json(folder / ADAPTER_CONFIG, base_model_name_or_path=place, revision=base.revision)
    yield ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS
    for name, file in _student_files(student.folder / "student"):
        if "tokenizer" in name or name.endswith((".jinja", ".txt", ".model")):
            yield name, file


def _check_adapter(record: RunRecord, student: _Student) -> None:
    """Refuse adapters that, merged into the base model, do not give the student that was scored."""
    import torch

    settings = _student_settings(student.folder)
    if settings.init is not None:
        raise UserError(
            f"--adapter: the base of {record.run_id} is a student that another run made first (student.init), which "
            "nobody else has; export the merged student"
        )
    base = settings.model
    spec = parse_spec(f"{base}{'&' if '?' in base else '?'}adapter={student.folder / 'adapter'}", role="student")
    merged = load_model(spec, dtype=settings.dtype)
    if weights_digest(merged.model) == weights_digest(student.loaded.model):
        return
    weights = merged.model.state_dict()

    def same(name: str, scored: torch.Tensor) -> bool:
        if name not in weights or weights[name].shape != scored.shape:
            return False
        tolerance = max(_MERGE_TOLERANCE, torch.finfo(scored.dtype).eps) * float(scored.abs().max())
        return bool(((scored.float() - weights[name].float()).abs() <= tolerance).all())

    for name, scored in student.loaded.model.state_dict().items():
        if not same(name, scored):
            raise UserError(
                f"{student.folder / 'adapter'}: merged into {base} it does not give the student that was scored"
                f" ({name} differs); export the merged student"
            )


def _comparable_runs(
    folder: Path, record: RunRecord
) -> tuple[list[RunRecord], dict[str, RecordTrust], tuple[str, ...]]:
    """The records of the same protocol among the neighbouring runs; their verdicts and refutations, those of their
    own folders and of the leaderboard of these runs; and why other records could not be read."""
    records, checks, left_out = [], {}, []
    board = folder.parent / "board"
    for file in sorted(folder.parent.glob(f"*/{RECORD_FILE}")):
        try:
            neighbour = load_record(file)
        except UserError as error:
            left_out.append(str(error))
            continue
        if neighbour.protocol_hash == record.protocol_hash:
            records.append(neighbour)
            place = board / record_path(neighbour)
            refutations = (*refutations_of(place), *refutations_of(file.parent))
            checks[record_path(neighbour)] = RecordTrust(tier_of(place, neighbour), refutations)
    return records, checks, tuple(left_out)


def write_bundle(bundle: ExportBundle, to: Path) -> None:
    """Write a bundle into a folder that is new or empty; it appears whole or not at all.

    Raises:
        UserError: the folder is not empty, or is a file.
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
