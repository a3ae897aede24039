#!/usr/bin/env python3
"""
Appends result rows that benchmarks have written with --output on a GPU machine to bench/results/<card>/<bench>.jsonl.

    python tools/keep_rows.py rows.jsonl [more.jsonl] [--only decode prefill]

A row that its file has already is left out. A row must name its commit, so that a figure can be measured again: a
program that was built outside of a git checkout says "unknown". Then run tools/performance.py and bench/plot.py.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAKER = "NVIDIA "


def target(row):
    """The file of a row: results/h100-80gb-hbm3/decode.jsonl."""
    return ROOT / "bench" / "results" / row["card"].removeprefix(MAKER).lower().replace(" ", "-") / f"{row['bench']}.jsonl"


def read_rows(path):
    """(the line, the row) of each; ends with a sentence when one cannot be kept."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            bench, card, commit = row["bench"], row["card"], row["commit"]
        except ValueError as error:
            sys.exit(f"{path}:{number}: not JSON: {error}")
        except (KeyError, TypeError) as error:
            sys.exit(f"{path}:{number}: not a row of a benchmark: it lacks {error}")
        if not card.startswith(MAKER):
            sys.exit(f"{path}:{number}: the {bench} row is of {card}, which is no GPU: put it into a folder by hand")
        if commit in ("", "unknown") or commit.endswith("-dirty"):
            sys.exit(f"{path}:{number}: the {bench} row's commit is {commit!r}: build from a commit and measure again")
        yield line, row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=pathlib.Path, help="files of --output")
    parser.add_argument("--only", nargs="+", metavar="BENCH", help="rows of these benches, and no others")
    given = parser.parse_args()
    found = {}  # file -> lines
    for path in given.rows:
        for line, row in read_rows(path):
            if given.only is None or row["bench"] in given.only:
                found.setdefault(target(row), []).append(line)
    for path, lines in found.items():
        had = path.read_text().splitlines() if path.exists() else []
        new = [line for line in dict.fromkeys(lines) if line not in had]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.writelines(line + "\n" for line in new)
        print(f"{path.relative_to(ROOT)}: {len(new)} new of {len(lines)}")


if __name__ == "__main__":
    main()
