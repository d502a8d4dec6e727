"""Writes THIRD_PARTY_NOTICES.md: whose work is in the packages of Amnestic and in its images, and under which licence.

To be run by a Python that has what the CPU image installs, such as that of `.venv`; `make notices` does.
"""

import re
from importlib import metadata
from pathlib import Path

SOURCE = Path(__file__).parents[1]
NOTICES = SOURCE / "THIRD_PARTY_NOTICES.md"
# The licences that packages name in words of their own, by their identifiers in SPDX.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MPL-2.0 AND MIT": "MPL-2.0 AND MIT",
}

TEXT = """\
# Third-party notices

Amnestic is under the [Apache License 2.0](LICENSE). What follows is by others. Written by `make notices`.

## In the packages

| what | by | licence |
| --- | --- | --- |
| `amnestic_unlearn/data/eicu_demo.parquet` | derived from the eICU Collaborative Research Database Demo v2.0, \
[notice](unlearn/amnestic_unlearn/data/NOTICE.md) | ODbL 1.0, [text](unlearn/amnestic_unlearn/data/LICENSE-ODbL.md) |
| `amnestic/oip/open_inference.proto` | names and field numbers are those of the Open Inference Protocol, of KServe \
and Triton; the file is Amnestic's own | the protocol: Apache-2.0 |

## In the images

An image holds these Python packages beside Amnestic, each with the text of its licence in its `.dist-info` folder, and
Debian's packages with theirs in `/usr/share/doc`. Nothing of them is in Amnestic's own packages. The CUDA image holds
`onnxruntime-gpu` (MIT), Triton's compiler (MIT), and NVIDIA's libraries for CUDA, which come with torch under
[NVIDIA's own terms](https://docs.nvidia.com/cuda/eula/index.html): whoever passes such an image on has to keep to them.

| package | licence |
| --- | --- |
{rows}
"""


def text() -> str:
    """The page for the packages that are pinned for the CPU image."""
    pinned = re.findall(r"^([^\s#=]+)==", (SOURCE / "deploy/requirements-cpu.txt").read_text(), flags=re.MULTILINE)
    return TEXT.format(rows="\n".join(f"| {name} | {licence(metadata.metadata(name))} |" for name in pinned))


def licence(package: metadata.PackageMetadata) -> str:
    """In SPDX's terms; raises KeyError if a package names none, or one in words that are not known here."""
    if expression := package["License-Expression"]:
        return str(expression)
    classifiers = package.get_all("Classifier") or []
    named = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License ::")]
    return SPDX[named[0] if named else str(package["License"])]


if __name__ == "__main__":
    NOTICES.write_text(text())
