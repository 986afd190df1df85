"""Every command of the guides is run, in order, against a real gateway, and prints what they show.

A guide's `sh` and `python` blocks run as one shell session in the gateway's own directory, as its
reader would run them. A `text` block shows what the block before it prints; `...` stands for what
differs from run to run. `KEY` is the demo account's, as the start prints it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from llm_gateway.credentials import read_credentials
from tests.support.gateway import KEPT, LLM_GATEWAY, REPOSITORY, free_port, until
from tests.support.rawhttp import RawClient, request

GUIDES: Final = REPOSITORY / "docs" / "guides"
TESTED: Final = ("quickstart", "sdk", "store", "admin")
ADDRESS: Final = "127.0.0.1:8080"
RUN: Final = ("sh", "python")
SHOWN: Final = "text"

# The first line of a block that is not run, and why.
NOT_RUN: Final = {
    "git clone <this repository> && cd llm-gateway": "installs; the test starts the gateway itself",
    'export PATH="$PWD/.venv/bin:$PATH"': "the key is another in each run; the test sets both",
    "OPENAI_API_KEY=sk-... make run": "needs somebody's key of a provider",
}

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a guide; `shown`: what the guide says that it prints."""

    language: str
    text: str
    line: int
    shown: str | None = None

    @property
    def runs(self) -> bool:
        return self.language in RUN and self.text.partition("\n")[0] not in NOT_RUN


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        language, body = match[1], match[2]
        line = text.count("\n", 0, match.start()) + 1
        if language == SHOWN:
            before = found.pop()
            assert before.runs, f"line {line}: this is shown of a block that is not run"
            assert before.shown is None, f"line {line}: what is printed is shown twice"
            found.append(Block(before.language, before.text, before.line, body))
        else:
            found.append(Block(language, body, line))
    return found


def guide(name: str) -> str:
    return (GUIDES / f"{name}.md").read_text()


def matches(shown: str, printed: str) -> bool:
    """Whether it was printed as shown; a line `...` is any number of lines."""
    pattern = ""
    for line in shown.splitlines():
        if line == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r".*".join(re.escape(part) for part in line.split("...")) + r"\n"
    return re.fullmatch(pattern, printed.removesuffix("\n") + "\n") is not None


@dataclass(frozen=True)
class Gateway:
    """A gateway as a newcomer starts it: no file, no setting but its port."""

    folder: Path
    port: int
    key: str


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Gateway]:
    port = free_port()
    log = tmp_path / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*LLM_GATEWAY, "serve", "--port", str(port)],
            cwd=tmp_path,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: _ready(process, port, log), "the gateway to get ready")
        credentials = read_credentials(tmp_path / ".data")
        assert credentials is not None
        yield Gateway(tmp_path, port, credentials.demo_key)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait(20)


def _environment() -> dict[str, str]:
    # Uncounted: that would make each of dozens of commands half as slow again.
    kept = {n: v for n, v in os.environ.items() if n in KEPT}
    # Where `llm-gateway` and `python` are those of this environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"}


def _ready(process: subprocess.Popen[bytes], port: int, log: Path) -> bool | None:
    assert process.poll() is None, log.read_text()
    try:
        with RawClient(port) as client:
            client.send(request("/readyz", method="GET"))
            return client.read_reply().status == 200 or None
    except OSError:
        return None


def _script(folder: Path, wanted: list[Block]) -> str:
    """A shell script of all blocks, each with an output of its own."""
    lines = ["set -eu"]
    for number, block in enumerate(wanted):
        lines.append(f"exec > out-{number} 2> err-{number}")
        if block.language == "python":
            (folder / f"block-{number}.py").write_text(block.text)
            lines.append(f"python block-{number}.py")
        else:
            lines.append(block.text)
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(600)  # dozens of commands, each a process
@pytest.mark.parametrize("name", TESTED)
def test_every_command_does_as_the_guide_says(name: str, newcomer: Gateway) -> None:
    text = guide(name).replace(ADDRESS, f"127.0.0.1:{newcomer.port}")
    wanted = [block for block in blocks(text) if block.runs]
    folder = newcomer.folder
    done = subprocess.run(
        ["bash", "-c", _script(folder, wanted)],
        cwd=folder,
        env=_environment() | {"KEY": newcomer.key},
        stdin=subprocess.DEVNULL,
        timeout=580,
        check=False,
    )
    wrong = []
    for number, block in enumerate(wanted):
        out, err = folder / f"out-{number}", folder / f"err-{number}"
        assert out.exists(), f"{name}.md, line {block.line} was not reached"
        failed = done.returncode != 0 and not (folder / f"out-{number + 1}").exists()
        assert not failed, f"{name}.md, line {block.line} failed: {err.read_text()}"
        assert "Traceback" not in err.read_text()
        if block.shown is not None and not matches(block.shown, out.read_text()):
            wrong.append(f"{name}.md, line {block.line} prints:\n{out.read_text()}")
    assert not wrong, "\n".join(wrong)
    assert done.returncode == 0


def test_what_is_not_run_is_there_and_is_all() -> None:
    every = [block for name in TESTED for block in blocks(guide(name))]
    first = {block.text.partition("\n")[0] for block in every if not block.runs}
    assert first == NOT_RUN.keys()
    assert {block.language for block in every} <= {*RUN}


def test_newcomer_reads_the_same_line_everywhere() -> None:
    line = next(block.text for block in blocks(guide("quickstart")) if "curl -N" in block.text)
    assert line in (REPOSITORY / "README.md").read_text()


def test_readme_points_to_every_guide() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    for path in GUIDES.glob("*.md"):
        assert f"docs/guides/{path.name}" in readme, path.name


@pytest.mark.parametrize("name", [path.stem for path in GUIDES.glob("*.md")])
def test_links_of_a_guide_lead_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]+\.md)(#[\w-]+)?\)", guide(name)):
        path = (GUIDES / target).resolve()
        assert path.exists(), target
        heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
        anchors = {"#" + re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
        assert not anchor or anchor in anchors, anchor


# -- the test itself ---------------------------------------------------------------------------


def test_shown_is_compared_line_by_line() -> None:
    assert matches("a 1\nb ...\n", "a 1\nb 22\n")
    assert matches("a\n...\nd\n", "a\nb\nc\nd\n")
    assert matches("...\nd\n", "d\n")
    assert not matches("a 1\n", "a 2\n")
    assert not matches("a\n", "a\nb\n")
    assert not matches("a\n...\nd\n", "a\nb\n")


def test_shown_of_nothing_is_refused() -> None:
    with pytest.raises(AssertionError, match="not run"):
        blocks("```toml\na = 1\n```\n\n```text\nx\n```\n")
    with pytest.raises(AssertionError, match="twice"):
        blocks("```sh\ntrue\n```\n```text\nx\n```\n```text\ny\n```\n")
