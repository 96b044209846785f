"""A type of the core has a name of its own, so that a search for the name finds its definition."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
# An indented `type` is an associated type: its trait names it.
DEFINITION = re.compile(
    r"^(?:pub(?:\([^)]*\))? )?type (\w+)|^\s*(?:pub(?:\([^)]*\))? )?(?:unsafe )?(?:struct|enum|union|trait) (\w+)",
    re.MULTILINE,
)


def defined(text: str) -> list[str]:
    """Names of the types that a file defines. Tests are left out."""
    text = re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]
    text = re.sub(r"//[^\n]*", "", text)
    return [alias or name for alias, name in DEFINITION.findall(text)]


def test_each_name_is_one_type() -> None:
    files = defaultdict(list)
    for file in SOURCE.rglob("*.rs"):
        path = file.relative_to(SOURCE)
        if "tests" not in path.with_suffix("").parts and not re.search(r"_tests$|^tests_", path.stem):
            for name in defined(file.read_text(encoding="utf-8")):
                files[name].append(str(path))
    assert len(files) > 300
    assert not {name: sorted(found) for name, found in files.items() if len(found) > 1}


def test_comments_fit_in_their_lines() -> None:
    """Formatters leave comments as they are. Drawings and tables may be wider."""
    long = []
    for file in SOURCE.rglob("*.rs"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            drawing = re.match(r"\s*//[/!]? ?\|", line) or any(sign in line for sign in "│─")
            if len(line) > 130 and re.match(r"\s*//", line) and not drawing:
                long.append(f"{file.relative_to(SOURCE)}:{number}")
    assert not long


def test_definitions_are_found() -> None:
    text = """
pub(crate) struct Text<'a>(&'a str); // struct Comment
unsafe trait Lanes {
    type V;
}
pub type Result<T> = std::result::Result<T, Error>;
mod sealed {
    pub trait Sealed {}
}
#[cfg(test)]
mod tests {
    struct Fake;
}
"""
    assert defined(text) == ["Text", "Lanes", "Result", "Sealed"]
