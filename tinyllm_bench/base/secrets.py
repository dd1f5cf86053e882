"""Keys and passwords in user input: detected before anything is stored, and never shown.

API keys are read from the environment. In an address a key would reach the configuration of a run, its record and
messages.
"""

import re
from urllib.parse import unquote

SECRET_REFUSED = (
    "holds a user, password, key or query, which would be written into the run's files; write the bare address, as in"
    " api:https://HOST/v1#MODEL, and put the key into the environment variable TINYLLM_BENCH_API_KEY"
)
_NAMES = r"(?:[\w-]*(?:key|token|secret|passw(?:or)?d|pwd|signature|credentials?)|auth|authorization|sig)"
_SECRET = re.compile(
    "|".join(
        (
            r"://[^\s#]*@",  # a user in front of the host, also where the password holds a slash
            r"://[^\s/#?@\[]*:(?=[^\d/#?\s'\",)\]])",  # user:password cut at a # in the password: not a port
            r"\bapi:[^\s#]*[?@]",  # neither belongs to the address of an API
            r"\bapi:[^\s#]*#\S*[?=&]",  # nor these to a model's name
            rf"[?&;#]{_NAMES}=[^\s&]",
            # the forms of keys of OpenAI and others, Hugging Face, GitHub, Google, Slack and AWS
            r"\b[spr]k-(?=\S*\d)(?=\S*(?-i:[A-Z]))[\w-]{20,}|\bhf_[a-z0-9]{30,}|\bgh[opsur]_\w{30,}|\bAIza[\w-]{30,}"
            r"|\bxox[abprs]-[\w-]{10,}|(?-i:\bAKIA[0-9A-Z]{16}\b)",
        )
    ),
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?:\b[a-z][a-z0-9+.-]*:(?=//)(?://)?|\bapi:)\S*", re.IGNORECASE)
_MAX_ENCODINGS = 3  # layers of percent-encoding that are decoded for the search


def holds_secret(text: str) -> bool:
    """Whether a text has an address with a user, a password or a key, or a key in the form of a known provider."""
    for _ in range(_MAX_ENCODINGS + 1):
        if _SECRET.search(text):
            return True
        decoded = unquote(text)
        if decoded == text:
            return False
        text = decoded
    return False


def redacted(text: str) -> str:
    """The text with `***` in place of every key, and of every address that `holds_secret`, after its scheme."""
    if not holds_secret(text):
        return text

    def scheme_alone(address: re.Match[str]) -> str:
        if not holds_secret(address[0]):
            return address[0]
        scheme = re.match(r"[^:]*:(?://)?", address[0])
        return f"{scheme[0] if scheme else ''}***"

    text = _ADDRESS.sub(scheme_alone, text)
    return " ".join("***" if holds_secret(word) else word for word in text.split(" ")) if holds_secret(text) else text
