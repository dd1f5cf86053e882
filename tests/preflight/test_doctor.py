"""`doctor`: silent on a clean set-up, and every planted problem is found by its own check."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.preflight import doctor_plants as plants
from tests.preflight.doctor_plants import Rows
from tests.tokenizer_pair import numerals
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.preflight.doctor import CHECKS, examine
from tinyllm_bench.preflight.inspection import Finding, Preflight
from tinyllm_bench.testing.tiny_models import bpe_tokenizer, saved, tiny_llama, unigram_tokenizer

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"


@pytest.fixture(scope="module", autouse=True)
def _task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with plants.installed(tmp_path_factory.mktemp("site")):
        yield


@pytest.fixture(scope="module")
def clean_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plants.folder(tmp_path_factory.mktemp("clean"), plants.rows())


def problems(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.severity != "ok"]


def test_a_clean_set_up_has_no_problems(clean_data: Path, tiny_llama_dir: Path) -> None:
    reported: list[str] = []
    cells = plants.cells(clean_data, f"dir:{tiny_llama_dir}")
    findings = examine(Preflight(cells=cells, machine=plants.machine()), report=reported.append)
    assert problems(findings) == []
    assert reported == list(CHECKS)
    silent = {"contexts", "vocabularies", "keys"}  # no passages, no white-box teacher, no API here
    assert {finding.check for finding in findings} == set(CHECKS) - silent


def finding_of(check: str, preflight: Preflight) -> Finding:
    (finding,) = CHECKS[check](preflight)
    return finding


class Planted(NamedTuple):
    """A problem: what spoils the data, the student or the request, and the finding that is expected."""

    check: str
    severity: str
    says: str
    rows: Callable[[Rows], None] | None = None
    student: Callable[[Path], Path] | None = None
    settings: tuple[str, ...] = ()
    method: str = "tinyllm"
    machine: dict[str, Any] = {}
    request: dict[str, Any] = {}


# --- doctored students ------------------------------------------------------------------------------------------------


def student(place: Path, tokenizer: Any, **config: Any) -> Path:
    return saved((tiny_llama(**config)[0], tokenizer), place / "student")


def without_end(place: Path) -> Path:
    tokenizer = bpe_tokenizer()
    tokenizer.eos_token = None
    return student(place, tokenizer)


def end_is_pad(place: Path) -> Path:
    tokenizer = bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return student(place, tokenizer)


def ends_prompts(place: Path) -> Path:
    from tokenizers import processors

    tokenizer = bpe_tokenizer()
    special = [("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=special
    )
    return student(place, tokenizer)


def promises_begin(place: Path) -> Path:
    folder = student(place, bpe_tokenizer())
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "bos_token": "<pad>", "add_bos_token": True}))
    return folder


def another_end(place: Path) -> Path:
    folder = student(place, bpe_tokenizer())
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 7}))
    return folder


def reads_little(place: Path) -> Path:
    return student(place, bpe_tokenizer(), max_position_embeddings=290)


def spells_little(place: Path) -> Path:
    return student(place, unigram_tokenizer())


# --- doctored data ----------------------------------------------------------------------------------------------------


def long_passages(rows: Rows) -> None:
    for number, row in enumerate(rows["train"]):
        row["passage"] = " ".join([f"word{number}"] * (300 if number % 2 else 20))


def braces(rows: Rows) -> None:
    for row in rows["train"]:
        row["question"] = "{" + row["question"] + "}"


def no_second_rationale(rows: Rows) -> None:
    for row in rows["train"][::3]:
        row["second"] = ""


def junk(rows: Rows) -> None:
    for row in rows["train"][::2]:
        row["first"] = f"Question: what else is there to ask about {row['id']}?"


def answer_first(rows: Rows) -> None:
    for row in rows["train"]:
        row["first"] = f"It is {row['answer']} since that follows from what was asked."


def only_answers(rows: Rows) -> None:
    for row in rows["train"][::4]:
        row["first"] = row["answer"]


def repeats_train_questions(rows: Rows) -> None:
    for trained, row in zip(rows["train"], rows["test"][:10], strict=False):
        row.update({key: trained[key] for key in ("question", "choices", "answer")})


def one_passage(rows: Rows) -> None:
    for row in [*rows["train"][:5], *rows["test"][:20]]:
        row["passage"] = "the one passage of all"


def twice(rows: Rows) -> None:
    for first, second in zip(rows["train"][:4], rows["train"][4:8], strict=True):
        second.update({key: first[key] for key in ("question", "choices", "answer")})
    rows["train"][4]["answer"] = rows["train"][4]["choices"][2]


def mostly_first(rows: Rows) -> None:
    for row in (row for split in rows.values() for row in split if row["id"] % 4):
        row["answer"] = row["choices"][0]


def other_in_test(rows: Rows) -> None:
    for row in rows["test"]:
        row["answer"] = row["choices"][2]


API = "teachers=['api:https://example.invalid/v1#writer']"
PLANTED = {
    "no end token": Planted("models", "error", "no end-of-text token", student=without_end),
    "a hub model without the hub": Planted(
        "models", "error", "HF_HUB_OFFLINE is set", settings=("student.model=hf:nobody/nothing",)
    ),
    "end token pads": Planted("special_tokens", "note", "is its pad token too", student=end_is_pad),
    "prompts end": Planted("special_tokens", "error", "ends every text with '<eos>'", student=ends_prompts),
    "no begin token": Planted("special_tokens", "warning", "adds no '<pad>'", student=promises_begin),
    "two end tokens": Planted("special_tokens", "note", "with id [7], its tokenizer with 1", student=another_end),
    "no chat template": Planted(
        "special_tokens", "error", "eval.chat_template", settings=("eval.chat_template=always",)
    ),
    "unknown characters": Planted("spelling", "warning", "does not know", rows=braces, student=spells_little),
    "passages cut": Planted("contexts", "warning", "30 of 60 (50 %) passages", rows=long_passages),
    "prompts too long": Planted("prompts", "error", "training prompts are longer than the 34", student=reads_little),
    "prompts cut": Planted(
        "prompts", "warning", "cut after 20 tokens", settings=("data.cut_tokens=20", "eval.mode=generate")
    ),
    "targets cut": Planted("targets", "warning", "train.max_target_tokens", settings=("train.max_target_tokens=16",)),
    "answers cut": Planted(
        "targets", "warning", "eval.max_new_tokens", settings=("eval.mode=generate", "eval.max_new_tokens=2")
    ),
    "texts missing": Planted("texts", "warning", "20 of 60 (33.3 %) training questions", rows=no_second_rationale),
    "texts to be written": Planted("texts", "note", "60 of 60 (100 %)", settings=(API,)),
    "junk": Planted("junk", "warning", "30 of 60 (50 %) rationales are rejected: prompt_junk 30", rows=junk),
    "answers leak": Planted("leakage", "warning", "100 % of 60 rationales name the answer", rows=answer_first),
    "bare answers": Planted("leakage", "warning", "15 of 60 (25 %) rationales are nothing but", rows=only_answers),
    "test in train": Planted(
        "overlaps", "warning", "10 of 200 (5 %) questions are in train", rows=repeats_train_questions
    ),
    "passages in train": Planted("overlaps", "warning", "20 of 200 (10 %) questions have a passage", rows=one_passage),
    "duplicates": Planted("duplicates", "warning", "4 of 60 (6.67 %) training questions", rows=twice),
    "contradictions": Planted("duplicates", "warning", "1 training questions occur twice with dif", rows=twice),
    "one answer": Planted("balance", "warning", "chance is 33.3 %", rows=mostly_first),
    "splits differ": Planted("balance", "warning", "for the same distribution", rows=other_in_test),
    "no whole step": Planted(
        "budget", "warning", "overshoots", settings=("budget={student_tokens: 50, epochs: null}",)
    ),
    "no whole epoch": Planted("budget", "warning", "0.3 epochs", settings=("budget.epochs=0.3",)),
    "nothing left": Planted(
        "budget",
        "error",
        "after student.init",
        settings=("budget={student_tokens: 9000, epochs: null}", "student.init={method: finetune, epochs: 9}"),
    ),
    "few steps on samples": Planted(
        "budget",
        "warning",
        "below 100 steps on sampled texts",
        settings=("teacher.model=dir:{teacher}", "student.init=null", "budget.epochs=20"),
        method="minillm",
    ),
    "few test questions": Planted("power", "warning", "30 test questions and 3 seeds", settings=("eval.limit=30",)),
    "one seed": Planted("seeds", "note", "1 seed for 1 row", request={"seeds": 1}),
    "one seed of two rows": Planted(
        "seeds", "warning", "1 seed for 2 rows", request={"seeds": 1, "methods": ("finetune", "tinyllm")}
    ),
    "little memory": Planted("memory", "error", "1 MB free", machine={"free_memory": 2**20}),
    "little disk": Planted("disk", "error", "runs folder", machine={"free_disk": lambda folder: 2**20}),
    "no GPU": Planted("backends", "error", "needs a GPU", settings=("backend.device=cuda",)),
    "no vLLM": Planted(
        "backends",
        "error",
        "vLLM is missing",
        settings=("annotations.engine=vllm", "teachers=['dir:{teacher}']"),
        machine={"engines": {"hf": None, "vllm": "vLLM is missing", "sandbox": None}},
    ),
    "old transformers": Planted(
        "versions", "warning", "4.57.1 is installed", machine={"packages": {"transformers": "4.57.1"}}
    ),
    "torchvision of another build": Planted(
        "versions", "error", "CUDA build", machine={"packages": {"torch": "2.13.0+cpu", "torchvision": "0.24.0"}}
    ),
    "no key": Planted("keys", "warning", "no key is set", settings=(API,)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_problem_is_found(name: str, clean_data: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    problem, data = PLANTED[name], clean_data
    if problem.rows is not None:
        rows = plants.rows()
        problem.rows(rows)
        data = plants.folder(tmp_path / "data", rows)
    model = tiny_llama_dir if problem.student is None else problem.student(tmp_path)
    settings = [text.replace("{teacher}", str(tiny_llama_dir)) for text in problem.settings]
    cells = plants.cells(data, f"dir:{model}", *settings, method=problem.method, **problem.request)
    findings = examine(Preflight(cells=cells, machine=plants.machine(**problem.machine)))
    expected = [finding for finding in findings if finding.check == problem.check and problem.says in finding.text]
    assert [finding.severity for finding in expected][:1] == [problem.severity], problems(findings)
    assert all(finding.fix for finding in expected if finding.severity != "ok")


def test_a_preset_that_changes_a_method_s_own_value_is_a_warning(
    clean_data: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "method: {}\ndata: {train_limit: 40}\ntrain: {warmup: 0.1}\n"
    monkeypatch.setattr("tinyllm_bench.experiment.request.method_defaults", lambda name: text)
    monkeypatch.setattr("tinyllm_bench.preflight.doctor.method_defaults", lambda name: text)

    def own_settings(*settings: str) -> Finding:
        cells = plants.cells(clean_data, f"dir:{tiny_llama_dir}", *settings, method="finetune")
        return finding_of("own_settings", Preflight(cells=cells, machine=plants.machine()))

    finding = own_settings()
    assert finding.severity == "warning" and "train_limit=500 by preset cpu, finetune.yaml has 40" in finding.measured
    assert "data.train_limit=40" in finding.fix and "warmup" not in finding.text
    assert own_settings("data.train_limit=60").severity == "ok", "the user's own setting is no surprise"


def test_a_teacher_with_another_vocabulary_is_a_warning(clean_data: Path, tmp_path: Path) -> None:
    teacher = saved((tiny_llama()[0], unigram_tokenizer()), tmp_path / "teacher")
    settings = (f"teacher.model=dir:{teacher}", "teacher.init=null", "method.kd.cross_tokenizer=uld")
    own = saved((tiny_llama(vocab_size=2048)[0], numerals()), tmp_path / "student")
    cells = plants.cells(clean_data, f"dir:{own}", *settings, method="kd")
    finding = finding_of("vocabularies", Preflight(cells=cells, machine=plants.machine()))
    assert finding.severity == "warning" and "smaller vocabulary's entries" in finding.measured


def test_a_teacher_that_the_method_cannot_use_is_an_error(
    clean_data: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """Planning compares local models only; here a tokenizer changes after it, as that of a hub model would arrive."""
    teacher = saved((tiny_llama(seed=1)[0], bpe_tokenizer()), tmp_path / "teacher")
    settings = (f"teacher.model=dir:{teacher}", "teacher.init=null")
    cells = plants.cells(clean_data, f"dir:{tiny_llama_dir}", *settings, method="kd")
    unigram_tokenizer().save_pretrained(teacher)
    finding = finding_of("vocabularies", Preflight(cells=cells, machine=plants.machine()))
    assert finding.severity == "error" and "token by token" in finding.measured


def test_changed_data_of_a_known_task_are_refused_before_any_check(tmp_path: Path, tiny_llama_dir: Path) -> None:
    rows = plants.rows()
    (tmp_path / "arc").mkdir()
    for split, size in {"train": 1117, "valid": 295, "test": 1165}.items():
        split_rows = [{**rows["train"][n % 60], "id": n} for n in range(size)]
        (tmp_path / "arc" / f"arc_{split}.json").write_text(json.dumps(split_rows))
    with pytest.raises(UserError, match="the text was changed"):
        plants.cells(tmp_path, f"dir:{tiny_llama_dir}", tasks=("arc",), method="finetune")


def test_a_local_server_needs_no_key(clean_data: Path, tiny_llama_dir: Path) -> None:
    spec = "teachers=['api:http://localhost:8000/v1#writer']"
    cells = plants.cells(clean_data, f"dir:{tiny_llama_dir}", spec)
    finding = finding_of("keys", Preflight(cells=cells, machine=plants.machine()))
    assert finding.severity == "ok"


def test_a_key_is_never_shown(clean_data: Path, tiny_llama_dir: Path) -> None:
    cells = plants.cells(clean_data, f"dir:{tiny_llama_dir}", API)
    findings = examine(Preflight(cells=cells, machine=plants.machine(environment={"OPENAI_API_KEY": "sk-secret"})))
    (finding,) = [finding for finding in findings if finding.check == "keys"]
    assert (finding.severity, finding.measured) == ("ok", "OPENAI_API_KEY is set")
    assert "sk-secret" not in json.dumps([finding.text for finding in findings])


def test_every_check_has_its_paragraph() -> None:
    parts = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    sections = {part.partition("\n")[0].strip("` "): part for part in parts}
    assert [name for name in sections if name in CHECKS] == list(CHECKS)
    for name in CHECKS:
        assert all(f"**{word}**" in sections[name] for word in ("Why", "Measures", "Threshold", "Fix")), name
    planted = {problem.check for problem in PLANTED.values()}
    assert planted | {"vocabularies", "digests", "own_settings"} == set(CHECKS), "each check has a planted problem"
