#!/usr/bin/env python3
"""Draws docs/img/demo.svg: the demo model answering in a terminal, from what the program really prints.

    tools/terminal_picture.py [--binary build/cpu/moebius] [--output docs/img/demo.svg] [COMMAND ...]

Every COMMAND is a shell line in which `moebius` is the binary. It runs on a pseudo-terminal; of the escape
sequences that it prints, faint text and colour off are understood. Needs nothing but Python.
"""

import argparse
import fcntl
import os
import pathlib
import pty
import re
import struct
import tempfile
import termios
import unicodedata
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = [
    'moebius run models/demo -p "What is 47 + 35?" --greedy',
    'moebius run models/demo -p "How many letters r are in strawberry?" --no-think --greedy',
    'moebius run models/demo -p "Tell me a short story." --no-think --seed 3',
]

COLUMNS = 108
CELL_WIDTH, LINE_HEIGHT, FONT_SIZE = 8.4, 20, 14
PADDING, TITLE_HEIGHT = 18, 34
BACKGROUND, BORDER, TITLE_BAR = "#16181d", "#2c313a", "#20242c"
COLOURS = {"text": "#d7dae0", "faint": "#868e9c", "prompt": "#8cc265", "command": "#ffffff", "title": "#9aa2b1"}
BUTTONS = ["#e06c75", "#e5c07b", "#98c379"]


def run_on_terminal(command, binary):
    """What a shell line prints on a terminal of COLUMNS columns."""
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(binary, os.path.join(folder, "moebius"))
        pid, terminal = pty.fork()
        if pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
            os.chdir(ROOT)
            os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
            os.execvp("sh", ["sh", "-c", command])
        output = b""
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the end of a terminal
                break
            if not data:
                break
            output += data
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(terminal)
    if status != 0:
        raise SystemExit(f"{command}: exit status {status}\n{output.decode(errors='replace')}")
    return output.decode()


def columns_of(character):
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def lay_out(text, style):
    """Lines of (style, text) spans, wrapped at COLUMNS; `style` is the style of text that is not faint."""
    lines, line, width, faint = [], [], 0, False
    for part in re.split(r"(\033\[\d*m|\r?\n)", text):
        if part.startswith("\033["):
            faint = part == "\033[2m"
        elif part.endswith("\n"):
            lines.append(line)
            line, width = [], 0
        else:
            for character in part:
                if width + columns_of(character) > COLUMNS:
                    lines.append(line)
                    line, width = [], 0
                name = "faint" if faint else style
                if line and line[-1][0] == name:
                    line[-1] = (name, line[-1][1] + character)
                else:
                    line.append((name, character))
                width += columns_of(character)
    return lines + [line] if line else lines


def session(commands, binary):
    lines = []
    for command in commands:
        if lines:
            lines.append([])
        first, *rest = lay_out("  " + command, "command")
        lines += [[("prompt", "$ "), (first[0][0], first[0][1][2:])], *rest]
        lines += lay_out(run_on_terminal(command, binary), "text")
    return lines


def draw(lines):
    width = round(COLUMNS * CELL_WIDTH + 2 * PADDING)
    height = TITLE_HEIGHT + 2 * PADDING + LINE_HEIGHT * len(lines) - (LINE_HEIGHT - FONT_SIZE)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        "<title>moebius answering in a terminal</title>",
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="9" fill="{BACKGROUND}" stroke="{BORDER}"/>',
        f'<path d="M1 {TITLE_HEIGHT}V9.5a8.5 8.5 0 0 1 8.5-8.5H{width - 9.5}a8.5 8.5 0 0 1 8.5 8.5V{TITLE_HEIGHT}z" '
        f'fill="{TITLE_BAR}"/>',
    ]
    for i, colour in enumerate(BUTTONS):
        svg.append(f'<circle cx="{20 + 20 * i}" cy="{TITLE_HEIGHT / 2:g}" r="6" fill="{colour}"/>')
    font = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
    svg.append(f'<g font-family="{font}" font-size="{FONT_SIZE}" xml:space="preserve">')
    svg.append(
        f'<text x="{width / 2:g}" y="{TITLE_HEIGHT / 2 + 5:g}" text-anchor="middle" font-size="13" '
        f'fill="{COLOURS["title"]}">moebius</text>'
    )
    for i, line in enumerate(lines):
        column, y = 0, TITLE_HEIGHT + PADDING + FONT_SIZE - 2 + i * LINE_HEIGHT
        for style, text in line:
            length = sum(map(columns_of, text))
            if text.strip():
                svg.append(
                    f'<text x="{PADDING + column * CELL_WIDTH:g}" y="{y}" fill="{COLOURS[style]}" '
                    f'textLength="{length * CELL_WIDTH:g}">{escape(text)}</text>'
                )
            column += length
    return "\n".join(svg + ["</g>", "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=os.environ.get("MOEBIUS_BIN", ROOT / "build/cpu/moebius"))
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs/img/demo.svg")
    parser.add_argument("commands", nargs="*", metavar="COMMAND")
    options = parser.parse_args()
    binary = pathlib.Path(options.binary).resolve(strict=True)
    options.output.write_text(draw(session(options.commands or COMMANDS, binary)))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
