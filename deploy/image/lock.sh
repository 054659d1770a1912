#!/bin/sh
# Writes requirements.lock: the newest versions of the dependencies that pyproject.toml allows, with the extra wyoming
# alone, with the hashes of their files.
set -eu

cd "$(dirname "$0")/../.."
tools=$(mktemp -d)
trap 'rm -r "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/pip" install -q --disable-pip-version-check uv
"$tools/bin/uv" pip compile pyproject.toml --extra wyoming --quiet --upgrade --system-certs --generate-hashes --no-header \
    --python-version 3.11 --python-platform linux --excludes deploy/image/excluded.txt \
    --custom-compile-command "make requirements" --output-file requirements.lock >/dev/null
