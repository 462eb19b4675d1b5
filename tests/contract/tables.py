"""The tables of docs/behaviour.md that the code knows by heart: settings and metrics.

    python -m tests.contract.tables --write

writes them into the page; without `--write` it says whether they are there as they should be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from service.config import settings
from service.metrics import Metrics
from service.setting import Setting

PAGE = Path(__file__).parents[2] / "docs" / "behaviour.md"
LABELS = {
    "dragoman_requests": "code",
    "dragoman_segments": "finish_reason",
    "dragoman_wasted_steps": "reason",
    "dragoman_failed_reloads": "what",
    "dragoman_rejections": "reason",
    "dragoman_waiting_by_priority": "priority",
    "dragoman_model_info": "model, digest, precision, provider",
    "dragoman_same_bytes_probe": "model",
}
"""Labels by metric: a family without samples does not tell them."""


def shown(setting: Setting) -> str:
    """A default as the page writes it."""
    if isinstance(setting.default, (bool, str)):
        return json.dumps(setting.default)
    return f"{setting.default:g}" if isinstance(setting.default, float) else str(setting.default)


def settings_rows() -> list[list[str]]:
    """Table, name, default and meaning of each setting."""
    return [[setting.section, f"`{name}`", f"`{shown(setting)}`", setting.help] for name, setting in settings().items()]


def metrics_rows() -> list[list[str]]:
    """Name, type, labels and meaning of each metric."""
    return [
        [
            f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
            family.type,
            LABELS.get(family.name, ""),
            family.documentation,
        ]
        for family in Metrics().registry.collect()
        if family.name.startswith("dragoman_")
    ]


def rewritten(page: str) -> str:
    """The page with both tables as the code has them."""
    for first_heading, rows in (("table", settings_rows()), ("metric", metrics_rows())):
        lines = page.splitlines()
        start = 2 + next(i for i, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
        stop = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
        lines[start:stop] = [f"| {' | '.join(row)} |" for row in rows]
        page = "\n".join(lines) + "\n"
    return page


def main(arguments: list[str]) -> int:
    """Writes the page, or says whether it is as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    wanted = rewritten(page)
    if arguments == ["--write"]:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    return int(page != wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
