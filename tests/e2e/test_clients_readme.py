"""What clients/README.md shows is what works: its Python runs against a real server."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.harness import GATES, METHOD
from tls import issue, tls_front

README = Path(__file__).parents[2] / "clients" / "README.md"
TEXT = README.read_text(encoding="utf-8")
NAME = "amnestic.example"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def replaced(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What the page names and what stands for it here: the server, the toy's label, and settings that suit the toy."""
    server = serve()
    authority = issue("authority")
    authority.write(tmp_path, "ca")
    issue("client", authority).write(tmp_path, "client")
    (tmp_path / "notes.txt").write_text(
        "patient stable, insulin given\n\nurea and creatinine rising\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    with tls_front(server.target, issue(NAME, authority), authority) as front:
        yield {
            "127.0.0.1:8001": server.target,
            "127.0.0.1:8443": front,
            '"endocrine"': '"beta"',
            '"renal"': '"alpha"',
            'method={"preset": "amnestic", "k": 128}': f"method={METHOD}, gates={GATES}",
            "stage=True)": f"stage=True, method={METHOD}, gates={GATES})",
        }


def test_the_python_of_the_page_runs(
    replaced: dict[str, str], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [shown for shown in replaced if shown not in TEXT] == []
    printed = []
    namespace: dict[str, Any] = {}
    for code in blocks("python"):
        for shown, here in replaced.items():
            code = code.replace(shown, here)
        exec(compile(code, README.name, "exec"), namespace)  # a page is one session, from top to bottom
        printed.append(capsys.readouterr().out)
    first, staged, versions, tasks, many, stream, table, tls = printed
    assert "SUCCEEDED" in first
    assert staged.splitlines()[0] == "2", "the page's key is not among the first twentieth"
    assert "Rollout(version=3, canary_share=0.05, shadow_share=1.0" in staged
    assert "3 True ('alpha', 'beta')" in versions, "version 3 is active before the page rolls back"
    assert "[1, 1]" in tasks
    assert "SUCCEEDED" in tasks
    assert many.splitlines()[0].startswith("0 1 (")
    assert many.splitlines()[1:] == ["1 document 2 is empty", "2 1 ('delta',)"]
    assert [line.split()[0] for line in stream.splitlines()] == [str(number) for number in range(100)]
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["101", "102", "103"]
    assert tls == f"{checkpoint.name}\n"
