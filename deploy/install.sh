#!/usr/bin/env bash
# Install the server into a virtual environment of its own, nothing but what is pinned by hash, and see that it starts:
#   deploy/install.sh cpu|gpu PREFIX
# PYTHON names the interpreter, python3 unless told. PIP_FIND_LINKS names a folder of packages; without it torch's build for
# CPUs comes from PyTorch's own index, for PyPI does not have it.
set -euo pipefail
if [ $# -ne 2 ] || { [ "$1" != cpu ] && [ "$1" != gpu ]; }; then
  echo "usage: $0 cpu|gpu PREFIX" >&2
  exit 2
fi
source=$(cd "$(dirname "$0")/.." && pwd)
if [ "$1" = cpu ] && [ -z "${PIP_FIND_LINKS:-}" ]; then
  export PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:-https://download.pytorch.org/whl/cpu}"
fi
pip=("$2/bin/python" -m pip --quiet --disable-pip-version-check --no-cache-dir)

"${PYTHON:-python3}" -m venv "$2"
"${pip[@]}" install --require-hashes --requirement "$source/deploy/requirements-$1.txt"
# Built here by a builder of its own, which does not stay in the environment.
"${pip[@]}" install --no-deps "$source"
"${pip[@]}" check
# All that a serving process imports, before anybody waits for it.
"$2/bin/python" -c 'import amnestic_server.app'
"$2/bin/amnestic" --version
du --summarize --block-size=MB "$2" | sed 's/\t.*/ installed/'
