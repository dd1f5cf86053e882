import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.secrets import redacted
from tinyllm_bench.models.specs import ModelSpec, parse_spec, without_adapter

GOOD = [
    ("hf:google/flan-t5-small", ("hf", "google/flan-t5-small", None, None, None)),
    ("hf:google/flan-t5-small@0fc9ddf", ("hf", "google/flan-t5-small", "0fc9ddf", None, None)),
    ("hf:gpt2@main?layers=0:12:3", ("hf", "gpt2", "main", (0, 12, 3), None)),
    ("dir:students/a b@2#x", ("dir", "students/a b@2#x", None, None, None)),
    ("dir:/models/llama?layers=2:8:2", ("dir", "/models/llama", None, (2, 8, 2), None)),
    ("gguf:files/x.gguf", ("gguf", "files/x.gguf", None, None, None)),
    ("bundled:smollm2-135m?layers=0:30:3", ("bundled", "smollm2-135m", None, (0, 30, 3), None)),
    ("run:4f1c09", ("run", "4f1c09", None, None, None)),
]
TEACHERS = [
    ("api:https://host:8000/v1/a=b#some/model@c", ("api", "https://host:8000/v1/a=b", None, None, "some/model@c")),
    ("replay:release#flan-t5-xl", ("replay", "release", None, None, "flan-t5-xl")),
    ("replay:folder/rationales", ("replay", "folder/rationales", None, None, None)),
]


ADAPTED = [
    ("hf:a/b@main?adapter=lora/x@2", (None, "lora/x@2")),
    ("dir:students/a?adapter=/srv/a b/lora", (None, "/srv/a b/lora")),
    ("gguf:x.gguf?adapter=~/lora=1#2", (None, "~/lora=1#2")),
    ("bundled:smollm2-135m?layers=0:30:3&adapter=lora", ((0, 30, 3), "lora")),
    ("run:4f1c09?adapter=../lora", (None, "../lora")),
]


def parts(spec: ModelSpec) -> tuple:
    return (spec.kind, spec.location, spec.revision, spec.layers, spec.fragment)


@pytest.mark.parametrize(("text", "expected"), GOOD + TEACHERS)
def test_a_spec_is_read_and_its_text_round_trips(text, expected):
    spec = parse_spec(text, role="teacher")
    assert parts(spec) == expected
    assert spec.text == text
    assert parse_spec(spec.text, role="teacher") == spec


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_a_student_may_be_anything_with_weights(text, expected):
    assert parts(parse_spec(text, role="student")) == expected


@pytest.mark.parametrize("text", [text for text, _ in TEACHERS])
def test_a_student_without_weights_is_refused(text):
    with pytest.raises(UserError, match="can only be a teacher"):
        parse_spec(text, role="student")


def test_two_spellings_have_one_canonical_text():
    spec = parse_spec(" bundled:smollm2-135m?layers=0:30 ", role="student")
    assert spec.text == "bundled:smollm2-135m?layers=0:30:1"
    assert parse_spec(spec.text, role="student") == spec


@pytest.mark.parametrize(("text", "expected"), ADAPTED)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_may_name_an_adapter(text, expected, role):
    spec = parse_spec(text, role=role)
    assert ((spec.layers, spec.adapter), spec.text) == (expected, text)
    assert parse_spec(spec.text, role=role) == spec
    bare = without_adapter(spec)
    assert bare == parse_spec(bare.text, role=role) and bare.adapter is None and "adapter" not in bare.text
    assert parts(bare) == parts(spec)


def test_options_have_one_order():
    spec = parse_spec("bundled:smollm2-135m?adapter=lora&layers=0:30:3", role="student")
    assert spec.text == "bundled:smollm2-135m?layers=0:30:3&adapter=lora"
    assert parse_spec(spec.text, role="student") == spec


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(UserError, match=r"'bundeld'.*Did you mean 'bundled'\?.*hf:NAME"):
        parse_spec("bundeld:smollm2-135m", role="student")


def test_a_bare_folder_suggests_dir(tmp_path):
    with pytest.raises(UserError, match=f"write dir:{tmp_path}"):
        parse_spec(str(tmp_path), role="student")


