"""The pictures of the documentation: each is shown, small, and drawn by a script."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from conftest import ROOT

FOLDER = ROOT / "docs" / "img"


def test_every_picture_is_shown_and_small_and_has_its_script():
    shown = set()
    for page in (ROOT / "docs").rglob("*.md"):
        for alternative, link in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert alternative, f"{page.name}: {link} has no text for who cannot see it"
                shown.add((page.parent / link).resolve())
    assert shown == {path.resolve() for path in FOLDER.iterdir()}
    script = (ROOT / "scripts" / "pictures.py").read_text(encoding="utf-8")
    for path in shown:
        assert f'"{path.name}"' in script
        assert path.stat().st_size < 40_000
        assert ET.fromstring(path.read_bytes()).tag.endswith("svg")
