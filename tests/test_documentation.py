"""What people read is true: blocks run, the site builds, links resolve, quoted errors exist, no page has drifted.

What a block's marks mean stands in `tests/documentation.py`.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from scripts import reference_pages
from tests import documentation, messages, warm_python
from tests.cli.conftest import Call
from tests.cli.conftest import call as call
from tests.documentation import MARKS, ROOT, RUN, SHOWN, Block

PAGES = documentation.pages()
BLOCKS = [block for page in PAGES for block in documentation.blocks(page)]
ON_GITHUB = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted(ROOT.glob("*/README.md"))]
COMMAND = re.compile(r"(\$ |%|(\.venv/bin/)?(tinyllm-bench|python|pip|make|accelerate|torchrun|sbatch) )")


def label(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_says_what_it_is(block: Block) -> None:
    """A command hides in no block that is only shown, and what is not run has a reason."""
    assert block.language in (*RUN, *SHOWN), f"{block.place}: give the block a language of {(*RUN, *SHOWN)}"
    if block.language not in RUN:
        commands = [line for line in block.text.splitlines() if COMMAND.match(line)]
        assert not commands or block.language != "text", f"{block.place}: commands stand in blocks of bash: {commands}"
        assert set(block.marks) <= {"output of"}, block.place
    assert all(block.marks.values()), f"{block.place}: a reason is missing: <!-- not run: REASON -->"


def test_what_is_not_run_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    marks = [mark for mark in MARKS if mark not in ("status", "output of")]
    told = [f"  {block.place} {mark}: {block.marks[mark]}" for block in BLOCKS for mark in marks if mark in block.marks]
    with capsys.disabled():
        print("\nblocks of the documentation that are not run as they stand:", *told, sep="\n")
    left_out = [block for block in BLOCKS if block.language in RUN and block.left_out(release=True)]
    assert left_out, "installing and testing are never run here"
    for block in left_out:
        assert f"  {block.place} not run: {block.left_out(release=True)}" in told


def test_marks_are_read() -> None:
    text = "<!-- dry run: an hour -->\n<!-- needs the release: real questions -->\n```bash\na\n```\n\n```text\nb\n```\n"
    page = ROOT / "docs" / "never_written.md"
    lines = text.splitlines()
    assert dict(documentation._marks(lines, 1)) == {"dry run": "an hour", "needs the release": "real questions"}
    block = Block(page, 3, "bash", "a\n", {"not run": "why"})
    assert "a\n" not in documentation.script([block], release=True)
    assert block.left_out(release=True) == "why"


def test_a_script_runs_every_block_and_stops_at_one_that_fails(tmp_path: Path) -> None:
    command = tmp_path / "tinyllm-bench"
    command.write_text('#!/bin/bash\necho said "$@"\nexit ${ENDS:-0}\n')
    command.chmod(0o755)
    made = [
        ("tinyllm-bench run --task a\ntinyllm-bench list tasks\n", {"dry run": "why"}),
        ("export ENDS=2\ntinyllm-bench run\n", {"status": "2"}),
        ("tinyllm-bench run\n", {"smaller": "why"}),
        ("export ENDS=1\ntinyllm-bench run\n", {}),
        ("echo never\n", {}),
    ]
    found = [Block(ROOT / "README.md", n, "bash", text, marks) for n, (text, marks) in enumerate(made)]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    def run(blocks: list[Block]) -> tuple[int, dict[int, str]]:
        text = documentation.script(blocks, release=True)
        done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)
        assert set(documentation.seconds(done.stdout)) <= set(documentation.outputs(done.stdout))
        return done.returncode, documentation.outputs(done.stdout)

    status, result = run(found)
    assert status == 1 and max(result) == 3
    assert result[0] == "said run --task a --dry-run\nsaid list tasks\n"
    assert result[1] == "said run\n" and result[2] == f"said run {' '.join(documentation.SMALL)}\n"
    assert run(found[:3])[0] == 0
    assert run([found[0]._replace(marks={"status": "2"})])[0] == 1


class Home(NamedTuple):
    """Where blocks run: folders of pages beside each other, one folder of runs for all, and their environment."""

    folder: Path
    environment: Mapping[str, str]
    release: Path | None


def release_folder() -> Path | None:
    named = os.environ.get("TINYLLM_BENCH_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data" / "tinyllm_release"
    return folder.resolve() if folder.is_dir() else None


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, bundled_smollm: Path) -> Iterator[Home]:
    """A clean environment with the fetched model; commands are on the path and start warm."""
    folder = tmp_path_factory.mktemp("documentation")
    for name in ("bin", "home", "cache", "runs"):
        (folder / name).mkdir()
    (folder / "cache" / "models").symlink_to(bundled_smollm.parent)
    environment = {
        "PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder / "home"),
        "LANG": "C.UTF-8",
        "TINYLLM_BENCH_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    address = folder / "python"
    for name, words in (("tinyllm-bench", ("-m", "tinyllm_bench")), ("warm-python", ())):
        (folder / "bin" / name).write_text(warm_python.client(address, *words))
        (folder / "bin" / name).chmod(0o755)
    with warm_python.warm_python(address, environment):
        yield Home(folder, environment, release_folder())


def run_page(page: Path, home: Home) -> tuple[subprocess.CompletedProcess[str], list[Block]]:
    """Run a page's blocks in a folder of its own, in which `path/to/` holds the release folder, if it is at hand."""
    found = list(documentation.blocks(page))
    folder = home.folder / "pages" / label(page).replace("/", "-").removesuffix(".md")
    (folder / "path" / "to").mkdir(parents=True)
    if "budget.student_tokens" in page.read_text():  # its own cells beside the shared ones would make names ambiguous
        (folder / "runs").mkdir()
    else:
        (folder / "runs").symlink_to(home.folder / "runs")
    if home.release:
        (folder / "path" / "to" / "tinyllm_release").symlink_to(home.release)
        if (beside := home.release.parent / "mixed_distillation").is_dir():
            (folder / "path" / "to" / "mixed_distillation").symlink_to(beside)
    text = documentation.script(found, release=home.release is not None)
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=home.environment, capture_output=True, text=True, check=False
    )
    return done, found


