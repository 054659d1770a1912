#!/bin/sh
# Compares compose.yaml with the Compose schema, and the Kubernetes manifests with Kubernetes' own.
# Each overlay is checked as kustomize renders it; without kubectl, the base alone.
set -eu

cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check check-jsonschema kubernetes-validate

"$work/venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml
if command -v kubectl >/dev/null; then
    for overlay in cpu gpu-nvidia gpu-dri; do
        kubectl kustomize "deploy/kubernetes/$overlay" >"$work/$overlay.yaml"
        "$work/venv/bin/kubernetes-validate" --strict "$work/$overlay.yaml"
    done
else
    for manifest in deployment service autoscaler disruption-budget; do
        "$work/venv/bin/kubernetes-validate" --strict "deploy/kubernetes/base/$manifest.yaml"
    done
fi