def test_a_bare_hub_name_suggests_hf_and_a_bare_file_gguf():
    with pytest.raises(UserError, match="write hf:google/flan-t5-small"):
        parse_spec("google/flan-t5-small", role="student")
    with pytest.raises(UserError, match=r"write gguf:x\.gguf"):
        parse_spec("x.gguf", role="student")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no kind"),
        ("smollm", "bundled:smollm2-135m"),
        ("hf:", "nothing after 'hf:'"),
        ("dir:", "nothing after 'dir:'"),
        ("hf:a/b/c", "not a hub name"),
        ("hf:a/b@", "nothing after '@'"),
        ("bundled:a/b", "is not a name"),
        ("dir:x?layrs=0:3", "unknown option 'layrs'"),
        ("dir:x?layers=", "not START:STOP:STEP"),
        ("dir:x?layers=::2", "not START:STOP:STEP"),
        ("dir:x?layers=-1:3", "not START:STOP:STEP"),
        ("dir:x?layers=0:3:0", "step .* at least 1"),
        ("dir:x?layers=3:3:1", "keeps no layer"),
        ("dir:x?adapter=", "nothing after 'adapter='"),
        ("dir:x?adapter", "nothing after 'adapter='"),
        ("dir:x?adapter=a&adapter=b", "option 'adapter' is given twice"),
        ("dir:x?layers=0:2&layers=0:3", "option 'layers' is given twice"),
        ("dir:x?adapter=a&b", "unknown option 'b'; allowed: .*adapter=FOLDER.*must not contain"),
        ("dir:x?adapter=a?b", "unknown option 'b'"),
        ("api:host#m", "not an http:// or https://"),
        ("api:http://#m", "not a complete address"),
        ("api:http://:80/v1#m", "not a complete address"),
        ("api:http://h:99999/v1#m", "not a complete address"),
        ("api:http://h:0/v1#m", "not a complete address"),
        ("api:http://[::1/v1#m", "not a complete address"),
        ("api:http://a b/v1#m", "not a complete address"),
        ("api:http://h\x1b[31m/v1#m", "not a complete address"),
        ("api:https://host/v1", "#MODEL"),
        ("replay:release#", "nothing after '#'"),
    ],
)
def test_a_malformed_spec_is_one_readable_line(text, message):
    with pytest.raises(UserError, match=message) as refused:
        parse_spec(text, role="teacher")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["api:", "API:", "mine=api:", "replay:", ""])
@pytest.mark.parametrize(
    "address",
    [
        "https://me:hidden@example.org/v1#big",
        "HTTPS://me:hidden@example.org/v1#big",
        "https://hidden@example.org/v1#big",
        "https://me:hid/hidden@example.org/v1#big",
        "https://me:hid?hidden@example.org/v1#big",
        "https://me:hidden#x@example.org/v1#big",
        "https%3A%2F%2Fme%3Ahidden%40example.org/v1#big",
        "https://me%3Ahidden%40example.org/v1#big",
        "https://me%253Ahidden%2540example.org/v1#big",
        "https://example.org/v1?key=hidden#big",
        "https://example.org/v1?API-Key=hidden#big",
        "https://example.org/v1?a=b&access_token=hidden#big",
        "https://example.org/v1%3Fkey%3Dhidden#big",
        "https://example.org/v1#big?api_key=hidden",
        "https://example.org/v1#token=hidden",
    ],
)
def test_a_key_in_an_address_is_refused_and_not_repeated(kind: str, address: str) -> None:
    for role in ("teacher", "student"):
        with pytest.raises(UserError) as refused:
            parse_spec(kind + address, role=role)  # type: ignore[arg-type]
        assert "hidden" not in str(refused.value) and "TINYLLM_BENCH_API_KEY" in str(refused.value)


@pytest.mark.parametrize("spec", ["api:me:hidden@example.org/v1#big", "api:https://h/v1?hidden#m", "api://hidden@h#m"])
def test_neither_a_user_nor_a_query_belongs_to_an_api(spec: str) -> None:
    with pytest.raises(UserError, match="TINYLLM_BENCH_API_KEY") as refused:
        parse_spec(spec, role="teacher")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "spec",
    [
        "api:http://localhost:8000/v1#org/model:tag",
        "api:https://host/v1#claude@20240229",
        "api:http://[::1]:8000/v1#m",
        "api:HTTP://10.0.0.1:80/v1/#gpt-4o",
        "hf:owner/name@main?layers=0:30:3",
        "dir:/a b/c@d/x=y?adapter=/e/token.d",
        "replay:/some/place@home#key",
    ],
)
def test_what_holds_no_key_is_no_secret(spec: str) -> None:
    assert parse_spec(spec, role="teacher").text == spec and redacted(spec) == spec