WITH_BLOCKS = [
    page
    for page in PAGES
    if any(b.language in RUN and not b.left_out(release=True) for b in documentation.blocks(page))
]


@pytest.mark.slow
@pytest.mark.bundled
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=label)
def test_the_blocks_of_a_page_run(page: Path, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    done, found = run_page(page, home)
    took = documentation.seconds(done.stdout)
    with capsys.disabled():
        print(f"\n{label(page)}:", *(f"{found[number].line}: {took[number]:.1f} s" for number in took if number >= 0))
    reached = [number for number in documentation.outputs(done.stdout) if number >= 0]
    where = found[reached[-1]].place if reached else label(page)
    assert done.returncode == 0, f"{where} fails\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    printed = {n: documentation.outputs(done.stderr).get(n, "") for n in reached}
    for number, block in enumerate(found[1:], start=1):
        if block.language == "text" and number - 1 in printed:
            for error in errors_in(block):
                assert error in printed[number - 1], f"{block.place}: {error!r} is not what the command says"


@pytest.mark.slow
@pytest.mark.bundled
@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "slurm").iterdir()), ids=label)
def test_a_batch_file_asks_for_cells_that_exist(file: Path, home: Home, tmp_path: Path) -> None:
    """Run by bash, with a scheduler and a launcher that plan the command in this process's stead."""
    if home.release is None:
        pytest.skip("needs the release folder: set TINYLLM_BENCH_DATA")
    launch = 'until [ "$1" = tinyllm_bench ]; do shift; done; shift; exec tinyllm-bench "$@"'
    for name, text in (("srun", 'exec "$@" --dry-run'), ("accelerate", launch)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**home.environment, "TINYLLM_BENCH_DATA": str(home.release), "SLURM_ARRAY_TASK_ID": "0"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(["bash", file], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "on obqa, seed 0" in done.stdout, done.stderr


# --- quoted errors ----------------------------------------------------------------------------------------------------


def errors_in(block: Block) -> list[str]:
    """The errors that a block quotes: lines that begin with `error: `."""
    return [line for line in block.text.splitlines() if line.startswith("error: ")] if block.language == "text" else []


QUOTED = [(block, error) for block in BLOCKS for error in errors_in(block)]


@pytest.mark.parametrize(("block", "error"), QUOTED, ids=[f"{block.place}-{i}" for i, (block, _) in enumerate(QUOTED)])
def test_a_quoted_error_is_in_the_source(block: Block, error: str) -> None:
    assert messages.is_said(error.removeprefix("error: ")), f"{block.place}: no message of the code is {error!r}"


OUTPUT_OF = [block for block in BLOCKS if "output of" in block.marks]


@pytest.mark.slow
@pytest.mark.bundled
@pytest.mark.parametrize("block", OUTPUT_OF, ids=lambda block: block.place)
def test_a_quoted_error_is_what_its_command_says(
    block: Block, call: Call, bundled_smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`<!-- output of: run --method ... -->` above it: without data, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(bundled_smollm.parent)
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYLLM_BENCH_DATA", raising=False)
    result = call(*shlex.split(block.marks["output of"]))
    assert result.status == 2 and result.err == block.text, result.err


def test_messages_are_found_with_their_gaps_filled() -> None:
    assert messages.is_said("unknown method 'tinylm'. Did you mean 'tinyllm'? Known: a, b.")
    assert not messages.is_said("unknown method 'tinylm'. Did you mean 'tinyllm'? There are: a, b.")
    changed = {error: error.replace(" ", " not ") for _, error in QUOTED}
    assert not [error for error, other in changed.items() if messages.is_said(other.removeprefix("error: "))]


# --- generated pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [reference_pages.FOLDER / "cli.md", reference_pages.FOLDER / "settings.md"], ids=label)
def test_the_reference_is_what_the_code_says(file: Path) -> None:
    assert file.read_text() == reference_pages.pages()[file], "run `python scripts/reference_pages.py`"


# --- links and the site -----------------------------------------------------------------------------------------------

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HOST = re.compile(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}")


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def headings(page: Path) -> set[str]:
    outside = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slug(found) for found in re.findall(r"^#+ (.+)$", outside, flags=re.MULTILINE)}


def is_well_formed(link: str) -> bool:
    parts = urlsplit(link)
    return parts.scheme == "https" and bool(HOST.fullmatch(parts.hostname or "")) and not parts.username


@pytest.mark.parametrize("page", ON_GITHUB, ids=label)
def test_links_of_files_beside_the_code_resolve(page: Path) -> None:
    wrong = []
    for link in LINK.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)):
        place, _, anchor = link.partition("#")
        target = page if not place else page.parent / unquote(place)
        if "://" in link:
            wrong += [] if is_well_formed(link) else [link]
        elif not target.exists() or (anchor and anchor not in headings(target)):
            wrong.append(link)
    assert wrong == []


