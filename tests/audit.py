"""Ask for known vulnerabilities of what is installed: ``make audit``.

pip-audit succeeds where its database does not answer, and calls each package one that it does not
know. Here that is a result of its own, so that nobody takes it for a clean one:

====  ==============================================================================================
0     all was looked up, and nothing is known of it
1     something is vulnerable
3     something could not be looked up, so nothing is said about it
====  ==============================================================================================
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3
COMMAND = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--format=json"]
EXPECTED = "marked as editable"
"""What pip-audit says of a checkout."""


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """What follows from pip-audit's report.

    :returns: one of the statuses above, and lines that say why.
    """
    found: list[str] = []
    skipped: list[str] = []
    asked = 0
    for each in report["dependencies"]:
        name = f"{each['name']} {each.get('version', '')}".rstrip()
        reason = each.get("skip_reason", "")
        if reason and EXPECTED not in reason:
            skipped.append(f"{each['name']}: {reason}")
        elif not reason:
            asked += 1
        found += [
            f"{name} has {vulnerability['id']}; mended in "
            f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
            for vulnerability in each.get("vulns", ())
        ]
    if found:
        return VULNERABLE, [f"vulnerable: {len(found)} of {asked + len(skipped)}", *found]
    if skipped:
        return UNKNOWN, [
            f"NOT audited: {len(skipped)} of {asked + len(skipped)} packages, for the database "
            "does not know them or was not reached",
            skipped[0],
        ]
    return CLEAN, [f"audited: {asked} packages, no known vulnerabilities"]


def main(arguments: list[str]) -> int:
    """Run pip-audit.

    :param arguments: ``--reached-or-not`` to go on where the database was not reached.
    """
    ran = subprocess.run(COMMAND, capture_output=True, text=True, timeout=300, check=False)
    try:
        status, lines = verdict(json.loads(ran.stdout))
    except ValueError:
        last = ran.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        status, lines = UNKNOWN, ["NOT audited: pip-audit had no answer", *last]
    print(*lines, sep="\n  ", flush=True)
    return CLEAN if status == UNKNOWN and "--reached-or-not" in arguments else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