class Html(HTMLParser):
    """Of a built page: anchors, links, and what a browser would load by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a":
            self.links += [given["href"]] * ("href" in given)
        elif tag == "link":
            self.loads += [given["href"]] * (given.get("rel") not in ("canonical", "next", "prev"))
        else:
            self.loads += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Html]:
    """The built site, page by page; a warning of the builder is an error."""
    pytest.importorskip("material", reason="needs mkdocs-material: pip install '.[dev]'")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return {file: Html(file.read_text()) for file in sorted(folder.rglob("*.html"))}


@pytest.mark.slow
def test_every_page_of_docs_is_on_the_site(site: Mapping[Path, Html]) -> None:
    assert len(site) == len(list((ROOT / "docs").rglob("*.md"))) + 1  # and the page for what is not there


@pytest.mark.slow
def test_links_of_the_site_resolve(site: Mapping[Path, Html]) -> None:
    wrong = []
    for file, page in site.items():
        for link in page.links if file.name != "404.html" else ():
            place, _, anchor = link.partition("#")
            target = (file.parent / unquote(place)).resolve() if place not in ("", ".") else file
            if urlsplit(link).scheme:
                wrong += [] if is_well_formed(link) else [(file.name, link)]
            elif target not in site or (anchor and unquote(anchor) not in site[target].ids):
                wrong.append((file.name, link))
    assert wrong == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Mapping[Path, Html]) -> None:
    assert [(file.name, one) for file, page in site.items() for one in page.loads if "//" in one] == []
    folder = next(iter(site)).parent
    styles = [file.read_text() for file in folder.rglob("*.css")]
    assert (
        styles
        and [found for text in styles for found in re.findall(r"url\(\W*(?:https?:)?//[^)]*\)|@import[^;]*", text)]
        == []
    )
